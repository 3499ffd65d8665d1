/* Attention on chunks, AVX-512: a chunk's 16 positions are the 16 lanes; up to 8 query rows share every load
 * of K and V. attention_plain.c defines the operations and their order. */
#include <math.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/attention_codes_avx512.h"
#include "kernels/attention_shared.h"
#include "kernels/codec.h"
#include "kernels/kernels_internal.h"
#include "kernels/math_avx512.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m512 load16(const void *data, size_t index)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)data + index)));
}

INLINE __m512 load_scales(const uint16_t *scales)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
}

/* Scores of `rows` queries over `count` neighbouring chunks of level 16, the first of `left`, into scores[row
 * * stride]. Two at once give as many independent sums as few rows need to hide what each addition takes, and
 * halve the loads of q that many rows need. */
INLINE void score_16(const struct attention *a, const float *const *q, size_t rows,
                     const struct attention_chunk *c, size_t count, size_t left, float *scores, size_t stride)
{
    __m512 sum[2][ATTENTION_QUERIES];
    const char *ahead[2] = {attention_ahead(c, left)->data,
                            attention_ahead(c + count - 1, left - count + 1)->data};
    for (size_t n = 0; n < count; n++)
        for (size_t r = 0; r < rows; r++)
            sum[n][r] = _mm512_setzero_ps();
    for (size_t d = 0; d < a->dim; d++)
        for (size_t n = 0; n < count; n++) {
            __m512 k = load16(c[n].data, d * CHUNK_TOKENS);
            _mm_prefetch(ahead[n] + 2 * d * CHUNK_TOKENS, _MM_HINT_T0);
            for (size_t r = 0; r < rows; r++)
                sum[n][r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r][d]), k, sum[n][r]);
        }
    __m512 scale = _mm512_set1_ps(a->scale);
    for (size_t n = 0; n < count; n++)
        for (size_t r = 0; r < rows; r++)
            _mm512_storeu_ps(scores + r * stride + n * CHUNK_TOKENS, _mm512_mul_ps(sum[n][r], scale));
}

/* The part-th code of so many bits in each lane's byte: the number itself, or at level 4 what it stands for,
 * code - mid. Only a lane's lowest 4 bits choose. */
INLINE __m512 pick(__m512i bytes, unsigned bits, size_t part, __m512 four, __m512 two)
{
    return _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, (unsigned)part * bits), bits == 4 ? four : two);
}

INLINE __m512 decode_4(__m512i bytes, size_t part)
{
    const __m512 four = _mm512_setr_ps(-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f,
                                       2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f);
    return pick(bytes, 4, part, four, four);
}

INLINE __m512 code_of(__m512i bytes, unsigned bits, size_t part)
{
    const __m512 four = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 two = _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    return pick(bytes, bits, part, four, two);
}

INLINE __m512i load_bytes(const void *at)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at));
}

/* The same for chunks of level 4, or 3; q holds the rotated queries. */
INLINE void score_4(const struct attention *a, const float *const *q, size_t rows,
                    const struct attention_chunk *c, size_t count, uint8_t level, float *scores,
                    size_t stride)
{
    __m512 sum[2][ATTENTION_QUERIES];
    for (size_t n = 0; n < count; n++)
        for (size_t r = 0; r < rows; r++)
            sum[n][r] = _mm512_setzero_ps();
    for (size_t d = 0; d < a->dim; d += 2) {
        __m512i bytes[2];
        for (size_t n = 0; n < count; n++)
            bytes[n] = load_bytes((const uint8_t *)c[n].data + d / 2 * CHUNK_TOKENS);
        for (size_t part = 0; part < 2; part++)
            for (size_t n = 0; n < count; n++) {
                __m512 k = decode_4(bytes[n], part);
                for (size_t r = 0; r < rows; r++)
                    sum[n][r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r][d + part]), k, sum[n][r]);
            }
    }
    __m512 scale = _mm512_set1_ps(a->scale);
    for (size_t n = 0; n < count; n++) {
        __m512 scales = load_scales(codec_scales(c[n].data, level, a->dim));
        for (size_t r = 0; r < rows; r++)
            _mm512_storeu_ps(scores + r * stride + n * CHUNK_TOKENS,
                             _mm512_mul_ps(_mm512_mul_ps(sum[n][r], scales), scale));
    }
}

