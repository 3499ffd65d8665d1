/* The codec: its layout against the header's own accessors, its error against what the levels should cost,
 * the rotation, and every instruction set against the plain twin bit by bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/memory.h"
#include "base/random.h"
#include "kernels/attention.h"
#include "kernels/codec.h"
#include "kernels/kernels.h"

enum { GUARD = 64, ROOM = 2 * CODEC_SLOTS * CODEC_DIM * 2 + 64 };

struct block {
    _Alignas(64) uint8_t bytes[ROOM + GUARD];
};

static float normal(struct random *r)
{
    double u = random_unit(r) + 1e-12, v = random_unit(r);
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static size_t head_bytes(uint8_t level, size_t dim)
{
    size_t scales = level == 16           ? 0
                    : level == 3          ? 2 * CODEC_SLOTS + 4 + dim
                    : level == 2          ? 8 + 2 * dim
                    : level & CODEC_PAPER ? 8 * dim
                                          : 4 * CODEC_SLOTS;
    return 2 * CODEC_SLOTS * dim * codec_bits(level) / 8 + scales;
}

/* What code 0 of a dimension or token stands for, and how far the next code is. */
static double step_of(const void *data, uint8_t level, size_t dim, size_t t, size_t d, int values,
                      double *first)
{
    const uint16_t *scales = codec_scales(data, level, dim);
    double step = half_to_float(scales[values * CODEC_SLOTS + t]);
    *first = codec_part(level, values) == 4 ? -7.5 * step : 0;
    if (codec_part(level, values) == 2) {
        const uint16_t *units = level == 3 ? scales + CODEC_SLOTS : scales + 2 * values;
        unsigned byte = level == 3 ? ((const uint8_t *)(units + 2))[d]
                                   : ((const uint8_t *)(scales + 4))[values * dim + d];
        step = (byte & 15) * (double)half_to_float(units[1]);
        *first = ((int)(byte >> 4) - 8) * (double)half_to_float(units[0]) - 1.5 * step;
    } else if (level & CODEC_PAPER) {
        step = half_to_float(scales[2 * values * dim + d]);
        *first = half_to_float(scales[(2 * values + 1) * dim + d]);
    }
    return step;
}

/* What a block holds at [t][d]; K, or V; rotated where the level is. */
static double stored(const void *data, uint8_t level, size_t dim, size_t t, size_t d, int values)
{
    size_t i = values ? CODEC_SLOTS * dim + t * dim + d : d * CODEC_SLOTS + t;
    if (level == 16)
        return half_to_float(((const uint16_t *)data)[i]);
    double first, step = step_of(data, level, dim, t, d, values, &first);
    if (level == 8)
        return step * ((const int8_t *)data)[i];
    return first + step * (values ? codec_value(data, level, dim, t, d) : codec_key(data, level, d, t));
}

/* R x by R's own definition: entries (-1)^(ones in i & j) / sqrt(block). */
static void rotate_by_definition(const double *x, size_t dim, double *out)
{
    size_t block = codec_block(dim);
    for (size_t i = 0; i < dim; i++) {
        double sum = 0;
        for (size_t j = i / block * block; j < i / block * block + block; j++)
            sum += __builtin_parityll((i % block) & (j % block)) ? -x[j] : x[j];
        out[i] = sum / sqrt((double)block);
    }
}

/* One vector, not rotated. */
static void plain_values(const void *data, uint8_t level, size_t dim, size_t t, int values, double *out)
{
    double x[CODEC_DIM];
    for (size_t d = 0; d < dim; d++)
        x[d] = stored(data, level, dim, t, d, values);
    if (codec_rotated(level))
        rotate_by_definition(x, dim, out);
    else
        memcpy(out, x, dim * sizeof *x);
}

static void fill(struct block *b, uint8_t level, size_t dim, unsigned tokens, float size, struct random *r)
{
    float k[CODEC_DIM], v[CODEC_DIM];
    memset(b, 0, sizeof *b);
    for (unsigned t = 0; t < tokens; t++) {
        for (size_t d = 0; d < dim; d++) {
            k[d] = size * normal(r);
            v[d] = size * normal(r);
        }
        kernels_get(ISA_PLAIN)->store(b->bytes, level, dim, t, k, v);
    }
}

