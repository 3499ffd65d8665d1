/* The measuring of llms-bench speed: ours and the peer's in turn, on the same processors.
 *
 * Runs go round all tests of one depth, ours and then the peer's, undisturbed and then beside busy
 * processes, so that a machine that slows down slows all. What memory gives is measured in every run too.
 * Prompt and generated tokens are drawn: which token comes next does not matter for the time. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/random.h"
#include "base/workers.h"
#include "bounds.h"
#include "model/gguf.h"
#include "neighbours.h"
#include "os/file.h"
#include "peer.h"
#include "run.h"
#include "speed.h"

static const uint64_t WEIGHTS_BYTES_MIN = 64u << 20; /* smaller models live in caches: no bound is told */

/* One model with one number of threads. */
struct group {
    struct speed *speed;
    const char *path;
    struct bench_run run;
    struct workers *workers; /* of the probes: the engine keeps its own to itself */
    struct memory_probe probe;
    struct random random;
    double products[BENCH_LIST_MAX]; /* of each prompt size: multiplications a second from caches */
    uint64_t body, head;             /* weights of a token, and of a token whose logits are wanted */
};

/* Tokens of a call: logits are wanted of the last (llama-bench takes as many). */
enum { CALL_TOKENS = 2048 };

static int fill(struct group *g, uint64_t tokens, struct error *error)
{
    int32_t batch[CALL_TOKENS];
    int code = 0;
    while (tokens && code == 0) {
        size_t count = tokens < CALL_TOKENS ? (size_t)tokens : CALL_TOKENS;
        for (size_t i = 0; i < count; i++)
            batch[i] = (int32_t)random_below(&g->random, bench_run_vocabulary(&g->run));
        code = bench_run_tokens(&g->run, batch, count, error);
        tokens -= count;
    }
    return code;
}

static int measure(struct group *g, const struct speed_test *test, struct spread *into, struct error *error)
{
    kv_sequence_truncate(&g->run.sequence, (size_t)test->depth);
    int code =
        fill(g, 1, error); /* not measured: what others left in the caches goes (llama-bench does so too) */
    kv_sequence_truncate(&g->run.sequence, (size_t)test->depth);
    uint64_t start = clock_ns();
    if (code < 0)
        return code;
    if (!test->generate)
        code = fill(g, test->tokens, error);
    for (uint64_t i = 0; test->generate && i < test->tokens && code == 0; i++)
        code = fill(g, 1, error);
    spread_add(into, (double)test->tokens / clock_ms_since(start) * 1000);
    return code;
}

static int measure_peer(const struct group *g, struct speed_test *tests, size_t count, bool busy,
                        struct error *error)
{
    struct peer_test peers[BENCH_LIST_MAX + 1];
    for (size_t i = 0; i < count; i++)
        peers[i] = (struct peer_test){tests[i].generate ? 0 : tests[i].tokens,
                                      tests[i].generate ? tests[i].tokens : 0, 0};
    int code = peer_bench(g->speed->peer, g->path, tests[0].depth, tests[0].threads, peers, count, error);
    for (size_t i = 0; i < count && code == 0; i++)
        spread_add(busy ? &tests[i].peer_busy : &tests[i].peer, peers[i].tokens_per_s);
    return code;
}

/* Ours and the peer's once. */
static int measure_both(struct group *g, struct speed_test *tests, size_t count, bool busy,
                        struct error *error)
{
    int code = 0;
    for (size_t i = 0; i < count && code == 0; i++) {
        code = measure(g, &tests[i], busy ? &tests[i].busy : &tests[i].ours, error);
        g->run.density = g->speed->density && !busy;
        if (code == 0 && g->run.density)
            code = measure(g, &tests[i], &tests[i].dense, error);
        g->run.density = false;
    }
    if (code == 0 && g->speed->peer)
        code = measure_peer(g, tests, count, busy, error);
    return code;
}

