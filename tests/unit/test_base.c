/* The base room: numbers as people write them, UTF-8, arrays under memory faults, compute threads. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/array.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/parse.h"
#include "base/random.h"
#include "base/utf8.h"
#include "base/workers.h"

static void sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},     {"4096", 4096},     {"40M", 40u << 20}, {"1.5G", 3ull << 29},
                {"2k", 2048}, {"3MiB", 3u << 20}, {"7mb", 7u << 20}};
    static const char *const bad[] = {"",     "M",   "-1",  "1T",   "1MM",         "1 M",
                                      "0x10", "nan", "inf", "1e99", "9999999999G", "1Mi"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(parse_size(good[i].text, &bytes), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(parse_size(bad[i], &bytes), -EINVAL);
}

static void numbers(void **state)
{
    (void)state;
    uint64_t n;
    double x;
    assert_int_equal(parse_u64("18446744073709551615", 0, UINT64_MAX, &n), 0);
    assert_true(n == UINT64_MAX);
    assert_int_equal(parse_u64("18446744073709551616", 0, UINT64_MAX, &n), -EINVAL);
    assert_int_equal(parse_u64("7", 8, 9, &n), -EINVAL);
    assert_int_equal(parse_u64("-7", 0, 9, &n), -EINVAL);
    assert_int_equal(parse_u64(" 7", 0, 9, &n), -EINVAL);
    assert_int_equal(parse_u64("7x", 0, 9, &n), -EINVAL);
    assert_int_equal(parse_double("0.25", 0, 1, &x), 0);
    assert_true(x == 0.25);
    assert_int_equal(parse_double("-3", -5, 1, &x), 0);
    assert_int_equal(parse_double("1.5", 0, 1, &x), -EINVAL);
    assert_int_equal(parse_double("nan", 0, 1, &x), -EINVAL);
}

static void utf8_round_trip(void **state)
{
    (void)state;
    for (uint32_t c = 1; c <= 0x10ffff; c++) {
        char text[4];
        uint32_t back;
        if (c >= 0xd800 && c < 0xe000)
            continue;
        size_t n = utf8_encode(c, text);
        assert_int_equal(utf8_decode(text, n, &back), n);
        assert_int_equal(back, c);
        assert_true(utf8_valid(text, n));
        for (size_t cut = 1; cut < n; cut++) { /* a character cut short is not whole, and not invalid yet */
            assert_int_equal(utf8_decode(text, cut, &back), 0);
            assert_int_equal(utf8_whole_prefix(text, cut), 0);
            assert_false(utf8_valid(text, cut));
        }
        assert_int_equal(utf8_whole_prefix(text, n), n);
    }
}

static void utf8_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf0\x80\x80\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xe2\x28\xa1",
                                      "\xc3("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint32_t c = 0;
        assert_false(utf8_valid(bad[i], strlen(bad[i])));
        assert_int_equal(utf8_decode(bad[i], strlen(bad[i]), &c), 1);
        assert_int_equal(c, 0xfffd);
        assert_int_equal(utf8_whole_prefix(bad[i], strlen(bad[i])), strlen(bad[i]));
    }
    assert_int_equal(utf8_whole_prefix("ab\xf0\x9f\xa6", 5), 2);
    assert_int_equal(utf8_whole_prefix("ab\xf0\x9f\xa6\x99", 6), 6);
}

