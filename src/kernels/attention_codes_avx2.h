/* Chunks of level 8 by integer products, AVX2: a pair of neighbouring codes, two of K's dimensions or two of
 * V's tokens, widened to 16 bits, meets a pair of integers in each lane (vpmaddubsw would saturate).
 * attention.h has the definition. A part of attention_avx2.c alone. */
#ifndef LLMS_KERNELS_ATTENTION_CODES_AVX2_H
#define LLMS_KERNELS_ATTENTION_CODES_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "kernels/attention_shared.h"
#include "kernels/codec.h"
#include "kernels/unroll.h"

enum { CODES_ROWS = 4 };

/* The pair of integers at `at`, in every lane. */
ALWAYS_INLINE __m256i codes_pair(const int16_t *at)
{
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return _mm256_set1_epi32(pair);
}

ALWAYS_INLINE __m256i codes_dot(__m256i sum, __m256i x, __m256i y)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
}

/* 8 products as integers. */
ALWAYS_INLINE __m128i codes_narrow(__m256 x)
{
    __m256i wide = _mm256_cvtps_epi32(x);
    return _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}

/* The largest of each row's lanes, by row. */
ALWAYS_INLINE __m128i codes_largest(const __m256i *x)
{
    __m256i a = _mm256_max_epi32(_mm256_unpacklo_epi32(x[0], x[1]), _mm256_unpackhi_epi32(x[0], x[1]));
    __m256i b = _mm256_max_epi32(_mm256_unpacklo_epi32(x[2], x[3]), _mm256_unpackhi_epi32(x[2], x[3]));
    a = _mm256_max_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    return _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}

/* attention_integers, lane by lane. */
ALWAYS_INLINE __m128 codes_factors(__m128i largest, float limit, __m128 *steps)
{
    const __m128 top = _mm_castsi128_ps(largest), limits = _mm_set1_ps(limit);
    __m128 finite = _mm_castsi128_ps(_mm_cmpgt_epi32(_mm_set1_epi32(0x7f800000), largest));
    __m128 some = _mm_and_ps(finite, _mm_cmpge_ps(top, _mm_set1_ps(0x1p-100f)));
    *steps = _mm_or_ps(_mm_and_ps(some, _mm_div_ps(top, limits)), _mm_andnot_ps(finite, _mm_set1_ps(NAN)));
    return _mm_and_ps(some, _mm_div_ps(limits, top));
}

/* A query as integers; returns what one stands for. */
ALWAYS_INLINE float codes_of_query(const float *q, size_t dim, int16_t *n)
{
    __m256i largest = _mm256_setzero_si256();
    for (size_t d = 0; d < dim; d += 8) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(q + d));
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    const __m256i all[CODES_ROWS] = {largest, largest, largest, largest};
    float step,
        top = attention_integers((uint32_t)_mm_cvtsi128_si32(codes_largest(all)), ATTENTION_QUERY, &step);
    const __m256 factor = _mm256_set1_ps(top);
    for (size_t d = 0; d < dim; d += 8)
        _mm_storeu_si128((__m128i *)(n + d), codes_narrow(_mm256_mul_ps(_mm256_loadu_ps(q + d), factor)));
    return step;
}

/* Scores of `rows` queries over a chunk, the first of `left`, into scores[row * stride]. n:
 * [rows][ATTENTION_DIM]; units: what a sum stands for, by row, without K's scale. */
ALWAYS_INLINE void codes_score(const struct attention_chunk *c, size_t left, size_t dim, const int16_t *n,
                               const float *units, size_t rows, float *scores, size_t stride)
{
    __m256i sum[CODES_ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    const __m128i *codes = c->data;
    const char *ahead = attention_ahead(c, left)->data;
    attention_fetch_scales(attention_ahead(c, left), dim);
    for (size_t d = 0; d < dim; d += 2, codes += 2) {
        _mm_prefetch(ahead + d * CHUNK_TOKENS, _MM_HINT_T0);
        __m128i first = _mm_loadu_si128(codes), second = _mm_loadu_si128(codes + 1);
        __m256i k0 = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second));
        __m256i k1 = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(first, second));
        for (size_t r = 0; r < rows; r++) {
            __m256i x = codes_pair(n + r * ATTENTION_DIM + d);
            sum[r][0] = codes_dot(sum[r][0], x, k0);
            sum[r][1] = codes_dot(sum[r][1], x, k1);
        }
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++)
            SUMMED(sum[r][i]);
    for (size_t i = 0; i < 2; i++) {
        const __m128i *halves = (const __m128i *)codec_scales(c->data, 8, dim) + i;
        __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128(halves));
        for (size_t r = 0; r < rows; r++) {
            __m256 s = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][i]), scales);
            _mm256_storeu_ps(scores + r * stride + 8 * i, _mm256_mul_ps(s, _mm256_set1_ps(units[r])));
        }
    }
}

