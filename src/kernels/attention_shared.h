/* What every twin of attention decides alike. */
#ifndef LLMS_KERNELS_ATTENTION_SHARED_H
#define LLMS_KERNELS_ATTENTION_SHARED_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/half.h"
#include "kernels/attention.h"
#include "kernels/codec.h"
#include "kernels/unroll.h"

/* The density of a probability (attention.h): adding 2^23 rounds p * unit, which is at most 2^18, to an
 * integer and leaves it in the low bits of the sum. */
#define ATTENTION_ROUND 8388608.0f
#define ATTENTION_ROUND_BITS 0x4b000000u

/* Chunks whose V at level 8 is summed up as integers of one step (attention.h). */
enum { ATTENTION_GROUP = 2 };
/* The largest integers that queries and weights become (attention.h's L). */
#define ATTENTION_QUERY 127.0f
#define ATTENTION_WEIGHT 255.0f
enum { ATTENTION_AHEAD = 8 }; /* chunks from the one worked on to the one fetched */

static inline bool attention_rotated(const struct attention_chunk *c)
{
    return codec_rotated(c->level);
}

/* Integers up to `limit` for values up to the magnitude of these bits (as integers NaN is the largest): what
 * to multiply the values by, and *step. Where 0 is returned and step is NaN, the integers do not matter. */
static inline float attention_integers(uint32_t largest, float limit, float *step)
{
    float top = bits_float(largest);
    bool finite = top <= 0x1.fffffep127f, some = top >= 0x1p-100f;
    *step = !finite ? NAN : some ? top / limit : 0;
    return finite && some ? limit / top : 0;
}

/* The chunk to fetch while c is worked on; left: how many there are from c on. Chunks lie apart, so that the
 * processor does not guess it. */
static inline const struct attention_chunk *attention_ahead(const struct attention_chunk *c, size_t left)
{
    return left > ATTENTION_AHEAD ? c + ATTENTION_AHEAD : c;
}

/* Inlined, as gcc takes a function that only fetches for one that does nothing. */
ALWAYS_INLINE void attention_fetch_bytes(const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)from + i);
}

ALWAYS_INLINE void attention_fetch_scales(const struct attention_chunk *c, size_t dim)
{
    bool channels = codec_by_channel(c->level, false) || codec_by_channel(c->level, true);
    if (c->level < 16)
        attention_fetch_bytes(codec_scales(c->data, c->level, dim), channels ? 64 + 2 * dim : 64);
}

/* All of K and the scales. */
ALWAYS_INLINE void attention_fetch_keys(const struct attention_chunk *c, size_t dim)
{
    attention_fetch_bytes(c->data, CHUNK_TOKENS * dim * codec_bits(codec_part(c->level, false)) / 8);
    attention_fetch_scales(c, dim);
}

ALWAYS_INLINE void attention_fetch_values(const struct attention_chunk *c, size_t dim)
{
    attention_fetch_bytes(codec_values(c->data, c->level, dim),
                          CHUNK_TOKENS * dim * codec_bits(codec_part(c->level, true)) / 8);
}

/* Whether chunks first .. end - 1 have one of level 8. */
static inline bool attention_codes(const struct attention *a, size_t first, size_t end)
{
    while (first < end && a->chunks[first].level != 8)
        first++;
    return first < end;
}

/* Chunks whose V is summed up together. Only those of level 8 matter. */
struct attention_group {
    const struct attention_chunk *chunks;
    size_t count, tokens, dim; /* tokens: how many positions any row sees from here on */
    size_t left;               /* chunks from here to the last one wanted */
};

/* The group from chunk `first` on, where no row sees more than `most` positions. */
ALWAYS_INLINE struct attention_group attention_group_of(const struct attention *a, size_t first, size_t most)
{
    size_t tokens = most - first * CHUNK_TOKENS, left = (tokens + CHUNK_TOKENS - 1) / CHUNK_TOKENS;
    return (struct attention_group){a->chunks + first, left < ATTENTION_GROUP ? left : ATTENTION_GROUP,
                                    tokens, a->dim, left};
}

/* Whether each token's K, or V, has a scale that its float sum, or weight, is multiplied by. */
static inline bool attention_scaled(const struct attention_chunk *c, bool values)
{
    return codec_part(c->level, values) == 4;
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
