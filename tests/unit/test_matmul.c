/* Matrix products, packing and dequantizing: every instruction set against the plain twin bit by bit, and the
 * plain twin against sums in double precision over weights decoded here from the words of base/dtype.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/memory.h"
#include "base/random.h"
#include "kernels/kernels.h"
#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/selfcheck.h"

static float normal(struct random *r)
{
    double u = random_unit(r) + 1e-12, v = random_unit(r);
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static const char *name_of(enum dtype type)
{
    return dtype_info((uint32_t)type)->name;
}

static size_t block_of(enum dtype type)
{
    return dtype_info((uint32_t)type)->block_values;
}

/* ---- weights: memory that ends where reading faults, and starts at an odd address if asked to ---- */

struct weights {
    unsigned char *map, *data;
    size_t map_bytes;
};

static struct weights weights_map(size_t bytes, bool odd)
{
    struct weights w;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + 1 + page - 1) / page * page;
    w.map_bytes = whole + page;
    w.map = mmap(NULL, w.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(w.map, MAP_FAILED);
    assert_int_equal(mprotect(w.map + whole, page, PROT_NONE), 0);
    w.data = w.map + whole - bytes;
    if (odd && (uintptr_t)w.data % 2 == 0)
        w.data--;
    return w;
}

static void weights_unmap(struct weights *w)
{
    munmap(w->map, w->map_bytes);
}

enum flavour { USUAL, EXTREME, ANY_BITS };

static uint16_t half_for(struct random *r, enum flavour flavour)
{
    static const uint16_t odd[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x7bff,
                                   0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x3c00};
    if (flavour == USUAL)
        return float_to_half(0.02f * normal(r));
    if (flavour == EXTREME)
        return odd[random_below(r, sizeof odd / sizeof *odd)];
    return (uint16_t)random_next(r);
}

static void put_u16(unsigned char *at, uint16_t value)
{
    memcpy(at, &value, 2);
}

/* Where the halves of a block are. */
static int halves_of(enum dtype type, size_t at[2])
{
    at[0] = type == DTYPE_Q6_K ? 208 : 0;
    at[1] = 2;
    return type == DTYPE_Q4_1 || type == DTYPE_Q5_1 || type == DTYPE_Q4_K || type == DTYPE_Q5_K ? 2 : 1;
}

static void fill_floats(struct random *r, enum dtype type, enum flavour flavour, unsigned char *data,
                        size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float x = flavour == USUAL ? 0.02f * normal(r) : half_to_float(half_for(r, flavour));
        if (type == DTYPE_F32)
            memcpy(data + 4 * i, &x, 4);
        else
            put_u16(data + 2 * i, type == DTYPE_F16 ? float_to_half(x) : float_to_bf16(x));
    }
}

static void fill_weights(struct random *r, enum dtype type, enum flavour flavour, unsigned char *data,
                         size_t values)
{
    const struct dtype_info *info = dtype_info((uint32_t)type);
    if (info->block_values == 1) {
        fill_floats(r, type, flavour, data, values);
        return;
    }
    for (size_t b = 0; b < values / info->block_values; b++, data += info->block_bytes) {
        int all = flavour == EXTREME ? (int)random_below(r, 4) : 3;
        for (size_t i = 0; i < info->block_bytes; i++)
            data[i] = all == 0 ? 0x80 : all == 1 ? 0xff : all == 2 ? 0x7f : (unsigned char)random_next(r);
        size_t at[2];
        for (int i = halves_of(type, at) - 1; i >= 0; i--)
            put_u16(data + at[i], half_for(r, flavour));
    }
}

static void fill_activations(struct random *r, enum flavour flavour, float *x, size_t count)
{
    static const float odd[] = {0, -0.0f, 1e-40f, -1e-45f, 1e-7f, 3e38f, -3e38f, 1, -1, 127, -127, 65504};
    for (size_t i = 0; i < count; i++) {
        x[i] = normal(r) * (random_below(r, 20) == 0 ? 30.0f : 1.0f);
        if (flavour == EXTREME)
            x[i] = odd[random_below(r, sizeof odd / sizeof *odd)];
        if (flavour == ANY_BITS) {
            uint32_t bits = (uint32_t)random_next(r);
            memcpy(&x[i], &bits, 4);
        }
    }
    /* Whole stretches of nothing, of one value (all codes 127 or -127), and a lone infinity or NaN. */
    for (size_t i = 0; flavour == EXTREME && i + 256 <= count; i += 256) {
        uint64_t dice = random_below(r, 5);
        if (dice == 0)
            memset(x + i, 0, 256 * sizeof *x);
        else if (dice < 3)
            for (size_t j = 0; j < 256; j++)
                x[i + j] = dice == 1 ? -2.5f : 2.5f;
        else if (dice == 3)
            x[i + random_below(r, 256)] = random_below(r, 2) ? INFINITY : NAN;
    }
}