/* V's scales of a chunk; 0 where no row sees the token. */
ALWAYS_INLINE void codes_scales(const struct attention_group *g, size_t chunk, __m256 *scales)
{
    const __m128i *halves = (const __m128i *)(codec_scales(g->chunks[chunk].data, 8, g->dim) + CHUNK_TOKENS);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    size_t left = g->tokens - chunk * CHUNK_TOKENS;
    int seen = left < CHUNK_TOKENS ? (int)left : CHUNK_TOKENS;
    for (int i = 0; i < 2; i++) {
        __m256i exist = _mm256_cmpgt_epi32(_mm256_set1_epi32(seen - 8 * i), lane);
        scales[i] = _mm256_and_ps(_mm256_cvtph_ps(_mm_loadu_si128(halves + i)), _mm256_castsi256_ps(exist));
    }
}

/* The group's probabilities p become weights as integers, 16 of them where a chunk's 16 probabilities were;
 * steps: what one stands for, by row. */
ALWAYS_INLINE void codes_of_weights(const struct attention_group *g, float *p, size_t stride, size_t rows,
                                    float *steps)
{
    __m256i largest[CODES_ROWS];
    __m256 scales[2];
    __m128 step;
    float factors[CODES_ROWS];
    for (size_t r = 0; r < CODES_ROWS; r++)
        largest[r] = _mm256_setzero_si256();
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        codes_scales(g, c, scales);
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < 2; i++) {
                const float *at = p + r * stride + c * CHUNK_TOKENS + 8 * i;
                __m256 w = _mm256_mul_ps(_mm256_loadu_ps(at), scales[i]); /* none is below 0 */
                largest[r] = _mm256_max_epi32(largest[r], _mm256_castps_si256(w));
            }
    }
    _mm_storeu_ps(factors, codes_factors(codes_largest(largest), ATTENTION_WEIGHT, &step));
    _mm_storeu_ps(steps, step);
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        codes_scales(g, c, scales);
        for (size_t r = 0; r < rows; r++) {
            float *at = p + r * stride + c * CHUNK_TOKENS;
            __m256 factor = _mm256_set1_ps(factors[r]);
            __m256 low = _mm256_mul_ps(_mm256_loadu_ps(at), scales[0]);
            __m256 high = _mm256_mul_ps(_mm256_loadu_ps(at + 8), scales[1]);
            _mm_storeu_si128((__m128i *)at, codes_narrow(_mm256_mul_ps(low, factor)));
            _mm_storeu_si128((__m128i *)at + 1, codes_narrow(_mm256_mul_ps(high, factor)));
        }
    }
}

/* Adds a group's sums to a[row * ATTENTION_DIM] for 8 dimensions from d0 on, or 16. */
ALWAYS_INLINE void codes_weigh(const struct attention_group *g, const float *p, size_t stride, size_t rows,
                               size_t d0, size_t vectors, const float *steps, float *a)
{
    __m256i sum[CODES_ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        const int8_t *v = (const int8_t *)g->chunks[c].data + CHUNK_TOKENS * g->dim + d0;
        const int16_t *n = (const int16_t *)(p + c * CHUNK_TOKENS), *end = n + CHUNK_TOKENS;
        const char *ahead = attention_ahead(g->chunks + c, g->left - c)->data;
        ahead += CHUNK_TOKENS * g->dim + d0;
        for (; n < end; n += 2, v += 2 * g->dim, ahead += 2 * g->dim) {
            _mm_prefetch(ahead, _MM_HINT_T0);
            _mm_prefetch(ahead + g->dim, _MM_HINT_T0);
            __m128i v0 = _mm_loadl_epi64((const __m128i *)v),
                    v1 = _mm_loadl_epi64((const __m128i *)(v + g->dim));
            if (vectors > 1) {
                v0 = _mm_loadu_si128((const __m128i *)v);
                v1 = _mm_loadu_si128((const __m128i *)(v + g->dim));
            }
            __m256i low = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(v0, v1)), high = low;
            if (vectors > 1)
                high = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(v0, v1));
            for (size_t r = 0; r < rows; r++) {
                __m256i w = codes_pair(n + r * 2 * stride);
                sum[r][0] = codes_dot(sum[r][0], w, low);
                if (vectors > 1)
                    sum[r][1] = codes_dot(sum[r][1], w, high);
            }
        }
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < vectors; i++) {
            SUMMED(sum[r][i]);
            float *at = a + r * ATTENTION_DIM + d0 + 8 * i;
            __m256 s = _mm256_cvtepi32_ps(sum[r][i]);
            _mm256_storeu_ps(at, _mm256_fmadd_ps(s, _mm256_set1_ps(steps[r]), _mm256_loadu_ps(at)));
        }
}

#endif
