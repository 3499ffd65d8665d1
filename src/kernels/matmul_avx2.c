/* Matrix product, AVX2 and AVX-VNNI; matmul_plain.c defines the canonical order.
 *
 * For quantised weights: two tiles of 8 rows by TILE_COLUMNS columns are unpacked (tile_avx2.h), then groups
 * of up to GROUP tokens are multiplied with them; sums of a block of tokens wait between stretches of columns
 * in `sums`. Every row is a lane and takes its blocks in ascending order, so the canonical order holds by
 * construction. */
#include <string.h>

#include "kernels/dots_avx2.h"
#include "kernels/few_avx2.h"
#include "kernels/float_avx2.h"
#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/row_avx2.h"
#include "kernels/tile_avx2.h"
#include "kernels/unroll.h"

enum { GROUP = 4, TOKENS = 256, PAIR = 2 * TILE_ROWS };

/* A stretch of columns of a group of tokens. */
struct group {
    const signed char *codes; /* of the first token; the others follow stride bytes apart */
    const float *scales;      /* likewise */
    size_t stride;
    float *sums; /* [tokens][PAIR] */
    _Alignas(
        32) int32_t start[GROUP][TILE_COLUMNS / 32]; /* -offset * sum of codes: where a dot product starts */
    _Alignas(32) float shift[GROUP][TILE_COLUMNS / 32];   /* Q4_1, Q5_1: scale * sum of codes */
    _Alignas(32) int32_t pairs[GROUP][TILE_COLUMNS / 32]; /* K types: sums of codes as 16-bit halves, as a
                                                             tile's minimums */
};

ALWAYS_INLINE __m256 scale_of(const struct group *g, int token, size_t b)
{
    return _mm256_set1_ps(*(const float *)((const char *)g->scales + (size_t)token * g->stride + 4 * b));
}

/* Sums of `vectors` steps from tile vector `first` on. */
ALWAYS_INLINE void dots(const struct tile *tiles, int halves, const struct group *g, int tokens, size_t first,
                        int vectors, __m256i sum[2][GROUP])
{
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (h, halves)
            sum[h][t] = _mm256_setzero_si256();
    UNROLL_FOR (c, vectors) {
        size_t at = first + (size_t)c;
        __m256i code[2];
        UNROLL_FOR (h, halves)
            code[h] = tiles[h].code[at];
        UNROLL_FOR (t, tokens) {
            __m256i x = four_codes(g->codes + (size_t)t * g->stride + 4 * at);
            UNROLL_FOR (h, halves)
                sum[h][t] = dot_step(sum[h][t], code[h], x);
        }
    }
}

/* Q8_0 without VNNI: whole dot products of a block. */
ALWAYS_INLINE void signed_dots(const struct tile *tiles, int halves, const struct group *g, int tokens,
                               size_t first, __m256i dot[2][GROUP])
{
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (h, halves)
            dot[h][t] = _mm256_setzero_si256();
    UNROLL_FOR (c, 8) {
        size_t at = first + (size_t)c;
        __m256i code[2], size[2];
        UNROLL_FOR (h, halves) {
            code[h] = tiles[h].code[at];
            size[h] = _mm256_abs_epi8(code[h]);
        }
        UNROLL_FOR (t, tokens) {
            __m256i x = four_codes(g->codes + (size_t)t * g->stride + 4 * at);
            UNROLL_FOR (h, halves)
                dot[h][t] = signed_dot(dot[h][t], code[h], size[h], x);
        }
    }
}

/* The dot products of a block of 32 in steps of `burst` vectors; burst 0: signed codes. */
ALWAYS_INLINE void dots_32(bool minimums, int burst, int halves, int tokens, const struct tile *tiles,
                           size_t b, const struct group *g, __m256i dot[2][GROUP])
{
    if (burst == 0) {
        signed_dots(tiles, halves, g, tokens, 8 * b, dot);
        return;
    }
    UNROLL_FOR (c, 8 / burst) {
        __m256i part[2][GROUP];
        dots(tiles, halves, g, tokens, 8 * b + (size_t)(c * burst), burst, part);
        UNROLL_FOR (t, tokens) {
            __m256i start = c || minimums ? _mm256_setzero_si256() : _mm256_set1_epi32(g->start[t][b]);
            UNROLL_FOR (h, halves)
                dot[h][t] = dot_whole(c ? dot[h][t] : start, part[h][t]);
        }
    }
}

