/* The load plan against all subsets (few chunks), against a lower bound (many), and its modes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "kv/plan.h"

enum { FEW = 15, MANY = 5000 };

static double log_uniform(struct random *r, double low, double high)
{
    return low * exp(random_unit(r) * log(high / low));
}

static struct plan_rates random_rates(struct random *r)
{
    return (struct plan_rates){
        .io_bytes_per_s = log_uniform(r, 2e7, 5e9),
        .io_request_s = random_below(r, 3) ? log_uniform(r, 1e-6, 5e-3) : 0,
        .batch_s = log_uniform(r, 1e-3, 0.2),
        .token_s = log_uniform(r, 1e-5, 2e-2),
        .depth_s = log_uniform(r, 1e-9, 1e-5),
    };
}

static void random_chunks(struct random *r, struct plan_chunk *chunks, size_t count)
{
    static const uint64_t bytes[] = {1048576, 540672, 278528, 147456};
    uint32_t position = (uint32_t)random_below(r, 40) * 16;
    bool uniform = random_below(r, 3) == 0, pins = random_below(r, 3) == 0;
    for (size_t i = 0; i < count; i++) {
        chunks[i] = (struct plan_chunk){position, 16, bytes[uniform ? 1 : random_below(r, 4)]};
        if (random_below(r, 12) == 0)
            chunks[i].bytes = 0;
        chunks[i].pinned = chunks[i].bytes && pins && random_below(r, 3) == 0;
        position += 16 * (uint32_t)(random_below(r, 5) ? 1 : 1 + random_below(r, 20));
    }
    if (count && random_below(r, 2))
        chunks[count - 1].tokens = 1 + (uint32_t)random_below(r, 16);
}

/* The header's model, written out once more. */
static double model(const struct plan_rates *rates, const struct plan_request *q, const bool *recompute)
{
    double bytes = 0, requests = 0, compute = 0;
    bool batch = q->prompt_tokens > 0;
    for (uint32_t t = 0; t < q->prompt_tokens; t++)
        compute += rates->token_s + (q->prompt_position + t + 1) * rates->depth_s;
    for (size_t i = 0; i < q->count; i++) {
        const struct plan_chunk *c = &q->chunks[i];
        if (recompute[i]) {
            batch = true;
            compute += c->tokens * (rates->token_s + (c->position + (c->tokens + 1) / 2.0) * rates->depth_s);
            continue;
        }
        bytes += (double)c->bytes;
        if (i == 0 || recompute[i - 1] || c->position != q->chunks[i - 1].position + 16)
            requests += q->layers;
    }
    double io = requests * rates->io_request_s + bytes / rates->io_bytes_per_s;
    compute += batch ? rates->batch_s : 0;
    return q->serial ? io + compute : fmax(io + compute / q->layers, io / q->layers + compute);
}

static double best_of_all(const struct plan_rates *rates, const struct plan_request *q)
{
    double best = INFINITY;
    for (unsigned code = 0; code < 1u << q->count; code++) {
        bool recompute[FEW], valid = true;
        for (size_t i = 0; i < q->count; i++) {
            recompute[i] = code >> i & 1;
            valid = valid && (recompute[i] ? !q->chunks[i].pinned : q->chunks[i].bytes != 0);
        }
        if (valid)
            best = fmin(best, model(rates, q, recompute));
    }
    return best;
}

static struct plan_request random_request(struct random *r, const struct plan_chunk *chunks, size_t count)
{
    return (struct plan_request){.chunks = chunks,
                                 .count = count,
                                 .prompt_tokens = random_below(r, 3) ? (uint32_t)random_below(r, 200) : 0,
                                 .prompt_position = count ? chunks[count - 1].position + 16 : 0,
                                 .layers = 1 + (uint32_t)random_below(r, 32),
                                 .serial = random_below(r, 6) == 0};
}

static void best_is_near_the_best_of_all(void **state)
{
    (void)state;
    struct random r = {1};
    int mixed = 0, beyond = 0, beyond_exact = 0;
    for (int round = 0; round < 1200; round++) {
        struct plan_chunk chunks[FEW];
        bool recompute[FEW];
        size_t count = round % 6 ? random_below(&r, 12) : FEW - random_below(&r, 3);
        random_chunks(&r, chunks, count);
        struct plan_rates rates = random_rates(&r);
        struct plan_request q = random_request(&r, chunks, count);
        struct plan plan = {.recompute = recompute};
        plan_choose(&rates, &q, &plan);
        double best = best_of_all(&rates, &q);
        assert_true(fabs(plan.total_s - model(&rates, &q, recompute)) <= 1e-9 * plan.total_s);
        assert_true(plan.total_s >= best * (1 - 1e-9));
        size_t loadable = 0;
        for (size_t i = 0; i < count; i++)
            loadable += chunks[i].bytes != 0;
        if (loadable <= 12)
            assert_true(plan.total_s <= best * (1 + 1e-9));
        else {
            assert_true(plan.total_s <= best * 1.01);
            beyond++;
            beyond_exact += plan.total_s <= best * (1 + 1e-6);
        }
        mixed += plan.loaded && plan.recomputed > count - loadable; /* the regime where it matters */
        assert_int_equal(plan.loaded + plan.recomputed, count);
    }
    assert_true(mixed > 100 && beyond > 100);
    assert_true(beyond_exact > beyond * 9 / 10);
}

