/* The processors a measurement has to itself, and other processes that are busy on them. Linux. */
#ifndef LLMS_BENCH_NEIGHBOURS_H
#define LLMS_BENCH_NEIGHBOURS_H

#include <stddef.h>
#include <sys/types.h>

unsigned processors_allowed(void);

/* Keeps this thread, and the threads and processes it starts from now on, on the last `count` of the
 * processors that the process was allowed at its start (all of them where count is 0 or larger). */
int processors_keep(unsigned count);

/* Processes that do nothing but compute, on the processors of the caller. They end with the caller. */
struct neighbours {
    pid_t pids[64];
    size_t count;
};
int neighbours_start(struct neighbours *neighbours,
                     size_t count); /* at most 64; 0 or a negative errno value */
void neighbours_stop(struct neighbours *neighbours);

#endif
