/* Matrix product for F32, F16 and BF16 weights, AVX-512. */
#ifndef LLMS_KERNELS_FLOAT_AVX512_H
#define LLMS_KERNELS_FLOAT_AVX512_H

#include "kernels/kernels.h"

void float_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end);

#endif
