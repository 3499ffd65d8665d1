/* Unpacking weights into tiles, AVX-512 (tile_avx512.h). Reads no byte outside the blocks. */
#include "kernels/tile_avx512.h"

#include "kernels/unroll.h"

/* Where 16 rows lie: addresses are base + {0, 1, 2, 4} x {1, 3, 5, 7} strides, which x86 adds up for free. */
struct rows {
    const unsigned char *low, *high; /* rows 0 and 8 */
    size_t one, three, five, seven;  /* strides */
};

static inline struct rows rows_at(const unsigned char *first, size_t stride)
{
    return (struct rows){first, first + 8 * stride, stride, 3 * stride, 5 * stride, 7 * stride};
}

ALWAYS_INLINE const unsigned char *row_at(const struct rows *r, int i)
{
    const unsigned char *base = i < 8 ? r->low : r->high;
    switch (i % 8) {
    case 0:
        return base;
    case 1:
        return base + r->one;
    case 2:
        return base + r->one * 2;
    case 3:
        return base + r->three;
    case 4:
        return base + r->one * 4;
    case 5:
        return base + r->five;
    case 6:
        return base + r->three * 2;
    default:
        return base + r->seven;
    }
}

/* 16 bytes of rows i, i + 4, i + 8, i + 12. */
ALWAYS_INLINE __m512i load_4(const struct rows *r, size_t at, int i)
{
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row_at(r, i) + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row_at(r, i + 4) + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row_at(r, i + 8) + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row_at(r, i + 12) + at)), 3);
}

/* 16 bytes at `at` of every row: out[j] has the j-th four bytes of row i in lane i. What is not used of out
 * costs only its share of the shuffles. */
ALWAYS_INLINE void load_columns(const struct rows *r, size_t at, __m512i out[4])
{
    __m512i a = load_4(r, at, 0), b = load_4(r, at, 1), c = load_4(r, at, 2), d = load_4(r, at, 3);
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab, cd);
    out[1] = _mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b);
    cd = _mm512_unpackhi_epi32(c, d);
    out[2] = _mm512_unpacklo_epi64(ab, cd);
    out[3] = _mm512_unpackhi_epi64(ab, cd);
}

ALWAYS_INLINE __m512 low_halves(__m512i v)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}

ALWAYS_INLINE __m512 high_halves(__m512i v)
{
    return low_halves(_mm512_srli_epi32(v, 16));
}

ALWAYS_INLINE __m512i low_nibbles(__m512i v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

ALWAYS_INLINE __m512i high_nibbles(__m512i v)
{
    return low_nibbles(_mm512_srli_epi32(v, 4));
}

/* The nibbles of 16 bytes at `at`: the low ones are values 0..15, the high ones 16..31. */
ALWAYS_INLINE void nibbles(const struct rows *r, size_t at, __m512i code[8])
{
    __m512i v[4];
    load_columns(r, at, v);
    UNROLL for (int j = 0; j < 4; j++)
    {
        code[j] = low_nibbles(v[j]);
        code[4 + j] = high_nibbles(v[j]);
    }
}

/* Adds 16 where a value's fifth bit is set; bit i of a lane of fifths is for value i. */
ALWAYS_INLINE void add_fifths(__m512i fifths, __m512i code[8])
{
    const __m512i sixteen = _mm512_set1_epi8(16);
    UNROLL for (int c = 0; c < 8; c++)
    {
        int byte = c / 2;
        __m512i at = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
        __m512i copies = _mm512_shuffle_epi8(fifths, _mm512_add_epi8(at, _mm512_set1_epi8((char)byte)));
        __mmask64 set =
            _mm512_test_epi8_mask(copies, _mm512_set1_epi32(c % 2 ? (int)0x80402010 : 0x08040201));
        code[c] = _mm512_mask_add_epi8(code[c], set, code[c], sixteen);
    }
}

ALWAYS_INLINE void prefetch(const char *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch(at + i, _MM_HINT_T1);
}

/* One block of 32 columns of 16 rows. */
ALWAYS_INLINE void unpack_32(enum dtype type, const struct rows *r, size_t at, __m512i code[8], __m512 *scale,
                             __m512 *minimum)
{
    __m512i head[4];
    load_columns(r, at, head);
    *scale = low_halves(head[0]);
    if (type == DTYPE_Q4_1 || type == DTYPE_Q5_1)
        *minimum = high_halves(head[0]);
    if (type == DTYPE_Q8_0) {
        load_columns(r, at + 2, code);
        load_columns(r, at + 18, code + 4);
        UNROLL for (int c = 0; c < 8; c++) code[c] = _mm512_xor_si512(code[c], _mm512_set1_epi8((char)0x80));
    } else if (type == DTYPE_Q4_0 || type == DTYPE_Q4_1) {
        nibbles(r, type == DTYPE_Q4_0 ? at + 2 : at + 4, code);
    } else if (type == DTYPE_Q5_0) {
        nibbles(r, at + 6, code);
        add_fifths(_mm512_or_si512(_mm512_srli_epi32(head[0], 16), _mm512_slli_epi32(head[1], 16)), code);
    } else {
        nibbles(r, at + 8, code);
        add_fifths(head[1], code);
    }
}

ALWAYS_INLINE void unpack_all_32(enum dtype type, size_t bytes, const unsigned char *rows, size_t stride,
                                 size_t blocks, const char *ahead, struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++) {
        unpack_32(type, &r, b * bytes, tile->code + 8 * b, tile->scale + b, tile->minimum + b);
        if (ahead)
            prefetch(ahead + b * TILE_ROWS * bytes, TILE_ROWS * bytes);
    }
}

