/* The peer's numbers: llama-bench, run beside ours. */
#ifndef LLMS_BENCH_PEER_H
#define LLMS_BENCH_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct peer_test {
    uint64_t prompt, generate; /* one of them is 0 */
    double tokens_per_s;       /* set by peer_bench */
};

/* Runs `PATH run llama-bench` once over the tests, each behind `depth` tokens. path: a peer-llama-cpp. */
int peer_bench(const char *path, const char *model, uint64_t depth, unsigned threads, struct peer_test *tests,
               size_t count, struct error *error);

#endif
