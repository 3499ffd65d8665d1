/* See stats.h. */
#include "stats.h"

#include <stdlib.h>

static int compare(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

struct stats stats_of(double *values, size_t count)
{
    struct stats stats = {.count = count};
    if (count == 0)
        return stats;
    qsort(values, count, sizeof *values, compare);
    size_t half = count / 2, last = (count * 95 + 99) / 100;
    for (size_t i = 0; i < count; i++)
        stats.mean += values[i] / (double)count;
    stats.median = count % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
    stats.p95 = values[last - 1];
    stats.min = values[0];
    stats.max = values[count - 1];
    return stats;
}

json_t *stats_json(const struct stats *stats)
{
    return json_pack("{s:f,s:f,s:f,s:f,s:f,s:I}", "mean", stats->mean, "median", stats->median, "p95",
                     stats->p95, "min", stats->min, "max", stats->max, "count", (json_int_t)stats->count);
}
