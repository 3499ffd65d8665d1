/* Attention on chunks, AVX2: a chunk's 16 positions are two vectors; up to 4 query rows share every load of K
 * and V. attention_plain.c defines the operations and their order. */
#include <math.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/attention_codes_avx2.h"
#include "kernels/attention_shared.h"
#include "kernels/codec.h"
#include "kernels/kernels_internal.h"
#include "kernels/math_avx2.h"

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = CODES_ROWS };

INLINE __m256 load8(const void *data, size_t index)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)data + index)));
}

INLINE __m256 load_scales(const uint16_t *scales)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scales));
}

/* Scores of `rows` queries over a chunk of level 16, the first of `left`, into scores[row * stride]. */
INLINE void score_16(const struct attention *a, const float *const *q, size_t rows,
                     const struct attention_chunk *c, size_t left, float *scores, size_t stride)
{
    const char *ahead = attention_ahead(c, left)->data;
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t d = 0; d < a->dim; d++) {
        __m256 k0 = load8(c->data, d * CHUNK_TOKENS), k1 = load8(c->data, d * CHUNK_TOKENS + 8);
        _mm_prefetch(ahead + 2 * d * CHUNK_TOKENS, _MM_HINT_T0);
        for (size_t r = 0; r < rows; r++) {
            __m256 x = _mm256_broadcast_ss(&q[r][d]);
            sum[r][0] = _mm256_fmadd_ps(x, k0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(x, k1, sum[r][1]);
        }
    }
    __m256 scale = _mm256_set1_ps(a->scale);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++)
            _mm256_storeu_ps(scores + r * stride + 8 * i, _mm256_mul_ps(sum[r][i], scale));
}

/* The part-th code of so many bits in each lane's byte. */
INLINE __m256 code_of(__m256i bytes, unsigned bits, size_t part)
{
    if (bits == 2) /* only the lowest 3 bits choose */
        return _mm256_permutevar8x32_ps(_mm256_setr_ps(0, 1, 2, 3, 0, 1, 2, 3),
                                        _mm256_srli_epi32(bytes, (int)(2 * part)));
    bytes = _mm256_and_si256(_mm256_srli_epi32(bytes, (int)(4 * part)), _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(bytes);
}

INLINE __m256 decode_4(__m256i bytes, size_t part) /* code - mid */
{
    return _mm256_sub_ps(code_of(bytes, 4, part), _mm256_set1_ps(CODEC_MID));
}

INLINE __m256i load_bytes(const uint8_t *at)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at));
}

/* The same for a chunk of level 4, or 3; q holds the rotated queries. */
INLINE void score_4(const struct attention *a, const float *const *q, size_t rows, const void *data,
                    uint8_t level, float *scores, size_t stride)
{
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t d = 0; d < a->dim; d += 2) {
        const uint8_t *at = (const uint8_t *)data + d / 2 * CHUNK_TOKENS;
        __m256i low = load_bytes(at), high = load_bytes(at + 8);
        for (size_t i = 0; i < 2; i++) {
            __m256 k0 = decode_4(low, i), k1 = decode_4(high, i);
            for (size_t r = 0; r < rows; r++) {
                __m256 x = _mm256_broadcast_ss(&q[r][d + i]);
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

/* The same for a chunk by channel; q is rotated where it is. */
INLINE void score_channels(const struct attention *a, const float *const *q, size_t rows, const void *data,
                           uint8_t level, float *scores, size_t stride)
{
    const unsigned bits = codec_bits(level);
    const size_t in_byte = 8 / bits;
    float step[ATTENTION_DIM], low[ATTENTION_DIM];
    __m256 sum[ROWS][2];
    codec_channels(data, level, a->dim, false, 0, a->dim, step, low);
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t d = 0; d < a->dim; d += in_byte) {
        const uint8_t *at = (const uint8_t *)data + d / in_byte * CHUNK_TOKENS;
        __m256i first = load_bytes(at), second = load_bytes(at + 8);
        for (size_t i = 0; i < in_byte; i++) {
            __m256 s = _mm256_broadcast_ss(&step[d + i]), l = _mm256_broadcast_ss(&low[d + i]);
            __m256 k0 = _mm256_fmadd_ps(code_of(first, bits, i), s, l);
            __m256 k1 = _mm256_fmadd_ps(code_of(second, bits, i), s, l);
            for (size_t r = 0; r < rows; r++) {
                __m256 x = _mm256_broadcast_ss(&q[r][d + i]);
                sum[r][0] = _mm256_fmadd_ps(x, k0, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(x, k1, sum[r][1]);
            }
        }
    }
    __m256 scale = _mm256_set1_ps(a->scale);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++)
            _mm256_storeu_ps(scores + r * stride + 8 * i, _mm256_mul_ps(sum[r][i], scale));
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
        if (!attention_scaled(&a->chunks[c], true))
            continue;
        const uint16_t *scales = codec_scales(a->chunks[c].data, a->chunks[c].level, a->dim) + CHUNK_TOKENS;
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < CHUNK_TOKENS; i += 8) {
                float *at = p + r * stride + c * CHUNK_TOKENS + i;
                _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_loadu_ps(at), load_scales(scales + i)));
            }
    }
}

