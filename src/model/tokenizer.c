/* Reading a vocabulary out of a GGUF, and what it says about single tokens.
 *
 * Refuses by name what it does not know, and whatever would make ids ambiguous or lead outside the
 * vocabulary. Where the file is silent, llama.cpp's defaults hold, except that byte-level vocabularies
 * without a BOS or EOS id have none (there the default is a leftover of one model). */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "model/tokenizer_internal.h"

/* Names that end a reply wherever they occur, as llama.cpp has them. Vocabularies often miss to mark them as
 * control tokens, so that is made good here. */
static const char *const end_names[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<eos>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    /* Code models write these when they go on to another file. */
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
};

static int init_model(struct tokenizer *tokenizer, const struct gguf *gguf, struct error *error)
{
    struct gguf_string name;
    if (gguf_get_string(gguf, "tokenizer.ggml.model", &name) < 0)
        return error_set(error, -EINVAL, "the model has no vocabulary (tokenizer.ggml.model)");
    if (name.length == 4 && memcmp(name.data, "gpt2", 4) == 0)
        tokenizer->model = TOKENIZER_BPE;
    else if (name.length == 5 && memcmp(name.data, "llama", 5) == 0)
        tokenizer->model = TOKENIZER_SPM;
    else
        return error_set(error, -EINVAL, "unknown tokenizer '%.*s' (tokenizer.ggml.model)",
                         (int)(name.length < 64 ? name.length : 64), name.data);
    return 0;
}

enum { EMPTY_NAME_BYTES = 24 };

/* Gives tokens without a text a name of their own, as llama.cpp does. */
static int name_empty(struct tokenizer *tokenizer, const struct gguf_array *texts, struct error *error)
{
    size_t empty = 0;
    for (size_t i = 0; i < texts->count; i++)
        empty += texts->strings[i].length == 0;
    if (empty && !(tokenizer->own = mem_calloc(empty, EMPTY_NAME_BYTES)))
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0, k = 0; i < texts->count; i++)
        if (texts->strings[i].length == 0)
            snprintf(tokenizer->own + EMPTY_NAME_BYTES * k++, EMPTY_NAME_BYTES, "[EMPTY_%u]", (unsigned)i);
    return 0;
}

