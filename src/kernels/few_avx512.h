/* Quantised matrix products of one to FEW_TOKENS tokens, AVX-512: generation, bound by reading the weights.
 */
#ifndef LLMS_KERNELS_FEW_AVX512_H
#define LLMS_KERNELS_FEW_AVX512_H

#include <stddef.h>

#include "kernels/kernels.h"

enum { FEW_TOKENS = 6 };

void few_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end);

#endif