static double difference(const struct block *a, uint8_t a_level, const struct block *b, uint8_t b_level,
                         size_t dim, unsigned tokens, double *power)
{
    double x[CODEC_DIM], y[CODEC_DIM], sum = 0;
    *power = 0;
    for (unsigned t = 0; t < tokens; t++)
        for (int values = 0; values < 2; values++) {
            plain_values(a->bytes, a_level, dim, t, values, x);
            plain_values(b->bytes, b_level, dim, t, values, y);
            for (size_t d = 0; d < dim; d++) {
                sum += (x[d] - y[d]) * (x[d] - y[d]);
                *power += x[d] * x[d];
            }
        }
    return sum;
}

static double lower(const struct kernels *kernels, const struct block *from, uint8_t from_level,
                    struct block *to, uint8_t to_level, size_t dim, unsigned tokens)
{
    struct codec_head head = {.from = from->bytes,
                              .to = to->bytes,
                              .from_level = from_level,
                              .to_level = to_level,
                              .tokens = (uint8_t)tokens,
                              .dim = dim};
    memset(to, 0xa5, sizeof *to);
    struct codec_error error = kernels->codec(&head);
    return error.keys + error.values;
}

enum { PAPER_4 = CODEC_PAPER | 4, PAPER_2 = CODEC_PAPER | 2 };
static const uint8_t steps[][2] = {{16, 8},
                                   {16, 4},
                                   {16, 2},
                                   {8, 4},
                                   {8, 2},
                                   {4, 2},
                                   {16, 3},
                                   {8, 3},
                                   {4, 3},
                                   {3, 2},
                                   {8, 16},
                                   {16, 16},
                                   {16, PAPER_4},
                                   {16, PAPER_2},
                                   {8, PAPER_4},
                                   {8, PAPER_2},
                                   {PAPER_4, PAPER_2},
                                   {PAPER_4, 2},
                                   {4, PAPER_2}};
enum { STEPS = sizeof steps / sizeof *steps };

static void levels_cost_what_they_should(void **state)
{
    (void)state;
    const struct kernels *best = kernels_best();
    static const struct {
        uint8_t from, to;
        double bound;
    } cases[] = {{16, 8, 5e-5},         {16, 4, 0.0125},
                 {8, 4, 0.0125},        {16, 2, 0.14},
                 {8, 2, 0.14},          {4, 2, 0.14},
                 {16, 3, 0.0765},       {8, 3, 0.0765},
                 {4, 3, 0.07},          {3, 2, 0.07},
                 {16, PAPER_4, 0.0055}, {8, PAPER_4, 0.0055},
                 {16, PAPER_2, 0.125},  {PAPER_4, PAPER_2, 0.125}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t dim = 64; dim <= 128; dim += 64) {
            struct random r = {17 + i};
            double error = 0, power = 0;
            for (int round = 0; round < 40; round++) {
                struct block source, from, to;
                double one;
                fill(&source, codec_bits(cases[i].from) < 8 ? 16 : cases[i].from, dim, CODEC_SLOTS, 1, &r);
                from = source;
                if (codec_bits(cases[i].from) < 8)
                    lower(best, &source, 16, &from, cases[i].from, dim, CODEC_SLOTS);
                lower(best, &from, cases[i].from, &to, cases[i].to, dim, CODEC_SLOTS);
                error += difference(&from, cases[i].from, &to, cases[i].to, dim, CODEC_SLOTS, &one);
                power += one;
            }
            print_message("%u -> %u, dim %zu: relative squared error %.5f\n", cases[i].from, cases[i].to, dim,
                          error / power);
            assert_true(error / power <= cases[i].bound);
            assert_true(error / power >= cases[i].bound / 10);
        }
}

static void reported_error_is_the_error(void **state)
{
    (void)state;
    struct random r = {23};
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *kernels = kernels_get((enum isa)isa);
        for (int round = 0; kernels && round < 80; round++) {
            const uint8_t *step = steps[round % STEPS];
            size_t dim = 8 * (1 + random_below(&r, CODEC_DIM / 8));
            unsigned tokens = round % 3 ? CODEC_SLOTS : 1 + (unsigned)random_below(&r, CODEC_SLOTS);
            struct block source, from, to;
            double power;
            fill(&source, codec_bits(step[0]) < 8 ? 8 : step[0], dim, tokens, 3, &r);
            from = source;
            if (codec_bits(step[0]) < 8)
                lower(kernels, &source, 8, &from, step[0], dim, tokens);
            double said = lower(kernels, &from, step[0], &to, step[1], dim, tokens);
            double is = difference(&from, step[0], &to, step[1], dim, tokens, &power);
            assert_true(fabs(said - is) <= 2e-5 * is + 1e-10 * power);
        }
    }
}