static int measure_beside(struct group *g, struct speed_test *tests, size_t count, struct error *error)
{
    struct neighbours neighbours;
    int code = neighbours_start(&neighbours, (size_t)g->speed->busy);
    if (code < 0)
        return error_set(error, code, "cannot start %" PRIu64 " busy processes: %s", g->speed->busy,
                         strerror(-code));
    code = measure_both(g, tests, count, true, error);
    neighbours_stop(&neighbours);
    return code;
}

/* All runs of the tests of one depth. */
static int measure_depth(struct group *g, struct speed_test *tests, size_t count, struct error *error)
{
    const struct speed *speed = g->speed;
    bench_progress("%s, %u threads, depth %" PRIu64 ": filling", g->path, tests[0].threads, tests[0].depth);
    kv_sequence_truncate(&g->run.sequence, 0);
    int code = fill(g, tests[0].depth, error);
    if (code == 0)
        code = fill(g, 1, error); /* what is touched for the first time is not measured */
    for (uint64_t run = 0; run < speed->runs && code == 0; run++) {
        bench_progress("%s, %u threads, depth %" PRIu64 ": run %" PRIu64 " of %" PRIu64, g->path,
                       tests[0].threads, tests[0].depth, run + 1, speed->runs);
        double memory = memory_probe_read(&g->probe, g->workers);
        code = measure_both(g, tests, count, false, error);
        double again = memory_probe_read(&g->probe, g->workers);
        for (size_t i = 0; i < count; i++)
            spread_add(&tests[i].memory, memory > again ? memory : again);
        if (code == 0 && speed->busy)
            code = measure_beside(g, tests, count, error);
    }
    return code;
}

static double kv_bytes(const struct group *g, uint64_t tokens)
{
    return (double)kv_chunk_bytes(&engine_model(g->run.engine)->kv, g->run.level) / KV_CHUNK_TOKENS *
           (double)tokens;
}

/* Appends the tests of one depth, in the order of the options; returns how many. */
static size_t plan_depth(struct group *g, uint64_t depth)
{
    struct speed *speed = g->speed;
    const struct engine_model *model = engine_model(g->run.engine);
    struct speed_test base = {.model = g->path,
                              .depth = depth,
                              .threads = engine_threads(g->run.engine),
                              .from_memory = model->weights_bytes >= WEIGHTS_BYTES_MIN};
    size_t first = speed->count;
    snprintf(base.type, sizeof base.type, "%s", model->type);
    snprintf(base.isa, sizeof base.isa, "%s", engine_isa(g->run.engine));
    for (size_t i = 0; i < speed->prompts.count; i++) {
        uint64_t tokens = speed->prompts.values[i];
        if (tokens == 0)
            continue;
        struct speed_test *test = &speed->tests[speed->count++];
        *test = base;
        test->tokens = tokens;
        test->bytes = (double)model->weights_bytes + kv_bytes(g, depth);
        if (g->products[i] > 0)
            test->compute_bound = g->products[i] / ((double)g->body + (double)g->head / (double)tokens);
    }
    if (speed->generate) {
        struct speed_test *test = &speed->tests[speed->count++];
        *test = base;
        test->generate = true;
        test->tokens = speed->generate;
        test->bytes = (double)model->weights_bytes + kv_bytes(g, depth + speed->generate / 2);
    }
    return speed->count - first;
}

static uint64_t longest(const struct speed *speed)
{
    uint64_t tokens = speed->generate > 1 ? speed->generate : 1;
    for (size_t i = 0; i < speed->prompts.count; i++)
        if (speed->prompts.values[i] > tokens)
            tokens = speed->prompts.values[i];
    return tokens;
}

static int measure_depths(struct group *g, struct error *error)
{
    const struct speed *speed = g->speed;
    uint32_t context = engine_model(g->run.engine)->context_length;
    int code = 0;
    for (size_t d = 0; d < speed->depths.count && code == 0; d++) {
        uint64_t depth = speed->depths.values[d];
        if (depth + longest(speed) > context && speed->lenient && depth)
            continue;
        if (depth + longest(speed) > context)
            return error_set(error, -EINVAL,
                             "%s: %" PRIu64 " tokens at depth %" PRIu64
                             " are above the model's context of %" PRIu32,
                             g->path, longest(speed), depth, context);
        size_t count = plan_depth(g, depth);
        code = measure_depth(g, &g->speed->tests[speed->count - count], count, error);
    }
    return code;
}

