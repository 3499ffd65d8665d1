/* The sampler: cut-offs are exact, draws follow the probabilities, the same seed gives the same picks, and no
 * logits lead outside the vocabulary. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "model/sampler.h"

enum { VOCABULARY = 12, MANY = 5000 };

/* No cut-off, no penalty. */
static const struct sampler_params open_params = {
    .temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .repeat_last = 0, .seed = 7};

static struct sampler *create(const struct sampler_params *params, size_t vocabulary)
{
    struct sampler *sampler = NULL;
    assert_int_equal(sampler_create(params, vocabulary, &sampler), 0);
    return sampler;
}

/* Draws n times and counts what came. */
static void count_draws(const struct sampler_params *params, const float *logits, size_t vocabulary, size_t n,
                        size_t *counts)
{
    struct sampler *sampler = create(params, vocabulary);
    memset(counts, 0, vocabulary * sizeof *counts);
    for (size_t i = 0; i < n; i++) {
        int32_t id = sampler_pick(sampler, logits);
        assert_in_range(id, 0, vocabulary - 1);
        counts[id]++;
    }
    sampler_destroy(sampler);
}

/* Pearson's statistic of counts against the shares, where ids with share 0 must not occur at all. Returns it
 * less its degrees of freedom, in standard deviations. */
static double misfit(const size_t *counts, const double *shares, size_t vocabulary, size_t n)
{
    double statistic = 0, freedom = -1;
    for (size_t i = 0; i < vocabulary; i++) {
        if (shares[i] == 0) {
            assert_int_equal(counts[i], 0);
            continue;
        }
        double expected = shares[i] * (double)n, off = (double)counts[i] - expected;
        statistic += off * off / expected;
        freedom++;
    }
    return freedom > 0 ? (statistic - freedom) / sqrt(2 * freedom) : 0;
}

static void softmax(const float *logits, double temperature, const bool *kept, double *shares)
{
    double whole = 0;
    for (size_t i = 0; i < VOCABULARY; i++) {
        shares[i] = kept && !kept[i] ? 0 : exp(logits[i] / temperature);
        whole += shares[i];
    }
    for (size_t i = 0; i < VOCABULARY; i++)
        shares[i] /= whole;
}

/* In no order of size; their softmax runs from 0.33 down to 0.004. */
static const float some_logits[VOCABULARY] = {0.5f, 3.0f, -1.0f, 2.0f, 1.5f,  0.0f,
                                              2.5f, 1.0f, -0.5f, 0.2f, -1.5f, 1.8f};

static void test_distribution(void **state)
{
    (void)state;
    size_t counts[VOCABULARY];
    double shares[VOCABULARY];
    static const float temperatures[] = {0.5f, 1, 2};
    for (size_t i = 0; i < 3; i++) {
        struct sampler_params params = open_params;
        params.temperature = temperatures[i];
        count_draws(&params, some_logits, VOCABULARY, 100000, counts);
        softmax(some_logits, temperatures[i], NULL, shares);
        assert_true(misfit(counts, shares, VOCABULARY, 100000) < 4);
        /* The test can fail: another temperature does not fit. */
        softmax(some_logits, temperatures[i] * 1.1, NULL, shares);
        assert_true(misfit(counts, shares, VOCABULARY, 100000) > 4);
    }
}

static void expect_kept(struct sampler_params params, const bool *kept)
{
    size_t counts[VOCABULARY];
    double shares[VOCABULARY];
    params.temperature = 1.5f; /* cut-offs look at the probabilities before it */
    count_draws(&params, some_logits, VOCABULARY, 60000, counts);
    softmax(some_logits, 1.5, kept, shares);
    for (size_t i = 0; i < VOCABULARY; i++)
        assert_int_equal(counts[i] > 0, kept[i]);
    assert_true(misfit(counts, shares, VOCABULARY, 60000) < 4);
}

/* The ids in order of logit, and their probabilities. */
static void ranked(size_t *order, double *shares)
{
    softmax(some_logits, 1, NULL, shares);
    for (size_t i = 0; i < VOCABULARY; i++) {
        size_t rank = 0;
        for (size_t j = 0; j < VOCABULARY; j++)
            rank += some_logits[j] > some_logits[i];
        order[rank] = i;
    }
}

static void test_cut_offs(void **state)
{
    (void)state;
    size_t order[VOCABULARY];
    double shares[VOCABULARY], sum = 0;
    ranked(order, shares);
    for (size_t k = 1; k <= VOCABULARY; k++) {
        bool kept[VOCABULARY] = {0};
        for (size_t i = 0; i < k; i++)
            kept[order[i]] = true;
        struct sampler_params params = open_params;
        params.top_k = (uint32_t)k;
        expect_kept(params, kept);
        /* Just below what the k best have together, top-p still needs all k. */
        sum += shares[order[k - 1]];
        params = open_params;
        params.top_p = (float)(sum - 1e-4);
        expect_kept(params, kept);
        /* Just below the share of the k-th, min-p keeps it. */
        params = open_params;
        params.min_p = (float)(shares[order[k - 1]] / shares[order[0]] - 1e-4);
        expect_kept(params, kept);
        /* Together the tightest wins, whichever it is. */
        params.top_k = (uint32_t)k + 2;
        params.top_p = 0.9999f;
        expect_kept(params, kept);
    }
}