/* Types of blocks of 32. */
ALWAYS_INLINE void product_32(bool minimums, int burst, int halves, int tokens, const struct tile *tiles,
                              size_t blocks, struct group *g)
{
    for (size_t b = 0; b < blocks; b++) {
        __m256i dot[2][GROUP];
        dots_32(minimums, burst, halves, tokens, tiles, b, g, dot);
        UNROLL_FOR (t, tokens) {
            __m256 scale = scale_of(g, t, b);
            UNROLL_FOR (h, halves) {
                float *at = g->sums + t * PAIR + h * TILE_ROWS;
                __m256 both = _mm256_mul_ps(tiles[h].scale[b], scale);
                __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[h][t]), both, _mm256_load_ps(at));
                if (minimums)
                    sum = _mm256_fmadd_ps(tiles[h].minimum[b], _mm256_set1_ps(g->shift[t][b]), sum);
                _mm256_store_ps(at, sum);
            }
        }
    }
}

/* The end of a block of 256: sum += dot * d * da, and sum -= mins * dmin * da. Q6_K's minimums are its
 * factors, which the offset of 32 was multiplied with. */
ALWAYS_INLINE void finish_256(bool minimums, int halves, int tokens, const struct tile *tiles, size_t b,
                              struct group *g, __m256i total[2][GROUP])
{
    const int pairs = minimums ? 4 : 8;
    UNROLL_FOR (t, tokens) {
        __m256 scale = scale_of(g, t, b);
        UNROLL_FOR (h, halves) {
            float *at = g->sums + t * PAIR + h * TILE_ROWS;
            __m256 both = _mm256_mul_ps(tiles[h].scale[b], scale);
            __m256i mins = _mm256_setzero_si256();
            UNROLL_FOR (i, pairs) {
                size_t pair = (size_t)pairs * b + (size_t)i;
                __m256i sums = _mm256_set1_epi32(g->pairs[t][pair]);
                mins = _mm256_add_epi32(mins, _mm256_madd_epi16(tiles[h].minimums[pair], sums));
            }
            __m256i dot = minimums ? total[h][t] : _mm256_sub_epi32(total[h][t], _mm256_slli_epi32(mins, 5));
            __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, _mm256_load_ps(at));
            if (minimums) {
                both = _mm256_mul_ps(tiles[h].minimum[b], scale);
                sum = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(mins), both, sum);
            }
            _mm256_store_ps(at, sum);
        }
    }
}

/* Q4_K, Q5_K (eight scales a block, minimums) and Q6_K (sixteen scales, an offset). */
ALWAYS_INLINE void product_256(bool minimums, int burst, int halves, int tokens, const struct tile *tiles,
                               size_t blocks, struct group *g)
{
    const size_t parts = minimums ? 8 : 16, vectors = minimums ? 8 : 4;
    for (size_t b = 0; b < blocks; b++) {
        __m256i total[2][GROUP], part[2][GROUP];
        UNROLL_FOR (t, tokens)
            UNROLL_FOR (h, halves)
                total[h][t] = _mm256_setzero_si256();
        for (size_t p = parts * b; p < parts * (b + 1); p++) {
            for (size_t c = 0; c < vectors; c += (size_t)burst) {
                dots(tiles, halves, g, tokens, vectors * p + c, burst, part);
                UNROLL_FOR (t, tokens)
                    UNROLL_FOR (h, halves)
                        total[h][t] = dot_scaled(total[h][t], part[h][t], tiles[h].factor[p]);
            }
        }
        finish_256(minimums, halves, tokens, tiles, b, g, total);
    }
}

typedef void product_fn(const struct tile *tiles, size_t blocks, struct group *g);

#define PRODUCT(name, kind, minimums, burst, halves, tokens)                                                 \
    static void name##_##halves##_##tokens(const struct tile *tiles, size_t blocks, struct group *g)         \
    {                                                                                                        \
        kind(minimums, burst, halves, tokens, tiles, blocks, g);                                             \
    }
