/* Matrix product for F32, F16 and BF16 weights, AVX-512; matmul_plain.c defines the canonical order. ROWS
 * rows by up to GROUP tokens are summed in registers, each a vector of the 16 canonical lanes. */
#include "kernels/float_avx512.h"

#include "kernels/math_avx512.h"
#include "kernels/pack.h"
#include "kernels/unroll.h"

enum { ROWS = 4, GROUP = 6 };

ALWAYS_INLINE __m512 load_16(enum dtype type, const unsigned char *at)
{
    if (type == DTYPE_F32)
        return _mm512_loadu_ps(at);
    __m256i v = _mm256_loadu_si256((const __m256i *)at);
    if (type == DTYPE_F16)
        return _mm512_cvtph_ps(v);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* The first `count` values, then zeros. */
ALWAYS_INLINE __m512 load_some(enum dtype type, const unsigned char *at, size_t count)
{
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    if (type == DTYPE_F32)
        return _mm512_maskz_loadu_ps(mask, at);
    __m256i v = _mm256_maskz_loadu_epi16(mask, at);
    if (type == DTYPE_F16)
        return _mm512_cvtph_ps(v);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* avx512_sum16 of four vectors. */
ALWAYS_INLINE __m128 sum_four(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(first, v));
}

ALWAYS_INLINE void product(enum dtype type, size_t each, int rows, int tokens, const unsigned char *w,
                           size_t columns, const float *x, float *out, size_t out_stride)
{
    size_t row_bytes = columns * each, x_stride = pack_round(columns * 4) / 4, whole = columns & ~(size_t)15;
    __m512 sum[GROUP][ROWS];
    UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int r = 0; r < rows; r++) sum[t][r] =
        _mm512_setzero_ps();
    for (size_t k = 0; k < columns; k += 16) {
        __m512 v[ROWS];
        UNROLL for (int r = 0; r < rows; r++)
        {
            const unsigned char *at = w + (size_t)r * row_bytes + k * each;
            v[r] = k < whole ? load_16(type, at) : load_some(type, at, columns - k);
        }
        UNROLL for (int t = 0; t < tokens; t++)
        {
            __m512 y = _mm512_load_ps(x + (size_t)t * x_stride + k);
            UNROLL for (int r = 0; r < rows; r++) sum[t][r] = _mm512_fmadd_ps(v[r], y, sum[t][r]);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++)
    {
        if (rows == ROWS)
            _mm_storeu_ps(out + (size_t)t * out_stride, sum_four(sum[t][0], sum[t][1], sum[t][2], sum[t][3]));
        else
            out[(size_t)t * out_stride] = avx512_sum16(sum[t][0]);
    }
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
    case 3:
        product(type, each, rows, 3, w, m->columns, x, out, m->out_stride);
        break;
    case 4:
        product(type, each, rows, 4, w, m->columns, x, out, m->out_stride);
        break;
    case 5:
        product(type, each, rows, 5, w, m->columns, x, out, m->out_stride);
        break;
    default:
        product(type, each, rows, 6, w, m->columns, x, out, m->out_stride);
    }
}

ALWAYS_INLINE void all(enum dtype type, size_t each, const struct matmul *m, size_t row_begin, size_t row_end)
{
    for (size_t row = row_begin; row < row_end;) {
        bool four = row + ROWS <= row_end;
        for (size_t first = 0; first < m->tokens; first += GROUP) {
            size_t tokens = m->tokens - first < GROUP ? m->tokens - first : GROUP;
            if (four)
                group(type, each, ROWS, m, row, first, tokens);
            else
                group(type, each, 1, m, row, first, tokens);
        }
        row += four ? ROWS : 1;
    }
}

void float_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end)
{
    if (m->type == DTYPE_F32)
        all(DTYPE_F32, 4, m, row_begin, row_end);
    else if (m->type == DTYPE_F16)
        all(DTYPE_F16, 2, m, row_begin, row_end);
    else
        all(DTYPE_BF16, 2, m, row_begin, row_end);
}
