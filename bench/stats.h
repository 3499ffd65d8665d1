/* What a row of measured values comes to. */
#ifndef LLMS_BENCH_STATS_H
#define LLMS_BENCH_STATS_H

#include <jansson.h>
#include <stddef.h>

struct stats {
    size_t count;
    double mean, median, p95, min, max; /* 0 where count is */
};

/* Sorts values. The median of an even number is the mean of the middle two; p95 is the nearest rank. */
struct stats stats_of(double *values, size_t count);
json_t *stats_json(const struct stats *stats);

#endif
