/* The codec's body, compiled once for each instruction set. Before including it a file defines
 *     static void widen8(const uint16_t *half, float *out);     8 halves
 *     static void narrow16(const float *x, uint16_t *half);     16 floats to the nearest halves
 * A head's K, then its V, are brought into the form [dim][16]: a row for a dimension, a lane for a token. All
 * arithmetic is between rows, lane by lane, so that compilers may use vectors of any length without changing
 * a bit. Sums over dimensions run upwards; the two ranges of 16 lanes are added to the result in double
 * precision, K first, by token. Products and sums are rounded each by itself. */
#ifndef LLMS_KERNELS_CODEC_CORE_H
#define LLMS_KERNELS_CODEC_CORE_H

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "kernels/codec.h"

/* NOLINTNEXTLINE(bugprone-macro-parentheses): t is declared here */
#define LANES(t) for (size_t t = 0; t < CODEC_SLOTS; t++)

enum { SCALES_TRIED = 8 };

/* Scales tried, in units of max|x| / mid. Chosen for the least error on normal vectors of 64 and of 128
 * values together (rotated K and V of a model are as good as normal), and with 1 among them for flat vectors,
 * which is what one value that dwarfs the rest becomes. The error is within 0.7 % of what a fine search
 * finds; max|x| / mid alone gives 16 to 21 % more at level 4, more than twice as much at level 2. */
static const float tried_4[SCALES_TRIED] = {0.79f, 0.83f, 0.86f, 0.89f, 0.91f, 0.94f, 0.97f, 1.0f};
static const float tried_2[SCALES_TRIED] = {0.42f, 0.48f, 0.53f, 0.58f, 0.64f, 0.71f, 0.82f, 1.0f};

static inline float codec_norm(size_t block) /* 2^(-log2(block) / 2) */
{
    float norm = 1;
    for (; block >= 4; block /= 4)
        norm *= 0.5f;
    return block == 2 ? norm * 0x1.6a09e6p-1f : norm;
}

/* To the nearest integer, ties to even, for |x| < 2^22. */
static inline float round_lane(float x)
{
    return (x + 12582912.0f) - 12582912.0f;
}

static void load_keys(const struct codec_head *h, float x[][CODEC_SLOTS])
{
    float scale[CODEC_SLOTS];
    uint8_t level = h->from_level;
    if (level == 16) {
        for (size_t d = 0; d < h->dim; d++)
            for (size_t i = 0; i < CODEC_SLOTS; i += 8)
                widen8((const uint16_t *)h->from + d * CODEC_SLOTS + i, x[d] + i);
        return;
    }
    widen8(codec_scales(h->from, level, h->dim), scale);
    widen8(codec_scales(h->from, level, h->dim) + 8, scale + 8);
    if (level == 8) {
        const int8_t *codes = h->from;
        for (size_t d = 0; d < h->dim; d++)
            LANES(t) x[d][t] = (float)codes[d * CODEC_SLOTS + t] * scale[t];
        return;
    }
    size_t in_byte = 8u / level;
    float mid = codec_mid(level);
    for (size_t d = 0; d < h->dim; d++) {
        const uint8_t *codes = (const uint8_t *)h->from + d / in_byte * CODEC_SLOTS;
        int shift = (int)(d % in_byte) * level, mask = (1 << level) - 1;
        LANES(t) x[d][t] = ((float)(codes[t] >> shift & mask) - mid) * scale[t];
    }
}

static void load_values(const struct codec_head *h, float x[][CODEC_SLOTS])
{
    float scale[CODEC_SLOTS], part[8];
    uint8_t level = h->from_level;
    if (level == 16) {
        const uint16_t *halves = (const uint16_t *)h->from + CODEC_SLOTS * h->dim;
        for (size_t d = 0; d < h->dim; d += 8)
            LANES(t)
            {
                widen8(halves + t * h->dim + d, part);
                for (size_t i = 0; i < 8; i++)
                    x[d + i][t] = part[i];
            }
        return;
    }
    widen8(codec_scales(h->from, level, h->dim) + CODEC_SLOTS, scale);
    widen8(codec_scales(h->from, level, h->dim) + CODEC_SLOTS + 8, scale + 8);
    if (level == 8) {
        const int8_t *codes = (const int8_t *)h->from + CODEC_SLOTS * h->dim;
        for (size_t d = 0; d < h->dim; d++)
            LANES(t) x[d][t] = (float)codes[t * h->dim + d] * scale[t];
        return;
    }
    float mid = codec_mid(level);
    for (size_t d = 0; d < h->dim; d++)
        LANES(t) x[d][t] = ((float)codec_value(h->from, level, h->dim, t, d) - mid) * scale[t];
}

