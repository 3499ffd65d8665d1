/* Attention on chunks and the row operations: every instruction set against the plain twin bit by bit, and
 * the plain twin against the textbook in double precision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
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
#include "kernels/math_plain.h"

enum { MAX_QUERIES = 21, MAX_DIM = 256, MAX_CHUNKS = 40 };

static float normal(struct random *r)
{
    double u = random_unit(r) + 1e-12, v = random_unit(r);
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

struct fixture {
    size_t dim, queries, chunks;
    float *k, *v; /* [chunks * 16][dim] as given to store */
    float *q;     /* [queries][dim] */
    uint32_t visible[MAX_QUERIES];
    struct attention_chunk *table, chunk[MAX_CHUNKS];
    float *scratch;
    uint32_t *received; /* NULL, or [chunks * 16] */
};

static void *room(size_t bytes)
{
    void *p = mem_aligned(64, bytes);
    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

static const uint8_t all_levels[] = {16, 8, 4, 3, 2, CODEC_PAPER | 4, CODEC_PAPER | 2};
enum { LEVELS = sizeof all_levels, ALL = (1 << LEVELS) - 1, ROTATED = 4 | 8 | 16, BY_INTEGERS = 2 };

/* A level of those in `levels`, a bit for each of all_levels. */
static uint8_t pick(struct random *r, unsigned levels)
{
    for (;;) {
        size_t i = random_below(r, LEVELS);
        if (levels >> i & 1)
            return all_levels[i];
    }
}

/* Chunk c is stored at level 16 or 8, and lowered to the level wanted. */
static void fill_chunk(struct fixture *f, size_t c, uint8_t level, const struct kernels *store)
{
    uint8_t first = level == 16 ? 16 : 8;
    void *data = room(2 * CHUNK_TOKENS * f->dim * 2 + 256);
    for (unsigned t = 0; t < CHUNK_TOKENS; t++)
        store->store(data, first, f->dim, t, f->k + (c * CHUNK_TOKENS + t) * f->dim,
                     f->v + (c * CHUNK_TOKENS + t) * f->dim);
    if (codec_bits(level) < 8) {
        void *low = room(2 * CHUNK_TOKENS * f->dim * 2 + 256);
        struct codec_head head = {
            .from = data, .to = low, .from_level = 8, .to_level = level, .tokens = 16, .dim = f->dim};
        store->codec(&head);
        mem_free(data);
        data = low;
    }
    f->table[c] = (struct attention_chunk){data, level};
}

static void fill(struct fixture *f, struct random *r, const struct kernels *store, unsigned levels)
{
    f->received = NULL;
    f->dim = 8 * (1 + random_below(r, MAX_DIM / 8));
    f->chunks = 1 + random_below(r, random_below(r, 6) ? 12 : MAX_CHUNKS); /* some have more than a group */
    f->queries = 1 + random_below(r, MAX_QUERIES);
    size_t tokens = f->chunks * CHUNK_TOKENS;
    f->k = room(tokens * f->dim * 4);
    f->v = room(tokens * f->dim * 4);
    f->q = room(f->queries * f->dim * 4);
    for (size_t i = 0; i < tokens * f->dim; i++) {
        f->k[i] = normal(r);
        f->v[i] = normal(r);
    }
    for (size_t i = 0; i < f->queries * f->dim; i++)
        f->q[i] = 2 * normal(r);
    for (size_t i = 0; i < f->queries; i++)
        f->visible[i] = (uint32_t)(1 + random_below(r, tokens));
    f->table = f->chunk;
    for (size_t c = 0; c < f->chunks; c++)
        fill_chunk(f, c, pick(r, levels), store);
    f->scratch = room(attention_scratch_floats(tokens) * 4);
}

static void drop(struct fixture *f)
{
    for (size_t c = 0; c < f->chunks; c++)
        mem_free((void *)(uintptr_t)f->table[c].data);
    mem_free(f->k);
    mem_free(f->v);
    mem_free(f->q);
    mem_free(f->scratch);
}

static void run(const struct kernels *kernels, const struct fixture *f, float *out, size_t step)
{
    const float *q[MAX_QUERIES];
    float *rows[MAX_QUERIES];
    for (size_t i = 0; i < f->queries; i++) {
        q[i] = f->q + i * f->dim;
        rows[i] = out + i * f->dim;
    }
    for (size_t i = 0; i < f->queries; i += step) {
        struct attention a = {.chunks = f->table,
                              .dim = f->dim,
                              .scale = 1.0f / sqrtf((float)f->dim),
                              .queries = f->queries - i < step ? f->queries - i : step,
                              .q = q + i,
                              .out = rows + i,
                              .visible = f->visible + i,
                              .received = f->received,
                              .scratch = f->scratch};
        kernels->attention(&a);
    }
}

/* What a code of level 4, 3 or 2 stands for. */
static double decoded(const struct fixture *f, const struct attention_chunk *c, size_t slot, size_t d,
                      bool values)
{
    unsigned code =
        values ? codec_value(c->data, c->level, f->dim, slot, d) : codec_key(c->data, c->level, d, slot);
    const uint16_t *scales = codec_scales(c->data, c->level, f->dim);
    if (codec_part(c->level, values) == 4)
        return (code - 7.5) * (double)half_to_float(scales[values * CHUNK_TOKENS + slot]);
    if (codec_part(c->level, values) == 2) {
        const uint16_t *units = c->level == 3 ? scales + CHUNK_TOKENS : scales + 2 * values;
        const uint8_t *bytes =
            c->level == 3 ? (const uint8_t *)(units + 2) : (const uint8_t *)(scales + 4) + values * f->dim;
        double centre = (double)half_to_float(units[0]) * ((int)(bytes[d] >> 4) - 8);
        return centre + (code - 1.5) * (bytes[d] & 15) * (double)half_to_float(units[1]);
    }
    scales += values * 2 * f->dim + d;
    return code * (double)half_to_float(scales[0]) + (double)half_to_float(scales[f->dim]);
}

/* K or V of a position as its chunk has it, rotated back by R's definition where it is rotated. */
static double held(const struct fixture *f, size_t t, size_t d, bool values)
{
    const struct attention_chunk *c = &f->table[t / CHUNK_TOKENS];
    size_t slot = t % CHUNK_TOKENS, i = values ? (CHUNK_TOKENS + slot) * f->dim + d : d * CHUNK_TOKENS + slot;
    if (c->level == 16)
        return half_to_float(((const uint16_t *)c->data)[i]);
    if (c->level == 8)
        return ((const int8_t *)c->data)[i] *
               (double)half_to_float(codec_scales(c->data, 8, f->dim)[values * CHUNK_TOKENS + slot]);
    if (!codec_rotated(c->level))
        return decoded(f, c, slot, d, values);
    size_t block = codec_block(f->dim), from = d / block * block;
    double sum = 0;
    for (size_t j = from; j < from + block; j++) {
        double x = decoded(f, c, slot, j, values);
        sum += __builtin_parityll((d - from) & (j - from)) ? -x : x;
    }
    return sum / sqrt((double)block);
}

/* Softmax attention over what the chunks hold, as a book has it. p: [visible] */
static double expected_weights(const struct fixture *f, const double *k, size_t row, double *p)
{
    double top = -1e300, total = 0;
    for (size_t t = 0; t < f->visible[row]; t++) {
        p[t] = 0;
        for (size_t i = 0; i < f->dim; i++)
            p[t] += (double)f->q[row * f->dim + i] * k[t * f->dim + i];
        p[t] /= sqrt((double)f->dim);
        top = p[t] > top ? p[t] : top;
    }
    for (size_t t = 0; t < f->visible[row]; t++)
        total += p[t] = exp(p[t] - top);
    for (size_t t = 0; t < f->visible[row]; t++)
        p[t] /= total;
    return total;
}

/* The largest difference of `out` from the book; k and v: [positions][dim]. */
static double worst_error(const struct fixture *f, const double *k, const double *v, const float *out)
{
    double p[MAX_CHUNKS * CHUNK_TOKENS], worst = 0;
    for (size_t i = 0; i < f->queries; i++) {
        expected_weights(f, k, i, p);
        for (size_t d = 0; d < f->dim; d += 3) {
            double sum = 0;
            for (size_t t = 0; t < f->visible[i]; t++)
                sum += p[t] * v[t * f->dim + d];
            double e = fabs(sum - (double)out[i * f->dim + d]);
            worst = e > worst ? e : worst;
        }
    }
    return worst;
}

static void plain_is_attention(void **state)
{
    (void)state;
    struct random r = {1};
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    for (int round = 0; round < 48; round++) {
        struct fixture f;
        const unsigned choice[] = {3, ROTATED, ALL & ~(unsigned)BY_INTEGERS, ALL}, levels = choice[round % 4];
        fill(&f, &r, plain, levels);
        float *out = room(f.queries * f.dim * 4);
        run(plain, &f, out, f.queries);
        size_t values = f.chunks * CHUNK_TOKENS * f.dim;
        double *k = room(values * 8), *v = room(values * 8);
        for (size_t i = 0; i < values; i++) {
            k[i] = held(&f, i / f.dim, i % f.dim, false);
            v[i] = held(&f, i / f.dim, i % f.dim, true);
        }
        /* over the same values: float against double, and 8-bit integers against double */
        assert_true(worst_error(&f, k, v, out) < (levels & BY_INTEGERS ? 0.04 : 1e-5));
        for (size_t i = 0; i < values; i++) {
            k[i] = (double)f.k[i];
            v[i] = (double)f.v[i];
        }
        if (levels == 3) /* what was stored; |v| is about 1 */
            assert_true(worst_error(&f, k, v, out) < 0.12);
        mem_free(k);
        mem_free(v);
        mem_free(out);
        drop(&f);
    }
}

static void twins_agree(void **state)
{
    (void)state;
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    for (int isa = ISA_AVX2; isa < ISA_COUNT; isa++) {
        const struct kernels *fast = kernels_get((enum isa)isa);
        if (!fast)
            continue;
        struct random r = {7};
        for (int round = 0; round < 150; round++) {
            struct fixture f;
            fill(&f, &r, plain, round % 4 ? 1 + (unsigned)random_below(&r, ALL) : ALL);
            size_t bytes = f.queries * f.dim * 4, positions = f.chunks * CHUNK_TOKENS;
            float *one = room(bytes), *all = room(bytes), *some = room(bytes);
            uint32_t *first = room(positions * 4), *second = room(positions * 4);
            f.received = round % 3 ? first : NULL;
            run(plain, &f, one, 1);
            f.received = round % 3 ? second : NULL;
            run(fast, &f, all, f.queries);
            assert_memory_equal(first, second, positions * 4);
            f.received = NULL;
            run(fast, &f, some, 1 + random_below(&r, 9));
            assert_memory_equal(one, all, bytes);
            assert_memory_equal(one, some, bytes);
            mem_free(one);
            mem_free(all);
            mem_free(some);
            mem_free(first);
            mem_free(second);
            drop(&f);
        }
    }
}

/* Row 0's attention over k and v as a book has it, or with queries and weights rounded as attention.h has it
 * for chunks of level 8. p: [visible] */
static void attend_book(const struct fixture *f, const double *k, const double *v, bool rounded, double *p,
                        double *out)
{
    struct fixture book = *f;
    float q[MAX_DIM];
    double top = 0;
    for (size_t d = 0; d < f->dim; d++)
        top = fmax(top, fabs((double)f->q[d]));
    for (size_t d = 0; d < f->dim; d++)
        q[d] = rounded ? (float)(nearbyint((double)f->q[d] * 127 / top) * top / 127) : f->q[d];
    book.q = q;
    expected_weights(&book, k, 0, p);
    memset(out, 0, f->dim * sizeof *out);
    for (size_t first = 0; first < f->visible[0]; first += 2 * CHUNK_TOKENS) {
        double w[2 * CHUNK_TOKENS], most = 0;
        size_t count = f->visible[0] - first < 2 * CHUNK_TOKENS ? f->visible[0] - first : 2 * CHUNK_TOKENS;
        for (size_t i = 0; i < count; i++) {
            const struct attention_chunk *c = &f->table[(first + i) / CHUNK_TOKENS];
            double scale = half_to_float(codec_scales(c->data, 8, f->dim)[CHUNK_TOKENS + i % CHUNK_TOKENS]);
            w[i] = p[first + i] * scale;
            most = fmax(most, w[i]);
            p[first + i] = rounded ? 1 / scale : p[first + i];
        }
        for (size_t i = 0; i < count; i++) {
            double weight = rounded ? nearbyint(w[i] * 255 / most) * most / 255 * p[first + i] : p[first + i];
            for (size_t d = 0; d < f->dim; d++)
                out[d] += weight * v[(first + i) * f->dim + d];
        }
    }
}

static double squared_distance(const double *a, const double *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

/* Squared differences in row 0, over what is held: of `out` from the rounded book, and of that from the book;
 * and of the book over what is held from that over what was given. */
struct errors {
    double definition, integers, codes;
};

static void squared_errors(const struct fixture *f, const float *out, double *p, struct errors *e)
{
    size_t values = f->visible[0] * f->dim;
    double *k = room(values * 8), *v = room(values * 8);
    double got[MAX_DIM], rounded[MAX_DIM], held_book[MAX_DIM], given_book[MAX_DIM];
    for (size_t i = 0; i < values; i++) {
        k[i] = held(f, i / f->dim, i % f->dim, false);
        v[i] = held(f, i / f->dim, i % f->dim, true);
    }
    attend_book(f, k, v, true, p, rounded);
    attend_book(f, k, v, false, p, held_book);
    for (size_t i = 0; i < values; i++) {
        k[i] = (double)f->k[i];
        v[i] = (double)f->v[i];
    }
    attend_book(f, k, v, false, p, given_book);
    for (size_t d = 0; d < f->dim; d++)
        got[d] = (double)out[d];
    e->definition += squared_distance(got, rounded, f->dim);
    e->integers += squared_distance(rounded, held_book, f->dim);
    e->codes += squared_distance(held_book, given_book, f->dim);
    mem_free(k);
    mem_free(v);
}

/* Rounding queries and weights to 8 bits at level 8 costs about what the codes of K and V cost, half as much
 * again at most: where attention is flat over thousands of positions and where it looks at one, with channels
 * and tokens that stand out. And it is that rounding and nothing else that happens. */
static void integers_cost_what_codes_cost(void **state)
{
    (void)state;
    struct random r = {61};
    const struct kernels *best = kernels_best();
    enum { CHUNKS = 160, ROUNDS = 8 };
    static const float sharpness[] = {0.01f, 0.3f, 1, 4};
    static struct attention_chunk table[CHUNKS];
    double *p = room(CHUNKS * CHUNK_TOKENS * sizeof *p);
    for (unsigned kind = 0; kind < 8; kind++) {
        struct errors e = {0};
        for (int round = 0; round < ROUNDS; round++) {
            struct fixture f = {.dim = round % 2 ? 64 : 128, .queries = 1, .chunks = CHUNKS};
            size_t tokens = CHUNKS * CHUNK_TOKENS;
            f.k = room(tokens * f.dim * 4);
            f.v = room(tokens * f.dim * 4);
            f.q = room(f.dim * 4);
            f.scratch = room(attention_scratch_floats(tokens) * 4);
            f.visible[0] = (uint32_t)(tokens - random_below(&r, 40));
            for (size_t i = 0; i < f.dim; i++)
                f.q[i] = sharpness[kind / 2] * normal(&r) * (kind % 2 && i % 31 == 3 ? 8 : 1);
            for (size_t i = 0; i < tokens * f.dim; i++) {
                f.k[i] = normal(&r) * (kind % 2 && i % f.dim % 17 == 5 ? 8 : 1);
                f.v[i] = normal(&r) * (kind % 2 && i / f.dim % 97 == 0 ? 20 : 1);
            }
            f.table = table;
            for (size_t c = 0; c < CHUNKS; c++)
                fill_chunk(&f, c, 8, best);
            float out[MAX_DIM];
            run(best, &f, out, 1);
            squared_errors(&f, out, p, &e);
            drop(&f);
        }
        if (!(sqrt(e.integers) <= 1.5 * sqrt(e.codes)) || !(30 * sqrt(e.definition) <= sqrt(e.codes)))
            fail_msg("kind %u: integers cost %g, codes %g; from the definition %g", kind, sqrt(e.integers),
                     sqrt(e.codes), sqrt(e.definition));
    }
    mem_free(p);
}

/* A query that is no number, or infinite, gives no number at any level 8 it meets, and disturbs no other row;
 * one that is as good as 0 weighs all alike. */
static void odd_queries_agree(void **state)
{
    (void)state;
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-38f, 1e-42f, -0.0f};
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *fast = kernels_get((enum isa)isa);
        struct random r = {67};
        for (unsigned round = 0; fast && round < 56; round++) {
            struct fixture f;
            fill(&f, &r, plain, round % 2 ? BY_INTEGERS : ALL);
            size_t bytes = f.queries * f.dim * 4, row = random_below(&r, f.queries);
            float *clean = room(bytes), *want = room(bytes), *got = room(bytes), x = odd[round % 7];
            run(plain, &f, clean, f.queries);
            for (size_t d = 0; d < f.dim; d++)
                f.q[row * f.dim + d] *= fabsf(x) < 1 ? 0 : 1;
            f.q[row * f.dim + random_below(&r, f.dim)] = x;
            run(plain, &f, want, 1);
            run(fast, &f, got, f.queries);
            for (size_t i = 0; i < f.queries * f.dim; i++) { /* NaNs may differ in their bits */
                assert_true((want[i] != want[i] && got[i] != got[i]) ||
                            float_bits(want[i]) == float_bits(got[i]));
                assert_true(i / f.dim == row || float_bits(got[i]) == float_bits(clean[i]));
                assert_true(i / f.dim != row || fabsf(x) > 1e30f || x != x || isfinite(got[i]));
                if (round % 2 && i / f.dim == row && !isfinite(x))
                    assert_true(isnan(got[i]));
            }
            mem_free(clean);
            mem_free(want);
            mem_free(got);
            drop(&f);
        }
    }
}