static void unpack_q8_0(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    unpack_all_32(DTYPE_Q8_0, 34, rows, stride, blocks, ahead, tile);
}

static void unpack_q4_0(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    unpack_all_32(DTYPE_Q4_0, 18, rows, stride, blocks, ahead, tile);
}

static void unpack_q4_1(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    unpack_all_32(DTYPE_Q4_1, 20, rows, stride, blocks, ahead, tile);
}

static void unpack_q5_0(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    unpack_all_32(DTYPE_Q5_0, 22, rows, stride, blocks, ahead, tile);
}

static void unpack_q5_1(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    unpack_all_32(DTYPE_Q5_1, 24, rows, stride, blocks, ahead, tile);
}

/* Byte j of each lane. */
ALWAYS_INLINE __m512i byte_of(__m512i v, int j)
{
    return _mm512_and_si512(_mm512_srli_epi32(v, 8 * (unsigned)j), _mm512_set1_epi32(255));
}

/* Scales and minimums of Q4_K and Q5_K from their 12 bytes (blocks.c, pairs): four bytes a lane at a time. */
ALWAYS_INLINE void unpack_pairs(const __m512i head[4], __m512i factor[8], __m512i minimums[4])
{
    const __m512i six = _mm512_set1_epi8(63), two = _mm512_set1_epi8(0x30),
                  words = _mm512_set1_epi32(0x00ff00ff);
    __m512i scales[2], mins[2];
    scales[0] = _mm512_and_si512(head[1], six);
    mins[0] = _mm512_and_si512(head[2], six);
    scales[1] = _mm512_or_si512(low_nibbles(head[3]), _mm512_and_si512(_mm512_srli_epi32(head[1], 2), two));
    mins[1] = _mm512_or_si512(high_nibbles(head[3]), _mm512_and_si512(_mm512_srli_epi32(head[2], 2), two));
    UNROLL for (int i = 0; i < 2; i++)
    {
        UNROLL for (int j = 0; j < 4; j++) factor[4 * i + j] = byte_of(scales[i], j);
        minimums[2 * i] = _mm512_and_si512(mins[i], words);
        minimums[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi32(mins[i], 8), words);
    }
}

/* One block of 256 columns; fifths at 16 and nibbles after them, or nibbles at 16. */
ALWAYS_INLINE void unpack_q45(bool five, const struct rows *r, size_t at, __m512i code[64])
{
    const __m512i sixteen = _mm512_set1_epi8(16);
    __m512i fifths[8], v[8];
    if (five) {
        load_columns(r, at + 16, fifths);
        load_columns(r, at + 32, fifths + 4);
    }
    UNROLL for (int g = 0; g < 4; g++)
    {
        size_t from = at + (five ? 48 : 16) + 32 * (size_t)g;
        load_columns(r, from, v);
        load_columns(r, from + 16, v + 4);
        UNROLL for (int c = 0; c < 8; c++)
        {
            __m512i low = low_nibbles(v[c]), high = high_nibbles(v[c]);
            if (five) {
                low = _mm512_or_si512(low, _mm512_and_si512(_mm512_slli_epi32(fifths[c], 4), sixteen));
                high = _mm512_or_si512(high, _mm512_and_si512(_mm512_slli_epi32(fifths[c], 3), sixteen));
                fifths[c] = _mm512_srli_epi32(fifths[c], 2);
            }
            code[16 * g + c] = low;
            code[16 * g + 8 + c] = high;
        }
    }
}

