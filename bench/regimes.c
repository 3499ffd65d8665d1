/* llms-bench regimes: where does bringing a context back partly by reading and partly by recomputing pay? A
 * map over the rate of the storage and the rate of recomputing, from the planner the service uses
 * (kv/plan.h).
 *
 * The case: a context of --tokens tokens, none of it in memory, every chunk kept at --level bits, and no new
 * prompt. Three ways: read all, recompute all, the best plan. The model's sizes are the file's. How the cost
 * of a token grows with its position is measured on this machine and scaled with the rest, so that a point of
 * the map stands for this model on a machine so many times as fast. Reads cost --request-us each beside their
 * bytes. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench.h"
#include "kv/plan.h"
#include "kv_shape.h"
#include "run.h"

enum { POINTS_MAX = 64, BATCH = 128, ROUNDS = 3, PER_DECADE = 8 };

struct bench {
    const char *model;
    uint64_t tokens, level, threads, request_us;
    struct bench_list storage; /* MB/s, low and high */
    struct bench_list compute; /* tokens/s, low and high */
    struct kv_geometry shape;
    struct plan_rates rates;   /* this machine's; those of reading are not used */
    double tokens_per_s;       /* that they come to, over the whole context */
    struct plan_chunk *chunks; /* one a chunk of the context */
    bool *recompute;
    size_t count;
};

/* ---- this machine ---- */

/* The seconds of a batch of `count` tokens behind what the run holds; the best of ROUNDS. */
static int time_batch(struct bench_run *run, size_t count, double *seconds, struct error *error)
{
    int32_t tokens[BATCH];
    int code = 0;
    *seconds = INFINITY;
    for (size_t i = 0; i < count; i++)
        tokens[i] = (int32_t)(i % 100 + 10);
    for (int round = 0; round < ROUNDS && code == 0; round++) {
        size_t before = run->sequence.tokens;
        uint64_t start = clock_ns();
        code = bench_run_tokens(run, tokens, count, error);
        *seconds = fmin(*seconds, clock_ms_since(start) / 1e3);
        if (code == 0)
            kv_sequence_truncate(&run->sequence, before);
    }
    return code;
}

static int grow(struct bench_run *run, size_t tokens, struct error *error)
{
    int32_t batch[BATCH];
    int code = 0;
    for (size_t i = 0; i < BATCH; i++)
        batch[i] = (int32_t)(i % 100 + 10);
    while (run->sequence.tokens + BATCH <= tokens && code == 0)
        code = bench_run_tokens(run, batch, BATCH, error);
    return code;
}

/* Three batches tell three costs: one token, many at the beginning, as many at the end. */
static int measure_rates(struct bench *bench, struct error *error)
{
    struct bench_run run;
    double one = 0, first = 0, last = 0;
    int code = bench_run_open(&run, bench->model, (unsigned)bench->threads, 8, error);
    if (code < 0)
        return code;
    code = time_batch(&run, 1, &one, error);
    if (code == 0)
        code = time_batch(&run, BATCH, &first, error);
    if (code == 0)
        code = grow(&run, bench->tokens - BATCH, error);
    if (code == 0)
        code = time_batch(&run, BATCH, &last, error);
    double depth = plan_depth((uint32_t)run.sequence.tokens, BATCH) - plan_depth(0, BATCH);
    bench_run_close(&run);
    if (code < 0)
        return code;
    struct plan_rates *rates = &bench->rates;
    rates->token_s = fmax((first - one) / (BATCH - 1), 1e-9);
    rates->batch_s = fmax(one - rates->token_s, 0);
    rates->depth_s = fmax((last - first) / depth, 0);
    double all =
        (double)bench->tokens * rates->token_s + plan_depth(0, (uint32_t)bench->tokens) * rates->depth_s;
    bench->tokens_per_s = (double)bench->tokens / all;
    return 0;
}

/* ---- the map ---- */

struct point {
    double storage_mb_s, tokens_per_s;
    double load_s, recompute_s, best_s, share; /* share: of the chunks, recomputed by the best plan */
};

