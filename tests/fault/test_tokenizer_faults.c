/* The tokenizer when memory runs out, at every allocation in turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "support/vocabulary.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *const merges[] = {"h e", "l l", "he ll", "hell o", "\xc4\xa0 w", "-o r", "or l"};
static const struct vocabulary_token specials[] = {{"<|im_end|>", TYPE_CONTROL}, {"<t>", TYPE_USER_DEFINED}};
static const struct vocabulary_token pieces[] = {{"\xe2\x96\x81", TYPE_NORMAL, -9},
                                                 {"a", TYPE_NORMAL, -9},
                                                 {"ab", TYPE_NORMAL, -2},
                                                 {"", TYPE_NORMAL, -2}};

static struct text_span span(const char *text, bool markup)
{
    return (struct text_span){text, strlen(text), markup};
}

static void expect_hello(const struct tokenizer *tokenizer)
{
    static const int32_t wanted[] = {259, ' ', 258};
    struct tokens ids = {0};
    struct text_span hello = span("hello hell", false);
    assert_int_equal(tokenizer_encode(tokenizer, &hello, 1, false, &ids, NULL), 0);
    assert_int_equal(ids.count, 3);
    assert_memory_equal(ids.ids, wanted, sizeof wanted);
    tokens_deinit(&ids);
}

/* Whichever allocation fails, PCRE2's among them: an error and nothing half done, or the right result (the
 * compiler of patterns to machine code may fail and is not needed). */
static void test_create_out_of_memory(void **state)
{
    (void)state;
    for (int model = 0; model < 3; model++) {
        struct gguf_build build = {0};
        if (model == 2)
            vocabulary_spm(&build, pieces, COUNT(pieces));
        else
            vocabulary_bpe(&build, model ? "deepseek-llm" : "llama-bpe", merges, COUNT(merges), specials,
                           COUNT(specials));
        const struct buffer *file = gguf_build_finish(&build);
        struct gguf *gguf;
        assert_int_equal(gguf_parse(file->data, file->length, &gguf, NULL), 0);
        for (int persistent = 0; persistent < 2; persistent++) {
            long failures = 0;
            for (long n = 1;; n++) {
                struct tokenizer *tokenizer = NULL;
                struct error error = {0};
                mem_fault_set(n, persistent);
                int status = tokenizer_create(gguf, &tokenizer, &error);
                bool hit = mem_fault_hits() > 0;
                mem_fault_set(0, false);
                assert_true(status == 0 || (hit && status == -ENOMEM && error.code == -ENOMEM));
                assert_int_equal(status == 0, tokenizer != NULL);
                if (tokenizer && model == 0)
                    expect_hello(tokenizer);
                tokenizer_destroy(tokenizer);
                failures += status < 0;
                if (!hit)
                    break;
            }
            assert_true(failures >= 6);
        }
        gguf_close(gguf);
        gguf_build_deinit(&build);
    }
}

static void test_encode_out_of_memory(void **state)
{
    (void)state;
    for (int model = 0; model < 2; model++) {
        struct gguf_build build = {0};
        if (model)
            vocabulary_spm(&build, pieces, COUNT(pieces));
        else
            vocabulary_bpe(&build, "llama-bpe", merges, COUNT(merges), specials, COUNT(specials));
        struct vocabulary v = vocabulary_open(&build);
        struct text_span spans[] = {
            span("<s>hello hello hello hello hello hello hello hello hello", true),
            span("ab aba hellohellohellohellohellohellohellohellohellohellohello", false),
            span("<|im_end|></s>", true), span(" \xc3\xa9\xff more", false)};
        long failures = 0;
        struct tokens right = {0};
        assert_int_equal(tokenizer_encode(v.tokenizer, spans, 4, true, &right, NULL), 0);
        for (long n = 1;; n++) {
            struct tokens ids = {0};
            struct buffer text = {0};
            struct error error = {0};
            assert_int_equal(tokens_append(&ids, 7), 0);
            mem_fault_set(n, true);
            int status = tokenizer_encode(v.tokenizer, spans, 4, true, &ids, &error);
            int decoded = tokenizer_decode(v.tokenizer, right.ids, right.count, true, &text);
            bool hit = mem_fault_hits() > 0;
            mem_fault_set(0, false);
            if (status == 0) {
                assert_int_equal(ids.count, right.count + 1);
                assert_memory_equal(ids.ids + 1, right.ids, right.count * sizeof *right.ids);
            } else {
                assert_int_equal(status, -ENOMEM);
                assert_int_equal(error.code, -ENOMEM);
                assert_int_equal(ids.count, 1);
            }
            assert_int_equal(ids.ids[0], 7);
            assert_true(decoded == 0 || (hit && decoded == -ENOMEM && text.length == 0));
            tokens_deinit(&ids);
            buffer_deinit(&text);
            failures += status < 0;
            if (!hit)
                break;
        }
        assert_true(failures >= 4);
        tokens_deinit(&right);
        vocabulary_close(&v);
        gguf_build_deinit(&build);
    }
}

/* A push that fails can be made again, and no byte is lost or said twice. */
static void test_push_out_of_memory(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    vocabulary_bpe(&build, "gpt-2", NULL, 0, NULL, 0);
    struct vocabulary v = vocabulary_open(&build);
    struct detokenizer d = {0};
    struct buffer out = {0}, right = {0};
    struct random random = {1};
    long failures = 0;
    for (int i = 0; i < 3000; i++) {
        static const char text[] = "a\xf0\x9f\xa6\x99 \xc3\xa9z";
        unsigned char byte = (unsigned char)text[i % 9];
        assert_int_equal(buffer_append(&right, &byte, 1), 0);

        mem_fault_set(random_below(&random, 3) == 0, true);
        int status = detokenizer_push(&d, v.tokenizer, byte, &out);
        mem_fault_set(0, false);
        if (status < 0) {
            failures++;
            assert_int_equal(status, -ENOMEM);
            assert_int_equal(detokenizer_push(&d, v.tokenizer, byte, &out), 0);
        }
    }
    assert_int_equal(detokenizer_flush(&d, &out), 0);
    assert_true(failures > 3);
    assert_int_equal(out.length, right.length + 4); /* the last two bytes begin a character: U+FFFD each */
    assert_memory_equal(out.data, right.data, right.length - 2);
    buffer_deinit(&out);
    buffer_deinit(&right);
    detokenizer_deinit(&d);
    vocabulary_close(&v);
    gguf_build_deinit(&build);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_out_of_memory),
        cmocka_unit_test(test_encode_out_of_memory),
        cmocka_unit_test(test_push_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
