/* One call from its turn on: the prompt is appended, sliding if need be; missing KV is recomputed, the prompt
 * is processed, the reply generated (generate.c), and the turn journalled. Only then is the context changed;
 * a call that fails or is cancelled leaves it as it was. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "service/service_internal.h"

int turn_cancelled(struct turn *turn)
{
    int code = atomic_load(&turn->call->cancelled);
    return code ? error_set(&turn->result->error, code, "%s", call_cancel_words(code)) : 0;
}

int turn_compute(struct turn *turn, size_t end, bool logits)
{
    struct kv_sequence *sequence = &turn->context->sequence;
    size_t count = end - sequence->tokens;
    struct engine_batch batch = {
        .sequence = sequence,
        .tokens = turn->context->tokens.ids + sequence->tokens,
        .count = count,
        .logits_from = logits ? count - 1 : count,
        .logits = logits ? turn->service->logits : NULL,
        .cancel = &turn->call->cancel,
        .density_tokens = turn->service->policy->levels.rule == LEVELS_KEEP ? 0 : count,
    };
    int code = engine_forward(turn->service->engine, &batch, &turn->result->error);
    if (code == -ECANCELED)
        return turn_cancelled(turn);
    if (code == 0)
        kv_sequence_advance(sequence, end);
    return code;
}

/* ---- the prompt ---- */

/* Replaces the sequence by `tokens` (taken over), which keeps the window from window_turn on. The KV of what
 * both begin with stays. */
static void slide_to(struct turn *turn, struct tokens *tokens, size_t base_count, size_t before,
                     uint64_t window_turn)
{
    struct context *context = turn->context;
    context->tokens.count = turn->before; /* without the prompt that was appended */
    size_t common = tokens_common(&context->tokens, tokens);
    turn->old_tokens = context->tokens;
    turn->old_base_count = context->base_count;
    turn->slid = true;
    context->tokens = *tokens;
    context->base_count = base_count;
    context->computed = before; /* all that is kept was computed once */
    if (common > before)
        common = before;
    if (context->sequence.tokens > common)
        kv_sequence_truncate(&context->sequence, common);
    turn->before = before;
    turn->window_turn = window_turn;
    turn->result->turns_dropped = window_turn - context->record.window_turn;
}

/* Rebuilds the sequence without the first `drop` of the turns (at least), the prompt behind it. */
static int slide(struct turn *turn, const struct journal_turn *turns, size_t count, size_t drop)
{
    const struct transcript_rules *rules = &turn->service->rules;
    const char *system_prompt = turn->context->record.system_prompt;
    struct error *error = &turn->result->error;
    for (;; drop++) {
        struct tokens tokens = {0};
        size_t base_count = 0;
        int code =
            transcript_rebuild(rules, system_prompt, turns + drop, count - drop, &tokens, &base_count, error);
        size_t before = tokens.count;
        if (code == 0)
            code = transcript_prompt(rules, system_prompt, base_count, drop == count, turn->call->prompt,
                                     turn->call->prompt_length, &tokens, error);
        if (code == 0 && tokens.count < turn->service->context_length) {
            slide_to(turn, &tokens, base_count, before, turn->window_turn + drop);
            return 0;
        }
        if (code == 0 && drop == count)
            code = error_set(error, -E2BIG,
                             "the prompt and the system prompt are %zu tokens, too long for a context of %u",
                             tokens.count, turn->service->context_length);
        tokens_deinit(&tokens);
        if (code < 0)
            return code;
    }
}

/* The context is too full for the prompt that was just appended and its reply: decides what goes. */
static int make_room(struct turn *turn, size_t prompt, size_t reserve)
{
    struct context *context = turn->context;
    struct journal_turn *turns = NULL;
    size_t count = 0, *sizes = NULL;
    int code = journal_turns(turn->service->journal, context->id, turn->window_turn, &turns, &count,
                             &turn->result->error);
    if (code < 0)
        return code;
    sizes = mem_calloc(count, sizeof *sizes);
    if (!sizes) {
        code = error_set(&turn->result->error, -ENOMEM, "out of memory");
        goto done;
    }
    for (size_t i = 0; i < count; i++)
        sizes[i] = turns[i].token_count;
    size_t drop =
        transcript_slide(sizes, count, context->base_count, prompt, reserve, turn->service->context_length);
    if (drop > 0 || context->tokens.count >= turn->service->context_length)
        code = slide(turn, turns, count, drop);
done:
    mem_free(sizes);
    journal_turns_free(turns, count);
    return code;
}

/* Appends the prompt's tokens to the context's. */
static int append_prompt(struct turn *turn)
{
    struct context *context = turn->context;
    struct call *call = turn->call;
    struct error *error = &turn->result->error;
    size_t limit = turn->service->context_length;
    bool first = context->record.turn_count == turn->window_turn;
    int code = transcript_prompt(&turn->service->rules, context->record.system_prompt, context->base_count,
                                 first, call->prompt, call->prompt_length, &context->tokens, error);
    if (code < 0)
        return code;
    size_t prompt = context->tokens.count - turn->before;
    if (prompt == 0)
        return error_set(error, -EINVAL, "the prompt is empty");
    size_t reserve = transcript_reserve(call->max_tokens, context->base_count, prompt, limit);
    if (call->overflow == CALL_REFUSE && context->tokens.count >= limit)
        return error_set(error, -E2BIG, "the context is full: it has %zu tokens, the prompt %zu, and %zu fit",
                         turn->before, prompt, limit);
    if (call->overflow == CALL_SLIDE && context->tokens.count + reserve > limit)
        code = make_room(turn, prompt, reserve);
    turn->prompt_end = context->tokens.count;
    return code;
}