/* ---- twins ---- */

struct problem {
    struct matmul m;
    size_t rows;
    struct weights weights;
    unsigned char *packed;
    float *x, *want, *got;
};

static void *room(size_t bytes)
{
    void *p = mem_aligned(64, bytes ? bytes : 64);
    assert_non_null(p);
    memset(p, 0x5a, bytes);
    return p;
}

static void problem_init(struct problem *p, struct random *r, enum dtype type, enum flavour flavour,
                         size_t rows, size_t columns, size_t tokens)
{
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    size_t bytes = rows * dtype_row_bytes(type, columns);
    enum pack pack = kernels_pack_of(type);
    size_t packed_bytes = kernels_packed_bytes(pack, columns), stride = rows + random_below(r, 5);
    p->rows = rows;
    p->weights = weights_map(bytes, random_below(r, 2));
    fill_weights(r, type, flavour, p->weights.data, rows * columns);
    p->x = room(tokens * columns * 4);
    fill_activations(r, flavour, p->x, tokens * columns);
    p->packed = room(tokens * packed_bytes);
    for (size_t t = 0; t < tokens; t++)
        plain->pack(pack, p->x + t * columns, columns, p->packed + t * packed_bytes);
    p->want = room(tokens * stride * 4);
    p->got = room(tokens * stride * 4);
    p->m = (struct matmul){type, p->weights.data, columns, p->packed, tokens, p->want, stride};
}

static void problem_deinit(struct problem *p)
{
    weights_unmap(&p->weights);
    mem_free(p->packed);
    mem_free(p->x);
    mem_free(p->want);
    mem_free(p->got);
}

static bool same(float a, float b)
{
    return float_bits(a) == float_bits(b) || (a != a && b != b);
}

static void assert_same(const struct problem *p, const char *isa)
{
    for (size_t t = 0; t < p->m.tokens; t++)
        for (size_t r = 0; r < p->m.out_stride; r++) {
            size_t at = t * p->m.out_stride + r;
            if (!same(p->want[at], p->got[at]))
                fail_msg("%s %s: %zu rows, %zu columns, %zu tokens: row %zu token %zu is %a, should be %a",
                         isa, name_of(p->m.type), p->rows, p->m.columns, p->m.tokens, r, t,
                         (double)p->got[at], (double)p->want[at]);
        }
}

/* All rows in up to four pieces, out of order; nothing else of `got` may change. */
static void run_pieces(struct problem *p, struct random *r, const struct kernels *k)
{
    size_t cut[3];
    for (int i = 0; i < 3; i++)
        cut[i] = random_below(r, p->rows + 1);
    size_t a = cut[0] < cut[1] ? cut[0] : cut[1], b = cut[0] < cut[1] ? cut[1] : cut[0];
    struct matmul m = p->m;
    m.out = p->got;
    memset(p->got, 0x5a, m.tokens * m.out_stride * 4);
    k->matmul(&m, b, p->rows);
    k->matmul(&m, 0, a);
    k->matmul(&m, a, b);
}

/* One token at a time, all rows; every other time with a hint where reading goes on, which may not matter. */
static void run_tokens(struct problem *p, const struct kernels *k)
{
    size_t packed_bytes = kernels_packed_bytes(kernels_pack_of(p->m.type), p->m.columns);
    memset(p->got, 0x5a, p->m.tokens * p->m.out_stride * 4);
    for (size_t t = 0; t < p->m.tokens; t++) {
        struct matmul m = p->m;
        m.tokens = 1;
        m.packed = p->packed + t * packed_bytes;
        m.out = p->got + t * m.out_stride;
        m.next = t % 2 ? p->weights.data : NULL;
        k->matmul(&m, 0, p->rows);
    }
}

