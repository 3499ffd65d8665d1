/* Matrix product, AVX-512 with VNNI; matmul_plain.c defines the canonical order.
 *
 * Here is what serves types in blocks of 256 (block_avx512.c has those of 32): two tiles of 16 rows by
 * TILE_COLUMNS columns are unpacked (tile_avx512.h), then groups of up to GROUP tokens are multiplied with
 * them, while the next rows are fetched from memory; sums of a block of tokens wait between stretches of
 * columns in `sums`. Every row is a lane and takes its blocks in ascending order, so the canonical order
 * holds by construction. */
#include <string.h>

#include "kernels/block_avx512.h"
#include "kernels/few_avx512.h"
#include "kernels/float_avx512.h"
#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/row_avx512.h"
#include "kernels/tile_avx512.h"
#include "kernels/unroll.h"

enum { GROUP = 6, TOKENS = 256, PAIR = 2 * TILE_ROWS, BLOCK = 256 };

/* A stretch of columns of a group of tokens. */
struct group {
    const int8_t *codes; /* of the first token; the others follow stride bytes apart */
    size_t stride;
    float *sums;        /* [tokens][PAIR] */
    uintptr_t ahead;    /* fetched from memory meanwhile; only an address: it may lie behind the weights */
    size_t ahead_bytes; /* with each step */
    float scale[GROUP][TILE_COLUMNS / 256];
    /* Q6_K: -offset * sum of codes, where a dot product starts. */
    _Alignas(64) int32_t start[GROUP][TILE_COLUMNS / 16];
    _Alignas(64) int32_t pairs[GROUP][TILE_COLUMNS / 64]; /* Q4_K, Q5_K: sums of 2 x 32 codes as halves */
};

ALWAYS_INLINE uintptr_t fetch(uintptr_t ahead, size_t bytes)
{
    for (uintptr_t at = ahead; at < ahead + bytes; at += 64)
        _mm_prefetch((const char *)at, _MM_HINT_T0);
    return ahead + bytes;
}

ALWAYS_INLINE __m512i four_codes(const struct group *g, int token, size_t at)
{
    int32_t four;
    memcpy(&four, g->codes + (size_t)token * g->stride + at, 4);
    return _mm512_set1_epi32(four);
}

/* `vectors` steps of four columns from tile vector `first` on. */
ALWAYS_INLINE void dots(const struct tile *tiles, int halves, const struct group *g, int tokens, size_t first,
                        int vectors, __m512i sum[2][GROUP])
{
    UNROLL_FOR (c, vectors) {
        UNROLL_FOR (t, tokens) {
            __m512i x = four_codes(g, t, 4 * (first + (size_t)c));
            UNROLL_FOR (h, halves)
                sum[h][t] = _mm512_dpbusd_epi32(sum[h][t], tiles[h].code[first + (size_t)c], x);
        }
    }
}

/* The end of a block of 256: sum += dot * d * da, and sum -= mins * dmin * da. */
ALWAYS_INLINE void finish_256(bool minimums, int halves, int tokens, const struct tile *tiles, size_t b,
                              struct group *g, __m512i total[2][GROUP])
{
    UNROLL_FOR (t, tokens) {
        __m512 scale = _mm512_set1_ps(g->scale[t][b]);
        UNROLL_FOR (h, halves) {
            float *at = g->sums + t * PAIR + h * TILE_ROWS;
            __m512 both = _mm512_mul_ps(tiles[h].scale[b], scale);
            __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[h][t]), both, _mm512_load_ps(at));
            if (minimums) {
                __m512i mins = _mm512_setzero_si512();
                UNROLL_FOR (i, 4)
                    mins = _mm512_dpwssd_epi32(mins, tiles[h].minimums[4 * b + (size_t)i],
                                               _mm512_set1_epi32(g->pairs[t][4 * b + (size_t)i]));
                both = _mm512_mul_ps(tiles[h].minimum[b], scale);
                sum = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(mins), both, sum);
            }
            _mm512_store_ps(at, sum);
        }
    }
}

