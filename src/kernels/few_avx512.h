/* Quantised matrix products of one to FEW_TOKENS tokens, AVX-512: generation, bound by reading the weights.
 */
#ifndef LLMS_KERNELS_FEW_AVX512_H
#define LLMS_KERNELS_FEW_AVX512_H

#include <stddef.h>

#include "kernels/kernels.h"

enum { FEW_TOKENS = 3, FEW_ROWS = 16 };

/* FEW_ROWS rows, stride bytes apart, by `blocks` blocks; x: the packed tokens at the first of these blocks.
 */
struct few {
    const unsigned char *rows;
    size_t stride;
    size_t blocks;
    const char *ahead; /* memory to prefetch meanwhile, as much as the rows' blocks take; NULL: none */
    struct few_token {
        const signed char *codes;
        const float *scales;
        const void *sums;
    } x[FEW_TOKENS];
    float *sums; /* [tokens][FEW_ROWS], added to */
};

typedef void few_fn(const struct few *f);
few_fn *few_avx512(enum dtype type, size_t tokens);

#endif
