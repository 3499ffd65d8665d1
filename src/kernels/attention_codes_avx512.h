/* Chunks of level 8 by integer products, AVX-512 with VNNI: four neighbouring codes, of K's dimensions or of
 * V's tokens, meet four integers in each lane. attention.h has the definition. A part of attention_avx512.c
 * alone. */
#ifndef LLMS_KERNELS_ATTENTION_CODES_AVX512_H
#define LLMS_KERNELS_ATTENTION_CODES_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "kernels/attention_shared.h"
#include "kernels/codec.h"
#include "kernels/unroll.h"

/* The four integers at `at`, in every lane. */
ALWAYS_INLINE __m512i codes_four(const void *at)
{
    int32_t four;
    memcpy(&four, at, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Byte i of 16-byte lane j to byte j of lane i, of 4 bytes. */
ALWAYS_INLINE __m512i codes_by_four(__m512i x)
{
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, x), bytes);
}

/* A query as integers; returns what one stands for. *start: what takes 128 from each code that meets them. */
ALWAYS_INLINE float codes_of_query(const float *q, size_t dim, int8_t *n, int32_t *start)
{
    __m512i largest = _mm512_setzero_si512(), sum = largest;
    for (size_t d = 0; d < dim; d += 16) {
        __m512i bits = _mm512_maskz_loadu_epi32(dim - d < 16 ? 0xff : 0xffff, q + d);
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    float step,
        factor = attention_integers((uint32_t)_mm512_reduce_max_epi32(largest), ATTENTION_QUERY, &step);
    for (size_t d = 0; d < dim; d += 16) {
        __m512 x = _mm512_maskz_loadu_ps(dim - d < 16 ? 0xff : 0xffff, q + d);
        __m512i wide = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
        sum = _mm512_add_epi32(sum, wide);
        _mm_storeu_si128((__m128i *)(n + d), _mm512_cvtsepi32_epi8(wide)); /* past dim: zeros */
    }
    *start = (int32_t)(-128u * (uint32_t)_mm512_reduce_add_epi32(sum));
    return step;
}

/* Codes of four dimensions, by token; each 128 more than it is. */
ALWAYS_INLINE __m512i codes_keys(const uint8_t *at)
{
    return codes_by_four(_mm512_xor_si512(_mm512_loadu_si512(at), _mm512_set1_epi8(-128)));
}

/* Scores of `rows` queries over `count` neighbouring chunks, the first of `left`, into scores[row * stride].
 * n: [rows][ATTENTION_DIM]; starts and units: codes_of_query's, and what a sum stands for without K's scale,
 * by row. */
ALWAYS_INLINE void codes_score(const struct attention_chunk *c, size_t count, size_t left, size_t dim,
                               const int8_t *n, const int32_t *starts, const float *units, size_t rows,
                               float *scores, size_t stride)
{
    __m512i sum[ATTENTION_QUERIES][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_set1_epi32(starts[r]);
    const uint8_t *first = c[0].data, *second = c[count - 1].data;
    const struct attention_chunk *then = attention_ahead(c, left),
                                 *later = attention_ahead(c + count - 1, left - count + 1);
    attention_fetch_scales(then, dim);
    attention_fetch_scales(later, dim);
    for (size_t d = 0; d < dim; d += 4, first += 4 * CHUNK_TOKENS, second += 4 * CHUNK_TOKENS) {
        _mm_prefetch((const char *)then->data + d * CHUNK_TOKENS, _MM_HINT_T0);
        _mm_prefetch((const char *)later->data + d * CHUNK_TOKENS, _MM_HINT_T0);
        __m512i k0 = codes_keys(first), k1 = count > 1 ? codes_keys(second) : k0;
        for (size_t r = 0; r < rows; r++) {
            __m512i x = codes_four(n + r * ATTENTION_DIM + d);
            sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], k0, x);
            if (count > 1)
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], k1, x);
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

/* V's scales of a chunk; 0 where no row sees the token. */
ALWAYS_INLINE __m512 codes_scales(const struct attention_group *g, size_t chunk)
{
    size_t seen = g->tokens - chunk * CHUNK_TOKENS;
    const uint16_t *scales = codec_scales(g->chunks[chunk].data, 8, g->dim) + CHUNK_TOKENS;
    return _mm512_maskz_mov_ps(seen < CHUNK_TOKENS ? (__mmask16)((1u << seen) - 1) : 0xffff,
                               _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales)));
}