/* Adds p[t] * V[t][d0 .. d0 + 8 vectors) of one chunk of level 16, the first of `left`, for t < tokens. */
INLINE void add_values(__m256 sum[][2], const float *p, size_t stride, size_t rows,
                       const struct attention_chunk *c, size_t left, size_t dim, size_t d0, size_t vectors,
                       size_t tokens)
{
    const uint16_t *ahead = attention_ahead(c, left)->data;
    for (size_t t = 0; t < tokens; t++) {
        size_t at = CHUNK_TOKENS * dim + t * dim + d0;
        __m256 v0 = load8(c->data, at), v1 = vectors > 1 ? load8(c->data, at + 8) : v0;
        _mm_prefetch(ahead + at, _MM_HINT_T0);
        for (size_t r = 0; r < rows; r++) {
            __m256 w = _mm256_broadcast_ss(&p[r * stride + t]);
            sum[r][0] = _mm256_fmadd_ps(w, v0, sum[r][0]);
            if (vectors > 1)
                sum[r][1] = _mm256_fmadd_ps(w, v1, sum[r][1]);
        }
    }
}

/* Where 8 neighbouring dimensions' codes lie in a token's V. */
struct gather {
    size_t from;  /* the byte the lanes' bytes are counted from */
    __m128i byte; /* of each lane */
    __m256i shift;
};

static struct gather gather_of(size_t dim, unsigned bits, size_t d0)
{
    size_t group = 128 / bits, base = d0 / group * group;
    size_t bytes = (dim - base < group ? dim - base : group) * bits / 8;
    uint8_t byte[16] = {0};
    int shift[8];
    for (size_t i = 0; i < 8; i++) {
        byte[i] = (uint8_t)((d0 + i - base) % bytes);
        shift[i] = (int)((d0 + i - base) / bytes * bits);
    }
    return (struct gather){base * bits / 8, _mm_loadu_si128((const __m128i *)byte),
                           _mm256_loadu_si256((const __m256i *)shift)};
}

/* The lanes' codes, in their lowest bits; what lies above is another's. */
INLINE __m256i gather(const struct gather *g, const uint8_t *row)
{
    /* 16 bytes from anywhere in V's codes end within the scales behind them. */
    __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(row + g->from)), g->byte);
    return _mm256_srlv_epi32(_mm256_cvtepu8_epi32(bytes), g->shift);
}

/* Step and low of 8 dimensions of V from d0 on. */
INLINE void load_channels(const void *data, uint8_t level, size_t dim, size_t d0, __m256 *step, __m256 *low)
{
    float steps[8], lows[8];
    codec_channels(data, level, dim, true, d0, 8, steps, lows);
    *step = _mm256_loadu_ps(steps);
    *low = _mm256_loadu_ps(lows);
}

/* Adds p[t] * V[t][d0 .. d0 + 8) of a chunk by channel. */
INLINE void add_gathered(__m256 *sum, const float *p, size_t stride, size_t rows, const void *data,
                         size_t dim, uint8_t level, const struct gather *g, size_t d0, size_t tokens)
{
    const uint8_t *row = codec_values(data, level, dim);
    const unsigned bits = codec_bits(codec_part(level, true));
    __m256 step, low;
    load_channels(data, level, dim, d0, &step, &low);
    for (size_t t = 0; t < tokens; t++, row += dim * bits / 8) {
        __m256 v = _mm256_fmadd_ps(code_of(gather(g, row), bits, 0), step, low);
        for (size_t r = 0; r < rows; r++)
            sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(p[r * stride + t]), v, sum[r]);
    }
}

