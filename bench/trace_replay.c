/* See trace_replay.h. Prompts are random words as long in tokens as the trace wants; they and all else come
 * from the trace's seed, so that all policies get the same. */
#include "trace_replay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/memory.h"
#include "bench.h"
#include "daemon.h"
#include "prompt.h"
#include "store/journal.h"

enum {
    FILL_TURNS = 8, /* so that a full context slides by a part of what it was filled with */
    FILL_NEAR = 24, /* near enough: less than this is mostly markup */
    FILL_REPLY = 1,
    WAIT_MS = 100, /* between looks at switch_interrupted */
    URL_BYTES = 128,
};

struct place { /* a context of the daemon */
    char id[JOURNAL_ID_BYTES];
    uint64_t turns, tokens, window_turn;
};

struct replay {
    const struct replay_options *options;
    const struct trace *trace;
    struct replay_run *run;
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct transcript_rules rules;
    struct daemon daemon;
    struct place *places;
    struct random words;
    struct buffer text, directory;
    double fill_tokens, fill_s;
};

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

static int say(struct replay *r, struct place *place, size_t want, uint64_t reply, json_t **answer,
               struct error *error)
{
    char path[URL_BYTES];
    size_t tokens = 0;
    if (switch_interrupted)
        return error_set(error, -EINTR, "interrupted");
    int code = prompt_compose(&r->rules, place->turns == 0, want, &r->words, &r->text, &tokens, error);
    if (code < 0)
        return code;
    snprintf(path, sizeof path, "/v1/contexts/%s/calls", place->id);
    json_t *body = json_pack("{s:s%,s:I,s:i,s:s}", "prompt", r->text.data, r->text.length, "max_tokens",
                             (json_int_t)reply, "temperature", 0, "when_full", "slide");
    code = body ? daemon_post(&r->daemon, path, body, answer, error)
                : error_set(error, -ENOMEM, "out of memory");
    if (code < 0)
        return code;
    place->turns++;
    place->tokens = (uint64_t)daemon_number(*answer, "usage", "context_tokens");
    place->window_turn += (uint64_t)daemon_number(*answer, "usage", "turns_dropped");
    return 0;
}

/* Brings the context in. *answer may be NULL. */
static int prepare(struct replay *r, const struct place *place, json_t **answer, struct error *error)
{
    char path[URL_BYTES];
    json_t *own = NULL;
    snprintf(path, sizeof path, "/v1/contexts/%s/prepare", place->id);
    if (switch_interrupted)
        return error_set(error, -EINTR, "interrupted");
    int code = daemon_post(&r->daemon, path, NULL, answer ? answer : &own, error);
    json_decref(own);
    return code;
}

static void take_restore(struct replay_call *call, const json_t *answer)
{
    call->queue_ms = daemon_number(answer, "timings", "queue_ms");
    call->bytes_read = (uint64_t)daemon_number(answer, "timings", "bytes_read");
    call->resident = (uint64_t)daemon_number(answer, "timings", "chunks_resident");
    call->loaded = (uint64_t)daemon_number(answer, "timings", "chunks_loaded");
    call->recomputed = (uint64_t)daemon_number(answer, "timings", "chunks_recomputed");
}

static int measure_switch(struct replay *r, const struct place *place, struct replay_call *call,
                          struct error *error)
{
    json_t *answer = NULL;
    uint64_t start = clock_ns();
    int code = prepare(r, place, &answer, error);
    double wall = clock_ms_since(start);
    if (code < 0)
        return code;
    take_restore(call, answer);
    call->switch_ms = call->queue_ms + daemon_number(answer, "timings", "switch_ms");
    call->socket_ms = wall - call->switch_ms;
    json_decref(answer);
    return 0;
}

static int make_call(struct replay *r, size_t index, struct error *error)
{
    const struct trace_call *wanted = &r->trace->calls[index];
    const struct replay_options *o = r->options;
    struct place *place = &r->places[wanted->context];
    struct replay_call call = {
        .context = wanted->context,
        .same = index > 0 && r->trace->calls[index - 1].context == wanted->context,
        .prepared = o->measure == REPLAY_SWITCH || (o->measure == REPLAY_BOTH && index % 2 == 0),
        .warmup = index < o->warmup,
        .turn = place->turns,
    };
    uint64_t reply = o->reply ? o->reply : wanted->reply;
    json_t *answer = NULL;
    int code = call.prepared ? measure_switch(r, place, &call, error) : 0;
    if (code == 0)
        code = say(r, place, wanted->prompt, reply, &answer, error);
    if (code < 0)
        return code;
    if (!call.prepared)
        take_restore(&call, answer);
    call.ttft_ms = daemon_number(answer, "timings", "ttft_ms");
    call.generate_tokens_per_s = daemon_number(answer, "timings", "generate_tokens_per_s");
    call.prompt = (uint64_t)daemon_number(answer, "usage", "prompt_tokens");
    call.reply = (uint64_t)daemon_number(answer, "usage", "completion_tokens");
    call.dropped = (uint64_t)daemon_number(answer, "usage", "turns_dropped");
    call.context_tokens = place->tokens;
    call.window_turn = place->window_turn;
    json_decref(answer);
    r->run->calls[r->run->call_count++] = call;
    /* the reply's last token, whose KV is not there yet: a later switch has only to bring back what was */
    code = prepare(r, place, NULL, error);
    pause_for(o->pause_ms);
    return code;
}

