/* Memory pressure: tells when the machine, or our control group, begins to run short and when that is over.
 *
 * Where it looks, the first that there is:
 *   1. $MEMORY_PRESSURE_WATCH, systemd's protocol: a PSI file of the kernel (it is asked with the bytes of
 *      $MEMORY_PRESSURE_WRITE, base64, and wakes us), a FIFO, or a Unix socket (what comes out of them is
 *      discarded; that something came is the event). "/dev/null": the manager wants none watched.
 *   2. /proc/pressure/memory with a trigger: 150 ms of some task's stall within 2 s (a window that needs no
 *      privilege).
 *   3. the same file where the kernel takes no trigger: its "some avg10" once a second, begin at 10 %, over
 *      below 2 %.
 * 1 and 2 tell only that there is pressure: it is taken to be over when nothing came for quiet_ms.
 *
 * One small thread, which calls back with BEGIN and END in turn, BEGIN first; nothing is called back after
 * pressure_close returned. A watch that breaks (its other end closed, the file gone) ends what pressure there
 * was and stays silent, with a line in the log. */
#ifndef LLMS_OS_PRESSURE_H
#define LLMS_OS_PRESSURE_H

#include "base/error.h"

struct pressure;

enum pressure_event { PRESSURE_BEGIN, PRESSURE_END };

struct pressure_options {
    const char *path;    /* what to watch; NULL: as above, from the environment */
    const char *trigger; /* written to it at first; "" and no FIFO or socket: polled. NULL with a path: "" */
    int quiet_ms;        /* 0: 5000 */
    int poll_ms;         /* 0: 1000 */
    double begin_avg10;  /* percent; 0: 10 */
    double end_avg10;    /* percent; 0: 2 */
    /* Called on the watch's own thread; must not call pressure_close. */
    void (*call)(void *argument, enum pressure_event event);
    void *argument;
};

/* 0; -ENODATA: nothing is to be watched ("/dev/null"); -ENOENT: this kernel tells nothing; or why not. The
 * strings are not kept. */
int pressure_open(const struct pressure_options *options, struct pressure **out, struct error *error);
void pressure_close(struct pressure *pressure); /* NULL is fine; waits for a call back that goes on */
const char *pressure_source(const struct pressure *pressure); /* "trigger", "stream" or "poll" */

#endif