/* A row's result does not depend on what rows beside it see. */
static void rotation_stays_with_its_rows(void **state)
{
    (void)state;
    struct random r = {13};
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *kernels = kernels_get((enum isa)isa);
        for (int round = 0; kernels && round < 20; round++) {
            struct fixture f;
            fill(&f, &r, kernels, 1);
            size_t bytes = f.queries * f.dim * 4;
            float *before = room(bytes), *after = room(bytes);
            for (size_t i = 0; f.chunks > 1 && i < f.queries; i++) /* some end before the last chunk */
                f.visible[i] = i % 2 ? (uint32_t)(f.chunks - 1) * CHUNK_TOKENS : f.visible[i];
            run(kernels, &f, before, f.queries);
            mem_free((void *)(uintptr_t)f.table[f.chunks - 1].data);
            fill_chunk(&f, f.chunks - 1, 2, kernels);
            run(kernels, &f, after, f.queries);
            size_t changed = 0;
            for (size_t i = 0; i < f.queries; i++) {
                int differs = memcmp(before + i * f.dim, after + i * f.dim, f.dim * 4) != 0;
                assert_int_equal(differs, f.visible[i] > (f.chunks - 1) * CHUNK_TOKENS);
                changed += (size_t)differs;
            }
            assert_true(f.chunks > 1 || changed == f.queries);
            mem_free(before);
            mem_free(after);
            drop(&f);
        }
    }
}

