/* The level choice against every assignment there is (few chunks), and its invariants on many. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "kv/levels.h"

enum { FEW = 8, MANY = 400 };

static const struct kv_geometry geometry = {4, 2, 64};
static const uint8_t level_of[KV_LEVELS] = {16, 8, 4, 3, 2};

static int index_of(uint8_t level)
{
    for (int i = 0; i < KV_LEVELS; i++)
        if (level_of[i] == level)
            return i;
    fail_msg("level %d", level);
    return -1;
}

/* The contract's words, written out once more: which levels may chunk c get? */
static unsigned choices(const struct levels_rules *rules, const struct levels_chunk *c)
{
    unsigned mask = 0;
    for (int i = 0; i < KV_LEVELS; i++)
        if (!c->keep && rules->allowed & 1 << i && level_of[i] <= c->level)
            mask |= 1u << i;
    return mask ? mask : 1u << index_of(c->level);
}

static double error_of(const struct levels_chunk *c, uint8_t level)
{
    return c->density * c->damage[index_of(level)];
}

static void random_chunks(struct random *r, struct levels_chunk *chunks, size_t count)
{
    static const uint8_t levels[] = {16, 8, 8, 8, 4, 3, 2};
    for (size_t i = 0; i < count; i++) {
        double size = 1 + 99 * random_unit(r), at = 0;
        chunks[i] = (struct levels_chunk){.density = random_unit(r) * random_unit(r) * random_unit(r),
                                          .level = levels[random_below(r, sizeof levels)],
                                          .keep = random_below(r, 8) == 0};
        for (int l = 1; l < KV_LEVELS; l++)
            chunks[i].damage[l] = at += size * random_unit(r) * (l == 1 ? 0.01 : l == 2 ? 0.1 : 0.6);
        if (random_below(r, 10) == 0) { /* measured with noise: lower is not always worse */
            unsigned l = 2 + (unsigned)random_below(r, 2);
            chunks[i].damage[l] = chunks[i].damage[l + 1] * 1.1;
        }
    }
}

static struct levels_rules random_rules(struct random *r)
{
    return (struct levels_rules){LEVELS_DAMAGE, (uint8_t)(1 + random_below(r, LEVELS_ALL)), 0,
                                 0.2 + 1.9 * random_unit(r) * random_unit(r)};
}

struct best {
    double error;
    uint64_t bytes, least_bytes;
};

/* All assignments: the least error within the budget, and the fewest bytes of any. */
static struct best search(const struct levels_rules *rules, const struct levels_chunk *chunks, size_t count,
                          uint64_t budget)
{
    struct best best = {INFINITY, 0, UINT64_MAX};
    unsigned long codes = 1;
    for (size_t i = 0; i < count; i++)
        codes *= KV_LEVELS;
    for (unsigned long code = 0; code < codes; code++) {
        double error = 0;
        unsigned long rest = code;
        uint64_t bytes = 0;
        bool valid = true;
        for (size_t i = 0; i < count && valid; i++, rest /= KV_LEVELS) {
            unsigned l = rest % KV_LEVELS;
            valid = choices(rules, &chunks[i]) & 1u << l;
            error += error_of(&chunks[i], level_of[l]);
            bytes += kv_chunk_bytes(&geometry, level_of[l]);
        }
        if (!valid)
            continue;
        if (bytes < best.least_bytes)
            best.least_bytes = bytes;
        if (bytes <= budget && error < best.error)
            best = (struct best){error, bytes, best.least_bytes};
    }
    return best;
}

/* The largest step up between neighbouring corners of a chunk's hull: the most that the greedy may lose. */
static double largest_step(const struct levels_rules *rules, const struct levels_chunk *chunks, size_t count)
{
    double largest = 0;
    for (size_t c = 0; c < count; c++) {
        unsigned mask = choices(rules, &chunks[c]);
        int at = KV_LEVELS - 1;
        while (!(mask & 1u << at))
            at--;
        for (;;) {
            double steepest = 0;
            int next = -1;
            for (int up = at - 1; up >= 0; up--) {
                double gain = error_of(&chunks[c], level_of[at]) - error_of(&chunks[c], level_of[up]);
                double price = gain / (double)(kv_chunk_bytes(&geometry, level_of[up]) -
                                               kv_chunk_bytes(&geometry, level_of[at]));
                if (mask & 1u << up && price > steepest) {
                    steepest = price;
                    next = up;
                }
            }
            if (next < 0)
                break;
            double gain = error_of(&chunks[c], level_of[at]) - error_of(&chunks[c], level_of[next]);
            largest = gain > largest ? gain : largest;
            at = next;
        }
    }
    return largest;
}