static int init_texts(struct tokenizer *tokenizer, const struct gguf_array *texts, struct error *error)
{
    int status = name_empty(tokenizer, texts, error);
    if (status < 0)
        return status;
    /* The letters of the byte-level alphabet may come behind the tokens. */
    if (token_map_init(&tokenizer->map, tokenizer->size + 256) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    const char *own = tokenizer->own;
    for (size_t i = 0; i < texts->count; i++) {
        const char *data = texts->strings[i].data;
        size_t length = texts->strings[i].length;
        if (length == 0) {
            data = own;
            length = strlen(own);
            own += EMPTY_NAME_BYTES;
        }
        if (length > 65535)
            return error_set(error, -EINVAL, "token %zu of the vocabulary is %zu bytes long", i, length);
        int32_t other = token_map_find(&tokenizer->map, data, length);
        if (other >= 0)
            return error_set(error, -EINVAL, "the vocabulary has '%.*s' twice: tokens %d and %zu",
                             (int)(length < 64 ? length : 64), data, (int)other, i);
        if (token_map_add(&tokenizer->map, data, length) < 0)
            return error_set(error, -ENOMEM, "out of memory");
        if (length > tokenizer->longest)
            tokenizer->longest = (uint32_t)length;
    }
    return 0;
}

/* An array with a number for each token. 1: there; 0: missing; or an error. */
static int get_numbers(const struct tokenizer *tokenizer, const struct gguf *gguf, const char *key,
                       struct gguf_array *array, struct error *error)
{
    int status = gguf_get_array(gguf, key, array);
    if (status == -ENOENT)
        return 0;
    if (status < 0 || array->type == GGUF_STRING || array->type == GGUF_BOOL)
        return error_set(error, -EINVAL, "%s is not an array of numbers", key);
    if (array->count < tokenizer->size)
        return error_set(error, -EINVAL, "%s has %zu numbers for %u tokens", key, array->count,
                         (unsigned)tokenizer->size);
    return 1;
}

static int init_types(struct tokenizer *tokenizer, const struct gguf *gguf, struct error *error)
{
    struct gguf_array types, scores;
    int has_types = get_numbers(tokenizer, gguf, "tokenizer.ggml.token_type", &types, error);
    int has_scores =
        has_types < 0 ? has_types : get_numbers(tokenizer, gguf, "tokenizer.ggml.scores", &scores, error);
    if (has_scores < 0)
        return has_scores;
    tokenizer->flags = mem_calloc(tokenizer->size, sizeof *tokenizer->flags);
    tokenizer->scores = mem_calloc(tokenizer->size, sizeof *tokenizer->scores);
    if (!tokenizer->flags || !tokenizer->scores)
        return error_set(error, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < tokenizer->size; i++) {
        double type = has_types ? gguf_array_number(&types, i) : TOKEN_NORMAL;
        tokenizer->flags[i] = type >= TOKEN_NORMAL && type <= TOKEN_BYTE ? (uint8_t)type : TOKEN_UNDEFINED;
        if (has_scores)
            tokenizer->scores[i] = (float)gguf_array_number(&scores, i);
    }
    return 0;
}

/* The id under a key; else the default where that is inside the vocabulary; else -1. */
static int32_t get_id(const struct tokenizer *tokenizer, const struct gguf *gguf, const char *key,
                      int32_t otherwise)
{
    uint32_t id;
    int status = gguf_get_u32(gguf, key, &id);
    if (status == 0 && id < tokenizer->size)
        return (int32_t)id;
    if (status != -ENOENT)
        log_warning("%s is no token of the vocabulary: ignored", key);
    return otherwise < (int32_t)tokenizer->size ? otherwise : -1;
}

static void mark_end(struct tokenizer *tokenizer, int32_t id, bool control)
{
    if (id < 0)
        return;
    tokenizer->flags[id] |= TOKEN_FLAG_END;
    if (control)
        tokenizer->flags[id] = (uint8_t)((tokenizer->flags[id] & ~TOKEN_FLAG_TYPE) | TOKEN_CONTROL);
}

static void init_ends(struct tokenizer *tokenizer, const struct gguf *gguf)
{
    static const char *const keys[] = {
        "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id",
        "tokenizer.ggml.fim_sep_token_id",
    };
    mark_end(tokenizer, tokenizer->eos, false);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        mark_end(tokenizer, get_id(tokenizer, gguf, keys[i], -1), false);
    for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++)
        mark_end(tokenizer, tokenizer_find(tokenizer, end_names[i]), true);
}

static void init_special_ids(struct tokenizer *tokenizer, const struct gguf *gguf)
{
    bool spm = tokenizer->model == TOKENIZER_SPM;
    tokenizer->bos = get_id(tokenizer, gguf, "tokenizer.ggml.bos_token_id", spm ? 1 : -1);
    tokenizer->eos = get_id(tokenizer, gguf, "tokenizer.ggml.eos_token_id", spm ? 2 : -1);
    tokenizer->unknown = get_id(tokenizer, gguf, "tokenizer.ggml.unknown_token_id", spm ? 0 : -1);
    if (spm)
        tokenizer->add_bos = tokenizer->space_prefix = true;
    gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &tokenizer->add_bos);
    gguf_get_bool(gguf, "tokenizer.ggml.add_eos_token", &tokenizer->add_eos);
    if (spm)
        gguf_get_bool(gguf, "tokenizer.ggml.add_space_prefix", &tokenizer->space_prefix);
    tokenizer->add_bos = tokenizer->add_bos && tokenizer->bos >= 0;
    tokenizer->add_eos = tokenizer->add_eos && tokenizer->eos >= 0;
    init_ends(tokenizer, gguf);
}

