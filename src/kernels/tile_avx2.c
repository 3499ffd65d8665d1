/* Unpacking weights into tiles, AVX2 (tile_avx2.h). Reads no byte outside the blocks. */
#include "kernels/tile_avx2.h"

#include "kernels/unroll.h"

struct rows {
    const unsigned char *low, *high; /* rows 0 and 4 */
    size_t one, three;               /* strides */
};

ALWAYS_INLINE struct rows rows_at(const unsigned char *first, size_t stride)
{
    return (struct rows){first, first + 4 * stride, stride, 3 * stride};
}

ALWAYS_INLINE void rows_advance(struct rows *r, size_t bytes)
{
    r->low += bytes;
    r->high += bytes;
}

/* 16 bytes of rows i and i + 4; away: i strides. */
ALWAYS_INLINE __m256i load_2(const struct rows *r, size_t away, size_t at)
{
    __m128i low = _mm_loadu_si128((const __m128i *)(r->low + away + at));
    __m128i high = _mm_loadu_si128((const __m128i *)(r->high + away + at));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* 16 bytes at `at` of every row: out[j] has the j-th four bytes of row i in lane i. */
ALWAYS_INLINE void load_16(const struct rows *r, size_t at, __m256i out[4])
{
    __m256i a = load_2(r, 0, at), b = load_2(r, r->one, at), c = load_2(r, 2 * r->one, at);
    __m256i d = load_2(r, r->three, at);
    __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    out[0] = _mm256_unpacklo_epi64(ab, cd);
    out[1] = _mm256_unpackhi_epi64(ab, cd);
    ab = _mm256_unpackhi_epi32(a, b);
    cd = _mm256_unpackhi_epi32(c, d);
    out[2] = _mm256_unpacklo_epi64(ab, cd);
    out[3] = _mm256_unpackhi_epi64(ab, cd);
}

ALWAYS_INLINE __m256 high_halves(__m256i v)
{
    __m256i words = _mm256_packus_epi32(_mm256_srli_epi32(v, 16), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
}

ALWAYS_INLINE __m256 low_halves(__m256i v)
{
    return high_halves(_mm256_slli_epi32(v, 16));
}

ALWAYS_INLINE __m256i low_nibbles(__m256i v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

ALWAYS_INLINE __m256i high_nibbles(__m256i v)
{
    return low_nibbles(_mm256_srli_epi32(v, 4));
}

ALWAYS_INLINE void nibbles(const struct rows *r, size_t at, __m256i code[8])
{
    __m256i v[4];
    load_16(r, at, v);
    UNROLL_FOR (j, 4) {
        code[j] = low_nibbles(v[j]);
        code[4 + j] = high_nibbles(v[j]);
    }
}

/* Adds 16 where a value's fifth bit is set; bit i of a lane of fifths is for value i. */
ALWAYS_INLINE void add_fifths(__m256i fifths, __m256i code[8])
{
    const __m256i sixteen = _mm256_set1_epi8(16);
    const __m256i lanes =
        _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    UNROLL_FOR (c, 8) {
        __m256i bits = _mm256_set1_epi32(c % 2 ? (int)0x80402010 : 0x08040201);
        __m256i copies = _mm256_shuffle_epi8(fifths, _mm256_add_epi8(lanes, _mm256_set1_epi8((char)(c / 2))));
        __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(copies, bits), bits);
        code[c] = _mm256_or_si256(code[c], _mm256_and_si256(set, sixteen));
    }
}

ALWAYS_INLINE const char *prefetch(const char *ahead, size_t bytes)
{
    if (!ahead)
        return NULL;
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch(ahead + i, _MM_HINT_T0);
    return ahead + bytes;
}

ALWAYS_INLINE void tile_32(enum dtype type, size_t bytes, const unsigned char *rows, size_t stride,
                           size_t blocks, const char *ahead, struct tile *tile)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, bytes)) {
        __m256i head[4], *code = tile->code + 8 * b;
        load_16(&r, 0, head);
        tile->scale[b] = low_halves(head[0]);
        tile->minimum[b] = high_halves(head[0]); /* of no meaning where the type has none */
        if (type == DTYPE_Q8_0) {
            load_16(&r, 2, code);
            load_16(&r, 18, code + 4);
        } else if (type == DTYPE_Q4_0 || type == DTYPE_Q4_1) {
            nibbles(&r, type == DTYPE_Q4_0 ? 2 : 4, code);
        } else if (type == DTYPE_Q5_0) {
            nibbles(&r, 6, code);
            add_fifths(_mm256_or_si256(_mm256_srli_epi32(head[0], 16), _mm256_slli_epi32(head[1], 16)), code);
        } else {
            nibbles(&r, 8, code);
            add_fifths(head[1], code);
        }
        ahead = prefetch(ahead, TILE_ROWS * bytes);
    }
}

static void tile_q8_0(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q8_0, 34, rows, stride, blocks, ahead, tile);
}

static void tile_q4_0(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q4_0, 18, rows, stride, blocks, ahead, tile);
}

static void tile_q4_1(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q4_1, 20, rows, stride, blocks, ahead, tile);
}

static void tile_q5_0(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q5_0, 22, rows, stride, blocks, ahead, tile);
}

static void tile_q5_1(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    tile_32(DTYPE_Q5_1, 24, rows, stride, blocks, ahead, tile);
}

/* Scales and minimums of Q4_K and Q5_K; head: the first 16 bytes of the block (blocks.c tells how 6-bit pairs
 * lie in the last 12 of them). */
