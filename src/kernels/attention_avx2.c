/* Attention on chunks, AVX2: a chunk's 16 positions are two vectors; up to 4 query rows share every load of K
 * and V. attention_plain.c defines the operations and their order. */
#include <math.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/attention_shared.h"
#include "kernels/codec.h"
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
                sum[r][i] = _mm256_mul_ps(sum[r][i], load_scales(codec_scales(data, 8, a->dim) + 8 * i));
            _mm256_storeu_ps(scores + r * stride + 8 * i, _mm256_mul_ps(sum[r][i], scale));
        }
}

/* code - mid of each lane's byte; the code is the byte's part-th. */
INLINE __m256 decode(__m256i bytes, uint8_t level, size_t part)
{
    if (level == 2) /* only the lowest 3 bits choose */
        return _mm256_permutevar8x32_ps(_mm256_setr_ps(-1.5f, -0.5f, 0.5f, 1.5f, -1.5f, -0.5f, 0.5f, 1.5f),
                                        _mm256_srli_epi32(bytes, (int)(2 * part)));
    bytes = part ? _mm256_srli_epi32(bytes, 4) : _mm256_and_si256(bytes, _mm256_set1_epi32(15));
    return _mm256_sub_ps(_mm256_cvtepi32_ps(bytes), _mm256_set1_ps(7.5f));
}

INLINE __m256i load_bytes(const uint8_t *at)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at));
}

/* The same for a rotated chunk; q holds the rotated queries, ATTENTION_DIM apart. */
INLINE void score_rotated(const struct attention *a, const float *q, size_t rows, const void *data,
                          uint8_t level, float *scores, size_t stride)
{
    const size_t in_byte = 8 / level;
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t d = 0; d < a->dim; d += in_byte) {
        const uint8_t *at = (const uint8_t *)data + d / in_byte * CHUNK_TOKENS;
        __m256i low = load_bytes(at), high = load_bytes(at + 8);
        for (size_t i = 0; i < in_byte; i++) {
            __m256 k0 = decode(low, level, i);
            __m256 k1 = decode(high, level, i);
            for (size_t r = 0; r < rows; r++) {
                __m256 x = _mm256_broadcast_ss(&q[r * ATTENTION_DIM + d + i]);
                sum[r][0] = _mm256_fmadd_ps(x, k0, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(x, k1, sum[r][1]);
            }
        }
    }
    const uint16_t *scales = codec_scales(data, level, a->dim);
    __m256 scale = _mm256_set1_ps(a->scale);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++)
            _mm256_storeu_ps(scores + r * stride + 8 * i,
                             _mm256_mul_ps(_mm256_mul_ps(sum[r][i], load_scales(scales + 8 * i)), scale));
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

/* Adds to `received` what the rows gave each position. */
INLINE void count_density(uint32_t *received, const float *p, size_t rows, size_t stride, const float *units)
{
    const __m256 round = _mm256_set1_ps(ATTENTION_ROUND);
    const __m256i excess = _mm256_set1_epi32((int)((uint32_t)rows * ATTENTION_ROUND_BITS));
    for (size_t t = 0; t < stride; t += 8) {
        __m256i *at = (__m256i *)(received + t), sum = _mm256_sub_epi32(_mm256_loadu_si256(at), excess);
        for (size_t r = 0; r < rows; r++) {
            __m256 n = _mm256_fmadd_ps(_mm256_loadu_ps(p + r * stride + t), _mm256_set1_ps(units[r]), round);
            sum = _mm256_add_epi32(sum, _mm256_castps_si256(n));
        }
        _mm256_storeu_si256(at, sum);
    }
}

INLINE void count_rows(uint32_t *received, const float *p, size_t rows, size_t stride, const float *totals)
{
    float units[ROWS];
    size_t finite = 0;
    for (size_t r = 0; r < rows; r++) {
        units[r] = attention_unit(totals[r]);
        finite += units[r] > 0;
    }
    if (finite == rows)
        count_density(received, p, rows, stride, units);
    else
        for (size_t r = 0; r < rows; r++)
            if (units[r] > 0)
                count_density(received, p + r * stride, 1, stride, units + r);
}

