/* Tiles of unpacked weights in blocks of 256 for the AVX-512 matrix product: 16 rows, one a lane, by a
 * stretch of columns.
 *
 * code[c] holds codes 4 c .. 4 c + 3 of each row, as unsigned bytes: Q6_K's offset of 32 is still on them and
 * is taken off the exact dot product through the activations' sums. A dot product against a token is then one
 * vpdpbusd a vector with the token's four codes broadcast, and never needs a sum across lanes. */
#ifndef LLMS_KERNELS_TILE_AVX512_H
#define LLMS_KERNELS_TILE_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

enum { TILE_ROWS = 16, TILE_COLUMNS = 512 };

struct tile {
    __m512i code[TILE_COLUMNS / 4];
    __m512 scale[TILE_COLUMNS / 256];   /* of each block */
    __m512 minimum[TILE_COLUMNS / 256]; /* likewise, for types that have one */
    __m512i factor[TILE_COLUMNS / 16];  /* integer scales of each 32 (Q4_K, Q5_K) or 16 (Q6_K) columns */
    __m512i
        minimums[TILE_COLUMNS / 64]; /* Q4_K, Q5_K: integer minimums of 2 times 32 columns as 16-bit halves */
};

/* Unpacks blocks of 16 rows that lie stride bytes apart. */
typedef void tile_unpack_fn(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile);
tile_unpack_fn *tile_unpack_avx512(enum dtype type);

#endif
