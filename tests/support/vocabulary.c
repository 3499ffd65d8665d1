/* See vocabulary.h. */
#include "support/vocabulary.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum { VALUE_U32 = 4, VALUE_I32 = 5, VALUE_F32 = 6, VALUE_STRING = 8, VALUE_ARRAY = 9 };

/* An array whose count is told when it is complete. */
struct list {
    struct buffer items;
    uint64_t count;
};

static void add(struct list *list, const void *data, size_t bytes)
{
    if (buffer_append(&list->items, data, bytes) < 0)
        abort();
    list->count++;
}

static void add_string(struct list *list, const char *text)
{
    uint64_t length = strlen(text);
    if (buffer_append(&list->items, &length, 8) < 0)
        abort();
    add(list, text, length);
}

static void finish(struct gguf_build *build, const char *key, uint32_t type, struct list *list)
{
    gguf_build_key(build, key, VALUE_ARRAY);
    gguf_build_put_u32(build, type);
    gguf_build_put_u64(build, list->count);
    gguf_build_put(build, list->items.data, list->items.length);
    buffer_deinit(&list->items);
}

void vocabulary_letter(unsigned byte, char out[3])
{
    uint32_t letter = byte, others = 256;
    for (unsigned b = 0; b <= byte; b++) {
        bool own = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        letter = own ? b : others;
        others += !own;
    }
    char text[4];
    size_t length = utf8_encode(letter, text);
    memcpy(out, text, length);
    out[length] = 0;
}

static void begin(struct gguf_build *build, const char *model, const char *pre)
{
    gguf_build_string(build, "tokenizer.ggml.model", model);
    if (pre)
        gguf_build_string(build, "tokenizer.ggml.pre", pre);
}

static void add_token(struct list *tokens, struct list *types, const char *text, uint32_t type)
{
    add_string(tokens, text);
    add(types, &type, 4);
}

static void add_letters(struct list *tokens, struct list *types)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char letter[3];
        vocabulary_letter(byte, letter);
        add_token(tokens, types, letter, TYPE_NORMAL);
    }
}

void vocabulary_bpe(struct gguf_build *build, const char *pre, const char *const *merges, size_t merge_count,
                    const struct vocabulary_token *others, size_t other_count)
{
    struct list tokens = {0}, types = {0}, rules = {0};
    begin(build, "gpt2", pre);
    add_letters(&tokens, &types);
    for (size_t i = 0; i < merge_count; i++) {
        const char *rule = merges[i] + (merges[i][0] == '-'), *space = strchr(rule + 1, ' ');
        char joint[64];
        snprintf(joint, sizeof joint, "%.*s%s", (int)(space - rule), rule, space + 1);
        add_string(&rules, rule);
        if (rule == merges[i])
            add_token(&tokens, &types, joint, TYPE_NORMAL);
    }
    for (size_t i = 0; i < other_count; i++)
        add_token(&tokens, &types, others[i].text, others[i].type);
    finish(build, "tokenizer.ggml.tokens", VALUE_STRING, &tokens);
    finish(build, "tokenizer.ggml.token_type", VALUE_I32, &types);
    finish(build, "tokenizer.ggml.merges", VALUE_STRING, &rules);
}

/* A permutation of all pairs: odd multiplier, modulo a power of two. */
uint32_t vocabulary_pair_rank(unsigned x, unsigned y)
{
    return (x * 256 + y) * 40503u % 65536;
}

void vocabulary_pairs(struct gguf_build *build, const char *pre)
{
    struct list tokens = {0}, types = {0}, rules = {0};
    static uint32_t pair_of_rank[65536];
    char left[3], right[3], text[8];
    begin(build, "gpt2", pre);
    add_letters(&tokens, &types);
    for (unsigned pair = 0; pair < 65536; pair++) {
        vocabulary_letter(pair / 256, left);
        vocabulary_letter(pair % 256, right);
        snprintf(text, sizeof text, "%s%s", left, right);
        add_token(&tokens, &types, text, TYPE_NORMAL);
        pair_of_rank[vocabulary_pair_rank(pair / 256, pair % 256)] = pair;
    }
    for (unsigned rank = 0; rank < 65536; rank++) {
        vocabulary_letter(pair_of_rank[rank] / 256, left);
        vocabulary_letter(pair_of_rank[rank] % 256, right);
        snprintf(text, sizeof text, "%s %s", left, right);
        add_string(&rules, text);
    }
    finish(build, "tokenizer.ggml.tokens", VALUE_STRING, &tokens);
    finish(build, "tokenizer.ggml.token_type", VALUE_I32, &types);
    finish(build, "tokenizer.ggml.merges", VALUE_STRING, &rules);
}

void vocabulary_spm(struct gguf_build *build, const struct vocabulary_token *others, size_t other_count)
{
    struct list tokens = {0}, types = {0}, scores = {0};
    static const float zero = 0;
    begin(build, "llama", NULL);
    add_token(&tokens, &types, "<unk>", TYPE_UNKNOWN);
    add_token(&tokens, &types, "<s>", TYPE_CONTROL);
    add_token(&tokens, &types, "</s>", TYPE_CONTROL);
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        add_token(&tokens, &types, name, TYPE_BYTE);
    }
    for (size_t i = 0; i < SPM_OTHERS; i++)
        add(&scores, &zero, 4);
    for (size_t i = 0; i < other_count; i++) {
        add_token(&tokens, &types, others[i].text, others[i].type);
        add(&scores, &others[i].score, 4);
    }
    finish(build, "tokenizer.ggml.tokens", VALUE_STRING, &tokens);
    finish(build, "tokenizer.ggml.token_type", VALUE_I32, &types);
    finish(build, "tokenizer.ggml.scores", VALUE_F32, &scores);
}

static struct vocabulary open_tokenizer(struct gguf *gguf)
{
    struct vocabulary vocabulary = {.gguf = gguf};
    struct error error = {0};
    if (tokenizer_create(gguf, &vocabulary.tokenizer, &error) < 0) {
        fprintf(stderr, "vocabulary: %s\n", error.text);
        abort();
    }
    return vocabulary;
}

struct vocabulary vocabulary_open(struct gguf_build *build)
{
    struct gguf *gguf;
    struct error error = {0};
    const struct buffer *file = gguf_build_finish(build);
    if (gguf_parse(file->data, file->length, &gguf, &error) < 0) {
        fprintf(stderr, "vocabulary: %s\n", error.text);
        abort();
    }
    return open_tokenizer(gguf);
}

struct vocabulary vocabulary_open_file(const char *path)
{
    struct gguf *gguf;
    struct error error = {0};
    if (gguf_open(path, &gguf, &error) < 0) {
        fprintf(stderr, "%s: %s\n", path, error.text);
        abort();
    }
    return open_tokenizer(gguf);
}

void vocabulary_close(struct vocabulary *vocabulary)
{
    tokenizer_destroy(vocabulary->tokenizer);
    gguf_close(vocabulary->gguf);
    *vocabulary = (struct vocabulary){0};
}
