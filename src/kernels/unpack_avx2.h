/* Reading quantised blocks of 8 rows at once into vectors with one row a lane, AVX2; also with AVX-VNNI,
 * which wants codes and factors in another form.
 *
 * A code vector holds four consecutive codes of each row as unsigned bytes: the type's offset (8, 16, 32) is
 * still on them. Q8_0's are signed without VNNI and have an offset of 128 with it. No byte outside the blocks
 * is read. */
#ifndef LLMS_KERNELS_UNPACK_AVX2_H
#define LLMS_KERNELS_UNPACK_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "kernels/unroll.h"

/* The files that are built once for AVX2 and once for AVX-VNNI. */
#ifdef __AVXVNNI__
#define VARIANT(name) name##_avxvnni
#define HAVE_VNNI 1
#else
#define VARIANT(name) name##_avx2
#define HAVE_VNNI 0
#endif

enum { UNPACK_ROWS = 8 };

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

ALWAYS_INLINE const unsigned char *row_at(const struct rows *r, int i)
{
    const unsigned char *base = i < 4 ? r->low : r->high;
    return i % 4 == 3 ? base + r->three : base + r->one * (size_t)(i % 4);
}

/* 16 bytes of rows i and i + 4. */
ALWAYS_INLINE __m256i load_2(const struct rows *r, size_t at, int i)
{
    __m128i low = _mm_loadu_si128((const __m128i *)(row_at(r, i) + at));
    __m128i high = _mm_loadu_si128((const __m128i *)(row_at(r, i + 4) + at));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* 16 bytes at `at` of every row: out[j] has the j-th four bytes of row i in lane i. What is not used of out
 * costs only its share of the shuffles. */
ALWAYS_INLINE void load_16(const struct rows *r, size_t at, __m256i out[4])
{
    __m256i a = load_2(r, at, 0), b = load_2(r, at, 1), c = load_2(r, at, 2), d = load_2(r, at, 3);
    __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    out[0] = _mm256_unpacklo_epi64(ab, cd);
    out[1] = _mm256_unpackhi_epi64(ab, cd);
    ab = _mm256_unpackhi_epi32(a, b);
    cd = _mm256_unpackhi_epi32(c, d);
    out[2] = _mm256_unpacklo_epi64(ab, cd);
    out[3] = _mm256_unpackhi_epi64(ab, cd);
}

/* Lanes below 2^16 as halves. */
ALWAYS_INLINE __m256 halves(__m256i v)
{
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

ALWAYS_INLINE __m256 high_halves(__m256i v)
{
    return halves(_mm256_srli_epi32(v, 16));
}

ALWAYS_INLINE __m256 low_halves(__m256i v)
{
    return halves(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)));
}

ALWAYS_INLINE __m256i low_nibbles(__m256i v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

ALWAYS_INLINE __m256i high_nibbles(__m256i v)
{
    return low_nibbles(_mm256_srli_epi32(v, 4));
}

/* The nibbles of 16 bytes at `at`: the low ones are values 0..15, the high ones 16..31. */
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

/* One block of 32 columns at the rows. */
ALWAYS_INLINE void unpack_32(enum dtype type, const struct rows *r, __m256i code[8], __m256 *scale,
                             __m256 *minimum)
{
    __m256i head[4];
    load_16(r, 0, head);
    *scale = low_halves(head[0]);
    if (type == DTYPE_Q4_1 || type == DTYPE_Q5_1)
        *minimum = high_halves(head[0]);
    if (type == DTYPE_Q8_0) {
        load_16(r, 2, code);
        load_16(r, 18, code + 4);
        UNROLL_FOR (c, 8)
            code[c] = HAVE_VNNI ? _mm256_xor_si256(code[c], _mm256_set1_epi8((char)0x80)) : code[c];
    } else if (type == DTYPE_Q4_0 || type == DTYPE_Q4_1) {
        nibbles(r, type == DTYPE_Q4_0 ? 2 : 4, code);
    } else if (type == DTYPE_Q5_0) {
        nibbles(r, 6, code);
        add_fifths(_mm256_or_si256(_mm256_srli_epi32(head[0], 16), _mm256_slli_epi32(head[1], 16)), code);
    } else {
        nibbles(r, 8, code);
        add_fifths(head[1], code);
    }
}

/* The scales and minimums of Q4_K and Q5_K: byte j of factor[i] and mins[i] is number 4 i + j. */
struct pairs {
    __m256i factor[2], mins[2];
};

/* head: the first 16 bytes of the block (blocks.c tells how 6-bit pairs lie in the last 12 of them). */
ALWAYS_INLINE struct pairs unpack_pairs(const __m256i head[4])
{
    const __m256i six = _mm256_set1_epi8(63), two = _mm256_set1_epi8(0x30);
    struct pairs p;
    p.factor[0] = _mm256_and_si256(head[1], six);
    p.mins[0] = _mm256_and_si256(head[2], six);
    p.factor[1] = _mm256_or_si256(low_nibbles(head[3]), _mm256_and_si256(_mm256_srli_epi32(head[1], 2), two));
    p.mins[1] = _mm256_or_si256(high_nibbles(head[3]), _mm256_and_si256(_mm256_srli_epi32(head[2], 2), two));
    return p;
}

/* Byte j of each lane as a factor: in both 16-bit halves, or in all 32 bits with VNNI. */
ALWAYS_INLINE __m256i factor_of(__m256i v, int j)
{
    if (HAVE_VNNI)
        return _mm256_and_si256(_mm256_srli_epi32(v, 8 * j), _mm256_set1_epi32(255));
    const __m256i both = _mm256_setr_epi32(0x80008000, 0x80048004, 0x80088008, 0x800c800c, 0x80008000,
                                           0x80048004, 0x80088008, 0x800c800c);
    return _mm256_shuffle_epi8(v, _mm256_add_epi8(both, _mm256_set1_epi16((short)j)));
}

/* Likewise a signed byte. */
ALWAYS_INLINE __m256i signed_factor_of(__m256i v, int j)
{
    if (HAVE_VNNI)
        return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * j), 24);
    const __m256i both = _mm256_setr_epi32(0x00800080, 0x04800480, 0x08800880, 0x0c800c80, 0x00800080,
                                           0x04800480, 0x08800880, 0x0c800c80);
    __m256i top = _mm256_shuffle_epi8(v, _mm256_add_epi8(both, _mm256_set1_epi16((short)(j * 256))));
    return _mm256_srai_epi16(top, 8);
}

