/* Token ids of a nasty corpus (texts.txt) against llama.cpp's, a vocabulary of each kind.
 *
 * pocket's vocabulary is in models/; the others are read from $LLMS_SHARED/vocab (default ../shared) and
 * skipped where that is absent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/utf8.h"
#include "model/tokenizer.h"
#include "support/golden.h"

enum { TEXTS_MAX = 200, IDS_MAX = 1024 };

static struct buffer texts[TEXTS_MAX];
static size_t text_count;

/* One escape sequence at `at` (behind the backslash); returns its length. */
static size_t unescape(const char *at, struct buffer *out)
{
    char bytes[4], digits[9] = "";
    size_t n = *at == 'u' ? 4 : *at == 'U' ? 8 : 0;
    if (n) {
        memcpy(digits, at + 1, n);
        assert_int_equal(buffer_append(out, bytes, utf8_encode((uint32_t)strtoul(digits, NULL, 16), bytes)),
                         0);
        return 1 + n;
    }
    char c = *at == 'n' ? '\n' : *at == 'r' ? '\r' : *at == 't' ? '\t' : *at;
    assert_int_equal(buffer_append(out, &c, 1), 0);
    return 1;
}

static int read_texts(void **state)
{
    struct golden golden;
    (void)state;
    golden_open(&golden, "tests/golden/texts.txt");
    for (const char *line; (line = golden_line(&golden)); text_count++) {
        assert_true(text_count < TEXTS_MAX);
        while (*line)
            if (*line == '\\')
                line += 1 + unescape(line + 1, &texts[text_count]);
            else
                assert_int_equal(buffer_append(&texts[text_count], line++, 1), 0);
    }
    golden_close(&golden);
    return 0;
}

static int drop_texts(void **state)
{
    (void)state;
    for (size_t i = 0; i < text_count; i++)
        buffer_deinit(&texts[i]);
    return 0;
}

static bool equal(const struct tokenizer *tokenizer, size_t n, bool markup, const double *wanted,
                  size_t count)
{
    struct tokens ids = {0};
    struct text_span span = {texts[n].data, texts[n].length, markup};
    assert_int_equal(tokenizer_encode(tokenizer, &span, 1, true, &ids, NULL), 0);
    size_t same = 0;
    while (same < count && same < ids.count && ids.ids[same] == (int32_t)wanted[same])
        same++;
    bool all = same == count && ids.count == count;
    if (!all)
        print_message("  text %zu (%s): %zu ids here, %zu there, token %zu is %d here, %d there\n", n,
                      markup ? "markup" : "plain", ids.count, count, same,
                      same < ids.count ? ids.ids[same] : -1, same < count ? (int)wanted[same] : -1);
    tokens_deinit(&ids);
    return all;
}

static void check_vocabulary(const char *name, const char *path)
{
    char fixture[256];
    double ids[IDS_MAX];
    struct golden golden;
    struct gguf *gguf = NULL;
    struct tokenizer *tokenizer = NULL;
    struct error error = {0};
    size_t cases = 0, failed = 0;
    if (gguf_open(path, &gguf, &error) < 0 || tokenizer_create(gguf, &tokenizer, &error) < 0)
        fail_msg("%s", error.text);
    snprintf(fixture, sizeof fixture, "tests/golden/tokens-%s.txt", name);
    golden_open(&golden, fixture);
    for (char *line; (line = golden_line(&golden)); cases++) {
        char *kind;
        size_t n = strtoul(line, &kind, 10);
        bool markup = strncmp(kind, " markup", 7) == 0;
        assert_true(n < text_count);
        assert_true(markup || strncmp(kind, " plain", 6) == 0);
        size_t count = golden_parse(kind + (markup ? 7 : 6), ids, IDS_MAX);
        /* A text that begins with the begin-of-text token gets no second one here; llama.cpp puts it, and
         * warns. */
        size_t twice = count > 1 && ids[0] == ids[1] && (int32_t)ids[0] == tokenizer_bos(tokenizer);
        failed += !equal(tokenizer, n, markup, ids + twice, count - twice);
    }
    golden_close(&golden);
    tokenizer_destroy(tokenizer);
    gguf_close(gguf);
    assert_int_equal(cases, 2 * text_count);
    assert_int_equal(failed, 0);
}

static void pocket(void **state)
{
    (void)state;
    check_vocabulary("pocket", "models/pocket-q8_0.gguf");
}

static void check_shared(const char *name)
{
    char path[512];
    const char *shared = getenv("LLMS_SHARED");
    snprintf(path, sizeof path, "%s/vocab/ggml-vocab-%s.gguf", shared ? shared : "../shared", name);
    if (access(path, R_OK) < 0) {
        print_message("  skipped: no %s\n", path);
        skip();
    }
    check_vocabulary(name, path);
}

static void gpt_2(void **state)
{
    (void)state;
    check_shared("gpt-2");
}

static void deepseek_llm(void **state)
{
    (void)state;
    check_shared("deepseek-llm");
}

static void llama_spm(void **state)
{
    (void)state;
    check_shared("llama-spm");
}

static void phi_3(void **state)
{
    (void)state;
    check_shared("phi-3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pocket),    cmocka_unit_test(gpt_2), cmocka_unit_test(deepseek_llm),
        cmocka_unit_test(llama_spm), cmocka_unit_test(phi_3),
    };
    return cmocka_run_group_tests(tests, read_texts, drop_texts);
}
