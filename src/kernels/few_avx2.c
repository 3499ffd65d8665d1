/* Quantised matrix products of few tokens, AVX2 and AVX-VNNI (few_avx2.h); matmul_plain.c defines the
 * canonical order.
 *
 * Blocks go from memory to registers to the sums, with no tile between. The 8 streams that are read side by
 * side would not keep the memory busy by themselves, so meanwhile the next rows are fetched in the order they
 * lie in memory, even behind the last row asked for: that is where this thread or another goes on. */
#include "kernels/few_avx2.h"

#include <stdint.h>
#include <string.h>

#include "kernels/dots_avx2.h"
#include "kernels/pack.h"
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
ALWAYS_INLINE uintptr_t prefetch(uintptr_t ahead, size_t bytes, const struct rows *r, size_t at, int odd)
{
    UNROLL_FOR (line, ((int)bytes + 63) / 64)
        _mm_prefetch((const char *)(ahead + 64 * (uintptr_t)line), _MM_HINT_T0);
    size_t near = at + NEAR_BYTES + (odd > 0 ? r->one : 0);
    UNROLL_FOR (i, ROWS)
        if (odd < 0 || i % 2 == 0)
            _mm_prefetch((const char *)((uintptr_t)row_at(r, i) + near), _MM_HINT_T0);
    return ahead + bytes;
}

/* Adds `vectors` code vectors' products. */
ALWAYS_INLINE __m256i dots(__m256i sum, const __m256i *code, int vectors, const struct few_token *x,
                           size_t at)
{
    UNROLL_FOR (c, vectors)
        sum = dot_step(sum, code[c], four_codes(x->codes + at + 4 * (size_t)c));
    return sum;
}

/* A block of 32 on top of `start`; burst as in dots_avx2.h, 0: signed codes. */
ALWAYS_INLINE __m256i dot_32(int burst, __m256i start, const __m256i code[8], const struct few_token *x,
                             size_t at)
{
    if (burst == 0) {
        UNROLL_FOR (c, 8)
            start = signed_dot(start, code[c], _mm256_abs_epi8(code[c]),
                               four_codes(x->codes + at + 4 * (size_t)c));
        return start;
    }
    if (HAVE_VNNI)
        return dots(start, code, 8, x, at);
    UNROLL_FOR (c, 8 / burst) {
        __m256i part = dots(_mm256_setzero_si256(), code + c * burst, burst, x, at + 4 * (size_t)(c * burst));
        start = dot_whole(start, part);
    }
    return start;
}

ALWAYS_INLINE void product_32(enum dtype type, size_t bytes, int offset, int burst, int tokens,
                              const struct few *f)
{
    const bool minimums = type == DTYPE_Q4_1 || type == DTYPE_Q5_1;
    struct rows r = rows_at(f->rows, f->stride);
    uintptr_t ahead = f->ahead;
    __m256 sum[FEW_TOKENS];
    UNROLL_FOR (t, tokens)
        sum[t] = _mm256_load_ps(f->sums + t * ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m256i code[8];
        __m256 scale, minimum;
        ahead = prefetch(ahead, ROWS * bytes, &r, 0, bytes > 32 ? -1 : (int)(b % 2));
        unpack_32(type, &r, code, &scale, &minimum);
        UNROLL_FOR (t, tokens) {
            const struct few_token *x = &f->x[t];
            int start = ((const int *)x->sums)[b];
            __m256 da = _mm256_set1_ps(x->scales[b]);
            __m256i dot = dot_32(burst, _mm256_set1_epi32(offset / PACK_START * start), code, x, 32 * b);
            sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scale, da), sum[t]);
            if (minimums)
                sum[t] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(x->scales[b] * (float)pack_q32_sum(start)),
                                         sum[t]);
        }
    }
    UNROLL_FOR (t, tokens)
        _mm256_store_ps(f->sums + t * ROWS, sum[t]);
}

