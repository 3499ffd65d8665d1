/* The tokenizer on small vocabularies made here, and on llama.cpp's own cases where ../shared is there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "os/file.h"
#include "support/vocabulary.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { IDS_MAX = 64, VALUE_BOOL = 7 };

static void put_bool(struct gguf_build *build, const char *key, bool value)
{
    gguf_build_key(build, key, VALUE_BOOL);
    gguf_build_put(build, &(char){value}, 1);
}

static struct text_span span(const char *text, bool markup)
{
    return (struct text_span){text, strlen(text), markup};
}

/* The ids of the spans must be those wanted; -1 ends the list. */
static void expect_spans(const struct tokenizer *tokenizer, const struct text_span *spans, size_t count,
                         bool begin, const int32_t *wanted)
{
    struct tokens ids = {0};
    struct error error = {0};
    assert_int_equal(tokenizer_encode(tokenizer, spans, count, begin, &ids, &error), 0);
    size_t n = 0;
    while (wanted[n] >= 0)
        n++;
    for (size_t i = 0; i < n && i < ids.count; i++)
        if (ids.ids[i] != wanted[i])
            fail_msg("id %zu is %d instead of %d", i, (int)ids.ids[i], (int)wanted[i]);
    assert_int_equal(ids.count, n);
    tokens_deinit(&ids);
}

#define expect(tokenizer, text, markup, begin, ...)                                                          \
    expect_spans(tokenizer, &(struct text_span){text, strlen(text), markup}, 1, begin,                       \
                 (const int32_t[]){__VA_ARGS__, -1})

static void expect_piece(const struct tokenizer *tokenizer, int32_t id, bool special, const char *wanted)
{
    struct buffer out = {0};
    assert_int_equal(tokenizer_piece(tokenizer, id, special, &out), 0);
    assert_string_equal(out.data ? out.data : "", wanted);
    buffer_deinit(&out);
}

static void expect_text(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, bool special,
                        const char *wanted)
{
    struct buffer out = {0};
    assert_int_equal(buffer_append_text(&out, "before "), 0);
    assert_int_equal(tokenizer_decode(tokenizer, ids, count, special, &out), 0);
    assert_memory_equal(out.data, "before ", 7);
    assert_string_equal(out.data + 7, wanted);
    buffer_deinit(&out);
}

/* --- byte-level ------------------------------------------------------------------------------------------
 */

static const char *const hello_merges[] = {"h e", "l l", "he ll", "hell o", "\xc4\xa0 w", "-o r", "or l"};
enum { HE = 256, LL, HELL, HELLO, _W, ORL };

static void test_bpe_merges(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    vocabulary_bpe(&build, "gpt-2", hello_merges, COUNT(hello_merges), NULL, 0);
    struct vocabulary v = vocabulary_open(&build);
    assert_int_equal(tokenizer_size(v.tokenizer), ORL + 1);
    expect(v.tokenizer, "hello", false, false, HELLO);
    expect(v.tokenizer, "hello world", false, false, HELLO, _W, ORL, 'd');
    expect(v.tokenizer, "hell hel", false, false, HELL, ' ', HE, 'l');
    expect(v.tokenizer, "lll", false, false, LL, 'l'); /* equal ranks: the left one first */
    expect(v.tokenizer, "llll", false, false, LL, LL);
    expect(v.tokenizer, "or", false, false, 'o', 'r'); /* merged to what is no token: written in letters */
    expect(v.tokenizer, "\xc3\xa9", false, false, 0xc3, 0xa9);
    expect(v.tokenizer,
           "h\xff"
           "e\xc3",
           false, false, 'h', 0xff, 'e', 0xc3); /* invalid bytes are words of their own */
    expect_spans(v.tokenizer, NULL, 0, false, (const int32_t[]){-1});
    expect_spans(v.tokenizer, &(struct text_span){"", 0, true}, 1, true, (const int32_t[]){-1});
    struct text_span parts[] = {span("hel", false), span("", true), span("lo", true)};
    expect_spans(v.tokenizer, parts, 3, false, (const int32_t[]){HELLO, -1});
    expect_text(v.tokenizer, (const int32_t[]){HELLO, _W, ORL, 0xc3, 0xa9, -5, 100000}, 7, true,
                "hello worl\xc3\xa9");
    assert_int_equal(tokenizer_find(v.tokenizer, "hello"), HELLO);
    assert_int_equal(tokenizer_find(v.tokenizer, "or"), -1); /* a text of merges, no token */
    assert_int_equal(tokenizer_find(v.tokenizer, "nothing"), -1);
    assert_int_equal(tokenizer_bos(v.tokenizer), -1);
    assert_int_equal(tokenizer_eos(v.tokenizer), -1);
    vocabulary_close(&v);
    gguf_build_deinit(&build);
}