static void density_is_the_share_received(void **state)
{
    (void)state;
    struct random r = {19};
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *kernels = kernels_get((enum isa)isa);
        for (int round = 0; kernels && round < 12; round++) {
            struct fixture f;
            unsigned levels = round % 2 ? ALL : ALL & ~(unsigned)BY_INTEGERS;
            fill(&f, &r, kernels, levels);
            size_t values = f.chunks * CHUNK_TOKENS * f.dim, positions = f.chunks * CHUNK_TOKENS;
            float *out = room(f.queries * f.dim * 4), *without = room(f.queries * f.dim * 4);
            double *k = room(values * 8), p[MAX_CHUNKS * CHUNK_TOKENS], want[MAX_CHUNKS * CHUNK_TOKENS] = {0};
            run(kernels, &f, without, f.queries);
            f.received = room(positions * 4);
            f.received[0] = 1000; /* it is added */
            run(kernels, &f, out, f.queries);
            assert_memory_equal(out, without, f.queries * f.dim * 4);
            for (size_t i = 0; i < values; i++)
                k[i] = held(&f, i / f.dim, i % f.dim, false);
            for (size_t i = 0; i < f.queries; i++) {
                expected_weights(&f, k, i, p);
                for (size_t t = 0; t < f.visible[i]; t++)
                    want[t] += p[t] * 0x1p18;
            }
            double sum = 0, queries = (double)f.queries;
            f.received[0] -= 1000;
            for (size_t t = 0; t < positions; t++) {
                double part = levels & BY_INTEGERS ? 0.05 : 1e-5;
                assert_true(fabs(f.received[t] - want[t]) <= 0.6 * queries + part * want[t]);
                sum += f.received[t];
            }
            assert_true(fabs(sum - queries * 0x1p18) <= 0.5 * queries * (double)positions);
            mem_free(f.received);
            mem_free(k);
            mem_free(out);
            mem_free(without);
            drop(&f);
        }
    }
}

