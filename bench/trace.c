/* llms-bench trace: the paper's trace against a real daemon. This file takes the options and tells the
 * results; trace.h has the generator, trace_replay.h the replay. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/parse.h"
#include "bench.h"
#include "kv_shape.h"
#include "os/aio.h"
#include "policies.h"
#include "stats.h"
#include "storage.h"
#include "trace.h"
#include "trace_replay.h"

static const uint64_t MEGABYTE = 1000000, MIB = 1 << 20, STORAGE_BYTES = 64 << 20;

struct bench {
    struct replay_options options;
    struct trace trace;
    const char *pattern, *policy_names, *directory, *save, *load, *scale, *hours, *ratio, *measure, *share,
        *peer; /* as given */
    uint64_t contexts, length, interval, seed, limit_mb_s, repeats;
    double contexts_worth; /* the budget in full contexts at 8 bits; 0: in bytes */
    bool dry;
    struct policies policies;
    struct replay_run *runs; /* repeats of the first policy, of the second, ... */
    size_t run_count;
    struct storage storage;
    struct switch_peer peers[SWITCH_PEER_MODES];
    struct error peer_errors[SWITCH_PEER_MODES];
};

/* ---- figures ---- */

enum field {
    FIELD_SWITCH,
    FIELD_AWAY,
    FIELD_TTFT,
    FIELD_TTFT_ALL,
    FIELD_QUEUE,
    FIELD_SOCKET,
    FIELD_RATE,
    FIELDS
};
static const char *const field_names[FIELDS] = {
    "switch_ms", "switch_away_ms",       "ttft_ms", "ttft_with_slides_ms", "queue_ms",
    "socket_ms", "generate_tokens_per_s"};

/* False: the call does not have it. */
static bool field_of(const struct replay_call *call, enum field field, double *value)
{
    switch (field) {
    case FIELD_SWITCH:
        *value = call->switch_ms;
        return call->prepared;
    case FIELD_AWAY:
        *value = call->switch_ms;
        return call->prepared && !call->same;
    case FIELD_TTFT:
        *value = call->ttft_ms;
        return !call->prepared && call->dropped == 0;
    case FIELD_TTFT_ALL:
        *value = call->ttft_ms;
        return !call->prepared;
    case FIELD_QUEUE:
        *value = call->queue_ms;
        return true;
    case FIELD_SOCKET:
        *value = call->socket_ms;
        return call->prepared;
    case FIELD_RATE:
        *value = call->generate_tokens_per_s;
        return call->generate_tokens_per_s > 0;
    case FIELDS:
        break;
    }
    return false;
}

/* Zeros where memory is short. */
static struct stats gather(const struct replay_run *run, enum field field)
{
    size_t count = 0;
    double *values = mem_calloc(run->call_count + 1, sizeof *values);
    for (size_t i = 0; i < run->call_count && values; i++)
        if (!run->calls[i].warmup && field_of(&run->calls[i], field, &values[count]))
            count++;
    struct stats stats = stats_of(values, count);
    mem_free(values);
    return stats;
}

struct sums {
    uint64_t switches, bytes, resident, loaded, recomputed, slides, same, calls;
};

static struct sums sum(const struct replay_run *run)
{
    struct sums sums = {0};
    for (size_t i = 0; i < run->call_count; i++) {
        const struct replay_call *call = &run->calls[i];
        if (call->warmup)
            continue;
        sums.calls++;
        sums.slides += call->dropped > 0;
        sums.same += call->same;
        if (!call->prepared)
            continue;
        sums.switches++;
        sums.bytes += call->bytes_read;
        sums.resident += call->resident;
        sums.loaded += call->loaded;
        sums.recomputed += call->recomputed;
    }
    return sums;
}

/* What the peer's calls took, both kinds together. */
static struct stats peer_stats(const struct switch_peer *peer, double *const arrays[2])
{
    size_t count = 0;
    double *values = mem_calloc(peer->count[0] + peer->count[1] + 1, sizeof *values);
    for (int kind = 0; kind < 2 && values; kind++)
        for (size_t i = 0; i < peer->count[kind]; i++)
            values[count++] = arrays[kind][i];
    struct stats stats = stats_of(values, count);
    mem_free(values);
    return stats;
}

/* ---- telling: JSON ---- */