#define PRODUCTS(name, kind, minimums, burst, halves)                                                        \
    PRODUCT(name, kind, minimums, burst, halves, 1)                                                          \
    PRODUCT(name, kind, minimums, burst, halves, 2)                                                          \
    PRODUCT(name, kind, minimums, burst, halves, 3)                                                          \
    PRODUCT(name, kind, minimums, burst, halves, 4)
#define TABLE(name, halves)                                                                                  \
    {                                                                                                        \
        name##_##halves##_1, name##_##halves##_2, name##_##halves##_3, name##_##halves##_4                   \
    }
#define FAMILY(name, kind, minimums, burst)                                                                  \
    PRODUCTS(name, kind, minimums, burst, 1)                                                                 \
    PRODUCTS(name, kind, minimums, burst, 2)                                                                 \
    static product_fn *const name[2][GROUP] = {TABLE(name, 1), TABLE(name, 2)};
#define BURST(without_vnni, with_vnni) (HAVE_VNNI ? (with_vnni) : (without_vnni))

FAMILY(q8_0, product_32, false, BURST(0, 8))
FAMILY(q4_0, product_32, false, 8)
FAMILY(q4_1, product_32, true, 8)
FAMILY(q5_0, product_32, false, BURST(4, 8))
FAMILY(q5_1, product_32, true, BURST(4, 8))
FAMILY(q4_k, product_256, true, 8)
FAMILY(q5_k, product_256, true, BURST(4, 8))
FAMILY(q6_k, product_256, false, BURST(2, 4))

/* What a type needs. */
struct plan {
    const struct matmul *m;
    tile_unpack_fn *unpack;
    product_fn *const (*product)[GROUP];
    size_t block, block_bytes, row_bytes, packed_bytes;
    int offset; /* on the codes in a tile */
};

static struct plan plan_of(const struct matmul *m)
{
    static const struct {
        enum dtype type;
        product_fn *const (*product)[GROUP];
        int offset;
    } types[] = {{DTYPE_Q8_0, q8_0, BURST(0, 128)},
                 {DTYPE_Q4_0, q4_0, 8},
                 {DTYPE_Q4_1, q4_1, 0},
                 {DTYPE_Q5_0, q5_0, 16},
                 {DTYPE_Q5_1, q5_1, 0},
                 {DTYPE_Q4_K, q4_k, 0},
                 {DTYPE_Q5_K, q5_k, 0},
                 {DTYPE_Q6_K, q6_k, 0}};
    const struct dtype_info *info = dtype_info((uint32_t)m->type);
    struct plan p = {.m = m,
                     .unpack = VARIANT(tile_unpack)(m->type),
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
    const int32_t *starts = (const int32_t *)(x + pack_q32_starts_at(p->m->columns)) + column / 32;
    for (size_t b = 0; b < TILE_COLUMNS / 32; b += 8) { /* the sections are padded that far */
        __m256i start = _mm256_load_si256((const __m256i *)(starts + b));
        __m256i sum = _mm256_srai_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), start), 3);
        __m256 shift = _mm256_mul_ps(_mm256_load_ps(scales + b), _mm256_cvtepi32_ps(sum));
        _mm256_store_si256((__m256i *)(g->start[t] + b),
                           _mm256_mullo_epi32(start, _mm256_set1_epi32(p->offset / PACK_START)));
        _mm256_store_ps(g->shift[t] + b, shift);
    }
}

/* Pairs of sums, 0 with 2 and 1 with 3 of each four, as a tile's minimums. */
static void prepare_256(const struct plan *p, const unsigned char *x, size_t column, int t, struct group *g)
{
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5,
                                           2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const int16_t *sums = (const int16_t *)(x + pack_q256_sums_at(p->m->columns)) + column / 16;
    size_t blocks = (p->m->columns - column) / 256;
    for (size_t b = 0; b < blocks && b < TILE_COLUMNS / 256; b++, sums += 16) {
        __m256i of_16 = _mm256_load_si256((const __m256i *)sums);
        if (p->m->type == DTYPE_Q6_K) {
            _mm256_store_si256((__m256i *)(g->pairs[t] + 8 * b), _mm256_shuffle_epi8(of_16, order));
            continue;
        }
        __m256i of_32 = _mm256_madd_epi16(of_16, _mm256_set1_epi16(1));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(of_32, of_32), 0x08);
        _mm_store_si128((__m128i *)(g->pairs[t] + 4 * b),
                        _mm_shuffle_epi8(_mm256_castsi256_si128(words), _mm256_castsi256_si128(order)));
    }
}

