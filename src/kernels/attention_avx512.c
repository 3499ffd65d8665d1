/* Attention on chunks, AVX-512: a chunk's 16 positions are the 16 lanes; up to 8 query rows share every load
 * of K and V. attention_plain.c defines the operations and their order. */
#include <math.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/kernels_internal.h"
#include "kernels/math_avx512.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m512 load16(const void *data, size_t index, uint8_t level)
{
    if (level == 16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)data + index)));
    __m128i codes = _mm_loadu_si128((const __m128i *)((const int8_t *)data + index));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

INLINE __m512 load_scales(const uint16_t *scales)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
}

/* Scores of `rows` queries over one chunk into scores[row * stride]. */
INLINE void score_chunk(const struct attention *a, const float *const *q, size_t rows, const void *data,
                        uint8_t level, float *scores, size_t stride)
{
    __m512 sum[ATTENTION_QUERIES];
    for (size_t r = 0; r < rows; r++)
        sum[r] = _mm512_setzero_ps();
    for (size_t d = 0; d < a->dim; d++) {
        __m512 k = load16(data, d * CHUNK_TOKENS, level);
        for (size_t r = 0; r < rows; r++)
            sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r][d]), k, sum[r]);
    }
    __m512 scale = _mm512_set1_ps(a->scale);
    for (size_t r = 0; r < rows; r++) {
        if (level == 8)
            sum[r] = _mm512_mul_ps(sum[r], load_scales(attention_scales(data, a->dim)));
        _mm512_storeu_ps(scores + r * stride, _mm512_mul_ps(sum[r], scale));
    }
}

/* Scores become exp(score - max), 0 past what the row sees; returns their total. */
static float exponentials(float *scores, size_t visible, size_t padded)
{
    __m512 top = _mm512_set1_ps(-INFINITY), lanes = _mm512_setzero_ps();
    size_t whole = visible / 16 * 16;
    __mmask16 rest = (__mmask16)((1u << (visible - whole)) - 1);
    for (size_t t = 0; t < whole; t += 16)
        top = _mm512_max_ps(_mm512_loadu_ps(scores + t), top);
    if (rest)
        top = _mm512_mask_max_ps(top, rest, _mm512_loadu_ps(scores + whole), top);
    __m512 m = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (size_t t = 0; t < padded; t += 16) {
        __mmask16 seen = t < whole ? 0xffff : t == whole ? rest : 0;
        __m512 p = _mm512_maskz_mov_ps(seen, avx512_exp(_mm512_sub_ps(_mm512_loadu_ps(scores + t), m)));
        lanes = _mm512_add_ps(lanes, p);
        _mm512_storeu_ps(scores + t, p);
    }
    return avx512_sum16(lanes);
}

static void scale_values(const struct attention *a, float *p, size_t rows, size_t stride, size_t chunks)
{
    for (size_t c = 0; c < chunks; c++) {
        if (a->chunks[c].level != 8)
            continue;
        __m512 s = load_scales(attention_scales(a->chunks[c].data, a->dim) + CHUNK_TOKENS);
        for (size_t r = 0; r < rows; r++) {
            float *at = p + r * stride + c * CHUNK_TOKENS;
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), s));
        }
    }
}

/* Adds p[t] * V[t][d0 .. d0 + 16 vectors) of one chunk for t < tokens. */
INLINE void add_values(__m512 sum[][2], const float *p, size_t stride, size_t rows, const void *data,
                       size_t dim, uint8_t level, size_t d0, size_t vectors, size_t tokens)
{
    for (size_t t = 0; t < tokens; t++) {
        size_t at = CHUNK_TOKENS * dim + t * dim + d0;
        __m512 v0 = load16(data, at, level), v1 = vectors > 1 ? load16(data, at + 16, level) : v0;
        for (size_t r = 0; r < rows; r++) {
            __m512 w = _mm512_set1_ps(p[r * stride + t]);
            sum[r][0] = _mm512_fmadd_ps(w, v0, sum[r][0]);
            if (vectors > 1)
                sum[r][1] = _mm512_fmadd_ps(w, v1, sum[r][1]);
        }
    }
}

INLINE void weigh(const struct attention *a, const float *p, size_t stride, size_t rows, size_t visible,
                  size_t d0, size_t vectors, const float *totals, float *const *out)
{
    __m512 sum[ATTENTION_QUERIES][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
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
            _mm512_storeu_ps(out[r] + d0 + 16 * i, _mm512_div_ps(sum[r][i], _mm512_set1_ps(totals[r])));
}

/* The last dimensions where dim is no multiple of 16. */
static void weigh_rest(const struct attention *a, const float *p, size_t visible, size_t d0, float total,
                       float *out)
{
    for (size_t d = d0; d < a->dim; d++) {
        float sum = 0;
        for (size_t t = 0; t < visible; t++) {
            const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
            size_t i = CHUNK_TOKENS * a->dim + t % CHUNK_TOKENS * a->dim + d;
            float v =
                c->level == 16 ? half_to_float(((const uint16_t *)c->data)[i]) : ((const int8_t *)c->data)[i];
            sum = fmaf(p[t], v, sum);
        }
        out[d] = sum / total;
    }
}

INLINE void attend(const struct attention *a, size_t first, size_t rows)
{
    float totals[ATTENTION_QUERIES], *p = a->scratch;
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
    for (; d + 32 <= a->dim; d += 32)
        weigh(a, p, stride, rows, most, d, 2, totals, a->out + first);
    for (; d + 16 <= a->dim; d += 16)
        weigh(a, p, stride, rows, most, d, 1, totals, a->out + first);
    for (size_t r = 0; d < a->dim && r < rows; r++)
        weigh_rest(a, p + r * stride, visible[r], d, totals[r], a->out[first + r]);
}

void attention_avx512(const struct attention *a)
{
    size_t i = 0;
    for (; i + 8 <= a->queries; i += 8)
        attend(a, i, 8);
    for (; i + 4 <= a->queries; i += 4)
        attend(a, i, 4);
    for (; i + 2 <= a->queries; i += 2)
        attend(a, i, 2);
    for (; i < a->queries; i++)
        attend(a, i, 1);
}
