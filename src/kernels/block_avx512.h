/* Products of many tokens with weights in blocks of 32, AVX-512: prompts. */
#ifndef LLMS_KERNELS_BLOCK_AVX512_H
#define LLMS_KERNELS_BLOCK_AVX512_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"

/* Q4_0's products can be taken in pairs (pack.h): half the dot products, twice as many additions of bytes,
 * and the same bits. That is faster where additions have pipes of their own, unless another hardware thread
 * of the core needs those: so every thread measures it while it works. */
enum block_way { BLOCK_FASTER, BLOCK_ALONE, BLOCK_PAIRS };

/* False, with nothing done, for types of other blocks. */
bool block_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end, enum block_way way);

#endif