/* No neighbouring code would have been nearer, and at level 4 and by the paper's codec nothing is clipped. */
static void codes_are_nearest(void **state)
{
    (void)state;
    static const uint8_t levels[] = {4, 3, 2, PAPER_4, PAPER_2};
    struct random r = {29};
    for (int round = 0; round < 100; round++) {
        uint8_t level = levels[round % 5];
        size_t dim = 8 * (1 + random_below(&r, CODEC_DIM / 8));
        struct block from, to;
        fill(&from, 16, dim, CODEC_SLOTS, 1, &r);
        lower(kernels_best(), &from, 16, &to, level, dim, CODEC_SLOTS);
        for (size_t t = 0; t < CODEC_SLOTS; t++)
            for (int values = 0; values < 2; values++) {
                const uint8_t part = codec_part(level, values);
                double x[CODEC_DIM], y[CODEC_DIM], first;
                plain_values(from.bytes, 16, dim, t, values, x);
                rotate_by_definition(x, dim, y);
                for (size_t d = 0; d < dim; d++) {
                    double wanted = codec_rotated(level) ? y[d] : x[d];
                    double step = step_of(to.bytes, level, dim, t, d, values, &first);
                    double last = first + step * ((1 << codec_bits(part)) - 1);
                    double e = fabs(stored(to.bytes, level, dim, t, d, values) - wanted);
                    double outside = wanted < first ? first - wanted : wanted > last ? wanted - last : 0;
                    assert_true(e <= step * 0.5001 + outside + 1e-6);
                    assert_true(part == 2 || outside <= 0.01 * step);
                }
            }
    }
}

/* What stands out against its neighbours keeps its size: the least and the largest of a dimension. */
static void channels_reach_their_ends(void **state)
{
    (void)state;
    struct random r = {61};
    for (int round = 0; round < 40; round++) {
        uint8_t level = round % 2 ? PAPER_2 : 2;
        size_t dim = 8 * (1 + random_below(&r, CODEC_DIM / 8));
        struct block from, to;
        fill(&from, 16, dim, CODEC_SLOTS, 1, &r);
        lower(kernels_best(), &from, 16, &to, level, dim, CODEC_SLOTS);
        for (size_t d = 0; d < dim; d++) {
            unsigned seen = 0;
            for (size_t t = 0; t < CODEC_SLOTS; t++)
                seen |= 1u << codec_key(to.bytes, level, d, t);
            assert_true(level == 2 ? (seen & 3) && (seen & 12) : (seen & 9) == 9);
        }
    }
}

/* Level 3 is level 4's K and level 2's V, wherever it comes from; a K or V that has the code wanted keeps it.
 */
static void three_is_made_of_four_and_two(void **state)
{
    (void)state;
    static const uint8_t sources[] = {16, 8, 4};
    struct random r = {67};
    for (int round = 0; round < 60; round++) {
        uint8_t level = sources[round % 3];
        size_t dim = 8 * (1 + random_below(&r, CODEC_DIM / 8)), keys = CODEC_SLOTS * dim / 2,
               values = CODEC_SLOTS * dim / 4;
        unsigned tokens = round % 5 ? CODEC_SLOTS : 1 + (unsigned)random_below(&r, CODEC_SLOTS);
        struct block first, from, four, three, two, again;
        fill(&first, level == 16 ? 16 : 8, dim, tokens, powf(10, (float)(round % 9) - 5), &r);
        from = first;
        if (level == 4)
            lower(kernels_best(), &first, 8, &from, 4, dim, tokens);
        four = from;
        if (level != 4)
            lower(kernels_best(), &from, level, &four, 4, dim, tokens);
        lower(kernels_best(), &from, level, &three, 3, dim, tokens);
        lower(kernels_best(), &from, level, &two, 2, dim, tokens);
        const uint16_t *fours = codec_scales(four.bytes, 4, dim), *threes = codec_scales(three.bytes, 3, dim),
                       *twos = codec_scales(two.bytes, 2, dim);
        assert_memory_equal(three.bytes, four.bytes, keys);
        assert_memory_equal(threes, fours, CODEC_SLOTS * sizeof *fours);
        assert_memory_equal(codec_values(three.bytes, 3, dim), codec_values(two.bytes, 2, dim), values);
        assert_memory_equal(threes + CODEC_SLOTS, twos + 2, 2 * sizeof *twos);
        assert_memory_equal(threes + CODEC_SLOTS + 2, (const uint8_t *)(twos + 4) + dim, dim);
        lower(kernels_best(), &three, 3, &again, 2, dim, tokens);
        assert_memory_equal(codec_values(again.bytes, 2, dim), codec_values(two.bytes, 2, dim), values);
        assert_memory_equal(codec_scales(again.bytes, 2, dim) + 2, twos + 2, 2 * sizeof *twos);
        assert_memory_equal((const uint8_t *)(codec_scales(again.bytes, 2, dim) + 4) + dim,
                            (const uint8_t *)(twos + 4) + dim, dim);
    }
}