static void damage_is_one_step_from_the_best(void **state)
{
    (void)state;
    struct random r = {1};
    int exact = 0, constrained = 0, rounds = 600;
    for (int round = 0; round < rounds; round++) {
        struct levels_chunk chunks[FEW];
        uint8_t out[FEW];
        size_t count = 1 + random_below(&r, round < 40 ? FEW : FEW - 2);
        random_chunks(&r, chunks, count);
        struct levels_rules rules = random_rules(&r);
        uint64_t budget = levels_budget(rules.ratio, &geometry, count), sum = 0;
        struct best best = search(&rules, chunks, count, budget);
        uint64_t bytes = levels_choose(&rules, &geometry, chunks, count, out);
        double error = 0;
        for (size_t i = 0; i < count; i++) {
            assert_true(choices(&rules, &chunks[i]) & 1u << index_of(out[i]));
            error += error_of(&chunks[i], out[i]);
            sum += kv_chunk_bytes(&geometry, out[i]);
        }
        assert_int_equal(bytes, sum);
        if (best.least_bytes > budget) { /* cannot be met: as low as it goes */
            assert_int_equal(bytes, best.least_bytes);
            continue;
        }
        constrained++;
        assert_true(bytes <= budget);
        for (size_t i = 0; i < count; i++) /* nothing that fits in what is left would be of use */
            for (int l = 0; l < KV_LEVELS; l++)
                if (choices(&rules, &chunks[i]) & 1u << l &&
                    bytes - kv_chunk_bytes(&geometry, out[i]) + kv_chunk_bytes(&geometry, level_of[l]) <=
                        budget)
                    assert_true(error_of(&chunks[i], level_of[l]) >=
                                error_of(&chunks[i], out[i]) * (1 - 1e-9));
        assert_true(error >= best.error * (1 - 1e-12));
        assert_true(error <= best.error + largest_step(&rules, chunks, count) + 1e-5 * best.error + 1e-12);
        exact += error <= best.error * (1 + 1e-5) + 1e-12;
    }
    assert_true(constrained > rounds / 2);
    assert_true(exact > constrained * 3 / 4); /* the bound is loose: mostly it is the best itself */
}

static void many_chunks_keep_the_invariants(void **state)
{
    (void)state;
    struct random r = {2};
    for (int round = 0; round < 60; round++) {
        static struct levels_chunk chunks[MANY];
        static uint8_t out[MANY], again[MANY], more[MANY];
        size_t count = random_below(&r, MANY + 1);
        random_chunks(&r, chunks, count);
        struct levels_rules rules = random_rules(&r);
        rules.rule = random_below(&r, 2) ? LEVELS_DAMAGE : LEVELS_PAPER;
        uint64_t bytes = levels_choose(&rules, &geometry, chunks, count, out), least = 0;
        double error = 0, error_more = 0;
        assert_int_equal(bytes, levels_choose(&rules, &geometry, chunks, count, again));
        assert_memory_equal(out, again, count);
        struct levels_rules wider = rules;
        wider.ratio = rules.ratio * 1.25;
        levels_choose(&wider, &geometry, chunks, count, more);
        for (size_t i = 0; i < count; i++) {
            unsigned mask = choices(&rules, &chunks[i]);
            assert_true(mask & 1u << index_of(out[i]));
            int l = KV_LEVELS - 1;
            while (!(mask & 1u << l))
                l--;
            least += kv_chunk_bytes(&geometry, level_of[l]);
            error += error_of(&chunks[i], out[i]);
            error_more += error_of(&chunks[i], more[i]);
            chunks[i].level = out[i];
        }
        if (rules.rule == LEVELS_DAMAGE) {
            uint64_t budget = levels_budget(rules.ratio, &geometry, count);
            assert_true(bytes <= (budget > least ? budget : least));
            assert_true(error_more <= error * (1 + 1e-9)); /* more bytes, no more error */
            levels_choose(&rules, &geometry, chunks, count, again);
            if (bytes <= budget) /* settled: choosing again changes nothing */
                assert_memory_equal(again, out, count);
        }
    }
}

