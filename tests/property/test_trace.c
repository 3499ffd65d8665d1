/* The generator of traces against what its header states, and its files: any trace survives saving and
 * loading, and what is no trace is refused. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../bench/trace.h"
#include "base/memory.h"
#include "base/random.h"

static struct trace_rules rules_of(enum trace_pattern pattern, uint32_t contexts, uint64_t seed)
{
    return (struct trace_rules){pattern, contexts, 72, 300, 0.0625, 2048, seed};
}

/* 50,000 calls or so, for statistics. */
static struct trace long_trace(enum trace_pattern pattern, uint32_t contexts)
{
    struct trace_rules rules = rules_of(pattern, contexts, 7);
    struct trace trace;
    rules.interval_s = 5.184;
    assert_int_equal(trace_generate(&rules, &trace, NULL), 0);
    assert_true(trace.count > 49000 && trace.count < 51000); /* five deviations are 1,100 */
    return trace;
}

static void test_poisson(void **state)
{
    (void)state;
    struct trace trace = long_trace(TRACE_RANDOM, 8);
    double n = (double)trace.count, sum = 0, squares = 0, last = 0;
    size_t short_ones = 0;
    for (size_t i = 0; i < trace.count; i++) {
        double gap = trace.calls[i].at_s - last;
        assert_true(gap >= 0);
        last = trace.calls[i].at_s;
        sum += gap;
        squares += gap * gap;
        short_ones += gap < 5.184 * log(2); /* the median of an exponential */
    }
    assert_true(last < 72 * 3600);
    double mean = sum / n, deviation = sqrt(squares / n - mean * mean);
    assert_true(fabs(mean / 5.184 - 1) < 0.025);
    assert_true(fabs(deviation / mean - 1) < 0.03); /* exponential: its deviation is its mean */
    assert_true(fabs((double)short_ones / n - 0.5) < 0.012);
    trace_deinit(&trace);
    struct trace_rules paper = rules_of(TRACE_RANDOM, 8, 1);
    assert_int_equal(trace_generate(&paper, &trace, NULL), 0);
    assert_true(trace.count > 864 - 5 * 30 && trace.count < 864 + 5 * 30); /* 72 h, one in five minutes */
    trace_deinit(&trace);
}

static void test_growth(void **state)
{
    (void)state;
    struct trace_rules rules = rules_of(TRACE_RANDOM, 12, 3);
    rules.scale = 1;
    rules.context_length = 1 << 16;
    rules.interval_s = 20;
    struct trace trace;
    double sums[TRACE_KINDS] = {0}, replies[TRACE_KINDS] = {0};
    size_t counts[TRACE_KINDS] = {0};
    assert_int_equal(trace_generate(&rules, &trace, NULL), 0);
    for (size_t i = 0; i < trace.count; i++) {
        const struct trace_call *call = &trace.calls[i];
        const struct trace_kind *kind = &trace_kinds[call->kind];
        uint32_t growth = call->prompt + call->reply;
        assert_int_equal(call->kind, call->context % TRACE_KINDS);
        assert_true(growth + 1 >= kind->low && growth <= kind->high + 1); /* each part is rounded */
        assert_true(call->prompt >= 1 && call->reply >= 1);
        sums[call->kind] += growth;
        replies[call->kind] += call->reply;
        counts[call->kind]++;
    }
    for (int i = 0; i < TRACE_KINDS; i++) {
        const struct trace_kind *kind = &trace_kinds[i];
        double n = (double)counts[i], mean = (kind->low + kind->high) / 2.0;
        double error = 5 * (kind->high - kind->low) / sqrt(12 * n) + 1;
        assert_true(n > 1500);
        assert_true(fabs(sums[i] / n - mean) < error);
        assert_true(fabs(replies[i] / n - mean * kind->reply_share / 100) < error + 1);
    }
    trace_deinit(&trace);
    /* scaled down, and never more than what fits */
    rules.scale = 16;
    rules.context_length = 256;
    assert_int_equal(trace_generate(&rules, &trace, NULL), 0);
    for (size_t i = 0; i < trace.count; i++)
        assert_true(trace.calls[i].prompt + trace.calls[i].reply < 256);
    trace_deinit(&trace);
}

