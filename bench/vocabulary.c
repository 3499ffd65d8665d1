/* See vocabulary.h. */
#include "vocabulary.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3 };

static const char *const merges[][2] = {{"Ġ", "t"},  {"h", "e"},   {"i", "n"},  {"Ġ", "a"}, {"r", "e"},
                                        {"o", "n"},  {"Ġt", "he"}, {"e", "r"},  {"Ġ", "s"}, {"a", "t"},
                                        {"Ġ", "w"},  {"Ġ", "o"},   {"o", "u"},  {"i", "s"}, {"Ġ", "c"},
                                        {"Ġa", "n"}, {"l", "l"},   {"in", "g"}, {"Ġ", "b"}, {"Ġ", "Ġ"}};
static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
static const char chatml[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

enum {
    MERGES = sizeof merges / sizeof *merges,
    SPECIALS = sizeof specials / sizeof *specials,
};
_Static_assert(256 + MERGES + SPECIALS <= VOCABULARY_MIN, "the smallest vocabulary holds them all");

/* The printable character that stands for a byte in byte-level BPE: itself, or the next from U+0100 on. */
static uint32_t byte_character(unsigned byte)
{
    uint32_t shifted = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte)
            return printable ? byte : shifted;
        shifted += !printable;
    }
    return 0;
}

static void put_tokens(struct gguf_write *write, uint32_t size)
{
    char text[32];
    gguf_write_array(write, "tokenizer.ggml.tokens", GGUF_STRING, size);
    for (unsigned byte = 0; byte < 256; byte++) {
        char character[4];
        gguf_write_string(write, character, utf8_encode(byte_character(byte), character));
    }
    for (size_t i = 0; i < MERGES; i++) {
        int n = snprintf(text, sizeof text, "%s%s", merges[i][0], merges[i][1]);
        gguf_write_string(write, text, (size_t)n);
    }
    for (uint32_t i = 256 + MERGES; i < size - SPECIALS; i++) {
        int n = snprintf(text, sizeof text, "filler:%u", (unsigned)i);
        gguf_write_string(write, text, (size_t)n);
    }
    for (size_t i = 0; i < SPECIALS; i++)
        gguf_write_string(write, specials[i], strlen(specials[i]));
}

void vocabulary_synthetic(struct gguf_write *write, const char *pre, uint32_t size, bool bos)
{
    char text[32];
    gguf_write_text(write, "tokenizer.ggml.model", "gpt2");
    gguf_write_text(write, "tokenizer.ggml.pre", pre);
    put_tokens(write, size);
    gguf_write_array(write, "tokenizer.ggml.token_type", GGUF_I32, size);
    for (uint32_t i = 0; i < size; i++)
        gguf_write_element(write, &(int32_t){i < size - SPECIALS ? TOKEN_NORMAL : TOKEN_CONTROL}, 4);
    gguf_write_array(write, "tokenizer.ggml.merges", GGUF_STRING, MERGES);
    for (size_t i = 0; i < MERGES; i++) {
        int n = snprintf(text, sizeof text, "%s %s", merges[i][0], merges[i][1]);
        gguf_write_string(write, text, (size_t)n);
    }
    gguf_write_u32(write, "tokenizer.ggml.bos_token_id", size - 3);
    gguf_write_u32(write, "tokenizer.ggml.eos_token_id", size - 1);
    gguf_write_u32(write, "tokenizer.ggml.padding_token_id", size - 3);
    gguf_write_bool(write, "tokenizer.ggml.add_bos_token", bos);
    gguf_write_text(write, "tokenizer.chat_template", chatml);
}

int vocabulary_copy(struct gguf_write *write, const struct gguf *from, uint32_t *size, struct error *error)
{
    static const char prefix[] = "tokenizer.";
    struct gguf_array tokens;
    if (gguf_get_array(from, "tokenizer.ggml.tokens", &tokens) < 0 || tokens.type != GGUF_STRING)
        return error_set(error, -EINVAL, "no vocabulary in it (tokenizer.ggml.tokens)");
    if (tokens.count == 0 || tokens.count > INT32_MAX)
        return error_set(error, -EINVAL, "vocabulary of %zu tokens", tokens.count);
    *size = (uint32_t)tokens.count;
    for (size_t i = 0; i < gguf_entry_count(from); i++) {
        struct gguf_entry entry = gguf_entry_at(from, i);
        if (entry.key.length > sizeof prefix - 1 && memcmp(entry.key.data, prefix, sizeof prefix - 1) == 0)
            gguf_write_entry(write, &entry);
    }
    return 0;
}
