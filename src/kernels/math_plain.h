/* The scalar definitions that every instruction set follows operation by operation (kernels.h, exactness). */
#ifndef LLMS_KERNELS_MATH_PLAIN_H
#define LLMS_KERNELS_MATH_PLAIN_H

#include <math.h>
#include <stdint.h>

#include "base/half.h"

/* e^x, relative error below 2e-7 for x in [-87, 88]; 0 below -87, and x above 88 counts as 88. The reduction
 * is Cody and Waite's; the polynomial is exp's Taylor series on [-ln2/2, ln2/2] with its last coefficients
 * fitted. */
#define EXP_LOW (-87.0f)
#define EXP_HIGH 88.0f
#define EXP_LOG2E 1.44269504f
#define EXP_LN2_HIGH 0.693359375f
#define EXP_LN2_LOW (-2.12194440e-4f)
#define EXP_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */
#define EXP_C6 1.9875691500e-4f
#define EXP_C5 1.3981999507e-3f
#define EXP_C4 8.3334519073e-3f
#define EXP_C3 4.1665795894e-2f
#define EXP_C2 1.6666665459e-1f
#define EXP_C1 5.0000001201e-1f

static inline float plain_exp(float x)
{
    float clamped = x < EXP_LOW ? EXP_LOW : x > EXP_HIGH ? EXP_HIGH : x;
    float n = fmaf(clamped, EXP_LOG2E, EXP_ROUND) - EXP_ROUND;
    float r = fmaf(n, -EXP_LN2_HIGH, clamped);
    r = fmaf(n, -EXP_LN2_LOW, r);
    float p = EXP_C6;
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, EXP_C1);
    p = fmaf(p, r * r, r) + 1.0f;
    int32_t e = x == x ? (int32_t)n : 0; /* NaN: only the conversion must be defined; the product stays NaN */
    float y = p * bits_float((uint32_t)(e + 127) << 23);
    return x < EXP_LOW ? 0.0f : y;
}

/* Adds 16 lanes: i and i+8, then i and i+4, i and i+2, i and i+1. */
static inline float plain_sum16(const float lane[16])
{
    float a[8];
    for (int i = 0; i < 8; i++)
        a[i] = lane[i] + lane[i + 8];
    for (int i = 0; i < 4; i++)
        a[i] = a[i] + a[i + 4];
    a[0] = a[0] + a[2];
    a[1] = a[1] + a[3];
    return a[0] + a[1];
}

#endif
