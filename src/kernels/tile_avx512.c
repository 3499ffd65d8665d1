/* Unpacking weights into tiles, AVX-512 (tile_avx512.h). */
#include "kernels/tile_avx512.h"

#include "kernels/unpack_avx512.h"
#include "kernels/unroll.h"

ALWAYS_INLINE void tile_32(enum dtype type, size_t bytes, const unsigned char *rows, size_t stride,
                           size_t blocks, struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++) {
        unpack_32(type, &r, b * bytes, tile->code + 8 * b, tile->scale + b, tile->minimum + b);
    }
}

static void tile_q8_0(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    tile_32(DTYPE_Q8_0, 34, rows, stride, blocks, tile);
}

/* Two blocks of 18 bytes with fewer loads than one after the other: 32 bytes reach to the second one's
 * scale, 16 hold its codes. */
ALWAYS_INLINE void tile_q4_0_pair(const struct rows *r, __m512i code[16], __m512 scale[2])
{
    __m512i v[8], last[4];
    load_32(r, 0, v);
    load_16(r, 20, last);
    scale[0] = low_halves(v[0]);
    scale[1] = high_halves(v[4]);
    UNROLL_FOR (j, 4) {
        /* The first block's codes start in the middle of a lane's four bytes. */
        __m512i swapped = _mm512_mask_blend_epi16(0x55555555, v[j], v[j + 1]);
        __m512i codes = _mm512_rol_epi32(swapped, 16);
        code[j] = low_nibbles(codes);
        code[4 + j] = high_nibbles(codes);
        code[8 + j] = low_nibbles(last[j]);
        code[12 + j] = high_nibbles(last[j]);
    }
}

static void tile_q4_0(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    size_t b = 0;
    for (; b + 2 <= blocks; b += 2, rows_advance(&r, 36))
        tile_q4_0_pair(&r, tile->code + 8 * b, tile->scale + b);
    if (b < blocks)
        unpack_32(DTYPE_Q4_0, &r, 0, tile->code + 8 * b, tile->scale + b, tile->minimum + b);
}

static void tile_q4_1(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    tile_32(DTYPE_Q4_1, 20, rows, stride, blocks, tile);
}

static void tile_q5_0(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    tile_32(DTYPE_Q5_0, 22, rows, stride, blocks, tile);
}

static void tile_q5_1(const unsigned char *rows, size_t stride, size_t blocks, struct tile *tile)
{
    tile_32(DTYPE_Q5_1, 24, rows, stride, blocks, tile);
}

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