/* A row that went wrong (its total is no number) adds nothing, and the others count as ever. */
static void density_leaves_out_what_is_no_number(void **state)
{
    (void)state;
    struct random r = {53};
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *kernels = kernels_get((enum isa)isa);
        if (!kernels)
            continue;
        struct fixture f;
        fill(&f, &r, kernels, ALL);
        for (; f.queries < 4; fill(&f, &r, kernels, ALL))
            drop(&f);
        size_t bytes = f.chunks * CHUNK_TOKENS * 4;
        float *out = room(f.queries * f.dim * 4);
        uint32_t *whole = room(bytes), *part = room(bytes);
        float *q = f.q;
        f.received = whole;
        size_t queries = f.queries;
        f.queries = 3;
        run(kernels, &f, out, 3);
        f.q = room(queries * f.dim * 4);
        memcpy(f.q, q, queries * f.dim * 4);
        f.q[3 * f.dim + 1] = NAN;
        f.received = part;
        f.queries = 4;
        run(kernels, &f, out, 4);
        assert_memory_equal(whole, part, bytes);
        f.queries = queries;
        mem_free(q);
        mem_free(out);
        mem_free(whole);
        mem_free(part);
        drop(&f);
    }
}

/* Makes of slots 11 and on what nobody can want. */
static void spoil(const struct attention_chunk *c, size_t dim, bool values)
{
    uint8_t part = codec_part(c->level, values);
    uint8_t *bytes =
        values ? (uint8_t *)(uintptr_t)codec_values(c->data, c->level, dim) : (uint8_t *)(uintptr_t)c->data;
    uint16_t *scales = (uint16_t *)(uintptr_t)codec_scales(c->data, c->level, dim);
    for (size_t t = 11; t < CHUNK_TOKENS; t++) {
        if (part == 8 || part == 4)
            scales[(values ? CHUNK_TOKENS : 0) + t] = 0x7e00;
        for (size_t d = 0; part == 16 && d < dim; d++)
            ((uint16_t *)(void *)bytes)[values ? t * dim + d : d * CHUNK_TOKENS + t] = 0x7e00;
        size_t row = dim * codec_bits(part) / 8;
        for (size_t d = 0; codec_by_channel(c->level, values) && d < row; d++) /* any code */
            bytes[values ? t * row + d : d * CHUNK_TOKENS + t] = 0xff;
    }
}

