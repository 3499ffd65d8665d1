/* Attention straight on KV chunks.
 *
 * A chunk holds CHUNK_TOKENS (16) positions. For one layer it is a block, for each key/value head in turn:
 *
 *   level 16 (FP16):  K as [dim][16] halves, then V as [16][dim] halves
 *   level 8  (INT8):  K as [dim][16] signed bytes, V as [16][dim] signed bytes, K scales [16] halves,
 *                     V scales [16] halves: one for a token's vector in a head (value = scale * code)
 *   levels 4, 3 and 2, and the paper's:   kernels/codec.h; ours are rotated; 2, 3's V and the paper's are
 *                                         by channel
 *
 * (K by dimension, so that a chunk's 16 scores come out as one vector with no sum across lanes.) All the
 * block's K and V of head h start at h * kv_head_bytes(level, dim) (kv/geometry.h); 16-byte aligned.
 *
 * Rotated chunks are scored with the rotated query; their weighted V is summed apart and rotated back once.
 *
 * Canonical order, per query and head, x being the query, or in a rotated chunk the query rotated, and K and
 * V the halves (16), code - mid (4, and 3's K), all of them exact in float, or by channel code * step + low
 * of the dimension (fused):
 *
 *   score[t]  (sum over d ascending, fused, of x[d] * K[d][t]) * K scale (4 and 3 only) * scale
 *   p[t]      exp(score[t] - the largest visible score), by the kernels' own polynomial
 *   total     of p, in 16 lanes by t mod 16, lanes then added in a fixed tree
 *   w[t]      p[t] * V scale (8 and 4 only)
 *   A[d]      first of level 8, as below; then, on top of it, the sum over t of the other chunks that are not
 *             rotated, ascending, fused, of w[t] * V[t][d]
 *   B[d]      the same over t of rotated chunks, from 0
 *   out[d]    (A[d] + (R B)[d]) / total; A[d] / total where the query sees no rotated chunk
 *
 * Chunks of level 8 are taken by integers, whose sums are exact in any order. Values whose largest magnitude
 * is m are rounded to n = x * (L / m), nearest, ties to even, and one such integer stands for step = m / L; L
 * is 127 for a query, 255 for weights. (An m below 2^-100 counts as 0: all n and step are 0. An m that is not
 * finite makes step NaN.)
 *
 *   score[t]  (sum over d of n[d] * code of K[d][t], rounded once to float) * K scale * (step * scale), n and
 *             step the query's
 *   A[d]      sum, from 0, fused, over groups of 2 chunks ascending (chunks 2 g and 2 g + 1) of
 *             (sum over t of n[t] * code of V[t][d], rounded once to float) * step, n and step those of
 *             the w[t] that the query sees in the group's chunks of level 8
 *
 * A query is rounded like any other activation that meets integer weights; that and the rounding of weights
 * cost about as much as the codes of K and V themselves (docs/MEASURED.md).
 *
 * So what a row gives does not depend on other rows, and where no chunk is rotated nothing is. */
#ifndef LLMS_KERNELS_ATTENTION_H
#define LLMS_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

enum { CHUNK_TOKENS = 16 };

struct attention_chunk {
    const void *data; /* this layer's and this key/value head's K and V */
    uint8_t level;    /* 16, 8, 4, 3, 2, or the paper's 4 or 2 */
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
                           that sees it, its probability p[t] / total in units of 2^-18 (density, Eq. 1):
                           p[t] * (2^18 / total), rounded once to the nearest integer, ties to even; a row
                           whose total is not finite adds nothing */
    float *scratch;     /* attention_scratch_floats(max visible) floats, 64-byte aligned */
};

/* Queries a kernel works on at once; more are done in blocks of so many. */
enum { ATTENTION_QUERIES = 8, ATTENTION_DIM = 256 };

/* The scratch: for each row of a block its query rotated, its B and its A, ATTENTION_DIM floats each, and its
 * query's integers, half that at most; then the block's probabilities, and weights and steps of level 8. */
enum { ATTENTION_ROW = 7 * ATTENTION_DIM / 2, ATTENTION_ROOM = ATTENTION_QUERIES * ATTENTION_ROW };
size_t attention_scratch_floats(size_t max_visible);

/* Every kernel table also has
 *
 *     void store(void *data, uint8_t level, size_t dim, unsigned slot, const float *k, const float *v);
 *
 * which writes one token's K and V of one head ([dim] floats each) into slot 0..15 of its chunk's data:
 * halves rounded to nearest even at level 16; at level 8 scale = max|x| / 127, as a half, and code = x /
 * scale, rounded to nearest even. */

#endif
