/* See blocks.h. Quants are sums of two uniform draws, which are centred exactly and fall off to both sides as
 * trained weights do. Layouts: base/dtype.h. */
#include "blocks.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

/* How the quants of a type are drawn: the sum of two numbers of `bits` bits each, plus 1 for unsigned ones.
 */
struct draw {
    enum dtype type;
    unsigned bits;
    int centre;      /* of the stored quant; the value is d * (quant - centre) */
    float minimum;   /* centre in units of d, as the type stores it: -centre (added) or centre (subtracted) */
    float inner_rms; /* of the integer scales inside the block */
};

/* Inner scales: Q4_K and Q5_K 32..63, Q6_K 64..127, both uniform. rms^2 = mean^2 + (n^2 - 1) / 12. */
static const struct draw draws[] = {
    {DTYPE_Q4_0, 3, 8, 0, 1},          {DTYPE_Q4_1, 3, 8, -8, 1},        {DTYPE_Q5_0, 4, 16, 0, 1},
    {DTYPE_Q5_1, 4, 16, -16, 1},       {DTYPE_Q8_0, 7, 127, 0, 1},       {DTYPE_Q4_K, 3, 8, 8, 48.3890f},
    {DTYPE_Q5_K, 4, 16, 16, 48.3890f}, {DTYPE_Q6_K, 5, 32, 0, 97.2702f},
};

void blocks_init(struct blocks *blocks, enum dtype type, float mean, float deviation)
{
    *blocks = (struct blocks){.type = type, .mean = mean};
    /* The draw is the sum of four 16-bit numbers: variance 4 (2^32 - 1) / 12. */
    blocks->step = deviation / sqrtf((65536.0f * 65536.0f - 1) / 3);
    for (size_t i = 0; i < sizeof draws / sizeof *draws; i++) {
        const struct draw *draw = &draws[i];
        if (draw->type != type)
            continue;
        float levels = (float)(1 << draw->bits);
        float quant_deviation = sqrtf((levels * levels - 1) / 6);
        float spread = 0; /* mean square of the factors below */
        for (int k = 0; k < BLOCKS_SCALES; k++)
            spread += (0.75f + 0.5f * (float)k / 63) * (0.75f + 0.5f * (float)k / 63) / BLOCKS_SCALES;
        float d = deviation / (quant_deviation * draw->inner_rms * sqrtf(spread));
        for (int k = 0; k < BLOCKS_SCALES; k++) {
            blocks->scale[k] = float_to_half(d * (0.75f + 0.5f * (float)k / 63));
            blocks->minimum[k] = float_to_half(half_to_float(blocks->scale[k]) * draw->minimum);
        }
    }
}

static unsigned put_scale(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    unsigned k = (unsigned)(random_next(random) >> 58);
    memcpy(out, &blocks->scale[k], 2);
    return k;
}

/* 16 nibbles, 1 to 15. */
static uint64_t nibbles(struct random *random)
{
    uint64_t mask = 0x7777777777777777u;
    return (random_next(random) & mask) + (random_next(random) & mask) + 0x1111111111111111u;
}

static void put_nibbles(struct random *random, uint8_t *out, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = nibbles(random);
        memcpy(out + i, &word, 8);
    }
}

/* Bytes, each the sum of two numbers below 2^bits (bits < 8), plus `add`. */
static void draw_bytes(struct random *random, unsigned bits, uint64_t add, uint8_t *out, size_t count)
{
    uint64_t ones = 0x0101010101010101u, mask = ones * ((1u << bits) - 1);
    for (size_t i = 0; i < count; i += 8) {
        uint64_t word = (random_next(random) & mask) + (random_next(random) & mask) + ones * add;
        memcpy(out + i, &word, 8);
    }
}

static void q4_block(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    unsigned k = put_scale(blocks, random, out);
    if (blocks->type == DTYPE_Q4_1)
        memcpy(out + 2, &blocks->minimum[k], 2);
    put_nibbles(random, out + (blocks->type == DTYPE_Q4_1 ? 4 : 2), 16);
}

static void q5_block(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    uint8_t quants[32];
    uint32_t high = 0;
    unsigned k = put_scale(blocks, random, out);
    uint8_t *rest = out + 2;
    if (blocks->type == DTYPE_Q5_1) {
        memcpy(rest, &blocks->minimum[k], 2);
        rest += 2;
    }
    draw_bytes(random, 4, 1, quants, sizeof quants);
    for (unsigned i = 0; i < 32; i++)
        high |= (uint32_t)(quants[i] >> 4) << i;
    memcpy(rest, &high, 4);
    for (unsigned i = 0; i < 16; i++)
        rest[4 + i] = (uint8_t)((quants[i] & 15) | quants[i + 16] << 4);
}

