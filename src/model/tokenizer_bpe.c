/* Byte-level BPE: text is split into words by the patterns of a pre-tokenizer, each byte of a word becomes a
 * letter, and neighbours merge in the order of the vocabulary's merge list.
 *
 * The patterns run in PCRE2 one after another, each on the pieces the one before left; what a pattern does
 * not match stays as a piece. They say in plain classes what llama.cpp does by hand or on collapsed text:
 * white space is its set and not PCRE2's, and \z stands for an end without the newline. No pattern backtracks
 * over a run more than once, so long runs cost linear time.
 *
 * Bytes that are not UTF-8 are words of their own. Where the vocabulary has no token for such a byte (some
 * leave out the 13 that never occur in UTF-8) the replacement character U+FFFD is written instead.
 *
 * Compiled patterns are shared by all threads; match data belongs to one call. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <errno.h>
#include <pcre2.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#define SPACE                                                                                                \
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
/* Letters, numbers and punctuation, to stand inside a class. What Unicode 15 and 15.1 added is spelled out,
 * so that ids do not depend on how old the PCRE2 library is. */
#define LETTER                                                                                               \
    "\\p{L}\\x{1123f}\\x{11240}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"               \
    "\\x{13441}-\\x{13446}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}"                    \
    "\\x{1e4d0}-\\x{1e4eb}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define NUMBER "\\p{N}\\x{11f50}-\\x{11f59}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}"
#define PUNCTUATION "\\p{P}\\x{11b00}-\\x{11b09}\\x{11f43}-\\x{11f4f}"
#define TRAILING_SPACE "|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define LINE_SPACE "|[" SPACE "]*[\\r\\n]+" TRAILING_SPACE
#define CONTRACTIONS "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
#define WORDS_GPT2                                                                                           \
    "'(?:[stmd]|re|ve|ll)| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^" SPACE LETTER NUMBER "]+" TRAILING_SPACE
#define WORDS_LLAMA3(DIGITS)                                                                                 \
    CONTRACTIONS "|[^\\r\\n" LETTER NUMBER "]?[" LETTER "]+|" DIGITS "| ?[^" SPACE LETTER NUMBER             \
                 "]+[\\r\\n]*" LINE_SPACE
/* Letters with case, as of the Unicode version the vocabulary was made with. */
#define CASED_LETTERS                                                                                        \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}"          \
    "\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}"   \
    "\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}"          \
    "\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"        \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}"        \
    "\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{"     \
    "1f7d}"                                                                                                  \
    "\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}"                  \
    "\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}"        \
    "\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"           \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}"         \
    "\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}"          \
    "\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}"        \
    "\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}"        \
    "\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}"                   \
    "\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"
/* From U+0800 to U+9FA5 without white space, and Hangul. */
#define CJK                                                                                                  \
    "\\x{800}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"         \
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{9fa5}\\x{ac00}-\\x{d7ff}"

enum { PATTERNS = 6 };

static const char *const words_gpt2[PATTERNS] = {WORDS_GPT2};
static const char *const words_llama3[PATTERNS] = {WORDS_LLAMA3("[" NUMBER "]{1,3}")};
static const char *const words_qwen2[PATTERNS] = {WORDS_LLAMA3("[" NUMBER "]")};
static const char *const words_smollm[PATTERNS] = {"[" NUMBER "]", WORDS_GPT2};
static const char *const words_deepseek[PATTERNS] = {
    "[\\r\\n]",
    "[" SPACE "]?[" CASED_LETTERS "]+",
    "[" SPACE "]?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3001}\\x{3002}]+",
    "(?<![" SPACE "])[" SPACE "]++\\z",
    "[" CJK "]+",
    "[" NUMBER "]+",
};
static const char *const words_default[PATTERNS] = {"[" PUNCTUATION "$+<=>^~|]+", WORDS_GPT2, "[" NUMBER "]+",
                                                    "[0-9]{3}"};

