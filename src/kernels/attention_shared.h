/* What every twin of attention decides alike. */
#ifndef LLMS_KERNELS_ATTENTION_SHARED_H
#define LLMS_KERNELS_ATTENTION_SHARED_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/half.h"
#include "kernels/attention.h"
#include "kernels/codec.h"

/* The density of a probability (attention.h): adding 2^23 rounds p * unit, which is at most 2^18, to an
 * integer and leaves it in the low bits of the sum. */
#define ATTENTION_ROUND 8388608.0f
#define ATTENTION_ROUND_BITS 0x4b000000u

static inline bool attention_rotated(const struct attention_chunk *c)
{
    return codec_rotated(c->level);
}

/* Whether each token's K, or V, has a scale. */
static inline bool attention_scaled(const struct attention_chunk *c, bool values)
{
    uint8_t part = codec_part(c->level, values);
    return part == 8 || part == 4;
}

/* The first position below `visible` that lies in a rotated chunk, or one at or past it. */
static inline size_t attention_first_rotated(const struct attention *a, size_t visible)
{
    size_t t = 0;
    while (t < visible && !attention_rotated(&a->chunks[t / CHUNK_TOKENS]))
        t += CHUNK_TOKENS;
    return t;
}

/* Whether a chunk of the paper's codec is seen. */
static inline bool attention_paper(const struct attention *a, size_t visible)
{
    for (size_t t = 0; t < visible; t += CHUNK_TOKENS)
        if (a->chunks[t / CHUNK_TOKENS].level & CODEC_PAPER)
            return true;
    return false;
}

/* Units a probability of 1 counts for, by its row's total; 0 where that is not finite. */
static inline float attention_unit(float total)
{
    float unit = 0x1p18f / total;
    return unit > 0 ? unit : 0; /* total is at least 1, unless it is NaN */
}

static inline uint32_t attention_units(float p, float unit)
{
    return float_bits(fmaf(p, unit, ATTENTION_ROUND)) - ATTENTION_ROUND_BITS;
}

#endif