/* Every table this processor has, then with AVX-512 the ways it chooses from, and the AMX kernel with tiles
 * in plain C. NULL after the last. */
static const struct kernels *next_twin(int *isa, struct kernels *made)
{
    while (*isa < ISA_COUNT) {
        const struct kernels *k = kernels_get((enum isa)(*isa)++);
        if (k)
            return k;
    }
#ifdef HAVE_AMX_SOFTWARE
    static const struct {
        const char *name;
        void (*matmul)(const struct matmul *m, size_t row_begin, size_t row_end);
    } more[] = {{"avx512 alone", matmul_avx512_alone},
                {"avx512 in pairs", matmul_avx512_pairs},
                {"amx in software", matmul_amx_software}};
    size_t at = (size_t)((*isa)++ - ISA_COUNT);
    if (at < sizeof more / sizeof *more && kernels_get(ISA_AVX512)) {
        *made = *kernels_get(ISA_AVX512);
        made->name = more[at].name;
        made->matmul = more[at].matmul;
        return made;
    }
#endif
    (void)made;
    return NULL;
}

static void check_twins(struct random *r, enum dtype type, enum flavour flavour, size_t rows, size_t columns,
                        size_t tokens)
{
    struct problem p;
    problem_init(&p, r, type, flavour, rows, columns, tokens);
    struct kernels made;
    kernels_get(ISA_PLAIN)->matmul(&p.m, 0, rows);
    int isa = ISA_PLAIN;
    for (const struct kernels *k; (k = next_twin(&isa, &made)) != NULL;) {
        run_pieces(&p, r, k);
        assert_same(&p, k->name);
        run_tokens(&p, k);
        assert_same(&p, k->name);
    }
    problem_deinit(&p);
}

static void twins(enum flavour flavour, int rounds, uint64_t seed)
{
    struct random r = {seed};
    size_t count;
    const struct dtype_info *types = dtype_list(&count);
    for (size_t i = 0; i < count; i++) {
        size_t block = types[i].block_values;
        for (int round = 0; round < rounds; round++) {
            size_t limit = block == 256 ? 5 : block == 32 ? 41 : 700;
            size_t columns = block * (1 + random_below(&r, limit));
            check_twins(&r, types[i].type, flavour, 1 + random_below(&r, 70), columns,
                        1 + random_below(&r, 40));
        }
        check_twins(&r, types[i].type, flavour, 1, block, 1);
        check_twins(&r, types[i].type, flavour, 33, 3 * block, 1);
    }
}

static void twins_usual(void **state)
{
    (void)state;
    twins(USUAL, 6, 1);
}

static void twins_extreme(void **state)
{
    (void)state;
    twins(EXTREME, 4, 2);
}

static void twins_any_bits(void **state)
{
    (void)state;
    twins(ANY_BITS, 4, 3);
}

/* Every number of tokens that a kernel may take at once, and some more. */
static void twins_each_count(void **state)
{
    (void)state;
    struct random r = {10};
    size_t count;
    const struct dtype_info *types = dtype_list(&count);
    for (size_t i = 0; i < count; i++)
        for (size_t tokens = 1; tokens <= 14; tokens++)
            check_twins(&r, types[i].type, USUAL, 37, types[i].block_values == 1 ? 52 : 768, tokens);
}

/* More tokens than any kernel takes at once. */
static void twins_long(void **state)
{
    (void)state;
    struct random r = {4};
    size_t count;
    const struct dtype_info *types = dtype_list(&count);
    for (size_t i = 0; i < count; i++)
        check_twins(&r, types[i].type, USUAL, 5, types[i].block_values == 1 ? 40 : types[i].block_values,
                    530);
}

static void no_tokens_no_rows(void **state)
{
    (void)state;
    struct random r = {5};
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *k = kernels_get((enum isa)isa);
        struct problem p;
        if (!k)
            continue;
        problem_init(&p, &r, DTYPE_Q4_0, USUAL, 20, 64, 2);
        struct matmul m = p.m;
        m.out = p.got;
        k->matmul(&m, 7, 7);
        m.tokens = 0;
        k->matmul(&m, 0, 20);
        assert_same(&p, k->name); /* both still as room() left them */
        problem_deinit(&p);
    }
}

