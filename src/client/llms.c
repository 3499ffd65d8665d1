/* libllms: the public functions over transport (HTTP), sse (streams) and outcome (meanings).
 *
 * A handle holds its connection settings and the last failure; nothing is cached, the daemon has the truth. A
 * handle serves one thread at a time; using it from its own piece callback is refused with -EBUSY. */
#include "llms.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "client/outcome.h"
#include "client/sse.h"
#include "client/transport.h"

struct llms {
    struct transport *transport;
    struct error error;
    bool busy;
};

/* A call while its reply streams in. */
struct call {
    struct sse sse;
    llms_piece_fn *piece;
    void *user;
    struct llms_call_result *result;
    struct error *error;
    bool cancelled; /* by piece */
    bool done;      /* the call object came: the turn is durable */
};

/* One exchange over the handle; a failed connect after the bind is always -ECONNREFUSED, so that -ENOENT
 * keeps meaning "no such context". */
static int exchange(struct llms *llms, const struct transport_request *request,
                    struct transport_answer *answer)
{
    *answer = (struct transport_answer){0};
    if (llms->busy)
        return -EBUSY;
    llms->error = (struct error){0};
    llms->busy = true;
    int code = transport_exchange(llms->transport, request, answer, &llms->error);
    llms->busy = false;
    return code == -ENOENT ? (llms->error.code = -ECONNREFUSED) : code;
}

/* ---- bind ---- */

static bool is_app_name(const char *app)
{
    size_t length = strlen(app);
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)app[i]) && !strchr("._-", app[i]))
            return false;
    return length >= 1 && length <= 64;
}

/* Makes sure that it is the daemon that answers there. */
static int try_bind(const char *app, const char *address, struct llms **out)
{
    struct transport_request request = {.method = "GET", .path = "/health"};
    struct transport_answer answer = {0};
    struct llms *llms = mem_calloc(1, sizeof *llms);
    if (!llms)
        return -ENOMEM;
    int code = transport_create(app, address, &llms->transport, NULL);
    if (code < 0)
        goto out;
    code = transport_exchange(llms->transport, &request, &answer, NULL);
    if (code < 0)
        goto out;
    json_t *document = json_loadb(answer.body.data ? answer.body.data : "", answer.body.length, 0, NULL);
    if (answer.status == 401 || answer.status == 403)
        code = -EACCES;
    else if (!json_is_object(document) || (answer.status != 200 && answer.status != 503))
        code = -EPROTO;
    json_decref(document);
out:
    buffer_deinit(&answer.body);
    if (code < 0) {
        llms_unbind(llms);
        return code;
    }
    *out = llms;
    return 0;
}

int llms_bind(const char *app, const char *address, struct llms **out)
{
    if (!app || !out || !is_app_name(app))
        return -EINVAL;
    *out = NULL;
    if (!address || !*address)
        address = getenv("LLMS_ADDRESS");
    if (address && *address)
        return try_bind(app, address, out);
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int code = -ENOENT;
    if (runtime && *runtime) {
        struct buffer path = {0};
        code = buffer_printf(&path, "unix:%s/llms/llmsd.sock", runtime);
        if (code >= 0)
            code = try_bind(app, path.data, out);
        buffer_deinit(&path);
    }
    if (code != -ENOENT && code != -ECONNREFUSED && code != -ENAMETOOLONG)
        return code;
    int system = try_bind(app, "unix:/run/llms/llmsd.sock", out);
    return system == -ENOENT && code == -ECONNREFUSED ? code : system;
}

void llms_unbind(struct llms *llms)
{
    if (!llms)
        return;
    transport_destroy(llms->transport);
    mem_free(llms);
}

/* ---- plain requests ---- */

static bool is_token(const char *text)
{
    if (!text || !*text)
        return false;
    for (; *text; text++)
        if (*text < 'A' || *text > 'Z')
            return false;
    return true;
}