/* Slots past what anyone sees may hold anything. */
static void unseen_slots_do_not_matter(void **state)
{
    (void)state;
    struct random r = {59};
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *kernels = kernels_get((enum isa)isa);
        for (int round = 0; kernels && round < 4 * LEVELS; round++) {
            struct fixture f;
            fill(&f, &r, kernels, 1u << round % LEVELS);
            size_t bytes = f.queries * f.dim * 4, seen = f.chunks * CHUNK_TOKENS - 5;
            for (size_t i = 0; i < f.queries; i++)
                f.visible[i] = f.visible[i] < seen ? f.visible[i] : (uint32_t)seen;
            f.visible[0] = (uint32_t)seen;
            float *before = room(bytes), *after = room(bytes);
            run(kernels, &f, before, f.queries);
            for (int values = 0; values < 2; values++)
                spoil(&f.table[f.chunks - 1], f.dim, values);
            run(kernels, &f, after, f.queries);
            assert_memory_equal(before, after, bytes);
            mem_free(before);
            mem_free(after);
            drop(&f);
        }
    }
}

static void result_may_replace_query(void **state)
{
    (void)state;
    struct random r = {3};
    const struct kernels *best = kernels_best();
    for (int round = 0; round < 20; round++) {
        struct fixture f;
        fill(&f, &r, best, ALL);
        size_t bytes = f.queries * f.dim * 4;
        float *out = room(bytes);
        run(best, &f, out, f.queries);
        run(best, &f, f.q, f.queries);
        assert_memory_equal(out, f.q, bytes);
        mem_free(out);
        drop(&f);
    }
}

