/* Reading quantised blocks of 16 rows at once into vectors with one row a lane, AVX-512.
 *
 * A code vector holds four consecutive codes of each row as unsigned bytes: the type's offset (8, 16, 32,
 * 128) is still on them. No byte outside the blocks is read. */
#ifndef LLMS_KERNELS_UNPACK_AVX512_H
#define LLMS_KERNELS_UNPACK_AVX512_H

#include <immintrin.h>
#include <stddef.h>

#include "base/dtype.h"
#include "kernels/unroll.h"

enum { UNPACK_ROWS = 16 };

/* Where 16 rows lie: addresses are base + {0, 1, 2, 4} x {1, 3, 5, 7} strides, which x86 adds up for free. */
struct rows {
    const unsigned char *low, *high; /* rows 0 and 8 */
    size_t one, three, five, seven;  /* strides */
};

ALWAYS_INLINE struct rows rows_at(const unsigned char *first, size_t stride)
{
    return (struct rows){first, first + 8 * stride, stride, 3 * stride, 5 * stride, 7 * stride};
}

ALWAYS_INLINE void rows_advance(struct rows *r, size_t bytes)
{
    r->low += bytes;
    r->high += bytes;
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

/* In each lane of 16 bytes: out[j] gets the j-th four bytes of a, b, c and d. */
ALWAYS_INLINE void transpose(__m512i a, __m512i b, __m512i c, __m512i d, __m512i out[4])
{
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab, cd);
    out[1] = _mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b);
    cd = _mm512_unpackhi_epi32(c, d);
    out[2] = _mm512_unpacklo_epi64(ab, cd);
    out[3] = _mm512_unpackhi_epi64(ab, cd);
}

/* 16 bytes at `at` of every row: out[j] has the j-th four bytes of row i in lane i. What is not used of out
 * costs only its share of the shuffles. */
ALWAYS_INLINE void load_16(const struct rows *r, size_t at, __m512i out[4])
{
    transpose(load_4(r, at, 0), load_4(r, at, 1), load_4(r, at, 2), load_4(r, at, 3), out);
}

/* 32 bytes of rows i and i + 4. */
ALWAYS_INLINE __m512i load_2(const struct rows *r, size_t at, int i)
{
    __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(row_at(r, i) + at)));
    return _mm512_inserti64x4(v, _mm256_loadu_si256((const __m256i *)(row_at(r, i + 4) + at)), 1);
}

/* Likewise 32 bytes, in fewer operations. */
ALWAYS_INLINE void load_32(const struct rows *r, size_t at, __m512i out[8])
{
    __m512i low[4], high[4]; /* rows 0..7 and 8..15, each with the two halves of the 32 bytes in turn */
    transpose(load_2(r, at, 0), load_2(r, at, 1), load_2(r, at, 2), load_2(r, at, 3), low);
    transpose(load_2(r, at, 8), load_2(r, at, 9), load_2(r, at, 10), load_2(r, at, 11), high);
    UNROLL_FOR (j, 4) {
        out[j] = _mm512_shuffle_i32x4(low[j], high[j], 0x88);
        out[4 + j] = _mm512_shuffle_i32x4(low[j], high[j], 0xdd);
    }
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
    load_16(r, at, v);
    UNROLL_FOR (j, 4) {
        code[j] = low_nibbles(v[j]);
        code[4 + j] = high_nibbles(v[j]);
    }
}

/* Adds 16 where a value's fifth bit is set; bit i of a lane of fifths is for value i. */
ALWAYS_INLINE void add_fifths(__m512i fifths, __m512i code[8])
{
    const __m512i sixteen = _mm512_set1_epi8(16);
    const __m512i lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    UNROLL_FOR (c, 8) {
        __m512i byte = _mm512_add_epi8(lanes, _mm512_set1_epi8((char)(c / 2)));
        __m512i copies = _mm512_shuffle_epi8(fifths, byte);
        __mmask64 set =
            _mm512_test_epi8_mask(copies, _mm512_set1_epi32(c % 2 ? (int)0x80402010 : 0x08040201));
        code[c] = _mm512_mask_add_epi8(code[c], set, code[c], sixteen);
    }
}