static json_t *run_json(const struct replay_run *run)
{
    json_t *out = json_pack("{s:s,s:f}", "policy", run->policy, "seconds", run->seconds);
    if (run->error.code < 0) {
        json_object_set_new(out, "error", json_string(run->error.text));
        return out;
    }
    for (int field = 0; field < FIELDS; field++) {
        struct stats stats = gather(run, (enum field)field);
        json_object_set_new(out, field_names[field], stats_json(&stats));
    }
    struct sums sums = sum(run);
    json_object_set_new(out, "calls", json_integer((json_int_t)sums.calls));
    json_object_set_new(out, "slides", json_integer((json_int_t)sums.slides));
    json_object_set_new(out, "same_context", json_integer((json_int_t)sums.same));
    json_object_set_new(out, "switches", json_integer((json_int_t)sums.switches));
    json_object_set_new(out, "bytes_read", json_integer((json_int_t)sums.bytes));
    json_object_set_new(out, "chunks",
                        json_pack("{s:I,s:I,s:I}", "resident", (json_int_t)sums.resident, "loaded",
                                  (json_int_t)sums.loaded, "recomputed", (json_int_t)sums.recomputed));
    json_object_set_new(out, "stored_bytes", json_integer((json_int_t)run->stored_bytes));
    json_object_set_new(out, "kv_resident_bytes", json_integer((json_int_t)run->resident_bytes));
    json_object_set_new(out, "fill_tokens_per_s", json_real(run->fill_tokens_per_s));
    return out;
}

static json_t *peer_json(const struct bench *bench, unsigned mode)
{
    const struct switch_peer *peer = &bench->peers[mode];
    json_t *out = json_pack("{s:s}", "mode", peer->mode);
    if (bench->peer_errors[mode].code < 0) {
        json_object_set_new(out, "error", json_string(bench->peer_errors[mode].text));
        return out;
    }
    struct stats ms = peer_stats(peer, peer->ms), computed = peer_stats(peer, peer->computed);
    struct stats save = stats_of(peer->save_ms, peer->save_count);
    json_object_set_new(out, "ttft_ms", stats_json(&ms));
    json_object_set_new(out, "computed_tokens", stats_json(&computed));
    if (save.count)
        json_object_set_new(out, "save_ms", stats_json(&save));
    return out;
}

static json_t *trace_json(const struct bench *bench)
{
    const struct trace_rules *rules = &bench->trace.rules;
    return json_pack("{s:s,s:I,s:f,s:f,s:f,s:I,s:I,s:I}", "pattern", trace_pattern_names[rules->pattern],
                     "contexts", (json_int_t)rules->contexts, "hours", rules->hours, "interval_s",
                     rules->interval_s, "scale", rules->scale, "context_length",
                     (json_int_t)rules->context_length, "seed", (json_int_t)rules->seed, "calls",
                     (json_int_t)bench->trace.count);
}

