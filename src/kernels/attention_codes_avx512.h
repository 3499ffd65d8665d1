/* Chunks of level 8 by integer products, AVX-512 with VNNI: a pair of neighbouring codes, two of K's
 * dimensions or two of V's tokens, widened to 16 bits, meets a pair of 16-bit integers in each lane.
 * attention.h has the definition. A part of attention_avx512.c alone. */
#ifndef LLMS_KERNELS_ATTENTION_CODES_AVX512_H
#define LLMS_KERNELS_ATTENTION_CODES_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "kernels/attention_shared.h"
#include "kernels/codec.h"
#include "kernels/unroll.h"

/* The pair of integers at `at`, in every lane. */
ALWAYS_INLINE __m512i codes_pair(const int16_t *at)
{
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return _mm512_set1_epi32(pair);
}

/* A query as integers; returns what one stands for. */
ALWAYS_INLINE float codes_of_query(const float *q, size_t dim, int16_t *n)
{
    __m512i largest = _mm512_setzero_si512();
    for (size_t d = 0; d < dim; d += 16) {
        __m512i bits = _mm512_maskz_loadu_epi32(dim - d < 16 ? 0xff : 0xffff, q + d);
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    float step, factor = attention_integers((uint32_t)_mm512_reduce_max_epi32(largest), &step);
    for (size_t d = 0; d < dim; d += 16) {
        __m512 x = _mm512_maskz_loadu_ps(dim - d < 16 ? 0xff : 0xffff, q + d);
        __m512i wide = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
        _mm256_storeu_si256((__m256i *)(n + d), _mm512_cvtsepi32_epi16(wide)); /* past dim: zeros */
    }
    return step;
}

/* Scores of `rows` queries over `count` neighbouring chunks, the first of `left`, into scores[row * stride].
 * n: [rows][ATTENTION_DIM]; units: what a sum stands for, by row, without K's scale. */
ALWAYS_INLINE void codes_score(const struct attention_chunk *c, size_t count, size_t left, size_t dim,
                               const int16_t *n, const float *units, size_t rows, float *scores,
                               size_t stride)
{
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i sum[ATTENTION_QUERIES][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    const int8_t *first = c[0].data, *second = c[count - 1].data;
    const struct attention_chunk *then = attention_ahead(c, left),
                                 *later = attention_ahead(c + count - 1, left - count + 1);
    attention_fetch_scales(then, dim);
    attention_fetch_scales(later, dim);
    for (size_t d = 0; d < dim; d += 2, first += 2 * CHUNK_TOKENS, second += 2 * CHUNK_TOKENS) {
        _mm_prefetch((const char *)then->data + d * CHUNK_TOKENS, _MM_HINT_T0);
        _mm_prefetch((const char *)later->data + d * CHUNK_TOKENS, _MM_HINT_T0);
        __m512i k0 = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)first)), k1 = k0;
        k0 = _mm512_permutexvar_epi16(pairs, k0);
        if (count > 1) {
            k1 = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)second));
            k1 = _mm512_permutexvar_epi16(pairs, k1);
        }
        for (size_t r = 0; r < rows; r++) {
            __m512i x = codes_pair(n + r * ATTENTION_DIM + d);
            sum[r][0] = _mm512_dpwssd_epi32(sum[r][0], x, k0);
            if (count > 1)
                sum[r][1] = _mm512_dpwssd_epi32(sum[r][1], x, k1);
        }
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < count; i++)
            SUMMED(sum[r][i]);
    for (size_t i = 0; i < count; i++) {
        const __m256i *halves = (const __m256i *)codec_scales(c[i].data, 8, dim);
        __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
        for (size_t r = 0; r < rows; r++) {
            __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][i]), scales);
            _mm512_storeu_ps(scores + r * stride + i * CHUNK_TOKENS,
                             _mm512_mul_ps(s, _mm512_set1_ps(units[r])));
        }
    }
}

/* One group's chunks. Only those of level 8 matter; tokens: how many positions any row sees of them. */
struct codes_group {
    const struct attention_chunk *chunks;
    size_t count, tokens, dim;
    size_t left; /* chunks from here to the last one wanted */
};

/* V's scales of a chunk; 0 where no row sees the token. */
ALWAYS_INLINE __m512 codes_scales(const struct codes_group *g, size_t chunk)
{
    size_t seen = g->tokens - chunk * CHUNK_TOKENS;
    const uint16_t *scales = codec_scales(g->chunks[chunk].data, 8, g->dim) + CHUNK_TOKENS;
    return _mm512_maskz_mov_ps(seen < CHUNK_TOKENS ? (__mmask16)((1u << seen) - 1) : 0xffff,
                               _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales)));
}

/* The group's probabilities p become weights as integers, 16 of them where a chunk's 16 probabilities were;
 * steps: what one stands for, by row. */