static bool is_path(const char *path)
{
    if (!path || *path != '/')
        return false;
    for (; *path; path++)
        if ((unsigned char)*path <= ' ' || *path == 0x7f)
            return false;
    return true;
}

int llms_request(struct llms *llms, const char *method, const char *path, const char *body, char **answer)
{
    if (answer)
        *answer = NULL;
    if (!llms)
        return -EINVAL;
    if (!is_token(method) || !is_path(path))
        return error_set(&llms->error, -EINVAL, "not a method in capitals and a path from '/'");
    struct transport_request request = {.method = method, .path = path, .body = body};
    struct transport_answer got;
    int code = exchange(llms, &request, &got);
    if (code == 0 && got.status >= 400) {
        json_t *document = json_loadb(got.body.data ? got.body.data : "", got.body.length, 0, NULL);
        code = outcome_error(document, got.status, &llms->error);
        json_decref(document);
    } else if (code == 0 && !got.body.data && buffer_append_text(&got.body, "") < 0) {
        code = error_set(&llms->error, -ENOMEM, "out of memory");
    }
    if (answer && got.body.data) {
        *answer = got.body.data; /* from mem_alloc, which free() takes */
        got.body = (struct buffer){0};
    }
    buffer_deinit(&got.body);
    return code;
}

static int fail_text(struct llms *llms, const char *what, const char *text)
{
    if (text && !utf8_valid(text, strlen(text)))
        return error_set(&llms->error, -EILSEQ, "the %s is not UTF-8", what);
    return 0;
}

static bool is_id(const char *id)
{
    size_t length = id ? strlen(id) : 0;
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)id[i]) && id[i] != '-' && id[i] != '_')
            return false;
    return length > 0 && length < LLMS_ID_BYTES;
}

/* "/v1/contexts/ID" + suffix; an id that could not be one never reaches a path. */
static int context_path(struct llms *llms, const char *id, const char *suffix, char *path, size_t bytes)
{
    if (!is_id(id))
        return error_set(&llms->error, -EINVAL, "'%.40s' is not a context id", id ? id : "");
    snprintf(path, bytes, "/v1/contexts/%s%s", id, suffix);
    return 0;
}

/* A POST that answers with a context object, whose id is wanted. */
static int post_for_id(struct llms *llms, const char *path, json_t *body, char id[LLMS_ID_BYTES])
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL, *answer = NULL;
    int code = text ? llms_request(llms, "POST", path, text, &answer)
                    : error_set(&llms->error, -ENOMEM, "out of memory");
    free(text);
    if (code == 0) {
        json_t *context = json_loads(answer, 0, NULL);
        const char *found = json_string_value(json_object_get(context, "id"));
        if (found && *found && strlen(found) < LLMS_ID_BYTES)
            strcpy(id, found);
        else
            code = error_set(&llms->error, -EPROTO, "the daemon's answer has no context id");
        json_decref(context);
    }
    free(answer);
    return code;
}

int llms_context_new(struct llms *llms, const char *name, const char *system_prompt, char id[LLMS_ID_BYTES])
{
    if (!llms || !id)
        return -EINVAL;
    int code = fail_text(llms, "name", name);
    if (code == 0)
        code = fail_text(llms, "system prompt", system_prompt);
    if (code < 0)
        return code;
    json_t *body = json_pack("{s:s*,s:s*}", "name", name, "system_prompt", system_prompt);
    code = post_for_id(llms, "/v1/contexts", body, id);
    json_decref(body);
    return code;
}

int llms_context_fork(struct llms *llms, const char *id, const char *name, char copy[LLMS_ID_BYTES])
{
    char path[96];
    if (!llms || !copy)
        return -EINVAL;
    int code = context_path(llms, id, "/fork", path, sizeof path);
    if (code == 0)
        code = fail_text(llms, "name", name);
    if (code < 0)
        return code;
    json_t *body = json_pack("{s:s*}", "name", name);
    code = post_for_id(llms, path, body, copy);
    json_decref(body);
    return code;
}

