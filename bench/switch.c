/* llms-bench switch: what it costs to go from one context to another under one KV budget, beside a call to a
 * context that stayed. This file takes the options and tells the results; see switch.h for the rest. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/parse.h"
#include "bench.h"
#include "os/aio.h"
#include "policies.h"
#include "storage.h"
#include "switch.h"

enum { CALLS_MAX = 100000, CONTEXTS_MAX = 4096 };
static const uint64_t STORAGE_BYTES = (uint64_t)256 << 20, MEGABYTE = 1000000, MIB = 1 << 20;

struct bench {
    struct switch_options options;
    const char *policy_names, *directory, *peer, *ratio; /* as given */
    struct bench_list splits;
    uint64_t limit_mb_s;
    struct policies policies;
    struct switch_run *runs; /* by policy: as planned, then the splits */
    size_t run_count;
    struct storage storage, unlimited;
    struct switch_peer peers[SWITCH_PEER_MODES];
    struct error peer_errors[SWITCH_PEER_MODES];
};

/* ---- figures ---- */

struct figures {
    size_t count;
    double median, p95, min, max;
};

static int compare(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

/* Sorts values. */
static struct figures figures_of(double *values, size_t count)
{
    if (count == 0)
        return (struct figures){0};
    qsort(values, count, sizeof *values, compare);
    size_t half = count / 2, last = (count * 95 + 99) / 100; /* nearest rank */
    double median = count % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
    return (struct figures){count, median, values[last - 1], values[0], values[count - 1]};
}

enum field {
    FIELD_MS,
    FIELD_PROMPT,
    FIELD_STALL,
    FIELD_QUEUE,
    FIELD_BYTES,
    FIELD_PLAN,
    FIELD_BOUND,
    FIELD_TIMES
};

/* The least time that a call's restore can take: its bytes from the storage, or its recompute. */
static double bound_ms(const struct bench *bench, const struct switch_run *run,
                       const struct switch_call *call)
{
    double read = (double)call->bytes_read / bench->storage.bytes_per_s * 1e3;
    double compute = (double)call->recomputed_tokens / run->compute_tokens_per_s * 1e3;
    return read > compute ? read : compute;
}

static double field_of(const struct bench *bench, const struct switch_run *run,
                       const struct switch_call *call, enum field field)
{
    switch (field) {
    case FIELD_MS:
        return call->ms;
    case FIELD_PROMPT:
        return (double)call->prompt;
    case FIELD_STALL:
        return call->stall_ms;
    case FIELD_QUEUE:
        return call->queue_ms;
    case FIELD_BYTES:
        return (double)call->bytes_read;
    case FIELD_PLAN:
        return call->plan_ms;
    case FIELD_BOUND:
        return bound_ms(bench, run, call);
    case FIELD_TIMES: { /* its time as a multiple of the bound */
        double bound = bound_ms(bench, run, call);
        return bound > 0 ? call->ms / bound : NAN;
    }
    }
    return NAN;
}

/* Of the calls of one kind that count and have the field; zeros where memory is short. */
static struct figures gather(const struct bench *bench, const struct switch_run *run, enum switch_kind kind,
                             enum field field)
{
    struct figures figures = {0};
    size_t count = 0;
    double *values = mem_calloc(run->call_count, sizeof *values);
    for (size_t i = 0; i < run->call_count && values; i++) {
        const struct switch_call *call = &run->calls[i];
        double value = call->kind == kind && !call->warmup ? field_of(bench, run, call, field) : NAN;
        if (!isnan(value))
            values[count++] = value;
    }
    figures = figures_of(values, count);
    mem_free(values);
    return figures;
}

struct sums {
    uint64_t bytes, resident, loaded, recomputed, recomputed_tokens,
        without; /* without: calls that had nothing to restore */
};

static struct sums sum(const struct switch_run *run, enum switch_kind kind)
{
    struct sums sums = {0};
    for (size_t i = 0; i < run->call_count; i++) {
        const struct switch_call *call = &run->calls[i];
        if (call->kind != kind || call->warmup)
            continue;
        sums.bytes += call->bytes_read;
        sums.resident += call->resident;
        sums.loaded += call->loaded;
        sums.recomputed += call->recomputed;
        sums.recomputed_tokens += call->recomputed_tokens;
        sums.without += call->loaded + call->recomputed == 0;
    }
    return sums;
}

static double ratio_of(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* ---- telling: JSON ---- */

static json_t *number(double value)
{
    return json_real(round(value * 1000) / 1000);
}

static json_t *spread(struct figures f)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:I}", "median", number(f.median), "p95", number(f.p95), "min",
                     number(f.min), "max", number(f.max), "count", (json_int_t)f.count);
}