static void stores_agree(void **state)
{
    (void)state;
    struct random r = {11};
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    for (int isa = ISA_AVX2; isa < ISA_COUNT; isa++) {
        const struct kernels *fast = kernels_get((enum isa)isa);
        if (!fast)
            continue;
        for (int round = 0; round < 200; round++) {
            size_t dim = 8 * (1 + random_below(&r, 32)), bytes = 4 * CHUNK_TOKENS * dim + 256;
            uint8_t level = round % 2 ? 16 : 8;
            float k[MAX_DIM], v[MAX_DIM];
            for (size_t d = 0; d < dim; d++) {
                k[d] = normal(&r) * powf(10, (float)(round % 12) - 6);
                v[d] = round % 7 ? normal(&r) : 0;
            }
            if (round % 11 == 0) { /* what limits the scale, and what is no number */
                static const float odd[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e-40f};
                k[random_below(&r, dim)] = odd[random_below(&r, 5)];
                v[random_below(&r, dim)] = odd[random_below(&r, 5)];
            }
            void *a = room(bytes), *b = room(bytes);
            unsigned slot = (unsigned)random_below(&r, 16);
            plain->store(a, level, dim, slot, k, v);
            fast->store(b, level, dim, slot, k, v);
            assert_memory_equal(a, b, bytes);
            mem_free(a);
            mem_free(b);
        }
    }
}

