/* Matrix product, AVX2; matmul_plain.c defines the canonical order.
 *
 * For quantised weights: a tile of 8 rows by TILE_COLUMNS columns is unpacked (tile_avx2.h), then groups of
 * up to GROUP tokens are multiplied with it; sums of a block of tokens wait between stretches of columns in
 * `sums`. Every row is a lane and takes its blocks in ascending order, so the canonical order holds by
 * construction.
 *
 * Codes of up to `burst` vectors are multiplied and added in 16 bits: burst x 2 x 127 x the largest code <
 * 2^15. */
#include <string.h>

#include "kernels/float_avx2.h"
#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/tile_avx2.h"
#include "kernels/unroll.h"

enum { GROUP = 4, TOKENS = 256 };

/* A stretch of columns of a group of tokens. */
struct group {
    const int8_t *codes; /* of the first token; the others follow stride bytes apart */
    size_t stride;
    float *sums; /* [tokens][TILE_ROWS] */
    _Alignas(64) float scale[GROUP][TILE_COLUMNS / 32];
    _Alignas(
        64) int32_t start[GROUP][TILE_COLUMNS / 16];    /* -offset * sum of codes; Q6_K: half of it, twice */
    _Alignas(64) float shift[GROUP][TILE_COLUMNS / 32]; /* Q4_1, Q5_1: scale * sum of codes */
    _Alignas(
        64) int32_t pairs[GROUP][TILE_COLUMNS / 64]; /* Q4_K, Q5_K: sums of 2 x 32 codes as 16-bit halves */
};

ALWAYS_INLINE __m256i four_codes(const struct group *g, int token, size_t at)
{
    int32_t four;
    memcpy(&four, g->codes + (size_t)token * g->stride + at, 4);
    return _mm256_set1_epi32(four);
}

/* 16-bit sums of the products of `vectors` vectors from tile vector `first` on. */
ALWAYS_INLINE void dots_16(const struct tile *tile, const struct group *g, int tokens, size_t first,
                           int vectors, __m256i sum[GROUP])
{
    UNROLL_FOR (c, vectors) {
        __m256i code = tile->code[first + (size_t)c];
        UNROLL_FOR (t, tokens) {
            __m256i product = _mm256_maddubs_epi16(code, four_codes(g, t, 4 * (first + (size_t)c)));
            sum[t] = c ? _mm256_add_epi16(sum[t], product) : product;
            IN_ORDER(sum[t]);
        }
    }
}

/* Q8_0: signed codes times signed codes, of which the sign moves to one side; 128 x 127 x 2 < 2^15. */
ALWAYS_INLINE void dots_signed(const struct tile *tile, const struct group *g, int tokens, size_t first,
                               __m256i sum[GROUP])
{
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL_FOR (t, tokens)
        sum[t] = _mm256_setzero_si256();
    UNROLL_FOR (c, 8) {
        __m256i code = tile->code[first + (size_t)c], size = _mm256_abs_epi8(code);
        UNROLL_FOR (t, tokens) {
            __m256i x = _mm256_sign_epi8(four_codes(g, t, 4 * (first + (size_t)c)), code);
            sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones));
            IN_ORDER(sum[t]);
        }
    }
}

/* Types of blocks of 32; burst 0: signed codes. */
ALWAYS_INLINE void product_32(bool minimums, int burst, int tokens, const struct tile *tile, size_t blocks,
                              struct group *g)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sum[GROUP];
    UNROLL_FOR (t, tokens)
        sum[t] = _mm256_load_ps(g->sums + t * TILE_ROWS);
    for (size_t b = 0; b < blocks; b++) {
        __m256i dot[GROUP], part[GROUP];
        if (burst == 0)
            dots_signed(tile, g, tokens, 8 * b, dot);
        for (int c = 0; burst && c < 8; c += burst) {
            dots_16(tile, g, tokens, 8 * b + (size_t)c, burst, part);
            UNROLL_FOR (t, tokens) {
                __m256i wide = _mm256_madd_epi16(part[t], ones);
                dot[t] =
                    _mm256_add_epi32(c ? dot[t] : _mm256_set1_epi32(minimums ? 0 : g->start[t][b]), wide);
            }
        }
        UNROLL_FOR (t, tokens) {
            __m256 both = _mm256_mul_ps(tile->scale[b], _mm256_set1_ps(g->scale[t][b]));
            sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), both, sum[t]);
            if (minimums)
                sum[t] = _mm256_fmadd_ps(tile->minimum[b], _mm256_set1_ps(g->shift[t][b]), sum[t]);
        }
    }
    UNROLL_FOR (t, tokens)
        _mm256_store_ps(g->sums + t * TILE_ROWS, sum[t]);
}