static void test_fill(void **state)
{
    (void)state;
    struct trace_rules rules = rules_of(TRACE_RANDOM, 4000, 5);
    struct trace trace;
    double sum = 0;
    assert_int_equal(trace_generate(&rules, &trace, NULL), 0);
    for (uint32_t i = 0; i < rules.contexts; i++) {
        assert_true(trace.fill[i] >= 1280 && trace.fill[i] < 2048);
        sum += trace.fill[i];
    }
    assert_true(fabs(sum / rules.contexts - 1664) < 5 * 222 / sqrt(4000));
    trace_deinit(&trace);
}

/* Within five deviations of a count that has chance p. */
static void assert_share(size_t count, size_t of, double p)
{
    double deviation = sqrt((double)of * p * (1 - p));
    if (fabs((double)count - (double)of * p) > 5 * deviation + 1)
        fail_msg("%zu of %zu, expected a share of %.4f", count, of, p);
}

static void test_random_pattern(void **state)
{
    (void)state;
    enum { CONTEXTS = 8 };
    struct trace trace = long_trace(TRACE_RANDOM, CONTEXTS);
    size_t counts[CONTEXTS] = {0}, same = 0;
    for (size_t i = 0; i < trace.count; i++) {
        counts[trace.calls[i].context]++;
        same += i > 0 && trace.calls[i].context == trace.calls[i - 1].context;
    }
    for (int i = 0; i < CONTEXTS; i++)
        assert_share(counts[i], trace.count, 1.0 / CONTEXTS);
    assert_share(same, trace.count - 1, 1.0 / CONTEXTS);
    trace_deinit(&trace);
}

/* The transitions are the stated matrix, and do not depend on the context before the last. */
static void test_markov_pattern(void **state)
{
    (void)state;
    enum { CONTEXTS = 6 };
    static const double weights[CONTEXTS] = {1, 1 / 2.0, 1 / 3.0, 1 / 4.0, 1 / 3.0, 1 / 2.0};
    struct trace trace = long_trace(TRACE_MARKOV, CONTEXTS);
    size_t counts[CONTEXTS][CONTEXTS] = {{0}}, from[CONTEXTS] = {0}, again = 0, apart = 0;
    double total = 0;
    for (int i = 0; i < CONTEXTS; i++)
        total += weights[i];
    for (size_t i = 1; i < trace.count; i++) {
        uint32_t last = trace.calls[i - 1].context, now = trace.calls[i].context;
        counts[last][(now + CONTEXTS - last) % CONTEXTS]++;
        from[last]++;
        if (i > 1 && (last + CONTEXTS - trace.calls[i - 2].context) % CONTEXTS == 3) {
            apart++;
            again += now == last;
        }
    }
    for (int i = 0; i < CONTEXTS; i++)
        for (int step = 0; step < CONTEXTS; step++)
            assert_share(counts[i][step], from[i], weights[step] / total);
    assert_share(again, apart, weights[0] / total);
    trace_deinit(&trace);
}

/* How many other contexts were used since the called one was, on average. */
static double mean_age(const struct trace *trace)
{
    uint32_t order[64], contexts = trace->rules.contexts;
    double sum = 0;
    for (uint32_t i = 0; i < contexts; i++)
        order[i] = i;
    for (size_t i = 0; i < trace->count; i++) {
        uint32_t at = 0;
        while (order[at] != trace->calls[i].context)
            at++;
        sum += at;
        memmove(order + 1, order, at * sizeof *order);
        order[0] = trace->calls[i].context;
    }
    return sum / (double)trace->count;
}

static void test_markov_favours_recent(void **state)
{
    (void)state;
    for (uint32_t contexts = 4; contexts <= 16; contexts *= 2) {
        struct trace random = long_trace(TRACE_RANDOM, contexts), markov = long_trace(TRACE_MARKOV, contexts);
        assert_true(fabs(mean_age(&random) - (contexts - 1) / 2.0) < 0.1);
        assert_true(mean_age(&markov) < 0.85 * mean_age(&random));
        trace_deinit(&random);
        trace_deinit(&markov);
    }
}