static int context_request(struct llms *llms, const char *method, const char *id, const char *suffix)
{
    char path[96];
    if (!llms)
        return -EINVAL;
    int code = context_path(llms, id, suffix, path, sizeof path);
    return code < 0 ? code : llms_request(llms, method, path, NULL, NULL);
}

int llms_context_prepare(struct llms *llms, const char *id)
{
    return context_request(llms, "POST", id, "/prepare");
}

int llms_context_delete(struct llms *llms, const char *id)
{
    return context_request(llms, "DELETE", id, "");
}

/* ---- calls ---- */

static int set_number(json_t *body, const char *key, double value)
{
    if (isnan(value) || isinf(value))
        return -EINVAL;
    return value < 0 ? 0 : json_object_set_new(body, key, json_real(value)) < 0 ? -ENOMEM : 0;
}

static int set_whole(json_t *body, const char *key, json_int_t value)
{
    return value < 0 ? 0 : json_object_set_new(body, key, json_integer(value)) < 0 ? -ENOMEM : 0;
}

static int set_stop(json_t *body, const char *const *stop)
{
    json_t *list = stop ? json_array() : NULL;
    if (!stop)
        return 0;
    for (; *stop; stop++) {
        if (!utf8_valid(*stop, strlen(*stop))) {
            json_decref(list);
            return -EILSEQ;
        }
        json_array_append_new(list, json_string(*stop)); /* what is missing shows in the size */
    }
    return json_object_set_new(body, "stop", list) < 0 ? -ENOMEM : 0;
}

static int call_body(const char *prompt, const struct llms_call_options *options, char **text)
{
    int code;
    json_t *body = json_pack("{s:s,s:b}", "prompt", prompt, "stream", 1);
    if (!body)
        return -ENOMEM;
    code = set_whole(body, "max_tokens", options->max_tokens ? (json_int_t)options->max_tokens : -1);
    if (code == 0)
        code = set_number(body, "temperature", options->temperature);
    if (code == 0)
        code = set_whole(body, "top_k", options->top_k);
    if (code == 0)
        code = set_number(body, "top_p", options->top_p);
    if (code == 0)
        code = set_number(body, "min_p", options->min_p);
    if (code == 0)
        code = set_number(body, "repeat_penalty", options->repeat_penalty);
    if (code == 0)
        code = set_whole(body, "seed", options->seed);
    if (code == 0)
        code = set_stop(body, options->stop);
    if (code == 0 && options->refuse_when_full)
        code = json_object_set_new(body, "when_full", json_string("refuse")) < 0 ? -ENOMEM : 0;
    if (code == 0 && !(*text = json_dumps(body, JSON_COMPACT)))
        code = -ENOMEM;
    json_decref(body);
    return code;
}

static int deliver(struct call *call, const char *text, size_t length)
{
    if (call->done || !call->piece || call->piece(call->user, text, length) == 0)
        return 0;
    call->cancelled = true;
    return -ECANCELED;
}

static int on_idle(void *user)
{
    return deliver(user, "", 0);
}

static int on_event(void *user, const char *event, const char *data, size_t length)
{
    struct call *call = user;
    int code = 0;
    (void)event;
    if (strcmp(data, "[DONE]") == 0)
        return 0;
    json_t *document = json_loadb(data, length, JSON_ALLOW_NUL, NULL);
    if (!document)
        return error_set(call->error, -EPROTO, "the daemon's stream holds something that is not JSON");
    const char *object = json_string_value(json_object_get(document, "object"));
    const json_t *text = json_object_get(document, "text");
    if (json_object_get(document, "error")) {
        code = outcome_error(document, 0, call->error);
    } else if (object && strcmp(object, "call.piece") == 0 && json_string_length(text)) {
        code = deliver(call, json_string_value(text), json_string_length(text));
    } else if (object && strcmp(object, "call") == 0) {
        outcome_result(document, call->result);
        call->done = true;
    }
    json_decref(document);
    return code;
}

