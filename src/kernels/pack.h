/* The layout of a packed activation row, the same for every instruction set.
 *
 * Sections follow one another, each rounded up to 64 bytes and zero in its padding (PACK_Q32 and PACK_Q256
 * with 64 bytes more where that makes an odd number of them):
 * - PACK_F32: columns x F32
 * - PACK_Q32: columns x int8 codes; columns/32 x F32 scales; columns/32 x int32 starts (PACK_START)
 * - PACK_Q256: columns x int8 codes; columns/256 x F32 scales; columns/16 x int16 sums of the codes
 *
 * Codes lie in -127..127. A value is scale * code.
 *
 * Definition (all twins follow it bit by bit), amax being the largest magnitude, NaN left out:
 * - PACK_Q32: scale = amax / 127 rounded to FP16; code = nearest-even(x * (127 / amax)); all codes 0 where
 *   amax is 0
 * - PACK_Q256: max = the first x of that magnitude; i = -127 / max; scale = 1 / i; code =
 *   nearest-even(x * i); scale and codes 0 where amax is 0
 *
 * x * i is limited to -127..127 before it is rounded, and counts as 127 where it is NaN. A block that holds a
 * NaN has a NaN scale, so that NaN goes on through the product. */
#ifndef LLMS_KERNELS_PACK_H
#define LLMS_KERNELS_PACK_H

#include <stddef.h>
#include <stdint.h>

/* A start is -PACK_START times the sum of a block's codes: where the exact dot product with unsigned codes
 * that are PACK_START above the weights' has to begin. For codes 16 or 128 above it is multiplied. */
enum { PACK_START = 8 };

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

static inline size_t pack_q256_scales_at(size_t columns)
{
    return columns;
}

static inline size_t pack_q256_sums_at(size_t columns)
{
    return pack_q256_scales_at(columns) + pack_round(columns / 256 * 4);
}

#endif