/* Two chunks alike but for density: the denser one never gets less. */
static void density_is_what_counts(void **state)
{
    (void)state;
    struct random r = {3};
    for (int round = 0; round < 100; round++) {
        enum { COUNT = 60 };
        struct levels_chunk chunks[COUNT];
        uint8_t out[COUNT];
        for (size_t i = 0; i < COUNT; i++)
            chunks[i] =
                (struct levels_chunk){random_below(&r, 10) ? random_unit(&r) : 0, {0, -1, -1, -1, -1}, 8, 0};
        struct levels_rules rules = {round % 2 ? LEVELS_DAMAGE : LEVELS_PAPER, LEVELS_8 | LEVELS_4 | LEVELS_2,
                                     0, 0.3 + 0.6 * random_unit(&r)};
        levels_choose(&rules, &geometry, chunks, COUNT, out);
        for (size_t i = 0; i < COUNT; i++)
            for (size_t j = 0; j < COUNT; j++)
                if (chunks[i].density > chunks[j].density)
                    assert_true(out[i] >= out[j]);
        double error = 0, flat = 0;
        for (size_t i = 0; i < COUNT; i++) {
            error += chunks[i].density * levels_damage_model(out[i]);
            flat += chunks[i].density * levels_damage_model(4);
        }
        if (rules.rule == LEVELS_DAMAGE && rules.ratio >= 0.54) /* room for 4 bits and their scales */
            assert_true(error <= flat * (1 + 1e-9));
    }
}

static void what_is_not_known_is_modelled(void **state)
{
    (void)state;
    /* What chunk 0 is known to lose at 4 bits tells what it loses at 2: a thousand times the others. */
    struct levels_chunk chunks[4] = {{0.1, {0, -1, 11.54, -1, -1}, 8, 0},
                                     {0.1, {0, 8.769e-5, 0.01154, 0.06517, 0.1188}, 8, 0},
                                     {0.1, {0, 8.769e-5, -1, 0.06517, 0.1188}, 8, 0},
                                     {0.1, {0, NAN, 0.01154, -1, -1}, 8, 0}};
    uint8_t out[4];
    struct levels_rules rules = {LEVELS_DAMAGE, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, 0.54};
    levels_choose(&rules, &geometry, chunks, 4, out);
    assert_int_equal(out[0], 8);
    for (int i = 1; i < 4; i++)
        assert_true(out[i] < 8);
    /* Densities of 0, as before anything was gathered: damage alone decides. */
    for (int i = 0; i < 4; i++)
        chunks[i].density = 0;
    levels_choose(&rules, &geometry, chunks, 4, out);
    assert_int_equal(out[0], 8);
}

static double normal(double x)
{
    return exp(-x * x / 2) / sqrt(2 * acos(-1.0));
}

/* The squared error of a uniform quantiser with this step on a normal distribution, summed up finely. */
static double quantiser_error(unsigned bits, double step)
{
    double sum = 0, width = 1e-3, middle = ((1u << bits) - 1) / 2.0;
    for (double x = -8 + width / 2; x < 8; x += width) {
        double code = floor(x / step + middle + 0.5);
        code = code < 0 ? 0 : code > 2 * middle ? 2 * middle : code;
        double error = x - (code - middle) * step;
        sum += error * error * normal(x) * width;
    }
    return sum;
}

