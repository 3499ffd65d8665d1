/* Panels of unpacked weights for the AMX matrix product: 16 rows, one a lane, by a stretch of columns.
 *
 * low[c] holds signed codes 4 c .. 4 c + 3 of each row, which is the form that the instruction wants of its
 * second operand. Types of blocks of 32: the codes, centred. K types: the code times its integer scale, so
 * that a block of 256 is one sum: low + 128 * high, low in 0..127. */
#ifndef LLMS_KERNELS_PANEL_AMX_H
#define LLMS_KERNELS_PANEL_AMX_H

#include <immintrin.h>
#include <stddef.h>

#include "base/dtype.h"

enum { PANEL_ROWS = 16, PANEL_COLUMNS = 512 };

struct panel {
    __m512i low[PANEL_COLUMNS / 4], high[PANEL_COLUMNS / 4];
    __m512 scale[PANEL_COLUMNS / 32];   /* of each block (32 or 256 columns) */
    __m512 minimum[PANEL_COLUMNS / 32]; /* likewise, for types that have one */
    __m512i minimums[PANEL_COLUMNS /
                     64]; /* Q4_K, Q5_K: integer minimums of 2 times 32 columns as 16-bit halves */
};

/* Unpacks blocks of 16 rows that lie stride bytes apart. */
void panel_unpack(enum dtype type, const unsigned char *rows, size_t stride, size_t blocks,
                  struct panel *panel);

#endif
