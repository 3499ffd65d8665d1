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
/* NOLINTNEXTLINE(bugprone-macro-parentheses): i is declared here */
#define UNROLL_FOR(i, count) UNROLL for (int i = 0; i < (count); i++)

/* After a step of a sum in a vector register (x86): keeps the compiler from adding the steps in another
 * order, which takes more registers than there are. */
#define IN_ORDER(vector) __asm__("" : "+x"(vector))

/* After a loop of sums in vector registers (x86), for each: keeps the compiler from holding every sum
 * twice, one for the loop and one for what follows. */
#define SUMMED(vector) __asm__("" : "+v"(vector))

/* Fetches the line at an address (only an address: it may lie outside what is mapped) where a sum stands in
 * the program (x86). */
#define PREFETCH_AFTER(vector, address)                                                                      \
    __asm__ volatile("prefetcht0 %1" : "+v"(vector) : "m"(*(const char *)(address)))

#endif