/* One block of rows at work. */
struct block {
    const struct attention *a;
    float *q_rotated, *back; /* [rows][ATTENTION_DIM]: R q, and R B (b before it is rotated back) */
    float *sums;             /* [rows][ATTENTION_DIM]: A of level 8, where there is some */
    int16_t *n;              /* [rows][ATTENTION_DIM]: the queries as integers */
    float *steps;            /* [groups][ROWS]: what the groups' integers stand for */
    float *p;                /* [rows][stride] */
    size_t stride, chunks, most, first_rotated; /* positions */
    bool paper, codes;                          /* it sees a chunk of the paper's codec, one of level 8 */
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

/* What 8 dimensions of a row's A begin with. */
INLINE __m256 begin(const struct block *b, size_t row, size_t d)
{
    return b->codes ? _mm256_loadu_ps(b->sums + row * ATTENTION_DIM + d) : _mm256_setzero_ps();
}

INLINE void weigh(const struct block *b, size_t rows, size_t d0, size_t vectors)
{
    __m256 sum[ROWS][2];
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < vectors; i++)
            sum[r][i] = begin(b, r, d0 + 8 * i);
    for (size_t t = 0; t < b->most; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        size_t tokens = b->most - t < CHUNK_TOKENS ? b->most - t : CHUNK_TOKENS;
        if (c->level == 16)
            add_values(sum, b->p + t, b->stride, rows, c, b->chunks - t / CHUNK_TOKENS, b->a->dim, d0,
                       vectors, tokens);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < vectors; i++)
            finish(b, r, d0 + 8 * i, sum[r][i]);
}

/* The same where the paper's chunks are among them; 8 dimensions. */
static void weigh_paper(const struct block *b, size_t rows, size_t d0)
{
    const size_t dim = b->a->dim;
    const struct gather four = gather_of(dim, 4, d0), two = gather_of(dim, 2, d0);
    __m256 sum[ROWS];
    for (size_t r = 0; r < rows; r++)
        sum[r] = begin(b, r, d0);
    for (size_t t = 0; t < b->most; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        size_t tokens = b->most - t < CHUNK_TOKENS ? b->most - t : CHUNK_TOKENS;
        const float *p = b->p + t;
        if (d0 == 0 && c->level != 8)
            attention_fetch_values(attention_ahead(c, b->chunks - t / CHUNK_TOKENS), dim);
        if (c->level == (CODEC_PAPER | 4))
            add_gathered(sum, p, b->stride, rows, c->data, dim, CODEC_PAPER | 4, &four, d0, tokens);
        else if (c->level == (CODEC_PAPER | 2))
            add_gathered(sum, p, b->stride, rows, c->data, dim, CODEC_PAPER | 2, &two, d0, tokens);
        else if (c->level == 16)
            for (size_t i = 0; i < tokens; i++) {
                __m256 v = load8(c->data, CHUNK_TOKENS * dim + i * dim + d0);
                for (size_t r = 0; r < rows; r++)
                    sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(p[r * b->stride + i]), v, sum[r]);
            }
    }
    for (size_t r = 0; r < rows; r++)
        finish(b, r, d0, sum[r]);
}

/* Adds p[t] * V[t][d0 .. d0 + 16) of a rotated chunk, d0 + 16 at most the last multiple of 64. */
INLINE void add_rotated(__m256 sum[][2], const float *p, size_t stride, size_t rows, const void *data,
                        size_t dim, uint8_t level, size_t d0, size_t part, size_t tokens)
{
    const unsigned bits = codec_bits(codec_part(level, true));
    const size_t bytes = dim * bits / 8, group = 128 / bits;
    const uint8_t *at = (const uint8_t *)codec_values(data, level, dim) + d0 / group * 16;
    __m256 step[2], low[2];
    if (bits == 2)
        for (size_t i = 0; i < 2; i++)
            load_channels(data, level, dim, d0 + 8 * i, &step[i], &low[i]);
    for (size_t t = 0; t < tokens; t++, at += bytes) {
        __m256 v[2];
        for (size_t i = 0; i < 2; i++) {
            __m256i codes = load_bytes(at + 8 * i);
            v[i] =
                bits == 4 ? decode_4(codes, part) : _mm256_fmadd_ps(code_of(codes, 2, part), step[i], low[i]);
        }
        for (size_t r = 0; r < rows; r++) {
            __m256 w = _mm256_broadcast_ss(&p[r * stride + t]);
            sum[r][0] = _mm256_fmadd_ps(w, v[0], sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(w, v[1], sum[r][1]);
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
        if (d0 == 0 && part == 0)
            attention_fetch_values(attention_ahead(c, b->chunks - t / CHUNK_TOKENS), b->a->dim);
        if (c->level == 4)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 4, d0, part % 2, tokens);
        else if (c->level == 2)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 2, d0, part, tokens);
        else if (c->level == 3)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 3, d0, part, tokens);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++)
            _mm256_storeu_ps(b->back + r * ATTENTION_DIM + d0 + 8 * i, sum[r][i]);
}

