/* math_plain.h's definitions, 16 lanes at a time. */
#ifndef LLMS_KERNELS_MATH_AVX512_H
#define LLMS_KERNELS_MATH_AVX512_H

#include <immintrin.h>

#include "kernels/math_plain.h"

/* Of numbers up to EXP_HIGH, and NaN. */
static inline __m512 avx512_exp_low(__m512 x)
{
    const __m512 low = _mm512_set1_ps(EXP_LOW), round = _mm512_set1_ps(EXP_ROUND);
    __m512 clamped = _mm512_max_ps(low, x); /* the second operand for NaN, so NaN stays */
    __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(clamped, _mm512_set1_ps(EXP_LOG2E), round), round);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXP_LN2_HIGH), clamped);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXP_LN2_LOW), r);
    __m512 p = _mm512_set1_ps(EXP_C6);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C1));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    /* p * 2^n, rounded once, as the product with that power is */
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), p, n);
}

static inline __m512 avx512_exp(__m512 x)
{
    return avx512_exp_low(_mm512_min_ps(_mm512_set1_ps(EXP_HIGH), x));
}

static inline float avx512_sum16(__m512 lane)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(lane), _mm512_extractf32x8_ps(lane, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

#endif
