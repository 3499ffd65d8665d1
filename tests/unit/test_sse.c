/* The event stream parser: the grammar, and the same events however the bytes are cut. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "client/sse.h"

/* Every event as "NAME|DATA;" one after the other. */
static int record(void *user, const char *event, const char *data, size_t length)
{
    struct buffer *seen = user;
    assert_int_equal(data[length], 0);
    assert_int_equal(buffer_append_text(seen, event), 0);
    assert_int_equal(buffer_append_text(seen, "|"), 0);
    assert_int_equal(buffer_append(seen, data, length), 0);
    assert_int_equal(buffer_append_text(seen, ";"), 0);
    return 0;
}

/* Feeds text in pieces of `step` bytes. */
static void expect(const char *text, size_t length, size_t step, const char *events)
{
    struct sse sse = {0};
    struct buffer seen = {0};
    assert_int_equal(buffer_append_text(&seen, ""), 0);
    for (size_t at = 0; at < length; at += step) {
        size_t bytes = length - at < step ? length - at : step;
        assert_int_equal(sse_feed(&sse, text + at, bytes, record, &seen), 0);
    }
    assert_string_equal(seen.data, events);
    buffer_deinit(&seen);
    sse_deinit(&sse);
}

static const struct {
    const char *text, *events;
} cases[] = {
    {"", ""},
    {"\n\n\n", ""},
    {"data: one\n\ndata: two\n\n", "|one;|two;"},
    {"data: a\ndata: b\n\n", "|a\nb;"},
    {"data:tight\n\ndata:  two spaces\n\n", "|tight;| two spaces;"},
    {"data\n\n", "|;"},
    {"data:\ndata:\n\n", "|\n;"},
    {"event: piece\ndata: x\n\ndata: y\n\n", "piece|x;|y;"},
    {"event: lost\n\ndata: y\n\n", "|y;"},
    {"event: one\nevent: two\ndata: y\n\n", "two|y;"},
    {": waiting\n\n: waiting\ndata: x\n: in between\ndata: y\n\n", "|x\ny;"},
    {"id: 7\nretry: 10\nunknown: z\nnocolon\ndata: x\n\n", "|x;"},
    {"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", "|a\nb;|c;"},
    {"data: a\rdata: b\r\rdata: c\r\r", "|a\nb;|c;"},
    {"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", "|a;|b;|c;"},
    {"\xef\xbb\xbf"
     "data: bom\n\n",
     "|bom;"},
    {"data: a\n\n\xef\xbb\xbf"
     "data: no bom here\n\n",
     "|a;"},
    {"data: whole\n\ndata: cut", "|whole;"},
    {"data: whole\n\ndata: cut\n", "|whole;"},
    {"data: {\"text\":\"gr\xc3\xbc\xc3\x9f\"}\n\n", "|{\"text\":\"gr\xc3\xbc\xc3\x9f\"};"},
    {"datax: no\ndat: no\n data: no\nDATA: no\n\n", ""},
};

static void test_grammar_however_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step <= 64; step++)
            expect(cases[i].text, strlen(cases[i].text), step, cases[i].events);
}

static void test_every_pair_of_cuts(void **state)
{
    (void)state;
    static const char text[] = "event: e\r\ndata: one\r\ndata: two\r\n\r\n: c\r\n\r\ndata: three\r\n\r\n";
    size_t length = sizeof text - 1;
    for (size_t a = 0; a <= length; a++)
        for (size_t b = a; b <= length; b++) {
            struct sse sse = {0};
            struct buffer seen = {0};
            assert_int_equal(sse_feed(&sse, text, a, record, &seen), 0);
            assert_int_equal(sse_feed(&sse, text + a, b - a, record, &seen), 0);
            assert_int_equal(sse_feed(&sse, text + b, length - b, record, &seen), 0);
            assert_string_equal(seen.data, "e|one\ntwo;|three;");
            buffer_deinit(&seen);
            sse_deinit(&sse);
        }
}

static void test_a_nul_is_data(void **state)
{
    (void)state;
    static const char text[] = "data: a\0b\n\n";
    struct sse sse = {0};
    struct buffer seen = {0};
    assert_int_equal(sse_feed(&sse, text, sizeof text - 1, record, &seen), 0);
    assert_int_equal(seen.length, 5);
    assert_memory_equal(seen.data, "|a\0b;", 5);
    buffer_deinit(&seen);
    sse_deinit(&sse);
}

static int stop_at_two(void *user, const char *event, const char *data, size_t length)
{
    (void)event, (void)data, (void)length;
    return ++*(int *)user == 2 ? -ECANCELED : 0;
}

static void test_a_callback_can_stop(void **state)
{
    (void)state;
    static const char text[] = "data: 1\n\ndata: 2\n\ndata: 3\n\n";
    struct sse sse = {0};
    int count = 0;
    assert_int_equal(sse_feed(&sse, text, sizeof text - 1, stop_at_two, &count), -ECANCELED);
    assert_int_equal(count, 2);
    sse_deinit(&sse);
}

/* A hostile stream cannot make the parser grow without end: neither one line, nor many data lines. */
static void test_bounded(void **state)
{
    (void)state;
    size_t block = 1 << 20;
    char *bytes = malloc(block);
    assert_non_null(bytes);
    memset(bytes, 'x', block);
    struct sse sse = {0};
    int code = 0, fed = 0;
    for (; code == 0 && fed < 64; fed++)
        code = sse_feed(&sse, bytes, block, record, NULL);
    assert_int_equal(code, -EMSGSIZE);
    assert_int_equal(fed, SSE_LIMIT_BYTES / (int)block + 1);
    sse_deinit(&sse);

    memcpy(bytes, "data:", 5);
    bytes[block - 1] = '\n';
    for (code = 0, fed = 0; code == 0 && fed < 64; fed++)
        code = sse_feed(&sse, bytes, block, record, NULL);
    assert_int_equal(code, -EMSGSIZE);
    assert_int_equal(fed, SSE_LIMIT_BYTES / (int)block + 1);
    sse_deinit(&sse);
    free(bytes);
}

static int count_events(void *user, const char *event, const char *data, size_t length)
{
    (void)event, (void)data, (void)length;
    ++*(int *)user;
    return 0;
}

static void test_memory_runs_out(void **state)
{
    (void)state;
    static const char text[] =
        "event: name\ndata: something that is longer than a first allocation, surely, is it "
        "not, that depends\ndata: more\n\ndata: x\n\n";
    int failures = 0;
    for (long nth = 1;; nth++) {
        struct sse sse = {0};
        int count = 0;
        mem_fault_set(nth, false);
        int code = sse_feed(&sse, text, sizeof text - 1, count_events, &count);
        long hits = mem_fault_hits();
        mem_fault_set(0, false);
        sse_deinit(&sse);
        if (!hits) {
            assert_int_equal(code, 0);
            assert_int_equal(count, 2);
            break;
        }
        assert_int_equal(code, -ENOMEM);
        failures++;
    }
    assert_true(failures >= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grammar_however_cut),
        cmocka_unit_test(test_every_pair_of_cuts),
        cmocka_unit_test(test_a_nul_is_data),
        cmocka_unit_test(test_a_callback_can_stop),
        cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
