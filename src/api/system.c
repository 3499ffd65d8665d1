/* The daemon about itself: health, status, metrics, the model, its tokenizer. */
#include <inttypes.h>
#include <string.h>

#include "api/body.h"
#include "api/routes.h"
#include "base/utf8.h"
#include "service/service.h"

void route_health(struct exchange *exchange)
{
    bool ready = exchange->service != NULL;
    answer_json(&exchange->answer, ready ? 200 : 503, json_pack("{s:s}", "status", ready ? "ok" : "loading"));
    exchange->answer.retry = !ready;
}

/* ---- status and metrics ---- */

static json_t *model_json(const struct engine_model *model, uint32_t context_length)
{
    return json_pack("{s:o,s:s,s:s,s:I,s:I,s:I,s:I}", "name", answer_string(model->name, strlen(model->name)),
                     "architecture", model->architecture, "type", model->type, "parameters",
                     (json_int_t)model->parameters, "weights_bytes", (json_int_t)model->weights_bytes,
                     "context_length", (json_int_t)context_length, "trained_context_length",
                     (json_int_t)model->context_length);
}

static json_t *levels_json(uint8_t levels)
{
    static const uint8_t bits[] = {16, 8, 4, 3, 2};
    json_t *array = json_array();
    for (size_t i = 0; i < sizeof bits && array; i++)
        if (levels >> i & 1 && json_array_append_new(array, json_integer(bits[i])) < 0) {
            json_decref(array);
            array = NULL;
        }
    return array;
}

static json_t *kv_json(const struct service_status *s)
{
    return json_pack("{s:I,s:I,s:b,s:I,s:I,s:s,s:s,s:I,s:o,s:o}", "budget_bytes",
                     (json_int_t)s->kv_budget_bytes, "allowed_bytes", (json_int_t)s->kv_allowed_bytes,
                     "pressure", s->pressure, "resident_bytes", (json_int_t)s->kv_resident_bytes,
                     "stored_bytes", (json_int_t)s->stored_bytes, "policy", s->policy, "evict", s->evict,
                     "level", (json_int_t)s->kv_level, "levels", levels_json(s->kv_levels), "ratio",
                     s->kv_ratio > 0 ? answer_number(s->kv_ratio) : json_null());
}

void route_status(struct exchange *exchange)
{
    struct service_status s;
    service_status(exchange->service, &s);
    answer_json(
        &exchange->answer, 200,
        json_pack("{s:s,s:I,s:o,s:o,s:{s:I,s:I,s:I},s:{s:I,s:I,s:I,s:I,s:I},s:{s:I,s:I,s:I},s:I,s:s}",
                  "version", exchange->version, "uptime_ms", (json_int_t)s.uptime_ms, "model",
                  model_json(service_model(exchange->service), s.context_length), "kv", kv_json(&s),
                  "contexts", "total", (json_int_t)s.contexts, "resident", (json_int_t)s.contexts_resident,
                  "per_app_limit", (json_int_t)s.contexts_per_app, "calls", "running",
                  (json_int_t)s.calls_running, "waiting", (json_int_t)s.calls_waiting, "total",
                  (json_int_t)s.calls_total, "failed", (json_int_t)s.calls_failed, "cancelled",
                  (json_int_t)s.calls_cancelled, "tokens", "prompt", (json_int_t)s.prompt_tokens_total,
                  "reply", (json_int_t)s.reply_tokens_total, "recomputed",
                  (json_int_t)s.recomputed_tokens_total, "threads", (json_int_t)s.threads, "isa", s.isa));
}

