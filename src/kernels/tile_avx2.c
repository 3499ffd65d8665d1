/* Unpacking weights into tiles, AVX2 and AVX-VNNI (tile_avx2.h). */
#include "kernels/tile_avx2.h"

ALWAYS_INLINE uintptr_t prefetch(uintptr_t ahead, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)(ahead + i), _MM_HINT_T0);
    return ahead + bytes;
}

ALWAYS_INLINE void tile_32(enum dtype type, size_t bytes, const unsigned char *rows, size_t stride,
                           size_t blocks, uintptr_t ahead, struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, bytes)) {
        ahead = prefetch(ahead, TILE_ROWS * bytes);
        unpack_32(type, &r, tile->code + 8 * b, tile->scale + b, tile->minimum + b);
    }
}

static void tile_q8_0(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q8_0, 34, rows, stride, blocks, ahead, tile);
}

static void tile_q4_0(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q4_0, 18, rows, stride, blocks, ahead, tile);
}

static void tile_q4_1(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q4_1, 20, rows, stride, blocks, ahead, tile);
}

static void tile_q5_0(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q5_0, 22, rows, stride, blocks, ahead, tile);
}

static void tile_q5_1(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q5_1, 24, rows, stride, blocks, ahead, tile);
}

ALWAYS_INLINE void tile_q45(bool five, size_t bytes, const unsigned char *rows, size_t stride, size_t blocks,
                            uintptr_t ahead, struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, bytes)) {
        __m256i head[4], fifths[4];
        ahead = prefetch(ahead, TILE_ROWS * bytes);
        load_16(&r, 0, head);
        tile->scale[b] = low_halves(head[0]);
        tile->minimum[b] = high_halves(head[0]);
        struct pairs p = unpack_pairs(head);
        UNROLL_FOR (i, 8)
            tile->factor[8 * b + (size_t)i] = factor_of(p.factor[i / 4], i % 4);
        UNROLL_FOR (i, 4)
            tile->minimums[4 * b + (size_t)i] = mins_pair(&p, i / 2, i % 2);
        for (size_t part = 0; part < 2; part++) { /* 16 of each 32 columns */
            if (five)
                load_16(&r, 16 + 16 * part, fifths);
            for (size_t g = 0; g < 4; g++) {
                __m256i *code = tile->code + 64 * b + 16 * g + 4 * part;
                unpack_q45(&r, (five ? 48 : 16) + 32 * g + 16 * part, five ? fifths : NULL, code, code + 8);
            }
        }
    }
}

static void tile_q4_k(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    tile_q45(false, 144, rows, stride, blocks, ahead, tile);
}

static void tile_q5_k(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    tile_q45(true, 176, rows, stride, blocks, ahead, tile);
}

static void tile_q6_k(const unsigned char *rows, size_t stride, size_t blocks, uintptr_t ahead,
                      struct tile *tile)
{
    const size_t bytes = 210;
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, bytes)) {
        __m256i scales[4], code[4][4];
        ahead = prefetch(ahead, TILE_ROWS * bytes);
        load_16(&r, 192, scales);
        tile->scale[b] = q6_scale(&r);
        UNROLL_FOR (i, 16)
            tile->factor[16 * b + (size_t)i] = signed_factor_of(scales[i / 4], i % 4);
        UNROLL_FOR (i, 8)
            tile->minimums[8 * b + (size_t)i] = signed_pair(scales[i / 2], i % 2);
        for (size_t i = 0; i < 4; i++) {
            __m256i *to = tile->code + 64 * b + 32 * (i / 2) + 4 * (i % 2);
            unpack_q6(&r, (int)i / 2, (int)i % 2, code);
            UNROLL_FOR (j, 16)
                to[8 * (j / 4) + j % 4] = code[j / 4][j % 4];
        }
    }
}

tile_unpack_fn *VARIANT(tile_unpack)(enum dtype type)
{
    switch (type) {
    case DTYPE_Q8_0:
        return tile_q8_0;
    case DTYPE_Q4_0:
        return tile_q4_0;
    case DTYPE_Q4_1:
        return tile_q4_1;
    case DTYPE_Q5_0:
        return tile_q5_0;
    case DTYPE_Q5_1:
        return tile_q5_1;
    case DTYPE_Q4_K:
        return tile_q4_k;
    case DTYPE_Q5_K:
        return tile_q5_k;
    case DTYPE_Q6_K:
        return tile_q6_k;
    default:
        return NULL;
    }
}