static void q8_block(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    put_scale(blocks, random, out);
    draw_bytes(random, 7, 0, out + 2, 32); /* 0 to 254 */
    for (unsigned i = 0; i < 32; i++)
        out[2 + i] = (uint8_t)(out[2 + i] - 127);
}

/* d, dmin and eight 6-bit scales, each with a minimum of the same number. */
static void put_k_scales(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    unsigned k = put_scale(blocks, random, out);
    memcpy(out + 2, &blocks->minimum[k], 2);
    uint64_t word = random_next(random);
    for (unsigned j = 0; j < 4; j++) {
        uint8_t low = 32 + (word >> (8 * j) & 31), high = 32 + (word >> (32 + 8 * j) & 31);
        out[4 + j] = (uint8_t)(low | (high >> 4) << 6);
        out[8 + j] = out[4 + j];
        out[12 + j] = (uint8_t)((high & 15) | high << 4);
    }
}

static void q4_k_block(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    put_k_scales(blocks, random, out);
    put_nibbles(random, out + 16, 128);
}

static void q5_k_block(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    uint8_t quants[256], *high = out + 16, *low = out + 48;
    put_k_scales(blocks, random, out);
    draw_bytes(random, 4, 1, quants, sizeof quants);
    memset(high, 0, 32);
    for (unsigned j = 0; j < 4; j++)
        for (unsigned i = 0; i < 32; i++) {
            uint8_t a = quants[64 * j + i], b = quants[64 * j + 32 + i];
            low[32 * j + i] = (uint8_t)((a & 15) | b << 4);
            high[i] |= (uint8_t)((a >> 4) << (2 * j) | (b >> 4) << (2 * j + 1));
        }
}

static void q6_k_block(const struct blocks *blocks, struct random *random, uint8_t *out)
{
    uint8_t quants[256], scales[16], *low = out, *high = out + 128;
    draw_bytes(random, 5, 1, quants, sizeof quants);
    for (unsigned n = 0; n < 2; n++)
        for (unsigned i = 0; i < 32; i++) {
            const uint8_t *q = quants + 128 * n + i;
            low[64 * n + i] = (uint8_t)((q[0] & 15) | q[64] << 4);
            low[64 * n + 32 + i] = (uint8_t)((q[32] & 15) | q[96] << 4);
            high[32 * n + i] = (uint8_t)(q[0] >> 4 | q[32] >> 4 << 2 | q[64] >> 4 << 4 | q[96] >> 4 << 6);
        }
    for (unsigned i = 0; i < 16; i += 8) {
        uint64_t word = random_next(random);
        memcpy(scales + i, &word, 8);
    }
    for (unsigned i = 0; i < 16; i++)
        out[192 + i] = (uint8_t)(64 + (scales[i] & 63));
    put_scale(blocks, random, out + 208);
}

static float draw_float(const struct blocks *blocks, struct random *random)
{
    uint64_t word = random_next(random);
    int32_t sum = (int32_t)(word & 0xffff) + (int32_t)(word >> 16 & 0xffff) + (int32_t)(word >> 32 & 0xffff) +
                  (int32_t)(word >> 48);
    return (float)(sum - 2 * 65535) * blocks->step;
}

static void float_row(const struct blocks *blocks, struct random *random, void *row, size_t values)
{
    for (size_t i = 0; i < values; i++) {
        float value = draw_float(blocks, random);
        if (blocks->type == DTYPE_F32)
            ((float *)row)[i] = blocks->mean + value;
        else
            ((uint16_t *)row)[i] = blocks->type == DTYPE_F16 ? float_to_half(value) : float_to_bf16(value);
    }
}

void blocks_row(const struct blocks *blocks, struct random *random, void *row, size_t values)
{
    typedef void block_fn(const struct blocks *, struct random *, uint8_t *);
    static const struct {
        enum dtype type;
        block_fn *fill;
    } fills[] = {{DTYPE_Q4_0, q4_block},   {DTYPE_Q4_1, q4_block},  {DTYPE_Q5_0, q5_block},
                 {DTYPE_Q5_1, q5_block},   {DTYPE_Q8_0, q8_block},  {DTYPE_Q4_K, q4_k_block},
                 {DTYPE_Q5_K, q5_k_block}, {DTYPE_Q6_K, q6_k_block}};
    const struct dtype_info *info = dtype_info(blocks->type);
    for (size_t i = 0; i < sizeof fills / sizeof *fills; i++)
        if (fills[i].type == blocks->type) {
            for (size_t at = 0; at < values / info->block_values; at++)
                fills[i].fill(blocks, random, (uint8_t *)row + at * info->block_bytes);
            return;
        }
    float_row(blocks, random, row, values);
}
