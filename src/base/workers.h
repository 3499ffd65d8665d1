/* Compute threads: one caller hands out numbered pieces of work, the threads and the caller take them.
 *
 * Each thread begins with an equal share of pieces that follow one another, in ascending order, so that what
 * it fetches ahead is what it needs next; who is done takes over half of what another has left, down to
 * single pieces, so a core that another process takes away costs its share and not the whole. Barriers spin
 * for some microseconds and then sleep. One caller at a time; pieces may run in any order and on any thread.
 */
#ifndef LLMS_BASE_WORKERS_H
#define LLMS_BASE_WORKERS_H

struct workers;

/* thread: 0 is the caller, up to workers_threads() - 1. */
typedef void workers_fn(void *argument, unsigned piece, unsigned thread);

int workers_create(unsigned threads, struct workers **out); /* threads >= 1, the caller included */
void workers_destroy(struct workers *workers);
unsigned workers_threads(const struct workers *workers);
void workers_run(struct workers *workers, workers_fn *run, void *argument,
                 unsigned pieces); /* returns when all are done */

#endif
