/* llms-bench speed: tokens a second, of prompts and of generation, and beside a peer in the same run.
 *
 * Repeats go round all cases, ours and then the peer's, so that a machine that slows down slows both. Prompt
 * and generated tokens are drawn, which token comes next does not matter for the time. `bound` for
 * generation: the speed at which this machine's memory delivers the bytes a token needs (weights and KV),
 * measured here. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/random.h"
#include "base/workers.h"
#include "bench.h"
#include "kernels/kernels.h"
#include "peer.h"
#include "run.h"

enum { REPEATS_MAX = 100, PIECES = 64 };
static const size_t MEMORY_BYTES = (size_t)256 << 20; /* beyond any cache that two cores share */
static const uint64_t WEIGHTS_BYTES_MIN = 64u << 20;  /* smaller models live in caches: no bound is told */

struct rates {
    double values[REPEATS_MAX];
    size_t count;
};

struct test {
    bool generate;
    uint64_t tokens, depth;
    unsigned threads;
    double bound; /* 0: none */
    struct rates ours, peer;
};

struct speed {
    const char *model;
    const char *peer; /* NULL: none */
    const char *isa;  /* NULL: the best */
    struct bench_list prompts, depths, threads;
    uint64_t generate, repeats, level;
    struct test *tests;
    size_t count;
};

/* ---- memory ---- */

struct memory_sum {
    const uint64_t *words;
    uint64_t sums[PIECES];
};

static void sum_piece(void *argument, unsigned piece, unsigned thread)
{
    struct memory_sum *memory = argument;
    size_t words = MEMORY_BYTES / sizeof(uint64_t) / PIECES;
    const uint64_t *p = memory->words + piece * words;
    uint64_t sums[8] = {0};
    (void)thread;
    for (size_t i = 0; i < words; i += 8)
        for (size_t k = 0; k < 8; k++)
            sums[k] += p[i + k];
    for (size_t k = 1; k < 8; k++)
        sums[0] += sums[k];
    memory->sums[piece] = sums[0];
}

/* Bytes a second that `threads` threads read; 0 where memory is short. */
static double memory_rate(unsigned threads)
{
    struct workers *workers = NULL;
    double best_ms = 0;
    uint64_t *words = mem_aligned(64, MEMORY_BYTES);
    if (!words || workers_create(threads, &workers) < 0) {
        mem_free(words);
        return 0;
    }
    memset(words, 1, MEMORY_BYTES);
    struct memory_sum memory = {.words = words};
    for (int round = 0; round < 5; round++) {
        uint64_t start = clock_ns();
        workers_run(workers, sum_piece, &memory, PIECES);
        double ms = clock_ms_since(start);
        if (round == 0 || ms < best_ms)
            best_ms = ms;
    }
    workers_destroy(workers);
    mem_free(words);
    return (double)MEMORY_BYTES / best_ms * 1000;
}

/* ---- measuring ---- */

static int fill(struct bench_run *run, uint64_t tokens, struct random *random, struct error *error)
{
    int32_t batch[ENGINE_BATCH];
    int code = 0;
    while (tokens && code == 0) {
        size_t count = tokens < ENGINE_BATCH ? (size_t)tokens : ENGINE_BATCH;
        for (size_t i = 0; i < count; i++)
            batch[i] = (int32_t)random_below(random, bench_run_vocabulary(run));
        code = bench_run_tokens(run, batch, count, error);
        tokens -= count;
    }
    return code;
}

static int measure(struct bench_run *run, struct test *test, struct random *random, struct error *error)
{
    kv_sequence_truncate(&run->sequence, (size_t)test->depth);
    uint64_t start = clock_ns();
    int code = 0;
    if (!test->generate)
        code = fill(run, test->tokens, random, error);
    for (uint64_t i = 0; test->generate && i < test->tokens && code == 0; i++)
        code = fill(run, 1, random, error);
    test->ours.values[test->ours.count++] = (double)test->tokens / clock_ms_since(start) * 1000;
    return code;
}

static int measure_peer(const struct speed *speed, struct test *tests, size_t count, struct error *error)
{
    struct peer_test peers[BENCH_LIST_MAX + 1];
    for (size_t i = 0; i < count; i++)
        peers[i] = (struct peer_test){tests[i].generate ? 0 : tests[i].tokens,
                                      tests[i].generate ? tests[i].tokens : 0, 0};
    int code = peer_bench(speed->peer, speed->model, tests[0].depth, tests[0].threads, peers, count, error);
    for (size_t i = 0; i < count && code == 0; i++)
        tests[i].peer.values[tests[i].peer.count++] = peers[i].tokens_per_s;
    return code;
}