/* The same for chunks by channel; q is rotated where they are. */
INLINE void score_channels(const struct attention *a, const float *const *q, size_t rows,
                           const struct attention_chunk *c, size_t count, uint8_t level, float *scores,
                           size_t stride)
{
    const unsigned bits = codec_bits(level);
    const size_t in_byte = 8 / bits;
    float step[2][ATTENTION_DIM], low[2][ATTENTION_DIM];
    __m512 sum[2][ATTENTION_QUERIES];
    for (size_t n = 0; n < count; n++) {
        codec_channels(c[n].data, level, a->dim, false, 0, a->dim, step[n], low[n]);
        for (size_t r = 0; r < rows; r++)
            sum[n][r] = _mm512_setzero_ps();
    }
    for (size_t d = 0; d < a->dim; d += in_byte) {
        __m512i bytes[2];
        for (size_t n = 0; n < count; n++)
            bytes[n] = load_bytes((const uint8_t *)c[n].data + d / in_byte * CHUNK_TOKENS);
        for (size_t part = 0; part < in_byte; part++)
            for (size_t n = 0; n < count; n++) {
                __m512 k = _mm512_fmadd_ps(code_of(bytes[n], bits, part), _mm512_set1_ps(step[n][d + part]),
                                           _mm512_set1_ps(low[n][d + part]));
                for (size_t r = 0; r < rows; r++)
                    sum[n][r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r][d + part]), k, sum[n][r]);
            }
    }
    __m512 scale = _mm512_set1_ps(a->scale);
    for (size_t n = 0; n < count; n++)
        for (size_t r = 0; r < rows; r++)
            _mm512_storeu_ps(scores + r * stride + n * CHUNK_TOKENS, _mm512_mul_ps(sum[n][r], scale));
}

INLINE __m512 largest_score(const float *scores, size_t visible)
{
    __m512 top[4]; /* each waits for its own sum only */
    for (size_t i = 0; i < 4; i++)
        top[i] = _mm512_set1_ps(-INFINITY);
    size_t t = 0;
    for (; t + 64 <= visible; t += 64)
        for (size_t i = 0; i < 4; i++)
            top[i] = _mm512_max_ps(_mm512_loadu_ps(scores + t + 16 * i), top[i]);
    for (; t + 16 <= visible; t += 16)
        top[0] = _mm512_max_ps(_mm512_loadu_ps(scores + t), top[0]);
    __mmask16 rest = (__mmask16)((1u << (visible - t)) - 1);
    top[1] = _mm512_mask_max_ps(top[1], rest, _mm512_maskz_loadu_ps(rest, scores + t), top[1]);
    __m512 all = _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
    return _mm512_set1_ps(_mm512_reduce_max_ps(all));
}

/* Scores become exp(score - max), 0 past what the row sees; returns their total. */
static float exponentials(float *scores, size_t visible, size_t padded)
{
    const __m512 top = largest_score(scores, visible);
    __m512 lanes = _mm512_setzero_ps();
    size_t t = 0;
    for (; t + 16 <= visible; t += 16) {
        __m512 p = avx512_exp_low(_mm512_sub_ps(_mm512_loadu_ps(scores + t), top));
        lanes = _mm512_add_ps(lanes, p);
        _mm512_storeu_ps(scores + t, p);
    }
    __mmask16 rest = (__mmask16)((1u << (visible - t)) - 1);
    for (; t < padded; t += 16, rest = 0) {
        __m512 p = _mm512_maskz_mov_ps(rest, avx512_exp_low(_mm512_sub_ps(_mm512_loadu_ps(scores + t), top)));
        lanes = _mm512_add_ps(lanes, p);
        _mm512_storeu_ps(scores + t, p);
    }
    return avx512_sum16(lanes);
}

/* Adds to `received` what the rows gave each position. */
INLINE void count_density(uint32_t *received, const float *p, size_t rows, size_t stride, const float *units)
{
    const __m512 round = _mm512_set1_ps(ATTENTION_ROUND);
    const __m512i excess = _mm512_set1_epi32((int)((uint32_t)rows * ATTENTION_ROUND_BITS));
    for (size_t t = 0; t < stride; t += CHUNK_TOKENS) {
        __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(received + t), excess);
        for (size_t r = 0; r < rows; r++) {
            __m512 n = _mm512_fmadd_ps(_mm512_loadu_ps(p + r * stride + t), _mm512_set1_ps(units[r]), round);
            sum = _mm512_add_epi32(sum, _mm512_castps_si512(n));
        }
        _mm512_storeu_si512(received + t, sum);
    }
}