static void lowering_to_8_is_storing_at_8(void **state)
{
    (void)state;
    struct random r = {31};
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    for (int round = 0; round < 40; round++) {
        size_t dim = 8 * (1 + random_below(&r, CODEC_DIM / 8));
        struct block from, to, want;
        fill(&from, 16, dim, CODEC_SLOTS, powf(10, (float)(round % 9) - 5), &r);
        memset(&want, 0xa5, sizeof want);
        lower(kernels_best(), &from, 16, &to, 8, dim, CODEC_SLOTS);
        for (unsigned t = 0; t < CODEC_SLOTS; t++) {
            float k[CODEC_DIM], v[CODEC_DIM];
            for (size_t d = 0; d < dim; d++) {
                k[d] = (float)stored(from.bytes, 16, dim, t, d, 0);
                v[d] = (float)stored(from.bytes, 16, dim, t, d, 1);
            }
            plain->store(want.bytes, 8, dim, t, k, v);
        }
        assert_memory_equal(&to, &want, sizeof to);
    }
}

static void twins_agree(void **state)
{
    (void)state;
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    for (int isa = ISA_AVX2; isa < ISA_COUNT; isa++) {
        const struct kernels *fast = kernels_get((enum isa)isa);
        struct random r = {37};
        for (int round = 0; fast && round < 160; round++) {
            const uint8_t *step = steps[round % STEPS];
            size_t dim = 8 * (1 + random_below(&r, CODEC_DIM / 8));
            unsigned tokens = round % 3 ? CODEC_SLOTS : 1 + (unsigned)random_below(&r, CODEC_SLOTS);
            struct block source, from, a, b;
            fill(&source, codec_bits(step[0]) < 8 ? 16 : step[0], dim, tokens,
                 powf(10, (float)(round % 11) - 6), &r);
            from = source;
            if (codec_bits(step[0]) < 8)
                lower(plain, &source, 16, &from, step[0], dim, tokens);
            double said = lower(plain, &from, step[0], &a, step[1], dim, tokens);
            double says = lower(fast, &from, step[0], &b, step[1], dim, tokens);
            assert_memory_equal(&a, &b, sizeof a);
            assert_memory_equal(&said, &says, sizeof said);
        }
    }
}

/* Whatever lies in slots that hold nothing changes nothing, and they come out as zeros; nothing is written
 * past the head. */
