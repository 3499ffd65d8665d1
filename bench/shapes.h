/* The shapes of known models, as their authors publish them, and small ones for tests. */
#ifndef LLMS_BENCH_SHAPES_H
#define LLMS_BENCH_SHAPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct shape {
    const char *name;
    const char *architecture;
    const char *pre; /* of the vocabulary written where none is given */
    uint32_t layers;
    uint32_t width;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head; /* values of one; written as key_length and value_length where it is not width / heads */
    uint32_t ff;
    uint32_t vocabulary;
    uint32_t context; /* tokens */
    float rope_base;
    float epsilon;
    bool tied;
    bool biases;     /* of q, k and v */
    bool qk_norm;    /* attn_q_norm, attn_k_norm */
    bool rope_freqs; /* Llama 3's frequency factors: 32, 1, 4, 8192 */
    bool chain;      /* output rows are embedding rows in another order (model.c) */
};

const struct shape *shapes_list(size_t *count);
const struct shape *shapes_find(const char *name); /* NULL: unknown */

#endif
