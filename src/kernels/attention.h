/* Attention straight on KV chunks.
 *
 * A chunk holds CHUNK_TOKENS (16) positions. For one layer it is a block, for each key/value head in turn:
 *   level 16 (FP16):  K as [dim][16] halves, then V as [16][dim] halves
 *   level 8  (INT8):  K as [dim][16] signed bytes, V as [16][dim] signed bytes, K scales [16] halves, V
 * scales [16] halves: one scale for a token's vector in a head (value = scale * q) (K by dimension, so that a
 * chunk's 16 scores come out as one vector with no sum across lanes.) All the block's K and V of head h start
 * at h * kv_head_bytes(level, dim) (kv/geometry.h); 64-byte aligned.
 *
 * Levels 4 and 2: kernels/codec.h. Their scores are taken with the rotated query, their weighted V is summed
 * apart and rotated back once, then added to that of levels 16 and 8.
 *
 * Canonical order, per query and head: score[t] = (sum over d ascending, fused, of q[d] * K[d][t]) * scale
 * (then
 * * K scale at level 8, before the 1/sqrt(dim) factor); m = max of visible scores; p[t] = exp(score[t] - m)
 * by the kernels' own polynomial; total summed in 16 lanes by t mod 16, lanes then added in a fixed tree;
 * out[d] = (sum over t ascending, fused, of p[t] (* V scale) * V[t][d]) / total. */
#ifndef LLMS_KERNELS_ATTENTION_H
#define LLMS_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

enum { CHUNK_TOKENS = 16 };

struct attention_chunk {
    const void *data; /* this layer's and this key/value head's K and V */
    uint8_t level;    /* 16, 8, 4 or 2 */
};

struct attention {
    const struct attention_chunk *chunks; /* chunk i covers positions 16 i .. 16 i + 15 */
    size_t dim;                           /* of a head; a multiple of 8, at most 256 */
    float scale;                          /* usually 1 / sqrt(dim) */
    size_t queries;                       /* rows of q: heads of a group x tokens, in any order */
    const float *const *q;                /* queries pointers to [dim] */
    float *const *out;                    /* queries pointers to [dim] */
    const uint32_t *visible; /* queries counts: row i sees positions 0 .. visible[i] - 1, at least 1 */
    uint32_t *received; /* NULL, or one for each position, rounded up to 16: to each is added, for every row
                           that sees it, its probability p[t] / total in units of 2^-18, rounded to nearest
                           even (density, Eq. 1) */
    float *scratch;     /* attention_scratch_floats(max visible) floats, 64-byte aligned */
};

/* Queries a kernel works on at once; more are done in blocks of so many. */
enum { ATTENTION_QUERIES = 8 };
size_t attention_scratch_floats(size_t max_visible);

/* Level 8: the K scales [16], then the V scales [16], behind the codes. */
static inline const uint16_t *attention_scales(const void *data, size_t dim)
{
    return (const uint16_t *)(const void *)((const char *)data + 2 * CHUNK_TOKENS * dim);
}

/* Every kernel table also has
 *
 *     void store(void *data, uint8_t level, size_t dim, unsigned slot, const float *k, const float *v);
 *
 * which writes one token's K and V of one head ([dim] floats each) into slot 0..15 of its chunk's data:
 * halves rounded to nearest even at level 16; at level 8 scale = max|x| / 127 and q = x * (127 / max|x|)
 * rounded to nearest even. */

#endif
