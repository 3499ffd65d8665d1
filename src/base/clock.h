/* Time. */
#ifndef LLMS_BASE_CLOCK_H
#define LLMS_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds that only go forward, since some point in the past. */
static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline double clock_ms_since(uint64_t start_ns)
{
    return (double)(clock_ns() - start_ns) / 1e6;
}

/* Milliseconds of the calendar (Unix epoch). */
static inline int64_t clock_wall_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

#endif
