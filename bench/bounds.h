/* What the machine allows: how fast memory is read, and how fast products run from caches. */
#ifndef LLMS_BENCH_BOUNDS_H
#define LLMS_BENCH_BOUNDS_H

#include <stddef.h>

#include "base/dtype.h"
#include "base/workers.h"
#include "kernels/kernels.h"

/* A block of memory far beyond any cache, in large pages where the system gives them. */
struct memory_probe {
    void *data;
    size_t bytes;
};
int memory_probe_init(struct memory_probe *probe); /* 0 or -ENOMEM */
void memory_probe_deinit(struct memory_probe *probe);
/* Reads it with all threads, a few times; the best rate in bytes a second. */
double memory_probe_read(const struct memory_probe *probe, struct workers *workers);

/* Reads `bytes` at data once, split over the threads. */
void bounds_read(struct workers *workers, const void *data, size_t bytes);

/* Multiplications a second of products with weights of `type` that lie in caches, `tokens` at once; 0 where
 * memory is short. */
double bounds_products(struct workers *workers, const struct kernels *kernels, enum dtype type,
                       size_t tokens);

#endif