static void rows_agree(void **state)
{
    (void)state;
    struct random r = {5};
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    static const float odd[] = {0.0f, -0.0f, 1e30f,  -1e30f, 88.5f,    -88.5f,
                                300,  -300,  1e-40f, NAN,    INFINITY, -INFINITY};
    for (int isa = ISA_AVX2; isa < ISA_COUNT; isa++) {
        const struct kernels *fast = kernels_get((enum isa)isa);
        if (!fast)
            continue;
        for (size_t n = 1; n < 200; n++) {
            float x[200], y[200], a[200], b[200];
            for (size_t i = 0; i < n; i++) {
                x[i] = n % 9 == 0 && i < 12 ? odd[i] : 5 * normal(&r);
                y[i] = normal(&r);
            }
            plain->rms_norm(x, y, 1e-5f, n, a);
            fast->rms_norm(x, y, 1e-5f, n, b);
            for (size_t i = 0; i < n; i++) /* NaNs may differ in their bits */
                assert_true((a[i] != a[i] && b[i] != b[i]) || float_bits(a[i]) == float_bits(b[i]));
            plain->swiglu(x, y, n, a);
            fast->swiglu(x, y, n, b);
            for (size_t i = 0; i < n; i++)
                assert_true((a[i] != a[i] && b[i] != b[i]) || float_bits(a[i]) == float_bits(b[i]));
            memcpy(a, x, n * 4);
            memcpy(b, x, n * 4);
            plain->add(a, y, n);
            fast->add(b, y, n);
            for (size_t i = 0; i < n; i++)
                assert_true((a[i] != a[i] && b[i] != b[i]) || float_bits(a[i]) == float_bits(b[i]));
        }
    }
}