static json_t *chunks(struct sums sums)
{
    return json_pack("{s:I,s:I,s:I}", "resident", (json_int_t)sums.resident, "loaded",
                     (json_int_t)sums.loaded, "recomputed", (json_int_t)sums.recomputed);
}

static void add_restores(const struct bench *bench, const struct switch_run *run, json_t *out)
{
    struct sums sums = sum(run, SWITCH_RESTORE);
    json_object_set_new(out, "restore_ms", spread(gather(bench, run, SWITCH_RESTORE, FIELD_MS)));
    json_object_set_new(out, "restore_bound_ms", spread(gather(bench, run, SWITCH_RESTORE, FIELD_BOUND)));
    json_object_set_new(out, "restore_ratio", spread(gather(bench, run, SWITCH_RESTORE, FIELD_TIMES)));
    json_object_set_new(out, "restore_plan_ms", spread(gather(bench, run, SWITCH_RESTORE, FIELD_PLAN)));
    json_object_set_new(out, "restore_chunks", chunks(sums));
    json_object_set_new(out, "restore_bytes_read", json_integer((json_int_t)sums.bytes));
}

static json_t *run_json(const struct bench *bench, const struct switch_run *run)
{
    json_t *out = json_object();
    json_object_set_new(out, "policy", json_string(run->policy));
    json_object_set_new(out, "recompute_percent", run->split < 0 ? json_null() : json_integer(run->split));
    if (run->error.code < 0) {
        json_object_set_new(out, "error", json_string(run->error.text));
        return out;
    }
    struct figures away = gather(bench, run, SWITCH_AWAY, FIELD_MS);
    struct figures resident = gather(bench, run, SWITCH_RESIDENT, FIELD_MS);
    struct sums sums = sum(run, SWITCH_AWAY);
    json_object_set_new(out, "contexts", json_integer((json_int_t)bench->options.contexts));
    json_object_set_new(out, "tokens", json_integer((json_int_t)bench->options.tokens));
    json_object_set_new(out, "delta", number(gather(bench, run, SWITCH_AWAY, FIELD_PROMPT).median));
    json_object_set_new(out, "budget_bytes", json_integer((json_int_t)bench->options.budget_bytes));
    json_object_set_new(out, "threads", json_integer(run->threads));
    json_object_set_new(out, "resident_ttft_ms", spread(resident));
    json_object_set_new(out, "switch_ttft_ms", spread(away));
    json_object_set_new(out, "ratio", number(ratio_of(away.median, resident.median)));
    json_object_set_new(out, "ratio_p95", number(ratio_of(away.p95, resident.median)));
    json_object_set_new(out, "ratio_p95_p95", number(ratio_of(away.p95, resident.p95)));
    json_object_set_new(out, "stall_ms", spread(gather(bench, run, SWITCH_AWAY, FIELD_STALL)));
    json_object_set_new(out, "queue_ms", spread(gather(bench, run, SWITCH_AWAY, FIELD_QUEUE)));
    json_object_set_new(out, "plan_ms", spread(gather(bench, run, SWITCH_AWAY, FIELD_PLAN)));
    json_object_set_new(out, "bound_ms", spread(gather(bench, run, SWITCH_AWAY, FIELD_BOUND)));
    json_object_set_new(out, "bytes_read", json_integer((json_int_t)sums.bytes));
    json_object_set_new(out, "chunks", chunks(sums));
    json_object_set_new(out, "recomputed_tokens", json_integer((json_int_t)sums.recomputed_tokens));
    json_object_set_new(out, "switches_without_restore", json_integer((json_int_t)sums.without));
    json_object_set_new(out, "resident_chunks", chunks(sum(run, SWITCH_RESIDENT)));
    json_object_set_new(out, "compute_tokens_per_s", number(run->compute_tokens_per_s));
    json_object_set_new(out, "kv_resident_bytes", json_integer((json_int_t)run->kv_resident_bytes));
    json_object_set_new(out, "storage_mb_s", number(bench->storage.bytes_per_s / 1e6));
    json_object_set_new(out, "storage_unlimited_mb_s", number(bench->unlimited.bytes_per_s / 1e6));
    json_object_set_new(out, "direct_io", json_boolean(bench->storage.direct));
    json_object_set_new(out, "storage_in_memory", json_boolean(bench->storage.memory));
    if (bench->options.restores)
        add_restores(bench, run, out);
    return out;
}