/* The largest of each row's lanes, by row; in the last 8 lanes again. */
ALWAYS_INLINE __m512i codes_largest(const __m512i *x)
{
    __m512i two[4], four[2];
    for (size_t i = 0; i < 4; i++)
        two[i] = _mm512_max_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                                  _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
    for (size_t i = 0; i < 2; i++)
        four[i] = _mm512_max_epi32(_mm512_unpacklo_epi64(two[2 * i], two[2 * i + 1]),
                                   _mm512_unpackhi_epi64(two[2 * i], two[2 * i + 1]));
    __m512i half = _mm512_max_epi32(_mm512_shuffle_i64x2(four[0], four[1], 0x88),
                                    _mm512_shuffle_i64x2(four[0], four[1], 0xdd));
    return _mm512_max_epi32(_mm512_shuffle_i64x2(half, half, 0x88), _mm512_shuffle_i64x2(half, half, 0xdd));
}

/* attention_integers, lane by lane. */
ALWAYS_INLINE __m256 codes_factors(__m256i largest, float limit, __m256 *steps)
{
    const __m256 top = _mm256_castsi256_ps(largest), limits = _mm256_set1_ps(limit);
    __mmask8 finite = _mm256_cmple_epi32_mask(largest, _mm256_set1_epi32(0x7f7fffff));
    __mmask8 some = _mm256_cmp_ps_mask(top, _mm256_set1_ps(0x1p-100f), _CMP_GE_OQ);
    *steps = _mm256_mask_mov_ps(_mm256_set1_ps(NAN), finite, _mm256_maskz_div_ps(some, top, limits));
    return _mm256_maskz_div_ps(finite & some, limits, top);
}

/* The group's probabilities p as weights, as integers n: [chunks][ATTENTION_QUERIES][CHUNK_TOKENS]; steps:
 * what one stands for, by row. */
ALWAYS_INLINE void codes_of_weights(const struct attention_group *g, const float *p, size_t stride,
                                    size_t rows, uint8_t *n, float *steps)
{
    __m512i largest[ATTENTION_QUERIES];
    __m512 scales[ATTENTION_GROUP];
    __m256 step;
    float factors[ATTENTION_QUERIES];
    for (size_t r = 0; r < ATTENTION_QUERIES; r++)
        largest[r] = _mm512_setzero_si512();
    for (size_t c = 0; c < g->count; c++) {
        scales[c] = g->chunks[c].level == 8 ? codes_scales(g, c) : _mm512_setzero_ps();
        for (size_t r = 0; g->chunks[c].level == 8 && r < rows; r++) {
            __m512 w = _mm512_mul_ps(_mm512_loadu_ps(p + r * stride + c * CHUNK_TOKENS), scales[c]);
            largest[r] = _mm512_max_epi32(largest[r], _mm512_castps_si512(w)); /* none is below 0 */
        }
    }
    __m256i top = _mm512_castsi512_si256(codes_largest(largest));
    _mm256_storeu_ps(factors, codes_factors(top, ATTENTION_WEIGHT, &step));
    _mm256_storeu_ps(steps, step);
    for (size_t c = 0; c < g->count; c++)
        for (size_t r = 0; g->chunks[c].level == 8 && r < rows; r++) {
            __m512 w = _mm512_mul_ps(_mm512_loadu_ps(p + r * stride + c * CHUNK_TOKENS), scales[c]);
            w = _mm512_mul_ps(w, _mm512_set1_ps(factors[r]));
            uint8_t *to = n + (c * ATTENTION_QUERIES + r) * CHUNK_TOKENS;
            _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(w)));
        }
}