static int on_bytes(void *user, const char *bytes, size_t length)
{
    struct call *call = user;
    return sse_feed(&call->sse, bytes, length, on_event, call);
}

/* Why a call whose exchange ended with `code` failed. */
static int call_outcome(struct llms *llms, struct call *call, int code, const struct transport_answer *answer,
                        const struct error *streamed)
{
    if (call->done) { /* what broke after the call object does not undo the turn */
        llms->error = (struct error){0};
        return 0;
    }
    if (call->cancelled)
        return error_set(&llms->error, -ECANCELED, "cancelled by the caller");
    if (streamed->code) {
        llms->error = *streamed;
        return streamed->code;
    }
    if (code < 0)
        return code;
    if (answer->status >= 400) {
        json_t *document =
            json_loadb(answer->body.data ? answer->body.data : "", answer->body.length, 0, NULL);
        code = outcome_error(document, answer->status, &llms->error);
        json_decref(document);
        return code;
    }
    if (answer->body.length)
        return error_set(&llms->error, -EPROTO, "the daemon did not answer with a stream of events");
    return error_set(&llms->error, -ECONNRESET, "the daemon ended its stream before the reply was complete");
}

int llms_call(struct llms *llms, const char *id, const char *prompt, const struct llms_call_options *options,
              llms_piece_fn *piece, void *user, struct llms_call_result *result)
{
    static const struct llms_call_options defaults = LLMS_CALL_DEFAULTS;
    struct llms_call_result unwanted;
    struct error streamed = {0};
    struct transport_answer answer = {0};
    char path[96], *body = NULL;
    if (!llms || !prompt)
        return -EINVAL;
    if (llms->busy)
        return -EBUSY;
    result = result ? result : &unwanted;
    *result = (struct llms_call_result){0};
    int code = context_path(llms, id, "/calls", path, sizeof path);
    if (code == 0)
        code = fail_text(llms, "prompt", prompt);
    if (code < 0)
        return code;
    code = call_body(prompt, options ? options : &defaults, &body);
    if (code < 0)
        return error_set(&llms->error, code, code == -ENOMEM ? "out of memory" : "bad call options");
    struct call call = {.piece = piece, .user = user, .result = result, .error = &streamed};
    struct transport_request request = {.method = "POST",
                                        .path = path,
                                        .body = body,
                                        .on_bytes = on_bytes,
                                        .on_idle = on_idle,
                                        .user = &call};
    code = exchange(llms, &request, &answer);
    code = call_outcome(llms, &call, code, &answer, &streamed);
    sse_deinit(&call.sse);
    buffer_deinit(&answer.body);
    free(body);
    return code;
}

/* ---- errors ---- */

const char *llms_strerror(int error)
{
    switch (error) {
    case 0:
        return "success";
    case -EINVAL:
        return "invalid argument or request";
    case -ENOENT:
        return "no such context, or no daemon at the address";
    case -ECONNREFUSED:
        return "no daemon answers";
    case -ECONNRESET:
        return "the daemon went away before it had answered";
    case -E2BIG:
        return "longer than the context";
    case -EDQUOT:
        return "the app has as many contexts as it may have";
    case -EAGAIN:
        return "the daemon is busy or still loading; try again";
    case -ESHUTDOWN:
        return "the daemon is shutting down";
    case -ECANCELED:
        return "cancelled";
    case -EACCES:
        return "not allowed (over TCP: is LLMS_TOKEN set?)";
    case -EPROTO:
        return "what answers does not speak as llmsd does";
    case -EBUSY:
        return "the handle is in use";
    case -EILSEQ:
        return "not UTF-8";
    default:
        return strerror(error < 0 ? -error : error);
    }
}

const char *llms_last_error(const struct llms *llms)
{
    return llms ? llms->error.text : "";
}
