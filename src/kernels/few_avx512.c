/* Quantised matrix products of few tokens, AVX-512 (few_avx512.h); matmul_plain.c defines the canonical
 * order.
 *
 * Blocks go from memory to registers to the sums, with no tile between. The 16 streams that are read side by
 * side would not keep the memory busy by themselves, so meanwhile the next rows are fetched in the order they
 * lie in memory, even behind the last row asked for: that is where this thread or another goes on. */
#include "kernels/few_avx512.h"

#include <stdint.h>
#include <string.h>

#include "kernels/pack.h"
#include "kernels/unpack_avx512.h"
#include "kernels/unroll.h"

enum { ROWS = UNPACK_ROWS, NEAR_BYTES = 320, AHEAD_BYTES = 14000, COPY_COLUMNS = 1024 };

/* ROWS rows, stride bytes apart, by `blocks` blocks. */
struct few {
    const unsigned char *rows;
    size_t stride;
    size_t blocks;
    struct few_token { /* packed, at the first of these blocks */
        const signed char *codes;
        const float *scales;
        const void *sums; /* starts where a scale is for 32 values */
    } x[FEW_TOKENS];
    float *sums;     /* [tokens][ROWS], added to */
    uintptr_t ahead; /* what to fetch meanwhile, as much as these rows' blocks; only an address: it may lie
                        behind the weights, where fetching does nothing */
};

/* Fetches the next `bytes` of what lies ahead; and from where that was put when its turn came, the second
 * cache, what the rows will need soon: of every other row (odd: 0 or 1), or of all (odd: -1). */
ALWAYS_INLINE uintptr_t prefetch(uintptr_t ahead, size_t bytes, const struct rows *r, int odd)
{
    UNROLL_FOR (line, ((int)bytes + 63) / 64)
        _mm_prefetch((const char *)(ahead + 64 * (uintptr_t)line), _MM_HINT_T0);
    size_t near = NEAR_BYTES + (odd > 0 ? r->one : 0);
    UNROLL_FOR (i, ROWS)
        if (odd < 0 || i % 2 == 0)
            _mm_prefetch((const char *)((uintptr_t)row_at(r, i) + near), _MM_HINT_T0);
    return ahead + bytes;
}

ALWAYS_INLINE __m512i four_codes(const struct few_token *x, size_t at)
{
    int four;
    memcpy(&four, x->codes + at, 4);
    return _mm512_set1_epi32(four);
}

/* Adds `vectors` code vectors' products, and fetches so many lines from `ahead` on between them: spread over
 * the work, since the processor keeps few lines waiting for memory, and what comes on top of those holds up
 * all reading. The compiler would gather them. */
ALWAYS_INLINE __m512i dots(__m512i sum, const __m512i *code, int vectors, const struct few_token *x,
                           size_t at, uintptr_t ahead, int lines)
{
    UNROLL_FOR (c, vectors) {
        sum = _mm512_dpbusd_epi32(sum, code[c], four_codes(x, at + 4 * (size_t)c));
        UNROLL_FOR (line, lines)
            if (line % vectors == c)
                PREFETCH_AFTER(sum, ahead + 64 * (uintptr_t)line);
    }
    return sum;
}

/* Of a step's lines, those that part `part` of `parts` fetches: how many, and from where on. */
ALWAYS_INLINE int lines_of(size_t bytes, int part, int parts)
{
    int lines = ((int)bytes + 63) / 64;
    return lines * (part + 1) / parts - lines * part / parts;
}

ALWAYS_INLINE uintptr_t lines_at(uintptr_t ahead, size_t bytes, int part, int parts)
{
    int lines = ((int)bytes + 63) / 64;
    return ahead + 64 * (uintptr_t)(lines * part / parts);
}