/* One block of 32 columns at `at`. */
ALWAYS_INLINE void unpack_32(enum dtype type, const struct rows *r, size_t at, __m512i code[8], __m512 *scale,
                             __m512 *minimum)
{
    __m512i head[4];
    load_16(r, at, head);
    *scale = low_halves(head[0]);
    if (type == DTYPE_Q4_1 || type == DTYPE_Q5_1)
        *minimum = high_halves(head[0]);
    if (type == DTYPE_Q8_0) {
        load_32(r, at + 2, code);
        UNROLL_FOR (c, 8)
            code[c] = _mm512_xor_si512(code[c], _mm512_set1_epi8((char)0x80));
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

/* Byte j of each lane of 32 bits. */
ALWAYS_INLINE __m512i byte_of(__m512i v, int j)
{
    return _mm512_and_si512(_mm512_srli_epi32(v, 8 * (unsigned)j), _mm512_set1_epi32(255));
}

/* The scales and minimums of Q4_K and Q5_K: byte j of factor[i] and mins[i] is number 4 i + j. */
struct pairs {
    __m512i factor[2], mins[2];
};

/* head: the first 16 bytes of the block (blocks.c tells how 6-bit pairs lie in the last 12 of them). */
ALWAYS_INLINE struct pairs unpack_pairs(const __m512i head[4])
{
    const __m512i six = _mm512_set1_epi8(63), two = _mm512_set1_epi8(0x30);
    struct pairs p;
    p.factor[0] = _mm512_and_si512(head[1], six);
    p.mins[0] = _mm512_and_si512(head[2], six);
    p.factor[1] = _mm512_or_si512(low_nibbles(head[3]), _mm512_and_si512(_mm512_srli_epi32(head[1], 2), two));
    p.mins[1] = _mm512_or_si512(high_nibbles(head[3]), _mm512_and_si512(_mm512_srli_epi32(head[2], 2), two));
    return p;
}

/* Minimums 4 i + j and 4 i + j + 2 (j 0 or 1) as 16-bit halves. */
ALWAYS_INLINE __m512i mins_pair(const struct pairs *p, int i, int j)
{
    return _mm512_and_si512(_mm512_srli_epi32(p->mins[i], 8 * (unsigned)j), _mm512_set1_epi32(0x00ff00ff));
}

/* 64 columns of Q4_K or Q5_K from 32 bytes at `at`, 32 from the low nibbles and 32 from the high ones. Q5_K's
 * fifths are its 32 bytes of them, which must be shifted two bits on after each call. */
ALWAYS_INLINE void unpack_q45(const struct rows *r, size_t at, const __m512i fifths[8], __m512i low[8],
                              __m512i high[8])
{
    const __m512i sixteen = _mm512_set1_epi8(16);
    __m512i v[8];
    load_32(r, at, v);
    UNROLL_FOR (c, 8) {
        low[c] = low_nibbles(v[c]);
        high[c] = high_nibbles(v[c]);
        if (fifths) {
            low[c] = _mm512_or_si512(low[c], _mm512_and_si512(_mm512_slli_epi32(fifths[c], 4), sixteen));
            high[c] = _mm512_or_si512(high[c], _mm512_and_si512(_mm512_slli_epi32(fifths[c], 3), sixteen));
        }
    }
}

/* 64 columns of half a Q6_K block (half 0 or 1): those at 0..31 and 64..95 (pair 0), or 32..63 and 96..127
 * (pair 1); high: the half's 32 bytes of high bits. */
ALWAYS_INLINE void unpack_q6(const struct rows *r, size_t at, int half, int pair, const __m512i high[8],
                             __m512i first[8], __m512i second[8])
{
    const __m512i two = _mm512_set1_epi8(0x30);
    __m512i v[8];
    load_32(r, at + 64 * (size_t)half + 32 * (size_t)pair, v);
    UNROLL_FOR (c, 8) {
        __m512i low = pair ? _mm512_slli_epi32(high[c], 2) : _mm512_slli_epi32(high[c], 4);
        __m512i top = pair ? _mm512_srli_epi32(high[c], 2) : high[c];
        first[c] = _mm512_or_si512(low_nibbles(v[c]), _mm512_and_si512(low, two));
        second[c] = _mm512_or_si512(high_nibbles(v[c]), _mm512_and_si512(top, two));
    }
}

/* Scale j (0..3) of four signed bytes. */
ALWAYS_INLINE __m512i signed_byte_of(__m512i v, int j)
{
    return _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * (unsigned)j), 24);
}

ALWAYS_INLINE __m512 q6_scale(const struct rows *r, size_t at)
{
    __m512i last[4];
    load_16(r, at + 194, last);
    return high_halves(last[3]);
}

#endif