INLINE void count_rows(uint32_t *received, const float *p, size_t rows, size_t stride, const float *totals)
{
    float units[ATTENTION_QUERIES];
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
        __m512 s = load_scales(codec_scales(a->chunks[c].data, a->chunks[c].level, a->dim) + CHUNK_TOKENS);
        for (size_t r = 0; r < rows; r++) {
            float *at = p + r * stride + c * CHUNK_TOKENS;
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), s));
        }
    }
}

/* Adds p[t] * V[t][d0 .. d0 + 16 vectors) of one chunk of level 16, the first of `left`, for t < tokens. */
INLINE void add_values(__m512 sum[][2], const float *p, size_t stride, size_t rows,
                       const struct attention_chunk *c, size_t left, size_t dim, size_t d0, size_t vectors,
                       size_t tokens)
{
    const uint16_t *ahead = attention_ahead(c, left)->data;
    for (size_t t = 0; t < tokens; t++) {
        size_t at = CHUNK_TOKENS * dim + t * dim + d0;
        __m512 v0 = load16(c->data, at), v1 = vectors > 1 ? load16(c->data, at + 16) : v0;
        _mm_prefetch(ahead + at, _MM_HINT_T0);
        for (size_t r = 0; r < rows; r++) {
            __m512 w = _mm512_set1_ps(p[r * stride + t]);
            sum[r][0] = _mm512_fmadd_ps(w, v0, sum[r][0]);
            if (vectors > 1)
                sum[r][1] = _mm512_fmadd_ps(w, v1, sum[r][1]);
        }
    }
}

/* Where 16 neighbouring dimensions' codes lie in a token's V. */
struct gather {
    size_t from;  /* the byte the lanes' bytes are counted from */
    __m128i byte; /* of each lane */
    __m512i shift;
};

static struct gather gather_of(size_t dim, unsigned bits, size_t d0)
{
    size_t group = 128 / bits, base = d0 / group * group;
    size_t bytes = (dim - base < group ? dim - base : group) * bits / 8;
    uint8_t byte[16];
    int shift[16];
    for (size_t i = 0; i < 16; i++) { /* past dim: anything within the group */
        size_t d = d0 + i < dim ? d0 + i - base : 0;
        byte[i] = (uint8_t)(d % bytes);
        shift[i] = (int)(d / bytes * bits);
    }
    return (struct gather){base * bits / 8, _mm_loadu_si128((const __m128i *)byte),
                           _mm512_loadu_si512(shift)};
}

/* The lanes' codes, in their lowest bits; what lies above is another's. */
INLINE __m512i gather(const struct gather *g, const uint8_t *row)
{
    /* 16 bytes from anywhere in V's codes end within the scales behind them. */
    __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(row + g->from)), g->byte);
    return _mm512_srlv_epi32(_mm512_cvtepu8_epi32(bytes), g->shift);
}

/* Step and low of 16 dimensions of V from d0 on; 0 past dim. */
INLINE void load_channels(const void *data, uint8_t level, size_t dim, size_t d0, __m512 *step, __m512 *low)
{
    float steps[16] = {0}, lows[16] = {0};
    if (d0 + 16 <= dim)
        codec_channels(data, level, dim, true, d0, 16, steps, lows);
    else
        codec_channels(data, level, dim, true, d0, 8, steps, lows);
    *step = _mm512_loadu_ps(steps);
    *low = _mm512_loadu_ps(lows);
}

/* Adds p[t] * V[t][d0 .. d0 + 16) of a chunk by channel. */
INLINE void add_gathered(__m512 *sum, const float *p, size_t stride, size_t rows, const void *data,
                         size_t dim, uint8_t level, const struct gather *g, size_t d0, size_t tokens)
{
    const uint8_t *row = codec_values(data, level, dim);
    const unsigned bits = codec_bits(codec_part(level, true));
    __m512 step, low;
    load_channels(data, level, dim, d0, &step, &low);
    for (size_t t = 0; t < tokens; t++, row += dim * bits / 8) {
        __m512 v = _mm512_fmadd_ps(code_of(gather(g, row), bits, 0), step, low);
        for (size_t r = 0; r < rows; r++)
            sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(p[r * stride + t]), v, sum[r]);
    }
}