static json_t *peer_json(struct bench *bench, unsigned mode)
{
    struct switch_peer *peer = &bench->peers[mode];
    json_t *out = json_pack("{s:s}", "mode", peer->mode);
    if (bench->peer_errors[mode].code < 0) {
        json_object_set_new(out, "error", json_string(bench->peer_errors[mode].text));
        return out;
    }
    struct figures away = figures_of(peer->ms[SWITCH_AWAY], peer->count[SWITCH_AWAY]);
    struct figures resident = figures_of(peer->ms[SWITCH_RESIDENT], peer->count[SWITCH_RESIDENT]);
    json_object_set_new(out, "resident_ttft_ms", spread(resident));
    json_object_set_new(out, "switch_ttft_ms", spread(away));
    json_object_set_new(out, "ratio", number(ratio_of(away.median, resident.median)));
    away = figures_of(peer->computed[SWITCH_AWAY], peer->count[SWITCH_AWAY]);
    resident = figures_of(peer->computed[SWITCH_RESIDENT], peer->count[SWITCH_RESIDENT]);
    json_object_set_new(out, "computed_tokens",
                        json_pack("{s:o,s:o}", "resident", spread(resident), "switch", spread(away)));
    if (peer->save_count)
        json_object_set_new(out, "save_ms", spread(figures_of(peer->save_ms, peer->save_count)));
    return out;
}