/* ---- all calls ---- */

static int fill(struct replay *r, uint32_t index, struct error *error)
{
    struct place *place = &r->places[index];
    uint64_t length = r->trace->rules.context_length, want = r->trace->fill[index],
             piece = length / FILL_TURNS;
    int code = 0;
    if (want + FILL_NEAR > length)
        want = length - FILL_NEAR;
    while (code == 0 && place->tokens + FILL_NEAR < want) {
        json_t *answer = NULL;
        uint64_t left = want - place->tokens;
        code = say(r, place, (size_t)(left < piece ? left : piece) - FILL_REPLY, FILL_REPLY, &answer, error);
        r->fill_tokens += daemon_number(answer, "usage", "prompt_tokens");
        r->fill_s += daemon_number(answer, "timings", "prompt_ms") / 1e3;
        json_decref(answer);
    }
    return code == 0 ? prepare(r, place, NULL, error) : code;
}

static int fill_all(struct replay *r, struct error *error)
{
    uint32_t contexts = r->trace->rules.contexts;
    int code = 0;
    for (uint32_t i = 0; i < contexts && code == 0; i++) {
        json_t *answer = NULL;
        bench_progress("%s: filling context %" PRIu32 " of %" PRIu32, r->run->policy, i + 1, contexts);
        code = daemon_post(&r->daemon, "/v1/contexts", NULL, &answer, error);
        if (code == 0)
            snprintf(r->places[i].id, sizeof r->places[i].id, "%s",
                     json_string_value(json_object_get(answer, "id")));
        json_decref(answer);
        if (code == 0)
            code = fill(r, i, error);
    }
    r->run->fill_tokens_per_s = r->fill_s > 0 ? r->fill_tokens / r->fill_s : 0;
    return code;
}

static size_t calls_of(const struct replay *r)
{
    return r->options->calls < r->trace->count ? (size_t)r->options->calls : r->trace->count;
}

static int call_all(struct replay *r, struct error *error)
{
    size_t count = calls_of(r);
    json_t *status = NULL;
    int code = 0;
    for (size_t i = 0; i < count && code == 0; i++) {
        bench_progress("%s: call %zu of %zu", r->run->policy, i + 1, count);
        code = make_call(r, i, error);
    }
    if (code == 0)
        code = daemon_get(&r->daemon, "/v1/status", &status, error);
    r->run->stored_bytes = (uint64_t)daemon_number(status, "kv", "stored_bytes");
    r->run->resident_bytes = (uint64_t)daemon_number(status, "kv", "resident_bytes");
    r->run->threads = (uint64_t)daemon_number(status, NULL, "threads");
    json_decref(status);
    return code;
}

/* ---- for llama-server ---- */

/* What the model read for a turn, up to its reply: the window's turns and this one's prompt. */
static int sequence_of(const struct replay *r, const struct journal_turn *turns, uint64_t window,
                       uint64_t turn, struct tokens *out, struct error *error)
{
    size_t base = 0;
    int code =
        transcript_rebuild(&r->rules, "", turns + window, (size_t)(turn - window + 1), out, &base, error);
    if (code == 0)
        out->count -= turns[turn].token_count - turns[turn].prompt_tokens;
    return code;
}

static int keep_context(struct replay *r, struct journal *journal, uint32_t index, struct error *error)
{
    struct switch_run *peer = &r->run->peer;
    struct journal_turn *turns = NULL;
    size_t count = 0;
    uint64_t filled = r->places[index].turns;
    int code = journal_turns(journal, r->places[index].id, 0, &turns, &count, error);
    for (size_t i = 0; i < r->run->call_count && code == 0; i++) {
        const struct replay_call *call = &r->run->calls[i];
        if (call->context != index)
            continue;
        if (call->turn < filled)
            filled = call->turn;
        struct switch_call *sent = &peer->calls[i];
        *sent = (struct switch_call){.kind = call->same ? SWITCH_RESIDENT : SWITCH_AWAY,
                                     .context = index,
                                     .warmup = call->warmup,
                                     .turn = call->turn,
                                     .prompt = call->prompt};
        code = call->turn < count ? sequence_of(r, turns, call->window_turn, call->turn, &sent->whole, error)
                                  : error_set(error, -EBADMSG, "the journal lacks a turn");
        sent->sent = sent->whole.count;
    }
    if (code == 0 && filled > 0)
        code = sequence_of(r, turns, 0, filled - 1, &peer->sequences[index], error);
    peer->filled[index] = peer->sequences[index].count;
    journal_turns_free(turns, count);
    return code;
}