/* How many weights a token is multiplied with: all matrices but the embedding, and the output's apart. */
static int count_weights(struct group *g, struct error *error)
{
    struct gguf *gguf = NULL;
    const struct engine_model *model = engine_model(g->run.engine);
    int code = gguf_open(g->path, &gguf, error);
    if (code < 0)
        return code;
    bool tied = true;
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_string name = gguf_tensor_at(gguf, i)->name;
        tied &= name.length != 13 || memcmp(name.data, "output.weight", 13) != 0;
    }
    g->head = (uint64_t)model->vocabulary * model->width;
    g->body = model->parameters - (tied ? 1 : 2) * g->head;
    gguf_close(gguf);
    return 0;
}

static int measure_bounds(struct group *g, struct error *error)
{
    const struct dtype_info *type = dtype_by_name(engine_model(g->run.engine)->type);
    int code = count_weights(g, error);
    if (code < 0)
        return code;
    for (size_t i = 0; i < g->speed->prompts.count; i++) {
        uint64_t tokens = g->speed->prompts.values[i];
        if (tokens)
            g->products[i] =
                bounds_products(g->workers, kernels_best(), type->type, tokens < 256 ? (size_t)tokens : 256);
    }
    return 0;
}

static int measure_threads(struct speed *speed, const char *path, unsigned threads, struct error *error)
{
    struct group g = {.speed = speed, .path = path, .random = {42}};
    int code = processors_keep(threads);
    if (code < 0)
        return error_set(error, code, "cannot keep to %u processors: %s", threads, strerror(-code));
    if (threads == 0)
        threads = processors_allowed();
    code = bench_run_open(&g.run, path, threads, (uint8_t)speed->level, error);
    if (code < 0)
        return code;
    if ((code = workers_create(threads, &g.workers)) < 0 || (code = memory_probe_init(&g.probe)) < 0)
        error_set(error, code, "cannot measure the memory: %s", strerror(-code));
    if (code == 0)
        code = measure_bounds(&g, error);
    if (code == 0)
        code = measure_depths(&g, error);
    memory_probe_deinit(&g.probe);
    workers_destroy(g.workers);
    bench_run_close(&g.run);
    return code;
}

/* Read again, a file that was just written lies in large pages, as it does after the machine was started:
 * that is worth several percent to whoever maps it, ours and the peer. */
static void lay_out(const char *path)
{
    char piece[65536];
    uint64_t bytes = 0, at = 0;
    int cached = open(path, O_RDONLY | O_CLOEXEC);
    if (cached >= 0 && os_descriptor_bytes(cached, &bytes) == 0 &&
        posix_fadvise(cached, 0, 0, POSIX_FADV_DONTNEED) == 0)
        for (; at < bytes; at += sizeof piece)
            if (os_pread(cached, at, piece, bytes - at < sizeof piece ? (size_t)(bytes - at) : sizeof piece) <
                0)
                break;
    os_close(cached);
}

int speed_measure(struct speed *speed, struct error *error)
{
    size_t tests =
        speed->model_count * speed->threads.count * speed->depths.count * (speed->prompts.count + 1);
    int code = 0;
    speed->tests = mem_calloc(tests, sizeof *speed->tests);
    if (!speed->tests)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t m = 0; m < speed->model_count && code == 0; m++) {
        lay_out(speed->models[m]);
        for (size_t t = 0; t < speed->threads.count && code == 0; t++)
            code = measure_threads(speed, speed->models[m], (unsigned)speed->threads.values[t], error);
    }
    (void)processors_keep(0);
    for (size_t i = 0; i < speed->count; i++) {
        struct speed_test *test = &speed->tests[i];
        struct spread *spreads[] = {&test->ours, &test->dense,     &test->peer,
                                    &test->busy, &test->peer_busy, &test->memory};
        for (size_t k = 0; k < sizeof spreads / sizeof *spreads; k++)
            spread_sort(spreads[k]);
    }
    bench_progress(NULL);
    return code;
}
