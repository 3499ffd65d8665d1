/* Attention on chunks, AVX2: a chunk's 16 positions are two vectors; up to 4 query rows share every load of K
 * and V. attention_plain.c defines the operations and their order. */
#include <math.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/kernels_internal.h"
#include "kernels/math_avx2.h"

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 4 };

INLINE __m256 load8(const void *data, size_t index, uint8_t level)
{
    if (level == 16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)data + index)));
    __m128i codes = _mm_loadl_epi64((const __m128i *)((const int8_t *)data + index));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

INLINE __m256 load_scales(const uint16_t *scales)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scales));
}

INLINE void score_chunk(const struct attention *a, const float *const *q, size_t rows, const void *data,
                        uint8_t level, float *scores, size_t stride)
{
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t d = 0; d < a->dim; d++) {
        __m256 k0 = load8(data, d * CHUNK_TOKENS, level), k1 = load8(data, d * CHUNK_TOKENS + 8, level);
        for (size_t r = 0; r < rows; r++) {
            __m256 x = _mm256_broadcast_ss(&q[r][d]);
            sum[r][0] = _mm256_fmadd_ps(x, k0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(x, k1, sum[r][1]);
        }
    }
    __m256 scale = _mm256_set1_ps(a->scale);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++) {
            if (level == 8)
                sum[r][i] = _mm256_mul_ps(sum[r][i], load_scales(attention_scales(data, a->dim) + 8 * i));
            _mm256_storeu_ps(scores + r * stride + 8 * i, _mm256_mul_ps(sum[r][i], scale));
        }
}

/* Scores become exp(score - max), 0 past what the row sees; returns their total. */
static float exponentials(float *scores, size_t visible, size_t padded)
{
    for (size_t t = visible; t < padded; t++)
        scores[t] = -INFINITY;
    __m256 tops = _mm256_set1_ps(-INFINITY), lanes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t t = 0; t < padded; t += 8)
        tops = _mm256_max_ps(_mm256_loadu_ps(scores + t), tops);
    float part[8], top = -INFINITY;
    _mm256_storeu_ps(part, tops);
    for (size_t i = 0; i < 8; i++)
        top = part[i] > top ? part[i] : top;
    __m256 m = _mm256_set1_ps(top);
    for (size_t t = 0; t < padded; t += 8) {
        __m256 p = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(scores + t), m));
        lanes[t / 8 % 2] = _mm256_add_ps(lanes[t / 8 % 2], p);
        _mm256_storeu_ps(scores + t, p);
    }
    return avx2_sum16(lanes[0], lanes[1]);
}

static void scale_values(const struct attention *a, float *p, size_t rows, size_t stride, size_t chunks)
{
    for (size_t c = 0; c < chunks; c++) {
        if (a->chunks[c].level != 8)
            continue;
        const uint16_t *scales = attention_scales(a->chunks[c].data, a->dim) + CHUNK_TOKENS;
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < CHUNK_TOKENS; i += 8) {
                float *at = p + r * stride + c * CHUNK_TOKENS + i;
                _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_loadu_ps(at), load_scales(scales + i)));
            }
    }
}

INLINE void add_values(__m256 sum[][2], const float *p, size_t stride, size_t rows, const void *data,
                       size_t dim, uint8_t level, size_t d0, size_t vectors, size_t tokens)
{
    for (size_t t = 0; t < tokens; t++) {
        size_t at = CHUNK_TOKENS * dim + t * dim + d0;
        __m256 v0 = load8(data, at, level), v1 = vectors > 1 ? load8(data, at + 8, level) : v0;
        for (size_t r = 0; r < rows; r++) {
            __m256 w = _mm256_broadcast_ss(&p[r * stride + t]);
            sum[r][0] = _mm256_fmadd_ps(w, v0, sum[r][0]);
            if (vectors > 1)
                sum[r][1] = _mm256_fmadd_ps(w, v1, sum[r][1]);
        }
    }
}

INLINE void weigh(const struct attention *a, const float *p, size_t stride, size_t rows, size_t visible,
                  size_t d0, size_t vectors, const float *totals, float *const *out)
{
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t t = 0; t < visible; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
        size_t tokens = visible - t < CHUNK_TOKENS ? visible - t : CHUNK_TOKENS;
        if (c->level == 16)
            add_values(sum, p + t, stride, rows, c->data, a->dim, 16, d0, vectors, tokens);
        else
            add_values(sum, p + t, stride, rows, c->data, a->dim, 8, d0, vectors, tokens);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < vectors; i++)
            _mm256_storeu_ps(out[r] + d0 + 8 * i, _mm256_div_ps(sum[r][i], _mm256_set1_ps(totals[r])));
}

INLINE void attend(const struct attention *a, size_t first, size_t rows)
{
    float totals[ROWS], *p = a->scratch;
    const uint32_t *visible = a->visible + first;
    size_t most = 0, d = 0;
    for (size_t r = 0; r < rows; r++)
        most = visible[r] > most ? visible[r] : most;
    size_t chunks = (most + CHUNK_TOKENS - 1) / CHUNK_TOKENS, stride = chunks * CHUNK_TOKENS;
    for (size_t c = 0; c < chunks; c++) {
        if (a->chunks[c].level == 16)
            score_chunk(a, a->q + first, rows, a->chunks[c].data, 16, p + c * CHUNK_TOKENS, stride);
        else
            score_chunk(a, a->q + first, rows, a->chunks[c].data, 8, p + c * CHUNK_TOKENS, stride);
    }
    for (size_t r = 0; r < rows; r++)
        totals[r] = exponentials(p + r * stride, visible[r], stride);
    scale_values(a, p, rows, stride, chunks);
    for (; d + 16 <= a->dim; d += 16)
        weigh(a, p, stride, rows, most, d, 2, totals, a->out + first);
    for (; d + 8 <= a->dim; d += 8)
        weigh(a, p, stride, rows, most, d, 1, totals, a->out + first);
}

void attention_avx2(const struct attention *a)
{
    size_t i = 0;
    for (; i + 4 <= a->queries; i += 4)
        attend(a, i, 4);
    for (; i + 2 <= a->queries; i += 2)
        attend(a, i, 2);
    for (; i < a->queries; i++)
        attend(a, i, 1);
}

void store_avx2(void *data, uint8_t level, size_t dim, unsigned slot, const float *k, const float *v)
{
    if (level != 16) {
        store_plain(data, level, dim, slot, k, v);
        return;
    }
    uint16_t *keys = (uint16_t *)data + slot, *values = (uint16_t *)data + CHUNK_TOKENS * dim + slot * dim,
             part[8];
    for (size_t d = 0; d < dim; d += 8) { /* dim is a multiple of 8 */
        _mm_storeu_si128((__m128i *)part, _mm256_cvtps_ph(_mm256_loadu_ps(k + d), _MM_FROUND_TO_NEAREST_INT));
        for (size_t i = 0; i < 8; i++)
            keys[(d + i) * CHUNK_TOKENS] = part[i];
        _mm_storeu_si128((__m128i *)(values + d),
                         _mm256_cvtps_ph(_mm256_loadu_ps(v + d), _MM_FROUND_TO_NEAREST_INT));
    }
}