static void the_model_is_the_best_uniform_quantiser(void **state)
{
    (void)state;
    for (int i = 1; i < KV_LEVELS; i++) {
        if (level_of[i] == 3)
            continue;
        double best = INFINITY;
        for (double step = 0.02; step < 1.4; step *= 1.01)
            best = fmin(best, quantiser_error(level_of[i], step));
        assert_true(fabs(best / levels_damage_model(level_of[i]) - 1) < 0.01);
    }
    assert_true(levels_damage_model(16) == 0);
    assert_true(fabs(levels_damage_model(3) - (levels_damage_model(4) + levels_damage_model(2)) / 2) < 1e-5);
}

/* Eq. 3's objective: density weighed by 1 / ratio. */
static double objective(const double *falling, size_t n, size_t at8, size_t at2)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += falling[i] * (i < at8 ? 1 : i < n - at2 ? 2 : 4);
    return sum;
}

static void the_paper_finds_a_minimum(void **state)
{
    (void)state;
    struct random r = {4};
    for (int round = 0; round < 200; round++) {
        enum { COUNT = 90 };
        struct levels_chunk chunks[COUNT];
        double falling[COUNT], decay = 1 + 0.2 * random_unit(&r) * random_unit(&r);
        for (size_t i = 0; i < COUNT; i++)
            falling[i] = i ? falling[i - 1] / (1 + (decay - 1) * random_unit(&r)) : 1;
        for (size_t i = 0; i < COUNT; i++)
            chunks[i] = (struct levels_chunk){falling[(i * 37) % COUNT], {0, -1, -1, -1, -1}, 8, 0};
        struct levels_rules rules = {LEVELS_PAPER, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, 0.5};
        uint8_t out[COUNT];
        levels_choose(&rules, &geometry, chunks, COUNT, out);
        size_t of[17] = {0}, a = (size_t)(levels_paper_share(0.5, chunks, COUNT) * COUNT + 0.5);
        for (size_t i = 0; i < COUNT; i++) {
            of[out[i]]++;
            size_t rank = (i * 37) % COUNT;
            assert_int_equal(out[i], rank < a ? 8 : rank < COUNT - 2 * a ? 4 : 2);
        }
        assert_int_equal(of[8], a);
        assert_int_equal(of[2], 2 * a);
        double here = objective(falling, COUNT, a, 2 * a), least = INFINITY;
        for (size_t other = 0; other <= COUNT / 3; other++)
            least = fmin(least, objective(falling, COUNT, other, 2 * other));
        assert_true(here <= least + 4 * falling[COUNT - 2 * a - 1]); /* the minimum, to one chunk */
        assert_true(here <= objective(falling, COUNT, 0, 0) + 4 * falling[COUNT - 1]);
    }
}

static void the_papers_share_has_known_values(void **state)
{
    (void)state;
    enum { COUNT = 3000 };
    static struct levels_chunk chunks[COUNT];
    for (int i = 0; i < COUNT; i++) /* f(x) = e^-5x: f(a) = 4 f(1 - 2a) at a = 1/3 - ln 4 / 15 */
        chunks[i] = (struct levels_chunk){exp(-5.0 * i / COUNT), {0}, 8, 0};
    assert_true(fabs(levels_paper_share(0.5, chunks, COUNT) - (1.0 / 3 - log(4) / 15)) < 2.0 / COUNT);
    for (int i = 0; i < COUNT; i++) /* flat: nothing is gained by any 8 */
        chunks[i].density = 1;
    assert_true(levels_paper_share(0.5, chunks, COUNT) == 0);
    assert_true(levels_paper_share(1, chunks, COUNT) == 1);
    assert_true(levels_paper_share(0.25, chunks, COUNT) == 0);
    assert_true(fabs(levels_paper_share(0.75, chunks, COUNT) - 0.5) < 1e-9); /* at least 2r - 1 */
    assert_true(levels_paper_share(0.5, chunks, 0) == 0);
    /* The average the ratio asks for, scales aside, whatever it is. */
    for (double ratio = 0.2; ratio < 1.1; ratio += 0.05) {
        static uint8_t out[COUNT];
        struct levels_rules rules = {LEVELS_PAPER, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, ratio};
        double bits = 0, wanted = fmin(fmax(ratio, 0.25), 1) * 8;
        for (int i = 0; i < COUNT; i++)
            chunks[i].density = exp(-7.0 * i / COUNT);
        levels_choose(&rules, &geometry, chunks, COUNT, out);
        for (int i = 0; i < COUNT; i++)
            bits += out[i] / (double)COUNT;
        assert_true(bits <= wanted + 1e-9 && bits > wanted - 0.01);
    }
}

