/* The layout of a packed activation row, the same for every instruction set.
 *
 * Sections follow one another, each rounded up to 64 bytes and zero in its padding (all but PACK_F32 with 64
 * bytes more where that makes an odd number of them):
 * - PACK_F32: columns x F32
 * - PACK_Q32: columns x int8 codes; columns/32 x F32 scales; columns/32 x int32 starts (PACK_START)
 * - PACK_PAIRS: as PACK_Q32; then columns/32 x int32 starts of pairs (PACK_PAIR)
 * - PACK_Q256: columns x int8 codes; columns/256 x F32 scales; columns/16 x int16 sums of the codes
 *
 * A value is scale * code. Codes lie in -127..127, and of PACK_PAIRS in -120..120.
 *
 * Definition (all twins follow it bit by bit), amax being the largest magnitude, NaN left out:
 * - PACK_Q32: scale = amax / 127 rounded to FP16; code = nearest-even(x * (127 / amax)); all codes 0 where
 *   amax is 0
 * - PACK_PAIRS: the same with 120
 * - PACK_Q256: max = the first x of that magnitude; i = -127 / max; scale = 1 / i; code =
 *   nearest-even(x * i); scale and codes 0 where amax is 0
 *
 * What is rounded is limited to the codes' range before, and counts as the largest code where it is NaN. A
 * block that holds a NaN has a NaN scale, so that NaN goes on through the product. */
#ifndef LLMS_KERNELS_PACK_H
#define LLMS_KERNELS_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* A start is -PACK_START times the sum of a block's codes: where the exact dot product with unsigned codes
 * that are PACK_START above the weights' has to begin. For codes 16 or 128 above it is multiplied. */
enum { PACK_START = 8 };

/* One product in place of two, of activations x and y and weights of 4 bits w and v, -8..7 (S. Winograd, A
 * New Algorithm for Inner Product, 1968): x w + y v = (x + v) (y + w) - x y - v w, where the last two depend
 * on the token alone and on the row alone. PACK_PAIR is added to the first factor. For both to be bytes, one
 * unsigned and one signed, no code is above PACK_PAIRS_MOST: x + v + 128 lies in 0..255, y + w in -128..127.
 *
 * In each 8 columns, 0..3 (x) pair with 4..7 (y). A start of pairs is minus a block's sum of (x + 128) y. */
enum { PACK_PAIR = 128, PACK_PAIRS_MOST = 120, PACK_PAIRS_APART = 4 };

/* The largest code where a scale is for 32 values. */
static inline float pack_q32_most(enum pack pack)
{
    return pack == PACK_PAIRS ? PACK_PAIRS_MOST : 127;
}

static inline size_t pack_round(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static inline size_t pack_q32_scales_at(size_t columns)
{
    return pack_round(columns);
}

static inline size_t pack_q32_starts_at(size_t columns)
{
    return pack_q32_scales_at(columns) + pack_round(columns / 32 * 4);
}

/* The sum of the codes. */
static inline int32_t pack_q32_sum(int32_t start)
{
    return start / -PACK_START;
}

static inline size_t pack_pairs_at(size_t columns)
{
    return pack_q32_starts_at(columns) + pack_round(columns / 32 * 4);
}

/* One block's place in a packed row of PACK_Q32 or PACK_PAIRS; pairs is NULL in the former. */
struct pack_block {
    int8_t *codes;
    float *scale;
    int32_t *start, *pairs;
};

static inline struct pack_block pack_block_at(enum pack pack, void *row, size_t columns, size_t block)
{
    char *at = row;
    int32_t *pairs = (int32_t *)(void *)(at + pack_pairs_at(columns)) + block;
    return (struct pack_block){
        (int8_t *)at + 32 * block, (float *)(void *)(at + pack_q32_scales_at(columns)) + block,
        (int32_t *)(void *)(at + pack_q32_starts_at(columns)) + block, pack == PACK_PAIRS ? pairs : NULL};
}

/* Makes the padding of a part's rows, where it has the last columns. */
void pack_part_end(const struct pack_part *p);

static inline size_t pack_q256_scales_at(size_t columns)
{
    return columns;
}

static inline size_t pack_q256_sums_at(size_t columns)
{
    return pack_q256_scales_at(columns) + pack_round(columns / 256 * 4);
}

#endif
