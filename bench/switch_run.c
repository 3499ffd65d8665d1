/* The calls of llms-bench switch, on a service of its own. See switch.h.
 *
 * Contexts are filled with random words, then called in a random order. A switch goes to a context that was
 * not among the last half of all that were used; right after it the same context is called once more, so that
 * both kinds of calls meet the same machine. Prompts and order come from the seed alone: all policies get the
 * same. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench.h"
#include "kv/policy.h"
#include "prompt.h"
#include "service/service.h"
#include "switch.h"

enum {
    APPS = 4,
    FILL_TOKENS = 384,  /* a call */
    FILL_NEAR = 24,     /* near enough to the length wanted: less than this is mostly markup */
    WARMUP = 2,         /* switches that do not count */
    CALL_TOKENS = 24,   /* the most that a call with a shorter prompt adds, as its markup has to be in it */
    WAIT_MS = 100,      /* between looks at switch_interrupted */
    CONTEXT_ROUND = 64, /* the service is opened for a multiple of so many tokens */
};

volatile sig_atomic_t switch_interrupted;

struct bench_context {
    char owner[24];
    char id[JOURNAL_ID_BYTES];
    uint64_t turns;
    size_t tokens;
    size_t computed; /* of them, whose KV was computed: all but the reply of the last call */
    uint64_t used;   /* number of the step that used it last */
};

struct runner {
    const struct switch_options *options;
    struct switch_run *run;
    struct service *service;
    struct transcript_rules rules;
    struct random order, words;
    struct bench_context *contexts;
    uint32_t *candidates; /* room for all contexts */
    struct buffer text;
    uint64_t step;
};

/* In pieces: a signal may have gone to another thread. */
static void pause_for(uint64_t ms)
{
    while (ms && !switch_interrupted) {
        uint64_t piece = ms < WAIT_MS ? ms : WAIT_MS;
        struct timespec time = {0, (long)piece * 1000000};
        nanosleep(&time, NULL);
        ms -= piece;
    }
}

/* ---- one call ---- */

static int finish_call(struct runner *r, struct call *call, struct call_result *result, struct error *error)
{
    while (call_wait(call, WAIT_MS, &r->text) != CALL_DONE)
        if (switch_interrupted)
            call_cancel(call);
    *result = *call_result(call);
    call_release(call);
    if (switch_interrupted)
        return error_set(error, -EINTR, "interrupted");
    return result->code < 0 ? error_set(error, result->code, "a call failed: %s", result->error.text) : 0;
}

/* want: prompt tokens; 0: only brings the context in. */
static int make_call(struct runner *r, struct bench_context *context, size_t want, struct call_result *result,
                     struct error *error)
{
    struct call *call = NULL;
    size_t tokens = 0;
    int code =
        want ? prompt_compose(&r->rules, context->turns == 0, want, &r->words, &r->text, &tokens, error) : 0;
    if (code < 0)
        return code;
    struct call_params params = {
        .prompt = r->text.data,
        .prompt_length = r->text.length,
        .max_tokens = 1,
        .sampling = sampler_defaults,
        .overflow = CALL_REFUSE,
        .prepare = want == 0,
    };
    params.sampling.temperature = 0;
    code = service_call_start(r->service, context->owner, context->id, &params, &call, error);
    if (code == 0)
        code = finish_call(r, call, result, error);
    if (code < 0)
        return code;
    if (want && result->prompt_tokens != tokens)
        return error_set(error, -EIO, "a prompt of %zu tokens was counted as %" PRIu64, tokens,
                         result->prompt_tokens);
    context->turns += want != 0;
    context->tokens = (size_t)result->context_tokens;
    context->computed = context->tokens - (size_t)result->reply_tokens;
    return 0;
}

static int measured_call(struct runner *r, uint32_t index, enum switch_kind kind, bool warmup,
                         struct error *error)
{
    struct bench_context *context = &r->contexts[index];
    struct call_result result = {0};
    size_t before = context->tokens, computed = context->computed;
    int code = make_call(r, context, kind == SWITCH_RESTORE ? 0 : (size_t)r->options->delta, &result, error);
    if (code < 0)
        return code;
    context->used = ++r->step;
    r->run->calls[r->run->call_count++] = (struct switch_call){
        .kind = kind,
        .context = index,
        .warmup = warmup,
        .turn = result.turn,
        .sent = before + (size_t)result.prompt_tokens,
        .prompt = result.prompt_tokens,
        .ms = kind == SWITCH_RESTORE ? result.switch_ms : result.ttft_ms,
        .queue_ms = result.queue_ms,
        .stall_ms = result.stall_ms,
        .plan_ms = result.plan_ms,
        .bytes_read = result.bytes_read,
        .resident = result.chunks_resident,
        .loaded = result.chunks_loaded,
        .recomputed = result.chunks_recomputed,
        .recomputed_tokens = computed > result.cached_tokens ? computed - result.cached_tokens : 0,
    };
    pause_for(r->options->pause_ms);
    return 0;
}

