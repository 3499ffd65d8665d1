/* What the kernels of one token share beside row_shared_avx2.h. */
#ifndef LLMS_KERNELS_ROW_SHARED_AVX512_H
#define LLMS_KERNELS_ROW_SHARED_AVX512_H

#include <string.h>

#include "kernels/row_shared_avx2.h"

row_fn row_q4_k_avx512, row_q5_k_avx512, row_q6_k_avx512; /* a step: 256 columns */

/* The four bytes at `at` of every row. Seven masks: as many as there are registers for them. */
ALWAYS_INLINE __m256i load_word(struct rows *r, size_t at)
{
    hide_rows(r);
    __m256i v = _mm256_broadcastd_epi32(_mm_loadu_si32(row_at(r, 0) + at));
    UNROLL_FOR (i, ROWS - 1)
        v = _mm256_mask_broadcastd_epi32(v, (__mmask8)(2u << i), _mm_loadu_si32(row_at(r, i + 1) + at));
    return v;
}

ALWAYS_INLINE __m512i join(__m256i low, __m256i high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* 32 bytes at a, then 32 at b. */
ALWAYS_INLINE __m512i load_two(const void *a, const void *b)
{
    return join(_mm256_loadu_si256(a), _mm256_loadu_si256(b));
}

ALWAYS_INLINE __m512i load_twice(const void *a)
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(a));
}

/* Fetches part `part` of `parts` of so many lines where v stands in the program: spread over the work, since
 * the processor keeps few lines waiting for memory. The compiler would gather them. */
ALWAYS_INLINE __m512i fetch_after(__m512i v, uintptr_t ahead, int lines, int part, int parts)
{
    int first = lines * part / parts;
    UNROLL_FOR (i, lines * (part + 1) / parts - first)
        PREFETCH_AFTER(v, ahead + 64 * (uintptr_t)(first + i));
    return v;
}

/* Fetches what the row itself will need soon: mostly from the second cache, where it fell from the first. */
ALWAYS_INLINE __m512i fetch_own(__m512i v, const unsigned char *row, int near, int bytes)
{
    UNROLL_FOR (i, (bytes + 63) / 64)
        PREFETCH_AFTER(v, (uintptr_t)row + (uintptr_t)(near + 64 * i));
    return v;
}

/* In each lane of 16 bytes: the sums of the four numbers of a, b, c and d. */
ALWAYS_INLINE __m512i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d)
{
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* The quarters of 16 bytes: the first and third, then the second and fourth. */
ALWAYS_INLINE __m512i even_first(__m512i v)
{
    return _mm512_shuffle_i64x2(v, v, 0xd8);
}

/* The first and second half of a each added up, then b's. */
ALWAYS_INLINE __m512i sum_halves(__m512i a, __m512i b)
{
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

#endif
