/* Matrix product, plain twin: the definition in code.
 *
 * Canonical order of the sum for one row and token, da being the activations' scale:
 * - F32, F16, BF16: 16 lanes, lane j adds k = j mod 16 ascending, fused; columns padded with zeros to a
 *   multiple of 16; lanes added by plain_sum16
 * - Q8_0, Q4_0, Q5_0, by block of 32: sum = fma(float(dot), d * da, sum), the dot exact, codes centred
 * - Q4_1, Q5_1, by block: sum = fma(float(dot), d * da, sum), then
 *   sum = fma(m, da * float(sum of codes), sum)
 * - Q4_K, Q5_K, by block of 256: sum = fma(float(dot), d * da, sum), then sum = fma(-float(mins), dmin * da,
 *   sum); dot and mins are exact integers with the 6-bit scales and minimums multiplied in
 * - Q6_K, by block: sum = fma(float(dot), d * da, sum), scales multiplied into the exact dot
 *
 * No integer overflows: the largest is Q6_K's, 128 x 32 x 127 x 256 < 2^31. */
#include <math.h>

#include "kernels/blocks.h"
#include "kernels/kernels_internal.h"
#include "kernels/math_plain.h"
#include "kernels/pack.h"

enum { TOKENS = 16 }; /* worked on at once, so that a block is decoded once for all of them */

static const unsigned char *packed_row(const struct matmul *m, size_t token)
{
    return (const unsigned char *)m->packed +
           token * kernels_packed_bytes(kernels_pack_of(m->type), m->columns);
}

static int32_t dot(const int8_t *a, const int8_t *b, int n)
{
    int32_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void row_32(const struct matmul *m, const unsigned char *row, size_t first, size_t tokens, float *sum)
{
    size_t bytes = dtype_row_bytes(m->type, 32);
    size_t scales_at = pack_q32_scales_at(m->columns), starts_at = pack_q32_starts_at(m->columns);
    struct block32 block;
    for (size_t b = 0; b < m->columns / 32; b++) {
        block32_read(m->type, row + b * bytes, &block);
        for (size_t t = 0; t < tokens; t++) {
            const unsigned char *x = packed_row(m, first + t);
            float scale = ((const float *)(x + scales_at))[b];
            int32_t codes = pack_q32_sum(((const int32_t *)(x + starts_at))[b]);
            int32_t product = dot(block.code, (const int8_t *)x + b * 32, 32);
            sum[t] = fmaf((float)product, block.scale * scale, sum[t]);
            if (m->type == DTYPE_Q4_1 || m->type == DTYPE_Q5_1)
                sum[t] = fmaf(block.minimum, scale * (float)codes, sum[t]);
        }
    }
}

static void row_256(const struct matmul *m, const unsigned char *row, size_t first, size_t tokens, float *sum)
{
    size_t bytes = dtype_row_bytes(m->type, 256);
    size_t scales_at = pack_q256_scales_at(m->columns), sums_at = pack_q256_sums_at(m->columns);
    struct block256 block;
    for (size_t b = 0; b < m->columns / 256; b++) {
        block256_read(m->type, row + b * bytes, &block);
        for (size_t t = 0; t < tokens; t++) {
            const unsigned char *x = packed_row(m, first + t);
            const int8_t *codes = (const int8_t *)x + b * 256;
            const int16_t *sums = (const int16_t *)(x + sums_at) + b * 16;
            float scale = ((const float *)(x + scales_at))[b];
            int32_t product = 0, minimums = 0;
            for (int s = 0; s < 16; s++) {
                product += block.scales[s] * dot(block.code + 16 * s, codes + 16 * s, 16);
                minimums += block.minimums[s] * sums[s];
            }
            sum[t] = fmaf((float)product, block.scale * scale, sum[t]);
            if (m->type != DTYPE_Q6_K)
                sum[t] = fmaf(-(float)minimums, block.minimum * scale, sum[t]);
        }
    }
}

static void row_float(const struct matmul *m, const unsigned char *row, size_t first, size_t tokens,
                      float *sum)
{
    float lane[TOKENS][16] = {{0}};
    size_t each = dtype_row_bytes(m->type, 1);
    for (size_t k = 0; k < m->columns; k += 16) {
        float w[16] = {0}, x[16] = {0};
        size_t n = m->columns - k < 16 ? m->columns - k : 16;
        dequantize_plain(m->type, row + k * each, w, n);
        for (size_t t = 0; t < tokens; t++) {
            memcpy(x, packed_row(m, first + t) + k * 4, n * 4);
            for (int j = 0; j < 16; j++)
                lane[t][j] = fmaf(w[j], x[j], lane[t][j]);
        }
    }
    for (size_t t = 0; t < tokens; t++)
        sum[t] = plain_sum16(lane[t]);
}

void matmul_plain(const struct matmul *m, size_t row_begin, size_t row_end)
{
    enum pack pack = kernels_pack_of(m->type);
    size_t bytes = dtype_row_bytes(m->type, m->columns);
    for (size_t r = row_begin; r < row_end; r++) {
        const unsigned char *row = (const unsigned char *)m->weights + r * bytes;
        for (size_t first = 0; first < m->tokens; first += TOKENS) {
            size_t tokens = m->tokens - first < TOKENS ? m->tokens - first : TOKENS;
            float sum[TOKENS] = {0};
            if (pack == PACK_Q32 || pack == PACK_PAIRS)
                row_32(m, row, first, tokens, sum);
            else if (pack == PACK_Q256)
                row_256(m, row, first, tokens, sum);
            else
                row_float(m, row, first, tokens, sum);
            for (size_t t = 0; t < tokens; t++)
                m->out[(first + t) * m->out_stride + r] = sum[t];
        }
    }
}