/* ---- all calls ---- */

/* A context that was not used lately: at random among those that at least half of the others were used after.
 */
static uint32_t choose_away(struct runner *r)
{
    uint32_t all = (uint32_t)r->options->contexts, count = 0, recent = all / 2;
    for (uint32_t i = 0; i < all; i++) {
        uint32_t later = 0;
        for (uint32_t k = 0; k < all; k++)
            later += r->contexts[k].used > r->contexts[i].used;
        if (later >= recent)
            r->candidates[count++] = i;
    }
    return r->candidates[random_below(&r->order, count)];
}

/* Computes the KV of the last reply, which the next call would otherwise: a restore measured later has only
 * to bring back what was there. */
static int complete(struct runner *r, struct bench_context *context, struct error *error)
{
    struct call_result result = {0};
    return r->options->restores ? make_call(r, context, 0, &result, error) : 0;
}

static int measure(struct runner *r, struct error *error)
{
    uint64_t all = r->options->calls + WARMUP;
    int code = 0;
    for (uint64_t i = 0; i < all && code == 0; i++) {
        uint32_t index = choose_away(r);
        bool warmup = i < WARMUP;
        bench_progress("%s: switch %" PRIu64 " of %" PRIu64, r->run->policy, i + 1, all);
        code = measured_call(r, index, SWITCH_AWAY, warmup, error);
        if (code == 0)
            code = measured_call(r, index, SWITCH_RESIDENT, warmup, error);
        if (code == 0)
            code = complete(r, &r->contexts[index], error);
        if (code == 0 && r->options->restores)
            code = measured_call(r, choose_away(r), SWITCH_RESTORE, warmup, error);
    }
    return code;
}

static int fill(struct runner *r, struct bench_context *context, struct error *error)
{
    double prompt_ms = 0;
    int code = 0;
    while (code == 0 && context->tokens + FILL_NEAR < r->options->tokens) {
        size_t want = (size_t)r->options->tokens - context->tokens;
        struct call_result result = {0};
        code = make_call(r, context, want < FILL_TOKENS ? want : FILL_TOKENS, &result, error);
        prompt_ms += result.prompt_ms;
    }
    /* what the machine can do: the best of all contexts, each from its beginning to its full depth */
    double rate = prompt_ms > 0 ? (double)context->tokens / prompt_ms * 1e3 : 0;
    if (rate > r->run->compute_tokens_per_s)
        r->run->compute_tokens_per_s = rate;
    if (code == 0)
        code = complete(r, context, error);
    context->used = ++r->step;
    return code;
}

static int fill_all(struct runner *r, struct error *error)
{
    if (!r->contexts)
        return error_set(error, -ENOMEM, "out of memory");
    int code = 0;
    for (uint32_t i = 0; i < r->options->contexts && code == 0; i++) {
        struct bench_context *context = &r->contexts[i];
        struct context_info info = {0};
        bench_progress("%s: filling context %u of %" PRIu64, r->run->policy, i + 1, r->options->contexts);
        snprintf(context->owner, sizeof context->owner, "bench/app%u", i % APPS);
        code = service_context_new(r->service, context->owner, NULL, NULL, &info, error);
        if (code < 0)
            break;
        memcpy(context->id, info.record.id, sizeof context->id);
        context_info_deinit(&info);
        code = fill(r, context, error);
        r->run->filled[i] = context->tokens;
        pause_for(r->options->pause_ms);
    }
    return code;
}

/* Copies what the contexts are made of, for the peer. */
static int keep_sequences(struct runner *r, struct error *error)
{
    int code = 0;
    for (uint32_t i = 0; i < r->options->contexts && code == 0; i++) {
        struct journal_turn *turns = NULL;
        size_t count = 0;
        code =
            service_context_turns(r->service, r->contexts[i].owner, r->contexts[i].id, &turns, &count, error);
        for (size_t k = 0; k < count && code == 0; k++)
            if (tokens_append_all(&r->run->sequences[i], turns[k].tokens, turns[k].token_count) < 0)
                code = error_set(error, -ENOMEM, "out of memory");
        journal_turns_free(turns, count);
    }
    return code;
}

/* ---- the runs ---- */

/* The longest that any context gets. */
static uint64_t longest(const struct switch_options *options, size_t runs)
{
    uint64_t turns =
        (options->calls + WARMUP) / (options->contexts / 2 + 1) + 1; /* switches to one of them */
    uint64_t added = options->delta > CALL_TOKENS ? options->delta : CALL_TOKENS;
    uint64_t tokens = options->tokens + 2 * runs * turns * (added + 1) + 1;
    return (tokens + CONTEXT_ROUND - 1) / CONTEXT_ROUND * CONTEXT_ROUND;
}