/* ---- an independent decoding of the block layouts ---- */

static double half_at(const unsigned char *p)
{
    int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static int bit_at(const unsigned char *p, size_t bit)
{
    return p[bit / 8] >> bit % 8 & 1;
}

static double decode_32(enum dtype type, const unsigned char *p, size_t i)
{
    bool five = type == DTYPE_Q5_0 || type == DTYPE_Q5_1, with_min = type == DTYPE_Q4_1 || type == DTYPE_Q5_1;
    if (type == DTYPE_Q8_0)
        return half_at(p) * (p[2 + i] < 128 ? p[2 + i] : p[2 + i] - 256);
    const unsigned char *fifths = p + (with_min ? 4 : 2), *codes = fifths + (five ? 4 : 0);
    int code = i < 16 ? codes[i] % 16 : codes[i - 16] / 16;
    code += five ? 16 * bit_at(fifths, i) : 0;
    if (with_min)
        return half_at(p) * code + half_at(p + 2);
    return half_at(p) * (code - (five ? 16 : 8));
}

/* The k-th 6-bit scale (0..7) or minimum (8..15) of Q4_K and Q5_K. */
static int six_bits(const unsigned char *p, size_t k)
{
    size_t i = k % 8, mins = k / 8;
    if (i < 4)
        return p[4 * mins + i] % 64;
    int low = mins ? p[8 + i - 4] / 16 : p[8 + i - 4] % 16;
    return low + p[4 * mins + i - 4] / 64 * 16;
}

static double decode_256(enum dtype type, const unsigned char *p, size_t i)
{
    if (type == DTYPE_Q6_K) {
        size_t half = i / 128, in_half = i % 128, byte = half * 64 + in_half % 64;
        int low = in_half < 64 ? p[byte] % 16 : p[byte] / 16;
        size_t high_bit = 8 * (128 + half * 32 + in_half % 32) + in_half / 32 * 2;
        int code = low + 16 * bit_at(p, high_bit) + 32 * bit_at(p, high_bit + 1) - 32;
        int scale = p[192 + i / 16] < 128 ? p[192 + i / 16] : p[192 + i / 16] - 256;
        return half_at(p + 208) * scale * code;
    }
    const unsigned char *codes = p + (type == DTYPE_Q5_K ? 48 : 16);
    size_t group = i / 32, byte = group / 2 * 32 + i % 32;
    int code = group % 2 ? codes[byte] / 16 : codes[byte] % 16;
    if (type == DTYPE_Q5_K)
        code += 16 * bit_at(p + 16, 8 * (i % 32) + group);
    return half_at(p) * six_bits(p + 4, group) * code - half_at(p + 2) * six_bits(p + 4, 8 + group);
}

static double decode(enum dtype type, const unsigned char *row, size_t i)
{
    const struct dtype_info *info = dtype_info((uint32_t)type);
    const unsigned char *p = row + i / info->block_values * info->block_bytes;
    uint32_t bits = 0;
    float x;
    if (info->block_values == 32)
        return decode_32(type, p, i % 32);
    if (info->block_values == 256)
        return decode_256(type, p, i % 256);
    if (type == DTYPE_F16)
        return half_at(p);
    bits = type == DTYPE_F32 ? (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0]
                             : (uint32_t)p[1] << 24 | (uint32_t)p[0] << 16;
    memcpy(&x, &bits, 4);
    return x;
}

static void dequantize_is_exact(void **state)
{
    (void)state;
    struct random r = {6};
    size_t count, columns = 768;
    const struct dtype_info *types = dtype_list(&count);
    float *out = room(columns * 4);
    for (size_t i = 0; i < count; i++) {
        enum dtype type = types[i].type;
        struct weights w = weights_map(dtype_row_bytes(type, columns), true);
        fill_weights(&r, type, USUAL, w.data, columns);
        for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
            const struct kernels *k = kernels_get((enum isa)isa);
            if (!k)
                continue;
            memset(out, 0x5a, columns * 4);
            k->dequantize(type, w.data, out, columns);
            for (size_t c = 0; c < columns; c++) /* one rounding at most: the double is exact */
                if (out[c] != (float)decode(type, w.data, c))
                    fail_msg("%s: value %zu is %a, should be %a", name_of(type), c, (double)out[c],
                             decode(type, w.data, c));
        }
        weights_unmap(&w);
    }
    mem_free(out);
}

