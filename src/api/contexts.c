/* Contexts over HTTP: make, list, show, fork, delete. */
#include <string.h>

#include "api/body.h"
#include "api/calls.h"
#include "api/routes.h"
#include "service/service.h"

static json_t *text_json(const char *text)
{
    return answer_string(text ? text : "", text ? strlen(text) : 0);
}

static json_t *context_json(const struct context_info *info)
{
    const struct journal_context *record = &info->record;
    const char *slash = record->owner ? strchr(record->owner, '/') : NULL;
    return json_pack(
        "{s:s,s:s,s:o,s:s,s:o,s:I,s:I,s:I,s:I,s:I,s:I,s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I},s:I,s:b}", "id",
        record->id, "object", "context", "name", text_json(record->name), "app", slash ? slash + 1 : "",
        "system_prompt", text_json(record->system_prompt), "created_ms", (json_int_t)record->created_ms,
        "used_ms", (json_int_t)record->used_ms, "turns", (json_int_t)record->turn_count, "window_turn",
        (json_int_t)record->window_turn, "tokens", (json_int_t)info->tokens, "tokens_resident",
        (json_int_t)info->tokens_resident, "chunks", "resident", (json_int_t)info->chunks_resident, "stored",
        (json_int_t)info->chunks_stored, "missing", (json_int_t)info->chunks_missing, "level16",
        (json_int_t)info->chunks_level16, "level8", (json_int_t)info->chunks_level8, "level4",
        (json_int_t)info->chunks_level4, "level3", (json_int_t)info->chunks_level3, "level2",
        (json_int_t)info->chunks_level2, "bytes_resident", (json_int_t)info->bytes_resident, "busy",
        info->busy);
}

/* Answers with the context that code says was made or found, and releases it. */
static void answer_context(struct exchange *exchange, unsigned status, int code, struct context_info *info,
                           const struct error *error)
{
    if (code < 0) {
        answer_failure(&exchange->answer, error);
        return;
    }
    answer_json(&exchange->answer, status, context_json(info));
    context_info_deinit(info);
}

void route_context_create(struct exchange *exchange)
{
    struct body_context body;
    struct context_info info;
    struct error error = {0};
    json_t *json = exchange_json(exchange);
    if (!json)
        return;
    if (body_read_context(json, &body, &error) < 0) {
        answer_invalid(&exchange->answer, &error);
    } else {
        int code = service_context_new(exchange->service, exchange->owner, body.name.data,
                                       body.system_prompt.data, &info, &error);
        answer_context(exchange, 201, code, &info, &error);
    }
    json_decref(json);
}

/* Takes the call over; a client that goes away takes it back. */
static void answer_fork(struct exchange *exchange, struct call *call)
{
    struct buffer nothing = {0};
    struct context_info info;
    if (!call_wait_done(exchange, call, &nothing)) {
        call_answer_gone(exchange);
    } else {
        const struct call_result *result = call_result(call);
        if (result->code >= 0)
            service_forked(exchange->service, call, &info);
        answer_context(exchange, 201, result->code, &info, &result->error);
    }
    buffer_deinit(&nothing);
    call_release(call);
}

void route_context_fork(struct exchange *exchange)
{
    struct body_context body;
    struct call *call;
    struct error error = {0};
    int code;
    json_t *json = exchange_json(exchange);
    if (!json)
        return;
    if (body_read_fork(json, &body, &error) < 0) {
        answer_invalid(&exchange->answer, &error);
    } else {
        code = service_fork_start(exchange->service, exchange->owner, exchange->match.argument,
                                  body.name.data, &call, &error);
        if (code < 0)
            answer_failure(&exchange->answer, &error);
        else
            answer_fork(exchange, call);
    }
    json_decref(json);
}

void route_context_get(struct exchange *exchange)
{
    struct context_info info;
    struct error error = {0};
    int code =
        service_context_get(exchange->service, exchange->owner, exchange->match.argument, &info, &error);
    answer_context(exchange, 200, code, &info, &error);
}

static json_t *list_json(json_t *data)
{
    return json_pack("{s:s,s:o}", "object", "list", "data", data);
}

/* Appends value to array; false, and the array is released, where memory is short. */
static bool append(json_t *array, json_t *value)
{
    if (value && json_array_append_new(array, value) == 0)
        return true;
    json_decref(array);
    return false;
}

void route_context_list(struct exchange *exchange)
{
    struct context_info *infos;
    size_t count;
    struct error error = {0};
    if (service_context_list(exchange->service, exchange->owner, &infos, &count, &error) < 0) {
        answer_failure(&exchange->answer, &error);
        return;
    }
    json_t *data = json_array();
    for (size_t i = 0; i < count && data; i++)
        if (!append(data, context_json(&infos[i])))
            data = NULL;
    answer_json(&exchange->answer, 200, list_json(data));
    context_infos_free(infos, count);
}

static json_t *turn_json(const struct journal_turn *turn)
{
    return json_pack(
        "{s:I,s:o,s:o,s:I,s:I,s:I}", "turn", (json_int_t)turn->ordinal, "prompt", text_json(turn->prompt),
        "reply", text_json(turn->reply), "prompt_tokens", (json_int_t)turn->prompt_tokens, "reply_tokens",
        (json_int_t)(turn->token_count - turn->prompt_tokens), "created_ms", (json_int_t)turn->created_ms);
}

void route_context_turns(struct exchange *exchange)
{
    struct journal_turn *turns;
    size_t count;
    struct error error = {0};
    if (service_context_turns(exchange->service, exchange->owner, exchange->match.argument, &turns, &count,
                              &error) < 0) {
        answer_failure(&exchange->answer, &error);
        return;
    }
    json_t *data = json_array();
    for (size_t i = 0; i < count && data; i++)
        if (!append(data, turn_json(&turns[i])))
            data = NULL;
    answer_json(&exchange->answer, 200, list_json(data));
    journal_turns_free(turns, count);
}

void route_context_delete(struct exchange *exchange)
{
    struct error error = {0};
    const char *id = exchange->match.argument;
    if (service_context_delete(exchange->service, exchange->owner, id, &error) < 0)
        answer_failure(&exchange->answer, &error);
    else
        answer_json(&exchange->answer, 200,
                    json_pack("{s:s,s:s,s:b}", "id", id, "object", "context.deleted", "deleted", 1));
}