static void keep_and_fixed(void **state)
{
    (void)state;
    struct levels_chunk chunks[] = {{1, {0}, 16, 0}, {1, {0}, 8, 0}, {1, {0}, 4, 0},
                                    {1, {0}, 3, 0},  {1, {0}, 2, 0}, {1, {0}, 8, 1}};
    uint8_t out[6];
    struct levels_rules rules = {.rule = LEVELS_KEEP, .ratio = 0.1};
    levels_choose(&rules, &geometry, chunks, 6, out);
    assert_memory_equal(out, ((uint8_t[]){16, 8, 4, 3, 2, 8}), 6);
    rules = (struct levels_rules){.rule = LEVELS_FIXED, .fixed = 4};
    assert_int_equal(levels_choose(&rules, &geometry, chunks, 6, out),
                     3 * kv_chunk_bytes(&geometry, 4) + kv_chunk_bytes(&geometry, 3) +
                         kv_chunk_bytes(&geometry, 2) + kv_chunk_bytes(&geometry, 8));
    assert_memory_equal(out, ((uint8_t[]){4, 4, 4, 3, 2, 8}), 6);
    rules.fixed = 3;
    levels_choose(&rules, &geometry, chunks, 6, out);
    assert_memory_equal(out, ((uint8_t[]){3, 3, 3, 3, 2, 8}), 6);
    assert_int_equal(levels_choose(&rules, &geometry, chunks, 0, out), 0);
}

/* The codec is the rules'; a chunk that keeps its bits keeps what it was made by, and its bytes count so. */
static void a_codec_is_chosen_with_the_rules(void **state)
{
    (void)state;
    struct random r = {5};
    unsigned made = 0;
    for (int round = 0; round < 100; round++) {
        enum { COUNT = 40 };
        struct levels_chunk chunks[COUNT];
        uint8_t out[COUNT];
        struct levels_rules rules = {round % 2 ? LEVELS_DAMAGE : LEVELS_PAPER,
                                     LEVELS_8 | LEVELS_4 | LEVELS_2 | (round % 3 ? 0 : LEVELS_3), 0,
                                     0.3 + 0.7 * random_unit(&r), round % 3 ? KV_PAPER : 0};
        uint64_t bytes = 0;
        random_chunks(&r, chunks, COUNT);
        for (size_t i = 0; i < COUNT; i++)
            if ((chunks[i].level == 4 || chunks[i].level == 2) && random_below(&r, 2))
                chunks[i].level |= KV_PAPER;
        uint64_t said = levels_choose(&rules, &geometry, chunks, COUNT, out);
        for (size_t i = 0; i < COUNT; i++) {
            unsigned bits = kv_level_bits(out[i]), before = kv_level_bits(chunks[i].level);
            assert_true(kv_level_valid(out[i]) && bits <= before);
            if (bits == before)
                assert_int_equal(out[i], chunks[i].level);
            else
                assert_int_equal(out[i], levels_tag(&rules, bits));
            made += bits < before && bits < 8;
            bytes += kv_chunk_bytes(&geometry, out[i]);
        }
        assert_int_equal(said, bytes);
    }
    assert_true(made > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage_is_one_step_from_the_best),
        cmocka_unit_test(many_chunks_keep_the_invariants),
        cmocka_unit_test(density_is_what_counts),
        cmocka_unit_test(what_is_not_known_is_modelled),
        cmocka_unit_test(the_model_is_the_best_uniform_quantiser),
        cmocka_unit_test(the_paper_finds_a_minimum),
        cmocka_unit_test(the_papers_share_has_known_values),
        cmocka_unit_test(keep_and_fixed),
        cmocka_unit_test(a_codec_is_chosen_with_the_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