ALWAYS_INLINE void product_32(enum dtype type, size_t bytes, int offset, int tokens, const struct few *f)
{
    struct rows r = rows_at(f->rows, f->stride);
    uintptr_t ahead = f->ahead;
    __m512 sum[FEW_TOKENS];
    UNROLL_FOR (t, tokens)
        sum[t] = _mm512_loadu_ps(f->sums + t * ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m512i code[8];
        __m512 scale, minimum;
        ahead = prefetch(ahead, ROWS * bytes, &r, bytes > 32 ? -1 : (int)(b % 2));
        unpack_32(type, &r, 0, code, &scale, &minimum);
        UNROLL_FOR (t, tokens) {
            const struct few_token *x = &f->x[t];
            int start = ((const int *)x->sums)[b];
            __m512 da = _mm512_set1_ps(x->scales[b]);
            __m512i dot = _mm512_set1_epi32(offset / PACK_START * start);
            dot = dots(dot, code, 8, x, 32 * b, 0, 0);
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale, da), sum[t]);
            if (!offset)
                sum[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x->scales[b] * (float)pack_q32_sum(start)),
                                         sum[t]);
        }
    }
    UNROLL_FOR (t, tokens)
        _mm512_storeu_ps(f->sums + t * ROWS, sum[t]);
}

/* The sums of 32 codes from those of 16, paired as mins_pair(i, j) pairs the minimums. */
ALWAYS_INLINE __m512i sums_pair(const short *sums, int i, int j)
{
    const short *s = sums + 8 * i + 2 * j;
    return _mm512_set1_epi32((int)((unsigned)(s[0] + s[1]) & 0xffff) | (s[4] + s[5]) * 65536);
}

ALWAYS_INLINE void product_q45(bool five, int tokens, const struct few *f)
{
    const size_t bytes = five ? 176 : 144;
    struct rows r = rows_at(f->rows, f->stride);
    uintptr_t ahead = f->ahead;
    __m512 sum[FEW_TOKENS];
    UNROLL_FOR (t, tokens)
        sum[t] = _mm512_loadu_ps(f->sums + t * ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m512i head[4], fifths[8], total[FEW_TOKENS], low[8], high[8];
        load_16(&r, 0, head);
        struct pairs p = unpack_pairs(head);
        if (five)
            load_32(&r, 16, fifths);
        UNROLL_FOR (t, tokens)
            total[t] = _mm512_setzero_si512();
        UNROLL_FOR (g, 4) {
            unpack_q45(&r, (five ? 48 : 16) + 32 * (size_t)g, five ? fifths : NULL, low, high);
            __m512i a = byte_of(p.factor[g / 2], g % 2 * 2), c = byte_of(p.factor[g / 2], g % 2 * 2 + 1);
            UNROLL_FOR (t, tokens) {
                size_t at = 256 * b + 64 * (size_t)g;
                __m512i dot = dots(_mm512_setzero_si512(), low, 8, &f->x[t], at, ahead,
                                   t ? 0 : lines_of(ROWS * bytes / 4, 0, 2));
                total[t] = _mm512_add_epi32(total[t], _mm512_mullo_epi32(dot, a));
                dot = dots(_mm512_setzero_si512(), high, 8, &f->x[t], at + 32,
                           lines_at(ahead, ROWS * bytes / 4, 1, 2), t ? 0 : lines_of(ROWS * bytes / 4, 1, 2));
                total[t] = _mm512_add_epi32(total[t], _mm512_mullo_epi32(dot, c));
            }
            if (five)
                UNROLL_FOR (c8, 8)
                    fifths[c8] = _mm512_srli_epi32(fifths[c8], 2);
            ahead += ROWS * bytes / 4;
        }
        UNROLL_FOR (t, tokens) {
            __m512 da = _mm512_set1_ps(f->x[t].scales[b]);
            __m512i mins = _mm512_setzero_si512();
            UNROLL_FOR (i, 4)
                mins = _mm512_dpwssd_epi32(mins, mins_pair(&p, i / 2, i % 2),
                                           sums_pair((const short *)f->x[t].sums + 16 * b, i / 2, i % 2));
            sum[t] =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[t]), _mm512_mul_ps(low_halves(head[0]), da), sum[t]);
            sum[t] =
                _mm512_fnmadd_ps(_mm512_cvtepi32_ps(mins), _mm512_mul_ps(high_halves(head[0]), da), sum[t]);
        }
    }
    UNROLL_FOR (t, tokens)
        _mm512_storeu_ps(f->sums + t * ROWS, sum[t]);
}

/* Adds 32 columns of Q6_K at column `at`, whose two scales are bytes j and j + 1. Fetches the half-th half of
 * `bytes` bytes. */