/* The end of a block of 256: sum += dot * d * da, and sum -= mins * dmin * da. */
ALWAYS_INLINE void finish_256(bool minimums, int tokens, const struct tile *tile, size_t b, struct group *g,
                              const __m256i total[GROUP])
{
    UNROLL_FOR (t, tokens) {
        float *at = g->sums + t * TILE_ROWS;
        __m256 scale = _mm256_set1_ps(g->scale[t][b]);
        __m256 both = _mm256_mul_ps(tile->scale[b], scale);
        __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[t]), both, _mm256_load_ps(at));
        if (minimums) {
            __m256i mins = _mm256_setzero_si256();
            UNROLL_FOR (i, 4) {
                size_t at4 = 4 * b + (size_t)i;
                mins = _mm256_add_epi32(
                    mins, _mm256_madd_epi16(tile->minimums[at4], _mm256_set1_epi32(g->pairs[t][at4])));
            }
            both = _mm256_mul_ps(tile->minimum[b], scale);
            sum = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(mins), both, sum);
        }
        _mm256_store_ps(at, sum);
    }
}

/* Q4_K, Q5_K (eight scales a block, minimums) and Q6_K (sixteen scales, an offset). */
ALWAYS_INLINE void product_256(bool minimums, int burst, int tokens, const struct tile *tile, size_t blocks,
                               struct group *g)
{
    const size_t parts = minimums ? 8 : 16, vectors = minimums ? 8 : 4;
    for (size_t b = 0; b < blocks; b++) {
        __m256i total[GROUP], part[GROUP];
        UNROLL_FOR (t, tokens)
            total[t] = _mm256_setzero_si256();
        for (size_t p = parts * b; p < parts * (b + 1); p++) {
            __m256i factor = tile->factor[p];
            for (size_t c = 0; c < vectors; c += (size_t)burst) {
                dots_16(tile, g, tokens, vectors * p + c, burst, part);
                UNROLL_FOR (t, tokens) {
                    total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(part[t], factor));
                    IN_ORDER(total[t]);
                }
            }
            if (minimums)
                continue;
            UNROLL_FOR (t, tokens) {
                __m256i start = _mm256_set1_epi32(g->start[t][p]);
                total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(factor, start));
                IN_ORDER(total[t]);
            }
        }
        finish_256(minimums, tokens, tile, b, g, total);
    }
}

typedef void product_fn(const struct tile *tile, size_t blocks, struct group *g);

#define PRODUCT(name, kind, minimums, burst, tokens)                                                         \
    static void name##_##tokens(const struct tile *tile, size_t blocks, struct group *g)                     \
    {                                                                                                        \
        kind(minimums, burst, tokens, tile, blocks, g);                                                      \
    }
#define FAMILY(name, kind, minimums, burst)                                                                  \
    PRODUCT(name, kind, minimums, burst, 1)                                                                  \
    PRODUCT(name, kind, minimums, burst, 2)                                                                  \
    PRODUCT(name, kind, minimums, burst, 3)                                                                  \
    PRODUCT(name, kind, minimums, burst, 4)                                                                  \
    static product_fn *const name[GROUP] = {name##_1, name##_2, name##_3, name##_4};

FAMILY(q8_0, product_32, false, 0)
FAMILY(q4_0, product_32, false, 8)
FAMILY(q4_1, product_32, true, 8)
FAMILY(q5_0, product_32, false, 4)
FAMILY(q5_1, product_32, true, 4)
FAMILY(q4_k, product_256, true, 8)
FAMILY(q5_k, product_256, true, 4)
FAMILY(q6_k, product_256, false, 2)

/* What a type needs. */
struct plan {
    const struct matmul *m;
    tile_unpack_fn *unpack;
    product_fn *const *product; /* [GROUP] */
    size_t block, block_bytes, row_bytes, packed_bytes;
    int offset; /* on the codes in a tile */
};

static struct plan plan_of(const struct matmul *m)
{
    static const struct {
        enum dtype type;
        product_fn *const *product;
        int offset;
    } types[] = {{DTYPE_Q8_0, q8_0, 0}, {DTYPE_Q4_0, q4_0, 8}, {DTYPE_Q4_1, q4_1, 0}, {DTYPE_Q5_0, q5_0, 16},
                 {DTYPE_Q5_1, q5_1, 0}, {DTYPE_Q4_K, q4_k, 0}, {DTYPE_Q5_K, q5_k, 0}, {DTYPE_Q6_K, q6_k, 32}};
    const struct dtype_info *info = dtype_info((uint32_t)m->type);
    struct plan p = {.m = m,
                     .unpack = tile_unpack_avx2(m->type),
                     .block = info->block_values,
                     .block_bytes = info->block_bytes,
                     .row_bytes = dtype_row_bytes(m->type, m->columns),
                     .packed_bytes = kernels_packed_bytes(kernels_pack_of(m->type), m->columns)};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].type == m->type) {
            p.product = types[i].product;
            p.offset = types[i].offset;
        }
    return p;
}

static void prepare_32(const struct plan *p, const unsigned char *x, size_t column, int t, struct group *g)
{
    const float *scales = (const float *)(x + pack_q32_scales_at(p->m->columns)) + column / 32;
    const int32_t *sums = (const int32_t *)(x + pack_q32_sums_at(p->m->columns)) + column / 32;
    for (size_t b = 0; b < TILE_COLUMNS / 32; b++) { /* the sections are padded that far */
        g->scale[t][b] = scales[b];
        g->start[t][b] = -p->offset * sums[b];
        g->shift[t][b] = scales[b] * (float)sums[b];
    }
}