/* ---- packing ---- */

static double unpacked(enum pack pack, const unsigned char *packed, size_t columns, size_t i)
{
    if (pack == PACK_F32)
        return ((const float *)(const void *)packed)[i];
    bool q32 = pack != PACK_Q256;
    size_t at = q32 ? pack_q32_scales_at(columns) : pack_q256_scales_at(columns);
    const float *scales = (const float *)(const void *)(packed + at);
    return (double)scales[i / (q32 ? 32 : 256)] * (int8_t)packed[i];
}

static double largest(const float *x, size_t n)
{
    double top = 0;
    for (size_t i = 0; i < n; i++)
        top = fabs((double)x[i]) > top ? fabs((double)x[i]) : top;
    return top;
}

static void check_sums(enum pack pack, const unsigned char *packed, size_t columns)
{
    size_t step = pack == PACK_Q256 ? 16 : 32;
    for (size_t s = 0; s < columns / step; s++) {
        int sum = 0;
        for (size_t i = s * step; i < (s + 1) * step; i++)
            sum += (int8_t)packed[i];
        if (pack != PACK_Q256)
            assert_int_equal(((const int32_t *)(const void *)(packed + pack_q32_starts_at(columns)))[s],
                             -8 * sum);
        else
            assert_int_equal(((const int16_t *)(const void *)(packed + pack_q256_sums_at(columns)))[s], sum);
    }
}

/* Half a step, and where it is for 32 values also what rounding the scale to FP16 (2^-11 of it) does to the
 * largest code.
 */
static void pack_is_close(void **state)
{
    (void)state;
    struct random r = {7};
    size_t columns = 1280;
    float *x = room(columns * 4);
    for (int pack = PACK_Q32; pack <= PACK_Q256; pack++) {
        size_t block = pack == PACK_Q256 ? 256 : 32;
        double most = pack == PACK_PAIRS ? PACK_PAIRS_MOST : 127;
        unsigned char *packed = room(kernels_packed_bytes((enum pack)pack, columns));
        fill_activations(&r, USUAL, x, columns);
        kernels_get(ISA_PLAIN)->pack((enum pack)pack, x, columns, packed);
        for (size_t i = 0; i < columns; i++) {
            double step = largest(x + i / block * block, block) / most;
            double bound = step * (0.5 + 1e-4 + (pack == PACK_Q256 ? 0 : most * 0x1p-11));
            assert_true(fabs(unpacked((enum pack)pack, packed, columns, i) - (double)x[i]) <= bound);
        }
        check_sums((enum pack)pack, packed, columns);
        mem_free(packed);
    }
    mem_free(x);
}

static void check_pack_twins(const float *x, enum pack pack, size_t columns)
{
    size_t bytes = kernels_packed_bytes(pack, columns);
    unsigned char *want = room(bytes + 64), *got = room(bytes + 64);
    assert_int_equal(bytes % 64, 0);
    kernels_get(ISA_PLAIN)->pack(pack, x, columns, want);
    for (int isa = ISA_PLAIN + 1; isa < ISA_COUNT; isa++) {
        const struct kernels *k = kernels_get((enum isa)isa);
        if (!k)
            continue;
        memset(got, 0x5a, bytes + 64);
        k->pack(pack, x, columns, got);
        assert_memory_equal(want, got, bytes + 64);
    }
    mem_free(want);
    mem_free(got);
}

static void pack_twins(void **state)
{
    (void)state;
    struct random r = {8};
    float *x = room(4096 * 4);
    for (int round = 0; round < 200; round++) {
        fill_activations(&r, (enum flavour)(round % 3), x, 4096);
        if (round % 5 == 0) /* the largest magnitude more than once, with both signs */
            for (int i = 0; i < 40; i++)
                x[random_below(&r, 4096)] = random_below(&r, 2) ? 1e3f : -1e3f;
        check_pack_twins(x, PACK_F32, 1 + random_below(&r, 4096));
        check_pack_twins(x, PACK_Q32, 32 * (1 + random_below(&r, 128)));
        check_pack_twins(x, PACK_PAIRS, 32 * (1 + random_below(&r, 128)));
        check_pack_twins(x, PACK_Q256, 256 * (1 + random_below(&r, 16)));
    }
    mem_free(x);
}

