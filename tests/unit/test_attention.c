/* Attention on chunks and the row operations: every instruction set against the plain twin bit by bit, and
 * the plain twin against the textbook in double precision. */
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
#include "kernels/kernels.h"
#include "kernels/math_plain.h"

enum { MAX_QUERIES = 21, MAX_DIM = 256, MAX_CHUNKS = 12 };

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
    struct attention_chunk table[MAX_CHUNKS];
    float *scratch;
};

static void *room(size_t bytes)
{
    void *p = mem_aligned(64, bytes);
    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

static void fill(struct fixture *f, struct random *r, const struct kernels *store)
{
    f->dim = 8 * (1 + random_below(r, MAX_DIM / 8));
    f->chunks = 1 + random_below(r, MAX_CHUNKS);
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
    for (size_t c = 0; c < f->chunks; c++) {
        void *data = room(2 * CHUNK_TOKENS * f->dim * 2 + 256);
        f->table[c] = (struct attention_chunk){data, random_below(r, 2) ? 16 : 8};
        for (unsigned t = 0; t < CHUNK_TOKENS; t++)
            store->store(data, f->table[c].level, f->dim, t, f->k + (c * CHUNK_TOKENS + t) * f->dim,
                         f->v + (c * CHUNK_TOKENS + t) * f->dim);
    }
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
                              .scratch = f->scratch};
        kernels->attention(&a);
    }
}

/* Softmax attention over what the chunks hold, as a book has it. */
static double expected(const struct fixture *f, size_t row, size_t d)
{
    double top = -1e300, total = 0, sum = 0, s[MAX_CHUNKS * CHUNK_TOKENS];
    for (size_t t = 0; t < f->visible[row]; t++) {
        s[t] = 0;
        for (size_t i = 0; i < f->dim; i++)
            s[t] += (double)f->q[row * f->dim + i] * f->k[t * f->dim + i];
        s[t] /= sqrt((double)f->dim);
        top = s[t] > top ? s[t] : top;
    }
    for (size_t t = 0; t < f->visible[row]; t++) {
        total += exp(s[t] - top);
        sum += exp(s[t] - top) * f->v[t * f->dim + d];
    }
    return sum / total;
}

static void plain_is_attention(void **state)
{
    (void)state;
    struct random r = {1};
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    for (int round = 0; round < 25; round++) {
        struct fixture f;
        fill(&f, &r, plain);
        float *out = room(f.queries * f.dim * 4);
        run(plain, &f, out, f.queries);
        double worst = 0;
        for (size_t i = 0; i < f.queries; i++)
            for (size_t d = 0; d < f.dim; d += 5) {
                double e = fabs(expected(&f, i, d) - out[i * f.dim + d]);
                worst = e > worst ? e : worst;
            }
        assert_true(worst < 0.12); /* INT8 keys and values of some chunks; |v| is about 1 */
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
        for (int round = 0; round < 60; round++) {
            struct fixture f;
            fill(&f, &r, plain);
            size_t bytes = f.queries * f.dim * 4;
            float *one = room(bytes), *all = room(bytes), *steps = room(bytes);
            run(plain, &f, one, 1);
            run(fast, &f, all, f.queries);
            run(fast, &f, steps, 1 + random_below(&r, 9));
            assert_memory_equal(one, all, bytes);
            assert_memory_equal(one, steps, bytes);
            mem_free(one);
            mem_free(all);
            mem_free(steps);
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
        fill(&f, &r, best);
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
        cmocka_unit_test(result_may_replace_query),
        cmocka_unit_test(stores_agree),
        cmocka_unit_test(rows_agree),
        cmocka_unit_test(exponential_is_close),
        cmocka_unit_test(halves_round_as_hardware),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
