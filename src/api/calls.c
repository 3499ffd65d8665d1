/* Calls over HTTP: the whole reply at once, or as server-sent events while it comes.
 *
 * A streamed reply: `data: {"object":"call.piece","text":...}` for every piece, then `data: {the call}` (or
 * `data: {"error":...}`), then `data: [DONE]`; a comment line each second in which nothing comes. The status
 * line is held back until the first event, for up to a second, so that a call that fails at once is a plain
 * HTTP error. A client that goes away cancels its call: noticed by a write that fails, and between writes by
 * os_socket_peer_gone. */
#include "api/calls.h"

#include <errno.h>
#include <microhttpd.h>
#include <sodium.h>
#include <string.h>

#include "api/body.h"
#include "api/routes.h"
#include "base/log.h"
#include "base/memory.h"
#include "os/socket.h"
#include "service/service.h"

enum { WAIT_MS = 250, STREAM_WAIT_MS = 1000 };

struct call_stream {
    struct call *call;
    int socket;
    uint64_t seed;
    char id[ROUTE_ARGUMENT_BYTES]; /* of the context */
    struct buffer pieces;          /* text that came and is no event yet */
    struct buffer reply;           /* all text so far */
    struct buffer events;          /* to be sent; the first `sent` bytes are */
    size_t sent;
    bool ended; /* [DONE] is among the events */
};

static double rate(uint64_t tokens, double ms)
{
    return ms > 0 ? (double)tokens * 1000 / ms : 0;
}

static json_t *timings_json(const struct call_result *r)
{
    uint64_t gaps = r->reply_tokens ? r->reply_tokens - 1 : 0; /* generate_ms: from the first to the last */
    return json_pack(
        "{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:I,s:I,s:I,s:I}", "queue_ms", answer_number(r->queue_ms),
        "switch_ms", answer_number(r->switch_ms), "stall_ms", answer_number(r->stall_ms), "prompt_ms",
        answer_number(r->prompt_ms), "ttft_ms", answer_number(r->ttft_ms), "generate_ms",
        answer_number(r->generate_ms), "total_ms", answer_number(r->total_ms), "prompt_tokens_per_s",
        answer_number(rate(r->prompt_tokens, r->prompt_ms)), "generate_tokens_per_s",
        answer_number(rate(gaps, r->generate_ms)), "chunks_resident", (json_int_t)r->chunks_resident,
        "chunks_loaded", (json_int_t)r->chunks_loaded, "chunks_recomputed", (json_int_t)r->chunks_recomputed,
        "bytes_read", (json_int_t)r->bytes_read);
}

static json_t *call_json(const struct call_result *r, const char *id, uint64_t seed,
                         const struct buffer *reply)
{
    static const char *const finishes[] = {
        [CALL_FINISH_END] = "end", [CALL_FINISH_STOP] = "stop", [CALL_FINISH_LENGTH] = "length"};
    return json_pack(
        "{s:s,s:s,s:I,s:o,s:s,s:I,s:{s:I,s:I,s:I,s:I,s:I},s:o}", "object", "call", "context", id, "turn",
        (json_int_t)r->turn, "reply", answer_string(reply->data ? reply->data : "", reply->length), "finish",
        finishes[r->finish], "seed", (json_int_t)seed, "usage", "prompt_tokens", (json_int_t)r->prompt_tokens,
        "completion_tokens", (json_int_t)r->reply_tokens, "cached_tokens", (json_int_t)r->cached_tokens,
        "context_tokens", (json_int_t)r->context_tokens, "turns_dropped", (json_int_t)r->turns_dropped,
        "timings", timings_json(r));
}

static void log_call(const char *owner, const char *id, const struct call_result *r)
{
    if (r->code < 0)
        log_debug("call %s of %s failed: %s", id, owner, r->error.text);
    else
        log_debug("call %s of %s: %llu prompt tokens, %llu reply tokens, queue %.1f ms, switch %.1f ms, "
                  "first token %.1f ms, total %.1f ms",
                  id, owner, (unsigned long long)r->prompt_tokens, (unsigned long long)r->reply_tokens,
                  r->queue_ms, r->switch_ms, r->ttft_ms, r->total_ms);
}

bool call_wait_done(struct exchange *exchange, struct call *call, struct buffer *text)
{
    while (call_wait(call, WAIT_MS, text) != CALL_DONE)
        if (os_socket_peer_gone(exchange->socket))
            return false;
    log_call(exchange->owner, exchange->match.argument, call_result(call));
    return true;
}

void call_answer_gone(struct exchange *exchange)
{
    log_debug("call %s of %s: the client went away", exchange->match.argument, exchange->owner);
    answer_error(&exchange->answer, 409, "invalid_request_error", "cancelled", "the client went away");
    exchange->answer.close = true;
}

/* ---- streams ---- */

static int stream_event(struct call_stream *stream, json_t *value)
{
    struct buffer text = {0};
    int code = answer_dump(value, &text);
    if (code == 0)
        code = buffer_printf(&stream->events, "data: %s\n\n", text.data);
    buffer_deinit(&text);
    return code;
}

static int stream_piece(struct call_stream *stream)
{
    const struct buffer *pieces = &stream->pieces;
    if (pieces->length == 0)
        return 0;
    int code = buffer_append(&stream->reply, pieces->data, pieces->length);
    if (code == 0)
        code = stream_event(stream, json_pack("{s:s,s:o}", "object", "call.piece", "text",
                                              answer_string(pieces->data, pieces->length)));
    buffer_clear(&stream->pieces);
    return code;
}