static void scale_values(const struct attention *a, float *p, size_t rows, size_t stride, size_t chunks)
{
    for (size_t c = 0; c < chunks; c++) {
        if (a->chunks[c].level == 16)
            continue;
        const uint16_t *scales = codec_scales(a->chunks[c].data, a->chunks[c].level, a->dim) + CHUNK_TOKENS;
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

/* One block of rows at work. */
struct block {
    const struct attention *a;
    float *q_rotated, *back; /* [rows][ATTENTION_DIM]: R q, and R B (b before it is rotated back) */
    float *p;                /* [rows][stride] */
    size_t stride, chunks, most, first_rotated; /* positions */
    const uint32_t *visible;
    float *const *out;
    float totals[ROWS];
};

/* (A + R B) / total for 8 dimensions of a row. */
INLINE void finish(const struct block *b, size_t row, size_t d, __m256 sum)
{
    if (b->visible[row] > b->first_rotated)
        sum = _mm256_add_ps(sum, _mm256_loadu_ps(b->back + row * ATTENTION_DIM + d));
    _mm256_storeu_ps(b->out[row] + d, _mm256_div_ps(sum, _mm256_set1_ps(b->totals[row])));
}

INLINE void weigh(const struct block *b, size_t rows, size_t d0, size_t vectors)
{
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t t = 0; t < b->most; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        size_t tokens = b->most - t < CHUNK_TOKENS ? b->most - t : CHUNK_TOKENS;
        if (c->level == 16)
            add_values(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 16, d0, vectors, tokens);
        else if (c->level == 8)
            add_values(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 8, d0, vectors, tokens);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < vectors; i++)
            finish(b, r, d0 + 8 * i, sum[r][i]);
}

/* Adds p[t] * V[t][d0 .. d0 + 16) of a rotated chunk, d0 + 16 at most the last multiple of 64. */
INLINE void add_rotated(__m256 sum[][2], const float *p, size_t stride, size_t rows, const void *data,
                        size_t dim, uint8_t level, size_t d0, size_t part, size_t tokens)
{
    const size_t bytes = dim * level / 8, group = 128 / level;
    const uint8_t *at = (const uint8_t *)data + CHUNK_TOKENS * bytes + d0 / group * 16;
    for (size_t t = 0; t < tokens; t++, at += bytes) {
        __m256 v0 = decode(load_bytes(at), level, part);
        __m256 v1 = decode(load_bytes(at + 8), level, part);
        for (size_t r = 0; r < rows; r++) {
            __m256 w = _mm256_broadcast_ss(&p[r * stride + t]);
            sum[r][0] = _mm256_fmadd_ps(w, v0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(w, v1, sum[r][1]);
        }
    }
}

/* B for 16 dimensions, the part-th 16 of 64. */
INLINE void weigh_rotated(const struct block *b, size_t rows, size_t d0, size_t part)
{
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t t = b->first_rotated; t < b->most; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        size_t tokens = b->most - t < CHUNK_TOKENS ? b->most - t : CHUNK_TOKENS;
        if (c->level == 4)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 4, d0, part % 2, tokens);
        else if (c->level == 2)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 2, d0, part, tokens);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++)
            _mm256_storeu_ps(b->back + r * ATTENTION_DIM + d0 + 8 * i, sum[r][i]);
}

/* Where 8 neighbouring dimensions' codes lie in a token's V at one level. */
struct gather {
    size_t from;  /* the byte the lanes' bytes are counted from */
    __m128i byte; /* of each lane */
    __m256i shift;
};

static struct gather gather_of(size_t dim, uint8_t level, size_t d0)
{
    size_t group = 128 / level, base = d0 / group * group;
    size_t bytes = (dim - base < group ? dim - base : group) * level / 8;
    uint8_t byte[16] = {0};
    int shift[8];
    for (size_t i = 0; i < 8; i++) {
        byte[i] = (uint8_t)((d0 + i - base) % bytes);
        shift[i] = (int)((d0 + i - base) / bytes * level);
    }
    return (struct gather){base * level / 8, _mm_loadu_si128((const __m128i *)byte),
                           _mm256_loadu_si256((const __m256i *)shift)};
}

INLINE __m256 gather(const struct gather *g, const uint8_t *row, uint8_t level)
{
    /* 16 bytes from anywhere in V's codes end within the scales behind them. */
    __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(row + g->from)), g->byte);
    __m256i codes = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(bytes), g->shift);
    return decode(_mm256_and_si256(codes, _mm256_set1_epi32((1 << level) - 1)), level, 0);
}

