/* The codec's body, compiled once for each instruction set. Before including it a file defines
 *     static void widen8(const uint16_t *half, float *out);     8 halves
 *     static void narrow16(const float *x, uint16_t *half);     16 floats to the nearest halves
 * A head's K, then its V, are brought into the form [dim][16]: a row for a dimension, a lane for a token. All
 * arithmetic is between rows, lane by lane (the least and the largest of a row have no order), so that
 * compilers may use vectors of any length without changing a bit. Sums over dimensions run upwards; the two
 * ranges of 16 lanes are added up in double precision, by token. Products and sums are
 * rounded each by itself. */
#ifndef LLMS_KERNELS_CODEC_CORE_H
#define LLMS_KERNELS_CODEC_CORE_H

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "kernels/codec.h"

/* NOLINTNEXTLINE(bugprone-macro-parentheses): t is declared here */
#define LANES(t) for (size_t t = 0; t < CODEC_SLOTS; t++)

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

static void widen_row(const uint16_t *half, size_t count, float *out)
{
    for (size_t i = 0; i < count; i += 8)
        widen8(half + i, out + i);
}

/* From levels 4, 3 and 2. */
static void load_codes(const struct codec_head *h, float x[][CODEC_SLOTS], bool keys)
{
    uint8_t level = h->from_level, codes[CODEC_SLOTS];
    float scale[CODEC_SLOTS], step[CODEC_DIM], low[CODEC_DIM];
    bool by_channel = codec_by_channel(level, !keys);
    if (by_channel)
        codec_channels(h->from, level, h->dim, !keys, 0, h->dim, step, low);
    else
        widen_row(codec_scales(h->from, level, h->dim) + (keys ? 0 : CODEC_SLOTS), CODEC_SLOTS, scale);
    for (size_t d = 0; d < h->dim; d++) {
        LANES(t)
        codes[t] =
            (uint8_t)(keys ? codec_key(h->from, level, d, t) : codec_value(h->from, level, h->dim, t, d));
        if (by_channel)
            LANES(t) x[d][t] = fmaf((float)codes[t], step[d], low[d]);
        else
            LANES(t) x[d][t] = ((float)codes[t] - CODEC_MID) * scale[t];
    }
}

static void load_keys(const struct codec_head *h, float x[][CODEC_SLOTS])
{
    float scale[CODEC_SLOTS];
    if (h->from_level == 16) {
        for (size_t d = 0; d < h->dim; d++)
            for (size_t i = 0; i < CODEC_SLOTS; i += 8)
                widen8((const uint16_t *)h->from + d * CODEC_SLOTS + i, x[d] + i);
    } else if (h->from_level == 8) {
        const int8_t *codes = h->from;
        widen_row(codec_scales(h->from, 8, h->dim), CODEC_SLOTS, scale);
        for (size_t d = 0; d < h->dim; d++)
            LANES(t) x[d][t] = (float)codes[d * CODEC_SLOTS + t] * scale[t];
    } else {
        load_codes(h, x, true);
    }
}

