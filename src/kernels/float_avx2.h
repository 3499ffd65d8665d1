/* Matrix product for F32, F16 and BF16 weights, AVX2. */
#ifndef LLMS_KERNELS_FLOAT_AVX2_H
#define LLMS_KERNELS_FLOAT_AVX2_H

#include "kernels/kernels.h"

void float_matmul_avx2(const struct matmul *m, size_t row_begin, size_t row_end);

#endif