/* Minimums 4 i + j and 4 i + j + 2 (j 0 or 1) as 16-bit halves. */
ALWAYS_INLINE __m256i mins_pair(const struct pairs *p, int i, int j)
{
    return _mm256_and_si256(_mm256_srli_epi32(p->mins[i], 8 * j), _mm256_set1_epi32(0x00ff00ff));
}

/* Signed bytes j and j + 2 (j 0 or 1) of each lane as 16-bit halves. */
ALWAYS_INLINE __m256i signed_pair(__m256i v, int j)
{
    return _mm256_srai_epi16(j ? v : _mm256_slli_epi16(v, 8), 8);
}

/* 16 columns from the low and 16 from the high nibbles of 16 bytes at `at`, Q4_K or Q5_K. fifths: NULL, or
 * the 16 bytes of Q5_K's fifth bits of those columns, shifted on for the next call. */
ALWAYS_INLINE void unpack_q45(const struct rows *r, size_t at, __m256i fifths[4], __m256i low[4],
                              __m256i high[4])
{
    const __m256i sixteen = _mm256_set1_epi8(16);
    __m256i v[4];
    load_16(r, at, v);
    UNROLL_FOR (c, 4) {
        low[c] = low_nibbles(v[c]);
        high[c] = high_nibbles(v[c]);
        if (fifths) {
            low[c] = _mm256_or_si256(low[c], _mm256_and_si256(_mm256_slli_epi32(fifths[c], 4), sixteen));
            high[c] = _mm256_or_si256(high[c], _mm256_and_si256(_mm256_slli_epi32(fifths[c], 3), sixteen));
            fifths[c] = _mm256_srli_epi32(fifths[c], 2);
        }
    }
}

/* Four times 16 columns of half a Q6_K block, 32 columns apart: the part-th 16 (0 or 1) of each. */
ALWAYS_INLINE void unpack_q6(const struct rows *r, int half, int part, __m256i code[4][4])
{
    const __m256i two = _mm256_set1_epi8(0x30);
    const size_t low_at = 64 * (size_t)half + 16 * (size_t)part;
    __m256i a[4], b[4], high[4];
    load_16(r, 128 + 32 * (size_t)half + 16 * (size_t)part, high);
    load_16(r, low_at, a);
    load_16(r, low_at + 32, b);
    UNROLL_FOR (j, 4) {
        code[0][j] = _mm256_or_si256(low_nibbles(a[j]), _mm256_and_si256(_mm256_slli_epi32(high[j], 4), two));
        code[1][j] = _mm256_or_si256(low_nibbles(b[j]), _mm256_and_si256(_mm256_slli_epi32(high[j], 2), two));
        code[2][j] = _mm256_or_si256(high_nibbles(a[j]), _mm256_and_si256(high[j], two));
        code[3][j] =
            _mm256_or_si256(high_nibbles(b[j]), _mm256_and_si256(_mm256_srli_epi32(high[j], 2), two));
    }
}

ALWAYS_INLINE __m256 q6_scale(const struct rows *r)
{
    __m256i last[4];
    load_16(r, 194, last);
    return high_halves(last[3]);
}

#endif