/* Points at rows for the unpacking: fewer than 8 are copied, since it always reads 8. */
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

/* Fills the tiles of up to 16 rows from a column on; returns the number of tiles. */
static int fill_tiles(const struct plan *p, size_t row, size_t row_end, size_t column, size_t blocks,
                      struct tile tiles[2])
{
    unsigned char copy[TILE_ROWS * TILE_COLUMNS / 32 * 34];
    size_t at = column / p->block * p->block_bytes, bytes = blocks * p->block_bytes, stride;
    /* The same share of the next pair, in the order it lies in memory; only an address, perhaps behind the
     * end. */
    uintptr_t ahead = (uintptr_t)p->m->weights + (row + PAIR) * p->row_bytes + PAIR * at;
    int count = 0;
    for (; count < 2 && row < row_end; count++, row += TILE_ROWS) {
        const unsigned char *rows = whole_rows(p, row, row_end - row, at, bytes, copy, &stride);
        p->unpack(rows, stride, blocks, ahead, &tiles[count]);
        ahead += TILE_ROWS * bytes;
    }
    return count;
}

static void multiply_tiles(const struct plan *p, const struct tile *tiles, int halves, size_t column,
                           size_t blocks, size_t first, size_t tokens, float *sums)
{
    struct group g = {.stride = p->packed_bytes};
    size_t scales_at =
        p->block == 32 ? pack_q32_scales_at(p->m->columns) : pack_q256_scales_at(p->m->columns);
    for (size_t done = 0; done < tokens;) {
        int now = tokens - done < GROUP ? (int)(tokens - done) : GROUP;
        const unsigned char *x = (const unsigned char *)p->m->packed + (first + done) * p->packed_bytes;
        g.codes = (const signed char *)x + column;
        g.scales = (const float *)(x + scales_at) + column / p->block;
        g.sums = sums + done * PAIR;
        for (int t = 0; t < now; t++, x += p->packed_bytes) {
            if (p->block == 32)
                prepare_32(p, x, column, t, &g);
            else
                prepare_256(p, x, column, t, &g);
        }
        p->product[halves - 1][now - 1](tiles, blocks, &g);
        done += (size_t)now;
    }
}

static void store_sums(const struct plan *p, size_t row, size_t rows, size_t first, size_t tokens,
                       const float *sums)
{
    for (size_t t = 0; t < tokens; t++)
        memcpy(p->m->out + (first + t) * p->m->out_stride + row, sums + t * PAIR, rows * sizeof *sums);
}

static void matmul_tiled(const struct matmul *m, size_t row_begin, size_t row_end)
{
    const struct plan p = plan_of(m);
    _Alignas(64) float sums[TOKENS * PAIR];
    struct tile tiles[2];
    for (size_t first = 0; first < m->tokens; first += TOKENS) {
        size_t tokens = m->tokens - first < TOKENS ? m->tokens - first : TOKENS;
        for (size_t row = row_begin; row < row_end; row += PAIR) {
            memset(sums, 0, tokens * PAIR * sizeof *sums);
            for (size_t column = 0; column < m->columns; column += TILE_COLUMNS) {
                size_t columns = m->columns - column < TILE_COLUMNS ? m->columns - column : TILE_COLUMNS;
                int halves = fill_tiles(&p, row, row_end, column, columns / p.block, tiles);
                multiply_tiles(&p, tiles, halves, column, columns / p.block, first, tokens, sums);
            }
            store_sums(&p, row, row_end - row < PAIR ? row_end - row : PAIR, first, tokens, sums);
        }
    }
}

void VARIANT(matmul)(const struct matmul *m, size_t row_begin, size_t row_end)
{
    if (m->tokens == 0)
        return;
    if (kernels_pack_of(m->type) == PACK_F32)
        float_matmul_avx2(m, row_begin, row_end);
    else if (m->tokens == 1 && VARIANT(row_matmul)(m, row_begin, row_end))
        return;
    else if (m->tokens <= FEW_TOKENS)
        VARIANT(few_matmul)(m, row_begin, row_end);
    else
        matmul_tiled(m, row_begin, row_end);
}
