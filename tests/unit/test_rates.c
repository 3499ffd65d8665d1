/* Rates are learnt from noisy observations, survive stalls, and follow a machine that changes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/random.h"
#include "kv/rates.h"

static double noise(struct random *r, double size)
{
    return 1 + size * (random_unit(r) + random_unit(r) + random_unit(r) - 1.5);
}

static double read_time(const struct plan_rates *t, uint64_t bytes, uint64_t requests)
{
    return (double)requests * t->io_request_s + (double)bytes / t->io_bytes_per_s;
}

static double compute_time(const struct plan_rates *t, uint64_t tokens, double depth)
{
    return t->batch_s + (double)tokens * t->token_s + depth * t->depth_s;
}

/* So many restores and batches on a machine of these rates; every stall-th takes ten times as long. */
static void live(struct rates *rates, const struct plan_rates *truth, struct random *r, int count,
                 double noisy, int stall)
{
    for (int i = 0; i < count; i++) {
        uint64_t requests = 16 * (1 + random_below(r, 10)),
                 bytes = requests * (4096 + random_below(r, 1000000));
        uint32_t tokens = 1 + (uint32_t)random_below(r, random_below(r, 2) ? 600 : 20);
        double depth = plan_depth((uint32_t)random_below(r, 4000), tokens);
        double factor = stall && i % stall == 0 ? 10 : 1;
        rates_observe_read(rates, bytes, requests,
                           factor * noise(r, noisy) * read_time(truth, bytes, requests));
        rates_observe_compute(rates, tokens, depth,
                              factor * noise(r, noisy) * compute_time(truth, tokens, depth));
    }
}

/* The worst relative error of what is predicted for typical work. */
static double worst(const struct plan_rates *got, const struct plan_rates *truth)
{
    double most = 0;
    static const uint32_t tokens[] = {1, 16, 64, 256, 512};
    for (int i = 0; i < 5; i++)
        for (uint32_t position = 0; position <= 3000; position += 1000) {
            double depth = plan_depth(position, tokens[i]);
            most = fmax(
                most, fabs(compute_time(got, tokens[i], depth) / compute_time(truth, tokens[i], depth) - 1));
            uint64_t bytes = (uint64_t)tokens[i] * 30000 + position;
            most = fmax(most, fabs(read_time(got, bytes, 16) / read_time(truth, bytes, 16) - 1));
        }
    return most;
}

static const struct plan_rates machines[] = {
    {3e9, 2e-5, 0.03, 1.5e-3, 4e-7},
    {5e7, 1e-3, 0.2, 2e-2, 5e-6},
    {8e9, 5e-6, 2e-3, 5e-5, 1e-9},
    {2.5e8, 1e-4, 0.02, 1e-3, 1e-7},
};

static void defaults_are_sane(void **state)
{
    (void)state;
    struct rates rates;
    rates_init(&rates, NULL);
    assert_true(rates.now.io_bytes_per_s >= 1e8 && rates.now.io_bytes_per_s <= 1e10);
    assert_true(rates.now.io_request_s > 0 && rates.now.batch_s > 0 && rates.now.token_s > 0 &&
                rates.now.depth_s > 0);
    rates_init(&rates, &machines[1]);
    assert_memory_equal(&rates.now, &machines[1], sizeof rates.now);
}

static void converges_under_noise(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct random r = {seed};
        struct rates rates;
        const struct plan_rates *truth = &machines[seed % 4];
        rates_init(&rates, NULL);
        double before = worst(&rates.now, truth);
        live(&rates, truth, &r, 20, 0.1, 0);
        assert_true(worst(&rates.now, truth) < fmax(0.6 * before, 0.5)); /* soon better */
        live(&rates, truth, &r, 150, 0.1, 0);
        assert_true(worst(&rates.now, truth) < 0.2);
        rates_init(&rates, NULL);
        live(&rates, truth, &r, 200, 0, 0); /* without noise: what is true */
        assert_true(worst(&rates.now, truth) < 0.01);
    }
}