static void arrays(void **state)
{
    (void)state;
    struct buffer b = {0};
    struct tokens t = {0};
    assert_int_equal(buffer_printf(&b, "%d-%s", 42, "x"), 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(buffer_append_text(&b, "0123456789"), 0);
    assert_int_equal(b.length, 10004);
    assert_int_equal(strlen(b.data), b.length);
    mem_fault_set(1, true);
    size_t length = b.length;
    char big[20000] = {0};
    assert_int_equal(buffer_append(&b, big, sizeof big), -ENOMEM);
    assert_int_equal(b.length, length); /* as it was */
    assert_true(mem_fault_hits() > 0);
    mem_fault_set(0, false);
    for (int32_t i = 0; i < 5000; i++)
        assert_int_equal(tokens_append(&t, i), 0);
    assert_int_equal(t.count, 5000);
    assert_int_equal(t.ids[4321], 4321);
    buffer_deinit(&b);
    tokens_deinit(&t);
}

static void errors(void **state)
{
    (void)state;
    struct error e;
    assert_int_equal(error_set(&e, -EIO, "disk %d", 3), -EIO);
    assert_int_equal(error_prefix(&e, -EIO, "file %s", "a"), -EIO);
    assert_string_equal(e.text, "file a: disk 3");
    char big[1000];
    memset(big, 'x', sizeof big - 1);
    big[999] = 0;
    error_set(&e, -EIO, "%s", big);
    error_prefix(&e, -EIO, "%s", "p");
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    assert_int_equal(error_set(NULL, -ENOENT, "nobody listens"), -ENOENT);
}

struct job {
    atomic_uint runs[777];
    atomic_uint threads_seen;
    unsigned limit;
};

static void count_piece(void *argument, unsigned piece, unsigned thread)
{
    struct job *job = argument;
    atomic_fetch_add(&job->runs[piece], 1);
    if (thread >= job->limit)
        abort();
    atomic_fetch_or(&job->threads_seen, 1u << thread);
    if (piece % 97 == 0)
        usleep(50);
}

/* Every piece of every job runs exactly once, whatever the number of threads and pieces. */
static void every_piece_once(void **state)
{
    (void)state;
    struct random r = {1};
    for (unsigned threads = 1; threads <= 5; threads++) {
        struct workers *w;
        assert_int_equal(workers_create(threads, &w), 0);
        assert_int_equal(workers_threads(w), threads);
        for (int round = 0; round < 300; round++) {
            struct job job = {.limit = threads};
            unsigned pieces = 1 + (unsigned)random_below(&r, round % 10 ? 12 : 777);
            workers_run(w, count_piece, &job, pieces);
            for (unsigned i = 0; i < 777; i++)
                assert_int_equal(atomic_load(&job.runs[i]), i < pieces);
            if (round % 50 == 0)
                usleep(1000); /* long enough for the threads to fall asleep */
        }
        workers_destroy(w);
    }
    struct workers *w;
    assert_int_equal(workers_create(0, &w), -EINVAL);
    mem_fault_set(1, false);
    assert_int_equal(workers_create(2, &w), -ENOMEM);
    mem_fault_set(0, false);
}

struct slow_job {
    atomic_uint runs[100000];
    atomic_uint by[4];        /* pieces by thread */
    atomic_uint slow, before; /* the thread that ran piece 0, and its pieces until then */
};

/* Whoever runs piece 0 is held up, as by another process on its core. */
static void slow_piece(void *argument, unsigned piece, unsigned thread)
{
    struct slow_job *job = argument;
    atomic_fetch_add(&job->runs[piece], 1);
    atomic_fetch_add(&job->by[thread], 1);
    if (piece == 0) {
        atomic_store(&job->slow, thread);
        atomic_store(&job->before, atomic_load(&job->by[thread]));
        usleep(100000);
    }
}

/* A thread that is held up costs its piece and not its share, and more pieces than a share can count are
 * handed out too. */
static void a_slow_thread_loses_its_share(void **state)
{
    (void)state;
    static struct slow_job job;
    static const unsigned sizes[] = {400, 100000};
    for (unsigned threads = 2; threads <= 4; threads++)
        for (size_t s = 0; s < 2; s++) {
            struct workers *w;
            memset(&job, 0, sizeof job);
            assert_int_equal(workers_create(threads, &w), 0);
            workers_run(w, slow_piece, &job, sizes[s]);
            unsigned sum = 0, after = atomic_load(&job.by[atomic_load(&job.slow)]) - atomic_load(&job.before);
            for (unsigned i = 0; i < sizes[s]; i++)
                assert_int_equal(atomic_load(&job.runs[i]), 1);
            for (unsigned t = 0; t < threads; t++)
                sum += atomic_load(&job.by[t]);
            assert_int_equal(sum, sizes[s]);
            assert_true(after < sizes[s] / threads / 2); /* the others did what was left of its share */
            workers_destroy(w);
        }
}

/* Pieces come in ascending order but where another's are taken over. */
static void ordered_piece(void *argument, unsigned piece, unsigned thread)
{
    unsigned(*seen)[2] = argument; /* by thread: last piece, breaks */
    seen[thread][1] += piece != seen[thread][0] + 1;
    seen[thread][0] = piece;
    for (volatile int i = 0; i < 2000; i++)
        ;
}

static void neighbours_go_together(void **state)
{
    (void)state;
    struct workers *w;
    unsigned seen[2][2] = {{0}};
    assert_int_equal(workers_create(2, &w), 0);
    workers_run(w, ordered_piece, seen, 4096);
    /* Each taking over halves what is left: some twenty at most, where handing out one by one has thousands.
     */
    assert_true(seen[0][1] + seen[1][1] < 64);
    workers_destroy(w);
}

static double processor_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Between calls the threads sleep. */
static void idle_threads_sleep(void **state)
{
    (void)state;
    struct workers *w;
    struct job job = {.limit = 4};
    assert_int_equal(workers_create(4, &w), 0);
    workers_run(w, count_piece, &job, 12);
    double before = processor_ms();
    usleep(300000);
    assert_true(processor_ms() - before <
                100); /* three that spin would take 900 where there are processors */
    workers_destroy(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(numbers),
        cmocka_unit_test(utf8_round_trip),
        cmocka_unit_test(utf8_refuses),
        cmocka_unit_test(arrays),
        cmocka_unit_test(errors),
        cmocka_unit_test(every_piece_once),
        cmocka_unit_test(a_slow_thread_loses_its_share),
        cmocka_unit_test(neighbours_go_together),
        cmocka_unit_test(idle_threads_sleep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