static int stream_end(struct call_stream *stream)
{
    const struct call_result *result = call_result(stream->call);
    int code =
        stream_event(stream, result->code < 0 ? answer_failure_json(&result->error)
                                              : call_json(result, stream->id, stream->seed, &stream->reply));
    if (code == 0)
        code = buffer_append_text(&stream->events, "data: [DONE]\n\n");
    stream->ended = true;
    return code;
}

/* Turns what call_wait said into events. */
static int stream_take(struct call_stream *stream, enum call_event event)
{
    int code = stream_piece(stream);
    if (code == 0 && event == CALL_DONE)
        code = stream_end(stream);
    if (code == 0 && event == CALL_WAITING)
        code = buffer_append_text(&stream->events, ": waiting\n\n");
    return code;
}

ssize_t call_stream_read(void *user, uint64_t position, char *out, size_t max)
{
    struct call_stream *stream = user;
    (void)position;
    while (stream->sent == stream->events.length) {
        if (stream->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        buffer_clear(&stream->events);
        stream->sent = 0;
        if (os_socket_peer_gone(stream->socket))
            return MHD_CONTENT_READER_END_WITH_ERROR;
        if (stream_take(stream, call_wait(stream->call, STREAM_WAIT_MS, &stream->pieces)) < 0)
            return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t bytes = stream->events.length - stream->sent;
    if (bytes > max)
        bytes = max;
    memcpy(out, stream->events.data + stream->sent, bytes);
    stream->sent += bytes;
    return (ssize_t)bytes;
}

void call_stream_destroy(void *user)
{
    struct call_stream *stream = user;
    if (!stream)
        return;
    if (!stream->ended)
        log_debug("call %s: its stream ended early", stream->id);
    call_release(stream->call);
    buffer_deinit(&stream->pieces);
    buffer_deinit(&stream->reply);
    buffer_deinit(&stream->events);
    mem_free(stream);
}

/* Takes the call over. */
static void answer_stream(struct exchange *exchange, struct call *call, uint64_t seed)
{
    struct call_stream *stream = mem_calloc(1, sizeof *stream);
    if (!stream) {
        call_release(call);
        answer_json(&exchange->answer, 500, NULL);
        return;
    }
    stream->call = call;
    stream->socket = exchange->socket;
    stream->seed = seed;
    memcpy(stream->id, exchange->match.argument, sizeof stream->id);
    enum call_event event = call_wait(call, STREAM_WAIT_MS, &stream->pieces);
    if (event == CALL_DONE && call_result(call)->code < 0) {
        log_call(exchange->owner, stream->id, call_result(call));
        answer_failure(&exchange->answer, &call_result(call)->error);
        stream->ended = true;
        call_stream_destroy(stream);
    } else if (stream_take(stream, event) < 0) {
        call_stream_destroy(stream);
        answer_json(&exchange->answer, 500, NULL);
    } else {
        exchange->answer.status = 200;
        exchange->answer.content_type = "text/event-stream";
        exchange->answer.stream = stream;
    }
}

/* ---- routes ---- */

static void answer_reply(struct exchange *exchange, struct call *call, uint64_t seed)
{
    struct buffer reply = {0};
    if (!call_wait_done(exchange, call, &reply))
        call_answer_gone(exchange);
    else if (call_result(call)->code < 0)
        answer_failure(&exchange->answer, &call_result(call)->error);
    else
        answer_json(&exchange->answer, 200,
                    call_json(call_result(call), exchange->match.argument, seed, &reply));
    buffer_deinit(&reply);
    call_release(call);
}

/* 53 bits: what every JSON reader holds exactly, so that a caller can send the seed back. */
static uint64_t draw_seed(void)
{
    uint64_t seed;
    randombytes_buf(&seed, sizeof seed);
    return seed >> 11;
}

void route_call(struct exchange *exchange)
{
    struct body_call body;
    struct call *call;
    struct error error = {0};
    json_t *json = exchange_json(exchange);
    if (!json)
        return;
    int code = body_read_call(json, &body, &error);
    if (code < 0) {
        answer_invalid(&exchange->answer, &error);
        json_decref(json);
        return;
    }
    uint64_t *seed = &body.params.sampling.seed;
    if (!body.seed_given)
        *seed = draw_seed();
    code = service_call_start(exchange->service, exchange->owner, exchange->match.argument, &body.params,
                              &call, &error);
    json_decref(json);
    if (code < 0)
        answer_failure(&exchange->answer, &error);
    else if (body.stream)
        answer_stream(exchange, call, *seed);
    else
        answer_reply(exchange, call, *seed);
}

void route_prepare(struct exchange *exchange)
{
    const struct call_params params = {.sampling = sampler_defaults, .prepare = true};
    struct buffer nothing = {0};
    struct call *call;
    struct error error = {0};
    json_t *json = exchange_json(exchange);
    if (!json)
        return;
    int code = body_read_nothing(json, &error);
    json_decref(json);
    if (code < 0) {
        answer_invalid(&exchange->answer, &error);
        return;
    }
    if (service_call_start(exchange->service, exchange->owner, exchange->match.argument, &params, &call,
                           &error) < 0) {
        answer_failure(&exchange->answer, &error);
        return;
    }
    if (!call_wait_done(exchange, call, &nothing))
        call_answer_gone(exchange);
    else if (call_result(call)->code < 0)
        answer_failure(&exchange->answer, &call_result(call)->error);
    else
        answer_json(&exchange->answer, 200,
                    json_pack("{s:s,s:s,s:o}", "id", exchange->match.argument, "object", "context.prepared",
                              "timings", timings_json(call_result(call))));
    buffer_deinit(&nothing);
    call_release(call);
}
