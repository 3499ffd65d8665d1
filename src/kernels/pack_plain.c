/* Packing of activation rows: sizes, and the plain twin (pack.h has the layout and the definition). */
#include "kernels/pack.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "kernels/kernels_internal.h"

enum pack kernels_pack_of(enum dtype weights)
{
    switch (weights) {
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16:
        return PACK_F32;
    case DTYPE_Q8_0:
    case DTYPE_Q4_1:
    case DTYPE_Q5_0:
    case DTYPE_Q5_1:
        return PACK_Q32;
    case DTYPE_Q4_0:
        return PACK_PAIRS;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q6_K:
        return PACK_Q256;
    }
    return PACK_F32;
}

/* Rows an odd number of lines apart: many of them would crowd few sets of a cache otherwise. */
static size_t odd_lines(size_t bytes)
{
    return bytes | 64;
}

size_t kernels_packed_bytes(enum pack pack, size_t columns)
{
    switch (pack) {
    case PACK_F32:
        return pack_round(columns * 4);
    case PACK_Q32:
        return odd_lines(pack_q32_starts_at(columns) + pack_round(columns / 32 * 4));
    case PACK_PAIRS:
        return odd_lines(pack_pairs_at(columns) + pack_round(columns / 32 * 4));
    default:
        return odd_lines(pack_q256_sums_at(columns) + pack_round(columns / 16 * 2));
    }
}

/* The first value of the largest magnitude (0 if none); *nan tells whether any is NaN. */
static float extreme(const float *x, int n, int *nan)
{
    float top = 0, value = 0;
    *nan = 0;
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) > top) {
            top = fabsf(x[i]);
            value = x[i];
        }
        *nan |= x[i] != x[i];
    }
    return value;
}

static int8_t code_of(float scaled, float most)
{
    scaled = scaled < most ? scaled : most; /* NaN too */
    scaled = scaled > -most ? scaled : -most;
    return (int8_t)lrintf(scaled);
}

static int32_t pairs_start(const int8_t codes[32])
{
    int32_t sum = 0;
    for (int i = 0; i < 32; i++)
        if (i / PACK_PAIRS_APART % 2 == 0)
            sum += (codes[i] + PACK_PAIR) * codes[i + PACK_PAIRS_APART];
    return -sum;
}

static void pack_block(enum pack pack, const float *x, const struct pack_block *to)
{
    const float most = pack_q32_most(pack);
    int nan;
    float top = fabsf(extreme(x, 32, &nan)), inverse = top != 0 ? most / top : 0;
    *to->scale = nan ? NAN : half_to_float(float_to_half(top / most));
    *to->start = 0;
    for (int i = 0; i < 32; i++) {
        to->codes[i] = top != 0 ? code_of(x[i] * inverse, most) : 0;
        *to->start -= PACK_START * to->codes[i];
    }
    if (to->pairs)
        *to->pairs = pairs_start(to->codes);
}

static void pack_q32(enum pack pack, const float *x, size_t columns, unsigned char *out)
{
    for (size_t b = 0; b < columns / 32; b++) {
        const struct pack_block to = pack_block_at(pack, out, columns, b);
        pack_block(pack, x + 32 * b, &to);
    }
}

static void pack_q256(const float *x, size_t columns, unsigned char *out)
{
    int8_t *codes = (int8_t *)out;
    float *scales = (float *)(out + pack_q256_scales_at(columns));
    int16_t *sums = (int16_t *)(out + pack_q256_sums_at(columns));
    for (size_t b = 0; b < columns / 256; b++, x += 256, codes += 256, sums += 16) {
        int nan;
        float max = extreme(x, 256, &nan), inverse = max != 0 ? -127.0f / max : 0;
        scales[b] = nan ? NAN : max != 0 ? 1.0f / inverse : 0;
        for (int s = 0; s < 16; s++) {
            int sum = 0;
            for (int i = 16 * s; i < 16 * s + 16; i++)
                sum += codes[i] = max != 0 ? code_of(x[i] * inverse, 127) : 0;
            sums[s] = (int16_t)sum;
        }
    }
}

void pack_plain(enum pack pack, const float *x, size_t columns, void *out)
{
    size_t bytes = kernels_packed_bytes(pack, columns);
    if (pack == PACK_F32) {
        memcpy(out, x, columns * 4);
        memset((char *)out + columns * 4, 0, bytes - columns * 4);
        return;
    }
    memset((char *)out + columns, 0, bytes - columns);
    if (pack == PACK_Q256)
        pack_q256(x, columns, out);
    else
        pack_q32(pack, x, columns, out);
}

void pack_part_plain(const struct pack_part *p)
{
    const size_t bytes = kernels_packed_bytes(p->pack, p->columns), blocks = p->count / 32;
    for (size_t b = 0; b < p->tokens * blocks; b++) {
        void *row = (char *)p->out + b / blocks * bytes;
        const struct pack_block to = pack_block_at(p->pack, row, p->columns, p->begin / 32 + b % blocks);
        pack_block(p->pack, p->x + 32 * b, &to);
    }
    pack_part_end(p);
}

static void zero(char *row, size_t from, size_t to)
{
    memset(row + from, 0, to - from);
}

void pack_part_end(const struct pack_part *p)
{
    const size_t columns = p->columns, bytes = kernels_packed_bytes(p->pack, columns),
                 words = columns / 32 * 4;
    const size_t scales = pack_q32_scales_at(columns), starts = pack_q32_starts_at(columns),
                 pairs = pack_pairs_at(columns);
    char *row = p->out;
    for (size_t t = 0; p->begin + p->count == columns && t < p->tokens; t++, row += bytes) {
        zero(row, columns, scales);
        zero(row, scales + words, starts);
        if (p->pack == PACK_PAIRS)
            zero(row, starts + words, pairs);
        zero(row, (p->pack == PACK_PAIRS ? pairs : starts) + words, bytes);
    }
}