static const struct pre_kind {
    const char *name;
    const char *const *patterns;
    bool ignore_merges, add_bos;
} kinds[] = {
    {"default", words_default},
    {"gpt-2", words_gpt2},
    {"phi-2", words_gpt2},
    {"mpt", words_gpt2},
    {"olmo", words_gpt2},
    {"jais", words_gpt2},
    {"jina-es", words_gpt2},
    {"jina-de", words_gpt2},
    {"jina-v2-es", words_gpt2},
    {"jina-v2-de", words_gpt2},
    {"gigachat", words_gpt2},
    {"a.x-4.0", words_gpt2},
    {"mellum", words_gpt2},
    {"modern-bert", words_gpt2},
    {"exaone4", words_gpt2},
    {"trillion", words_gpt2},
    {"granite-docling", words_gpt2},
    {"llama-bpe", words_llama3, true, true},
    {"llama3", words_llama3, true, true},
    {"llama-v3", words_llama3, true, true},
    {"falcon3", words_llama3, true, true},
    {"falcon-h1", words_llama3, true, true},
    {"pixtral", words_llama3, true, true},
    {"midm-2.0", words_llama3, true, true},
    {"lfm2", words_llama3, true, true},
    {"dbrx", words_llama3},
    {"smaug-bpe", words_llama3},
    {"glm4", words_llama3},
    {"chatglm-bpe", words_llama3},
    {"qwen2", words_qwen2},
    {"deepseek-r1-qwen", words_qwen2},
    {"stablelm2", words_qwen2},
    {"megrez", words_qwen2},
    {"hunyuan", words_qwen2},
    {"solar-open", words_qwen2},
    {"smollm", words_smollm},
    {"starcoder", words_smollm},
    {"refact", words_smollm},
    {"command-r", words_smollm},
    {"codeshell", words_smollm},
    {"exaone", words_smollm},
    {"minerva-7b", words_smollm},
    {"deepseek-llm", words_deepseek},
};

struct pre_tokenizer {
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *codes[PATTERNS];
    size_t count;
};

static void *pcre_alloc(size_t bytes, void *unused)
{
    (void)unused;
    return mem_alloc(bytes);
}

static void pcre_free(void *memory, void *unused)
{
    (void)unused;
    mem_free(memory);
}

/* --- letters --------------------------------------------------------------------------------------------
 * Printable bytes of Latin-1 are their own letters; the others, in order, are U+0100 and up. */

int bpe_letter_byte(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
        return (int)c;
    if (c >= 256 && c <= 288)
        return (int)c - 256;
    if (c >= 289 && c <= 322)
        return (int)c - 289 + 127;
    return c == 323 ? 173 : -1;
}

static uint32_t letter_bytes(const struct tokenizer *tokenizer, unsigned byte)
{
    return (unsigned char)tokenizer->letters[byte][0] < 0x80 ? 1 : 2;
}

/* Numbers the letters; those that are no tokens get numbers behind the vocabulary. */
static int init_letters(struct tokenizer *tokenizer)
{
    for (uint32_t c = 33; c <= 323; c++) {
        int byte = bpe_letter_byte(c);
        if (byte < 0)
            continue;
        char text[4];
        size_t length = utf8_encode(c, text);
        memcpy(tokenizer->letters[byte], text, length);
        int32_t number = token_map_find(&tokenizer->map, text, length);
        if (number < 0)
            number = token_map_add(&tokenizer->map, tokenizer->letters[byte], length);
        if (number < 0)
            return -ENOMEM;
        tokenizer->byte_id[byte] = number;
    }
    return 0;
}

/* --- merge rules ---------------------------------------------------------------------------------------- */

static struct merge_rule *find_rule(const struct tokenizer *tokenizer, uint64_t key)
{
    uint64_t hash = key * 0x9fb21c651e98df25u;
    uint32_t slot = (uint32_t)(hash >> 32) & tokenizer->rule_mask;
    while (tokenizer->rules[slot].key && tokenizer->rules[slot].key != key)
        slot = (slot + 1) & tokenizer->rule_mask;
    return &tokenizer->rules[slot];
}

static uint64_t rule_key(int32_t left, int32_t right)
{
    return ((uint64_t)(uint32_t)left + 1) << 32 | (uint32_t)right;
}

/* The number of a text that occurs in a merge. */
static int32_t intern(struct tokenizer *tokenizer, const char *data, size_t length)
{
    int32_t number = token_map_find(&tokenizer->map, data, length);
    return number >= 0 ? number : token_map_add(&tokenizer->map, data, length);
}

/* The number of left and right together. Almost always it is a token; else its text goes to rule_texts, which
 * is taken when first needed and has room for all that can still come. */