static void outliers_do_not_count_for_much(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct random r = {seed};
        struct rates rates;
        const struct plan_rates *truth = &machines[seed % 4];
        rates_init(&rates, truth);
        live(&rates, truth, &r, 50, 0.1, 0);
        struct plan_rates before = rates.now;
        rates_observe_read(&rates, 1 << 20, 16, 100 * read_time(truth, 1 << 20, 16));
        rates_observe_compute(&rates, 64, plan_depth(500, 64),
                              100 * compute_time(truth, 64, plan_depth(500, 64)));
        assert_true(worst(&rates.now, &before) < 0.1);
        before = rates.now; /* nor does what took no time, as a read that was in some cache */
        rates_observe_read(&rates, 1 << 20, 16, 0.01 * read_time(truth, 1 << 20, 16));
        rates_observe_compute(&rates, 64, plan_depth(500, 64),
                              0.01 * compute_time(truth, 64, plan_depth(500, 64)));
        assert_true(worst(&rates.now, &before) < 0.2);
        live(&rates, truth, &r, 60, 0.1, 0);
        assert_true(worst(&rates.now, truth) < 0.25); /* forgotten */
        live(&rates, truth, &r, 300, 0.1, 20);
        assert_true(worst(&rates.now, truth) < 0.5);
    }
}

static void a_change_is_followed(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct random r = {seed};
        struct rates rates;
        struct plan_rates slow = machines[seed % 4];
        rates_init(&rates, NULL);
        live(&rates, &slow, &r, 100, 0.05, 0);
        slow.io_bytes_per_s /= 8;
        slow.io_request_s *= 8;
        slow.batch_s *= 3;
        slow.token_s *= 3;
        slow.depth_s *= 3;
        live(&rates, &slow, &r, 60, 0.05, 0);
        assert_true(worst(&rates.now, &slow) < 0.3);
        live(&rates, &machines[seed % 4], &r, 100, 0.05, 0); /* and back */
        assert_true(worst(&rates.now, &machines[seed % 4]) < 0.3);
    }
}

static void one_size_only_keeps_its_prediction(void **state)
{
    (void)state;
    struct random r = {9};
    struct rates rates;
    rates_init(&rates, NULL);
    for (int i = 0; i < 5000; i++) { /* which part costs how much cannot be told: nothing may run away */
        rates_observe_read(&rates, 8 << 20, 16, 0.05 * noise(&r, 0.1));
        rates_observe_compute(&rates, 20, plan_depth(1500, 20), 0.08 * noise(&r, 0.1));
        assert_true(isfinite(rates.now.io_bytes_per_s) && rates.now.io_bytes_per_s > 0);
        assert_true(rates.now.batch_s > 0 && rates.now.token_s > 0 && rates.now.depth_s > 0);
    }
    assert_true(fabs(read_time(&rates.now, 8 << 20, 16) / 0.05 - 1) < 0.1);
    assert_true(fabs(compute_time(&rates.now, 20, plan_depth(1500, 20)) / 0.08 - 1) < 0.1);
    live(&rates, &machines[0], &r, 200, 0.05, 0); /* and other sizes are learnt after it */
    assert_true(worst(&rates.now, &machines[0]) < 0.25);
}

static void nonsense_is_left_out(void **state)
{
    (void)state;
    struct rates rates;
    rates_init(&rates, NULL);
    struct rates before = rates;
    rates_observe_read(&rates, 0, 0, 1);
    rates_observe_read(&rates, 4096, 1, 0);
    rates_observe_read(&rates, 4096, 1, -1);
    rates_observe_read(&rates, 4096, 1, NAN);
    rates_observe_read(&rates, 4096, 1, INFINITY);
    rates_observe_compute(&rates, 0, 0, 1);
    rates_observe_compute(&rates, 5, NAN, 1);
    rates_observe_compute(&rates, 5, 10, 0);
    assert_memory_equal(&rates, &before, sizeof rates);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_sane),
        cmocka_unit_test(converges_under_noise),
        cmocka_unit_test(outliers_do_not_count_for_much),
        cmocka_unit_test(a_change_is_followed),
        cmocka_unit_test(one_size_only_keeps_its_prediction),
        cmocka_unit_test(nonsense_is_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