/* Q4_K, Q5_K (eight scales a block, minimums) and Q6_K (sixteen scales, an offset). */
ALWAYS_INLINE void product_256(bool minimums, int halves, int tokens, const struct tile *tiles, size_t blocks,
                               struct group *g)
{
    const size_t parts = minimums ? 8 : 16;
    uintptr_t ahead = g->ahead;
    for (size_t b = 0; b < blocks; b++) {
        __m512i total[2][GROUP];
        UNROLL_FOR (t, tokens)
            UNROLL_FOR (h, halves)
                total[h][t] = _mm512_setzero_si512();
        for (size_t p = parts * b; p < parts * (b + 1); p++) {
            __m512i dot[2][GROUP];
            ahead = fetch(ahead, g->ahead_bytes);
            UNROLL_FOR (t, tokens)
                UNROLL_FOR (h, halves)
                    dot[h][t] = minimums ? _mm512_setzero_si512() : _mm512_set1_epi32(g->start[t][p]);
            dots(tiles, halves, g, tokens, (minimums ? 8 : 4) * p, minimums ? 8 : 4, dot);
            UNROLL_FOR (t, tokens)
                UNROLL_FOR (h, halves)
                    total[h][t] =
                        _mm512_add_epi32(total[h][t], _mm512_mullo_epi32(dot[h][t], tiles[h].factor[p]));
        }
        finish_256(minimums, halves, tokens, tiles, b, g, total);
    }
}

typedef void product_fn(const struct tile *tiles, size_t blocks, struct group *g);

#define PRODUCT(name, kind, minimums, halves, tokens)                                                        \
    static void name##_##halves##_##tokens(const struct tile *tiles, size_t blocks, struct group *g)         \
    {                                                                                                        \
        kind(minimums, halves, tokens, tiles, blocks, g);                                                    \
    }
#define PRODUCTS(name, kind, minimums, halves)                                                               \
    PRODUCT(name, kind, minimums, halves, 1)                                                                 \
    PRODUCT(name, kind, minimums, halves, 2)                                                                 \
    PRODUCT(name, kind, minimums, halves, 3)                                                                 \
    PRODUCT(name, kind, minimums, halves, 4)                                                                 \
    PRODUCT(name, kind, minimums, halves, 5)                                                                 \
    PRODUCT(name, kind, minimums, halves, 6)
#define TABLE(name, halves)                                                                                  \
    {                                                                                                        \
        name##_##halves##_1, name##_##halves##_2, name##_##halves##_3, name##_##halves##_4,                  \
            name##_##halves##_5, name##_##halves##_6                                                         \
    }
#define FAMILY(name, kind, minimums)                                                                         \
    PRODUCTS(name, kind, minimums, 1)                                                                        \
    PRODUCTS(name, kind, minimums, 2)                                                                        \
    static product_fn *const name[2][GROUP] = {TABLE(name, 1), TABLE(name, 2)};

FAMILY(shifted_256, product_256, true)
FAMILY(centred_256, product_256, false)

/* What a type needs. */
struct plan {
    const struct matmul *m;
    tile_unpack_fn *unpack;
    product_fn *const (*product)[GROUP];
    size_t block_bytes, row_bytes;
    size_t packed_bytes, scales_at, sums_at; /* of a token's packed row */
    size_t steps; /* in which a block's product is done; with each some memory is fetched */
};

static struct plan plan_of(const struct matmul *m)
{
    bool q6 = m->type == DTYPE_Q6_K;
    return (struct plan){.m = m,
                         .unpack = tile_unpack_avx512(m->type),
                         .product = q6 ? centred_256 : shifted_256,
                         .block_bytes = dtype_row_bytes(m->type, BLOCK),
                         .row_bytes = dtype_row_bytes(m->type, m->columns),
                         .packed_bytes = kernels_packed_bytes(PACK_Q256, m->columns),
                         .scales_at = pack_q256_scales_at(m->columns),
                         .sums_at = pack_q256_sums_at(m->columns),
                         .steps = q6 ? 16 : 8};
}