/* What all apps' memory is, is not for any of them to say. */
void route_budget(struct exchange *exchange)
{
    struct service_status s;
    struct error error = {0};
    uint64_t bytes = 0;
    json_t *json = exchange_json(exchange);
    if (!json)
        return;
    if (!exchange->administrator) {
        answer_error(&exchange->answer, 403, "permission_error", "permission_denied",
                     "only root, the daemon's own user and the token's holder may change the budget");
    } else if (body_read_budget(json, &bytes, &error) < 0) {
        answer_invalid(&exchange->answer, &error);
    } else if (service_set_budget(exchange->service, bytes, &error) < 0) {
        answer_failure(&exchange->answer, &error);
    } else {
        service_status(exchange->service, &s);
        answer_json(&exchange->answer, 200, kv_json(&s));
    }
    json_decref(json);
}

struct metric {
    const char *name, *type, *help;
    double value;
};

static int write_metric(struct buffer *text, const struct metric *metric)
{
    return buffer_printf(text, "# HELP %s %s\n# TYPE %s %s\n%s %.16g\n", metric->name, metric->help,
                         metric->name, metric->type, metric->name, metric->value);
}

void route_metrics(struct exchange *exchange)
{
    struct service_status s;
    struct buffer text = {0};
    service_status(exchange->service, &s);
    const struct metric metrics[] = {
        {"llms_uptime_seconds", "gauge", "Time since the daemon opened its model.",
         (double)s.uptime_ms / 1e3},
        {"llms_contexts", "gauge", "Contexts of all apps.", (double)s.contexts},
        {"llms_contexts_resident", "gauge", "Contexts with KV in memory.", (double)s.contexts_resident},
        {"llms_kv_budget_bytes", "gauge", "Memory KV may take.", (double)s.kv_budget_bytes},
        {"llms_kv_allowed_bytes", "gauge", "What memory pressure leaves of the budget.",
         (double)s.kv_allowed_bytes},
        {"llms_kv_resident_bytes", "gauge", "Memory KV takes.", (double)s.kv_resident_bytes},
        {"llms_kv_stored_bytes", "gauge", "Chunk files on flash.", (double)s.stored_bytes},
        {"llms_kv_evicted_bytes_total", "counter", "KV put out of memory.", (double)s.evicted_bytes_total},
        {"llms_calls_running", "gauge", "Calls being worked on.", (double)s.calls_running},
        {"llms_calls_waiting", "gauge", "Calls waiting for their turn.", (double)s.calls_waiting},
        {"llms_calls_total", "counter", "Calls that ended, however.", (double)s.calls_total},
        {"llms_calls_failed_total", "counter", "Calls that failed.", (double)s.calls_failed},
        {"llms_calls_cancelled_total", "counter", "Calls that were cancelled.", (double)s.calls_cancelled},
        {"llms_prompt_tokens_total", "counter", "Prompt tokens processed.", (double)s.prompt_tokens_total},
        {"llms_reply_tokens_total", "counter", "Reply tokens generated.", (double)s.reply_tokens_total},
        {"llms_recomputed_tokens_total", "counter", "Tokens whose KV was computed again.",
         (double)s.recomputed_tokens_total},
        {"llms_chunks_resident_total", "counter", "Chunks that calls found in memory.",
         (double)s.chunks_resident_total},
        {"llms_chunks_loaded_total", "counter", "Chunks that calls had read from storage.",
         (double)s.chunks_loaded_total},
        {"llms_chunks_recomputed_total", "counter", "Chunks that calls had computed again.",
         (double)s.chunks_recomputed_total},
        {"llms_switch_seconds_total", "counter", "Time spent making contexts usable.",
         s.switch_ms_total / 1e3},
        {"llms_stall_seconds_total", "counter", "Of it, time spent waiting for reads.",
         s.stall_ms_total / 1e3},
        {"llms_first_token_seconds_total", "counter",
         "Time from a call's arrival to its first token, summed.", s.ttft_ms_total / 1e3},
        {"llms_generate_seconds_total", "counter", "Time spent generating after the first token.",
         s.generate_ms_total / 1e3},
        {"llms_threads", "gauge", "Compute threads.", (double)s.threads},
    };
    int code = buffer_printf(&text,
                             "# HELP llms_build_info The daemon's version and instruction set.\n"
                             "# TYPE llms_build_info gauge\n"
                             "llms_build_info{version=\"%s\",isa=\"%s\"} 1\n",
                             exchange->version, s.isa);
    for (size_t i = 0; i < sizeof metrics / sizeof *metrics && code == 0; i++)
        code = write_metric(&text, &metrics[i]);
    if (code < 0)
        answer_json(&exchange->answer, 500, NULL);
    else
        answer_text(&exchange->answer, "text/plain; version=0.0.4; charset=utf-8", &text);
    buffer_deinit(&text);
}

