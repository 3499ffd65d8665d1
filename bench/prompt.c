/* See prompt.h. */
#include "prompt.h"

#include <errno.h>
#include <string.h>

enum { WORD_MAX = 9, NEAR = 6 };

/* The tokens that the text adds as a prompt. */
static int measure(const struct transcript_rules *rules, bool first, const struct buffer *text,
                   size_t *tokens, struct error *error)
{
    struct tokens ids = {0};
    int code = transcript_prompt(rules, "", 0, first, text->data, text->length, &ids, error);
    *tokens = ids.count;
    tokens_deinit(&ids);
    return code;
}

/* Syllables, so that any vocabulary has pieces for them. */
static int add_word(struct buffer *text, struct random *random)
{
    char word[WORD_MAX + 2];
    size_t length = 0, syllables = 1 + random_below(random, 3);
    if (text->length)
        word[length++] = ' ';
    for (size_t i = 0; i < syllables; i++) {
        word[length++] = "bcdfghklmnprstvw"[random_below(random, 16)];
        word[length++] = "aeiou"[random_below(random, 5)];
        if (random_below(random, 3) == 0)
            word[length++] = "lnrst"[random_below(random, 5)];
    }
    return buffer_append(text, word, length);
}

static void cut(struct buffer *text, size_t length)
{
    text->length = length;
    text->data[length] = 0;
}

/* Appends words until the text is `want` tokens or more; *before: its length without the last ones. */
static int grow(const struct transcript_rules *rules, bool first, size_t want, struct random *random,
                struct buffer *text, size_t *before, size_t *tokens, struct error *error)
{
    int code = 0;
    while (code == 0 && *tokens < want) {
        size_t words = want - *tokens > NEAR ? (want - *tokens) / NEAR : 1;
        *before = text->length;
        for (size_t i = 0; i < words && code == 0; i++)
            code = add_word(text, random);
        if (code == 0)
            code = measure(rules, first, text, tokens, error);
    }
    return code;
}

int prompt_compose(const struct transcript_rules *rules, bool first, size_t want, struct random *random,
                   struct buffer *text, size_t *tokens, struct error *error)
{
    static const char *const fillers[] = {"s", " a", ".", " x", "!", "1"};
    enum { FILLERS = sizeof fillers / sizeof *fillers };
    size_t before = 0;
    buffer_clear(text);
    int code = buffer_append_text(text, "a"); /* no prompt is empty */
    if (code == 0)
        code = measure(rules, first, text, tokens, error);
    if (code == 0)
        code = grow(rules, first, want, random, text, &before, tokens, error);
    if (code == 0 && *tokens > want && before) { /* the last word was too much */
        cut(text, before);
        code = measure(rules, first, text, tokens, error);
    }
    for (size_t i = 0; code == 0 && *tokens < want && i < FILLERS;) {
        size_t length = text->length, with = 0;
        code = buffer_append_text(text, fillers[i]);
        if (code == 0)
            code = measure(rules, first, text, &with, error);
        if (with > want || with <= *tokens) { /* too much, or it went into the token before it */
            cut(text, length);
            i++;
        } else {
            *tokens = with;
        }
    }
    return code == -ENOMEM ? error_set(error, code, "out of memory") : code;
}
