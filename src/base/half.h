/* IEEE half precision and bfloat16 to and from float, exactly as hardware does it (round to nearest, ties to
 * even; subnormals kept; NaN stays NaN). */
#ifndef LLMS_BASE_HALF_H
#define LLMS_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) /* infinity or NaN */
        return bits_float(sign | 0x7f800000 | (rest & 0x3ff ? (rest << 13) | 0x400000 : 0));
    /* Shift exponent and mantissa into place; scaling by 2^112 fixes the bias and normalises subnormals. */
    float magnitude = bits_float(rest << 13) * 0x1p112f;
    return bits_float(float_bits(magnitude) | sign);
}

static inline uint16_t float_to_half(float x)
{
    uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
    if (rest > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff));
    if (rest >= 0x477ff000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) { /* below the least normal half: let the adder round at 2^-24 */
        float shifted = bits_float(rest) + 0.5f;
        return (uint16_t)(sign | (float_bits(shifted) - 0x3f000000));
    }
    rest += 0xfff + (rest >> 13 & 1);
    return (uint16_t)(sign | (rest - 0x38000000) >> 13);
}

static inline float bf16_to_float(uint16_t b)
{
    return bits_float((uint32_t)b << 16);
}

static inline uint16_t float_to_bf16(float x)
{
    uint32_t u = float_bits(x);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

#endif
