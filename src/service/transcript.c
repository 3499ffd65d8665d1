#include "service/transcript.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

/* Appends the ids of how messages[from..count) are written. begin: they start the sequence. */
static int encode(const struct transcript_rules *rules, const struct chat_message *messages, size_t count,
                  size_t from, bool reply, bool begin, struct tokens *out, struct error *error)
{
    struct chat_text text = {0};
    struct text_span *spans = NULL;
    size_t before = out->count;
    int code = chat_render(rules->chat, messages, count, from, reply, &text);
    if (code < 0) {
        error_set(error, code, code == -ENOMEM ? "out of memory" : "the chat template cannot write this");
        goto done;
    }
    if (text.count == 0)
        goto done; /* nothing to write yet */
    code = chat_text_spans(&text, &spans);
    if (code < 0) {
        error_set(error, code, "out of memory");
        goto done;
    }
    code = tokenizer_encode(rules->tokenizer, spans, text.count, begin, out, error);
    if (code == -ENOMEM)
        error_set(error, code, "out of memory");
done:
    if (code < 0)
        out->count = before;
    mem_free(spans);
    chat_text_deinit(&text);
    return code;
}

static struct chat_message system_message(const char *system_prompt)
{
    return (struct chat_message){CHAT_SYSTEM, system_prompt, strlen(system_prompt)};
}

int transcript_base(const struct transcript_rules *rules, const char *system_prompt, struct tokens *out,
                    struct error *error)
{
    if (!system_prompt[0])
        return 0;
    struct chat_message message = system_message(system_prompt);
    return encode(rules, &message, 1, 0, false, true, out, error);
}

int transcript_prompt(const struct transcript_rules *rules, const char *system_prompt, size_t base_count,
                      bool first, const char *prompt, size_t length, struct tokens *out, struct error *error)
{
    struct chat_message messages[4];
    size_t count = 0, from;
    if (system_prompt[0])
        messages[count++] = system_message(system_prompt);
    if (first) {
        from = base_count ? count : 0;
    } else { /* what they said is written already and no longer matters; that they spoke does */
        messages[count++] = (struct chat_message){CHAT_USER, "", 0};
        messages[count++] = (struct chat_message){CHAT_ASSISTANT, "", 0};
        from = count;
    }
    messages[count++] = (struct chat_message){CHAT_USER, prompt, length};
    return encode(rules, messages, count, from, true, first && base_count == 0, out, error);
}

int transcript_rebuild(const struct transcript_rules *rules, const char *system_prompt,
                       const struct journal_turn *turns, size_t count, struct tokens *out, size_t *base_count,
                       struct error *error)
{
    size_t before = out->count;
    int code = transcript_base(rules, system_prompt, out, error);
    *base_count = out->count - before;
    for (size_t i = 0; code == 0 && i < count; i++) {
        const struct journal_turn *turn = &turns[i];
        size_t skip = 0;
        if (i == 0 && turn->ordinal > 0) { /* it was written as a later turn or for another window */
            code = transcript_prompt(rules, system_prompt, *base_count, true, turn->prompt,
                                     strlen(turn->prompt), out, error);
            skip = turn->prompt_tokens;
        }
        if (code == 0)
            code = tokens_append_all(out, turn->tokens + skip, turn->token_count - skip);
        if (code == -ENOMEM)
            error_set(error, code, "out of memory");
    }
    if (code < 0)
        out->count = before;
    return code;
}

/* The token with the longest piece that text begins with; -1: none. */
static int longest_piece(const struct tokenizer *tokenizer, const char *text, size_t length, int32_t *best,
                         size_t *best_length)
{
    struct buffer piece = {0};
    int code = 0;
    *best = -1;
    *best_length = 0;
    for (size_t id = 0; id < tokenizer_size(tokenizer) && code == 0; id++) {
        buffer_clear(&piece);
        code = tokenizer_piece(tokenizer, (int32_t)id, false, &piece);
        if (code == 0 && piece.length > *best_length && piece.length <= length &&
            memcmp(piece.data, text, piece.length) == 0) {
            *best = (int32_t)id;
            *best_length = piece.length;
        }
    }
    buffer_deinit(&piece);
    return code;
}

int transcript_spell(const struct tokenizer *tokenizer, const char *text, size_t length, struct tokens *out)
{
    size_t before = out->count;
    int code = 0;
    while (length && code == 0) {
        int32_t id;
        size_t n;
        code = longest_piece(tokenizer, text, length, &id, &n);
        if (code == 0 && id < 0)
            break;
        if (code == 0)
            code = tokens_append(out, id);
        text += n;
        length -= n;
    }
    if (code < 0)
        out->count = before;
    return code;
}

size_t transcript_slide(const size_t *turn_tokens, size_t count, size_t base, size_t prompt, size_t reserve,
                        size_t limit)
{
    size_t total = base + prompt, drop = 0;
    for (size_t i = 0; i < count; i++)
        total += turn_tokens[i];
    while (drop < count && total + reserve > limit)
        total -= turn_tokens[drop++];
    if (drop > 0)
        while (drop + 1 < count && total > limit / 8 * 5)
            total -= turn_tokens[drop++];
    return drop;
}

size_t transcript_reserve(uint32_t max_tokens, size_t base, size_t prompt, size_t limit)
{
    enum { OPEN_MOST = 512 };
    size_t wish = max_tokens, most = limit / 2;
    if (max_tokens == 0)
        wish = limit / 4 < OPEN_MOST ? limit / 4 : OPEN_MOST;
    /* beside a long prompt, half of what is left: not all old turns go for the sake of a long reply */
    size_t left = base + prompt < limit ? limit - base - prompt : 0;
    if (most > left / 2)
        most = left / 2;
    if (wish > most)
        wish = most;
    return wish ? wish : 1;
}

int transcript_vocabulary(const struct tokenizer *tokenizer, struct buffer *out)
{
    struct buffer piece = {0};
    size_t size = tokenizer_size(tokenizer);
    uint64_t hash = size;
    int code = 0;
    for (size_t id = 0; id < size && code == 0; id++) {
        buffer_clear(&piece);
        code = tokenizer_piece(tokenizer, (int32_t)id, true, &piece);
        hash = hash_bytes(piece.length ? piece.data : "", piece.length, hash);
    }
    if (code == 0)
        code = buffer_printf(out, "%zu/%016" PRIx64, size, hash);
    buffer_deinit(&piece);
    return code;
}
