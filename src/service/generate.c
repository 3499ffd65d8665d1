/* The reply of a call: sampling token after token, showing text as it becomes whole, and ending it. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "service/service_internal.h"
#include "service/stop.h"

/* Like every text of the journal the reply is NUL-terminated; a NUL that the model makes becomes U+FFFD. */
static int append_text(struct buffer *reply, const char *text, size_t length)
{
    int code = 0;
    while (length && code == 0) {
        size_t n = strnlen(text, length);
        code = buffer_append(reply, text, n);
        if (code == 0 && n < length) {
            code = buffer_append_text(reply, "\xef\xbf\xbd");
            n++;
        }
        text += n;
        length -= n;
    }
    return code;
}

/* Shows what may be shown of the reply. 1: it ended at a stop string, which was cut off. */
static int show(struct turn *turn, bool last)
{
    size_t end = turn->reply.length;
    bool stopped = stop_scan((const char *const *)turn->call->stops, turn->call->stop_count, turn->reply.data,
                             turn->reply.length, turn->delivered, &end);
    if (stopped) {
        turn->reply.length = end;
        turn->reply.data[end] = 0;
    } else if (last) {
        end = turn->reply.length;
    }
    if (end > turn->delivered &&
        call_deliver(turn->call, turn->reply.data + turn->delivered, end - turn->delivered) < 0)
        return error_set(&turn->result->error, -ENOMEM, "out of memory for the reply");
    turn->delivered = end;
    return stopped;
}

/* Adds a sampled token: to the sequence, and its text to the reply. As show. */
static int add_token(struct turn *turn, struct detokenizer *detokenizer, int32_t id)
{
    struct buffer text = {0};
    int code = tokens_append(&turn->context->tokens, id);
    if (code == 0)
        code = detokenizer_push(detokenizer, turn->service->rules.tokenizer, id, &text);
    if (code == 0)
        code = append_text(&turn->reply, text.data, text.length);
    if (code == 0) {
        bool whole = detokenizer->pending.length == 0;
        code = tokens_append(&turn->ends, whole ? (int32_t)turn->reply.length : -1);
    }
    buffer_deinit(&text);
    if (code < 0)
        return error_set(&turn->result->error, code, "out of memory for the reply");
    return show(turn, false);
}

/* The text after the last token: an unfinished character, and what was held back for a stop string. As show.
 */
static int add_rest(struct turn *turn, struct detokenizer *detokenizer)
{
    struct buffer text = {0};
    int code = detokenizer_flush(detokenizer, &text);
    if (code == 0)
        code = append_text(&turn->reply, text.data, text.length);
    buffer_deinit(&text);
    if (code < 0)
        return error_set(&turn->result->error, code, "out of memory for the reply");
    return show(turn, true);
}

/* The reply was cut at a stop string: the sequence keeps the tokens whose text ends before it, and spells
 * what a token shared with the stop string. Their KV is computed with the next prompt. */
static int cut_tokens(struct turn *turn)
{
    struct context *context = turn->context;
    size_t keep = 0, length = 0;
    for (size_t i = 0; i < turn->ends.count; i++)
        if (turn->ends.ids[i] >= 0 && (size_t)turn->ends.ids[i] <= turn->reply.length) {
            keep = i + 1;
            length = (size_t)turn->ends.ids[i];
        }
    context->tokens.count = turn->prompt_end + keep;
    kv_sequence_truncate(&context->sequence, context->tokens.count);
    int code = transcript_spell(turn->service->rules.tokenizer, turn->reply.data + length,
                                turn->reply.length - length, &context->tokens);
    return code < 0 ? error_set(&turn->result->error, code, "out of memory for the reply") : 0;
}

/* One step of the model: the KV of the last token and the logits after it. */
static int step(struct turn *turn)
{
    size_t end = turn->context->tokens.count;
    budget_tend(turn->service);
    int code = parts_reserve(turn, end);
    return code < 0 ? code : turn_compute(turn, end, true);
}

/* Samples until something ends the reply; the finish is in the result. 1: at a stop string. */
static int sample(struct turn *turn, struct sampler *sampler, struct detokenizer *detokenizer)
{
    struct call_result *result = turn->result;
    const struct tokenizer *tokenizer = turn->service->rules.tokenizer;
    uint64_t first_ns = 0;
    for (;;) {
        int code = turn_cancelled(turn);
        if (code < 0)
            return code;
        int32_t id = sampler_pick(sampler, turn->service->logits);
        if (!first_ns) {
            first_ns = clock_ns();
            result->ttft_ms = clock_ms_since(turn->call->arrived_ns);
        }
        result->generate_ms = clock_ms_since(first_ns);
        if (tokenizer_is_end(tokenizer, id)) {
            result->finish = CALL_FINISH_END;
            return 0;
        }
        sampler_accept(sampler, id);
        code = add_token(turn, detokenizer, id);
        result->reply_tokens++;
        if (code != 0)
            return code;
        if (result->reply_tokens == turn->call->max_tokens ||
            turn->context->tokens.count >= turn->service->context_length) {
            result->finish = CALL_FINISH_LENGTH;
            return 0;
        }
        code = step(turn);
        if (code < 0)
            return code;
    }
}

int turn_generate(struct turn *turn)
{
    const struct tokens *tokens = &turn->context->tokens;
    const struct sampler_params *params = &turn->call->sampling;
    struct detokenizer detokenizer = {0};
    struct sampler *sampler = NULL;
    int code = buffer_reserve(&turn->reply, 0); /* an empty reply is text too */
    if (code == 0)
        code = sampler_create(params, tokenizer_size(turn->service->rules.tokenizer), &sampler);
    if (code < 0) {
        error_set(&turn->result->error, code, "out of memory for the reply");
        goto done;
    }
    size_t from = tokens->count > params->repeat_last ? tokens->count - params->repeat_last : 0;
    for (size_t i = from; i < tokens->count; i++)
        sampler_accept(sampler, tokens->ids[i]);
    code = sample(turn, sampler, &detokenizer);
    if (code == 0)
        code = add_rest(turn, &detokenizer);
    if (code == 1) {
        turn->result->finish = CALL_FINISH_STOP;
        code = cut_tokens(turn);
    }
done:
    sampler_destroy(sampler);
    detokenizer_deinit(&detokenizer);
    return code;
}