/* B for 8 of the last dimensions, where dim is no multiple of 64. */
static void weigh_rotated_rest(const struct block *b, size_t rows, size_t d0)
{
    size_t dim = b->a->dim;
    struct gather four = gather_of(dim, 4, d0), two = gather_of(dim, 2, d0);
    __m256 sum[ROWS];
    for (size_t r = 0; r < rows; r++)
        sum[r] = _mm256_setzero_ps();
    for (size_t t = b->first_rotated; t < b->most; t++) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        if (!attention_rotated(c))
            continue;
        const uint8_t *row =
            (const uint8_t *)c->data + (CHUNK_TOKENS + t % CHUNK_TOKENS) * dim * c->level / 8;
        __m256 v = c->level == 4 ? gather(&four, row, 4) : gather(&two, row, 2);
        for (size_t r = 0; r < rows; r++)
            sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(b->p[r * b->stride + t]), v, sum[r]);
    }
    for (size_t r = 0; r < rows; r++)
        _mm256_storeu_ps(b->back + r * ATTENTION_DIM + d0, sum[r]);
}

INLINE void score_all(const struct block *b, const float *const *q, size_t rows)
{
    const struct attention *a = b->a;
    if (b->first_rotated < b->most)
        for (size_t r = 0; r < rows; r++) {
            memcpy(b->q_rotated + r * ATTENTION_DIM, q[r], a->dim * sizeof(float));
            rotate_avx2(b->q_rotated + r * ATTENTION_DIM, a->dim);
        }
    for (size_t c = 0; c < b->chunks; c++) {
        const void *data = a->chunks[c].data;
        float *scores = b->p + c * CHUNK_TOKENS;
        switch (a->chunks[c].level) {
        case 16:
            score_chunk(a, q, rows, data, 16, scores, b->stride);
            break;
        case 8:
            score_chunk(a, q, rows, data, 8, scores, b->stride);
            break;
        case 4:
            score_rotated(a, b->q_rotated, rows, data, 4, scores, b->stride);
            break;
        default:
            score_rotated(a, b->q_rotated, rows, data, 2, scores, b->stride);
        }
    }
}

INLINE void weigh_all_rotated(const struct block *b, size_t rows)
{
    size_t dim = b->a->dim, d = 0;
    for (; d + 64 <= dim; d += 64) { /* written out: shifts are constants */
        weigh_rotated(b, rows, d, 0);
        weigh_rotated(b, rows, d + 16, 1);
        weigh_rotated(b, rows, d + 32, 2);
        weigh_rotated(b, rows, d + 48, 3);
    }
    for (; d < dim; d += 8)
        weigh_rotated_rest(b, rows, d);
    for (size_t r = 0; r < rows; r++)
        rotate_avx2(b->back + r * ATTENTION_DIM, dim);
}

INLINE void attend(const struct attention *a, size_t first, size_t rows)
{
    struct block b = {.a = a, .visible = a->visible + first, .out = a->out + first};
    for (size_t r = 0; r < rows; r++)
        b.most = b.visible[r] > b.most ? b.visible[r] : b.most;
    b.chunks = (b.most + CHUNK_TOKENS - 1) / CHUNK_TOKENS;
    b.stride = b.chunks * CHUNK_TOKENS;
    b.q_rotated = a->scratch;
    b.back = a->scratch + ATTENTION_QUERIES * ATTENTION_DIM;
    b.p = a->scratch + ATTENTION_ROTATED;
    b.first_rotated = attention_first_rotated(a, b.most);
    score_all(&b, a->q + first, rows);
    for (size_t r = 0; r < rows; r++)
        b.totals[r] = exponentials(b.p + r * b.stride, b.visible[r], b.stride);
    if (a->received)
        count_rows(a->received, b.p, rows, b.stride, b.totals);
    scale_values(a, b.p, rows, b.stride, b.chunks);
    if (b.first_rotated < b.most)
        weigh_all_rotated(&b, rows);
    size_t d = 0;
    for (; d + 16 <= a->dim; d += 16)
        weigh(&b, rows, d, 2);
    for (; d + 8 <= a->dim; d += 8)
        weigh(&b, rows, d, 1);
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