static int print_json(const struct bench *bench)
{
    json_t *runs = json_array(), *peers = json_array();
    for (size_t i = 0; i < bench->run_count; i++)
        json_array_append_new(runs, run_json(&bench->runs[i]));
    for (unsigned mode = 0; bench->peer && mode < SWITCH_PEER_MODES; mode++)
        json_array_append_new(peers, peer_json(bench, mode));
    json_t *root = json_pack("{s:o,s:I,s:I,s:f,s:f,s:b,s:b,s:o,s:o}", "trace", trace_json(bench),
                             "budget_bytes", (json_int_t)bench->options.budget_bytes, "threads",
                             (json_int_t)(bench->run_count ? bench->runs[0].threads : 0), "storage_mb_s",
                             bench->storage.bytes_per_s / 1e6, "storage_emulated_mb_s",
                             (double)bench->limit_mb_s, "direct_io", bench->storage.direct,
                             "storage_in_memory", bench->storage.memory, "runs", runs, "peers", peers);
    int code = json_dumpf(root, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(root);
    return code;
}

/* ---- telling: a table ---- */

static void print_run(const struct replay_run *run)
{
    if (run->error.code < 0) {
        printf("%-16s %s\n", run->policy, run->error.text);
        return;
    }
    struct stats switches = gather(run, FIELD_SWITCH), ttft = gather(run, FIELD_TTFT);
    struct sums sums = sum(run);
    double n = sums.switches ? (double)sums.switches : 1;
    printf("%-16s %8.2f %8.2f %8.2f %10.2f %8.2f %8.2f %9.2f %8.1f %8.1f %8.1f %7" PRIu64 "\n", run->policy,
           switches.mean, switches.median, switches.p95, ttft.mean, ttft.median, ttft.p95,
           (double)sums.bytes / n / 1e6, (double)sums.resident / n, (double)sums.loaded / n,
           (double)sums.recomputed / n, sums.slides);
}

static void print_peer(const struct bench *bench, unsigned mode)
{
    const struct switch_peer *peer = &bench->peers[mode];
    if (bench->peer_errors[mode].code < 0) {
        printf("llama-server, %s: %s\n", peer->mode, bench->peer_errors[mode].text);
        return;
    }
    struct stats ms = peer_stats(peer, peer->ms), computed = peer_stats(peer, peer->computed);
    printf("llama-server, %s: to first token mean %.2f ms, median %.2f, p95 %.2f; %.0f prompt tokens "
           "computed a call",
           peer->mode, ms.mean, ms.median, ms.p95, computed.mean);
    if (peer->save_count)
        printf("; saving after each call: %.2f ms", stats_of(peer->save_ms, peer->save_count).median);
    putchar('\n');
}

static void print_text(const struct bench *bench)
{
    const struct trace_rules *rules = &bench->trace.rules;
    printf("%s: %" PRIu32 " contexts of up to %" PRIu32
           " tokens, growth times %g, KV budget %.1f MB, seed %" PRIu64 "; %zu calls of %zu\n",
           trace_pattern_names[rules->pattern], rules->contexts, rules->context_length, rules->scale,
           (double)bench->options.budget_bytes / 1e6, rules->seed, bench->runs[0].call_count,
           bench->trace.count);
    printf("storage: %.0f MB/s%s, %s\n\n", bench->storage.bytes_per_s / 1e6,
           bench->limit_mb_s ? " (emulated)" : "", storage_words(&bench->storage));
    printf("%-16s %8s %8s %8s %10s %8s %8s %9s %8s %8s %8s %7s\n", "ms", "switch", "median", "p95",
           "1st token", "median", "p95", "MB read", "resident", "loaded", "recomp.", "slides");
    for (size_t i = 0; i < bench->run_count; i++)
        print_run(&bench->runs[i]);
    for (unsigned mode = 0; bench->peer && mode < SWITCH_PEER_MODES; mode++)
        print_peer(bench, mode);
}

/* ---- running ---- */

static int measure_storage(struct bench *bench, struct error *error)
{
    uint64_t limit = bench->limit_mb_s * MEGABYTE, bytes = STORAGE_BYTES;
    if (limit && limit / 2 < bytes) /* for half a second or so */
        bytes = (limit / 2 / MIB + 1) * MIB;
    bench->options.storage_bytes_per_s = limit;
    aio_set_limit(limit);
    int code = storage_measure(bench->options.directory, bytes, &bench->storage, error);
    aio_set_limit(0);
    return code;
}

static int run_peers(struct bench *bench, const struct replay_run *good, struct error *error)
{
    const struct switch_options options = {.model = bench->options.model,
                                           .directory = bench->options.directory,
                                           .contexts = bench->trace.rules.contexts,
                                           .budget_bytes = bench->options.budget_bytes,
                                           .pause_ms = bench->options.pause_ms};
    for (unsigned mode = 0; bench->peer && mode < SWITCH_PEER_MODES; mode++)
        if (switch_peer(&options, &good->peer, bench->peer, mode, &bench->peers[mode],
                        &bench->peer_errors[mode]) == -EINTR)
            return error_set(error, -EINTR, "interrupted");
    return 0;
}

static int run_all(struct bench *bench, struct error *error)
{
    const struct replay_run *good = NULL;
    bench->runs = mem_calloc(bench->policies.count * bench->repeats, sizeof *bench->runs);
    if (!bench->runs)
        return error_set(error, -ENOMEM, "out of memory");
    bench->run_count = bench->policies.count * bench->repeats;
    for (size_t i = 0; i < bench->run_count; i++)
        bench->runs[i].policy = bench->policies.names[i / bench->repeats];
    for (size_t i = 0; i < bench->run_count && !switch_interrupted; i++) {
        struct replay_run *run = &bench->runs[i];
        char directory[32];
        struct buffer path = {0};
        snprintf(directory, sizeof directory, "run-%zu", i);
        struct replay_options options = bench->options;
        if (buffer_printf(&path, "%s/%s", bench->options.directory, directory) < 0)
            return error_set(error, -ENOMEM, "out of memory");
        options.directory = path.data;
        replay_run(&options, &bench->trace, run, bench->peer && !good);
        (void)storage_remove(path.data);
        buffer_deinit(&path);
        if (!good && run->error.code == 0)
            good = run;
    }
    if (switch_interrupted)
        return error_set(error, -EINTR, "interrupted");
    if (!good) /* nothing to tell but why */
        return error_set(error, bench->runs[0].error.code, "%s: %s", bench->runs[0].policy,
                         bench->runs[0].error.text);
    return run_peers(bench, good, error);
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

/* ---- options ---- */

static int take_measure(struct bench *bench)
{
    static const char *const names[] = {"both", "switch", "ttft"};
    for (int i = 0; bench->measure && i < 3; i++)
        if (strcmp(bench->measure, names[i]) == 0) {
            bench->options.measure = (enum replay_measure)i;
            return BENCH_GO;
        }
    return bench->measure
               ? bench_misuse("trace", "--measure: '%s' is not switch, ttft or both", bench->measure)
               : BENCH_GO;
}

static int check(struct bench *bench)
{
    double *ratio = &bench->options.kv_ratio;
    if (bench->options.budget_bytes == 0 && !bench->share && !bench->dry)
        return bench_misuse("trace", "--budget SIZE is missing (see llms-bench trace --help)");
    if (bench->share &&
        (parse_double(bench->share, 0, 1e6, &bench->contexts_worth) < 0 || bench->contexts_worth <= 0))
        return bench_misuse("trace", "--budget-contexts: '%s' is not a number above 0", bench->share);
    if (!bench->options.model && !bench->dry)
        return bench_misuse("trace", "--model F is missing (see llms-bench trace --help)");
    if (bench->ratio && parse_double(bench->ratio, 0.25, 2, ratio) < 0)
        return bench_misuse("trace", "--kv-ratio: '%s' is not a number from 0.25 to 2", bench->ratio);
    int status = take_measure(bench);
    return status == BENCH_GO ? policies_take("trace", bench->policy_names, &bench->policies) : status;
}

/* Loads the trace or makes it. */
static int take_trace(struct bench *bench, struct error *error)
{
    struct trace_rules rules = {.contexts = (uint32_t)bench->contexts,
                                .hours = 72,
                                .interval_s = (double)bench->interval,
                                .scale = 1.0 / 16,
                                .context_length = (uint32_t)bench->length,
                                .seed = bench->seed};
    int code = 0;
    if (bench->load)
        return trace_load(bench->load, &bench->trace, error);
    if (bench->pattern && trace_pattern_find(bench->pattern, &rules.pattern) < 0)
        return error_set(error, -EINVAL, "--pattern: '%s' is not random, markov or gaussian", bench->pattern);
    if (bench->scale && parse_double(bench->scale, 0, 16, &rules.scale) < 0)
        return error_set(error, -EINVAL, "--scale: '%s' is not a number above 0, to 16", bench->scale);
    if (bench->hours && parse_double(bench->hours, 0, 1e6, &rules.hours) < 0)
        return error_set(error, -EINVAL, "--hours: '%s' is not a number above 0, to 1000000", bench->hours);
    code = trace_generate(&rules, &bench->trace, error);
    if (code == 0 && bench->save)
        code = trace_save(&bench->trace, bench->save, error);
    return code;
}

/* The budget, where it was given in contexts. */
static int take_budget(struct bench *bench, struct error *error)
{
    struct kv_geometry shape = {0};
    if (!bench->contexts_worth || bench->dry)
        return 0;
    int code = kv_shape_read(bench->options.model, &shape, error);
    double chunks = (double)kv_chunks_of(bench->trace.rules.context_length);
    bench->options.budget_bytes =
        (uint64_t)(bench->contexts_worth * chunks * (double)kv_chunk_bytes(&shape, 8));
    return code;
}

static int run_command(struct bench *bench, bool json)
{
    struct error error = {0};
    struct sigaction action = {.sa_handler = interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_WARNING);
    int code = take_budget(bench, &error);
    if (code == 0 && !bench->dry)
        code = storage_within(bench->directory ? bench->directory : ".", measure_in, bench, &error);
    if (code == 0 && !bench->dry && json && print_json(bench) < 0)
        code = error_set(&error, -EIO, "the results cannot be written");
    else if (code == 0 && !bench->dry && !json)
        print_text(bench);
    for (size_t i = 0; i < bench->run_count; i++)
        replay_run_deinit(&bench->runs[i]);
    for (unsigned mode = 0; mode < SWITCH_PEER_MODES; mode++)
        switch_peer_deinit(&bench->peers[mode]);
    mem_free(bench->runs);
    return code < 0 ? bench_fail("trace", &error) : 0;
}

static int read_options(int argc, char **argv, struct bench *bench, bool *json)
{
    struct replay_options *o = &bench->options;
    bool whole = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &o->model, "F", "the GGUF"},
        {"pattern", BENCH_TEXT, &bench->pattern, "P", "random (default), markov or gaussian"},
        {"contexts", BENCH_NUMBER, &bench->contexts, "N", "(default 8)", 1, TRACE_CONTEXTS_MAX},
        {"context-length", BENCH_NUMBER, &bench->length, "T", "tokens that each holds (default 2048)", 64,
         TRACE_TOKENS_MAX},
        {"scale", BENCH_TEXT, &bench->scale, "X", "of the paper's growth a call (default 0.0625)"},
        {"hours", BENCH_TEXT, &bench->hours, "H", "that the trace covers (default 72)"},
        {"interval", BENCH_NUMBER, &bench->interval, "S", "seconds between calls on average (default 300)", 1,
         1000000000},
        {"seed", BENCH_NUMBER, &bench->seed, "N", "of the trace and the words (default 1)"},
        {"save", BENCH_TEXT, &bench->save, "F", "write the trace to a file"},
        {"trace", BENCH_TEXT, &bench->load, "F", "replay this one"},
        {"dry", BENCH_FLAG, &bench->dry, NULL, "only make, or check, the trace"},
        {"budget", BENCH_SIZE, &o->budget_bytes, "SIZE", "KV memory for all contexts"},
        {"budget-contexts", BENCH_TEXT, &bench->share, "X",
         "instead: as much as X full contexts take at 8 bits"},
        {"policy", BENCH_TEXT, &bench->policy_names, "P[,P..]", "one run each (default: the service's)"},
        {"repeats", BENCH_NUMBER, &bench->repeats, "N", "runs of each policy (default 1)", 1, 100},
        {"calls", BENCH_NUMBER, &o->calls, "N", "replayed, of the trace (default 96)", 1, TRACE_CALLS_MAX},
        {"full", BENCH_FLAG, &whole, NULL, "the whole trace"},
        {"warmup", BENCH_NUMBER, &o->warmup, "N", "of them, the first, do not count (default 4)", 0,
         TRACE_CALLS_MAX},
        {"reply", BENCH_NUMBER, &o->reply, "N",
         "tokens of every reply, unless the model ends it (default: as the trace has)", 1, 1 << 20},
        {"measure", BENCH_TEXT, &bench->measure, "M", "switch, ttft or both, in turn (default)"},
        {"pause", BENCH_NUMBER, &o->pause_ms, "MS", "after each call (default 0: back to back)", 0, 60000},
        {"evict", BENCH_TEXT, &o->evict, "NAME", "lctru, lru or cost instead of the policy's order"},
        {"kv-ratio", BENCH_TEXT, &bench->ratio, "R",
         "of INT8, instead of the policy's: 0.5 is 4 bits a value"},
        {"storage", BENCH_NUMBER, &bench->limit_mb_s, "MB/s",
         "emulate storage that is so fast, in 10^6 bytes", 2, 1000000},
        {"state-dir", BENCH_TEXT, &bench->directory, "DIR",
         "where a directory is made and removed (default: .)"},
        {"threads", BENCH_NUMBER, &o->threads, "T", "compute threads (default: one per CPU)", 1, 1024},
        {"daemon", BENCH_TEXT, &o->daemon, "PATH", "another llmsd than the one beside this program"},
        {"peer", BENCH_TEXT, &bench->peer, "PATH",
         "a peer-llama-cpp: its llama-server answers the same calls"},
        {"json", BENCH_FLAG, json, NULL, "one JSON document"},
    };
    const struct bench_usage usage = {
        "trace",
        "Replays a trace of calls back to back on a daemon of its own and tells what switching cost.",
        "A switch is measured by bringing the context in before its call; with --measure both, every second "
        "call\n"
        "is, and the others give the time to the first token. Calls that made a full context slide do not "
        "count\n"
        "for the latter (the JSON has both). The state directory has to be on a real disk.\n",
        options, sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (whole)
        o->calls = TRACE_CALLS_MAX;
    return status;
}

int bench_trace(int argc, char **argv)
{
    struct bench bench = {.options = {.calls = 96, .warmup = 4},
                          .contexts = 8,
                          .length = 2048,
                          .interval = 300,
                          .seed = 1,
                          .repeats = 1};
    struct error error = {0};
    bool json = false;
    int status = read_options(argc, argv, &bench, &json);
    if (status == BENCH_GO)
        status = check(&bench);
    if (status == BENCH_GO) {
        int code = take_trace(&bench, &error);
        status = code == -EINVAL ? bench_misuse("trace", "%s", error.text)
                 : code < 0      ? bench_fail("trace", &error)
                                 : run_command(&bench, json);
    }
    trace_deinit(&bench.trace);
    return status;
}