/* B for 8 of the last dimensions, where dim is no multiple of 64. */
static void weigh_rotated_rest(const struct block *b, size_t rows, size_t d0)
{
    const size_t dim = b->a->dim;
    const struct gather four = gather_of(dim, 4, d0), two = gather_of(dim, 2, d0);
    __m256 sum[ROWS];
    for (size_t r = 0; r < rows; r++)
        sum[r] = _mm256_setzero_ps();
    for (size_t t = b->first_rotated; t < b->most; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        size_t tokens = b->most - t < CHUNK_TOKENS ? b->most - t : CHUNK_TOKENS;
        const float *p = b->p + t;
        if (c->level == 2)
            add_gathered(sum, p, b->stride, rows, c->data, dim, 2, &two, d0, tokens);
        else if (c->level == 3)
            add_gathered(sum, p, b->stride, rows, c->data, dim, 3, &two, d0, tokens);
        const uint8_t *row = codec_values(c->data, 4, dim);
        for (size_t i = 0; c->level == 4 && i < tokens; i++, row += dim / 2) {
            __m256 v = decode_4(gather(&four, row), 0);
            for (size_t r = 0; r < rows; r++)
                sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(p[r * b->stride + i]), v, sum[r]);
        }
    }
    for (size_t r = 0; r < rows; r++)
        _mm256_storeu_ps(b->back + r * ATTENTION_DIM + d0, sum[r]);
}

/* A of level 8, group by group. All groups' integers come first: each waits for its largest weight, which
 * takes longer than the products of a group. */
INLINE void weigh_codes(const struct block *b, size_t rows)
{
    const size_t dim = b->a->dim;
    float *steps = b->steps;
    for (size_t c = 0; c < b->chunks; c += ATTENTION_GROUP, steps += ROWS) {
        const struct attention_group g = attention_group_of(b->a, c, b->most);
        codes_of_weights(&g, b->p + c * CHUNK_TOKENS, b->stride, rows, steps);
    }
    memset(b->sums, 0, rows * ATTENTION_DIM * sizeof *b->sums);
    steps = b->steps;
    for (size_t c = 0; c < b->chunks; c += ATTENTION_GROUP, steps += ROWS) {
        const struct attention_group g = attention_group_of(b->a, c, b->most);
        if (!attention_codes(b->a, c, c + g.count))
            continue;
        const float *p = b->p + c * CHUNK_TOKENS;
        size_t d = 0;
        for (; d + 16 <= dim; d += 16)
            codes_weigh(&g, p, b->stride, rows, d, 2, steps, b->sums);
        if (d < dim)
            codes_weigh(&g, p, b->stride, rows, d, 1, steps, b->sums);
    }
}