static void unused_slots_do_not_matter(void **state)
{
    (void)state;
    struct random r = {41};
    for (int round = 0; round < 80; round++) {
        const uint8_t *step = steps[round % STEPS];
        if (codec_bits(step[0]) < 8)
            continue;
        size_t dim = 8 * (1 + random_below(&r, CODEC_DIM / 8));
        unsigned tokens = 1 + (unsigned)random_below(&r, CODEC_SLOTS - 1);
        struct block from, dirty, a, b;
        fill(&from, step[0], dim, tokens, 1, &r);
        dirty = from;
        for (unsigned t = tokens; t < CODEC_SLOTS; t++)
            for (size_t d = 0; d < dim; d++) {
                size_t k = d * CODEC_SLOTS + t, v = CODEC_SLOTS * dim + t * dim + d;
                if (step[0] == 16) {
                    ((uint16_t *)(void *)dirty.bytes)[k] = 0x7e00;
                    ((uint16_t *)(void *)dirty.bytes)[v] = 0x7c00;
                } else {
                    dirty.bytes[k] = dirty.bytes[v] = 77;
                    ((uint16_t *)(void *)dirty.bytes)[CODEC_SLOTS * dim + t] = 0x7e00;
                    ((uint16_t *)(void *)dirty.bytes)[CODEC_SLOTS * dim + CODEC_SLOTS + t] = 0x7c00;
                }
            }
        double said = lower(kernels_best(), &from, step[0], &a, step[1], dim, tokens);
        double says = lower(kernels_best(), &dirty, step[0], &b, step[1], dim, tokens);
        assert_memory_equal(&a, &b, sizeof a);
        assert_memory_equal(&said, &says, sizeof said);
        for (unsigned t = tokens; t < CODEC_SLOTS; t++)
            for (size_t d = 0; d < dim && codec_bits(step[1]) < 8; d++) {
                assert_int_equal(codec_key(a.bytes, step[1], d, t), 0);
                assert_int_equal(codec_value(a.bytes, step[1], dim, t, d), 0);
            }
        for (unsigned t = tokens; t < CODEC_SLOTS; t++) {
            if (step[1] == 8 || step[1] == 4 || step[1] == 3)
                assert_int_equal(codec_scales(a.bytes, step[1], dim)[t], 0);
            if (step[1] == 8 || step[1] == 4)
                assert_int_equal(codec_scales(a.bytes, step[1], dim)[CODEC_SLOTS + t], 0);
        }
        for (size_t i = head_bytes(step[1], dim); i < sizeof a.bytes; i++)
            assert_int_equal(a.bytes[i], 0xa5);
    }
}

/* Zeros, one value alone, values too small or too large for a half's range of scales. */
static void odd_vectors_survive(void **state)
{
    (void)state;
    const float sizes[] = {0, 1e-8f, 6e-8f, 1e-4f, 6e4f};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t s = 0; s < STEPS; s++) {
            if (codec_bits(steps[s][0]) == 4)
                continue;
            struct random r = {43};
            struct block from, to;
            double power;
            fill(&from, steps[s][0], 64, CODEC_SLOTS, 0, &r);
            float x[64] = {sizes[i]};
            for (unsigned t = 0; t < CODEC_SLOTS; t++)
                kernels_get(ISA_PLAIN)->store(from.bytes, steps[s][0], 64, t, x, x);
            double said = lower(kernels_best(), &from, steps[s][0], &to, steps[s][1], 64, CODEC_SLOTS);
            double is = difference(&from, steps[s][0], &to, steps[s][1], 64, CODEC_SLOTS, &power);
            assert_true(is <= power * 1.0001 && fabs(said - is) <= 1e-4 * is + 1e-12);
            if (sizes[i] == 0)
                assert_true(said == 0);
            if (sizes[i] > 1e-5f) /* rotated it is flat: a code fits it all but for the scale's rounding */
                assert_true(is <= power * 0.02);
        }
}

static void rotation_is_its_own_inverse(void **state)
{
    (void)state;
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *kernels = kernels_get((enum isa)isa);
        struct random r = {47};
        for (size_t dim = 8; kernels && dim <= CODEC_DIM; dim += 8) {
            float x[CODEC_DIM], y[CODEC_DIM], z[CODEC_DIM];
            double exact[CODEC_DIM], want[CODEC_DIM];
            for (size_t d = 0; d < dim; d++)
                exact[d] = x[d] = y[d] = z[d] = normal(&r);
            rotate_by_definition(exact, dim, want);
            kernels->rotate(y, dim);
            codec_rotate(z, dim);
            assert_memory_equal(y, z, dim * sizeof *y);
            for (size_t d = 0; d < dim; d++)
                assert_true(fabs(y[d] - want[d]) < 2e-6);
            kernels->rotate(y, dim);
            for (size_t d = 0; d < dim; d++)
                assert_true(fabsf(x[d] - y[d]) < 1e-6f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_cost_what_they_should),
        cmocka_unit_test(reported_error_is_the_error),
        cmocka_unit_test(codes_are_nearest),
        cmocka_unit_test(channels_reach_their_ends),
        cmocka_unit_test(three_is_made_of_four_and_two),
        cmocka_unit_test(lowering_to_8_is_storing_at_8),
        cmocka_unit_test(twins_agree),
        cmocka_unit_test(unused_slots_do_not_matter),
        cmocka_unit_test(odd_vectors_survive),
        cmocka_unit_test(rotation_is_its_own_inverse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