/* ---- the model and its tokenizer ---- */

void route_models(struct exchange *exchange)
{
    struct service_status s;
    const struct engine_model *model = service_model(exchange->service);
    service_status(exchange->service, &s);
    answer_json(&exchange->answer, 200,
                json_pack("{s:s,s:[{s:o,s:s,s:I,s:s,s:s,s:s,s:I,s:I}]}", "object", "list", "data", "id",
                          answer_string(model->name, strlen(model->name)), "object", "model", "created",
                          (json_int_t)exchange->started_s, "owned_by", "llms", "architecture",
                          model->architecture, "type", model->type, "parameters",
                          (json_int_t)model->parameters, "context_length", (json_int_t)s.context_length));
}

static json_t *ids_json(const struct tokens *tokens)
{
    json_t *ids = json_array();
    for (size_t i = 0; i < tokens->count && ids; i++)
        if (json_array_append_new(ids, json_integer(tokens->ids[i])) < 0) {
            json_decref(ids);
            ids = NULL;
        }
    return ids;
}

void route_tokenize(struct exchange *exchange)
{
    struct body_tokenize body;
    struct tokens tokens = {0};
    struct error error = {0};
    json_t *json = exchange_json(exchange);
    if (!json)
        return;
    int code = body_read_tokenize(json, &body, &error);
    if (code < 0) {
        answer_invalid(&exchange->answer, &error);
    } else {
        const struct text_span span = {body.text.data, body.text.length, body.special};
        code = tokenizer_encode(service_tokenizer(exchange->service), &span, 1, false, &tokens, &error);
        if (code < 0)
            answer_failure(&exchange->answer, &error);
        else
            answer_json(&exchange->answer, 200, json_pack("{s:o}", "tokens", ids_json(&tokens)));
    }
    tokens_deinit(&tokens);
    json_decref(json);
}

/* Whole characters only: an id may stand for part of one. */
static int detokenize(const struct tokenizer *tokenizer, const struct tokens *tokens, struct buffer *text)
{
    struct buffer bytes = {0};
    int code = tokenizer_decode(tokenizer, tokens->ids, tokens->count, true, &bytes);
    for (size_t at = 0; at < bytes.length && code == 0;) {
        uint32_t codepoint;
        char character[4];
        size_t used = utf8_decode(bytes.data + at, bytes.length - at, &codepoint);
        if (used == 0) {
            codepoint = 0xfffd;
            used = bytes.length - at;
        }
        code = buffer_append(text, character, utf8_encode(codepoint, character));
        at += used;
    }
    buffer_deinit(&bytes);
    return code;
}

void route_detokenize(struct exchange *exchange)
{
    const struct tokenizer *tokenizer = service_tokenizer(exchange->service);
    struct tokens tokens = {0};
    struct buffer text = {0};
    struct error error = {0};
    json_t *json = exchange_json(exchange);
    if (!json)
        return;
    if (body_read_detokenize(json, tokenizer_size(tokenizer), &tokens, &error) < 0)
        answer_invalid(&exchange->answer, &error);
    else if (detokenize(tokenizer, &tokens, &text) < 0)
        answer_json(&exchange->answer, 500, NULL);
    else
        answer_json(&exchange->answer, 200,
                    json_pack("{s:o}", "text", answer_string(text.data ? text.data : "", text.length)));
    tokens_deinit(&tokens);
    buffer_deinit(&text);
    json_decref(json);
}
