#include "client/outcome.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int outcome_code(const char *code, long status)
{
    static const struct {
        const char *name;
        int code;
    } names[] = {
        {"context_length_exceeded", -E2BIG},
        {"context_quota_exceeded", -EDQUOT},
        {"cancelled", -ECANCELED},
        {"queue_full", -EAGAIN},
        {"loading", -EAGAIN},
        {"shutting_down", -ESHUTDOWN},
        /* Inside a stream there is no status left to tell these by: */
        {"context_not_found", -ENOENT},
        {"invalid_value", -EINVAL},
        {"insufficient_storage", -ENOSPC},
    };
    static const struct {
        int status, code;
    } statuses[] = {
        {400, -EINVAL},    {401, -EACCES},   {403, -EACCES}, {404, -ENOENT}, {405, -EINVAL},
        {409, -ECANCELED}, {413, -EMSGSIZE}, {429, -EDQUOT}, {503, -EAGAIN}, {507, -ENOSPC},
    };
    for (size_t i = 0; code && i < sizeof names / sizeof *names; i++)
        if (strcmp(code, names[i].name) == 0)
            return names[i].code;
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (status == statuses[i].status)
            return statuses[i].code;
    return -EIO;
}

int outcome_error(const json_t *document, long status, struct error *error)
{
    const json_t *object = json_object_get(document, "error");
    const char *message = json_string_value(json_object_get(object, "message"));
    int code = outcome_code(json_string_value(json_object_get(object, "code")), status);
    if (message && *message)
        return error_set(error, code, "%s", message);
    if (status)
        return error_set(error, code, "the daemon answered with status %ld and no reason", status);
    return error_set(error, code, "the daemon gave up in the middle and gave no reason");
}

static uint64_t whole(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));
    return value > 0 ? (uint64_t)value : 0;
}

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

void outcome_result(const json_t *call, struct llms_call_result *result)
{
    const json_t *usage = json_object_get(call, "usage"), *timings = json_object_get(call, "timings");
    const char *finish = json_string_value(json_object_get(call, "finish"));
    *result = (struct llms_call_result){
        .prompt_tokens = whole(usage, "prompt_tokens"),
        .reply_tokens = whole(usage, "completion_tokens"),
        .cached_tokens = whole(usage, "cached_tokens"),
        .context_tokens = whole(usage, "context_tokens"),
        .turns_dropped = whole(usage, "turns_dropped"),
        .chunks_resident = whole(timings, "chunks_resident"),
        .chunks_loaded = whole(timings, "chunks_loaded"),
        .chunks_recomputed = whole(timings, "chunks_recomputed"),
        .queue_ms = number(timings, "queue_ms"),
        .switch_ms = number(timings, "switch_ms"),
        .ttft_ms = number(timings, "ttft_ms"),
        .total_ms = number(timings, "total_ms"),
        .prompt_tokens_per_s = number(timings, "prompt_tokens_per_s"),
        .generate_tokens_per_s = number(timings, "generate_tokens_per_s"),
    };
    snprintf(result->finish, sizeof result->finish, "%s", finish ? finish : "");
}
