/* Tiles of unpacked weights for the AVX2 matrix product: 8 rows, one a lane, by a stretch of columns.
 *
 * code[c] holds codes 4 c .. 4 c + 3 of each row. They are unsigned bytes with the type's offset (8, 16, 32)
 * still on them; only Q8_0's are signed. */
#ifndef LLMS_KERNELS_TILE_AVX2_H
#define LLMS_KERNELS_TILE_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

enum { TILE_ROWS = 8, TILE_COLUMNS = 512 };

struct tile {
    __m256i code[TILE_COLUMNS / 4];
    __m256 scale[TILE_COLUMNS / 32];   /* of each block (32 or 256 columns) */
    __m256 minimum[TILE_COLUMNS / 32]; /* likewise, for types that have one */
    __m256i factor[TILE_COLUMNS / 16]; /* K types: the scale of each 32 (Q4_K, Q5_K) or 16 (Q6_K) columns in
                                          both 16-bit halves */
    __m256i
        minimums[TILE_COLUMNS / 64]; /* Q4_K, Q5_K: integer minimums of 2 times 32 columns as 16-bit halves */
};

/* Unpacks blocks of 8 rows that lie stride bytes apart; prefetches as many bytes from `ahead` if not NULL. */
typedef void tile_unpack_fn(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                            struct tile *tile);
tile_unpack_fn *tile_unpack_avx2(enum dtype type);

#endif
