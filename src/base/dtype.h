/* Tensor element types, numbered as GGUF numbers them, and their block layouts in bytes.
 *
 * Block layouts (all little-endian; d, m are IEEE half precision unless said otherwise):
 *   Q4_0  32 values  18 B: d, 16 bytes; value i (low nibble of byte i) and i+16 (high): d * (q - 8)
 *   Q4_1  32         20 B: d, m, 16 bytes as above: d * q + m
 *   Q5_0  32         22 B: d, 4 bytes of fifth bits (bit i for value i), 16 bytes: d * (q - 16)
 *   Q5_1  32         24 B: d, m, fifth bits, 16 bytes: d * q + m
 *   Q8_0  32         34 B: d, 32 signed bytes: d * q
 *   Q4_K  256       144 B: d, dmin, 12 bytes of eight 6-bit (scale, min) pairs, 128 bytes
 *   Q5_K  256       176 B: d, dmin, 12 bytes as above, 32 bytes of fifth bits, 128 bytes
 *   Q6_K  256       210 B: 128 bytes low nibbles, 64 bytes high pairs, 16 signed scales, d */
#ifndef LLMS_BASE_DTYPE_H
#define LLMS_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_F32 = 0,
    DTYPE_F16 = 1,
    DTYPE_Q4_0 = 2,
    DTYPE_Q4_1 = 3,
    DTYPE_Q5_0 = 6,
    DTYPE_Q5_1 = 7,
    DTYPE_Q8_0 = 8,
    DTYPE_Q4_K = 12,
    DTYPE_Q5_K = 13,
    DTYPE_Q6_K = 14,
    DTYPE_BF16 = 30,
};

struct dtype_info {
    enum dtype type;
    const char *name;      /* as GGUF tools write it: "Q4_0" */
    uint32_t block_values; /* values a block */
    uint32_t block_bytes;
};

const struct dtype_info *dtype_info(uint32_t type);       /* NULL: not a type this project computes with */
const struct dtype_info *dtype_by_name(const char *name); /* case does not matter; NULL: unknown */
const struct dtype_info *dtype_list(size_t *count);       /* all of them */
const char *
dtype_unsupported_name(uint32_t type); /* the name of a GGUF type we do not compute with, or "unknown" */
size_t dtype_row_bytes(enum dtype type, size_t values); /* values: a multiple of the block's */

#endif