/* Rows packed in parts, by columns, a few tokens at a time, are what they are packed whole. */
static void check_parts(struct random *r, const struct kernels *k, enum pack pack, const float *x,
                        size_t tokens, size_t columns)
{
    size_t bytes = kernels_packed_bytes(pack, columns), now;
    unsigned char *want = room(tokens * bytes + 64), *got = room(tokens * bytes + 64);
    float *part = room(tokens * PACK_PART_MOST * sizeof *part);
    memset(want, 0x5a, tokens * bytes + 64);
    memset(got, 0x5a, tokens * bytes + 64);
    for (size_t t = 0; t < tokens; t++)
        k->pack(pack, x + t * columns, columns, want + t * bytes);
    for (size_t begin = 0, count; begin < columns; begin += count) {
        count = 32 * (1 + random_below(r, PACK_PART_MOST / 32));
        count = count < columns - begin ? count : columns - begin;
        for (size_t t = 0; t < tokens; t += now) {
            now = 1 + random_below(r, 20);
            now = now < tokens - t ? now : tokens - t;
            for (size_t i = 0; i < now; i++)
                memcpy(part + i * count, x + (t + i) * columns + begin, count * sizeof *part);
            k->pack_part(&(struct pack_part){pack, part, begin, count, columns, now, got + t * bytes});
        }
    }
    assert_memory_equal(want, got, tokens * bytes + 64);
    mem_free(want);
    mem_free(got);
    mem_free(part);
}

static void parts_make_rows(void **state)
{
    (void)state;
    struct random r = {14};
    enum { TOKENS = 24, COLUMNS = 640 };
    float *x = room(TOKENS * COLUMNS * 4);
    for (int isa = ISA_PLAIN; isa < ISA_COUNT; isa++) {
        const struct kernels *k = kernels_get((enum isa)isa);
        for (int round = 0; k && round < 60; round++) {
            fill_activations(&r, (enum flavour)(round % 3), x, TOKENS * COLUMNS);
            check_parts(&r, k, round % 2 ? PACK_Q32 : PACK_PAIRS, x, 1 + random_below(&r, TOKENS),
                        32 * (1 + random_below(&r, COLUMNS / 32)));
        }
    }
    mem_free(x);
}

static void pack_by_hand(void **state)
{
    (void)state;
    const struct kernels *plain = kernels_get(ISA_PLAIN);
    float x[256] = {0};
    unsigned char *packed = room(kernels_packed_bytes(PACK_Q256, 256));
    const float *scale = (const float *)(void *)(packed + pack_q256_scales_at(256));
    plain->pack(PACK_Q256, x, 256, packed);
    assert_true(*scale == 0 && packed[0] == 0 && packed[255] == 0);
    x[3] = 254;
    x[4] = -254;
    x[5] = 5; /* 2.5 steps: to even */
    plain->pack(PACK_Q256, x, 256, packed);
    assert_true(*scale == -2.0f); /* the first of the largest, so its code is -127 */
    assert_int_equal((int8_t)packed[3], -127);
    assert_int_equal((int8_t)packed[4], 127);
    assert_int_equal((int8_t)packed[5], -2);
    scale = (const float *)(void *)(packed + pack_q32_scales_at(32));
    plain->pack(PACK_Q32, x, 32, packed);
    assert_true(*scale == 2.0f);
    assert_int_equal((int8_t)packed[3], 127);
    assert_int_equal((int8_t)packed[4], -127);
    assert_int_equal((int8_t)packed[5], 2);
    x[3] = 2 * PACK_PAIRS_MOST;
    x[4] = -2 * PACK_PAIRS_MOST;
    plain->pack(PACK_PAIRS, x, 32, packed);
    assert_true(*scale == 2.0f);
    assert_int_equal((int8_t)packed[3], 120);
    assert_int_equal((int8_t)packed[4], -120);
    assert_int_equal((int8_t)packed[5], 2);
    /* Pairs: 0 with -120, 0 with 2, 0 with 0, 120 with 0. */
    assert_int_equal(*(const int32_t *)(void *)(packed + pack_q32_starts_at(32)), -8 * 2);
    assert_int_equal(*(const int32_t *)(void *)(packed + pack_pairs_at(32)), -128 * (-120 + 2));
    x[9] = NAN;
    plain->pack(PACK_Q32, x, 32, packed);
    assert_true(*scale != *scale);
    mem_free(packed);
}

