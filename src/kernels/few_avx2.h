/* Quantised matrix products of one to FEW_TOKENS tokens, AVX2 and AVX-VNNI: generation, bound by reading the
 * weights. */
#ifndef LLMS_KERNELS_FEW_AVX2_H
#define LLMS_KERNELS_FEW_AVX2_H

#include <stddef.h>

#include "kernels/kernels.h"

enum { FEW_TOKENS = 3 };

void few_matmul_avx2(const struct matmul *m, size_t row_begin, size_t row_end);
void few_matmul_avxvnni(const struct matmul *m, size_t row_begin, size_t row_end);

#endif