ALWAYS_INLINE __m512i add_q6(__m512i total, const __m512i code[8], __m512i scales, int j,
                             const struct few_token *x, size_t at, uintptr_t ahead, size_t bytes, int half)
{
    const short *sums = (const short *)x->sums + at / 16;
    __m512i dot = dots(_mm512_set1_epi32(-32 * sums[0]), code, 4, x, at, lines_at(ahead, bytes, 2 * half, 4),
                       lines_of(bytes, 2 * half, 4));
    total = _mm512_add_epi32(total, _mm512_mullo_epi32(dot, signed_byte_of(scales, j)));
    dot = dots(_mm512_set1_epi32(-32 * sums[1]), code + 4, 4, x, at + 16,
               lines_at(ahead, bytes, 2 * half + 1, 4), lines_of(bytes, 2 * half + 1, 4));
    return _mm512_add_epi32(total, _mm512_mullo_epi32(dot, signed_byte_of(scales, j + 1)));
}

ALWAYS_INLINE void product_q6(size_t bytes, int tokens, const struct few *f)
{
    struct rows r = rows_at(f->rows, f->stride);
    uintptr_t ahead = f->ahead;
    __m512 sum[FEW_TOKENS];
    UNROLL_FOR (t, tokens)
        sum[t] = _mm512_loadu_ps(f->sums + t * ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m512i scales[4], upper[8], total[FEW_TOKENS], first[8], second[8];
        load_16(&r, 192, scales);
        __m512 scale = q6_scale(&r, 0);
        UNROLL_FOR (t, tokens)
            total[t] = _mm512_setzero_si512();
        UNROLL_FOR (i, 4) {
            int half = i / 2, pair = i % 2;
            if (pair == 0)
                load_32(&r, 128 + 32 * (size_t)half, upper);
            unpack_q6(&r, 0, half, pair, upper, first, second);
            UNROLL_FOR (t, tokens) {
                size_t at = 256 * b + 128 * (size_t)half + 32 * (size_t)pair;
                size_t now = t ? 0 : ROWS * bytes / 4;
                total[t] = add_q6(total[t], first, scales[2 * half], 2 * pair, &f->x[t], at, ahead, now, 0);
                total[t] = add_q6(total[t], second, scales[2 * half + 1], 2 * pair, &f->x[t], at + 64, ahead,
                                  now, 1);
            }
            ahead += ROWS * bytes / 4;
        }
        UNROLL_FOR (t, tokens) {
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(f->x[t].scales[b]));
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[t]), both, sum[t]);
        }
    }
    UNROLL_FOR (t, tokens)
        _mm512_storeu_ps(f->sums + t * ROWS, sum[t]);
}

typedef void few_fn(const struct few *f);

#define FEW(name, tokens, call)                                                                              \
    static void name##_##tokens(const struct few *f)                                                         \
    {                                                                                                        \
        call;                                                                                                \
    }
#define FEW_ALL(name, product, ...)                                                                          \
    FEW(name, 1, product(__VA_ARGS__, 1, f))                                                                 \
    FEW(name, 2, product(__VA_ARGS__, 2, f))                                                                 \
    FEW(name, 3, product(__VA_ARGS__, 3, f))                                                                 \
    FEW(name, 4, product(__VA_ARGS__, 4, f))                                                                 \
    FEW(name, 5, product(__VA_ARGS__, 5, f))                                                                 \
    FEW(name, 6, product(__VA_ARGS__, 6, f))

FEW_ALL(q8_0, product_32, DTYPE_Q8_0, 34, 128)
FEW_ALL(q4_0, product_32, DTYPE_Q4_0, 18, 8)
FEW_ALL(q4_1, product_32, DTYPE_Q4_1, 20, 0)
FEW_ALL(q5_0, product_32, DTYPE_Q5_0, 22, 16)
FEW_ALL(q5_1, product_32, DTYPE_Q5_1, 24, 0)
FEW_ALL(q4_k, product_q45, false)
FEW_ALL(q5_k, product_q45, true)
FEW_ALL(q6_k, product_q6, 210)

