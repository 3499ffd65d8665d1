/* What engine.c and forward.c share. */
#ifndef LLMS_ENGINE_INTERNAL_H
#define LLMS_ENGINE_INTERNAL_H

#include "base/workers.h"
#include "engine/engine.h"
#include "engine/weights.h"
#include "kernels/attention.h"
#include "kernels/kernels.h"

/* One thread's room for attention and for a piece of the feed-forward part. */
struct thread_scratch {
    float *scores;                  /* attention_scratch_floats(positions) */
    struct attention_chunk *chunks; /* positions / 16 */
    uint32_t *received;             /* [positions] what attention gave them in this layer (attention.h) */
    size_t positions;               /* what these are large enough for */
    float *gate, *up;               /* [ENGINE_BATCH][FFN_ROWS] */
    const float **q;                /* [ATTENTION_TOKENS x heads per key/value head] */
    float **out;
    uint32_t *visible;
};

enum {
    MATMUL_ROWS = 64, /* output rows a piece of a product: small, so that no core waits long for another */
    FFN_ROWS = PACK_PART_MOST, /* hidden rows a piece of gate and up */
    TOKEN_PIECE_BYTES = 80000, /* weights a piece for one token, about */
    ROWS_STEP = 16,            /* rows that every kernel takes at once */
    ATTENTION_TOKENS = 16,     /* query tokens a piece of attention */
    TOKENS_PIECE = 4,          /* tokens a piece of the row operations */
};

struct engine {
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct weights weights;
    struct engine_model model;
    const struct kernels *kernels;
    struct workers *workers;
    struct thread_scratch *scratch; /* one a thread */
    uint64_t *received;             /* [chunks] what a batch's attention gave each chunk, all layers */
    size_t received_room;
    size_t span; /* tokens that go through the layers together, a multiple of ENGINE_BATCH */
    /* A span's activations, [span] rows each. */
    float *x;        /* [width] the residual stream */
    float *rotation; /* [rope_dims] cos and sin of each pair */
    /* A part's, [ENGINE_BATCH] rows each. */
    float *normed;                            /* [width] */
    float *q;                                 /* [heads x dim]; attention's result replaces it */
    float *k, *v;                             /* [kv_heads x dim] */
    float *hidden;                            /* [hidden], for packings that are not made in parts */
    float *delta;                             /* [width] what a block adds to x */
    unsigned char *packed[PACK_COUNT];        /* by enum pack: rows of kernels_packed_bytes() each */
    unsigned char *packed_hidden[PACK_COUNT]; /* hidden rows packed where they are made, as others are read */
};

/* Whether hidden rows, for a product that wants this packing, are packed piece by piece, where they are made:
 * a piece has no whole block of 256. */
static inline bool engine_packs_parts(enum pack pack)
{
    return pack == PACK_Q32 || pack == PACK_PAIRS;
}

int engine_scratch_reserve(struct engine *engine, size_t positions); /* 0 or -ENOMEM */

#endif