static int print_json(struct bench *bench)
{
    json_t *runs = json_array(), *peers = json_array(), *root;
    for (size_t i = 0; i < bench->run_count; i++)
        json_array_append_new(runs, run_json(bench, &bench->runs[i]));
    for (unsigned mode = 0; bench->peer && mode < SWITCH_PEER_MODES; mode++)
        json_array_append_new(peers, peer_json(bench, mode));
    root = bench->run_count == 1 ? json_incref(json_array_get(runs, 0)) : json_pack("{s:O}", "runs", runs);
    if (bench->peer)
        json_object_set(root, "peers", peers);
    int code = json_dumpf(root, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(root);
    json_decref(peers);
    json_decref(runs);
    return code;
}

/* ---- telling: a table ---- */

static void print_row(const char *name, struct figures resident, struct figures away)
{
    printf("%-32s %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f %7.2f", name, resident.median, resident.p95,
           away.median, away.p95, away.min, away.max, ratio_of(away.median, resident.median));
}

static void print_run(const struct bench *bench, const struct switch_run *run)
{
    char name[64];
    struct sums sums = sum(run, SWITCH_AWAY);
    double switches = (double)gather(bench, run, SWITCH_AWAY, FIELD_MS).count;
    if (run->split < 0)
        snprintf(name, sizeof name, "%s", run->policy);
    else
        snprintf(name, sizeof name, "%s, %d %% recomputed", run->policy, run->split);
    if (run->error.code < 0) {
        printf("%-32s %s\n", name, run->error.text);
        return;
    }
    print_row(name, gather(bench, run, SWITCH_RESIDENT, FIELD_MS), gather(bench, run, SWITCH_AWAY, FIELD_MS));
    printf(
        " %9.2f %9.2f %9.2f %8.2f %7.1f %7.1f %7.1f\n", gather(bench, run, SWITCH_AWAY, FIELD_STALL).median,
        gather(bench, run, SWITCH_AWAY, FIELD_PLAN).median,
        gather(bench, run, SWITCH_AWAY, FIELD_BOUND).median, (double)sums.bytes / switches / 1e6,
        (double)sums.resident / switches, (double)sums.loaded / switches, (double)sums.recomputed / switches);
    if (sums.without)
        printf("  in %" PRIu64 " of %.0f switches nothing had to be brought back\n", sums.without, switches);
    if (!bench->options.restores)
        return;
    struct figures restore = gather(bench, run, SWITCH_RESTORE, FIELD_MS);
    struct figures times = gather(bench, run, SWITCH_RESTORE, FIELD_TIMES);
    printf("  only bringing it in: median %.2f ms, p95 %.2f; planned %.2f, bound %.2f; ratio to the bound: "
           "median "
           "%.2f, p95 %.2f (%zu of %zu had to be)\n",
           restore.median, restore.p95, gather(bench, run, SWITCH_RESTORE, FIELD_PLAN).median,
           gather(bench, run, SWITCH_RESTORE, FIELD_BOUND).median, times.median, times.p95, times.count,
           restore.count);
}

static void print_peer(struct bench *bench, unsigned mode)
{
    struct switch_peer *peer = &bench->peers[mode];
    if (bench->peer_errors[mode].code < 0) {
        printf("%-32s %s\n", peer->mode, bench->peer_errors[mode].text);
        return;
    }
    print_row(peer->mode, figures_of(peer->ms[SWITCH_RESIDENT], peer->count[SWITCH_RESIDENT]),
              figures_of(peer->ms[SWITCH_AWAY], peer->count[SWITCH_AWAY]));
    printf("  computed tokens: resident %.0f, switch %.0f",
           figures_of(peer->computed[SWITCH_RESIDENT], peer->count[SWITCH_RESIDENT]).median,
           figures_of(peer->computed[SWITCH_AWAY], peer->count[SWITCH_AWAY]).median);
    if (peer->save_count)
        printf("; saving after each call: %.2f ms", figures_of(peer->save_ms, peer->save_count).median);
    putchar('\n');
}

static void print_text(struct bench *bench)
{
    const struct switch_options *options = &bench->options;
    printf(
        "%" PRIu64 " contexts of %" PRIu64 " tokens, %.0f new ones a call, KV budget %.1f MB, %u threads\n",
        options->contexts, options->tokens, gather(bench, &bench->runs[0], SWITCH_AWAY, FIELD_PROMPT).median,
        (double)options->budget_bytes / 1e6, bench->runs[0].threads);
    printf("storage: %.0f MB/s (%.0f without limit), %s\n\n", bench->storage.bytes_per_s / 1e6,
           bench->unlimited.bytes_per_s / 1e6, storage_words(&bench->storage));
    printf("%-32s %9s %9s %9s %9s %9s %9s %7s %9s %9s %9s %8s %7s %7s %7s\n", "ms to first token", "resident",
           "p95", "switch", "p95", "min", "max", "ratio", "stall", "plan", "bound", "MB read",
           "chunks:", "loaded", "recomp.");
    for (size_t i = 0; i < bench->run_count; i++)
        print_run(bench, &bench->runs[i]);
    if (!bench->peer)
        return;
    printf("\nllama-server\n");
    for (unsigned mode = 0; mode < SWITCH_PEER_MODES; mode++)
        print_peer(bench, mode);
}

/* ---- running ---- */

static int measure_storage(struct bench *bench, struct error *error)
{
    const char *directory = bench->options.directory;
    uint64_t limit = bench->limit_mb_s * MEGABYTE, bytes = STORAGE_BYTES;
    bench_progress("measuring the storage");
    int code = storage_measure(directory, bytes, &bench->unlimited, error);
    bench->storage = bench->unlimited;
    if (code == 0 && limit) { /* for a second or so */
        bytes = limit / MIB * MIB < bytes ? limit / MIB * MIB : bytes;
        aio_set_limit(limit);
        code = storage_measure(directory, bytes < MIB ? MIB : bytes, &bench->storage, error);
    }
    bench_progress(NULL);
    return code;
}

static int run_all(struct bench *bench, struct error *error)
{
    size_t each = 1 + bench->splits.count;
    int code = 0;
    bench->run_count = bench->policies.count * each;
    bench->runs = mem_calloc(bench->run_count, sizeof *bench->runs);
    if (!bench->runs) {
        bench->run_count = 0;
        return error_set(error, -ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < bench->run_count; i++) {
        bench->runs[i].policy = bench->policies.names[i / each];
        bench->runs[i].split = i % each ? (int)bench->splits.values[i % each - 1] : -1;
    }
    for (size_t i = 0; i < bench->policies.count && !switch_interrupted; i++)
        switch_run(&bench->options, &bench->runs[i * each], each);
    const struct switch_run *good = NULL;
    for (size_t i = 0; i < bench->run_count && !good; i += each)
        good = bench->runs[i].error.code == 0 ? &bench->runs[i] : NULL;
    if (switch_interrupted)
        return error_set(error, -EINTR, "interrupted");
    if (!good) /* nothing to tell but why */
        return error_set(error, bench->runs[0].error.code, "%s: %s", bench->runs[0].policy,
                         bench->runs[0].error.text);
    for (unsigned mode = 0; bench->peer && mode < SWITCH_PEER_MODES && code == 0; mode++)
        if (switch_peer(&bench->options, good, bench->peer, mode, &bench->peers[mode],
                        &bench->peer_errors[mode]) == -EINTR)
            code = error_set(error, -EINTR, "interrupted");
    return code;
}

static int measure_in(void *argument, const char *directory, struct error *error)
{
    struct bench *bench = argument;
    bench->options.directory = directory;
    int code = measure_storage(bench, error);
    if (code == 0)
        code = run_all(bench, error);
    bench->options.directory = NULL;
    return code;
}

static void interrupt(int number)
{
    (void)number;
    switch_interrupted = 1;
}

static int check(struct bench *bench)
{
    double *ratio = &bench->options.kv_ratio;
    if (bench->options.budget_bytes == 0)
        return bench_misuse("switch", "--budget SIZE is missing (see llms-bench switch --help)");
    if (bench->ratio && (parse_double(bench->ratio, 0, 1, ratio) < 0 || *ratio <= 0))
        return bench_misuse("switch", "--kv-ratio: '%s' is not a number above 0, up to 1", bench->ratio);
    return policies_take("switch", bench->policy_names, &bench->policies);
}

static int run_command(struct bench *bench, bool json)
{
    struct error error = {0};
    struct sigaction action = {.sa_handler = interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a peer that dies is an error like others */
    log_set_level(LOG_LEVEL_WARNING);
    int code = storage_within(bench->directory ? bench->directory : ".", measure_in, bench, &error);
    if (code == 0 && json && print_json(bench) < 0)
        code = error_set(&error, -EIO, "the results cannot be written");
    else if (code == 0 && !json)
        print_text(bench);
    for (size_t i = 0; i < bench->run_count; i++)
        switch_run_deinit(&bench->runs[i]);
    for (unsigned mode = 0; mode < SWITCH_PEER_MODES; mode++)
        switch_peer_deinit(&bench->peers[mode]);
    mem_free(bench->runs);
    return code < 0 ? bench_fail("switch", &error) : 0;
}

int bench_switch(int argc, char **argv)
{
    struct bench bench = {
        .options = {.contexts = 8, .tokens = 1500, .delta = 16, .calls = 40, .pause_ms = 50, .seed = 1}};
    struct switch_options *o = &bench.options;
    bool json = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &o->model, "F", "the GGUF", .required = true},
        {"contexts", BENCH_NUMBER, &o->contexts, "N", "contexts, of four apps (default 8)", 2, CONTEXTS_MAX},
        {"tokens", BENCH_NUMBER, &o->tokens, "T", "that each is filled to (default 1500)", 64, 1 << 20},
        {"budget", BENCH_SIZE, &o->budget_bytes, "SIZE", "KV memory for all of them"},
        {"policy", BENCH_TEXT, &bench.policy_names, "P[,P..]", "one run each (default: the service's)"},
        {"new", BENCH_NUMBER, &o->delta, "N", "prompt tokens a call, the template's among them (default 16)",
         1, 1 << 16},
        {"calls", BENCH_NUMBER, &o->calls, "N", "switches, and as many resident calls (default 40)", 1,
         CALLS_MAX},
        {"pause", BENCH_NUMBER, &o->pause_ms, "MS", "after each call (default 50)", 0, 60000},
        {"restore", BENCH_FLAG, &o->restores, NULL, "also bring contexts in without a call (prepare)"},
        {"splits", BENCH_NUMBERS, &bench.splits, "P,P",
         "further runs: percent of what could be read recomputed", 0, 100},
        {"evict", BENCH_TEXT, &o->evict, "NAME", "lctru, lru or cost instead of the policy's order"},
        {"kv-ratio", BENCH_TEXT, &bench.ratio, "R",
         "of INT8, instead of the policy's: 0.5 is 4 bits a value"},
        {"storage", BENCH_NUMBER, &bench.limit_mb_s, "MB/s", "emulate storage that is so fast, in 10^6 bytes",
         1, 1000000},
        {"state-dir", BENCH_TEXT, &bench.directory, "DIR",
         "where a directory is made and removed (default: .)"},
        {"threads", BENCH_NUMBER, &o->threads, "T", "compute threads (default: one per CPU)", 1, 1024},
        {"seed", BENCH_NUMBER, &o->seed, "N", "of words and order (default 1)"},
        {"peer", BENCH_TEXT, &bench.peer, "PATH",
         "a peer-llama-cpp: its llama-server answers the same calls"},
        {"json", BENCH_FLAG, &json, NULL, "one JSON document"},
    };
    const struct bench_usage usage = {
        "switch", "Measures what a switch between contexts costs.",
        "Every switch is followed by a call to the same context, which is resident then. The state "
        "directory\n"
        "has to be on a real disk: its file system decides what reading costs. Reads go past the page cache\n"
        "where the file system allows it, and the results say if not.\n",
        options, sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status == BENCH_GO)
        status = check(&bench);
    if (status == BENCH_GO)
        status = run_command(&bench, json);
    return status;
}