/* One block of rows at work. */
struct block {
    const struct attention *a;
    float *q_rotated, *back; /* [rows][ATTENTION_DIM]: R q, and R B (b before it is rotated back) */
    float *sums;             /* [rows][ATTENTION_DIM]: A of level 8, where there is some */
    int8_t *n;               /* [rows][ATTENTION_DIM]: the queries as integers */
    uint8_t *w;              /* [chunks][ATTENTION_QUERIES][CHUNK_TOKENS]: weights as integers */
    float *steps;            /* [groups][ATTENTION_QUERIES]: what the groups' integers stand for */
    float *p;                /* [rows][stride] */
    size_t stride, chunks, most, first_rotated; /* positions */
    bool paper, codes;                          /* it sees a chunk of the paper's codec, one of level 8 */
    const uint32_t *visible;
    float *const *out;
    float totals[ATTENTION_QUERIES];
};

/* (A + R B) / total for 16 dimensions of a row. */
INLINE void finish(const struct block *b, size_t row, size_t d, __m512 sum)
{
    if (b->visible[row] > b->first_rotated)
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(b->back + row * ATTENTION_DIM + d));
    _mm512_storeu_ps(b->out[row] + d, _mm512_div_ps(sum, _mm512_set1_ps(b->totals[row])));
}

/* What 16 dimensions of a row's A begin with. */
INLINE __m512 begin(const struct block *b, size_t row, size_t d, __mmask16 exist)
{
    return b->codes ? _mm512_maskz_loadu_ps(exist, b->sums + row * ATTENTION_DIM + d) : _mm512_setzero_ps();
}

INLINE void weigh(const struct block *b, size_t rows, size_t d0, size_t vectors)
{
    __m512 sum[ATTENTION_QUERIES][2];
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < vectors; i++)
            sum[r][i] = begin(b, r, d0 + 16 * i, 0xffff);
    for (size_t t = 0; t < b->most; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        size_t tokens = b->most - t < CHUNK_TOKENS ? b->most - t : CHUNK_TOKENS;
        if (c->level != 16)
            continue;
        add_values(sum, b->p + t, b->stride, rows, c, b->chunks - t / CHUNK_TOKENS, b->a->dim, d0, vectors,
                   tokens);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < vectors; i++)
            finish(b, r, d0 + 16 * i, sum[r][i]);
}

/* The same where the paper's chunks are among them; 8 or 16 dimensions. */
static void weigh_paper(const struct block *b, size_t rows, size_t d0)
{
    const size_t dim = b->a->dim;
    const __mmask16 exist = dim - d0 < 16 ? 0xff : 0xffff;
    const struct gather four = gather_of(dim, 4, d0), two = gather_of(dim, 2, d0);
    __m512 sum[ATTENTION_QUERIES];
    for (size_t r = 0; r < rows; r++)
        sum[r] = begin(b, r, d0, exist);
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
                const uint16_t *at = (const uint16_t *)c->data + CHUNK_TOKENS * dim + i * dim + d0;
                __m512 v = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(exist, at));
                for (size_t r = 0; r < rows; r++)
                    sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(p[r * b->stride + i]), v, sum[r]);
            }
    }
    for (size_t r = 0; r < rows; r++) {
        if (b->visible[r] > b->first_rotated)
            sum[r] = _mm512_add_ps(sum[r], _mm512_maskz_loadu_ps(exist, b->back + r * ATTENTION_DIM + d0));
        _mm512_mask_storeu_ps(b->out[r] + d0, exist, _mm512_div_ps(sum[r], _mm512_set1_ps(b->totals[r])));
    }
}