static double plan_time(const struct bench *bench, const struct plan_rates *rates, enum plan_mode mode,
                        double *share)
{
    const struct plan_request request = {
        .chunks = bench->chunks, .count = bench->count, .layers = bench->shape.layers, .mode = mode};
    struct plan plan = {.recompute = bench->recompute};
    plan_choose(rates, &request, &plan);
    *share = (double)plan.recomputed / (double)bench->count;
    return plan.total_s;
}

static struct point compute_point(const struct bench *bench, double storage_mb_s, double tokens_per_s)
{
    double times = bench->tokens_per_s / tokens_per_s, share;
    struct point point = {.storage_mb_s = storage_mb_s, .tokens_per_s = tokens_per_s};
    const struct plan_rates rates = {
        .io_bytes_per_s = storage_mb_s * 1e6,
        .io_request_s = (double)bench->request_us / 1e6,
        .batch_s = bench->rates.batch_s * times,
        .token_s = bench->rates.token_s * times,
        .depth_s = bench->rates.depth_s * times,
    };
    point.load_s = plan_time(bench, &rates, PLAN_LOAD_ONLY, &share);
    point.recompute_s = plan_time(bench, &rates, PLAN_RECOMPUTE_ONLY, &share);
    point.best_s = plan_time(bench, &rates, PLAN_BEST, &point.share);
    return point;
}

static int make_chunks(struct bench *bench, struct error *error)
{
    bench->count = kv_chunks_of((size_t)bench->tokens);
    bench->chunks = mem_calloc(bench->count, sizeof *bench->chunks);
    bench->recompute = mem_calloc(bench->count, sizeof *bench->recompute);
    if (!bench->chunks || !bench->recompute)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < bench->count; i++) {
        uint64_t left = bench->tokens - i * KV_CHUNK_TOKENS;
        bench->chunks[i] = (struct plan_chunk){(uint32_t)(i * KV_CHUNK_TOKENS),
                                               (uint32_t)(left < KV_CHUNK_TOKENS ? left : KV_CHUNK_TOKENS),
                                               kv_chunk_bytes(&bench->shape, (uint8_t)bench->level)};
    }
    return 0;
}

static double step(const struct bench_list *range, size_t at, size_t points)
{
    double low = (double)range->values[0], high = (double)range->values[1];
    return points < 2 ? low : low * pow(high / low, (double)at / (double)(points - 1));
}

static size_t steps(const struct bench_list *range)
{
    double decades = log10((double)range->values[1] / (double)range->values[0]);
    size_t points = (size_t)(decades * PER_DECADE + 0.5) + 1;
    return points < POINTS_MAX ? points : POINTS_MAX;
}

static json_t *point_json(const struct point *point)
{
    return json_pack("{s:f,s:f,s:f,s:f,s:f,s:f}", "storage_mb_s", point->storage_mb_s,
                     "recompute_tokens_per_s", point->tokens_per_s, "load_ms", point->load_s * 1e3,
                     "recompute_ms", point->recompute_s * 1e3, "best_ms", point->best_s * 1e3,
                     "recomputed_share", point->share);
}

static void print_point(const struct point *point)
{
    double better = fmin(point->load_s, point->recompute_s);
    printf("%10.1f %12.0f %10.2f %10.2f %10.2f %6.0f %% %8.2f %8.2f %8.2f\n", point->storage_mb_s,
           point->tokens_per_s, point->load_s * 1e3, point->recompute_s * 1e3, point->best_s * 1e3,
           point->share * 100, point->load_s / point->best_s, point->recompute_s / point->best_s,
           better / point->best_s);
}