static int32_t two_halves(int low, int high)
{
    return (int32_t)((uint32_t)(uint16_t)low | (uint32_t)high << 16);
}

static void prepare_256(const struct plan *p, const unsigned char *x, size_t column, int t, struct group *g)
{
    const float *scales = (const float *)(x + pack_q256_scales_at(p->m->columns)) + column / 256;
    const int16_t *s = (const int16_t *)(x + pack_q256_sums_at(p->m->columns)) + column / 16;
    size_t blocks = (p->m->columns - column) / 256;
    for (size_t b = 0; b < blocks && b < TILE_COLUMNS / 256; b++, s += 16) {
        g->scale[t][b] = scales[b];
        for (size_t i = 0; i < 16 && p->offset; i++) /* half the offset: at most 16 x 16 x 127 < 2^15 */
            g->start[t][16 * b + i] = two_halves(-p->offset / 2 * s[i], -p->offset / 2 * s[i]);
        for (size_t i = 0; i < 4; i++) { /* as a tile's minimums: 32s 4 i + j and 4 i + j + 2 */
            const int16_t *from = s + i / 2 * 8 + i % 2 * 2;
            g->pairs[t][4 * b + i] = two_halves(from[0] + from[1], from[4] + from[5]);
        }
    }
}

/* Unpacks a stretch of up to 8 rows; fewer are copied first, since the unpacking always reads 8. */
static void fill_tile(const struct plan *p, size_t row, size_t row_end, size_t column, size_t blocks,
                      struct tile *tile)
{
    unsigned char copy[TILE_ROWS * TILE_COLUMNS / 32 * 34];
    size_t at = column / p->block * p->block_bytes, bytes = blocks * p->block_bytes;
    const unsigned char *first = (const unsigned char *)p->m->weights + row * p->row_bytes + at;
    const char *ahead = NULL;
    if (row + TILE_ROWS <= row_end) {
        if (row + 2 * TILE_ROWS <=
            row_end) /* the same share of the next rows, in the order they lie in memory */
            ahead = (const char *)p->m->weights + (row + TILE_ROWS) * p->row_bytes + TILE_ROWS * at;
        p->unpack(first, p->row_bytes, blocks, ahead, tile);
        return;
    }
    for (size_t i = 0; i < TILE_ROWS; i++)
        memcpy(copy + i * bytes, first + (row + i < row_end ? i : 0) * p->row_bytes, bytes);
    p->unpack(copy, bytes, blocks, NULL, tile);
}

static void multiply_tile(const struct plan *p, const struct tile *tile, size_t column, size_t blocks,
                          size_t first, size_t tokens, float *sums)
{
    struct group g = {.stride = p->packed_bytes};
    for (size_t done = 0; done < tokens;) {
        int now = tokens - done < GROUP ? (int)(tokens - done) : GROUP;
        const unsigned char *x = (const unsigned char *)p->m->packed + (first + done) * p->packed_bytes;
        g.codes = (const int8_t *)x + column;
        g.sums = sums + done * TILE_ROWS;
        for (int t = 0; t < now; t++, x += p->packed_bytes) {
            if (p->block == 32)
                prepare_32(p, x, column, t, &g);
            else
                prepare_256(p, x, column, t, &g);
        }
        p->product[now - 1](tile, blocks, &g);
        done += (size_t)now;
    }
}

static void matmul_tiled(const struct matmul *m, size_t row_begin, size_t row_end)
{
    const struct plan p = plan_of(m);
    _Alignas(64) float sums[TOKENS * TILE_ROWS];
    struct tile tile;
    for (size_t first = 0; first < m->tokens; first += TOKENS) {
        size_t tokens = m->tokens - first < TOKENS ? m->tokens - first : TOKENS;
        for (size_t row = row_begin; row < row_end; row += TILE_ROWS) {
            size_t rows = row_end - row < TILE_ROWS ? row_end - row : TILE_ROWS;
            memset(sums, 0, tokens * TILE_ROWS * sizeof *sums);
            for (size_t column = 0; column < m->columns; column += TILE_COLUMNS) {
                size_t columns = m->columns - column < TILE_COLUMNS ? m->columns - column : TILE_COLUMNS;
                fill_tile(&p, row, row_end, column, columns / p.block, &tile);
                multiply_tile(&p, &tile, column, columns / p.block, first, tokens, sums);
            }
            for (size_t t = 0; t < tokens; t++)
                memcpy(m->out + (first + t) * m->out_stride + row, sums + t * TILE_ROWS, rows * sizeof *sums);
        }
    }
}

void matmul_avx2(const struct matmul *m, size_t row_begin, size_t row_end)
{
    if (kernels_pack_of(m->type) == PACK_F32)
        float_matmul_avx2(m, row_begin, row_end);
    else
        matmul_tiled(m, row_begin, row_end);
}
