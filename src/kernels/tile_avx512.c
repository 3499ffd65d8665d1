/* Unpacking weights into tiles, AVX-512 (tile_avx512.h). */
#include "kernels/tile_avx512.h"

#include "kernels/unpack_avx512.h"
#include "kernels/unroll.h"

ALWAYS_INLINE void tile_q45(bool five, size_t bytes, const unsigned char *rows, size_t stride, size_t blocks,
                            struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, bytes)) {
        __m512i head[4], fifths[8], *code = tile->code + 64 * b;
        load_16(&r, 0, head);
        tile->scale[b] = low_halves(head[0]);
        tile->minimum[b] = high_halves(head[0]);
        struct pairs p = unpack_pairs(head);
        UNROLL_FOR (i, 8)
            tile->factor[8 * b + (size_t)i] = byte_of(p.factor[i / 4], i % 4);
        UNROLL_FOR (i, 4)
            tile->minimums[4 * b + (size_t)i] = mins_pair(&p, i / 2, i % 2);
        if (five)
            load_32(&r, 16, fifths);
        UNROLL_FOR (g, 4) {
            size_t at = (five ? 48 : 16) + 32 * (size_t)g;
            unpack_q45(&r, at, five ? fifths : NULL, code + 16 * g, code + 16 * g + 8);
            if (five)
                UNROLL_FOR (c, 8)
                    fifths[c] = _mm512_srli_epi32(fifths[c], 2);
        }
    }
}

static void tile_q4_k(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    tile_q45(false, 144, rows, stride, blocks, tile);
}

static void tile_q5_k(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    tile_q45(true, 176, rows, stride, blocks, tile);
}

static void tile_q6_k(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, 210)) {
        __m512i scales[4], high[8];
        load_16(&r, 192, scales);
        tile->scale[b] = q6_scale(&r, 0);
        UNROLL_FOR (i, 16)
            tile->factor[16 * b + (size_t)i] = signed_byte_of(scales[i / 4], i % 4);
        UNROLL_FOR (half, 2) {
            __m512i *code = tile->code + 64 * b + 32 * half;
            load_32(&r, 128 + 32 * (size_t)half, high);
            unpack_q6(&r, 0, half, 0, high, code, code + 16);
            unpack_q6(&r, 0, half, 1, high, code + 8, code + 24);
        }
    }
}

tile_unpack_fn *tile_unpack_avx512(enum dtype type)
{
    switch (type) {
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