static void prepare_256(const struct plan *p, const unsigned char *x, size_t column, int t, struct group *g)
{
    const float *scales = (const float *)(x + p->scales_at) + column / 256;
    const int16_t *sums = (const int16_t *)(x + p->sums_at) + column / 16;
    size_t blocks = (p->m->columns - column) / 256;
    for (size_t b = 0; b < blocks && b < TILE_COLUMNS / 256; b++, sums += 16) {
        __m256i v = _mm256_load_si256((const __m256i *)sums);
        g->scale[t][b] = scales[b];
        if (p->m->type == DTYPE_Q6_K) {
            __m512i wide = _mm512_cvtepi16_epi32(v);
            _mm512_store_si512(g->start[t] + 16 * b, _mm512_mullo_epi32(wide, _mm512_set1_epi32(-32)));
        } else { /* sums of 32 columns; a tile's minimums pair columns 0 and 2, 1 and 3 of each four */
            __m256i of_32 = _mm256_madd_epi16(v, _mm256_set1_epi16(1));
            __m128i words = _mm256_cvtepi32_epi16(of_32);
            const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
            _mm_store_si128((__m128i *)(g->pairs[t] + 4 * b), _mm_shuffle_epi8(words, order));
        }
    }
}

/* Points at rows for the unpacking: fewer than 16 are copied, since it always reads 16. */
static const unsigned char *whole_rows(const struct plan *p, size_t row, size_t rows, size_t at, size_t bytes,
                                       unsigned char *copy, size_t *stride)
{
    const unsigned char *first = (const unsigned char *)p->m->weights + row * p->row_bytes + at;
    *stride = p->row_bytes;
    if (rows >= TILE_ROWS)
        return first;
    for (size_t i = 0; i < TILE_ROWS; i++)
        memcpy(copy + i * bytes, first + (i < rows ? i : 0) * p->row_bytes, bytes);
    *stride = bytes;
    return copy;
}

/* Fills the tiles of up to 32 rows from a column on; returns the number of tiles. */
static int fill_tiles(const struct plan *p, size_t row, size_t row_end, size_t column, size_t blocks,
                      struct tile tiles[2])
{
    unsigned char copy[TILE_ROWS * TILE_COLUMNS / 256 * 210];
    size_t at = column / BLOCK * p->block_bytes, bytes = blocks * p->block_bytes, stride;
    int count = 0;
    for (; count < 2 && row < row_end; count++, row += TILE_ROWS) {
        const unsigned char *rows = whole_rows(p, row, row_end - row, at, bytes, copy, &stride);
        p->unpack(rows, stride, blocks, &tiles[count]);
    }
    return count;
}

/* A stretch of columns at work: what its tiles are multiplied with, and what is fetched meanwhile. */
struct stretch {
    const struct plan *p;
    size_t column, blocks;
    size_t first, tokens;
    float *sums;
    uintptr_t ahead;
};

static void multiply_tiles(const struct stretch *s, const struct tile *tiles, int halves)
{
    const struct plan *p = s->p;
    struct group g = {.stride = p->packed_bytes, .ahead = s->ahead};
    size_t steps = s->blocks * p->steps, groups = (s->tokens + GROUP - 1) / GROUP;
    size_t lines = PAIR * s->blocks * p->block_bytes / 64;
    g.ahead_bytes = (lines + groups * steps - 1) / (groups * steps) * 64;
    for (size_t done = 0; done < s->tokens;) {
        size_t left = s->tokens - done;
        /* No group of one or two at the end where the last two could share. */
        int now =
            left >= 2 * GROUP || left <= GROUP ? (int)(left < GROUP ? left : GROUP) : (int)((left + 1) / 2);
        const unsigned char *x = (const unsigned char *)p->m->packed + (s->first + done) * p->packed_bytes;
        g.codes = (const int8_t *)x + s->column;
        g.sums = s->sums + done * PAIR;
        for (int t = 0; t < now; t++, x += p->packed_bytes) {
            /* The next group's would be waited for; a stretch of each lies in one line. */
            uintptr_t next = (uintptr_t)x + (size_t)now * p->packed_bytes;
            _mm_prefetch((const char *)(next + p->scales_at + s->column / BLOCK * 4), _MM_HINT_T0);
            _mm_prefetch((const char *)(next + p->sums_at + s->column / 8), _MM_HINT_T0);
            prepare_256(p, x, s->column, t, &g);
        }
        p->product[halves - 1][now - 1](tiles, s->blocks, &g);
        done += (size_t)now;
        g.ahead += steps * g.ahead_bytes;
        if (g.ahead - s->ahead >= 64 * lines)
            g.ahead_bytes = 0;
    }
}