/* ---- the plain twin against double precision ---- */

static void plain_is_close(void **state)
{
    (void)state;
    struct random r = {9};
    size_t count;
    const struct dtype_info *types = dtype_list(&count);
    for (size_t i = 0; i < count; i++) {
        enum dtype type = types[i].type;
        enum pack pack = kernels_pack_of(type);
        size_t columns = 1536, packed_bytes = kernels_packed_bytes(pack, columns);
        struct problem p;
        problem_init(&p, &r, type, USUAL, 9, columns, 3);
        kernels_get(ISA_PLAIN)->matmul(&p.m, 0, 9);
        for (size_t at = 0; at < 27; at++) {
            const unsigned char *row = p.weights.data + at % 9 * dtype_row_bytes(type, columns);
            double sum = 0, size = 0;
            for (size_t c = 0; c < columns; c++) {
                double term =
                    decode(type, row, c) * unpacked(pack, p.packed + at / 9 * packed_bytes, columns, c);
                sum += term;
                size += fabs(term);
            }
            /* Each step of the sum rounds once or twice; a float's half step is 2^-24. Terms with a minimum
             * are larger than their difference, so sums of them get room. */
            double steps = type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16
                               ? 96 + 4
                               : 4.0 * (double)(columns / block_of(type)) + 8;
            double got = p.want[at / 9 * p.m.out_stride + at % 9];
            if (!(fabs(got - sum) <= 4 * steps * 0x1p-24 * size))
                fail_msg("%s: %g, should be %g: off by %g of %g", name_of(type), got, sum, fabs(got - sum),
                         size);
        }
        problem_deinit(&p);
    }
}

/* ---- the check before an instruction set is used ---- */

static void wrong_one_bit(const struct matmul *m, size_t row_begin, size_t row_end)
{
    matmul_plain(m, row_begin, row_end);
    uint32_t bits;
    float *last = &m->out[(m->tokens - 1) * m->out_stride + row_end - 1];
    memcpy(&bits, last, 4);
    bits ^= m->type == DTYPE_Q6_K;
    memcpy(last, &bits, 4);
}

static void selfcheck_sees_a_bit(void **state)
{
    (void)state;
    enum dtype type = DTYPE_F32;
    assert_true(selfcheck_matmul(matmul_plain, &type));
    assert_false(selfcheck_matmul(wrong_one_bit, &type));
    assert_int_equal(type, DTYPE_Q6_K);
#ifdef HAVE_AMX_SOFTWARE
    if (kernels_get(ISA_AVX512))
        assert_true(selfcheck_matmul(matmul_amx_software, &type));
#endif
}

/* ---- the table ---- */

static void tables(void **state)
{
    (void)state;
    static const char *const names[] = {"plain", "avx2", "avxvnni", "avx512", "amx"};
    assert_non_null(kernels_get(ISA_PLAIN));
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        const struct kernels *k = kernels_get((enum isa)isa);
        setenv("LLMS_ISA", names[isa], 1);
        const struct kernels *best = kernels_best();
        if (!k) {
            assert_non_null(best);
            continue;
        }
        assert_string_equal(k->name, names[isa]);
        assert_ptr_equal(best, k);
        assert_true(k->pack && k->matmul && k->dequantize && k->attention && k->store);
        assert_true(k->rms_norm && k->swiglu && k->add);
    }
    unsetenv("LLMS_ISA");
    assert_non_null(kernels_best());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables),
        cmocka_unit_test(selfcheck_sees_a_bit),
        cmocka_unit_test(pack_by_hand),
        cmocka_unit_test(pack_is_close),
        cmocka_unit_test(pack_twins),
        cmocka_unit_test(parts_make_rows),
        cmocka_unit_test(dequantize_is_exact),
        cmocka_unit_test(plain_is_close),
        cmocka_unit_test(twins_usual),
        cmocka_unit_test(twins_extreme),
        cmocka_unit_test(twins_any_bits),
        cmocka_unit_test(twins_each_count),
        cmocka_unit_test(twins_long),
        cmocka_unit_test(no_tokens_no_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