/* top-p counts the probabilities among what top-k left. */
static void test_top_k_before_top_p(void **state)
{
    (void)state;
    size_t order[VOCABULARY];
    double shares[VOCABULARY];
    ranked(order, shares);
    bool kept[VOCABULARY] = {0};
    kept[order[0]] = kept[order[1]] = true;
    struct sampler_params params = open_params;
    params.top_k = 3;
    params.top_p = (float)((shares[order[0]] + shares[order[1]]) /
                               (shares[order[0]] + shares[order[1]] + shares[order[2]]) -
                           1e-4);
    expect_kept(params, kept);
}

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* On many logits, with equal ones among them: every pick is one of the k best, and ties go to lower ids. */
static void test_selection(void **state)
{
    (void)state;
    static float logits[MANY], sorted[MANY];
    struct random random = {3};
    for (size_t round = 0; round < 60; round++) {
        size_t n = 1 + random_below(&random, MANY), kinds = 1 + random_below(&random, round % 2 ? 10 : MANY);
        for (size_t i = 0; i < n; i++)
            logits[i] = sorted[i] = (float)random_below(&random, kinds) / (float)kinds;
        qsort(sorted, n, sizeof *sorted, descending);
        struct sampler_params params = open_params;
        params.top_k = (uint32_t)(1 + random_below(&random, n));
        params.temperature = 10;
        params.top_p = round % 3 ? 1 : 0.999999f;
        float worst = sorted[params.top_k - 1];
        size_t ties = 0; /* how many of the worst fit in */
        for (size_t i = 0; i < params.top_k; i++)
            ties += sorted[i] == worst;
        struct sampler *sampler = create(&params, n);
        for (size_t draws = 0; draws < 50; draws++) {
            int32_t id = sampler_pick(sampler, logits);
            assert_in_range(id, 0, n - 1);
            assert_true(logits[id] >= worst);
            size_t lower = 0;
            for (int32_t i = 0; i < id; i++)
                lower += logits[i] == worst;
            assert_true(logits[id] > worst || lower < ties);
        }
        sampler_destroy(sampler);
    }
}

static void test_greedy(void **state)
{
    (void)state;
    struct sampler_params params = open_params;
    params.temperature = 0;
    params.top_k = 5;
    params.top_p = 0.5f;
    struct sampler *sampler = create(&params, VOCABULARY);
    for (int i = 0; i < 10; i++)
        assert_int_equal(sampler_pick(sampler, some_logits), 1);
    float tied[VOCABULARY] = {0};
    tied[4] = tied[9] = 1;
    assert_int_equal(sampler_pick(sampler, tied), 4);
    sampler_destroy(sampler);
}

static void test_penalty(void **state)
{
    (void)state;
    struct sampler_params params = open_params;
    params.temperature = 0;
    params.repeat_penalty = 2;
    params.repeat_last = 3;
    struct sampler *sampler = create(&params, 4);
    static const float logits[] = {4, 3, -1, -3};
    assert_int_equal(sampler_pick(sampler, logits), 0);
    sampler_accept(sampler, 0); /* 4 becomes 2 */
    assert_int_equal(sampler_pick(sampler, logits), 1);
    sampler_accept(sampler, 0); /* and stays 2: once is once */
    sampler_accept(sampler, 1); /* 3 becomes 1.5 */
    assert_int_equal(sampler_pick(sampler, logits), 0);
    static const float negative[] = {-4, -3, -9, -3.5f};
    assert_int_equal(sampler_pick(sampler, negative), 3); /* -3 becomes -6 and falls behind -3.5 */
    sampler_accept(sampler, 3);
    sampler_accept(sampler, 3);
    sampler_accept(sampler, 3); /* 0 and 1 are out of the window */
    assert_int_equal(sampler_pick(sampler, logits), 0);
    assert_int_equal(sampler_pick(sampler, negative), 1);
    sampler_accept(sampler, -1); /* no tokens: nothing happens */
    sampler_accept(sampler, 4);
    assert_int_equal(sampler_pick(sampler, negative), 1);
    sampler_destroy(sampler);
    /* A penalty of 1 or a window of 0 does nothing. */
    params.repeat_last = 0;
    sampler = create(&params, 4);
    sampler_accept(sampler, 0);
    assert_int_equal(sampler_pick(sampler, logits), 0);
    sampler_destroy(sampler);
}