static void rotate_lanes(float x[][CODEC_SLOTS], size_t dim)
{
    size_t block = codec_block(dim);
    for (size_t step = 1; step < block; step *= 2)
        for (size_t base = 0; base < dim; base += 2 * step)
            for (size_t d = base; d < base + step; d++)
                LANES(t)
                {
                    float a = x[d][t], b = x[d + step][t];
                    x[d][t] = a + b;
                    x[d + step][t] = a - b;
                }
    float norm = codec_norm(block);
    for (size_t d = 0; d < dim; d++)
        LANES(t) x[d][t] *= norm;
}

static void find_peaks(float x[][CODEC_SLOTS], size_t dim, float peak[CODEC_SLOTS])
{
    float top[CODEC_SLOTS] = {0};
    for (size_t d = 0; d < dim; d++)
        LANES(t)
        {
            float y = fabsf(x[d][t]);
            top[t] = y > top[t] ? y : top[t];
        }
    memcpy(peak, top, sizeof top);
}

/* One scale of level 4 or 2 for each lane: its squared error. */
static void try_scale(float x[][CODEC_SLOTS], size_t dim, uint8_t level, const float scale[CODEC_SLOTS],
                      const float inverse[CODEC_SLOTS], float error[CODEC_SLOTS])
{
    const float mid = codec_mid(level), last = 2 * mid;
    float sum[CODEC_SLOTS] = {0};
    for (size_t d = 0; d < dim; d++)
        LANES(t)
        {
            float y = x[d][t] * inverse[t] + mid;
            y = y > 0 ? y : 0; /* and NaN becomes 0 */
            y = y < last ? y : last;
            float e = x[d][t] - (round_lane(y) - mid) * scale[t];
            sum[t] += e * e;
        }
    memcpy(error, sum, sizeof sum);
}

static void half_scales(const float peak[CODEC_SLOTS], float unit, uint16_t half[CODEC_SLOTS],
                        float scale[CODEC_SLOTS], float inverse[CODEC_SLOTS])
{
    float wanted[CODEC_SLOTS];
    LANES(t)
    {
        float y = peak[t] * unit;
        wanted[t] = y < 65504.0f ? y : 65504.0f;
    }
    narrow16(wanted, half);
    widen8(half, scale);
    widen8(half + 8, scale + 8);
    LANES(t) inverse[t] = scale[t] > 0 ? 1.0f / scale[t] : 0;
}

/* Chooses each lane's scale; returns each lane's error. */
static void choose_scales(float x[][CODEC_SLOTS], size_t dim, uint8_t level, uint16_t half[CODEC_SLOTS],
                          float error[CODEC_SLOTS])
{
    const float *tried = level == 4 ? tried_4 : tried_2;
    float peak[CODEC_SLOTS], scale[CODEC_SLOTS], inverse[CODEC_SLOTS], now[CODEC_SLOTS];
    uint16_t halves[CODEC_SLOTS];
    find_peaks(x, dim, peak);
    for (size_t i = 0; i < SCALES_TRIED; i++) {
        half_scales(peak, tried[i] / codec_mid(level), halves, scale, inverse);
        try_scale(x, dim, level, scale, inverse, now);
        LANES(t) if (i == 0 || now[t] < error[t])
        {
            error[t] = now[t];
            half[t] = halves[t];
        }
    }
}

static void make_codes(float x[][CODEC_SLOTS], size_t dim, uint8_t level, const uint16_t half[CODEC_SLOTS],
                       uint8_t codes[][CODEC_SLOTS])
{
    const float mid = codec_mid(level), last = 2 * mid;
    float scale[CODEC_SLOTS], inverse[CODEC_SLOTS];
    widen8(half, scale);
    widen8(half + 8, scale + 8);
    LANES(t) inverse[t] = scale[t] > 0 ? 1.0f / scale[t] : 0;
    for (size_t d = 0; d < dim; d++)
        LANES(t)
        {
            float y = x[d][t] * inverse[t] + mid;
            y = y > 0 ? y : 0;
            y = y < last ? y : last;
            codes[d][t] = (uint8_t)(int)round_lane(y);
        }
}