/* All repeats of the tests of one depth and thread count. */
static int measure_group(struct speed *speed, struct bench_run *run, struct test *tests, size_t count,
                         struct error *error)
{
    struct random random = {42};
    bench_progress("%u threads, depth %" PRIu64 ": filling", tests[0].threads, tests[0].depth);
    kv_sequence_truncate(&run->sequence, 0);
    int code = fill(run, tests[0].depth, &random, error);
    if (code == 0)
        code = fill(run, 1, &random, error); /* what is touched for the first time is not measured */
    for (uint64_t round = 0; round < speed->repeats && code == 0; round++) {
        bench_progress("%u threads, depth %" PRIu64 ": round %" PRIu64 " of %" PRIu64, tests[0].threads,
                       tests[0].depth, round + 1, speed->repeats);
        for (size_t i = 0; i < count && code == 0; i++)
            code = measure(run, &tests[i], &random, error);
        if (code == 0 && speed->peer)
            code = measure_peer(speed, tests, count, error);
    }
    return code;
}

static double kv_bytes(const struct bench_run *run, uint64_t tokens)
{
    const struct engine_model *model = engine_model(run->engine);
    return (double)kv_chunk_bytes(&model->kv, run->level) / KV_CHUNK_TOKENS * (double)tokens;
}