static void test_seed(void **state)
{
    (void)state;
    static float logits[MANY];
    struct random random = {11};
    for (size_t i = 0; i < MANY; i++)
        logits[i] = (float)random_unit(&random) * 3;
    struct sampler_params params = sampler_defaults;
    size_t differing = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        params.seed = seed;
        struct sampler *a = create(&params, MANY), *b = create(&params, MANY);
        params.seed = seed + 1;
        struct sampler *c = create(&params, MANY);
        for (size_t i = 0; i < 20; i++) {
            int32_t id = sampler_pick(a, logits);
            assert_int_equal(id, sampler_pick(b, logits));
            differing += id != sampler_pick(c, logits);
            sampler_accept(a, id);
            sampler_accept(b, id);
        }
        sampler_destroy(a);
        sampler_destroy(b);
        sampler_destroy(c);
    }
    assert_true(differing > 200);
}

static void test_odd_logits(void **state)
{
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0, -0.0f, 1e-40f};
    struct random random = {5};
    for (size_t round = 0; round < 3000; round++) {
        float logits[VOCABULARY];
        for (size_t i = 0; i < VOCABULARY; i++)
            logits[i] = odd[random_below(&random, round % 2 ? 3 : 8)];
        struct sampler_params params = {.temperature = round % 5   ? 1.0f
                                                       : round % 2 ? 1e-38f
                                                                   : 0,
                                        .top_k = (uint32_t)random_below(&random, VOCABULARY + 3),
                                        .top_p = round % 3 ? 1 : 0.7f,
                                        .min_p = round % 4 ? 0 : 0.1f,
                                        .repeat_penalty = round % 7 ? 1 : 10,
                                        .repeat_last = 4,
                                        .seed = round};
        assert_null(sampler_params_check(&params));
        struct sampler *sampler = create(&params, VOCABULARY);
        bool finite = false;
        for (size_t i = 0; i < VOCABULARY; i++)
            finite = finite || (!isnan(logits[i]) && logits[i] > -INFINITY);
        for (size_t i = 0; i < 5; i++) {
            int32_t id = sampler_pick(sampler, logits);
            assert_in_range(id, 0, VOCABULARY - 1);
            /* Never a hopeless token where there is another (a penalty can make one hopeless). */
            if (finite && params.repeat_penalty == 1)
                assert_true(!isnan(logits[id]) && logits[id] > -INFINITY);
            sampler_accept(sampler, id);
        }
        sampler_destroy(sampler);
    }
    float none[VOCABULARY];
    for (size_t i = 0; i < VOCABULARY; i++)
        none[i] = NAN;
    struct sampler *sampler = create(&open_params, VOCABULARY);
    assert_int_equal(sampler_pick(sampler, none), 0);
    none[8] = -1000;
    assert_int_equal(sampler_pick(sampler, none), 8);
    none[3] = INFINITY;
    assert_int_equal(sampler_pick(sampler, none), 3);
    sampler_destroy(sampler);
}

static void test_params(void **state)
{
    (void)state;
    assert_null(sampler_params_check(&sampler_defaults));
    static const struct {
        size_t offset;
        float good[2], bad[4];
    } cases[] = {
        {offsetof(struct sampler_params, temperature), {0, 10}, {-0.1f, 10.1f, NAN, INFINITY}},
        {offsetof(struct sampler_params, top_p), {1e-6f, 1}, {0, 1.01f, NAN, -1}},
        {offsetof(struct sampler_params, min_p), {0, 0.99f}, {-0.1f, 1, NAN, INFINITY}},
        {offsetof(struct sampler_params, repeat_penalty), {1, 10}, {0.9f, 10.1f, NAN, 0}},
    };
    struct sampler *sampler = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t k = 0; k < 6; k++) {
            struct sampler_params params = sampler_defaults;
            memcpy((char *)&params + cases[i].offset, k < 2 ? &cases[i].good[k] : &cases[i].bad[k - 2],
                   sizeof(float));
            assert_int_equal(sampler_params_check(&params) == NULL, k < 2);
            if (k >= 2)
                assert_int_equal(sampler_create(&params, 10, &sampler), -EINVAL);
        }
    }
    struct sampler_params params = sampler_defaults;
    params.repeat_last = UINT32_MAX;
    assert_non_null(sampler_params_check(&params));
    assert_int_equal(sampler_create(&sampler_defaults, 0, &sampler), -EINVAL);
    sampler_destroy(NULL);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct sampler_params params = sampler_defaults;
    params.repeat_penalty = 1.1f;
    long n = 1;
    for (;; n++) {
        struct sampler *sampler = NULL;
        mem_fault_set(n, false);
        int status = sampler_create(&params, 100, &sampler);
        bool hit = mem_fault_hits() > 0;
        mem_fault_set(0, false);
        assert_int_equal(status, hit ? -ENOMEM : 0);
        if (!hit) {
            sampler_destroy(sampler);
            break;
        }
        assert_null(sampler);
    }
    assert_int_equal(n, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_cut_offs),
        cmocka_unit_test(test_top_k_before_top_p),
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_penalty),
        cmocka_unit_test(test_seed),
        cmocka_unit_test(test_odd_logits),
        cmocka_unit_test(test_params),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