INLINE void score_all(const struct block *b, const float *const *q, size_t rows)
{
    const struct attention *a = b->a;
    const float *rotated[ROWS];
    float units[ROWS] = {0};
    for (size_t r = 0; r < rows; r++) {
        if (b->codes)
            units[r] = codes_of_query(q[r], a->dim, b->n + r * ATTENTION_DIM) * a->scale;
        rotated[r] = b->q_rotated + r * ATTENTION_DIM;
        if (b->first_rotated >= b->most)
            continue;
        memcpy(b->q_rotated + r * ATTENTION_DIM, q[r], a->dim * sizeof(float));
        rotate_avx2(b->q_rotated + r * ATTENTION_DIM, a->dim);
    }
    for (size_t c = 0; c < b->chunks; c++) {
        const void *data = a->chunks[c].data;
        float *scores = b->p + c * CHUNK_TOKENS;
        if (a->chunks[c].level != 8 && a->chunks[c].level != 16)
            attention_fetch_keys(attention_ahead(a->chunks + c, b->chunks - c), a->dim);
        switch (a->chunks[c].level) {
        case 16:
            score_16(a, q, rows, a->chunks + c, b->chunks - c, scores, b->stride);
            break;
        case 8:
            codes_score(a->chunks + c, b->chunks - c, a->dim, b->n, units, rows, scores, b->stride);
            break;
        case 4:
            score_4(a, rotated, rows, data, 4, scores, b->stride);
            break;
        case 3:
            score_4(a, rotated, rows, data, 3, scores, b->stride);
            break;
        case 2:
            score_channels(a, rotated, rows, data, 2, scores, b->stride);
            break;
        case CODEC_PAPER | 4:
            score_channels(a, q, rows, data, CODEC_PAPER | 4, scores, b->stride);
            break;
        default:
            score_channels(a, q, rows, data, CODEC_PAPER | 2, scores, b->stride);
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
    b.sums = b.back + ATTENTION_QUERIES * ATTENTION_DIM;
    b.n = (int16_t *)(b.sums + ATTENTION_QUERIES * ATTENTION_DIM);
    b.p = a->scratch + ATTENTION_ROOM;
    b.steps = b.p + rows * b.stride;
    b.first_rotated = attention_first_rotated(a, b.most);
    b.paper = attention_paper(a, b.most);
    b.codes = attention_codes(a, 0, b.chunks);
    score_all(&b, a->q + first, rows);
    for (size_t r = 0; r < rows; r++)
        b.totals[r] = exponentials(b.p + r * b.stride, b.visible[r], b.stride);
    if (a->received)
        count_rows(a->received, b.p, rows, b.stride, b.totals);
    scale_values(a, b.p, rows, b.stride, b.chunks);
    if (b.first_rotated < b.most)
        weigh_all_rotated(&b, rows);
    if (b.codes)
        weigh_codes(&b, rows);
    size_t d = 0;
    for (; b.paper && d < a->dim; d += 8)
        weigh_paper(&b, rows, d);
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

/* Codes of one vector at level 8; returns its scale as a half. */
static uint16_t quantise(const float *x, size_t dim, int8_t *out, size_t stride)
{
    __m256 tops = _mm256_setzero_ps();
    float lanes[8], top = 0;
    for (size_t d = 0; d < dim; d += 8) /* of NaN max takes the second operand */
        tops = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + d)), tops);
    _mm256_storeu_ps(lanes, tops);
    for (size_t i = 0; i < 8; i++)
        top = lanes[i] > top ? lanes[i] : top;
    uint16_t scale = float_to_half(top / 127.0f > 65504.0f ? 65504.0f : top / 127.0f);
    const __m256 step = _mm256_set1_ps(half_to_float(scale));
    const __m256 some = _mm256_cmp_ps(step, _mm256_setzero_ps(), _CMP_GT_OQ);
    for (size_t d = 0; d < dim; d += 8) {
        __m256 q = _mm256_round_ps(_mm256_div_ps(_mm256_loadu_ps(x + d), step),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        q = _mm256_min_ps(_mm256_max_ps(q, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(127.0f));
        __m256i wide = _mm256_cvtps_epi32(_mm256_and_ps(q, some));
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        int8_t codes[16];
        _mm_storeu_si128((__m128i *)codes, _mm_packs_epi16(words, words));
        for (size_t i = 0; stride > 1 && i < 8; i++)
            out[(d + i) * stride] = codes[i];
        if (stride == 1)
            memcpy(out + d, codes, 8);
    }
    return scale;
}

void store_avx2(void *data, uint8_t level, size_t dim, unsigned slot, const float *k, const float *v)
{
    if (level != 16) {
        int8_t *codes = data;
        uint16_t *scales = (uint16_t *)data + CHUNK_TOKENS * dim; /* behind 2 x 16 x dim bytes of codes */
        scales[slot] = quantise(k, dim, codes + slot, CHUNK_TOKENS);
        scales[CHUNK_TOKENS + slot] = quantise(v, dim, codes + (CHUNK_TOKENS + slot) * dim, 1);
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
