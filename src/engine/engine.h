/* The engine: tokens in, logits out, KV into chunks. HTTP and journals never see a tensor.
 *
 * An engine owns the mapped model, its tokenizer and the compute threads. One caller at a time for
 * engine_forward (the worker); the rest is immutable and safe from any thread. */
#ifndef LLMS_ENGINE_ENGINE_H
#define LLMS_ENGINE_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/workers.h"
#include "kv/geometry.h"
#include "kv/sequence.h"
#include "model/template.h"
#include "model/tokenizer.h"

struct engine;

struct engine_options {
    const char *model_path;
    unsigned threads; /* 0: one per online CPU */
};

struct engine_model {
    char name[128];        /* general.name, or the file's name */
    char architecture[32]; /* llama, qwen2, qwen3 */
    char type[16];         /* of most weights: "Q8_0" */
    uint64_t parameters;
    uint64_t weights_bytes;  /* read for one token */
    uint32_t context_length; /* what it was trained for, tokens */
    uint32_t vocabulary;
    uint32_t width;
    struct kv_geometry kv;
    uint64_t fingerprint; /* of the weights: KV computed with others is not this model's */
    enum chat_template chat;
    bool chat_recognised; /* false: the file's template is unknown or missing, `chat` is the stated default */
};

int engine_open(const struct engine_options *options, struct engine **out, struct error *error);
void engine_close(struct engine *engine); /* NULL is fine */
const struct engine_model *engine_model(const struct engine *engine);
const struct tokenizer *engine_tokenizer(const struct engine *engine);
unsigned engine_threads(const struct engine *engine);
const char *engine_isa(const struct engine *engine);

/* Runs `count` tokens at the given ascending positions through all layers: writes their K and V into
 * sequence's chunks (whose data must be claimed) and, for the tokens from index `logits_from` on,
 * (count - logits_from) x vocabulary logits into `logits` (NULL if logits_from == count). Each token attends
 * to all positions up to its own; those must be valid already or in this batch before it. sequence->tokens is
 * not changed: the caller moves it once it is content. cancel: checked between layers; may be NULL. 0,
 * -ECANCELED, -ENOMEM, or -EINVAL. On failure the written positions hold nothing of use. */
struct engine_batch {
    struct kv_sequence *sequence;
    const int32_t *tokens;
    const uint32_t *positions; /* NULL: sequence->tokens, and on from there */
    size_t count;
    size_t logits_from;
    float *logits;
    const atomic_bool *cancel;
    /* Restoring: called before each part of layer 0, 1, ... is computed; returns once that layer of every
     * chunk the batch attends to and does not compute itself is in memory. Another return than 0 ends the
     * pass with that code. May be NULL. Batches of more than ENGINE_SPAN_BYTES take turns, each through all
     * layers. */
    int (*gate)(void *argument, uint32_t layer);
    void *gate_argument;
    /* Density: what positions receive from the last so many tokens is added to their chunks (kv/chunk.h). */
    size_t density_tokens;
};
int engine_forward(struct engine *engine, const struct engine_batch *batch, struct error *error);

/* Pieces of other work on the compute threads (base/workers.h), between two passes or at a gate. */
void engine_run(struct engine *engine, workers_fn *run, void *argument, unsigned pieces);

struct engine_damage { /* squared errors */
    double keys, values;
};
/* Writes the K and V of a chunk's first `tokens` slots at a lower level into `to` (kv_chunk_bytes(to_level)
 * bytes). Returns what that added. Safe beside engine_forward as long as `from` is not written. */
struct engine_damage engine_lower(const struct engine *engine, const void *from, uint8_t from_level,
                                  uint8_t tokens, void *to, uint8_t to_level);

/* Tokens the engine takes through a step at once: a part; and what the residual streams of all parts that go
 * through the layers together may take. */
enum { ENGINE_BATCH = 256, ENGINE_SPAN_BYTES = 8 << 20 };

#endif
