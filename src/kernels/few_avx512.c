/* Quantised matrix products of few tokens, AVX-512 (few_avx512.h); matmul_plain.c defines the canonical
 * order.
 *
 * Blocks go from memory to registers to the sums, with no tile between. Meanwhile the next rows are
 * prefetched in the order they lie in memory: the 16 streams that are read side by side would not keep the
 * memory busy by themselves. */
#include "kernels/few_avx512.h"

#include <string.h>

#include "kernels/unpack_avx512.h"
#include "kernels/unroll.h"

ALWAYS_INLINE void prefetch(const char *at, size_t bytes)
{
    UNROLL for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(at + i, _MM_HINT_T0);
}

ALWAYS_INLINE __m512i four_codes(const struct few_token *x, size_t at)
{
    int four;
    memcpy(&four, x->codes + at, 4);
    return _mm512_set1_epi32(four);
}

ALWAYS_INLINE __m512i dots(__m512i sum, const __m512i *code, int vectors, const struct few_token *x,
                           size_t at)
{
    UNROLL for (int c = 0; c < vectors; c++) sum =
        _mm512_dpbusd_epi32(sum, code[c], four_codes(x, at + 4 * (size_t)c));
    return sum;
}

ALWAYS_INLINE void product_32(enum dtype type, size_t bytes, int offset, int tokens, const struct few *f)
{
    struct rows r = rows_at(f->rows, f->stride);
    const char *ahead = f->ahead;
    __m512 sum[FEW_TOKENS];
    UNROLL for (int t = 0; t < tokens; t++) sum[t] = _mm512_loadu_ps(f->sums + t * FEW_ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m512i code[8];
        __m512 scale, minimum;
        unpack_32(type, &r, 0, code, &scale, &minimum);
        UNROLL for (int t = 0; t < tokens; t++)
        {
            const struct few_token *x = &f->x[t];
            int codes = ((const int *)x->sums)[b];
            __m512 da = _mm512_set1_ps(x->scales[b]);
            __m512i dot = _mm512_set1_epi32(-offset * codes);
            dot = dots(dot, code, 8, x, 32 * b);
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale, da), sum[t]);
            if (!offset)
                sum[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x->scales[b] * (float)codes), sum[t]);
        }
        if (ahead) {
            prefetch(ahead, FEW_ROWS * bytes);
            ahead += FEW_ROWS * bytes;
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) _mm512_storeu_ps(f->sums + t * FEW_ROWS, sum[t]);
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
    const char *ahead = f->ahead;
    __m512 sum[FEW_TOKENS];
    UNROLL for (int t = 0; t < tokens; t++) sum[t] = _mm512_loadu_ps(f->sums + t * FEW_ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m512i head[4], fifths[8], total[FEW_TOKENS], low[8], high[8];
        load_16(&r, 0, head);
        struct pairs p = unpack_pairs(head);
        if (five)
            load_32(&r, 16, fifths);
        UNROLL for (int t = 0; t < tokens; t++) total[t] = _mm512_setzero_si512();
        UNROLL for (int g = 0; g < 4; g++)
        {
            unpack_q45(&r, (five ? 48 : 16) + 32 * (size_t)g, five ? fifths : NULL, low, high);
            __m512i a = byte_of(p.factor[g / 2], g % 2 * 2), c = byte_of(p.factor[g / 2], g % 2 * 2 + 1);
            UNROLL for (int t = 0; t < tokens; t++)
            {
                size_t at = 256 * b + 64 * (size_t)g;
                __m512i dot = dots(_mm512_setzero_si512(), low, 8, &f->x[t], at);
                total[t] = _mm512_add_epi32(total[t], _mm512_mullo_epi32(dot, a));
                dot = dots(_mm512_setzero_si512(), high, 8, &f->x[t], at + 32);
                total[t] = _mm512_add_epi32(total[t], _mm512_mullo_epi32(dot, c));
            }
            if (five)
                UNROLL for (int c8 = 0; c8 < 8; c8++) fifths[c8] = _mm512_srli_epi32(fifths[c8], 2);
            if (ahead) {
                prefetch(ahead, FEW_ROWS * bytes / 4);
                ahead += FEW_ROWS * bytes / 4;
            }
        }
        UNROLL for (int t = 0; t < tokens; t++)
        {
            __m512 da = _mm512_set1_ps(f->x[t].scales[b]);
            __m512i mins = _mm512_setzero_si512();
            UNROLL for (int i = 0; i < 4; i++) mins =
                _mm512_dpwssd_epi32(mins, mins_pair(&p, i / 2, i % 2),
                                    sums_pair((const short *)f->x[t].sums + 16 * b, i / 2, i % 2));
            sum[t] =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[t]), _mm512_mul_ps(low_halves(head[0]), da), sum[t]);
            sum[t] =
                _mm512_fnmadd_ps(_mm512_cvtepi32_ps(mins), _mm512_mul_ps(high_halves(head[0]), da), sum[t]);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) _mm512_storeu_ps(f->sums + t * FEW_ROWS, sum[t]);
}

