/* Products of one token with quantised weights, AVX2 and AVX-VNNI: generation, bound by reading the weights.
 */
#ifndef LLMS_KERNELS_ROW_AVX2_H
#define LLMS_KERNELS_ROW_AVX2_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"

/* False, with nothing done, for types and widths that have no path of their own: few_avx2.h serves them. */
bool row_matmul_avx2(const struct matmul *m, size_t row_begin, size_t row_end);
bool row_matmul_avxvnni(const struct matmul *m, size_t row_begin, size_t row_end);

#endif
