/* From ids back to text. */
#include <errno.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer_internal.h"

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* "<0x41>" is the byte 0x41; what is not written so stands for itself. */
static int append_byte(struct token_text text, struct buffer *out)
{
    if (text.length == 6 && memcmp(text.data, "<0x", 3) == 0 && text.data[5] == '>') {
        int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
        if (high >= 0 && low >= 0)
            return buffer_append(out, &(char){(char)(high << 4 | low)}, 1);
    }
    return buffer_append(out, text.data, text.length);
}

/* Letters of the byte-level alphabet are bytes; other characters, which no such vocabulary should have, stand
 * for themselves. */
static int append_letters(struct token_text text, struct buffer *out)
{
    if (buffer_reserve(out, text.length) < 0)
        return -ENOMEM;
    for (size_t i = 0, n; i < text.length; i += n) {
        uint32_t c;
        n = utf8_decode(text.data + i, text.length - i, &c);
        n = n ? n : 1;
        int byte = bpe_letter_byte(c);
        if (byte >= 0)
            buffer_append(out, &(char){(char)byte}, 1);
        else
            buffer_append(out, text.data + i, n);
    }
    return 0;
}

/* U+2581 is a space. */
static int append_spaced(struct token_text text, struct buffer *out)
{
    if (buffer_reserve(out, text.length) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < text.length;) {
        bool space = text.length - i >= 3 && memcmp(text.data + i, "\xe2\x96\x81", 3) == 0;
        buffer_append(out, space ? " " : text.data + i, 1);
        i += space ? 3 : 1;
    }
    return 0;
}

int tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, bool special, struct buffer *out)
{
    if (id < 0 || (uint32_t)id >= tokenizer->size)
        return 0;
    struct token_text text = tokenizer->map.texts[id];
    switch (tokenizer_type(tokenizer, id)) {
    case TOKEN_CONTROL:
    case TOKEN_UNKNOWN:
        return special ? buffer_append(out, text.data, text.length) : 0;
    case TOKEN_USER_DEFINED:
        return buffer_append(out, text.data, text.length);
    case TOKEN_BYTE:
        return append_byte(text, out);
    default:
        return tokenizer->model == TOKENIZER_BPE ? append_letters(text, out) : append_spaced(text, out);
    }
}

/* Encoding puts a space where text follows nothing or a special token, so decoding takes it off there. */
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, bool special,
                     struct buffer *out)
{
    size_t before = out->length;
    bool start = tokenizer->space_prefix;
    for (size_t i = 0; i < count; i++) {
        size_t at = out->length;
        if (tokenizer_piece(tokenizer, ids[i], special, out) < 0) {
            if (out->data)
                out->data[out->length = before] = 0;
            return -ENOMEM;
        }
        if (ids[i] < 0 || (uint32_t)ids[i] >= tokenizer->size)
            continue;
        enum token_type type = tokenizer_type(tokenizer, ids[i]);
        if (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_USER_DEFINED) {
            start = tokenizer->space_prefix;
        } else {
            if (start && out->length > at && out->data[at] == ' ') {
                memmove(out->data + at, out->data + at + 1, out->length - at);
                out->length--;
            }
            start = false;
        }
    }
    return 0;
}

/* Moves what is whole from pending to out, whose room is there already; at the end also what is cut short.
 * Each byte that is part of no character becomes U+FFFD. */
static void release(struct buffer *pending, bool end, struct buffer *out)
{
    size_t at = 0;
    while (at < pending->length) {
        uint32_t c;
        size_t n = utf8_decode(pending->data + at, pending->length - at, &c);
        if (n == 0 && !end)
            break;
        if (n == 0 || (n == 1 && (unsigned char)pending->data[at] >= 0x80)) {
            buffer_append(out, "\xef\xbf\xbd", 3);
            n = 1;
        } else {
            buffer_append(out, pending->data + at, n);
        }
        at += n;
    }
    if (at > 0) {
        memmove(pending->data, pending->data + at, pending->length - at);
        pending->length -= at;
        pending->data[pending->length] = 0;
    }
}

int detokenizer_push(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, int32_t id,
                     struct buffer *out)
{
    struct buffer *pending = &detokenizer->pending;
    size_t before = pending->length;
    if (tokenizer_piece(tokenizer, id, false, pending) < 0)
        return -ENOMEM;
    if (buffer_reserve(out, 3 * pending->length) < 0) {
        if (pending->data)
            pending->data[pending->length = before] = 0;
        return -ENOMEM;
    }
    release(pending, false, out);
    return 0;
}

int detokenizer_flush(struct detokenizer *detokenizer, struct buffer *out)
{
    if (buffer_reserve(out, 3 * detokenizer->pending.length) < 0)
        return -ENOMEM;
    release(&detokenizer->pending, true, out);
    return 0;
}

void detokenizer_deinit(struct detokenizer *detokenizer)
{
    buffer_deinit(&detokenizer->pending);
}