/* Adds p[t] * V[t][d0 .. d0 + 32) of a rotated chunk, d0 + 32 at most the last multiple of 64. */
INLINE void add_rotated(__m512 sum[][2], const float *p, size_t stride, size_t rows, const void *data,
                        size_t dim, uint8_t level, size_t d0, size_t part, size_t tokens)
{
    const unsigned bits = codec_bits(codec_part(level, true));
    const size_t bytes = dim * bits / 8, group = 128 / bits;
    const uint8_t *at = (const uint8_t *)codec_values(data, level, dim) + d0 / group * 16;
    __m512 step[2], low[2];
    if (bits == 2)
        for (size_t i = 0; i < 2; i++)
            load_channels(data, level, dim, d0 + 16 * i, &step[i], &low[i]);
    for (size_t t = 0; t < tokens; t++, at += bytes) {
        __m512i codes = load_bytes(at);
        __m512 v[2];
        for (size_t i = 0; i < 2; i++)
            v[i] = bits == 4 ? decode_4(codes, part + i)
                             : _mm512_fmadd_ps(code_of(codes, 2, part + i), step[i], low[i]);
        for (size_t r = 0; r < rows; r++) {
            __m512 w = _mm512_set1_ps(p[r * stride + t]);
            sum[r][0] = _mm512_fmadd_ps(w, v[0], sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(w, v[1], sum[r][1]);
        }
    }
}

/* B for 32 dimensions, the part-th 16 of 64 and the next. */
INLINE void weigh_rotated(const struct block *b, size_t rows, size_t d0, size_t part)
{
    __m512 sum[ATTENTION_QUERIES][2];
    for (size_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (size_t t = b->first_rotated; t < b->most; t += CHUNK_TOKENS) {
        const struct attention_chunk *c = &b->a->chunks[t / CHUNK_TOKENS];
        size_t tokens = b->most - t < CHUNK_TOKENS ? b->most - t : CHUNK_TOKENS;
        if (d0 == 0 && part == 0)
            attention_fetch_values(attention_ahead(c, b->chunks - t / CHUNK_TOKENS), b->a->dim);
        if (c->level == 4)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 4, d0, 0, tokens);
        else if (c->level == 2)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 2, d0, part, tokens);
        else if (c->level == 3)
            add_rotated(sum, b->p + t, b->stride, rows, c->data, b->a->dim, 3, d0, part, tokens);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < 2; i++)
            _mm512_storeu_ps(b->back + r * ATTENTION_DIM + d0 + 16 * i, sum[r][i]);
}

/* B for the last dimensions, where dim is no multiple of 64. */
static void weigh_rotated_rest(const struct block *b, size_t rows, size_t d0)
{
    const size_t dim = b->a->dim;
    const struct gather four = gather_of(dim, 4, d0), two = gather_of(dim, 2, d0);
    const __mmask16 exist = dim - d0 < 16 ? 0xff : 0xffff;
    __m512 sum[ATTENTION_QUERIES];
    for (size_t r = 0; r < rows; r++)
        sum[r] = _mm512_setzero_ps();
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
            __m512 v = decode_4(gather(&four, row), 0);
            for (size_t r = 0; r < rows; r++)
                sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(p[r * b->stride + i]), v, sum[r]);
        }
    }
    for (size_t r = 0; r < rows; r++)
        _mm512_mask_storeu_ps(b->back + r * ATTENTION_DIM + d0, exist, sum[r]);
}

/* The last dimensions where dim is no multiple of 16. */
static void weigh_rest(const struct block *b, size_t row, size_t d0)
{
    const struct attention *a = b->a;
    for (size_t d = d0; d < a->dim; d++) {
        float sum = b->codes ? b->sums[row * ATTENTION_DIM + d] : 0;
        for (size_t t = 0; t < b->visible[row]; t++) {
            const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
            if (c->level != 16)
                continue;
            size_t i = CHUNK_TOKENS * a->dim + t % CHUNK_TOKENS * a->dim + d;
            float v = half_to_float(((const uint16_t *)c->data)[i]);
            sum = fmaf(b->p[row * b->stride + t], v, sum);
        }
        if (b->visible[row] > b->first_rotated)
            sum += b->back[row * ATTENTION_DIM + d];
        b->out[row][d] = sum / b->totals[row];
    }
}

enum { WEIGHTS = ATTENTION_QUERIES * CHUNK_TOKENS };

/* A of level 8, group by group. All groups' integers come first: each waits for its largest weight, which
 * takes longer than the products of a group. */