static few_fn *few_of(enum dtype type, size_t tokens)
{
#define ROW(type, name)                                                                                      \
    {                                                                                                        \
        type,                                                                                                \
        {                                                                                                    \
            name##_1, name##_2, name##_3, name##_4, name##_5, name##_6                                       \
        }                                                                                                    \
    }
    static const struct {
        enum dtype type;
        few_fn *run[FEW_TOKENS];
    } table[] = {ROW(DTYPE_Q8_0, q8_0), ROW(DTYPE_Q4_0, q4_0), ROW(DTYPE_Q4_1, q4_1), ROW(DTYPE_Q5_0, q5_0),
                 ROW(DTYPE_Q5_1, q5_1), ROW(DTYPE_Q4_K, q4_k), ROW(DTYPE_Q5_K, q5_k), ROW(DTYPE_Q6_K, q6_k)};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].type == type)
            return table[i].run[tokens - 1];
    return NULL;
}

/* Points the tokens at a column. */
static void few_tokens_at(const struct matmul *m, size_t column, struct few *f)
{
    size_t columns = m->columns;
    enum pack pack = kernels_pack_of(m->type);
    const unsigned char *x = m->packed;
    for (size_t t = 0; t < m->tokens; t++, x += kernels_packed_bytes(pack, columns)) {
        f->x[t].codes = (const signed char *)x + column;
        if (pack != PACK_Q256) {
            f->x[t].scales = (const float *)(x + pack_q32_scales_at(columns)) + column / 32;
            f->x[t].sums = (const int *)(x + pack_q32_starts_at(columns)) + column / 32;
        } else {
            f->x[t].scales = (const float *)(x + pack_q256_scales_at(columns)) + column / 256;
            f->x[t].sums = (const short *)(x + pack_q256_sums_at(columns)) + column / 16;
        }
    }
}

/* Fewer than ROWS rows, from copies of some columns at a time, since the products always read ROWS. */
static void last_rows(const struct matmul *m, few_fn *run, const unsigned char *from, size_t rows,
                      struct few *f)
{
    size_t row_bytes = f->stride;
    unsigned char copy[ROWS * COPY_COLUMNS / 32 * 34];
    f->rows = copy;
    f->ahead = (uintptr_t)copy;
    for (size_t column = 0; column < m->columns; column += COPY_COLUMNS, from += f->stride) {
        size_t columns = m->columns - column < COPY_COLUMNS ? m->columns - column : COPY_COLUMNS;
        f->stride = dtype_row_bytes(m->type, columns);
        f->blocks = columns / dtype_info((uint32_t)m->type)->block_values;
        for (size_t i = 0; i < ROWS; i++)
            memcpy(copy + i * f->stride, from + (i < rows ? i : 0) * row_bytes, f->stride);
        few_tokens_at(m, column, f);
        run(f);
    }
    f->rows = NULL; /* copy ends here */
    f->ahead = 0;
}

static void store_sums(const struct matmul *m, size_t row, size_t rows, const float *sums)
{
    __mmask16 mask = (__mmask16)(0xffff >> (ROWS - rows));
    for (size_t t = 0; t < m->tokens; t++)
        _mm512_mask_storeu_ps(m->out + t * m->out_stride + row, mask, _mm512_load_ps(sums + t * ROWS));
}

void few_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end)
{
    _Alignas(64) float sums[FEW_TOKENS * ROWS];
    const unsigned char *weights = m->weights;
    few_fn *run = few_of(m->type, m->tokens);
    struct few f = {.sums = sums, .stride = dtype_row_bytes(m->type, m->columns)};
    f.blocks = m->columns / dtype_info((uint32_t)m->type)->block_values;
    few_tokens_at(m, 0, &f);
    size_t row = row_begin, distance = ROWS * f.stride;
    distance *= (AHEAD_BYTES + distance - 1) / distance;
    for (; row + ROWS <= row_end; row += ROWS) {
        f.rows = weights + row * f.stride;
        f.ahead = (uintptr_t)f.rows + distance;
        memset(sums, 0, sizeof sums);
        run(&f);
        store_sums(m, row, ROWS, sums);
    }
    if (row < row_end) {
        memset(sums, 0, sizeof sums);
        last_rows(m, run, weights + row * f.stride, row_end - row, &f);
        store_sums(m, row, row_end - row, sums);
    }
}
