/* Matrix product for F32, F16 and BF16 weights, AVX-512; matmul_plain.c defines the canonical order. ROWS
 * rows by up to GROUP tokens are summed in registers, each a vector of the 16 canonical lanes; the lanes are
 * added at the end. */
#include "kernels/float_avx512.h"

#include <stdint.h>
#include <string.h>

#include "kernels/math_avx512.h"
#include "kernels/pack.h"
#include "kernels/unroll.h"

enum { ROWS = 4, GROUP = 6, BLOCK = 64, STRETCH = 512 };

/* Sums of a block of rows by a group of tokens, as canonical lanes. */
struct lanes {
    __m512 of[BLOCK / ROWS][GROUP][ROWS];
};

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

/* A stretch of columns: where its first row and token start, and the way to the next. */
struct stretch {
    const unsigned char *w;
    const float *x;
    size_t row_bytes, x_stride;
    size_t columns;
    uintptr_t
        ahead; /* an address (0: none) from which as much memory as the weights take is fetched meanwhile */
};

/* Adds the products of up to ROWS rows by up to GROUP tokens. */
ALWAYS_INLINE void product(enum dtype type, size_t each, int rows, int tokens, const struct stretch *s,
                           __m512 lanes[GROUP][ROWS])
{
    __m512 sum[GROUP][ROWS];
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (r, rows)
            sum[t][r] = lanes[t][r];
    for (size_t k = 0; k < s->columns; k += 16) {
        __m512 v[ROWS];
        UNROLL_FOR (r, rows) {
            const unsigned char *at = s->w + (size_t)r * s->row_bytes + k * each;
            v[r] = k + 16 <= s->columns ? load_16(type, at) : load_some(type, at, s->columns - k);
        }
        UNROLL_FOR (t, tokens) {
            __m512 y = _mm512_load_ps(s->x + (size_t)t * s->x_stride + k);
            UNROLL_FOR (r, rows)
                sum[t][r] = _mm512_fmadd_ps(v[r], y, sum[t][r]);
        }
        if (s->ahead)
            UNROLL_FOR (line, (rows * (int)each + 3) / 4) /* 16 columns of each row */
                _mm_prefetch((const char *)(s->ahead + k * each * (size_t)rows + 64 * (size_t)line),
                             _MM_HINT_T0);
    }
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (r, rows)
            lanes[t][r] = sum[t][r];
}

ALWAYS_INLINE void group(enum dtype type, size_t each, int rows, size_t tokens, const struct stretch *s,
                         __m512 lanes[GROUP][ROWS])
{
    switch (tokens) {
    case 1:
        product(type, each, rows, 1, s, lanes);
        break;
    case 2:
        product(type, each, rows, 2, s, lanes);
        break;
    case 3:
        product(type, each, rows, 3, s, lanes);
        break;
    case 4:
        product(type, each, rows, 4, s, lanes);
        break;
    case 5:
        product(type, each, rows, 5, s, lanes);
        break;
    default:
        product(type, each, rows, 6, s, lanes);
    }
}

/* Up to ROWS rows; fewer are taken one by one. */
ALWAYS_INLINE void some_rows(enum dtype type, size_t each, size_t rows, size_t tokens, struct stretch s,
                             __m512 lanes[GROUP][ROWS])
{
    __m512 one[GROUP][ROWS];
    if (rows >= ROWS) {
        group(type, each, ROWS, tokens, &s, lanes);
        return;
    }
    s.ahead = 0;
    for (size_t r = 0; r < rows; r++, s.w += s.row_bytes) {
        for (size_t t = 0; t < tokens; t++)
            one[t][0] = lanes[t][r];
        group(type, each, 1, tokens, &s, one);
        for (size_t t = 0; t < tokens; t++)
            lanes[t][r] = one[t][0];
    }
}

static void store_sums(const struct matmul *m, size_t row, size_t rows, size_t first, size_t tokens,
                       const struct lanes *lanes)
{
    for (size_t t = 0; t < tokens; t++)
        for (size_t r = 0; r < rows; r += ROWS) {
            const __m512 *of = lanes->of[r / ROWS][t];
            __mmask8 mask = rows - r >= ROWS ? 15 : (__mmask8)((1u << (rows - r)) - 1);
            float *out = m->out + (first + t) * m->out_stride + row + r;
            _mm_mask_storeu_ps(out, mask, sum_four(of[0], of[1], of[2], of[3]));
        }
}

/* A block of rows by the only group of tokens: memory is the limit. */
ALWAYS_INLINE void few_tokens(enum dtype type, size_t each, const struct matmul *m, size_t row, size_t rows,
                              struct lanes *lanes)
{
    struct stretch s = {.row_bytes = m->columns * each, .columns = m->columns, .x = m->packed};
    s.w = (const unsigned char *)m->weights + row * s.row_bytes;
    s.x_stride = pack_round(m->columns * 4) / 4;
    for (size_t r = 0; r < rows; r += ROWS, s.w += ROWS * s.row_bytes) {
        s.ahead = (uintptr_t)s.w + ROWS * s.row_bytes;
        some_rows(type, each, rows - r, m->tokens, s, lanes->of[r / ROWS]);
    }
}

/* A block of rows by one of several groups of tokens, in stretches that stay in the first cache; tokens are
 * copied there, since rows a power of two apart would crowd each other out. */
ALWAYS_INLINE void many_tokens(enum dtype type, size_t each, const struct matmul *m, size_t row, size_t rows,
                               size_t first, size_t tokens, struct lanes *lanes)
{
    _Alignas(64) float copy[GROUP][STRETCH];
    struct stretch s = {.row_bytes = m->columns * each, .x = copy[0], .x_stride = STRETCH};
    size_t stride = pack_round(m->columns * 4) / 4;
    const float *x = (const float *)m->packed + first * stride;
    for (size_t k = 0; k < m->columns; k += STRETCH) {
        s.columns = m->columns - k < STRETCH ? m->columns - k : STRETCH;
        for (size_t t = 0; t < tokens; t++)
            memcpy(copy[t], x + t * stride + k, pack_round(s.columns * 4));
        s.w = (const unsigned char *)m->weights + row * s.row_bytes + k * each;
        for (size_t r = 0; r < rows; r += ROWS, s.w += ROWS * s.row_bytes)
            some_rows(type, each, rows - r, tokens, s, lanes->of[r / ROWS]);
    }
}

ALWAYS_INLINE void all(enum dtype type, size_t each, const struct matmul *m, size_t row_begin, size_t row_end)
{
    struct lanes lanes;
    for (size_t row = row_begin; row < row_end; row += BLOCK) {
        size_t rows = row_end - row < BLOCK ? row_end - row : BLOCK;
        for (size_t first = 0; first < m->tokens; first += GROUP) {
            size_t tokens = m->tokens - first < GROUP ? m->tokens - first : GROUP;
            memset(&lanes, 0, sizeof lanes);
            if (m->tokens <= GROUP)
                few_tokens(type, each, m, row, rows, &lanes);
            else
                many_tokens(type, each, m, row, rows, first, tokens, &lanes);
            store_sums(m, row, rows, first, tokens, &lanes);
        }
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
