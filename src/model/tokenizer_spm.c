/* SentencePiece BPE with byte fallback.
 *
 * Text is cut into characters, spaces become U+2581, and neighbours merge wherever their joint text is a
 * token, highest score first. What is no token in the end is spelled in byte tokens, so any bytes can be
 * written. A byte that is no part of valid UTF-8 is a character of its own, so that it cannot swallow the
 * mark of a space behind it (llama.cpp goes by the first byte alone; on valid text that is the same). */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer_internal.h"

static const char space_mark[] = "\xe2\x96\x81";

/* Scores as integers in the opposite order: the highest score is the lowest. */
static int32_t score_order(float score)
{
    int32_t bits;
    if (isnan(score))
        return INT32_MAX;
    score += 0.0f; /* no negative zero */
    memcpy(&bits, &score, sizeof bits);
    if (bits < 0)
        bits ^= 0x7fffffff;
    return ~bits;
}

static bool merge(const struct tokenizer *tokenizer, const char *text, const struct symbol *left,
                  const struct symbol *right, struct bigram *bigram)
{
    uint32_t length = left->length + right->length;
    if (length > tokenizer->longest)
        return false;
    int32_t id = token_map_find(&tokenizer->map, text + left->start, length);
    if (id < 0 || !tokenizer_is_text(tokenizer, id))
        return false;
    bigram->number = id;
    bigram->order = score_order(tokenizer->scores[id]);
    return true;
}

/* Where no token has a space behind something else, words never merge with each other and are merged one by
 * one: the same ids, and heaps that stay small. */
static bool words_part(const struct tokenizer *tokenizer)
{
    for (uint32_t i = 0; i < tokenizer->size; i++) {
        struct token_text text = tokenizer->map.texts[i];
        bool inner = false;
        for (uint32_t k = 0; k < text.length && tokenizer_is_text(tokenizer, (int32_t)i);) {
            bool mark = text.length - k >= 3 && memcmp(text.data + k, space_mark, 3) == 0;
            if (mark && inner)
                return false;
            inner = inner || !mark;
            k += mark ? 3 : 1;
        }
    }
    return true;
}

void spm_init(struct tokenizer *tokenizer)
{
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        int32_t id = token_map_find(&tokenizer->map, name, 6);
        if (id < 0)
            id = token_map_find(&tokenizer->map, &(char){(char)byte}, 1);
        tokenizer->byte_id[byte] = id < 0 ? tokenizer->unknown : id;
    }
    tokenizer->words_part = words_part(tokenizer);
}

static int append_symbol(const struct tokenizer *tokenizer, const char *text, const struct symbol *symbol,
                         struct tokens *out)
{
    if (symbol->number >= 0)
        return tokens_append(out, symbol->number);
    for (uint32_t i = 0; i < symbol->length; i++) {
        int32_t id = tokenizer->byte_id[(unsigned char)text[symbol->start + i]];
        if (id >= 0 && tokens_append(out, id) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* Merges the characters gathered so far, writes the tokens and starts afresh. */
static int finish(const struct tokenizer *tokenizer, struct merger *merger, const char *text,
                  struct tokens *out)
{
    int status = merger_run(merger, tokenizer, text, merge);
    for (int32_t i = merger->count ? 0 : -1; status == 0 && i >= 0; i = merger->symbols[i].next)
        status = append_symbol(tokenizer, text, &merger->symbols[i], out);
    merger->count = 0;
    return status;
}

static int encode_marked(const struct tokenizer *tokenizer, struct merger *merger, const char *text,
                         size_t length, struct tokens *out)
{
    bool after_space = true;
    merger->count = 0;
    for (size_t i = 0, n; i < length; i += n) {
        uint32_t c;
        n = utf8_decode(text + i, length - i, &c);
        n = n ? n : 1;
        bool space = n == 3 && memcmp(text + i, space_mark, 3) == 0;
        if (space && !after_space && tokenizer->words_part && finish(tokenizer, merger, text, out) < 0)
            return -ENOMEM;
        after_space = space;
        int32_t id = token_map_find(&tokenizer->map, text + i, n);
        if (id >= 0 && !tokenizer_is_text(tokenizer, id))
            id = -1;
        if (merger_add(merger, (uint32_t)i, (uint32_t)n, id) < 0)
            return -ENOMEM;
    }
    return finish(tokenizer, merger, text, out);
}

int spm_encode(const struct tokenizer *tokenizer, struct merger *merger, const char *text, size_t length,
               bool after_special, struct tokens *out)
{
    struct buffer marked = {0};
    int status = buffer_reserve(&marked, length + sizeof space_mark);
    if (status == 0 && after_special && tokenizer->space_prefix)
        status = buffer_append(&marked, space_mark, 3);
    for (size_t i = 0, end; status == 0 && i < length; i = end + 1) {
        const char *space = memchr(text + i, ' ', length - i);
        end = space ? (size_t)(space - text) : length;
        status = buffer_append(&marked, text + i, end - i);
        if (status == 0 && space)
            status = buffer_append(&marked, space_mark, 3);
    }
    if (status == 0)
        status = encode_marked(tokenizer, merger, marked.data, marked.length, out);
    buffer_deinit(&marked);
    return status;
}