static void store_sums(const struct plan *p, size_t row, size_t rows, size_t first, size_t tokens,
                       const float *sums)
{
    __mmask16 low = rows >= 16 ? 0xffff : (__mmask16)((1u << rows) - 1);
    __mmask16 high = rows >= 32 ? 0xffff : rows > 16 ? (__mmask16)((1u << (rows - 16)) - 1) : 0;
    for (size_t t = 0; t < tokens; t++, sums += PAIR) {
        float *out = p->m->out + (first + t) * p->m->out_stride + row;
        _mm512_mask_storeu_ps(out, low, _mm512_load_ps(sums));
        if (high)
            _mm512_mask_storeu_ps(out + 16, high, _mm512_load_ps(sums + 16));
    }
}

static void matmul_tiled(const struct matmul *m, size_t row_begin, size_t row_end)
{
    const struct plan p = plan_of(m);
    _Alignas(64) float sums[TOKENS * PAIR];
    struct tile tiles[2];
    struct stretch s = {.p = &p, .sums = sums};
    for (; s.first < m->tokens; s.first += TOKENS) {
        s.tokens = m->tokens - s.first < TOKENS ? m->tokens - s.first : TOKENS;
        for (size_t row = row_begin; row < row_end; row += PAIR) {
            memset(sums, 0, s.tokens * PAIR * sizeof *sums);
            s.ahead = (uintptr_t)m->weights + (row + PAIR) * p.row_bytes;
            for (s.column = 0; s.column < m->columns; s.column += TILE_COLUMNS) {
                size_t columns = m->columns - s.column < TILE_COLUMNS ? m->columns - s.column : TILE_COLUMNS;
                s.blocks = columns / BLOCK;
                int halves = fill_tiles(&p, row, row_end, s.column, s.blocks, tiles);
                multiply_tiles(&s, tiles, halves);
                s.ahead += PAIR * s.blocks * p.block_bytes;
            }
            store_sums(&p, row, row_end - row < PAIR ? row_end - row : PAIR, s.first, s.tokens, sums);
        }
    }
}

static void multiply(const struct matmul *m, size_t row_begin, size_t row_end, enum block_way way)
{
    if (m->tokens == 0)
        return;
    if (kernels_pack_of(m->type) == PACK_F32)
        float_matmul_avx512(m, row_begin, row_end);
    else if (m->tokens == 1 && row_matmul_avx512(m, row_begin, row_end))
        return;
    else if (m->tokens <= FEW_TOKENS)
        few_matmul_avx512(m, row_begin, row_end);
    else if (!block_matmul_avx512(m, row_begin, row_end, way))
        matmul_tiled(m, row_begin, row_end);
}

void matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end)
{
    multiply(m, row_begin, row_end, BLOCK_FASTER);
}

void matmul_avx512_alone(const struct matmul *m, size_t row_begin, size_t row_end)
{
    multiply(m, row_begin, row_end, BLOCK_ALONE);
}

void matmul_avx512_pairs(const struct matmul *m, size_t row_begin, size_t row_end)
{
    multiply(m, row_begin, row_end, BLOCK_PAIRS);
}
