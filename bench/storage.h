/* How fast the storage under a directory reads, past the page cache; and a directory of a run's own. */
#ifndef LLMS_BENCH_STORAGE_H
#define LLMS_BENCH_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct storage {
    double bytes_per_s;
    bool direct; /* false: the file system refuses direct reads, so that the page cache is in the figure */
    bool memory; /* the directory lies in memory (tmpfs) */
};

/* Writes a file of `bytes` (a multiple of 1 MiB) into directory and reads it once from its beginning, several
 * large requests at once. A limit set by aio_set_limit counts. */
int storage_measure(const char *directory, uint64_t bytes, struct storage *out, struct error *error);

/* Reads a file once from its beginning, likewise; nothing is written. 0 or a negative errno value. */
int storage_measure_file(const char *path, struct storage *out);

/* How it was read, in words. */
const char *storage_words(const struct storage *storage);

/* Removes a directory with all that is in it, as far as that goes. */
int storage_remove(const char *path);
/* Runs `run` with a new directory PARENT/llms-bench-XXXXXX (parent too is made where it is missing), which is
 * removed afterwards. Returns what run does. */
int storage_within(const char *parent, int (*run)(void *argument, const char *directory, struct error *error),
                   void *argument, struct error *error);

#endif