/* The sums of 32 codes from those of 16, paired as mins_pair(i, j) pairs the minimums. */
ALWAYS_INLINE __m256i sums_pair(const short *sums, int i, int j)
{
    const short *s = sums + 8 * i + 2 * j;
    return _mm256_set1_epi32((int)((unsigned)(s[0] + s[1]) & 0xffff) | (s[4] + s[5]) * 65536);
}

/* The end of a block of Q4_K or Q5_K. */
ALWAYS_INLINE __m256 finish_q45(__m256 sum, __m256i total, const struct pairs *p, __m256i head,
                                const struct few_token *x, size_t b)
{
    __m256 da = _mm256_set1_ps(x->scales[b]);
    __m256i mins = _mm256_setzero_si256();
    UNROLL_FOR (i, 4) {
        __m256i pair = sums_pair((const short *)x->sums + 16 * b, i / 2, i % 2);
        mins = _mm256_add_epi32(mins, _mm256_madd_epi16(mins_pair(p, i / 2, i % 2), pair));
    }
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(low_halves(head), da), sum);
    return _mm256_fnmadd_ps(_mm256_cvtepi32_ps(mins), _mm256_mul_ps(high_halves(head), da), sum);
}

ALWAYS_INLINE void product_q45(bool five, int tokens, const struct few *f)
{
    const size_t bytes = five ? 176 : 144;
    struct rows r = rows_at(f->rows, f->stride);
    uintptr_t ahead = f->ahead;
    __m256 sum[FEW_TOKENS];
    UNROLL_FOR (t, tokens)
        sum[t] = _mm256_load_ps(f->sums + t * ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m256i head[4], fifths[2][4], total[FEW_TOKENS];
        load_16(&r, 0, head);
        struct pairs p = unpack_pairs(head);
        UNROLL_FOR (part, 2)
            if (five)
                load_16(&r, 16 + 16 * (size_t)part, fifths[part]);
        UNROLL_FOR (t, tokens)
            total[t] = _mm256_setzero_si256();
        UNROLL_FOR (g, 4) {
            __m256i a = factor_of(p.factor[g / 2], g % 2 * 2), c = factor_of(p.factor[g / 2], g % 2 * 2 + 1);
            __m256i low[8], high[8];
            UNROLL_FOR (part, 2)
                unpack_q45(&r, (five ? 48 : 16) + 32 * (size_t)g + 16 * (size_t)part,
                           five ? fifths[part] : NULL, low + 4 * part, high + 4 * part);
            const int burst = five && !HAVE_VNNI ? 4 : 8;
            UNROLL_FOR (t, tokens) {
                size_t at = 256 * b + 64 * (size_t)g;
                UNROLL_FOR (i, 8 / burst) {
                    size_t more = at + 16 * (size_t)i;
                    __m256i dot = dots(_mm256_setzero_si256(), low + 4 * i, burst, &f->x[t], more);
                    total[t] = dot_scaled(total[t], dot, a);
                    dot = dots(_mm256_setzero_si256(), high + 4 * i, burst, &f->x[t], more + 32);
                    total[t] = dot_scaled(total[t], dot, c);
                }
            }
            ahead = prefetch(ahead, ROWS * bytes / 4, &r, bytes / 4 * (size_t)g, five ? -1 : g % 2);
        }
        UNROLL_FOR (t, tokens)
            sum[t] = finish_q45(sum[t], total[t], &p, head[0], &f->x[t], b);
    }
    UNROLL_FOR (t, tokens)
        _mm256_store_ps(f->sums + t * ROWS, sum[t]);
}

/* Adds 16 columns of Q6_K. */
ALWAYS_INLINE __m256i add_q6(__m256i total, const __m256i code[4], __m256i factor, const struct few_token *x,
                             size_t at)
{
    const int burst = HAVE_VNNI ? 4 : 2;
    UNROLL_FOR (i, 4 / burst)
        total = dot_scaled(
            total, dots(_mm256_setzero_si256(), code + i * burst, burst, x, at + 8 * (size_t)i), factor);
    return total;
}

