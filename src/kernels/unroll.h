/* Loops over registers must be unrolled whole, and helpers inlined, for arrays of vectors to become
 * registers. */
#ifndef LLMS_KERNELS_UNROLL_H
#define LLMS_KERNELS_UNROLL_H

#include <stdbool.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

#endif
