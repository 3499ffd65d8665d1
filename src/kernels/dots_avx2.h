/* Dot products of code vectors (unpack_avx2.h) with activations, AVX2 and AVX-VNNI.
 *
 * A sum of some steps has 16 bits for two columns without VNNI, so that steps x 2 x 127 x the largest code
 * must stay below 2^15 (steps: at most 8 for 4-bit codes, 4 for 5 bits, 2 for 6; none for 8, see signed_dot),
 * and 32 bits for four with it. */
#ifndef LLMS_KERNELS_DOTS_AVX2_H
#define LLMS_KERNELS_DOTS_AVX2_H

#include <string.h>

#include "kernels/unpack_avx2.h"

ALWAYS_INLINE __m256i four_codes(const signed char *codes)
{
    int four;
    memcpy(&four, codes, 4);
    return _mm256_set1_epi32(four);
}

/* Adds the products of four columns. */
ALWAYS_INLINE __m256i dot_step(__m256i sum, __m256i code, __m256i x)
{
#if HAVE_VNNI
    return _mm256_dpbusd_avx_epi32(sum, code, x);
#else
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(code, x));
    IN_ORDER(sum);
    return sum;
#endif
}

/* total + sum. */
ALWAYS_INLINE __m256i dot_whole(__m256i total, __m256i sum)
{
    return _mm256_add_epi32(total, HAVE_VNNI ? sum : _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
}

/* total + sum x factor (factor_of). */
ALWAYS_INLINE __m256i dot_scaled(__m256i total, __m256i sum, __m256i factor)
{
    return _mm256_add_epi32(total,
                            HAVE_VNNI ? _mm256_mullo_epi32(sum, factor) : _mm256_madd_epi16(sum, factor));
}

/* Adds the products of four columns of signed codes; size: the codes' magnitudes. The sign goes to the other
 * side: 128 x 127 x 2 < 2^15. */
ALWAYS_INLINE __m256i signed_dot(__m256i sum, __m256i code, __m256i size, __m256i x)
{
    __m256i products = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, code));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
    IN_ORDER(sum);
    return sum;
}

#endif