/* ---- restoring ---- */

/* Brings back what is missing and computes what is new up to `end`, in one pass. */
static int restore(struct turn *turn, size_t end, bool logits)
{
    struct context *context = turn->context;
    struct service *service = turn->service;
    size_t have = context->sequence.tokens, once = context->computed > have ? context->computed : have;
    turn->recount = kv_chunks_of(once) - kv_chunks_of(have); /* slid to other positions: computed again */
    int code = parts_restore(turn, end, logits);
    if (code < 0)
        return code;
    size_t again = turn->recomputed_tokens + (once - have);
    turn->result->cached_tokens = once - again;
    pthread_mutex_lock(&service->lock);
    service->status.recomputed_tokens_total += again;
    pthread_mutex_unlock(&service->lock);
    return 0;
}

/* Loads the context and remembers what a failure goes back to. */
static int begin(struct turn *turn)
{
    struct context *context = turn->context;
    int code = context_load(turn->service, context, &turn->result->error);
    if (code < 0)
        return code;
    turn->before = context->tokens.count;
    turn->window_turn = context->record.window_turn;
    turn->old_computed = context->computed;
    residency_enter(turn->service, context);
    return turn_cancelled(turn);
}

/* Whole chunks up to `limit` that others of the owner have already, or that are on flash, are taken over. */
static int begin_shared(struct turn *turn, size_t limit)
{
    int code = share_extend(turn->service, turn->context, limit);
    return code < 0 ? error_set(&turn->result->error, code, "out of memory") : 0;
}

int turn_prepare(struct turn *turn)
{
    struct context *context = turn->context;
    int code = begin(turn);
    if (code == 0)
        code = begin_shared(turn, context->tokens.count);
    if (code == 0)
        code = restore(turn, context->tokens.count, false);
    if (!context->loaded)
        return code;
    if (context->computed < context->sequence.tokens)
        context->computed = context->sequence.tokens;
    turn->result->context_tokens = context->tokens.count;
    turn->result->switch_ms = turn->result->total_ms = clock_ms_since(turn->started_ns);
    residency_settle(turn->service, context);
    return code;
}

/* ---- the end ---- */

/* The context as it was before the call; the KV that still fits it stays. */
static void roll_back(struct turn *turn)
{
    struct context *context = turn->context;
    size_t keep = turn->before;
    for (size_t i = 0; i < context->sequence.chunk_count; i++)
        context->sequence.chunks[i]->locked = false;
    if (turn->slid) {
        keep = tokens_common(&context->tokens, &turn->old_tokens);
        if (keep > turn->before)
            keep = turn->before;
        tokens_deinit(&context->tokens);
        context->tokens = turn->old_tokens;
        context->base_count = turn->old_base_count;
        turn->old_tokens = (struct tokens){0};
    } else {
        context->tokens.count = turn->before;
    }
    kv_sequence_truncate(&context->sequence, keep);
    context->computed =
        turn->old_computed > context->sequence.tokens ? turn->old_computed : context->sequence.tokens;
}

/* Makes the turn durable and then the context's own (invariant 1: the caller is told after this). */
static int settle(struct turn *turn)
{
    struct context *context = turn->context;
    struct journal_turn record = {
        .ordinal = context->record.turn_count,
        .prompt = turn->call->prompt,
        .reply = turn->reply.data,
        .tokens = context->tokens.ids + turn->before,
        .token_count = context->tokens.count - turn->before,
        .prompt_tokens = turn->prompt_end - turn->before,
    };
    int code = journal_turn_append(turn->service->journal, context->id, &record, turn->window_turn,
                                   context->tokens.count, &turn->result->error);
    if (code < 0)
        return code;
    turn->result->turn = context->record.turn_count++;
    turn->result->context_tokens = context->tokens.count;
    context->record.window_turn = turn->window_turn;
    context->record.tokens = context->tokens.count;
    context->computed = context->sequence.tokens;
    return 0;
}

static int run(struct turn *turn)
{
    struct context *context = turn->context;
    int code = append_prompt(turn);
    if (code < 0)
        return code;
    bool fresh = context->record.turn_count == 0; /* the system prompt is new with the first turn */
    code =
        begin_shared(turn, fresh ? turn->prompt_end - 1 : turn->before); /* the last token gives the logits */
    if (code < 0)
        return code;
    turn->result->prompt_tokens = turn->prompt_end - (fresh ? context->computed : turn->before);
    uint64_t start = clock_ns();
    code = restore(turn, turn->prompt_end, true);
    turn->result->prompt_ms = clock_ms_since(start);
    if (code == 0)
        code = turn_generate(turn);
    return code < 0 ? code : settle(turn);
}

int turn_run(struct turn *turn)
{
    int code = begin(turn);
    if (!turn->context->loaded)
        return code;
    if (code == 0)
        code = run(turn);
    if (code < 0)
        roll_back(turn);
    residency_settle(turn->service, turn->context);
    turn->result->total_ms = clock_ms_since(turn->call->arrived_ns);
    tokens_deinit(&turn->old_tokens);
    tokens_deinit(&turn->ends);
    buffer_deinit(&turn->reply);
    return code;
}