static void load_values(const struct codec_head *h, float x[][CODEC_SLOTS])
{
    float scale[CODEC_SLOTS], part[8];
    if (h->from_level == 16) {
        const uint16_t *halves = (const uint16_t *)h->from + CODEC_SLOTS * h->dim;
        for (size_t d = 0; d < h->dim; d += 8)
            LANES(t)
            {
                widen8(halves + t * h->dim + d, part);
                for (size_t i = 0; i < 8; i++)
                    x[d + i][t] = part[i];
            }
    } else if (h->from_level == 8) {
        const int8_t *codes = (const int8_t *)h->from + CODEC_SLOTS * h->dim;
        widen_row(codec_scales(h->from, 8, h->dim) + CODEC_SLOTS, CODEC_SLOTS, scale);
        for (size_t d = 0; d < h->dim; d++)
            LANES(t) x[d][t] = (float)codes[t * h->dim + d] * scale[t];
    } else {
        load_codes(h, x, false);
    }
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

/* A unit of codes as a half, what it is then, and 1 / that; 0 where it vanishes. */
static void make_units(const float wanted[CODEC_SLOTS], uint16_t half[CODEC_SLOTS], float unit[CODEC_SLOTS],
                       float inverse[CODEC_SLOTS])
{
    float held[CODEC_SLOTS];
    LANES(t) held[t] = wanted[t] < 65504.0f ? wanted[t] : 65504.0f;
    narrow16(held, half);
    widen_row(half, CODEC_SLOTS, unit);
    LANES(t) inverse[t] = unit[t] > 0 ? 1.0f / unit[t] : 0;
}

/* Level 4: one scale a lane. error: each lane's. */
static void make_codes_4(float x[][CODEC_SLOTS], size_t dim, uint16_t half[CODEC_SLOTS],
                         float error[CODEC_SLOTS], uint8_t codes[][CODEC_SLOTS])
{
    const float last = 2 * CODEC_MID;
    float wanted[CODEC_SLOTS], scale[CODEC_SLOTS], inverse[CODEC_SLOTS], sum[CODEC_SLOTS] = {0};
    find_peaks(x, dim, wanted);
    LANES(t) wanted[t] /= CODEC_MID;
    make_units(wanted, half, scale, inverse);
    for (size_t d = 0; d < dim; d++)
        LANES(t)
        {
            float y = x[d][t] * inverse[t] + CODEC_MID;
            y = y > 0 ? y : 0; /* and NaN becomes 0 */
            y = round_lane(y < last ? y : last);
            codes[d][t] = (uint8_t)(int)y;
            float e = x[d][t] - (y - CODEC_MID) * scale[t];
            sum[t] += e * e;
        }
    memcpy(error, sum, sizeof sum);
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

/* By channel: the row of a dimension goes from its least value to its largest, over the tokens there are. */
static void find_ends(const float *row, size_t tokens, float *low, float *high)
{
    float least = 65504.0f, most = -65504.0f;
    for (size_t t = 0; t < tokens; t++) {
        float y = row[t] < 65504.0f ? row[t] : 65504.0f;
        y = row[t] > -65504.0f ? y : -65504.0f; /* and NaN becomes that */
        least = y < least ? y : least;
        most = y > most ? y : most;
    }
    *low = least;
    *high = most;
}

/* The paper's: steps [dim], lows [dim]. */
static void write_ends(const float *low, const float *high, size_t dim, unsigned bits, uint16_t *out)
{
    float step[CODEC_DIM] = {0}, least[CODEC_DIM] = {0};
    uint16_t half[2][CODEC_DIM];
    for (size_t d = 0; d < dim; d++) {
        step[d] = (high[d] - low[d]) / (float)((1u << bits) - 1);
        least[d] = low[d];
    }
    for (size_t d = 0; d < dim; d += CODEC_SLOTS) {
        narrow16(step + d, half[0] + d);
        narrow16(least + d, half[1] + d);
    }
    memcpy(out, half[0], dim * sizeof *out);
    memcpy(out + dim, half[1], dim * sizeof *out);
}

static inline float within(float x, float least, float most)
{
    x = x > least ? x : least;
    return x < most ? x : most;
}

/* Level 2's: the two units, and a byte a dimension. */
static void write_end_codes(const float *low, const float *high, size_t dim, uint16_t *units, uint8_t *bytes)
{
    float wanted[CODEC_SLOTS] = {0}, unit[CODEC_SLOTS], inverse[CODEC_SLOTS];
    uint16_t half[CODEC_SLOTS];
    for (size_t d = 0; d < dim; d++) {
        float centre = fabsf(low[d] + high[d]) * 0.5f, step = (high[d] - low[d]) / 3;
        wanted[0] = centre > wanted[0] ? centre : wanted[0];
        wanted[1] = step > wanted[1] ? step : wanted[1];
    }
    wanted[0] /= 7;
    wanted[1] /= 15;
    make_units(wanted, half, unit, inverse);
    memcpy(units, half, 2 * sizeof *half);
    for (size_t d = 0; d < dim; d++) {
        float centre = round_lane(within((low[d] + high[d]) * 0.5f * inverse[0], -7, 7));
        float step = round_lane(within((high[d] - low[d]) / 3 * inverse[1], 1, 15));
        bytes[d] = (uint8_t)(((int)centre + 8) << 4 | (int)step);
    }
}

/* By channel: the scales of K or V, then the codes that are nearest with them. */
static void make_channels(const struct codec_head *h, float x[][CODEC_SLOTS], bool keys,
                          float error[CODEC_SLOTS], uint8_t codes[][CODEC_SLOTS])
{
    const unsigned bits = codec_bits(codec_part(h->to_level, !keys));
    const float last = (float)((1u << bits) - 1);
    const uint8_t *bytes;
    const uint16_t *units = codec_units(h->to, h->to_level, h->dim, !keys, &bytes);
    float low[CODEC_DIM], high[CODEC_DIM], step[CODEC_DIM], sum[CODEC_SLOTS] = {0};
    for (size_t d = 0; d < h->dim; d++)
        find_ends(x[d], h->tokens, &low[d], &high[d]);
    if (h->to_level & CODEC_PAPER)
        write_ends(low, high, h->dim, bits,
                   (uint16_t *)(uintptr_t)codec_scales(h->to, h->to_level, h->dim) + (keys ? 0 : 2 * h->dim));
    else
        write_end_codes(low, high, h->dim, (uint16_t *)(uintptr_t)units, (uint8_t *)(uintptr_t)bytes);
    codec_channels(h->to, h->to_level, h->dim, !keys, 0, h->dim, step, low);
    for (size_t d = 0; d < h->dim; d++) {
        float inverse = step[d] > 0 ? 1.0f / step[d] : 0;
        LANES(t)
        {
            float y = (x[d][t] - low[d]) * inverse;
            y = y > 0 ? y : 0; /* and NaN becomes 0 */
            y = round_lane(y < last ? y : last);
            codes[d][t] = (uint8_t)(int)y;
            float e = x[d][t] - fmaf(y, step[d], low[d]);
            sum[t] += e * e;
        }
    }
    memcpy(error, sum, sizeof sum);
}

static void pack_keys(uint8_t codes[][CODEC_SLOTS], size_t dim, unsigned bits, uint8_t *out)
{
    size_t in_byte = 8u / bits;
    for (size_t d = 0; d < dim; d += in_byte, out += CODEC_SLOTS) {
        memcpy(out, codes[d], CODEC_SLOTS);
        for (size_t i = 1; i < in_byte; i++)
            LANES(t) out[t] = (uint8_t)(out[t] | codes[d + i][t] << i * bits);
    }
}

static void pack_values(uint8_t codes[][CODEC_SLOTS], size_t dim, unsigned bits, uint8_t *out)
{
    size_t in_byte = 8u / bits, group = 16 * in_byte, stride = dim / in_byte;
    for (size_t base = 0; base < dim; base += group) {
        size_t bytes = (dim - base < group ? dim - base : group) / in_byte;
        for (size_t j = 0; j < bytes; j++) {
            uint8_t packed[CODEC_SLOTS];
            memcpy(packed, codes[base + j], CODEC_SLOTS);
            for (size_t i = 1; i < in_byte; i++)
                LANES(t) packed[t] = (uint8_t)(packed[t] | codes[base + i * bytes + j][t] << i * bits);
            LANES(t) out[t * stride + base / in_byte + j] = packed[t];
        }
    }
}

/* Level 16: halves, [dim][16] or [16][dim]. */
static double write_halves(float x[][CODEC_SLOTS], size_t dim, size_t tokens, bool keys, uint16_t *out)
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

/* Codes and scales of K or V below level 16; the codes of slots that hold nothing are yet to be cleared. */
static void encode(const struct codec_head *h, float x[][CODEC_SLOTS], bool keys, float error[CODEC_SLOTS],
                   uint8_t codes[][CODEC_SLOTS])
{
    uint16_t half[CODEC_SLOTS], *scales = (uint16_t *)(uintptr_t)codec_scales(h->to, h->to_level, h->dim);
    for (size_t d = 0; h->tokens < CODEC_SLOTS && d < h->dim; d++)
        for (size_t t = h->tokens; t < CODEC_SLOTS; t++)
            x[d][t] = 0;
    if (codec_rotated(h->from_level) != codec_rotated(h->to_level))
        rotate_lanes(x, h->dim);
    if (codec_by_channel(h->to_level, !keys)) {
        make_channels(h, x, keys, error, codes);
        return;
    }
    if (h->to_level == 8)
        make_codes_8(x, h->dim, half, error, codes);
    else
        make_codes_4(x, h->dim, half, error, codes);
    for (size_t t = h->tokens; t < CODEC_SLOTS; t++)
        half[t] = 0;
    memcpy(scales + (keys ? 0 : CODEC_SLOTS), half, sizeof half);
}

/* Whether K, or V, has the code wanted already. */
static inline bool is_coded(const struct codec_head *h, bool keys)
{
    return h->from_level < 8 && codec_part(h->from_level, !keys) == codec_part(h->to_level, !keys);
}

/* Then its codes and scales stay what they are. */
static void keep_codes(const struct codec_head *h, bool keys, float error[CODEC_SLOTS],
                       uint8_t codes[][CODEC_SLOTS])
{
    for (size_t d = 0; d < h->dim; d++)
        LANES(t)
    codes[d][t] = (uint8_t)(keys ? codec_key(h->from, h->from_level, d, t)
                                 : codec_value(h->from, h->from_level, h->dim, t, d));
    if (codec_by_channel(h->to_level, !keys)) {
        const uint8_t *from, *to;
        const uint16_t *units = codec_units(h->from, h->from_level, h->dim, !keys, &from);
        memcpy((uint16_t *)(uintptr_t)codec_units(h->to, h->to_level, h->dim, !keys, &to), units,
               2 * sizeof *units);
        memcpy((uint8_t *)(uintptr_t)to, from, h->dim);
    } else {
        size_t first = keys ? 0 : CODEC_SLOTS;
        const uint16_t *from = codec_scales(h->from, h->from_level, h->dim) + first;
        uint16_t *to = (uint16_t *)(uintptr_t)codec_scales(h->to, h->to_level, h->dim) + first;
        LANES(t) to[t] = t < h->tokens ? from[t] : 0;
    }
    LANES(t) error[t] = 0;
}

/* K or V: x comes in as `from` has it. */
static double lower(const struct codec_head *h, float x[][CODEC_SLOTS], bool keys)
{
    uint8_t level = h->to_level, codes[CODEC_DIM][CODEC_SLOTS];
    uint8_t *to = keys ? h->to : (uint8_t *)(uintptr_t)codec_values(h->to, level, h->dim);
    float error[CODEC_SLOTS];
    double total = 0;
    if (level == 16) {
        for (size_t d = 0; h->tokens < CODEC_SLOTS && d < h->dim; d++)
            for (size_t t = h->tokens; t < CODEC_SLOTS; t++)
                x[d][t] = 0;
        return write_halves(x, h->dim, h->tokens, keys, (uint16_t *)(void *)to);
    }
    if (is_coded(h, keys))
        keep_codes(h, keys, error, codes);
    else
        encode(h, x, keys, error, codes);
    for (size_t t = h->tokens; t < CODEC_SLOTS; t++)
        for (size_t d = 0; d < h->dim; d++)
            codes[d][t] = 0;
    if (keys)
        pack_keys(codes, h->dim, codec_bits(codec_part(level, false)), to);
    else
        pack_values(codes, h->dim, codec_bits(codec_part(level, true)), to);
    for (size_t t = 0; t < h->tokens; t++)
        total += error[t];
    return total;
}

static struct codec_error convert(const struct codec_head *h)
{
    _Alignas(64) float x[CODEC_DIM][CODEC_SLOTS];
    load_keys(h, x);
    struct codec_error error = {.keys = lower(h, x, true)};
    load_values(h, x);
    error.values = lower(h, x, false);
    return error;
}

#endif