ALWAYS_INLINE void unpack_pairs(const __m256i head[4], __m256i factor[8], __m256i minimums[4])
{
    const __m256i six = _mm256_set1_epi8(63), two = _mm256_set1_epi8(0x30),
                  words = _mm256_set1_epi32(0x00ff00ff);
    __m256i factors[2], mins[2];
    factors[0] = _mm256_and_si256(head[1], six);
    mins[0] = _mm256_and_si256(head[2], six);
    factors[1] = _mm256_or_si256(low_nibbles(head[3]), _mm256_and_si256(_mm256_srli_epi32(head[1], 2), two));
    mins[1] = _mm256_or_si256(high_nibbles(head[3]), _mm256_and_si256(_mm256_srli_epi32(head[2], 2), two));
    UNROLL_FOR (i, 2) {
        UNROLL_FOR (j, 4) {
            __m256i byte = _mm256_and_si256(_mm256_srli_epi32(factors[i], 8 * j), _mm256_set1_epi32(255));
            factor[4 * i + j] = _mm256_or_si256(byte, _mm256_slli_epi32(byte, 16));
        }
        minimums[2 * i] = _mm256_and_si256(mins[i], words);
        minimums[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi32(mins[i], 8), words);
    }
}

ALWAYS_INLINE void tile_q45(bool five, size_t bytes, const unsigned char *rows, size_t stride, size_t blocks,
                            const char *ahead, struct tile *tile)
{
    const __m256i sixteen = _mm256_set1_epi8(16);
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, bytes)) {
        __m256i head[4], fifths[4], v[4];
        load_16(&r, 0, head);
        tile->scale[b] = low_halves(head[0]);
        tile->minimum[b] = high_halves(head[0]);
        unpack_pairs(head, tile->factor + 8 * b, tile->minimums + 4 * b);
        for (int part = 0; part < 2; part++) { /* 16 of each 32 columns */
            if (five)
                load_16(&r, 16 + 16 * (size_t)part, fifths);
            for (size_t g = 0; g < 4; g++) {
                __m256i *code = tile->code + 64 * b + 16 * g + 4 * part;
                load_16(&r, (five ? 48 : 16) + 32 * g + 16 * (size_t)part, v);
                UNROLL_FOR (c, 4) {
                    code[c] = low_nibbles(v[c]);
                    code[8 + c] = high_nibbles(v[c]);
                    if (!five)
                        continue;
                    code[c] =
                        _mm256_or_si256(code[c], _mm256_and_si256(_mm256_slli_epi32(fifths[c], 4), sixteen));
                    code[8 + c] = _mm256_or_si256(code[8 + c],
                                                  _mm256_and_si256(_mm256_slli_epi32(fifths[c], 3), sixteen));
                    fifths[c] = _mm256_srli_epi32(fifths[c], 2);
                }
            }
        }
        ahead = prefetch(ahead, TILE_ROWS * bytes);
    }
}

static void tile_q4_k(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    tile_q45(false, 144, rows, stride, blocks, ahead, tile);
}

static void tile_q5_k(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    tile_q45(true, 176, rows, stride, blocks, ahead, tile);
}

/* 16 of each 32 columns of half a Q6_K block; code: the half's first. */
ALWAYS_INLINE void unpack_q6(const struct rows *r, size_t half, size_t part, __m256i *code)
{
    const __m256i two = _mm256_set1_epi8(0x30);
    __m256i a[4], b[4], high[4];
    load_16(r, 64 * half + 16 * part, a);
    load_16(r, 64 * half + 32 + 16 * part, b);
    load_16(r, 128 + 32 * half + 16 * part, high);
    UNROLL_FOR (j, 4) {
        __m256i *to = code + 4 * part + j;
        to[0] = _mm256_or_si256(low_nibbles(a[j]), _mm256_and_si256(_mm256_slli_epi32(high[j], 4), two));
        to[8] = _mm256_or_si256(low_nibbles(b[j]), _mm256_and_si256(_mm256_slli_epi32(high[j], 2), two));
        to[16] = _mm256_or_si256(high_nibbles(a[j]), _mm256_and_si256(high[j], two));
        to[24] = _mm256_or_si256(high_nibbles(b[j]), _mm256_and_si256(_mm256_srli_epi32(high[j], 2), two));
    }
}

static void tile_q6_k(const unsigned char *rows, size_t stride, size_t blocks, const char *ahead,
                      struct tile *tile)
{
    const size_t bytes = 210;
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, bytes)) {
        __m256i scales[4], last[4];
        load_16(&r, 192, scales);
        load_16(&r, 194, last);
        tile->scale[b] = high_halves(last[3]);
        UNROLL_FOR (i, 16) {
            __m256i byte = _mm256_srai_epi32(_mm256_slli_epi32(scales[i / 4], 24 - 8 * (i % 4)), 24);
            __m256i low = _mm256_and_si256(byte, _mm256_set1_epi32(0xffff));
            tile->factor[16 * b + (size_t)i] = _mm256_or_si256(low, _mm256_slli_epi32(byte, 16));
        }
        for (size_t i = 0; i < 4; i++)
            unpack_q6(&r, i / 2, i % 2, tile->code + 64 * b + 32 * (i / 2));
        ahead = prefetch(ahead, TILE_ROWS * bytes);
    }
}

tile_unpack_fn *tile_unpack_avx2(enum dtype type)
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
