/* See run.h. */
#include "run.h"

#include <errno.h>
#include <string.h>

#include "base/memory.h"

int bench_run_open(struct bench_run *run, const char *model, unsigned threads, uint8_t level,
                   struct error *error)
{
    struct engine_options options = {.model_path = model, .threads = threads};
    *run = (struct bench_run){.level = level};
    int code = engine_open(&options, &run->engine, error);
    if (code < 0)
        return code;
    const struct engine_model *described = engine_model(run->engine);
    run->logits = mem_alloc(described->vocabulary * sizeof *run->logits);
    if (!run->logits || kv_pool_create(&described->kv, UINT64_MAX, &run->pool) < 0) {
        bench_run_close(run);
        return error_set(error, -ENOMEM, "out of memory");
    }
    kv_sequence_init(&run->sequence, run->pool);
    return 0;
}

void bench_run_close(struct bench_run *run)
{
    if (run->pool) {
        kv_sequence_deinit(&run->sequence);
        kv_pool_destroy(run->pool);
    }
    mem_free(run->logits);
    engine_close(run->engine);
    *run = (struct bench_run){0};
}

int bench_run_tokens(struct bench_run *run, const int32_t *tokens, size_t count, struct error *error)
{
    struct engine_batch batch = {.sequence = &run->sequence,
                                 .tokens = tokens,
                                 .count = count,
                                 .logits_from = count - 1,
                                 .logits = run->logits,
                                 .density_tokens = run->density ? count : 0};
    int code = kv_sequence_reserve(&run->sequence, run->sequence.tokens + count, run->level);
    if (code < 0)
        return error_set(error, code, "no memory for the KV of %zu tokens", run->sequence.tokens + count);
    code = engine_forward(run->engine, &batch, error);
    if (code == 0)
        run->sequence.tokens += count;
    return code;
}

size_t bench_run_vocabulary(const struct bench_run *run)
{
    return engine_model(run->engine)->vocabulary;
}