INLINE void weigh_codes(const struct block *b, size_t rows)
{
    const size_t dim = b->a->dim;
    float *steps = b->steps;
    for (size_t c = 0; c < b->chunks; c += ATTENTION_GROUP, steps += ATTENTION_QUERIES) {
        const struct attention_group g = attention_group_of(b->a, c, b->most);
        codes_of_weights(&g, b->p + c * CHUNK_TOKENS, b->stride, rows, b->w + c * WEIGHTS, steps);
    }
    memset(b->sums, 0, rows * ATTENTION_DIM * sizeof *b->sums);
    steps = b->steps;
    for (size_t c = 0; c < b->chunks; c += ATTENTION_GROUP, steps += ATTENTION_QUERIES) {
        const struct attention_group g = attention_group_of(b->a, c, b->most);
        if (!attention_codes(b->a, c, c + g.count))
            continue;
        const uint8_t *w = b->w + c * WEIGHTS;
        size_t d = 0;
        for (; d + 32 <= dim; d += 32)
            codes_weigh(&g, w, rows, d, steps, b->sums);
        for (; d < dim; d += 16)
            codes_weigh_rest(&g, w, rows, d, steps, b->sums);
    }
}

INLINE void score_some(const struct block *b, const float *const *q, const float *const *rotated,
                       const int32_t *starts, const float *units, size_t rows, size_t first, size_t count)
{
    const struct attention_chunk *c = b->a->chunks + first;
    float *scores = b->p + first * CHUNK_TOKENS;
    for (size_t i = 0; c->level != 8 && c->level != 16 && i < count; i++)
        attention_fetch_keys(attention_ahead(c + i, b->chunks - first - i), b->a->dim);
    switch (c->level) {
    case 16:
        score_16(b->a, q, rows, c, count, b->chunks - first, scores, b->stride);
        break;
    case 8:
        codes_score(c, count, b->chunks - first, b->a->dim, b->n, starts, units, rows, scores, b->stride);
        break;
    case 4:
        score_4(b->a, rotated, rows, c, count, 4, scores, b->stride);
        break;
    case 3:
        score_4(b->a, rotated, rows, c, count, 3, scores, b->stride);
        break;
    case 2:
        score_channels(b->a, rotated, rows, c, count, 2, scores, b->stride);
        break;
    case CODEC_PAPER | 4:
        score_channels(b->a, q, rows, c, count, CODEC_PAPER | 4, scores, b->stride);
        break;
    default:
        score_channels(b->a, q, rows, c, count, CODEC_PAPER | 2, scores, b->stride);
    }
}

INLINE void score_all(const struct block *b, const float *const *q, size_t rows)
{
    const struct attention *a = b->a;
    const float *rotated[ATTENTION_QUERIES];
    float units[ATTENTION_QUERIES] = {0};
    int32_t starts[ATTENTION_QUERIES] = {0};
    for (size_t r = 0; r < rows; r++) {
        if (b->codes)
            units[r] = codes_of_query(q[r], a->dim, b->n + r * ATTENTION_DIM, &starts[r]) * a->scale;
        rotated[r] = b->q_rotated + r * ATTENTION_DIM;
        if (b->first_rotated >= b->most)
            continue;
        memcpy(b->q_rotated + r * ATTENTION_DIM, q[r], a->dim * sizeof(float));
        rotate_avx2(b->q_rotated + r * ATTENTION_DIM, a->dim);
    }
    for (size_t c = 0; c < b->chunks;) {
        if (c + 1 < b->chunks && a->chunks[c].level == a->chunks[c + 1].level) {
            score_some(b, q, rotated, starts, units, rows, c, 2);
            c += 2;
        } else {
            score_some(b, q, rotated, starts, units, rows, c, 1);
            c++;
        }
    }
}

INLINE void weigh_all_rotated(const struct block *b, size_t rows)
{
    size_t dim = b->a->dim, d = 0;
    for (; d + 64 <= dim; d += 64) {
        weigh_rotated(b, rows, d, 0);
        weigh_rotated(b, rows, d + 32, 2);
    }
    for (; d < dim; d += 16)
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
    b.n = (int8_t *)(b.sums + ATTENTION_QUERIES * ATTENTION_DIM);
    b.p = a->scratch + ATTENTION_ROOM;
    b.w = (uint8_t *)(b.p + rows * b.stride);
    b.steps = (float *)(b.w + b.chunks * WEIGHTS);
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
    for (; b.paper && d < a->dim; d += 16)
        weigh_paper(&b, rows, d);
    for (; d + 32 <= a->dim; d += 32)
        weigh(&b, rows, d, 2);
    for (; d + 16 <= a->dim; d += 16)
        weigh(&b, rows, d, 1);
    for (size_t r = 0; d < a->dim && r < rows; r++)
        weigh_rest(&b, r, d);
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
