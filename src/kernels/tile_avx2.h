/* Tiles of unpacked weights for the AVX2 matrix product: 8 rows, one a lane, by a stretch of columns.
 *
 * code[c] holds codes 4 c .. 4 c + 3 of each row, as unpack_avx2.h gives them. The files of tiles are built
 * twice, for AVX2 and for AVX-VNNI. */
#ifndef LLMS_KERNELS_TILE_AVX2_H
#define LLMS_KERNELS_TILE_AVX2_H

#include "kernels/unpack_avx2.h"

enum { TILE_ROWS = UNPACK_ROWS, TILE_COLUMNS = 512 };

struct tile {
    __m256i code[TILE_COLUMNS / 4];
    __m256 scale[TILE_COLUMNS / 32];     /* of each block (32 or 256 columns) */
    __m256 minimum[TILE_COLUMNS / 32];   /* likewise, for types that have one */
    __m256i factor[TILE_COLUMNS / 16];   /* K types: integer scales of each 32 (Q4_K, Q5_K) or 16 columns */
    __m256i minimums[TILE_COLUMNS / 32]; /* as 16-bit halves: Q4_K, Q5_K: 4 a block, mins_pair(i, j); Q6_K:
                                            its factors, 8 a block, each 4 of them by signed_pair */
};

/* Unpacks blocks of 8 rows that lie stride bytes apart; fetches as much memory from the address `ahead`. */
typedef void tile_unpack_fn(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                            struct tile *tile);
tile_unpack_fn *VARIANT(tile_unpack)(enum dtype type);

#endif