/* What no plan can beat: parts of chunks may be chosen and requests are free (the dual of that relaxation at
 * its best price). */
static double lower_bound(const struct plan_rates *rates, const struct plan_request *q)
{
    double best = 0;
    for (int step = 0; step <= 2000; step++) {
        double price = step / 2000.0, l = q->layers, io = price + (1 - price) / l, re = price / l + 1 - price;
        struct plan_request none = *q;
        none.count = 0;
        double sum = re * model(rates, &none, NULL); /* the prompt alone */
        for (size_t i = 0; i < q->count; i++) {
            const struct plan_chunk *c = &q->chunks[i];
            double again =
                re * c->tokens * (rates->token_s + (c->position + (c->tokens + 1) / 2.0) * rates->depth_s);
            double read = io * (double)c->bytes / rates->io_bytes_per_s;
            sum += c->pinned ? read : c->bytes ? fmin(again, read) : again;
        }
        best = fmax(best, sum);
    }
    return best;
}

static void many_chunks_come_near_the_bound(void **state)
{
    (void)state;
    static struct plan_chunk chunks[MANY];
    static bool recompute[MANY];
    struct random r = {2};
    int mixed = 0;
    for (int round = 0; round < 60; round++) {
        size_t count = 200 + random_below(&r, round < 40 ? 1800 : MANY - 200);
        random_chunks(&r, chunks, count);
        struct plan_rates rates = random_rates(&r);
        struct plan_request q = random_request(&r, chunks, count);
        rates.io_request_s = 0; /* which the bound leaves out */
        q.prompt_tokens = 20;
        q.serial = false;
        struct plan plan = {.recompute = recompute};
        plan_choose(&rates, &q, &plan);
        double bound = lower_bound(&rates, &q);
        assert_true(plan.total_s >= bound * (1 - 1e-9));
        assert_true(plan.total_s <= bound * 1.01);
        mixed += plan.loaded > count / 20 && plan.recomputed > count / 5;
    }
    assert_true(mixed > 10);
}

/* With requests to pay for too: no chunk's change of mind, nor any cut into two runs, is better by 1 %. */
static void many_chunks_cannot_be_improved(void **state)
{
    (void)state;
    enum { COUNT = 300 };
    static struct plan_chunk chunks[COUNT];
    static bool recompute[COUNT], other[COUNT];
    struct random r = {3};
    for (int round = 0; round < 150; round++) {
        random_chunks(&r, chunks, COUNT);
        struct plan_rates rates = random_rates(&r);
        struct plan_request q = random_request(&r, chunks, COUNT);
        struct plan plan = {.recompute = recompute}, rest = {.recompute = other};
        plan_choose(&rates, &q, &plan);
        for (size_t i = 0; i < COUNT; i++) {
            memcpy(other, recompute, sizeof other);
            if (chunks[i].pinned)
                continue;
            other[i] = !other[i];
            plan_predict(&rates, &q, &rest);
            assert_true(rest.total_s >= plan.total_s * 0.999);
            for (size_t j = 0; j < COUNT; j++) /* the first i recomputed */
                other[j] = j < i && !chunks[j].pinned;
            plan_predict(&rates, &q, &rest);
            assert_true(rest.total_s >= plan.total_s * 0.99);
            for (size_t j = 0; j < COUNT; j++) /* the last i recomputed */
                other[j] = j >= COUNT - i && !chunks[j].pinned;
            plan_predict(&rates, &q, &rest);
            assert_true(rest.total_s >= plan.total_s * 0.99);
        }
    }
}

