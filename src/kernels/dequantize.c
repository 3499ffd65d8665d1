/* Weights back to floats, for single rows (an embedding's). Exact: the products have at most 24 significant
 * bits, so only the final sum with a minimum rounds, and every order of operations gives the same float. */
#include "kernels/blocks.h"
#include "kernels/kernels_internal.h"

static void dequantize_32(enum dtype type, const unsigned char *row, float *out, size_t values)
{
    size_t bytes = dtype_row_bytes(type, 32);
    struct block32 block;
    for (; values; values -= 32, row += bytes, out += 32) {
        block32_read(type, row, &block);
        for (int i = 0; i < 32; i++)
            out[i] = block.scale * (float)block.code[i];
        if (type == DTYPE_Q4_1 || type == DTYPE_Q5_1)
            for (int i = 0; i < 32; i++)
                out[i] += block.minimum;
    }
}

static void dequantize_256(enum dtype type, const unsigned char *row, float *out, size_t values)
{
    size_t bytes = dtype_row_bytes(type, 256);
    struct block256 block;
    for (; values; values -= 256, row += bytes, out += 256) {
        block256_read(type, row, &block);
        for (int i = 0; i < 256; i++)
            out[i] = block.scale * (float)block.scales[i / 16] * (float)block.code[i];
        if (type != DTYPE_Q6_K)
            for (int i = 0; i < 256; i++)
                out[i] -= block.minimum * (float)block.minimums[i / 16];
    }
}

void dequantize_plain(enum dtype type, const void *row, float *out, size_t values)
{
    const unsigned char *bytes = row;
    switch (type) {
    case DTYPE_F32:
        memcpy(out, row, values * 4);
        break;
    case DTYPE_F16:
        for (size_t i = 0; i < values; i++)
            out[i] = half_to_float(block_u16(bytes + 2 * i));
        break;
    case DTYPE_BF16:
        for (size_t i = 0; i < values; i++)
            out[i] = bf16_to_float(block_u16(bytes + 2 * i));
        break;
    default:
        if (kernels_pack_of(type) == PACK_Q256)
            dequantize_256(type, bytes, out, values);
        else
            dequantize_32(type, bytes, out, values);
    }
}