/* The end of a block of Q6_K: takes the offset of 32 off the codes, and adds the block to the sum. */
ALWAYS_INLINE __m256 finish_q6(__m256 sum, __m256i total, const __m256i scales[4], __m256 scale,
                               const struct few_token *x, size_t b)
{
    const short *s = (const short *)x->sums + 16 * b;
    __m256i offset = _mm256_setzero_si256();
    UNROLL_FOR (i, 8) {
        const short *pair = s + 4 * (i / 2) + i % 2;
        __m256i sums = _mm256_set1_epi32((int)((unsigned)pair[0] & 0xffff) | pair[2] * 65536);
        offset = _mm256_add_epi32(offset, _mm256_madd_epi16(signed_pair(scales[i / 2], i % 2), sums));
    }
    total = _mm256_sub_epi32(total, _mm256_slli_epi32(offset, 5));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(scale, _mm256_set1_ps(x->scales[b])),
                           sum);
}

ALWAYS_INLINE void product_q6(size_t bytes, int tokens, const struct few *f)
{
    struct rows r = rows_at(f->rows, f->stride);
    uintptr_t ahead = f->ahead;
    __m256 sum[FEW_TOKENS];
    UNROLL_FOR (t, tokens)
        sum[t] = _mm256_load_ps(f->sums + t * ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m256i scales[4], total[FEW_TOKENS], code[4][4];
        load_16(&r, 192, scales);
        __m256 scale = q6_scale(&r);
        UNROLL_FOR (t, tokens)
            total[t] = _mm256_setzero_si256();
        UNROLL_FOR (i, 4) {
            int half = i / 2, part = i % 2;
            ahead = prefetch(ahead, ROWS * bytes / 4, &r, bytes / 4 * (size_t)i, -1);
            unpack_q6(&r, half, part, code);
            UNROLL_FOR (j, 4) {
                __m256i factor = signed_factor_of(scales[2 * half + j / 2], j % 2 * 2 + part);
                UNROLL_FOR (t, tokens)
                    total[t] = add_q6(total[t], code[j], factor, &f->x[t],
                                      256 * b + 128 * (size_t)half + 32 * (size_t)j + 16 * (size_t)part);
            }
        }
        UNROLL_FOR (t, tokens)
            sum[t] = finish_q6(sum[t], total[t], scales, scale, &f->x[t], b);
    }
    UNROLL_FOR (t, tokens)
        _mm256_store_ps(f->sums + t * ROWS, sum[t]);
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
    FEW(name, 3, product(__VA_ARGS__, 3, f))

#define BURST(without_vnni, with_vnni) (HAVE_VNNI ? (with_vnni) : (without_vnni))

FEW_ALL(q8_0, product_32, DTYPE_Q8_0, 34, BURST(0, 128), BURST(0, 8))
FEW_ALL(q4_0, product_32, DTYPE_Q4_0, 18, 8, 8)
FEW_ALL(q4_1, product_32, DTYPE_Q4_1, 20, 0, 8)
FEW_ALL(q5_0, product_32, DTYPE_Q5_0, 22, 16, BURST(4, 8))
FEW_ALL(q5_1, product_32, DTYPE_Q5_1, 24, 0, BURST(4, 8))
FEW_ALL(q4_k, product_q45, false)
FEW_ALL(q5_k, product_q45, true)
FEW_ALL(q6_k, product_q6, 210)

static few_fn *few_of(enum dtype type, size_t tokens)
{
#define ROW(type, name)                                                                                      \
    {                                                                                                        \
        type,                                                                                                \
        {                                                                                                    \
            name##_1, name##_2, name##_3                                                                     \
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
    for (size_t t = 0; t < m->tokens; t++)
        memcpy(m->out + t * m->out_stride + row, sums + t * ROWS, rows * sizeof *sums);
}

void VARIANT(few_matmul)(const struct matmul *m, size_t row_begin, size_t row_end)
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
