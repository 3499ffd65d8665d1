/* Matrix product for F32, F16 and BF16 weights, AVX2; matmul_plain.c defines the canonical order. Up to ROWS
 * rows by up to GROUP tokens are summed in registers, each two vectors: the 16 canonical lanes. */
#include "kernels/float_avx2.h"

#include <string.h>

#include "kernels/math_avx2.h"
#include "kernels/pack.h"
#include "kernels/unroll.h"

enum { ROWS = 2, GROUP = 3 };

ALWAYS_INLINE __m256 load_8(enum dtype type, const unsigned char *at)
{
    if (type == DTYPE_F32)
        return _mm256_loadu_ps((const float *)(const void *)at);
    __m128i v = _mm_loadu_si128((const __m128i *)at);
    if (type == DTYPE_F16)
        return _mm256_cvtph_ps(v);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* 16 columns; w: ROWS pointers to them. */
ALWAYS_INLINE void step(enum dtype type, size_t each, int rows, int tokens, const unsigned char *const *w,
                        const float *x, size_t x_stride, __m256 sum[GROUP][ROWS][2])
{
    UNROLL_FOR (half, 2) {
        __m256 v[ROWS];
        UNROLL_FOR (r, rows)
            v[r] = load_8(type, w[r] + 8 * (size_t)half * each);
        UNROLL_FOR (t, tokens) {
            __m256 y = _mm256_load_ps(x + (size_t)t * x_stride + 8 * half);
            UNROLL_FOR (r, rows)
                sum[t][r][half] = _mm256_fmadd_ps(v[r], y, sum[t][r][half]);
        }
    }
}

ALWAYS_INLINE void product(enum dtype type, size_t each, int rows, int tokens, const unsigned char *w,
                           size_t columns, const float *x, float *out, size_t out_stride)
{
    size_t x_stride = pack_round(columns * 4) / 4, whole = columns & ~(size_t)15;
    const unsigned char *at[ROWS];
    __m256 sum[GROUP][ROWS][2];
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (r, rows)
            sum[t][r][0] = sum[t][r][1] = _mm256_setzero_ps();
    UNROLL_FOR (r, rows)
        at[r] = w + (size_t)r * columns * each;
    for (size_t k = 0; k < whole; k += 16) {
        step(type, each, rows, tokens, at, x + k, x_stride, sum);
        UNROLL_FOR (r, rows)
            at[r] += 16 * each;
    }
    if (whole < columns) { /* the last columns, then zeros */
        unsigned char tail[ROWS][64] = {{0}};
        UNROLL_FOR (r, rows) {
            memcpy(tail[r], at[r], (columns - whole) * each);
            at[r] = tail[r];
        }
        step(type, each, rows, tokens, at, x + whole, x_stride, sum);
    }
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (r, rows)
            out[(size_t)t * out_stride + (size_t)r] = avx2_sum16(sum[t][r][0], sum[t][r][1]);
}

ALWAYS_INLINE void group(enum dtype type, size_t each, int rows, const struct matmul *m, size_t row,
                         size_t first, size_t tokens)
{
    const unsigned char *w = (const unsigned char *)m->weights + row * m->columns * each;
    const float *x = (const float *)m->packed + first * (pack_round(m->columns * 4) / 4);
    float *out = m->out + first * m->out_stride + row;
    switch (tokens) {
    case 1:
        product(type, each, rows, 1, w, m->columns, x, out, m->out_stride);
        break;
    case 2:
        product(type, each, rows, 2, w, m->columns, x, out, m->out_stride);
        break;
    default:
        product(type, each, rows, 3, w, m->columns, x, out, m->out_stride);
    }
}

ALWAYS_INLINE void all(enum dtype type, size_t each, const struct matmul *m, size_t row_begin, size_t row_end)
{
    for (size_t row = row_begin; row < row_end;) {
        bool two = row + ROWS <= row_end;
        for (size_t first = 0; first < m->tokens; first += GROUP) {
            size_t tokens = m->tokens - first < GROUP ? m->tokens - first : GROUP;
            if (two)
                group(type, each, ROWS, m, row, first, tokens);
            else
                group(type, each, 1, m, row, first, tokens);
        }
        row += two ? ROWS : 1;
    }
}

void float_matmul_avx2(const struct matmul *m, size_t row_begin, size_t row_end)
{
    if (m->type == DTYPE_F32)
        all(DTYPE_F32, 4, m, row_begin, row_end);
    else if (m->type == DTYPE_F16)
        all(DTYPE_F16, 2, m, row_begin, row_end);
    else
        all(DTYPE_BF16, 2, m, row_begin, row_end);
}