static void exponential_is_close(void **state)
{
    (void)state;
    for (double x = -86.9; x < 88; x += 0.0137) {
        double want = exp((double)(float)x), got = plain_exp((float)x);
        assert_true(fabs(got - want) <= 2e-7 * want);
    }
    assert_true(plain_exp(-1000) == 0);
    assert_true(plain_exp(-INFINITY) == 0);
    assert_true(plain_exp(0) == 1);
    assert_true(isnan(plain_exp(NAN)));
}

static void halves_round_as_hardware(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) { /* every half survives the way there and back */
        float x = half_to_float((uint16_t)h);
        if (x == x)
            assert_int_equal(float_to_half(x), h);
        else
            assert_true((float_to_half(x) & 0x7fff) > 0x7c00);
    }
    struct random r = {9};
    for (int i = 0; i < 200000; i++) { /* nearest, ties to even, against the two neighbours */
        float x = bits_float((uint32_t)random_next(&r));
        if (!(fabsf(x) < 65504))
            continue;
        uint16_t h = float_to_half(x);
        double here = fabs((double)half_to_float(h) - x);
        for (int step = -1; step <= 1; step += 2) {
            uint16_t other = (uint16_t)(h + step);
            float y = half_to_float(other);
            if (y != y || fabsf(y) > 65504 || (other & 0x8000) != (h & 0x8000))
                continue;
            double there = fabs((double)y - x);
            assert_true(here < there || (here == there && !(h & 1)));
        }
    }
    assert_int_equal(float_to_half(65520), 0x7c00);
    assert_int_equal(float_to_half(65519.9f), 0x7bff);
    assert_int_equal(float_to_bf16(1.0f), 0x3f80);
    assert_true(isnan(bf16_to_float(float_to_bf16(NAN))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_is_attention),
        cmocka_unit_test(twins_agree),
        cmocka_unit_test(integers_cost_what_codes_cost),
        cmocka_unit_test(odd_queries_agree),
        cmocka_unit_test(rotation_stays_with_its_rows),
        cmocka_unit_test(density_is_the_share_received),
        cmocka_unit_test(density_leaves_out_what_is_no_number),
        cmocka_unit_test(unseen_slots_do_not_matter),
        cmocka_unit_test(result_may_replace_query),
        cmocka_unit_test(stores_agree),
        cmocka_unit_test(rows_agree),
        cmocka_unit_test(exponential_is_close),
        cmocka_unit_test(halves_round_as_hardware),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