static void regimes(void **state)
{
    (void)state;
    enum { COUNT = 100 };
    struct plan_chunk chunks[COUNT];
    bool recompute[COUNT];
    for (uint32_t i = 0; i < COUNT; i++)
        chunks[i] = (struct plan_chunk){16 * i, 16, i % 2 ? 278528 : 540672};
    struct plan_request q = {chunks, COUNT, 32, 16 * COUNT, 16};
    struct plan plan = {.recompute = recompute};
    struct plan_rates fast_disk = {3e9, 1e-5, 0.02, 2e-3, 1e-7};
    plan_choose(&fast_disk, &q, &plan);
    assert_int_equal(plan.recomputed, 0);
    assert_int_equal(plan.requests, 16);
    assert_int_equal(plan.bytes_read, 50 * (278528 + 540672));
    struct plan_rates slow_disk = {2e6, 1e-3, 0.02, 1e-4, 1e-9};
    plan_choose(&slow_disk, &q, &plan);
    assert_true(plan.recomputed > 95);
    /* Between: the chunks that take longer to read are recomputed first, the cheaper positions of them. */
    struct plan_rates even = {5e7, 0, 0.02, 1e-3, 5e-7};
    plan_choose(&even, &q, &plan);
    assert_true(plan.recomputed > 20 && plan.recomputed < 50);
    for (size_t i = 0; i + 2 < COUNT; i += 2) {
        assert_true(recompute[i] >= recompute[i + 2]);
        assert_false(recompute[i + 1]);
    }
    assert_true(fabs(plan.io_s - plan.compute_s) < 0.03 * plan.total_s);
}

static void modes(void **state)
{
    (void)state;
    enum { COUNT = 50 };
    struct plan_chunk chunks[COUNT];
    bool recompute[COUNT], again[COUNT];
    for (uint32_t i = 0; i < COUNT; i++)
        chunks[i] = (struct plan_chunk){16 * i, 16, i % 10 ? 1000 : 0};
    struct plan_rates rates = {1e6, 1e-3, 0.5, 1e-3, 0};
    struct plan_request q = {chunks, COUNT, 0, 16 * COUNT, 4};
    struct plan plan = {.recompute = recompute};
    q.mode = PLAN_LOAD_ONLY;
    plan_choose(&rates, &q, &plan);
    for (size_t i = 0; i < COUNT; i++)
        assert_int_equal(recompute[i], i % 10 == 0);
    assert_int_equal(plan.bytes_read, 45000);
    assert_int_equal(plan.requests, 5 * 4); /* five runs */
    assert_true(fabs(plan.io_s - (20e-3 + 45e-3)) < 1e-12);
    assert_true(fabs(plan.compute_s - (0.5 + 80e-3)) < 1e-12);
    assert_true(fabs(plan.total_s - (plan.compute_s + plan.io_s / 4)) < 1e-12);
    q.serial = true;
    plan_predict(&rates, &q, &plan);
    assert_true(fabs(plan.total_s - (plan.compute_s + plan.io_s)) < 1e-12);
    q.mode = PLAN_RECOMPUTE_ONLY;
    plan_choose(&rates, &q, &plan);
    assert_int_equal(plan.recomputed, COUNT);
    assert_true(plan.io_s == 0 && plan.bytes_read == 0);
    q.mode = PLAN_FORCED;
    size_t often[COUNT] = {0};
    for (uint64_t seed = 0; seed < 400; seed++) {
        q.forced_share = (double)(seed % 5) / 4;
        q.forced_seed = seed;
        plan_choose(&rates, &q, &plan);
        assert_int_equal(plan.recomputed, 5 + (size_t)(q.forced_share * 45 + 0.5));
        memcpy(again, recompute, sizeof again);
        plan_choose(&rates, &q, &plan);
        assert_memory_equal(again, recompute, sizeof again);
        for (size_t i = 0; i < COUNT; i++)
            often[i] += recompute[i];
    }
    for (size_t i = 0; i < COUNT; i++)
        assert_true(i % 10 ? often[i] > 150 && often[i] < 250 : often[i] == 400);
    for (int mode = 0; mode < 4; mode++) { /* nothing is missing */
        q.mode = (enum plan_mode)mode;
        q.count = 0;
        plan_choose(&rates, &q, &plan);
        assert_true(plan.total_s == 0 && plan.recomputed == 0 && plan.loaded == 0);
    }
}

static void depth_is_what_tokens_attend_to(void **state)
{
    (void)state;
    double sum = 0;
    for (int t = 100; t < 117; t++)
        sum += t + 1;
    assert_true(plan_depth(100, 17) == sum);
    assert_true(plan_depth(0, 1) == 1);
    assert_true(plan_depth(5, 0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(best_is_near_the_best_of_all),
        cmocka_unit_test(many_chunks_come_near_the_bound),
        cmocka_unit_test(many_chunks_cannot_be_improved),
        cmocka_unit_test(regimes),
        cmocka_unit_test(modes),
        cmocka_unit_test(depth_is_what_tokens_attend_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
