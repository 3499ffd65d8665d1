/* Pseudo-random numbers: splitmix64. The same seed gives the same sequence on every machine. Not for secrets.
 */
#ifndef LLMS_BASE_RANDOM_H
#define LLMS_BASE_RANDOM_H

#include <stdint.h>

struct random {
    uint64_t state;
};

static inline uint64_t random_next(struct random *random)
{
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [0, 1). */
static inline double random_unit(struct random *random)
{
    return (double)(random_next(random) >> 11) * 0x1p-53;
}

/* Uniform in [0, n); 0 where n is 0. */
static inline uint64_t random_below(struct random *random, uint64_t n)
{
    return n ? random_next(random) % n : 0;
}

#endif