static void test_gaussian_favours_medium(void **state)
{
    (void)state;
    enum { CONTEXTS = 6 };
    /* kinds by their mean growth: sentiment 55, chat 200, translation 300, classification 350, comprehension
     * 750, document 1500 */
    static const uint32_t ranked[CONTEXTS] = {5, 2, 4, 0, 3, 1};
    struct trace trace = long_trace(TRACE_GAUSSIAN, CONTEXTS);
    size_t counts[CONTEXTS] = {0};
    double inside = 0, chances[CONTEXTS];
    for (size_t i = 0; i < trace.count; i++)
        counts[trace.calls[i].context]++;
    for (int i = 0; i < CONTEXTS; i++) { /* a normal variable's share between i - 1/2 and i + 1/2 */
        chances[i] = (erf((i + 0.5 - 2.5) / 1.5 / sqrt(2)) - erf((i - 0.5 - 2.5) / 1.5 / sqrt(2))) / 2;
        inside += chances[i];
    }
    for (int i = 0; i < CONTEXTS; i++)
        assert_share(counts[ranked[i]], trace.count, chances[i] / inside);
    trace_deinit(&trace);
}

static void assert_same(const struct trace *a, const struct trace *b, double within_s)
{
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->rules.pattern, b->rules.pattern);
    assert_int_equal(a->rules.contexts, b->rules.contexts);
    assert_int_equal(a->rules.context_length, b->rules.context_length);
    assert_true(a->rules.seed == b->rules.seed);
    assert_true(a->rules.hours == b->rules.hours && a->rules.interval_s == b->rules.interval_s &&
                a->rules.scale == b->rules.scale);
    assert_memory_equal(a->fill, b->fill, a->rules.contexts * sizeof *a->fill);
    for (size_t i = 0; i < a->count; i++) {
        const struct trace_call *x = &a->calls[i], *y = &b->calls[i];
        assert_true(fabs(x->at_s - y->at_s) <= within_s);
        assert_true(x->context == y->context && x->kind == y->kind && x->prompt == y->prompt &&
                    x->reply == y->reply);
    }
}

static void test_seed(void **state)
{
    (void)state;
    for (int pattern = 0; pattern < TRACE_PATTERNS; pattern++) {
        struct trace_rules rules = rules_of((enum trace_pattern)pattern, 8, 11), others = rules;
        struct trace one, two, other;
        others.seed = 12;
        assert_int_equal(trace_generate(&rules, &one, NULL), 0);
        assert_int_equal(trace_generate(&rules, &two, NULL), 0);
        assert_int_equal(trace_generate(&others, &other, NULL), 0);
        assert_same(&one, &two, 0);
        assert_true(one.calls[0].at_s != other.calls[0].at_s);
        trace_deinit(&one);
        trace_deinit(&two);
        trace_deinit(&other);
    }
}

static void test_files(void **state)
{
    (void)state;
    char path[] = "/tmp/llms-trace-XXXXXX";
    int file = mkstemp(path);
    struct random random = {4};
    assert_true(file >= 0);
    close(file);
    for (int round = 0; round < 30; round++) {
        struct trace_rules rules = {(enum trace_pattern)(round % TRACE_PATTERNS),
                                    1 + (uint32_t)random_below(&random, 40),
                                    72 * random_unit(&random) + 0.01,
                                    100 + 500 * random_unit(&random),
                                    random_unit(&random) + 0.001,
                                    64 + (uint32_t)random_below(&random, 5000),
                                    random_next(&random)};
        struct trace made, read;
        struct error error = {0};
        assert_int_equal(trace_generate(&rules, &made, &error), 0);
        assert_int_equal(trace_save(&made, path, &error), 0);
        assert_int_equal(trace_load(path, &read, &error), 0);
        assert_same(&made, &read, 1e-6);
        trace_deinit(&made);
        trace_deinit(&read);
    }
    unlink(path);
    struct trace none;
    struct error error = {0};
    assert_int_equal(trace_load(path, &none, &error), -ENOENT);
    assert_true(strstr(error.text, path) != NULL);
}

static const char good[] =
    "llms-trace 1\npattern markov\ncontexts 2\nhours 1\ninterval 300\nscale 0.5 # of it\n\n"
    "context-length 128\nseed 3\nfill 0 100\nfill 1  128\n"
    "call 1.5 0 sentiment 4 1\ncall 1.5 1 translation 128 1\n";

