#include "kernels/blocks.h"

/* 16 bytes of nibbles; fifth: the 32 fifth bits; offset is taken off each code. */
static void nibbles(const unsigned char *low, uint32_t fifth, int offset, int8_t *code)
{
    for (int i = 0; i < 16; i++) {
        code[i] = (int8_t)((low[i] & 15) + (int)(fifth >> i & 1) * 16 - offset);
        code[i + 16] = (int8_t)((low[i] >> 4) + (int)(fifth >> (i + 16) & 1) * 16 - offset);
    }
}

static uint32_t fifths(const unsigned char *p)
{
    uint32_t u;
    memcpy(&u, p, 4);
    return u;
}

void block32_read(enum dtype type, const unsigned char *block, struct block32 *out)
{
    out->scale = half_to_float(block_u16(block));
    out->minimum = 0;
    switch (type) {
    case DTYPE_Q4_0:
        nibbles(block + 2, 0, 8, out->code);
        break;
    case DTYPE_Q5_0:
        nibbles(block + 6, fifths(block + 2), 16, out->code);
        break;
    case DTYPE_Q4_1:
        out->minimum = half_to_float(block_u16(block + 2));
        nibbles(block + 4, 0, 0, out->code);
        break;
    case DTYPE_Q5_1:
        out->minimum = half_to_float(block_u16(block + 2));
        nibbles(block + 8, fifths(block + 4), 0, out->code);
        break;
    default: /* Q8_0 */
        memcpy(out->code, block + 2, 32);
    }
}

/* The eight 6-bit (scale, minimum) pairs of Q4_K and Q5_K in 12 bytes: the first four scales and minimums in
 * the low six bits of bytes 0..3 and 4..7; the others with their low four bits in the halves of bytes 8..11
 * and their high two bits on top of bytes 0..3 and 4..7. */
static void pairs(const unsigned char *p, struct block256 *out)
{
    for (int i = 0; i < 8; i++) {
        int s = i < 4 ? p[i] & 63 : (p[i + 4] & 15) | (p[i - 4] >> 6) << 4;
        int m = i < 4 ? p[i + 4] & 63 : p[i + 4] >> 4 | (p[i] >> 6) << 4;
        out->scales[2 * i] = out->scales[2 * i + 1] = (int16_t)s;
        out->minimums[2 * i] = out->minimums[2 * i + 1] = (int16_t)m;
    }
}

/* Each 32 bytes hold 64 values: the low nibbles, then the high ones; bit j of fifth byte i is for value 32 j
 * + i. */
static void read_q45(const unsigned char *low, const unsigned char *fifth, int8_t *code)
{
    for (int i = 0; i < 256; i++) {
        int nibble = low[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        code[i] = (int8_t)(nibble + (fifth ? (fifth[i % 32] >> (i / 32) & 1) * 16 : 0));
    }
}

/* Halves of 128 values from 64 low bytes and 32 high bytes: values 0..31 and 32..63 have the low
 * nibbles, 64..95 and 96..127 the high ones; quarter k has its high pair at bit 2 k. */
static void read_q6(const unsigned char *block, int8_t *code)
{
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i % 128 / 32, at = i % 32;
        int nibble = block[half * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
        int pair = block[128 + half * 32 + at] >> (2 * quarter) & 3;
        code[i] = (int8_t)((nibble | pair << 4) - 32);
    }
}

void block256_read(enum dtype type, const unsigned char *block, struct block256 *out)
{
    if (type == DTYPE_Q6_K) {
        out->scale = half_to_float(block_u16(block + 208));
        out->minimum = 0;
        for (int i = 0; i < 16; i++) {
            out->scales[i] = (int8_t)block[192 + i];
            out->minimums[i] = 0;
        }
        read_q6(block, out->code);
        return;
    }
    out->scale = half_to_float(block_u16(block));
    out->minimum = half_to_float(block_u16(block + 2));
    pairs(block + 4, out);
    if (type == DTYPE_Q5_K)
        read_q45(block + 48, block + 16, out->code);
    else
        read_q45(block + 16, NULL, out->code);
}