/* Appends the tests of one depth, in the order of the options; returns how many. */
static size_t plan_group(struct speed *speed, const struct bench_run *run, uint64_t depth, double memory)
{
    struct test base = {.depth = depth, .threads = engine_threads(run->engine)};
    size_t first = speed->count;
    uint64_t weights = engine_model(run->engine)->weights_bytes;
    for (size_t i = 0; i < speed->prompts.count; i++) {
        speed->tests[speed->count] = base;
        speed->tests[speed->count++].tokens = speed->prompts.values[i];
    }
    if (speed->generate) {
        struct test *test = &speed->tests[speed->count++];
        *test = base;
        test->generate = true;
        test->tokens = speed->generate;
        if (weights >= WEIGHTS_BYTES_MIN && memory > 0)
            test->bound = memory / ((double)weights + kv_bytes(run, depth + speed->generate / 2));
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

/* Every depth with one number of threads. Depths that do not fit the model's context are left out if
 * `lenient`. */
static int measure_threads(struct speed *speed, unsigned threads, bool lenient, struct error *error)
{
    struct bench_run run = {0};
    int code = bench_run_open(&run, speed->model, threads, (uint8_t)speed->level, error);
    if (code < 0)
        return code;
    uint32_t context = engine_model(run.engine)->context_length;
    double memory = engine_model(run.engine)->weights_bytes < WEIGHTS_BYTES_MIN
                        ? 0
                        : memory_rate(engine_threads(run.engine));
    for (size_t d = 0; d < speed->depths.count && code == 0; d++) {
        uint64_t depth = speed->depths.values[d];
        if (depth + longest(speed) > context && (lenient && depth))
            continue;
        if (depth + longest(speed) > context) {
            code =
                error_set(error, -EINVAL,
                          "%" PRIu64 " tokens at depth %" PRIu64 " are above the model's context of %" PRIu32,
                          longest(speed), depth, context);
            break;
        }
        size_t count = plan_group(speed, &run, depth, memory);
        code = measure_group(speed, &run, &speed->tests[speed->count - count], count, error);
    }
    bench_run_close(&run);
    return code;
}

/* ---- telling ---- */

static int compare(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

static double median(const struct rates *rates)
{
    size_t half = rates->count / 2;
    return rates->count % 2 ? rates->values[half] : (rates->values[half - 1] + rates->values[half]) / 2;
}

static void print_json(const struct speed *speed)
{
    printf("{\"runs\":[");
    for (size_t i = 0; i < speed->count; i++) {
        const struct test *test = &speed->tests[i];
        const struct rates *ours = &test->ours, *peer = &test->peer;
        printf("%s\n {\"kind\":\"%s\",\"tokens\":%" PRIu64 ",\"depth\":%" PRIu64 ",\"threads\":%u,",
               i ? "," : "", test->generate ? "generate" : "prompt", test->tokens, test->depth,
               test->threads);
        printf("\"tokens_per_s\":{\"median\":%.3f,\"min\":%.3f,\"max\":%.3f}", median(ours), ours->values[0],
               ours->values[ours->count - 1]);
        if (test->bound > 0)
            printf(",\"bound_tokens_per_s\":%.3f", test->bound);
        if (peer->count)
            printf(",\"peer_tokens_per_s\":%.3f,\"peer_range_tokens_per_s\":{\"min\":%.3f,\"max\":%.3f}",
                   median(peer), peer->values[0], peer->values[peer->count - 1]);
        printf("}");
    }
    printf("\n]}\n");
}

static void print_text(const struct speed *speed)
{
    printf("%-9s %7s %7s %8s %12s %23s %9s%s\n", "kind", "tokens", "depth", "threads", "tokens/s", "range",
           "bound", speed->peer ? "      peer                   range" : "");
    for (size_t i = 0; i < speed->count; i++) {
        const struct test *test = &speed->tests[i];
        const struct rates *ours = &test->ours, *peer = &test->peer;
        char range[48], bound[24] = "";
        snprintf(range, sizeof range, "%.2f .. %.2f", ours->values[0], ours->values[ours->count - 1]);
        if (test->bound > 0)
            snprintf(bound, sizeof bound, "%.2f", test->bound);
        printf("%-9s %7" PRIu64 " %7" PRIu64 " %8u %12.2f %23s %9s", test->generate ? "generate" : "prompt",
               test->tokens, test->depth, test->threads, median(ours), range, bound);
        if (peer->count) {
            snprintf(range, sizeof range, "%.2f .. %.2f", peer->values[0], peer->values[peer->count - 1]);
            printf(" %9.2f %23s", median(peer), range);
        }
        putchar('\n');
    }
}

static int measure_all(struct speed *speed, bool lenient, struct error *error)
{
    size_t tests = speed->threads.count * speed->depths.count * (speed->prompts.count + 1);
    int code = 0;
    speed->tests = mem_calloc(tests, sizeof *speed->tests);
    if (!speed->tests)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t t = 0; t < speed->threads.count && code == 0; t++)
        code = measure_threads(speed, (unsigned)speed->threads.values[t], lenient, error);
    for (size_t i = 0; i < speed->count && code == 0; i++) {
        qsort(speed->tests[i].ours.values, speed->tests[i].ours.count, sizeof(double), compare);
        qsort(speed->tests[i].peer.values, speed->tests[i].peer.count, sizeof(double), compare);
    }
    bench_progress(NULL);
    return code;
}

int bench_speed(int argc, char **argv)
{
    struct speed speed = {
        .prompts = {2, {16, 512}}, .threads = {1, {0}}, .generate = 64, .repeats = 3, .level = 16};
    bool json = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &speed.model, "F", "the GGUF", .required = true},
        {"prompt", BENCH_NUMBERS, &speed.prompts, "N,N", "prompt sizes, tokens (default 16,512)", 1, 1 << 20},
        {"generate", BENCH_NUMBER, &speed.generate, "N", "tokens to generate (default 64; 0: none)", 0,
         1 << 20},
        {"depth", BENCH_NUMBERS, &speed.depths, "D,D", "tokens in the context before (default 0,2048)", 0,
         1 << 20},
        {"threads", BENCH_NUMBERS, &speed.threads, "T,T", "compute threads (default: one per CPU)", 1, 1024},
        {"repeats", BENCH_NUMBER, &speed.repeats, "R", "of each; median and range are told (default 3)", 1,
         REPEATS_MAX},
        {"kv-level", BENCH_NUMBER, &speed.level, "16|8", "KV in FP16 or INT8 (default 16)", 8, 16},
        {"peer", BENCH_TEXT, &speed.peer, "PATH", "a peer-llama-cpp: its llama-bench runs in turn with us"},
        {"isa", BENCH_TEXT, &speed.isa, "NAME",
         "plain, avx2, avxvnni, avx512 or amx at most, here and at the peer"},
        {"json", BENCH_FLAG, &json, NULL, "one JSON document: {\"runs\": [...]}"},
    };
    const struct bench_usage usage = {"speed", "Measures tokens a second.", NULL, options,
                                      sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status != BENCH_GO)
        return status;
    if (speed.level != 16 && speed.level != 8)
        return bench_misuse("speed", "--kv-level: 16 or 8");
    if (speed.isa && !kernels_named(speed.isa))
        return bench_misuse("speed", "--isa: '%s' is not an instruction set this machine has", speed.isa);
    if (speed.isa) {
        setenv("LLMS_ISA", speed.isa, 1); /* for the engine */
        peer_limit(speed.isa);
    }
    bool lenient = speed.depths.count == 0;
    if (lenient)
        speed.depths = (struct bench_list){2, {0, 2048}};
    struct error error = {0};
    int code = measure_all(&speed, lenient, &error);
    if (code == 0 && json)
        print_json(&speed);
    else if (code == 0)
        print_text(&speed);
    mem_free(speed.tests);
    return code < 0 ? bench_fail("speed", &error) : 0;
}