/* Level 8, as store() has it (attention.h); error as above. */
static void make_codes_8(float x[][CODEC_SLOTS], size_t dim, uint16_t half[CODEC_SLOTS],
                         float error[CODEC_SLOTS], uint8_t codes[][CODEC_SLOTS])
{
    float peak[CODEC_SLOTS], scale[CODEC_SLOTS], sum[CODEC_SLOTS] = {0};
    find_peaks(x, dim, peak);
    LANES(t)
    {
        float y = peak[t] / 127.0f;
        peak[t] = y > 65504.0f ? 65504.0f : y;
    }
    narrow16(peak, half);
    widen8(half, scale);
    widen8(half + 8, scale + 8);
    for (size_t d = 0; d < dim; d++)
        LANES(t)
        {
            float y = scale[t] > 0 ? x[d][t] / scale[t] : 0;
            y = y > -127 ? y : -127; /* and NaN becomes -127 */
            y = round_lane(y < 127 ? y : 127);
            codes[d][t] = (uint8_t)(int8_t)(int)y;
            float e = x[d][t] - y * scale[t];
            sum[t] += e * e;
        }
    memcpy(error, sum, sizeof sum);
}

static void pack_keys(uint8_t codes[][CODEC_SLOTS], size_t dim, uint8_t level, uint8_t *out)
{
    size_t in_byte = 8u / level;
    for (size_t d = 0; d < dim; d += in_byte, out += CODEC_SLOTS) {
        memcpy(out, codes[d], CODEC_SLOTS);
        for (size_t i = 1; i < in_byte; i++)
            LANES(t) out[t] = (uint8_t)(out[t] | codes[d + i][t] << i * level);
    }
}

static void pack_values(uint8_t codes[][CODEC_SLOTS], size_t dim, uint8_t level, uint8_t *out)
{
    size_t in_byte = 8u / level, group = 16 * in_byte, stride = dim / in_byte;
    for (size_t base = 0; base < dim; base += group) {
        size_t bytes = (dim - base < group ? dim - base : group) / in_byte;
        for (size_t j = 0; j < bytes; j++) {
            uint8_t packed[CODEC_SLOTS];
            memcpy(packed, codes[base + j], CODEC_SLOTS);
            for (size_t i = 1; i < in_byte; i++)
                LANES(t) packed[t] = (uint8_t)(packed[t] | codes[base + i * bytes + j][t] << i * level);
            LANES(t) out[t * stride + base / in_byte + j] = packed[t];
        }
    }
}

/* Level 16: halves, [dim][16] or [16][dim]. */
static double write_halves(float x[][CODEC_SLOTS], size_t dim, size_t tokens, int keys, uint16_t *out)
{
    float sum[CODEC_SLOTS] = {0}, back[CODEC_SLOTS];
    double total = 0;
    for (size_t d = 0; d < dim; d++) {
        uint16_t half[CODEC_SLOTS];
        narrow16(x[d], half);
        widen8(half, back);
        widen8(half + 8, back + 8);
        LANES(t)
        {
            float e = x[d][t] - back[t];
            sum[t] += e * e;
            out[keys ? d * CODEC_SLOTS + t : t * dim + d] = half[t];
        }
    }
    for (size_t t = 0; t < tokens; t++)
        total += sum[t];
    return total;
}

/* K or V: x comes in as `from` has it. */
static double lower(const struct codec_head *h, float x[][CODEC_SLOTS], int keys)
{
    uint8_t level = h->to_level, codes[CODEC_DIM][CODEC_SLOTS], *to = h->to;
    uint16_t half[CODEC_SLOTS], *scales = (uint16_t *)(uintptr_t)codec_scales(h->to, level, h->dim);
    float error[CODEC_SLOTS];
    double total = 0;
    for (size_t d = 0; h->tokens < CODEC_SLOTS && d < h->dim; d++)
        for (size_t t = h->tokens; t < CODEC_SLOTS; t++)
            x[d][t] = 0;
    to += keys ? 0 : CODEC_SLOTS * h->dim * level / 8;
    if (level == 16)
        return write_halves(x, h->dim, h->tokens, keys, (uint16_t *)(void *)to);
    if (level == 8) {
        make_codes_8(x, h->dim, half, error, codes);
    } else {
        if (h->from_level >= 8)
            rotate_lanes(x, h->dim);
        choose_scales(x, h->dim, level, half, error);
        make_codes(x, h->dim, level, half, codes);
    }
    for (size_t t = h->tokens; t < CODEC_SLOTS; t++) {
        half[t] = 0;
        for (size_t d = 0; d < h->dim; d++)
            codes[d][t] = 0;
    }
    if (keys)
        pack_keys(codes, h->dim, level, to);
    else
        pack_values(codes, h->dim, level, to);
    memcpy(scales + (keys ? 0 : CODEC_SLOTS), half, sizeof half);
    for (size_t t = 0; t < h->tokens; t++)
        total += error[t];
    return total;
}

static double convert(const struct codec_head *h)
{
    _Alignas(64) float x[CODEC_DIM][CODEC_SLOTS];
    load_keys(h, x);
    double error = lower(h, x, 1);
    load_values(h, x);
    return error + lower(h, x, 0);
}

#endif
