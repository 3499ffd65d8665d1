/* The peer: its numbers from llama-bench, run beside ours, and starting its tools. */
#ifndef LLMS_BENCH_PEER_H
#define LLMS_BENCH_PEER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct peer_test {
    uint64_t prompt, generate; /* one of them is 0 */
    double tokens_per_s;       /* set by peer_bench */
};

/* The instruction set the peer may use from now on, as kernels_named() calls it; NULL: any. Its CPU back ends
 * are files of their own: those above it are hidden from its tools, in mounts that only they see (needs root,
 * as the tool does). */
void peer_limit(const char *isa);

/* Runs `PATH run llama-bench` once over the tests, each behind `depth` tokens. path: a peer-llama-cpp. */
int peer_bench(const char *path, const char *model, uint64_t depth, unsigned threads, struct peer_test *tests,
               size_t count, struct error *error);

/* Starts argv (a peer-llama-cpp, "run", a tool, ...) with standard output on a pipe, or dropped where output
 * is NULL, and standard error dropped. 0 or a negative errno value. */
int peer_start(char *const argv[], int *output, pid_t *pid);

/* Lets the tools see these directories too: absolute paths with spaces between. */
void peer_show(const char *directories);

#endif
