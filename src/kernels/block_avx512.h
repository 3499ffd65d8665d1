/* Products of many tokens with weights in blocks of 32, AVX-512: prompts. */
#ifndef LLMS_KERNELS_BLOCK_AVX512_H
#define LLMS_KERNELS_BLOCK_AVX512_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"

/* False, with nothing done, for types of other blocks. */
bool block_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end);

#endif