static int32_t intern_joint(struct tokenizer *tokenizer, struct token_text left, struct token_text right,
                            struct buffer *scratch, size_t *own_used, size_t own_bytes)
{
    buffer_clear(scratch);
    if (buffer_append(scratch, left.data, left.length) < 0 ||
        buffer_append(scratch, right.data, right.length) < 0)
        return -ENOMEM;
    int32_t number = token_map_find(&tokenizer->map, scratch->data, scratch->length);
    if (number >= 0)
        return number;
    if (!tokenizer->rule_texts && !(tokenizer->rule_texts = mem_alloc(own_bytes)))
        return -ENOMEM;
    char *text = tokenizer->rule_texts + *own_used;
    memcpy(text, scratch->data, scratch->length);
    *own_used += scratch->length;
    return token_map_add(&tokenizer->map, text, scratch->length);
}

static int add_rules(struct tokenizer *tokenizer, const struct gguf_array *merges, struct buffer *scratch)
{
    size_t own_used = 0, own_bytes = 0;
    for (size_t i = 0; i < merges->count; i++)
        own_bytes += merges->strings[i].length;
    for (size_t i = 0; i < merges->count; i++) {
        struct gguf_string rule = merges->strings[i];
        const char *space = rule.length > 1 ? memchr(rule.data + 1, ' ', rule.length - 1) : NULL;
        if (!space)
            continue;
        struct token_text left = {rule.data, (uint32_t)(space - rule.data)};
        struct token_text right = {space + 1, (uint32_t)(rule.length - left.length - 1)};
        int32_t left_number = intern(tokenizer, left.data, left.length);
        int32_t right_number = left_number < 0 ? -1 : intern(tokenizer, right.data, right.length);
        int32_t result =
            right_number < 0 ? -1 : intern_joint(tokenizer, left, right, scratch, &own_used, own_bytes);
        if (result < 0)
            return -ENOMEM;
        struct merge_rule *slot = find_rule(tokenizer, rule_key(left_number, right_number));
        if (!slot->key)
            *slot = (struct merge_rule){rule_key(left_number, right_number), (int32_t)i, result};
    }
    return 0;
}

static int init_rules(struct tokenizer *tokenizer, const struct gguf *gguf, struct error *error)
{
    struct gguf_array merges;
    if (gguf_get_array(gguf, "tokenizer.ggml.merges", &merges) < 0 || merges.type != GGUF_STRING)
        return error_set(error, -EINVAL, "the vocabulary has no list of merges (tokenizer.ggml.merges)");
    if (merges.count > INT32_MAX / 8)
        return error_set(error, -EINVAL, "the vocabulary has too many merges: %zu", merges.count);
    uint32_t slots = 16;
    while (slots / 2 < merges.count)
        slots *= 2;
    struct buffer scratch = {0};
    int status = -ENOMEM;
    tokenizer->rules = mem_calloc(slots, sizeof *tokenizer->rules);
    tokenizer->rule_mask = slots - 1;
    if (tokenizer->rules && init_letters(tokenizer) == 0)
        status = add_rules(tokenizer, &merges, &scratch);
    buffer_deinit(&scratch);
    return status < 0 ? error_set(error, status, "out of memory") : 0;
}

/* --- words ---------------------------------------------------------------------------------------------- */

static int compile(struct pre_tokenizer *pre, const struct pre_kind *kind, struct error *error)
{
    pcre2_compile_context *context = pcre2_compile_context_create(pre->memory);
    pre->limits = pcre2_match_context_create(pre->memory);
    int status = context && pre->limits ? 0 : -ENOMEM;
    /* No pattern runs away, so the limit that would stop one must not stop a long run of spaces. */
    if (pre->limits)
        pcre2_set_match_limit(pre->limits, UINT32_MAX);
    for (size_t i = 0; status == 0 && i < PATTERNS && kind->patterns[i]; i++) {
        int code;
        size_t at;
        pre->codes[i] = pcre2_compile((PCRE2_SPTR)kind->patterns[i], PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code,
                                      &at, context);
        if (!pre->codes[i])
            status =
                code == PCRE2_ERROR_HEAP_FAILED
                    ? -ENOMEM
                    : error_set(error, -EINVAL, "pattern %zu of pre-tokenizer %s does not compile: %d at %zu",
                                i, kind->name, code, at);
        else
            pcre2_jit_compile(pre->codes[i], PCRE2_JIT_COMPLETE); /* without it all works, only slower */
        pre->count = i + 1;
    }
    pcre2_compile_context_free(context);
    return status == -ENOMEM ? error_set(error, status, "out of memory") : status;
}