/* Adds 32 columns of Q6_K at column `at`, whose two scales are bytes j and j + 1. */
ALWAYS_INLINE __m512i add_q6(__m512i total, const __m512i code[8], __m512i scales, int j,
                             const struct few_token *x, size_t at)
{
    const short *sums = (const short *)x->sums + at / 16;
    __m512i dot = dots(_mm512_set1_epi32(-32 * sums[0]), code, 4, x, at);
    total = _mm512_add_epi32(total, _mm512_mullo_epi32(dot, signed_byte_of(scales, j)));
    dot = dots(_mm512_set1_epi32(-32 * sums[1]), code + 4, 4, x, at + 16);
    return _mm512_add_epi32(total, _mm512_mullo_epi32(dot, signed_byte_of(scales, j + 1)));
}

ALWAYS_INLINE void product_q6(int tokens, const struct few *f)
{
    const size_t bytes = 210;
    struct rows r = rows_at(f->rows, f->stride);
    const char *ahead = f->ahead;
    __m512 sum[FEW_TOKENS];
    UNROLL for (int t = 0; t < tokens; t++) sum[t] = _mm512_loadu_ps(f->sums + t * FEW_ROWS);
    for (size_t b = 0; b < f->blocks; b++, rows_advance(&r, bytes)) {
        __m512i scales[4], upper[8], total[FEW_TOKENS], first[8], second[8];
        load_16(&r, 192, scales);
        __m512 scale = q6_scale(&r, 0);
        UNROLL for (int t = 0; t < tokens; t++) total[t] = _mm512_setzero_si512();
        UNROLL for (int i = 0; i < 4; i++)
        {
            int half = i / 2, pair = i % 2;
            if (pair == 0)
                load_32(&r, 128 + 32 * (size_t)half, upper);
            unpack_q6(&r, 0, half, pair, upper, first, second);
            UNROLL for (int t = 0; t < tokens; t++)
            {
                size_t at = 256 * b + 128 * (size_t)half + 32 * (size_t)pair;
                total[t] = add_q6(total[t], first, scales[2 * half], 2 * pair, &f->x[t], at);
                total[t] = add_q6(total[t], second, scales[2 * half + 1], 2 * pair, &f->x[t], at + 64);
            }
            if (ahead) {
                prefetch(ahead, FEW_ROWS * bytes / 4);
                ahead += FEW_ROWS * bytes / 4;
            }
        }
        UNROLL for (int t = 0; t < tokens; t++)
        {
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(f->x[t].scales[b]));
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[t]), both, sum[t]);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) _mm512_storeu_ps(f->sums + t * FEW_ROWS, sum[t]);
}

#define FEW(name, tokens, call)                                                                              \
    static void name##_##tokens(const struct few *f)                                                         \
    {                                                                                                        \
        call;                                                                                                \
    }
#define FEW_32(name, type, bytes, offset)                                                                    \
    FEW(name, 1, product_32(type, bytes, offset, 1, f))                                                      \
    FEW(name, 2, product_32(type, bytes, offset, 2, f))                                                      \
    FEW(name, 3, product_32(type, bytes, offset, 3, f))

FEW_32(q8_0, DTYPE_Q8_0, 34, 128)
FEW_32(q4_0, DTYPE_Q4_0, 18, 8)
FEW_32(q4_1, DTYPE_Q4_1, 20, 0)
FEW_32(q5_0, DTYPE_Q5_0, 22, 16)
FEW_32(q5_1, DTYPE_Q5_1, 24, 0)
FEW(q4_k, 1, product_q45(false, 1, f))
FEW(q4_k, 2, product_q45(false, 2, f))
FEW(q4_k, 3, product_q45(false, 3, f))
FEW(q5_k, 1, product_q45(true, 1, f))
FEW(q5_k, 2, product_q45(true, 2, f))
FEW(q5_k, 3, product_q45(true, 3, f))
FEW(q6_k, 1, product_q6(1, f))
FEW(q6_k, 2, product_q6(2, f))
FEW(q6_k, 3, product_q6(3, f))

few_fn *few_avx512(enum dtype type, size_t tokens)
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
