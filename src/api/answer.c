#include "api/answer.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "api/calls.h"
#include "base/memory.h"
#include "base/utf8.h"

enum { JSON_FLAGS = JSON_COMPACT | JSON_REAL_PRECISION(12) };

const char answer_out_of_memory[] =
    "{\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\",\"code\":\"out_of_memory\"}}\n";

static const struct failure {
    int error; /* negative errno of the service */
    unsigned status;
    const char *type, *code;
    bool retry;
} failures[] = {
    {-ENOENT, 404, "not_found_error", "context_not_found", false},
    {-EINVAL, 400, "invalid_request_error", "invalid_value", false},
    {-E2BIG, 400, "invalid_request_error", "context_length_exceeded", false},
    {-ECANCELED, 409, "invalid_request_error", "cancelled", false},
    {-EDQUOT, 429, "rate_limit_error", "context_quota_exceeded", false},
    {-EAGAIN, 503, "server_error", "queue_full", true},
    {-ESHUTDOWN, 503, "server_error", "shutting_down", false},
    {-ENOSPC, 507, "server_error", "insufficient_storage", false},
    {-EROFS, 500, "server_error", "read_only_storage", false},
    {-EIO, 500, "server_error", "storage_error", false},
    {-ENOMEM, 500, "server_error", "out_of_memory", false},
};
static const struct failure failure_other = {0, 500, "server_error", "internal_error", false};

static const struct failure *failure_find(int code)
{
    for (size_t i = 0; i < sizeof failures / sizeof *failures; i++)
        if (failures[i].error == code)
            return &failures[i];
    return &failure_other;
}

json_t *answer_string(const char *text, size_t bytes)
{
    if (utf8_valid(text, bytes))
        return json_stringn_nocheck(text, bytes);
    char *copy = mem_alloc(bytes);
    if (!copy)
        return NULL;
    for (size_t i = 0; i < bytes; i++)
        copy[i] = (char)((unsigned char)text[i] < 0x80 ? text[i] : '?');
    json_t *string = json_stringn_nocheck(copy, bytes);
    mem_free(copy);
    return string;
}

json_t *answer_number(double value)
{
    return json_real(isfinite(value) && fabs(value) < 1e15 ? round(value * 1000) / 1000 : 0);
}

static void clear(struct answer *answer)
{
    mem_free(answer->text);
    if (answer->stream)
        call_stream_destroy(answer->stream);
    *answer = (struct answer){.close = answer->close};
}

void answer_deinit(struct answer *answer)
{
    clear(answer);
}

struct dump {
    struct buffer *out;
    bool failed; /* kept here: jansson goes on after some failures of its callback */
};

static int dump_add(const char *text, size_t bytes, void *user)
{
    struct dump *dump = user;
    if (dump->failed || buffer_append(dump->out, text, bytes) < 0)
        dump->failed = true;
    return dump->failed ? -1 : 0;
}

int answer_dump(json_t *value, struct buffer *out)
{
    struct dump dump = {.out = out, .failed = !value};
    size_t length = out->length;
    if (value && json_dump_callback(value, dump_add, &dump, JSON_FLAGS) < 0)
        dump.failed = true;
    json_decref(value);
    if (!dump.failed)
        return 0;
    if (out->data)
        out->data[length] = 0;
    out->length = length;
    return -ENOMEM;
}

void answer_json(struct answer *answer, unsigned status, json_t *value)
{
    struct buffer text = {0};
    clear(answer);
    answer->content_type = "application/json";
    if (answer_dump(value, &text) < 0 || buffer_append_text(&text, "\n") < 0) {
        buffer_deinit(&text);
        status = 500;
    }
    answer->status = status;
    answer->text = text.data;
    answer->text_bytes = text.length;
}

void answer_text(struct answer *answer, const char *content_type, struct buffer *text)
{
    clear(answer);
    answer->status = text->data ? 200 : 500;
    answer->content_type = text->data ? content_type : "application/json";
    answer->text = text->data;
    answer->text_bytes = text->length;
    *text = (struct buffer){0};
}

static json_t *error_json(const char *type, const char *code, const char *message)
{
    return json_pack("{s:{s:o,s:s,s:s}}", "error", "message", answer_string(message, strlen(message)), "type",
                     type, "code", code);
}

void answer_error(struct answer *answer, unsigned status, const char *type, const char *code,
                  const char *format, ...)
{
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    answer_json(answer, status, error_json(type, code, message));
}

void answer_invalid(struct answer *answer, const struct error *error)
{
    if (error->code == -ENOMEM)
        answer_json(answer, 500, NULL);
    else
        answer_error(answer, 400, "invalid_request_error", "invalid_body", "%s", error->text);
}

json_t *answer_failure_json(const struct error *error)
{
    const struct failure *failure = failure_find(error->code);
    return error_json(failure->type, failure->code, *error->text ? error->text : strerror(-error->code));
}

void answer_failure(struct answer *answer, const struct error *error)
{
    const struct failure *failure = failure_find(error->code);
    answer_json(answer, failure->status, answer_failure_json(error));
    answer->retry = failure->retry;
}