static int tell(const struct bench *bench, bool json)
{
    json_t *points = json_array(), *own = json_array();
    size_t across = steps(&bench->storage), up = steps(&bench->compute);
    if (!json)
        printf("%" PRIu64 " tokens at %" PRIu64
               " bits, %.0f bytes a token; this machine recomputes %.0f tokens/s\n\n"
               "%10s %12s %10s %10s %10s %8s %8s %8s %8s\n",
               bench->tokens, bench->level, (double)bench->chunks[0].bytes / KV_CHUNK_TOKENS,
               bench->tokens_per_s, "MB/s", "tokens/s", "load ms", "recompute", "best", "recomp.", "to load",
               "to rec.", "to both");
    for (size_t y = 0; y <= up; y++) /* the last row: this machine */
        for (size_t x = 0; x < across; x++) {
            double rate = y < up ? step(&bench->compute, y, up) : bench->tokens_per_s;
            struct point point = compute_point(bench, step(&bench->storage, x, across), rate);
            if (json)
                json_array_append_new(y < up ? points : own, point_json(&point));
            else if (y == up)
                print_point(&point);
        }
    int code = 0;
    if (json) {
        json_t *root = json_pack(
            "{s:I,s:I,s:f,s:f,s:{s:f,s:f,s:f},s:I,s:O,s:O}", "tokens", (json_int_t)bench->tokens, "level",
            (json_int_t)bench->level, "bytes_per_token", (double)bench->chunks[0].bytes / KV_CHUNK_TOKENS,
            "machine_tokens_per_s", bench->tokens_per_s, "machine_rates", "batch_s", bench->rates.batch_s,
            "token_s", bench->rates.token_s, "depth_s", bench->rates.depth_s, "request_us",
            (json_int_t)bench->request_us, "machine", own, "map", points);
        code = json_dumpf(root, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        putchar('\n');
        json_decref(root);
    }
    json_decref(points);
    json_decref(own);
    return code;
}

/* ---- the command ---- */

static int check(const struct bench *bench)
{
    if (!kv_level_valid((unsigned)bench->level))
        return bench_misuse("regimes", "--level: %" PRIu64 " is not 16, 8, 4, 3 or 2", bench->level);
    const struct bench_list *lists[] = {&bench->storage, &bench->compute};
    for (int i = 0; i < 2; i++)
        if (lists[i]->count != 2 || lists[i]->values[0] >= lists[i]->values[1])
            return bench_misuse("regimes", "--%s: LOW,HIGH is wanted", i ? "recompute" : "storage");
    return BENCH_GO;
}

int bench_regimes(int argc, char **argv)
{
    struct bench bench = {.tokens = 2048,
                          .level = 8,
                          .request_us = 50,
                          .storage = {2, {1, 10000}},
                          .compute = {2, {10, 100000}}};
    bool json = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &bench.model, "F", "the GGUF", .required = true},
        {"tokens", BENCH_NUMBER, &bench.tokens, "T", "of the context (default 2048)", 2 * BATCH, 1 << 20},
        {"level", BENCH_NUMBER, &bench.level, "BITS", "of its chunks: 16, 8 (default), 4, 3 or 2", 2, 16},
        {"storage", BENCH_NUMBERS, &bench.storage, "MB/s,MB/s", "from, to (default 1,10000)", 1, 1000000},
        {"recompute", BENCH_NUMBERS, &bench.compute, "N,N", "tokens/s, from, to (default 10,100000)", 1,
         100000000},
        {"request-us", BENCH_NUMBER, &bench.request_us, "US",
         "that a read takes beside its bytes (default 50)", 0, 1000000},
        {"threads", BENCH_NUMBER, &bench.threads, "T", "compute threads (default: one per CPU)", 1, 1024},
        {"json", BENCH_FLAG, &json, NULL, "one JSON document, with the whole map"},
    };
    const struct bench_usage usage = {
        "regimes",
        "Tells from the planner where reading, recomputing or both together bring a context back soonest.",
        "The table is of this machine's rate of recomputing; the JSON has the map too.\n", options,
        sizeof options / sizeof *options};
    struct error error = {0};
    int status = bench_options(&usage, argc, argv);
    if (status == BENCH_GO)
        status = check(&bench);
    if (status != BENCH_GO)
        return status;
    int code = kv_shape_read(bench.model, &bench.shape, &error);
    if (code == 0)
        code = make_chunks(&bench, &error);
    if (code == 0)
        code = measure_rates(&bench, &error);
    if (code == 0 && tell(&bench, json) < 0)
        code = error_set(&error, -EIO, "the results cannot be written");
    mem_free(bench.chunks);
    mem_free(bench.recompute);
    return code < 0 ? bench_fail("regimes", &error) : 0;
}
