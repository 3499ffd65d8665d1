/* A model's weights and dimensions, found and checked in a GGUF file. Data stays in the file's mapping.
 *
 * Architectures: llama (Llama 2 and 3, SmolLM2, TinyLlama, Mistral), qwen2, qwen3. Whatever the file says is
 * checked against what the forward pass will index; a file that does not fit is refused with one line. */
#ifndef LLMS_ENGINE_WEIGHTS_H
#define LLMS_ENGINE_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"
#include "kernels/kernels.h"
#include "model/gguf.h"

struct matrix {
    const void *data;
    size_t rows;    /* outputs */
    size_t columns; /* inputs */
    enum dtype type;
    enum pack pack; /* how its inputs are packed */
};

struct layer {
    const float *attention_norm, *ffn_norm; /* [width] */
    const float *q_bias, *k_bias, *v_bias;  /* [rows] or NULL */
    const float *q_norm, *k_norm;           /* [dim] or NULL */
    struct matrix q, k, v, o, gate, up, down;
};

struct weights {
    char architecture[32];
    uint32_t layer_count;
    uint32_t width;
    uint32_t heads, kv_heads; /* heads is a multiple of kv_heads */
    uint32_t dim;             /* of a head, for K and V alike; a multiple of 8, at most 256 */
    uint32_t hidden;          /* of the feed-forward part */
    uint32_t vocabulary;
    uint32_t context_length;
    float epsilon;
    uint32_t rope_dims; /* of a head that are rotated; even */
    bool rope_halves;   /* pairs are (i, i + rope_dims / 2), else (2 i, 2 i + 1) */
    double *rope_rates; /* [rope_dims / 2] radians a position; owned */
    struct matrix embedding, output;
    const float *output_norm;
    struct layer *layers; /* owned */
    uint64_t parameters;
    uint64_t bytes_per_token; /* of weights read to compute one token */
};

int weights_init(struct weights *weights, const struct gguf *gguf, struct error *error);
void weights_deinit(struct weights *weights);
enum dtype weights_main_type(const struct weights *weights); /* of most bytes */

#endif