/* `good` with a piece replaced. */
static int parse_with(const char *piece, const char *by, struct error *error)
{
    char text[1024];
    struct trace trace;
    const char *at = strstr(good, piece);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, by, at + strlen(piece));
    int code = trace_parse(text, &trace, error);
    trace_deinit(&trace);
    return code;
}

static void test_bad_files(void **state)
{
    (void)state;
    static const char *const wrong[][3] = {
        {"llms-trace 1", "llms-trace 2", "version 2"},
        {"llms-trace 1", "trace 1", "line 1"},
        {"markov", "zipf", "line 2"},
        {"contexts 2", "contexts 0", "range"},
        {"contexts 2", "contexts 3", "fill 2"},
        {"contexts 2", "contexts 4294967298", "line 3"},
        {"hours 1", "hours nan", "line 4"},
        {"hours 1", "hours 0", "range"},
        {"scale 0.5", "scale 0.5 0.5", "line 6"},
        {"scale 0.5", "scale -1", "line 6"},
        {"seed 3", "seed -3", "line 9"},
        {"fill 0 100", "fill 1 100", "fill 0"},
        {"fill 0 100", "fill 0 129", "fill 0"},
        {"sentiment 4 1", "sentiment 0 1", "line 12"},
        {"sentiment 4 1", "sentiment 4 1 1", "line 12"},
        {"sentiment", "chess", "line 12"},
        {"call 1.5 0", "call 1.5 2", "line 12"},
        {"call 1.5 0", "call 1.6 0", "line 13"}, /* the next one is before it */
        {"128 1\n", "129 1\n", "line 13"},
        {"128 1\n", "128", "line 13"},
    };
    struct error error = {0};
    assert_int_equal(parse_with("seed 3", "seed 3 # a remark", &error), 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int code = parse_with(wrong[i][0], wrong[i][1], &error);
        if (code != -EBADMSG || !strstr(error.text, wrong[i][2]))
            fail_msg("%s: %d, %s", wrong[i][1], code, error.text);
    }
    for (size_t length = 0; length < strlen(strstr(good, "fill 1"));
         length++) { /* cut anywhere before the calls */
        char text[sizeof good];
        struct trace trace;
        snprintf(text, sizeof text, "%.*s", (int)(strstr(good, "fill 1") - good), good);
        text[strlen(text) > length ? strlen(text) - length : 0] = 0;
        assert_int_equal(trace_parse(text, &trace, &error), -EBADMSG);
        assert_null(trace.calls);
    }
}

static void test_bad_rules(void **state)
{
    (void)state;
    struct trace_rules good_rules = rules_of(TRACE_RANDOM, 8, 1), bad[7];
    struct trace trace;
    struct error error = {0};
    for (int i = 0; i < 7; i++)
        bad[i] = good_rules;
    bad[0].contexts = 0;
    bad[1].hours = 0;
    bad[2].interval_s = -1;
    bad[3].scale = NAN;
    bad[4].context_length = 63;
    bad[5].interval_s = 1e-9;
    bad[6].scale = 17;
    for (int i = 0; i < 7; i++)
        assert_int_equal(trace_generate(&bad[i], &trace, &error), -EINVAL);
}

static void test_memory_short(void **state)
{
    (void)state;
    struct trace_rules rules = rules_of(TRACE_MARKOV, 8, 1);
    struct trace trace;
    for (long nth = 1; nth < 100; nth++) {
        mem_fault_set(nth, false);
        int code = trace_generate(&rules, &trace, NULL);
        long hits = mem_fault_hits();
        mem_fault_set(0, false);
        if (hits == 0) {
            assert_int_equal(code, 0);
            trace_deinit(&trace);
            return;
        }
        assert_int_equal(code, -ENOMEM);
        assert_null(trace.calls);
        assert_null(trace.fill);
    }
    fail();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_poisson),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_random_pattern),
        cmocka_unit_test(test_markov_pattern),
        cmocka_unit_test(test_markov_favours_recent),
        cmocka_unit_test(test_gaussian_favours_medium),
        cmocka_unit_test(test_seed),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_bad_rules),
        cmocka_unit_test(test_memory_short),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
