/* An engine with one sequence to run tokens on: what the commands that compute share. Zeroed is closed. */
#ifndef LLMS_BENCH_RUN_H
#define LLMS_BENCH_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/engine.h"

struct bench_run {
    struct engine *engine;
    struct kv_pool *pool;
    struct kv_sequence sequence;
    uint8_t level;
    bool density;  /* attention adds up what each chunk receives, as the service lets it */
    float *logits; /* of the last token run: vocabulary of them */
};

/* threads: 0: one per CPU; level: 16 or 8. The sequence can grow as long as memory lasts. */
int bench_run_open(struct bench_run *run, const char *model, unsigned threads, uint8_t level,
                   struct error *error);
void bench_run_close(struct bench_run *run);

/* Runs tokens behind what the sequence holds. */
int bench_run_tokens(struct bench_run *run, const int32_t *tokens, size_t count, struct error *error);

size_t bench_run_vocabulary(const struct bench_run *run);

#endif