ALWAYS_INLINE void unpack_all_q45(bool five, const unsigned char *rows, size_t stride, size_t blocks,
                                  const char *ahead, struct tile *tile)
{
    size_t bytes = five ? 176 : 144;
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++) {
        __m512i head[4];
        load_columns(&r, b * bytes, head);
        tile->scale[b] = low_halves(head[0]);
        tile->minimum[b] = high_halves(head[0]);
        unpack_pairs(head, tile->factor + 8 * b, tile->minimums + 4 * b);
        unpack_q45(five, &r, b * bytes, tile->code + 64 * b);
        if (ahead)
            prefetch(ahead + b * TILE_ROWS * bytes, TILE_ROWS * bytes);
    }
}

static void unpack_q4_k(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    unpack_all_q45(false, rows, stride, blocks, ahead, tile);
}

static void unpack_q5_k(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    unpack_all_q45(true, rows, stride, blocks, ahead, tile);
}

/* 16 columns of each quarter of a half of a Q6_K block: `half` 0 or 1, `part` 0 or 1; code is the half's
 * first. */
ALWAYS_INLINE void unpack_q6_part(const struct rows *r, size_t at, int half, int part, __m512i code[32])
{
    const __m512i pair = _mm512_set1_epi8(0x30);
    size_t low = at + 64 * (size_t)half + 16 * (size_t)part;
    __m512i a[4], b[4], high[4];
    load_columns(r, low, a);
    load_columns(r, low + 32, b);
    load_columns(r, at + 128 + 32 * (size_t)half + 16 * (size_t)part, high);
    UNROLL for (int j = 0; j < 4; j++)
    {
        __m512i *to = code + 4 * part + j;
        to[0] = _mm512_or_si512(low_nibbles(a[j]), _mm512_and_si512(_mm512_slli_epi32(high[j], 4), pair));
        to[8] = _mm512_or_si512(low_nibbles(b[j]), _mm512_and_si512(_mm512_slli_epi32(high[j], 2), pair));
        to[16] = _mm512_or_si512(high_nibbles(a[j]), _mm512_and_si512(high[j], pair));
        to[24] = _mm512_or_si512(high_nibbles(b[j]), _mm512_and_si512(_mm512_srli_epi32(high[j], 2), pair));
    }
}

static void unpack_q6_k(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                        struct tile *tile)
{
    const size_t bytes = 210;
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++) {
        size_t at = b * bytes;
        __m512i scales[4], last[4];
        load_columns(&r, at + 192, scales);
        load_columns(&r, at + 194, last);
        tile->scale[b] = high_halves(last[3]);
        UNROLL for (int i = 0; i < 16; i++)
        {
            __m512i top = _mm512_slli_epi32(scales[i / 4], 24 - 8 * (unsigned)(i % 4));
            tile->factor[16 * b + (size_t)i] = _mm512_srai_epi32(top, 24);
        }
        UNROLL for (int i = 0; i < 4; i++)
            unpack_q6_part(&r, at, i / 2, i % 2, tile->code + 64 * b + 32 * (i / 2));
        if (ahead)
            prefetch(ahead + b * TILE_ROWS * bytes, TILE_ROWS * bytes);
    }
}

tile_unpack_fn *tile_unpack_avx512(enum dtype type)
{
    switch (type) {
    case DTYPE_Q8_0:
        return unpack_q8_0;
    case DTYPE_Q4_0:
        return unpack_q4_0;
    case DTYPE_Q4_1:
        return unpack_q4_1;
    case DTYPE_Q5_0:
        return unpack_q5_0;
    case DTYPE_Q5_1:
        return unpack_q5_1;
    case DTYPE_Q4_K:
        return unpack_q4_k;
    case DTYPE_Q5_K:
        return unpack_q5_k;
    case DTYPE_Q6_K:
        return unpack_q6_k;
    default:
        return NULL;
    }
}