/* Two tokens' codes, of 32 dimensions each. */
ALWAYS_INLINE __m512i codes_rows(const int8_t *first, const int8_t *second)
{
    __m256i low = _mm256_loadu_si256((const __m256i *)first);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_loadu_si256((const __m256i *)second), 1);
}

/* Adds a group's sums to a[row * ATTENTION_DIM] for 32 dimensions from d0 on. */
ALWAYS_INLINE void codes_weigh(const struct attention_group *g, const uint8_t *n, size_t rows, size_t d0,
                               const float *steps, float *a)
{
    const __m512i first = _mm512_set_epi16(55, 39, 54, 38, 53, 37, 52, 36, 51, 35, 50, 34, 49, 33, 48, 32, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(8));
    __m512i sum[ATTENTION_QUERIES][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        const int8_t *v = (const int8_t *)g->chunks[c].data + CHUNK_TOKENS * g->dim + d0;
        const uint8_t *w = n + c * ATTENTION_QUERIES * CHUNK_TOKENS;
        const char *ahead = attention_ahead(g->chunks + c, g->left - c)->data;
        ahead += CHUNK_TOKENS * g->dim + d0;
        for (size_t t = 0; t < CHUNK_TOKENS; t += 4, v += 4 * g->dim, ahead += 4 * g->dim) {
            for (size_t i = 0; i < 4; i++)
                _mm_prefetch(ahead + i * g->dim, _MM_HINT_T0);
            __m512i even = codes_rows(v, v + 2 * g->dim), odd = codes_rows(v + g->dim, v + 3 * g->dim);
            __m512i low = _mm512_unpacklo_epi8(even, odd), high = _mm512_unpackhi_epi8(even, odd);
            __m512i v0 = _mm512_permutex2var_epi16(low, first, high); /* 16 dimensions, four tokens each */
            __m512i v1 = _mm512_permutex2var_epi16(low, second, high);
            for (size_t r = 0; r < rows; r++) {
                __m512i four = codes_four(w + r * CHUNK_TOKENS + t);
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], four, v0);
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], four, v1);
            }
        }
    }
    for (size_t r = 0; r < rows; r++) {
        __m512 step = _mm512_set1_ps(steps[r]);
        for (size_t i = 0; i < 2; i++) {
            SUMMED(sum[r][i]);
            float *at = a + r * ATTENTION_DIM + d0 + 16 * i;
            __m512 s = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][i]), step, _mm512_loadu_ps(at));
            _mm512_storeu_ps(at, s);
        }
    }
}

/* The same for the last 8, 16 or 24 dimensions, 16 at most at a time. */
ALWAYS_INLINE void codes_weigh_rest(const struct attention_group *g, const uint8_t *n, size_t rows, size_t d0,
                                    const float *steps, float *a)
{
    const __mmask16 exist = g->dim - d0 < 16 ? 0xff : 0xffff;
    __m512i sum[ATTENTION_QUERIES];
    for (size_t r = 0; r < rows; r++)
        sum[r] = _mm512_setzero_si512();
    for (size_t c = 0; c < g->count; c++) {
        if (g->chunks[c].level != 8)
            continue;
        const int8_t *v = (const int8_t *)g->chunks[c].data + CHUNK_TOKENS * g->dim + d0;
        const uint8_t *w = n + c * ATTENTION_QUERIES * CHUNK_TOKENS;
        for (size_t t = 0; t < CHUNK_TOKENS; t += 4, v += 4 * g->dim) {
            __m512i codes = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(exist, v));
            codes = _mm512_inserti32x4(codes, _mm_maskz_loadu_epi8(exist, v + g->dim), 1);
            codes = _mm512_inserti32x4(codes, _mm_maskz_loadu_epi8(exist, v + 2 * g->dim), 2);
            codes = codes_by_four(_mm512_inserti32x4(codes, _mm_maskz_loadu_epi8(exist, v + 3 * g->dim), 3));
            for (size_t r = 0; r < rows; r++)
                sum[r] = _mm512_dpbusd_epi32(sum[r], codes_four(w + r * CHUNK_TOKENS + t), codes);
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
