/* Any bytes as text for each kind of vocabulary: never refused, ids inside the vocabulary, no control token
 * from plain text, and (byte-level) the same bytes back. The first byte says which vocabulary and how much
 * of the text is markup; the same bytes are decoded as ids. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "support/vocabulary.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { BYTE_LEVEL = 6, VOCABULARIES };

static struct vocabulary vocabularies[VOCABULARIES];

static void open_all(void)
{
    static const char *const pres[BYTE_LEVEL] = {"gpt-2",  "llama-bpe",    "qwen2",
                                                 "smollm", "deepseek-llm", "default"};
    static const char *const merges[] = {"h e",  "l l", "he ll", "hell o", "\xc4\xa0 \xc4\xa0",
                                         "-o r", "or l"};
    static const struct vocabulary_token others[] = {{"<|im_end|>", TYPE_CONTROL},
                                                     {"<|im", TYPE_CONTROL},
                                                     {"<t>", TYPE_USER_DEFINED},
                                                     {"t>", TYPE_USER_DEFINED},
                                                     {"\n\n", TYPE_USER_DEFINED}};
    static const struct vocabulary_token pieces[] = {{"\xe2\x96\x81", TYPE_NORMAL, -5},
                                                     {"a", TYPE_NORMAL, -4},
                                                     {"\xe2\x96\x81\xe2\x96\x81", TYPE_NORMAL, -1},
                                                     {"<s", TYPE_NORMAL, -2},
                                                     {"<", TYPE_NORMAL, -3},
                                                     {"s", TYPE_NORMAL, -3},
                                                     {">", TYPE_NORMAL, -3},
                                                     {"<t>", TYPE_USER_DEFINED, 0}};
    static struct gguf_build builds[VOCABULARIES];
    for (int i = 0; i < BYTE_LEVEL; i++) {
        vocabulary_bpe(&builds[i], pres[i], merges, 7, others, 5);
        vocabularies[i] = vocabulary_open(&builds[i]);
    }
    vocabulary_spm(&builds[BYTE_LEVEL], pieces, 8);
    gguf_build_string(&builds[BYTE_LEVEL], "general.name", "phi-3");
    vocabularies[BYTE_LEVEL] = vocabulary_open(&builds[BYTE_LEVEL]);
}

static void encode(const struct tokenizer *tokenizer, bool exact, size_t markup, const char *text,
                   size_t length)
{
    struct text_span spans[] = {{text, markup, true}, {text + markup, length - markup, false}};
    struct tokens ids = {0};
    struct buffer back = {0};
    if (tokenizer_encode(tokenizer, spans, 2, length % 2, &ids, NULL) < 0 ||
        tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back) < 0)
        abort();
    for (size_t i = 0; i < ids.count; i++)
        if (ids.ids[i] < 0 || (size_t)ids.ids[i] >= tokenizer_size(tokenizer) ||
            (markup == 0 && !(length % 2) && tokenizer_is_control(tokenizer, ids.ids[i])))
            abort();
    if (exact && (back.length != length || (length && memcmp(back.data, text, length) != 0)))
        abort();
    tokens_deinit(&ids);
    buffer_deinit(&back);
}

static void decode(const struct tokenizer *tokenizer, const uint8_t *data, size_t bytes)
{
    struct detokenizer detokenizer = {0};
    struct buffer out = {0};
    for (; bytes >= 2; data += 2, bytes -= 2)
        if (detokenizer_push(&detokenizer, tokenizer, (int16_t)(data[0] | data[1] << 8), &out) < 0)
            abort();
    if (detokenizer_flush(&detokenizer, &out) < 0 || (out.length && !utf8_valid(out.data, out.length)))
        abort();
    detokenizer_deinit(&detokenizer);
    buffer_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!vocabularies[0].tokenizer)
        open_all();
    if (bytes == 0)
        return 0;
    uint8_t choice = *data++;
    bytes--;
    size_t which = choice % VOCABULARIES;
    const struct tokenizer *tokenizer = vocabularies[which].tokenizer;
    decode(tokenizer, data, bytes);
    encode(tokenizer, which < BYTE_LEVEL, choice < 64 ? 0 : bytes * (choice / 64) / 3, (const char *)data,
           bytes);
    return 0;
}
