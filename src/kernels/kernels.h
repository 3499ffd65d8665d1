/* The compute kernels: one table of functions per instruction set, chosen at run time.
 *
 * Exactness. A result never depends on the batch it was computed in nor on the instruction set: every kernel
 * states a canonical order of its floating-point operations, its plain twin follows the same order, and all
 * twins agree bit by bit (docs/INVARIANTS.md, 9). So a recomputed chunk equals the one it replaces, however
 * it was batched. Sources are built with -ffp-contract=off; where a fused multiply-add is meant it is written
 * (fmaf in the plain twin).
 *
 * Threads: kernels are pure, but that each thread may measure which of two ways to the same bits is faster;
 * callers split rows, tokens or heads between threads.
 *
 * Activations (the right-hand side of a matrix product) are first packed by `pack`, by the weight's type:
 * - PACK_F32, for F32, F16 and BF16 weights: as they are
 * - PACK_Q32, for Q8_0, Q4_1, Q5_0 and Q5_1: int8, one scale for 32 values (rounded to FP16, as llama.cpp's
 *   Q8_0), and the sum of each 32
 * - PACK_PAIRS, for Q4_0: likewise with somewhat smaller codes, for products in pairs (src/kernels/pack.h)
 * - PACK_Q256, for Q4_K, Q5_K and Q6_K: int8, one F32 scale for 256 values (as llama.cpp's Q8_K), and sums of
 *   each 16
 *
 * The layout inside a packed row is the kernels' own business (src/kernels/pack.h). */
#ifndef LLMS_KERNELS_KERNELS_H
#define LLMS_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

/* AVXVNNI: AVX2 with AVX-VNNI, as processors without AVX-512 have it. AMX: AMX-INT8 beside AVX-512. */
enum isa { ISA_PLAIN, ISA_AVX2, ISA_AVXVNNI, ISA_AVX512, ISA_AMX, ISA_COUNT };

enum pack { PACK_F32, PACK_Q32, PACK_PAIRS, PACK_Q256, PACK_COUNT };

/* out[t * out_stride + r] = sum over k of weights[r][k] * x[t][k] for the rows asked for and all tokens. */
struct matmul {
    enum dtype type;
    const void *weights; /* row-major, dtype_row_bytes(type, columns) a row */
    size_t columns;      /* a multiple of the type's block */
    const void *packed;  /* tokens rows of kernels_packed_bytes() each, in the type's packing */
    size_t tokens;
    float *out;
    size_t out_stride; /* floats between tokens */
    const void *next;  /* NULL, or rows as wide that the caller asks for next: only a hint, what to fetch from
                          memory meanwhile in place of what lies behind these */
};

/* Columns begin .. begin + count - 1 of `tokens` packed rows. What all parts of the rows leave is what pack
 * leaves. */
struct pack_part {
    enum pack pack;      /* PACK_Q32 or PACK_PAIRS */
    const float *x;      /* [tokens][count] */
    size_t begin, count; /* multiples of 32; at most PACK_PART_MOST columns */
    size_t columns;      /* of the whole row */
    size_t tokens;
    void *out; /* the first token's row; the next are kernels_packed_bytes(pack, columns) further each */
};

enum { PACK_PART_MOST = 64 };

struct attention;  /* attention.h */
struct codec_head; /* codec.h */

struct kernels {
    const char *name; /* "plain", "avx2", "avxvnni", "avx512", "amx" */
    void (*pack)(enum pack pack, const float *x, size_t columns, void *out); /* one token's row */
    void (*pack_part)(const struct pack_part *p);
    void (*matmul)(const struct matmul *m, size_t row_begin, size_t row_end);
    void (*dequantize)(enum dtype type, const void *row, float *out,
                       size_t values); /* exact: an embedding's row */
    void (*attention)(const struct attention *a);
    void (*store)(void *data, uint8_t level, size_t dim, unsigned slot, const float *k,
                  const float *v);                              /* attention.h */
    struct codec_error (*codec)(const struct codec_head *head); /* codec.h */
    void (*rotate)(float *x, size_t dim);                       /* codec.h */
    void (*rms_norm)(const float *x, const float *weight, float epsilon, size_t n,
                     float *out);                                             /* out may be x */
    void (*swiglu)(const float *gate, const float *up, size_t n, float *out); /* silu(gate) * up */
    void (*add)(float *x, const float *y, size_t n);                          /* x += y */
};

enum pack kernels_pack_of(enum dtype weights);
size_t kernels_packed_bytes(enum pack pack, size_t columns); /* a multiple of 64 */

const struct kernels *kernels_get(enum isa isa);       /* NULL where this CPU or this build lacks it */
const struct kernels *kernels_named(const char *name); /* by kernels.name; NULL likewise */
const struct kernels *kernels_best(void);              /* the fastest; LLMS_ISA=NAME limits it */

#endif