/* Phi-3's special tokens swallow the white space behind them; its files do not say so. */
static void init_strip(struct tokenizer *tokenizer, const struct gguf *gguf)
{
    struct gguf_string name;
    if (gguf_get_string(gguf, "general.name", &name) < 0)
        return;
    bool phi3 = false;
    for (size_t i = 0; i + 4 <= name.length; i++)
        phi3 = phi3 || strncasecmp(name.data + i, "phi3", 4) == 0 ||
               (i + 5 <= name.length && strncasecmp(name.data + i, "phi-3", 5) == 0);
    for (uint32_t i = 0; phi3 && i < tokenizer->special_count; i++)
        tokenizer->flags[tokenizer->special[i]] |= TOKEN_FLAG_STRIP;
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < sizeof keep / sizeof *keep; i++) {
        int32_t id = tokenizer_find(tokenizer, keep[i]);
        if (id >= 0)
            tokenizer->flags[id] &= (uint8_t)~TOKEN_FLAG_STRIP;
    }
}

static int init(struct tokenizer *tokenizer, const struct gguf *gguf, struct error *error)
{
    struct gguf_array texts;
    int status = init_model(tokenizer, gguf, error);
    if (status < 0)
        return status;
    if (gguf_get_array(gguf, "tokenizer.ggml.tokens", &texts) < 0 || texts.type != GGUF_STRING)
        return error_set(error, -EINVAL, "the vocabulary has no list of tokens (tokenizer.ggml.tokens)");
    if (texts.count == 0 || texts.count > INT32_MAX / 16)
        return error_set(error, -EINVAL, "the vocabulary has %zu tokens", texts.count);
    tokenizer->size = (uint32_t)texts.count;
    if ((status = init_texts(tokenizer, &texts, error)) < 0 ||
        (status = init_types(tokenizer, gguf, error)) < 0)
        return status;
    if (tokenizer->model == TOKENIZER_BPE && (status = bpe_init(tokenizer, gguf, error)) < 0)
        return status;
    init_special_ids(tokenizer, gguf);
    if (tokenizer->model == TOKENIZER_SPM)
        spm_init(tokenizer);
    if (special_init(tokenizer) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    init_strip(tokenizer, gguf);
    return 0;
}

int tokenizer_create(const struct gguf *gguf, struct tokenizer **out, struct error *error)
{
    struct tokenizer *tokenizer = mem_calloc(1, sizeof *tokenizer);
    if (!tokenizer)
        return error_set(error, -ENOMEM, "out of memory");
    int status = init(tokenizer, gguf, error);
    if (status < 0) {
        tokenizer_destroy(tokenizer);
        return status;
    }
    *out = tokenizer;
    return 0;
}

void tokenizer_destroy(struct tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    bpe_deinit(tokenizer);
    token_map_deinit(&tokenizer->map);
    mem_free(tokenizer->flags);
    mem_free(tokenizer->scores);
    mem_free(tokenizer->own);
    mem_free(tokenizer->special);
    mem_free(tokenizer);
}

size_t tokenizer_size(const struct tokenizer *tokenizer)
{
    return tokenizer->size;
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t tokenizer_eos(const struct tokenizer *tokenizer)
{
    return tokenizer->eos;
}

static bool inside(const struct tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (uint32_t)id < tokenizer->size;
}

bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id)
{
    return inside(tokenizer, id) && (tokenizer->flags[id] & TOKEN_FLAG_END);
}

bool tokenizer_is_control(const struct tokenizer *tokenizer, int32_t id)
{
    return inside(tokenizer, id) && tokenizer_type(tokenizer, id) == TOKEN_CONTROL;
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text)
{
    int32_t id = token_map_find(&tokenizer->map, text, strlen(text));
    return inside(tokenizer, id) ? id : -1;
}