static int open_service(struct runner *r, size_t runs, struct error *error)
{
    const struct switch_options *options = r->options;
    struct buffer directory = {0};
    if (buffer_printf(&directory, "%s/%s", options->directory, r->run->policy) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    struct service_options service = {
        .model_path = options->model,
        .state_directory = directory.data,
        .policy = r->run->policy,
        .evict = options->evict,
        .kv_ratio = options->kv_ratio,
        .force_split = r->run->split >= 0,
        .recompute_share = r->run->split >= 0 ? r->run->split / 100.0 : 0,
        .kv_budget_bytes = options->budget_bytes,
        .context_length = (uint32_t)longest(options, runs),
        .threads = (unsigned)options->threads,
    };
    int code = service_open(&service, &r->service, error);
    buffer_deinit(&directory);
    if (code == 0)
        r->rules = (struct transcript_rules){service_model(r->service)->chat, service_tokenizer(r->service)};
    return code;
}

static int allocate_run(const struct switch_options *options, struct switch_run *run, struct error *error)
{
    size_t contexts = (size_t)options->contexts, calls = (size_t)options->calls + WARMUP;
    run->sequences = mem_calloc(contexts, sizeof *run->sequences);
    run->filled = mem_calloc(contexts, sizeof *run->filled);
    run->calls = mem_calloc(calls * SWITCH_KINDS, sizeof *run->calls);
    run->context_count = run->sequences ? contexts : 0;
    bool short_of = !run->sequences || !run->filled || !run->calls;
    return short_of ? error_set(error, -ENOMEM, "out of memory") : 0;
}

static int run_one(struct runner *r, struct switch_run *run, size_t runs, bool first, struct error *error)
{
    struct service_status status;
    r->run = run;
    int code = allocate_run(r->options, run, error);
    if (code == 0)
        code = open_service(r, runs, error);
    if (code < 0)
        return code;
    if (first)
        code = fill_all(r, error);
    if (code == 0)
        code = measure(r, error);
    if (code == 0 && first)
        code = keep_sequences(r, error);
    service_status(r->service, &status);
    run->kv_resident_bytes = status.kv_resident_bytes;
    run->threads = status.threads;
    service_close(r->service);
    r->service = NULL;
    return code;
}

/* What the machine can do: the best of filling a context (which, where all leaves memory after each call,
 * brings it back over and over) and of every restore that only recomputed. */
static void share_compute_rate(struct switch_run *runs, size_t count)
{
    double best = runs[0].compute_tokens_per_s;
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < runs[i].call_count; c++) {
            const struct switch_call *call = &runs[i].calls[c];
            if (call->kind != SWITCH_RESTORE || call->bytes_read || !call->recomputed_tokens || call->ms <= 0)
                continue;
            double rate = (double)call->recomputed_tokens / call->ms * 1e3;
            best = rate > best ? rate : best;
        }
    for (size_t i = 0; i < count; i++)
        runs[i].compute_tokens_per_s = best;
}

int switch_run(const struct switch_options *options, struct switch_run *runs, size_t count)
{
    struct runner r = {.options = options, .order = {options->seed}, .words = {~options->seed}};
    size_t policies = 0;
    const struct kv_policy *policy =
        runs[0].policy ? kv_policy_find(runs[0].policy) : kv_policy_list(&policies);
    struct error error = {0};
    int code = policy ? 0 : error_set(&error, -EINVAL, "there is no policy '%s'", runs[0].policy);
    r.contexts = mem_calloc((size_t)options->contexts, sizeof *r.contexts);
    r.candidates = mem_calloc((size_t)options->contexts, sizeof *r.candidates);
    if (code == 0 && (!r.contexts || !r.candidates))
        code = error_set(&error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        if (policy)
            runs[i].policy = policy->name;
        if (code == 0)
            code = run_one(&r, &runs[i], count, i == 0, &error);
        runs[i].error = error;
    }
    share_compute_rate(runs, count);
    bench_progress(NULL);
    buffer_deinit(&r.text);
    mem_free(r.contexts);
    mem_free(r.candidates);
    return code;
}

void switch_run_deinit(struct switch_run *run)
{
    for (size_t i = 0; i < run->context_count; i++)
        tokens_deinit(&run->sequences[i]);
    for (size_t i = 0; i < run->call_count; i++)
        tokens_deinit(&run->calls[i].whole);
    mem_free(run->sequences);
    mem_free(run->filled);
    mem_free(run->calls);
    *run = (struct switch_run){0};
}