static const struct pre_kind *find_kind(const struct gguf *gguf, struct error *error)
{
    struct gguf_string name = {"default", 7};
    int status = gguf_get_string(gguf, "tokenizer.ggml.pre", &name);
    if (status == -ENOENT || (status == 0 && name.length == 0)) {
        log_warning("the model names no pre-tokenizer (tokenizer.ggml.pre): using the default one, which may "
                    "not be its own");
        name = (struct gguf_string){"default", 7};
    } else if (status < 0) {
        error_set(error, -EINVAL, "tokenizer.ggml.pre is not a string");
        return NULL;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strlen(kinds[i].name) == name.length && memcmp(kinds[i].name, name.data, name.length) == 0)
            return &kinds[i];
    error_set(error, -EINVAL, "unknown pre-tokenizer '%.*s' (tokenizer.ggml.pre)",
              (int)(name.length < 64 ? name.length : 64), name.data);
    return NULL;
}

int bpe_init(struct tokenizer *tokenizer, const struct gguf *gguf, struct error *error)
{
    const struct pre_kind *kind = find_kind(gguf, error);
    if (!kind)
        return -EINVAL;
    tokenizer->ignore_merges = kind->ignore_merges;
    tokenizer->add_bos = kind->add_bos;
    tokenizer->pre = mem_calloc(1, sizeof *tokenizer->pre);
    if (tokenizer->pre)
        tokenizer->pre->memory = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    if (!tokenizer->pre || !tokenizer->pre->memory)
        return error_set(error, -ENOMEM, "out of memory");
    int status = compile(tokenizer->pre, kind, error);
    return status < 0 ? status : init_rules(tokenizer, gguf, error);
}

void bpe_deinit(struct tokenizer *tokenizer)
{
    struct pre_tokenizer *pre = tokenizer->pre;
    if (pre) {
        for (size_t i = 0; i < pre->count; i++)
            pcre2_code_free(pre->codes[i]);
        pcre2_match_context_free(pre->limits);
        pcre2_general_context_free(pre->memory);
        mem_free(pre);
    }
    mem_free(tokenizer->rules);
    mem_free(tokenizer->rule_texts);
}

/* --- encoding ------------------------------------------------------------------------------------------- */

struct run {
    const struct tokenizer *tokenizer;
    struct merger *merger;
    struct buffer word; /* a word in letters */
    pcre2_match_data *match;
    struct tokens *out;
    struct error *error;
};

static bool is_token(const struct tokenizer *tokenizer, int32_t number)
{
    return number >= 0 && (uint32_t)number < tokenizer->size && tokenizer_is_text(tokenizer, number);
}

static bool merge(const struct tokenizer *tokenizer, const char *text, const struct symbol *left,
                  const struct symbol *right, struct bigram *bigram)
{
    (void)text;
    const struct merge_rule *rule = find_rule(tokenizer, rule_key(left->number, right->number));
    if (!rule->key)
        return false;
    bigram->order = rule->rank;
    bigram->number = rule->result;
    return true;
}

/* The token a whole word is, or -1. */
static int32_t whole_word(struct run *run, const char *text, size_t length)
{
    const struct tokenizer *tokenizer = run->tokenizer;
    if (length > tokenizer->longest)
        return -1;
    buffer_clear(&run->word);
    for (size_t i = 0; i < length; i++) {
        unsigned byte = (unsigned char)text[i];
        if (buffer_append(&run->word, tokenizer->letters[byte], letter_bytes(tokenizer, byte)) < 0)
            return -ENOMEM;
    }
    int32_t number = token_map_find(&tokenizer->map, run->word.data, run->word.length);
    return is_token(tokenizer, number) ? number : -1;
}

/* What a merged symbol is written as: itself, or letter by letter where a merge leads out of the vocabulary;
 * letters without a token are unknown, and nothing where the vocabulary has no such token. */