/* Merges pairs of bytes by rank, one after the other: what vocabulary_pairs must give for one word. */
static void pair_twin(const char *word, struct tokens *out)
{
    int32_t ids[IDS_MAX];
    size_t count = strlen(word);
    assert_true(count <= IDS_MAX);
    for (size_t i = 0; i < count; i++)
        ids[i] = (unsigned char)word[i];
    for (;;) {
        size_t best = count;
        uint32_t best_rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < count; i++) {
            if (ids[i] > 255 || ids[i + 1] > 255)
                continue;
            uint32_t rank = vocabulary_pair_rank((unsigned)ids[i], (unsigned)ids[i + 1]);
            if (rank < best_rank) {
                best = i;
                best_rank = rank;
            }
        }
        if (best == count)
            break;
        ids[best] = 256 + 256 * ids[best] + ids[best + 1];
        memmove(&ids[best + 1], &ids[best + 2], (count - best - 2) * sizeof *ids);
        count--;
    }
    assert_int_equal(tokens_append_all(out, ids, count), 0);
}

/* Each pre-tokenizer must cut the joined words where they are cut here. */
static void test_words(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *words[32];
    } cases[] = {
        {"gpt-2", {"I", "'", "LL", " go", "'ll", " 12345", " a", "!?", "\n\n ", " b", "  "}},
        {"phi-2", {"\xe4\xb8\xad\xe6\x96\x87", "\xe3\x80\x82", "x", "\xc2\xa0", "y", " \xc2\xbd\xd9\xa3"}},
        {"llama-bpe", {"I", "'LL", " go", "'ll", " ", "123", "45", " a", "!?\n\n", " ", " b", "  "}},
        {"llama3", {"\xc2\xa0y", "!\r\n", " \n\n", "\t\t", "\tz", "'S", "'x", "_\xc3\xa9"}},
        {"qwen2", {"I", "'LL", " go", "'ll", " ", "1", "2", "3", "4", "5", " a", "!?\n\n", " ", " b", "  "}},
        {"smollm",
         {"I", "'", "LL", " go", "'ll", " ", "1", "2", "3", "4", "5", " a", "!?", "\n\n ", " b", "  "}},
        {"default", {"I", "'", "LL", " go", "'", "ll", " ", "123", "45", " a", "!?", "\n\n ", " b", "  "}},
        {NULL, {"a", "+", " ", "<", "b", " ", "12", "--", "c"}}, /* the default, with a warning */
        {"deepseek-llm",
         {"I", "'", "LL", " go", "'", "ll", " ", "12345", " a", "!?", "\n", "\n", " ", " b", "  "}},
        {"deepseek-llm",
         {"\xe4\xb8\xad\xe6\x96\x87", "\xef\xbc\x81", "\xc3\xa9\xc3\xbc", " \xce\xa9", "\xd9\xa3"}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct gguf_build build = {0};
        vocabulary_pairs(&build, cases[i].pre);
        struct vocabulary v = vocabulary_open(&build);
        struct buffer text = {0};
        struct tokens wanted = {0};
        for (const char *const *word = cases[i].words; *word; word++) {
            assert_int_equal(buffer_append_text(&text, *word), 0);
            pair_twin(*word, &wanted);
        }
        assert_int_equal(tokens_append(&wanted, -1), 0);
        expect_spans(v.tokenizer, &(struct text_span){text.data, text.length, false}, 1, false, wanted.ids);
        tokens_deinit(&wanted);
        buffer_deinit(&text);
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
}

/* llama-bpe takes a word that is a token as it is, even where no merges lead to it. */
static void test_ignore_merges(void **state)
{
    (void)state;
    static const struct vocabulary_token others[] = {{"word", TYPE_NORMAL}, {"secret", TYPE_CONTROL}};
    static const char *const pres[] = {"gpt-2", "llama-bpe"};
    for (int ignore = 0; ignore < 2; ignore++) {
        struct gguf_build build = {0};
        vocabulary_bpe(&build, pres[ignore], NULL, 0, others, 2);
        struct vocabulary v = vocabulary_open(&build);
        if (ignore)
            expect(v.tokenizer, "word", false, false, 256);
        else
            expect(v.tokenizer, "word", false, false, 'w', 'o', 'r', 'd');
        expect(v.tokenizer, "secret", false, false, 's', 'e', 'c', 'r', 'e', 't');
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
}

/* --- special tokens --------------------------------------------------------------------------------------
 */

enum { IM_END = 256, IM, USER, UNKNOWN, THINK, THINKING, NEXT };
static const struct vocabulary_token specials[] = {
    {"<|im_end|>", TYPE_CONTROL}, {"<|im", TYPE_CONTROL},         {"<user>", TYPE_CONTROL},
    {"<?>", TYPE_UNKNOWN},        {"<think>", TYPE_USER_DEFINED}, {"<think>ing", TYPE_USER_DEFINED},
    {"g<", TYPE_USER_DEFINED},
};

static void test_specials(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    vocabulary_bpe(&build, "gpt-2", NULL, 0, specials, COUNT(specials));
    gguf_build_u32(&build, "tokenizer.ggml.eos_token_id", USER);
    struct vocabulary v = vocabulary_open(&build);
    const struct tokenizer *t = v.tokenizer;
    expect(t, "a<|im_end|>b", true, false, 'a', IM_END, 'b');
    expect(t, "<|im_end", true, false, IM, '_', 'e', 'n', 'd');
    expect(t, "<|im", false, false, '<', '|', 'i', 'm');
    expect(t, "<?>", true, false, UNKNOWN);
    expect(t, "<?>", false, false, '<', '?', '>');
    expect(t, "<think>", false, false, THINK);
    expect(t, "<think>in", true, false, THINK, 'i', 'n');
    /* The longer name wins wherever it stands: "g<" comes first in the text but is shorter. */
    expect(t, "<think>ing<think>", false, false, THINKING, THINK);
    expect(t, "g<user>", true, false, 'g', USER);
    expect(t, "g<user>", false, false, NEXT, 'u', 's', 'e', 'r', '>');
    /* Markup must write the name from the first byte to the last, whatever pieces it comes in. */
    struct text_span forged[] = {span("<us", true), span("e", false), span("r>", true)};
    expect_spans(t, forged, 3, false, (const int32_t[]){'<', 'u', 's', 'e', 'r', '>', -1});
    struct text_span pieces[] = {span("x<us", true), span("", false), span("er", true), span(">", true)};
    expect_spans(t, pieces, 4, false, (const int32_t[]){'x', USER, -1});
    struct text_span between[] = {span("<user>", true), span("<user>", false), span("<user>", true)};
    expect_spans(t, between, 3, false, (const int32_t[]){USER, '<', 'u', 's', 'e', 'r', '>', USER, -1});
    /* What they are written as. */
    expect_piece(t, IM_END, false, "");
    expect_piece(t, IM_END, true, "<|im_end|>");
    expect_piece(t, UNKNOWN, false, "");
    expect_piece(t, THINK, false, "<think>");
    expect_piece(t, -1, true, "");
    expect_piece(t, 1000, true, "");
    expect_text(t, (const int32_t[]){'a', IM_END, 'b'}, 3, false, "ab");
    expect_text(t, (const int32_t[]){'a', IM_END, 'b'}, 3, true, "a<|im_end|>b");
    assert_true(tokenizer_is_control(t, IM));
    assert_false(tokenizer_is_control(t, THINK));
    assert_false(tokenizer_is_control(t, -1));
    assert_false(tokenizer_is_control(t, NEXT + 1));
    assert_true(tokenizer_is_end(t, IM_END)); /* by name */
    assert_true(tokenizer_is_end(t, USER));   /* by EOS id */
    assert_false(tokenizer_is_end(t, IM));
    assert_false(tokenizer_is_end(t, -1));
    assert_false(tokenizer_is_end(t, NEXT + 1));
    vocabulary_close(&v);
    gguf_build_deinit(&build);
}

/* End tokens by id and by name; a name that is no control token in the file becomes one. */
static void test_ends(void **state)
{
    (void)state;
    static const struct vocabulary_token others[] = {
        {"<|eot_id|>", TYPE_CONTROL}, {"</s>", TYPE_USER_DEFINED}, {"<end_of_turn>", TYPE_NORMAL},
        {"<x>", TYPE_CONTROL},        {"<y>", TYPE_CONTROL},       {"<z>", TYPE_CONTROL}};
    struct gguf_build build = {0};
    vocabulary_bpe(&build, "gpt-2", NULL, 0, others, COUNT(others));
    gguf_build_u32(&build, "tokenizer.ggml.eot_token_id", 259);
    gguf_build_u32(&build, "tokenizer.ggml.eom_token_id", 260);
    gguf_build_u32(&build, "tokenizer.ggml.eos_token_id", 1u << 31); /* outside: ignored */
    struct vocabulary v = vocabulary_open(&build);
    for (int32_t id = 0; id < 262; id++)
        assert_int_equal(tokenizer_is_end(v.tokenizer, id), id >= 256 && id != 261);
    assert_true(tokenizer_is_control(v.tokenizer, 257));
    assert_true(tokenizer_is_control(v.tokenizer, 258));
    assert_int_equal(tokenizer_eos(v.tokenizer), -1);
    expect(v.tokenizer, "</s>", false, false, '<', '/', 's', '>');
    expect(v.tokenizer, "</s>", true, false, 257);
    vocabulary_close(&v);
    gguf_build_deinit(&build);
}

static void test_begin(void **state)
{
    (void)state;
    static const struct vocabulary_token others[] = {{"<b>", TYPE_CONTROL}, {"<e>", TYPE_CONTROL}};
    for (int flags = 0; flags < 4; flags++) {
        struct gguf_build build = {0};
        vocabulary_bpe(&build, "gpt-2", NULL, 0, others, 2);
        gguf_build_u32(&build, "tokenizer.ggml.bos_token_id", 256);
        gguf_build_u32(&build, "tokenizer.ggml.eos_token_id", 257);
        put_bool(&build, "tokenizer.ggml.add_bos_token", flags & 1);
        put_bool(&build, "tokenizer.ggml.add_eos_token", flags & 2);
        struct vocabulary v = vocabulary_open(&build);
        const struct tokenizer *t = v.tokenizer;
        assert_int_equal(tokenizer_bos(t), 256);
        assert_int_equal(tokenizer_eos(t), 257);
        expect(t, "x", false, false, 'x');
        static const int32_t wanted[4][4] = {{'x', -1}, {256, 'x', -1}, {'x', 257, -1}, {256, 'x', 257, -1}};
        struct text_span plain = span("x", false), marked = span("<b>x<e>", true), none = span("", false);
        expect_spans(t, &plain, 1, true, wanted[flags]);
        expect_spans(t, &marked, 1, true, wanted[3]); /* there already: not once more */
        static const int32_t empty[4][3] = {{-1}, {256, -1}, {257, -1}, {256, 257, -1}};
        expect_spans(t, &none, 1, true, empty[flags]);
        /* What stood in out before does not count. */
        struct tokens out = {0};
        assert_int_equal(tokens_append(&out, 256), 0);
        assert_int_equal(tokenizer_encode(t, &plain, 1, true, &out, NULL), 0);
        assert_int_equal(out.count, 2 + (flags & 1) + (flags >> 1));
        assert_int_equal(out.ids[0], 256);
        assert_int_equal(out.ids[1], flags & 1 ? 256 : 'x');
        tokens_deinit(&out);
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
    /* The defaults: llama-bpe asks for BOS, but only where there is one. */
    for (int has_bos = 0; has_bos < 2; has_bos++) {
        struct gguf_build build = {0};
        vocabulary_bpe(&build, "llama-bpe", NULL, 0, others, 2);
        if (has_bos)
            gguf_build_u32(&build, "tokenizer.ggml.bos_token_id", 256);
        struct vocabulary v = vocabulary_open(&build);
        expect_spans(v.tokenizer, &(struct text_span){"x", 1, false}, 1, true,
                     has_bos ? (const int32_t[]){256, 'x', -1} : (const int32_t[]){'x', -1});
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
}

/* Phi-3's special tokens swallow white space behind them, but for three. */
static void test_strip(void **state)
{
    (void)state;
    static const struct vocabulary_token others[] = {{"<|user|>", TYPE_CONTROL}, {"<s>", TYPE_CONTROL}};
    for (int phi = 0; phi < 2; phi++) {
        struct gguf_build build = {0};
        vocabulary_bpe(&build, "gpt-2", NULL, 0, others, 2);
        gguf_build_string(&build, "general.name", phi ? "My Phi-3 mini" : "phi-4");
        struct vocabulary v = vocabulary_open(&build);
        if (phi)
            expect(v.tokenizer, "<|user|>\n \ta b<s> c<|user|>", true, false, 256, 'a', ' ', 'b', 257, ' ',
                   'c', 256);
        else
            expect(v.tokenizer, "<|user|>\n", true, false, 256, '\n');
        if (phi) /* all of it white space, up to the next token */
            expect(v.tokenizer, "<|user|> \n<|user|>  ", true, false, 256, 256);
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
}

/* --- SentencePiece ----------------------------------------------------------------------------------------
 */

#define MARK "\xe2\x96\x81"
enum { SP = SPM_OTHERS, A, B, SP_A, AB, BA, SPSP, LESS, S, GREATER, LESS_S, CLOSE, UNUSED };
static const struct vocabulary_token pieces[] = {
    {MARK, TYPE_NORMAL, -9},      {"a", TYPE_NORMAL, -9},  {"b", TYPE_NORMAL, -9},
    {MARK "a", TYPE_NORMAL, -3},  {"ab", TYPE_NORMAL, -2}, {"ba", TYPE_NORMAL, -2},
    {MARK MARK, TYPE_NORMAL, -4}, {"<", TYPE_NORMAL, -9},  {"s", TYPE_NORMAL, -9},
    {">", TYPE_NORMAL, -9},       {"<s", TYPE_NORMAL, -1}, {"</s", TYPE_NORMAL, -1},
    {"zz", TYPE_UNUSED, -1},
};

static void test_spm(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    vocabulary_spm(&build, pieces, COUNT(pieces));
    struct vocabulary v = vocabulary_open(&build);
    const struct tokenizer *t = v.tokenizer;
    expect(t, "a", false, false, SP_A);
    expect(t, "ab", false, false, SP, AB);              /* the better score first */
    expect(t, "b aba", false, false, SP, B, SP, AB, A); /* equal scores: the left one */
    expect(t, "bab", false, false, SP, BA, B);
    expect(t, "  a", false, false, SPSP, SP_A); /* with the space put before it: three */
    expect(t, "a", false, true, 1, SP_A);
    expect(t, "x\xc3\xa9", false, false, SP, SPM_BYTES + 'x', SPM_BYTES + 0xc3, SPM_BYTES + 0xa9);
    expect(t, "\n\xff", false, false, SP, SPM_BYTES + '\n', SPM_BYTES + 0xff);
    /* "<s" and ">" would merge to the name of a control token; text must not. */
    expect(t, "<s>", false, false, SP, LESS_S, GREATER);
    expect(t, "<s>", true, false, 1);
    /* After a special token the space comes again. */
    expect(t, "a</s>a", true, false, SP_A, 2, SP_A);
    expect_text(t, (const int32_t[]){1, SP_A, AB, 2, SP_A, SP, B}, 7, false, "aaba b");
    expect_text(t, (const int32_t[]){1, SP_A, AB, 2, SP_A, SP, B}, 7, true, "<s>aab</s>a b");
    expect_text(t, (const int32_t[]){SPSP, A, SPM_BYTES + 0xc3, SPM_BYTES + 0xa9}, 4, false, " a\xc3\xa9");
    expect_piece(t, SP_A, false, " a");
    expect_piece(t, UNUSED, false, "zz");
    expect_piece(t, SPM_BYTES + 'A', false, "A");
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_true(tokenizer_is_end(t, 2));
    vocabulary_close(&v);
    gguf_build_deinit(&build);
}

/* Without the prefix; and with a token that spans words, so that they must not be merged apart. */
static void test_spm_options(void **state)
{
    (void)state;
    static const struct vocabulary_token spanning[] = {{MARK, TYPE_NORMAL, -9},
                                                       {"a", TYPE_NORMAL, -9},
                                                       {"a" MARK, TYPE_NORMAL, -1},
                                                       {MARK "a", TYPE_NORMAL, -2}};
    struct gguf_build build = {0};
    vocabulary_spm(&build, spanning, COUNT(spanning));
    put_bool(&build, "tokenizer.ggml.add_space_prefix", false);
    put_bool(&build, "tokenizer.ggml.add_bos_token", false);
    struct vocabulary v = vocabulary_open(&build);
    expect(v.tokenizer, "a", false, true, SPM_OTHERS + 1);
    expect(v.tokenizer, "a a a", false, false, SPM_OTHERS + 2, SPM_OTHERS + 2, SPM_OTHERS + 1);
    expect(v.tokenizer, " a", false, false, SPM_OTHERS + 3);
    expect_text(v.tokenizer, (const int32_t[]){SPM_OTHERS + 3}, 1, false, " a");
    vocabulary_close(&v);
    gguf_build_deinit(&build);
}

/* --- detokenizer ------------------------------------------------------------------------------------------
 */

static void push(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, const char *bytes,
                 const char *wanted)
{
    struct buffer out = {0};
    for (; *bytes; bytes++)
        assert_int_equal(detokenizer_push(detokenizer, tokenizer, (unsigned char)*bytes, &out), 0);
    assert_string_equal(out.data ? out.data : "", wanted);
    buffer_deinit(&out);
}

static void test_detokenizer(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    vocabulary_bpe(&build, "gpt-2", NULL, 0, specials, COUNT(specials));
    struct vocabulary v = vocabulary_open(&build);
    struct detokenizer d = {0};
    push(&d, v.tokenizer, "a", "a");
    push(&d, v.tokenizer, "\xf0", "");
    push(&d, v.tokenizer, "\x9f\xa6", "");
    push(&d, v.tokenizer, "\x99z", "\xf0\x9f\xa6\x99z");
    push(&d, v.tokenizer, "\xff", "\xef\xbf\xbd");
    push(&d, v.tokenizer, "\xe4\xb8", "");
    push(&d, v.tokenizer, "!", "\xef\xbf\xbd\xef\xbf\xbd!"); /* cut short by another character */
    push(&d, v.tokenizer, "\xc3", "");
    struct buffer out = {0};
    assert_int_equal(detokenizer_push(&d, v.tokenizer, IM_END, &out), 0); /* writes nothing */
    assert_int_equal(out.length, 0);
    assert_int_equal(detokenizer_flush(&d, &out), 0);
    assert_string_equal(out.data, "\xef\xbf\xbd");
    assert_int_equal(detokenizer_flush(&d, &out), 0); /* nothing is left */
    assert_int_equal(out.length, 3);
    assert_int_equal(detokenizer_push(&d, v.tokenizer, THINK, &out), 0);
    assert_string_equal(out.data, "\xef\xbf\xbd<think>");
    buffer_deinit(&out);
    detokenizer_deinit(&d);
    vocabulary_close(&v);
    gguf_build_deinit(&build);
}

/* --- refusals ---------------------------------------------------------------------------------------------
 */

static void refuse(struct gguf_build *build, const char *word)
{
    struct gguf *gguf;
    struct tokenizer *tokenizer = NULL;
    struct error error = {0};
    const struct buffer *file = gguf_build_finish(build);
    assert_int_equal(gguf_parse(file->data, file->length, &gguf, &error), 0);
    assert_int_equal(tokenizer_create(gguf, &tokenizer, &error), -EINVAL);
    assert_null(tokenizer);
    if (!strstr(error.text, word))
        fail_msg("'%s' does not speak of '%s'", error.text, word);
    assert_int_equal(tokenizer_create(gguf, &tokenizer, NULL), -EINVAL);
    gguf_close(gguf);
    gguf_build_deinit(build);
    *build = (struct gguf_build){0};
}

static void put_array(struct gguf_build *build, const char *key, uint32_t type, uint64_t count)
{
    gguf_build_key(build, key, 9);
    gguf_build_put_u32(build, type);
    gguf_build_put_u64(build, count);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct vocabulary_token twice[] = {{"same", TYPE_NORMAL}, {"same", TYPE_NORMAL}};
    struct gguf_build build = {0};
    gguf_build_u32(&build, "nothing", 1);
    refuse(&build, "tokenizer.ggml.model");
    gguf_build_string(&build, "tokenizer.ggml.model", "bert");
    refuse(&build, "bert");
    vocabulary_bpe(&build, "tekken", NULL, 0, NULL, 0);
    refuse(&build, "tekken");
    vocabulary_bpe(&build, NULL, NULL, 0, NULL, 0);
    gguf_build_u32(&build, "tokenizer.ggml.pre", 3);
    refuse(&build, "tokenizer.ggml.pre");
    vocabulary_bpe(&build, "gpt-2", NULL, 0, twice, 2);
    refuse(&build, "same");
    gguf_build_string(&build, "tokenizer.ggml.model", "llama");
    refuse(&build, "tokenizer.ggml.tokens");
    gguf_build_string(&build, "tokenizer.ggml.model", "llama");
    put_array(&build, "tokenizer.ggml.tokens", 8, 0);
    refuse(&build, "0 tokens");
    gguf_build_string(&build, "tokenizer.ggml.model", "llama");
    put_array(&build, "tokenizer.ggml.tokens", 4, 1);
    gguf_build_put_u32(&build, 1);
    refuse(&build, "tokenizer.ggml.tokens");
    for (int key = 0; key < 2; key++) { /* too few numbers, and no numbers */
        static const char *const keys[] = {"tokenizer.ggml.token_type", "tokenizer.ggml.scores"};
        for (int strings = 0; strings < 2; strings++) {
            gguf_build_string(&build, "tokenizer.ggml.model", "llama");
            put_array(&build, "tokenizer.ggml.tokens", 8, 2);
            gguf_build_put_string(&build, "a");
            gguf_build_put_string(&build, "b");
            put_array(&build, keys[key], strings ? 8 : 5, strings ? 2 : 1);
            if (strings) {
                gguf_build_put_string(&build, "1");
                gguf_build_put_string(&build, "2");
            } else {
                gguf_build_put_u32(&build, 1);
            }
            refuse(&build, keys[key]);
        }
    }
    gguf_build_string(&build, "tokenizer.ggml.model", "gpt2");
    gguf_build_string(&build, "tokenizer.ggml.pre", "gpt-2");
    put_array(&build, "tokenizer.ggml.tokens", 8, 1);
    gguf_build_put_string(&build, "a");
    refuse(&build, "tokenizer.ggml.merges");
    tokenizer_destroy(NULL);
}

/* A vocabulary with holes: tokens without text, letters without a token, odd merges. Nothing is refused,
 * and what cannot be written is left out or unknown. */
static void test_holes(void **state)
{
    (void)state;
    for (int unknown = 0; unknown < 2; unknown++) {
        struct gguf_build build = {0};
        gguf_build_string(&build, "tokenizer.ggml.model", "gpt2");
        gguf_build_string(&build, "tokenizer.ggml.pre", "gpt-2");
        put_array(&build, "tokenizer.ggml.tokens", 8, 5);
        static const char *const texts[] = {"a", "", "b", "", "aba"};
        for (size_t i = 0; i < 5; i++)
            gguf_build_put_string(&build, texts[i]);
        static const char *const merges[] = {"a b", "ab a", "a b", "x", " ", "", "b  b"};
        put_array(&build, "tokenizer.ggml.merges", 8, COUNT(merges));
        for (size_t i = 0; i < COUNT(merges); i++)
            gguf_build_put_string(&build, merges[i]);
        if (unknown)
            gguf_build_u32(&build, "tokenizer.ggml.unknown_token_id", 3);
        struct vocabulary v = vocabulary_open(&build);
        expect(v.tokenizer, "abaab", false, false, 4, 0, 2);
        expect_piece(v.tokenizer, 1, false, "[EMPTY_1]");
        if (unknown)
            expect(v.tokenizer, "a-b", false, false, 0, 3, 2);
        else
            expect(v.tokenizer, "a-b", false, false, 0, 2);
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
}

/* --- length and memory ------------------------------------------------------------------------------------
 */

/* Very long words and runs: all in well under a second, none of them by luck of the pattern. */
static void test_long(void **state)
{
    (void)state;
    enum { LONG = 300000 };
    static const char *const pres[] = {"gpt-2", "llama-bpe", "qwen2", "smollm", "deepseek-llm", "default"};
    static const char *const runs[] = {" ", "a", "\n", " \n", "!", "1", "\xff", "l", "\xe3\x80\x80", "'"};
    char *text = malloc(LONG + 1);
    assert_non_null(text);
    for (size_t p = 0; p < COUNT(pres) + 1; p++) {
        struct gguf_build build = {0};
        if (p < COUNT(pres))
            vocabulary_bpe(&build, pres[p], hello_merges, COUNT(hello_merges), NULL, 0);
        else
            vocabulary_spm(&build, pieces, COUNT(pieces));
        struct vocabulary v = vocabulary_open(&build);
        for (size_t r = 0; r < COUNT(runs); r++) {
            for (size_t i = 0; i < LONG; i++)
                text[i] = runs[r][i % strlen(runs[r])];
            text[LONG] = 'x';
            struct tokens ids = {0};
            struct buffer back = {0};
            struct text_span whole = {text, LONG + 1, true};
            assert_int_equal(tokenizer_encode(v.tokenizer, &whole, 1, false, &ids, NULL), 0);
            assert_int_equal(tokenizer_decode(v.tokenizer, ids.ids, ids.count, false, &back), 0);
            assert_int_equal(back.length, LONG + 1);
            assert_memory_equal(back.data, text, LONG + 1);
            tokens_deinit(&ids);
            buffer_deinit(&back);
        }
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
    free(text);
}

/* --- llama.cpp's cases ------------------------------------------------------------------------------------
 */

static void run_cases(const char *path)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char name[512], *input, *output;
    size_t bytes, count = 0;
    struct vocabulary v = vocabulary_open_file(path);
    snprintf(name, sizeof name, "%s.inp", path);
    assert_int_equal(os_read_file(name, 1 << 20, &input, &bytes), 0);
    snprintf(name, sizeof name, "%s.out", path);
    assert_int_equal(os_read_file(name, 1 << 20, &output, &bytes), 0);
    char *line = output;
    for (char *text = input, *next; text; text = next) {
        next = strstr(text, separator);
        if (next) {
            *next = 0;
            next += strlen(separator);
        }
        struct tokens wanted = {0};
        assert_non_null(line);
        char *end = strchr(line, '\n');
        for (char *number = line, *after; number < end; number = after) {
            long id = strtol(number, &after, 10);
            if (after == number || after > end)
                break;
            assert_int_equal(tokens_append(&wanted, (int32_t)id), 0);
        }
        line = end ? end + 1 : NULL;
        assert_int_equal(tokens_append(&wanted, -1), 0);
        expect_spans(v.tokenizer, &(struct text_span){text, strlen(text), false}, 1, false, wanted.ids);
        tokens_deinit(&wanted);
        count++;
    }
    assert_int_equal(count, 47);
    mem_free(input);
    mem_free(output);
    vocabulary_close(&v);
}

static void test_shared_cases(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt-2", "deepseek-llm", "llama-spm", "phi-3"};
    const char *shared = getenv("LLMS_SHARED");
    char path[400];
    snprintf(path, sizeof path, "%s/vocab", shared ? shared : "../shared");
    if (access(path, R_OK) != 0)
        skip();
    for (size_t i = 0; i < COUNT(names); i++) {
        snprintf(path, sizeof path, "%s/vocab/ggml-vocab-%s.gguf", shared ? shared : "../shared", names[i]);
        run_cases(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe_merges),    cmocka_unit_test(test_words),
        cmocka_unit_test(test_ignore_merges), cmocka_unit_test(test_specials),
        cmocka_unit_test(test_ends),          cmocka_unit_test(test_begin),
        cmocka_unit_test(test_strip),         cmocka_unit_test(test_spm),
        cmocka_unit_test(test_spm_options),   cmocka_unit_test(test_detokenizer),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_holes),
        cmocka_unit_test(test_long),          cmocka_unit_test(test_shared_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