ALWAYS_INLINE void codes_of_weights(const struct codes_group *g, float *p, size_t stride, size_t rows,
                                    float *steps)
{
    __m512i largest[ATTENTION_QUERIES];
    __m512 factor[ATTENTION_QUERIES];
    for (size_t r = 0; r < rows; r++)
        largest[r] = _mm512_setzero_si512();
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        __m512 scales = codes_scales(g, c);
        for (size_t r = 0; r < rows; r++) {
            __m512 w = _mm512_mul_ps(_mm512_loadu_ps(p + r * stride + c * CHUNK_TOKENS), scales);
            largest[r] = _mm512_max_epi32(largest[r], _mm512_castps_si512(w)); /* none is below 0 */
        }
    }
    for (size_t r = 0; r < rows; r++) {
        uint32_t top = (uint32_t)_mm512_reduce_max_epi32(largest[r]);
        factor[r] = _mm512_set1_ps(attention_integers(top, &steps[r]));
    }
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        __m512 scales = codes_scales(g, c);
        for (size_t r = 0; r < rows; r++) {
            float *at = p + r * stride + c * CHUNK_TOKENS;
            __m512 w = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(at), scales), factor[r]);
            _mm256_storeu_si256((__m256i *)at, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(w)));
        }
    }
}

/* Adds a group's sums to a[row * ATTENTION_DIM] for 32 dimensions from d0 on. */
ALWAYS_INLINE void codes_weigh(const struct codes_group *g, const float *p, size_t stride, size_t rows,
                               size_t d0, const float *steps, float *a)
{
    __m512i sum[ATTENTION_QUERIES][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        const int8_t *v = (const int8_t *)g->chunks[c].data + CHUNK_TOKENS * g->dim + d0;
        const int16_t *n = (const int16_t *)(p + c * CHUNK_TOKENS);
        const char *ahead = attention_ahead(g->chunks + c, g->left - c)->data;
        ahead += CHUNK_TOKENS * g->dim + d0;
        for (size_t t = 0; t < CHUNK_TOKENS; t += 2, v += 2 * g->dim, ahead += 2 * g->dim) {
            _mm_prefetch(ahead, _MM_HINT_T0);
            _mm_prefetch(ahead + g->dim, _MM_HINT_T0);
            __m256i v0 = _mm256_loadu_si256((const __m256i *)v);
            __m256i v1 = _mm256_loadu_si256((const __m256i *)(v + g->dim));
            __m512i low = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(v0, v1)); /* dimensions 0-7, 16-23 */
            __m512i high = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(v0, v1));
            for (size_t r = 0; r < rows; r++) {
                __m512i w = codes_pair(n + r * 2 * stride + t);
                sum[r][0] = _mm512_dpwssd_epi32(sum[r][0], w, low);
                sum[r][1] = _mm512_dpwssd_epi32(sum[r][1], w, high);
            }
        }
    }
    for (size_t r = 0; r < rows; r++) {
        float *at = a + r * ATTENTION_DIM + d0;
        __m512i low = _mm512_inserti64x4(sum[r][0], _mm512_castsi512_si256(sum[r][1]), 1);
        __m512i high = _mm512_shuffle_i64x2(sum[r][0], sum[r][1], 0xee);
        __m512 step = _mm512_set1_ps(steps[r]);
        _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), step, _mm512_loadu_ps(at)));
        _mm512_storeu_ps(at + 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), step, _mm512_loadu_ps(at + 16)));
    }
}

/* The same for the last 8, 16 or 24 dimensions, 16 at most at a time. */
ALWAYS_INLINE void codes_weigh_rest(const struct codes_group *g, const float *p, size_t stride, size_t rows,
                                    size_t d0, const float *steps, float *a)
{
    const __mmask16 exist = g->dim - d0 < 16 ? 0xff : 0xffff;
    __m512i sum[ATTENTION_QUERIES];
    for (size_t r = 0; r < rows; r++)
        sum[r] = _mm512_setzero_si512();
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        const int8_t *v = (const int8_t *)g->chunks[c].data + CHUNK_TOKENS * g->dim + d0;
        const int16_t *n = (const int16_t *)(p + c * CHUNK_TOKENS);
        for (size_t t = 0; t < CHUNK_TOKENS; t += 2, v += 2 * g->dim) {
            __m128i v0 = _mm_maskz_loadu_epi8(exist, v), v1 = _mm_maskz_loadu_epi8(exist, v + g->dim);
            __m256i bytes = _mm256_set_m128i(_mm_unpackhi_epi8(v0, v1), _mm_unpacklo_epi8(v0, v1));
            __m512i codes = _mm512_cvtepi8_epi16(bytes);
            for (size_t r = 0; r < rows; r++)
                sum[r] = _mm512_dpwssd_epi32(sum[r], codes_pair(n + r * 2 * stride + t), codes);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        SUMMED(sum[r]);
        float *at = a + r * ATTENTION_DIM + d0;
        __m512 before = _mm512_maskz_loadu_ps(exist, at);
        __m512 s = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_set1_ps(steps[r]), before);
        _mm512_mask_storeu_ps(at, exist, s);
    }
}

#endif