static int append_symbol(struct run *run, const char *text, const struct symbol *symbol)
{
    const struct tokenizer *tokenizer = run->tokenizer;
    if (is_token(tokenizer, symbol->number))
        return tokens_append(run->out, symbol->number);
    for (uint32_t i = 0; i < symbol->length; i++) {
        int32_t id = tokenizer->byte_id[(unsigned char)text[symbol->start + i]];
        if (!is_token(tokenizer, id))
            id = tokenizer->unknown;
        if (id >= 0 && tokens_append(run->out, id) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int encode_word(struct run *run, const char *text, size_t length)
{
    const struct tokenizer *tokenizer = run->tokenizer;
    if (tokenizer->ignore_merges) {
        int32_t id = whole_word(run, text, length);
        if (id >= 0)
            return tokens_append(run->out, id);
        if (id == -ENOMEM)
            return -ENOMEM;
    }
    run->merger->count = 0;
    for (size_t i = 0; i < length; i++)
        if (merger_add(run->merger, (uint32_t)i, 1, tokenizer->byte_id[(unsigned char)text[i]]) < 0)
            return -ENOMEM;
    int status = merger_run(run->merger, tokenizer, text, merge);
    for (int32_t i = 0; status == 0 && i >= 0; i = run->merger->symbols[i].next)
        status = append_symbol(run, text, &run->merger->symbols[i]);
    return status;
}

/* Finds the next match of a pattern; 1, 0 for none, or an error. */
static int next_match(struct run *run, size_t pattern, const char *text, size_t length, size_t at)
{
    const struct pre_tokenizer *pre = run->tokenizer->pre;
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int code =
        pcre2_match(pre->codes[pattern], subject, length, at, PCRE2_NO_UTF_CHECK, run->match, pre->limits);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT)
        code = pcre2_match(pre->codes[pattern], subject, length, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                           run->match, pre->limits);
    if (code >= 0 || code == PCRE2_ERROR_NOMATCH)
        return code >= 0;
    if (code == PCRE2_ERROR_NOMEMORY)
        return -ENOMEM;
    return error_set(run->error, -EINVAL, "splitting the text into words failed: PCRE2 error %d", code);
}

/* Splits valid text by pattern number `pattern` and each piece by those after it; what comes out at the end
 * is a word. As deep as there are patterns. */
static int split(struct run *run, size_t pattern, const char *text, size_t length)
{
    if (pattern == run->tokenizer->pre->count)
        return encode_word(run, text, length);
    int status = 0;
    for (size_t at = 0; status == 0 && at < length;) {
        int found = next_match(run, pattern, text, length, at);
        if (found < 0)
            return found;
        size_t start = length, end = length;
        if (found) {
            start = pcre2_get_ovector_pointer(run->match)[0];
            end = pcre2_get_ovector_pointer(run->match)[1];
        }
        if (start > at)
            status = split(run, pattern + 1, text + at, start - at);
        if (status == 0 && end > start)
            status = split(run, pattern + 1, text + start, end - start);
        at = end;
    }
    return status;
}

static int encode_invalid(struct run *run, const char *byte)
{
    int32_t id = run->tokenizer->byte_id[(unsigned char)*byte];
    if (is_token(run->tokenizer, id) && tokenizer_type(run->tokenizer, id) == TOKEN_NORMAL)
        return tokens_append(run->out, id);
    return encode_word(run, "\xef\xbf\xbd", 3);
}

int bpe_encode(const struct tokenizer *tokenizer, struct merger *merger, const char *text, size_t length,
               struct tokens *out, struct error *error)
{
    struct run run = {.tokenizer = tokenizer, .merger = merger, .out = out, .error = error};
    run.match = pcre2_match_data_create(1, tokenizer->pre->memory);
    int status = run.match ? 0 : -ENOMEM;
    for (size_t start = 0, end; status == 0 && start < length; start = end) {
        uint32_t c;
        size_t bytes = 0;
        for (end = start; end < length; end += bytes) {
            bytes = utf8_decode(text + end, length - end, &c);
            if (bytes == 0 || (bytes == 1 && (unsigned char)text[end] >= 0x80))
                break;
        }
        if (end > start)
            status = split(&run, 0, text + start, end - start);
        if (status == 0 && end < length)
            status = encode_invalid(&run, text + end++);
    }
    pcre2_match_data_free(run.match);
    buffer_deinit(&run.word);
    return status;
}
