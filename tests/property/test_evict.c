/* The eviction order against a naive sort, and what it means. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "kv/evict.h"

enum { MOST = 300, NOW = 100 };

struct ranked {
    double key[4]; /* the smaller goes first; later ones where earlier ones are equal */
    size_t index;
};

static int compare(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    for (int i = 0; i < 4; i++)
        if (a->key[i] < b->key[i] || b->key[i] < a->key[i])
            return a->key[i] < b->key[i] ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* As evict_choose, but by sorting everything. */
static size_t naive(enum evict_order order, const struct evict_candidate *c, size_t count, uint64_t need,
                    size_t *out, uint64_t *freed)
{
    struct ranked ranked[MOST];
    size_t n = 0, chosen = 0;
    for (size_t i = 0; i < count; i++) {
        if (!c[i].clean || c[i].locked || !c[i].bytes)
            continue;
        double first = order == EVICT_LCTRU ? -(double)c[i].level
                       : order == EVICT_COST
                           ? c[i].reload_s / ((double)(NOW - c[i].last_used + 1) * (double)c[i].bytes)
                           : 0;
        ranked[n++] = (struct ranked){{first, (double)c[i].last_used, c[i].position, 0}, i};
    }
    qsort(ranked, n, sizeof *ranked, compare);
    for (*freed = 0; chosen < n && *freed < need; chosen++) {
        out[chosen] = ranked[chosen].index;
        *freed += c[ranked[chosen].index].bytes;
    }
    return chosen;
}

static void random_candidates(struct random *r, struct evict_candidate *c, size_t count)
{
    static const uint8_t levels[] = {16, 8, 4, 3, 2};
    uint64_t calls = 1 + random_below(r, NOW);
    for (size_t i = 0; i < count; i++) {
        uint8_t level = levels[random_below(r, sizeof levels)];
        c[i] = (struct evict_candidate){.last_used = NOW - random_below(r, calls),
                                        .bytes = random_below(r, 20) ? level * 1000u : 0,
                                        .reload_s = random_below(r, 3) ? level * 1e-4 : random_unit(r),
                                        .position = 16 * (uint32_t)random_below(r, 50),
                                        .level = level,
                                        .clean = random_below(r, 5) != 0,
                                        .locked = random_below(r, 5) == 0};
    }
}

static void as_a_full_sort(void **state)
{
    (void)state;
    struct random r = {1};
    for (int round = 0; round < 6000; round++) {
        struct evict_candidate c[MOST];
        size_t out[MOST], expected[MOST], count = random_below(&r, round % 4 ? 12 : MOST + 1);
        uint64_t freed = 1, expected_freed;
        random_candidates(&r, c, count);
        enum evict_order order = (enum evict_order)(round % 3);
        uint64_t need = random_below(&r, 3) ? random_below(&r, count * 5000 + 1) : UINT64_MAX;
        size_t n = evict_choose(order, NOW, c, count, need, out, &freed);
        assert_int_equal(n, naive(order, c, count, need, expected, &expected_freed));
        assert_int_equal(freed, expected_freed);
        assert_memory_equal(out, expected, n * sizeof *out);
        for (size_t i = 0; i < n; i++)
            assert_true(c[out[i]].clean && !c[out[i]].locked); /* invariants 3 and 4 */
        if (n)                                                 /* none too many */
            assert_true(freed - c[out[n - 1]].bytes < need);
    }
}

static struct evict_candidate chunk(uint64_t last_used, uint64_t bytes, double reload_s, uint32_t position,
                                    uint8_t level)
{
    return (struct evict_candidate){last_used, bytes, reload_s, position, level, .clean = true};
}

static void examples(void **state)
{
    (void)state;
    struct evict_candidate c[] = {
        chunk(99, 800, 8e-3, 0, 8),  /* a hot context's, 8 bits */
        chunk(10, 200, 2e-3, 0, 2),  /* a stale one's, 2 bits */
        chunk(99, 200, 2e-3, 16, 2), /* hot, 2 bits */
        chunk(10, 800, 80, 16, 8),   /* stale, but only to be recomputed, and slowly */
    };
    size_t out[4];
    uint64_t freed;
    assert_int_equal(evict_choose(EVICT_LCTRU, 100, c, 4, 2000, out, &freed), 4);
    assert_memory_equal(out, ((size_t[]){3, 0, 1, 2}),
                        sizeof out); /* the trap: hot 8 bits before stale 2 bits */
    assert_int_equal(freed, 2000);
    assert_int_equal(evict_choose(EVICT_LRU, 100, c, 4, 2000, out, &freed), 4);
    assert_memory_equal(out, ((size_t[]){1, 3, 0, 2}), sizeof out);
    assert_int_equal(evict_choose(EVICT_COST, 100, c, 4, 2000, out, &freed), 4);
    assert_int_equal(out[0], 1);
    assert_int_equal(out[3], 3);
    assert_int_equal(evict_choose(EVICT_LRU, 100, c, 4, 201, out, &freed), 2);
    assert_int_equal(freed, 1000);
    assert_int_equal(evict_choose(EVICT_LRU, 100, c, 4, 0, out, &freed), 0);
    assert_int_equal(freed, 0);
    assert_int_equal(evict_choose(EVICT_COST, 5, c, 4, UINT64_MAX, out, &freed), 4); /* a clock behind */
    c[1].clean = false;
    c[3].locked = true;
    assert_int_equal(evict_choose(EVICT_LRU, 100, c, 4, UINT64_MAX, out, &freed), 2);
    assert_memory_equal(out, ((size_t[]){0, 2}), 2 * sizeof *out);
    assert_int_equal(evict_choose(EVICT_LRU, 100, NULL, 0, 1, out, &freed), 0);
}

static void inside_a_context_the_start_goes_first(void **state)
{
    (void)state;
    struct evict_candidate c[40];
    size_t out[40];
    uint64_t freed;
    for (uint32_t i = 0; i < 40; i++)
        c[i] = chunk(7, 1000, 1e-3, 16 * (i * 7 % 40), 8);
    for (int order = 0; order < 3; order++) {
        assert_int_equal(evict_choose((enum evict_order)order, 9, c, 40, 10000, out, &freed), 10);
        for (uint32_t i = 0; i < 10; i++)
            assert_int_equal(c[out[i]].position, 16 * i);
    }
}

/* COST: of two alike in all but one respect. */
static void cost_weighs_each_of_its_parts(void **state)
{
    (void)state;
    struct random r = {2};
    for (int round = 0; round < 1000; round++) {
        struct evict_candidate c[2];
        size_t out[2];
        uint64_t freed;
        c[0] = c[1] = chunk(1 + random_below(&r, 80), 1 + random_below(&r, 100000), 1e-6 + random_unit(&r),
                            (uint32_t)random_below(&r, 1000), 8);
        size_t first = random_below(&r, 2);
        switch (round % 3) {
        case 0:
            c[first].reload_s /= 2;
            break;
        case 1:
            c[first].last_used -= 1;
            break;
        default:
            c[first].bytes *= 2;
        }
        assert_int_equal(evict_choose(EVICT_COST, NOW, c, 2, UINT64_MAX, out, &freed), 2);
        assert_int_equal(out[0], first);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_a_full_sort),
        cmocka_unit_test(examples),
        cmocka_unit_test(inside_a_context_the_start_goes_first),
        cmocka_unit_test(cost_weighs_each_of_its_parts),
    };
    return cmocka_run_group_tests_name("evict", tests, NULL, NULL);
}