static int keep_calls(struct replay *r, struct error *error)
{
    struct switch_run *peer = &r->run->peer;
    struct journal *journal = NULL;
    struct buffer vocabulary = {0}, directory = {0};
    uint32_t contexts = r->trace->rules.contexts;
    *peer = (struct switch_run){.policy = r->run->policy,
                                .split = -1,
                                .calls = mem_calloc(r->run->call_count, sizeof *peer->calls),
                                .sequences = mem_calloc(contexts, sizeof *peer->sequences),
                                .filled = mem_calloc(contexts, sizeof *peer->filled),
                                .threads = (unsigned)r->run->threads};
    int code = peer->calls && peer->sequences && peer->filled ? 0 : -ENOMEM;
    if (code == 0) {
        peer->call_count = r->run->call_count;
        peer->context_count = contexts;
        code = transcript_vocabulary(r->rules.tokenizer, &vocabulary);
    }
    if (code == 0)
        code = buffer_printf(&directory, "%s/state", r->directory.data);
    if (code < 0)
        error_set(error, code, "out of memory");
    if (code == 0)
        code = journal_open(directory.data, vocabulary.data, &journal, error);
    for (uint32_t i = 0; i < contexts && code == 0; i++)
        code = keep_context(r, journal, i, error);
    journal_close(journal);
    buffer_deinit(&vocabulary);
    buffer_deinit(&directory);
    return code;
}

/* ---- the run ---- */

static int open_model(struct replay *r, struct error *error)
{
    struct gguf_string text;
    int code = gguf_open(r->options->model, &r->gguf, error);
    if (code == 0 && (code = tokenizer_create(r->gguf, &r->tokenizer, error)) < 0)
        return error_prefix(error, code, "%s", r->options->model);
    if (code < 0)
        return code;
    r->rules = (struct transcript_rules){CHAT_CHATML, r->tokenizer}; /* as the engine does */
    if (gguf_get_string(r->gguf, "tokenizer.chat_template", &text) == 0)
        (void)chat_template_detect(text.data, text.length, &r->rules.chat);
    return 0;
}

static int allocate(struct replay *r, struct error *error)
{
    r->places = mem_calloc(r->trace->rules.contexts, sizeof *r->places);
    r->run->calls = mem_calloc(calls_of(r), sizeof *r->run->calls);
    bool whole = r->places && (r->run->calls || calls_of(r) == 0) &&
                 buffer_printf(&r->directory, "%s/%s", r->options->directory, r->run->policy) == 0;
    return whole ? 0 : error_set(error, -ENOMEM, "out of memory");
}

static int start(struct replay *r, struct error *error)
{
    const struct replay_options *o = r->options;
    const struct daemon_options options = {
        .program = o->daemon,
        .model = o->model,
        .directory = r->directory.data,
        .policy = r->run->policy,
        .evict = o->evict,
        .kv_ratio = o->kv_ratio,
        .budget_bytes = o->budget_bytes,
        .context_length = r->trace->rules.context_length,
        .threads = o->threads,
        .storage_bytes_per_s = o->storage_bytes_per_s,
    };
    return daemon_start(&options, &r->daemon, error);
}

int replay_run(const struct replay_options *options, const struct trace *trace, struct replay_run *run,
               bool keep)
{
    struct replay r = {.options = options, .trace = trace, .run = run, .words = {~trace->rules.seed}};
    struct error *error = &run->error;
    uint64_t begun = clock_ns();
    int code = allocate(&r, error);
    if (code == 0)
        code = open_model(&r, error);
    if (code == 0)
        code = start(&r, error);
    if (code == 0)
        code = fill_all(&r, error);
    if (code == 0)
        code = call_all(&r, error);
    daemon_stop(&r.daemon);
    if (code == 0 && keep)
        code = keep_calls(&r, error);
    if (switch_interrupted)
        code = error_set(error, -EINTR, "interrupted");
    run->seconds = clock_ms_since(begun) / 1e3;
    bench_progress(NULL);
    tokenizer_destroy(r.tokenizer);
    gguf_close(r.gguf);
    buffer_deinit(&r.text);
    buffer_deinit(&r.directory);
    mem_free(r.places);
    return code;
}

void replay_run_deinit(struct replay_run *run)
{
    mem_free(run->calls);
    switch_run_deinit(&run->peer);
    *run = (struct replay_run){0};
}
