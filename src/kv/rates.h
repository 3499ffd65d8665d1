/* What reading and computing cost on this machine, kept current from what was observed. A plain struct; the
 * caller sees to it that one thread at a time uses it.
 *
 * Two linear models are fitted (kv/plan.h):
 *     read    = requests x io_request_s + bytes / io_bytes_per_s
 *     compute = batch_s + tokens x token_s + depth x depth_s
 * by recursive least squares of the relative error, each observation making the older ones count 0.97 times
 * as much. One far off what is usual (a stall) is pulled in to three times the usual deviation; if such go
 * on, the usual deviation grows, and while it is above a quarter, as at the start, the costs are first moved
 * together half the way to what was observed: a disk or processor that really changed is followed within some
 * twenty observations. What the observations cannot tell apart stays as it was. */
#ifndef LLMS_KV_RATES_H
#define LLMS_KV_RATES_H

#include <stdint.h>

#include "kv/plan.h"

enum { RATES_TERMS = 3 };

/* One fit: seconds = sum of cost[i] x unit[i] x amount[i]. */
struct rates_fit {
    int terms;
    double unit[RATES_TERMS];                    /* seconds an amount of 1 costs, at the start */
    double cost[RATES_TERMS];                    /* in units, > 0 */
    double covariance[RATES_TERMS][RATES_TERMS]; /* of cost, in units of the noise */
    double spread;                               /* the usual relative deviation */
    uint64_t observed;
};

struct rates {
    struct plan_rates now; /* to be read at any time */
    struct rates_fit read, compute;
};

/* initial: measured at start, or NULL for a middling machine (1 GB/s, 0.1 ms a request; 20 ms a batch, 1 ms a
 * token, 0.1 us a position). */
void rates_init(struct rates *rates, const struct plan_rates *initial);
/* A restore's reads took so long, from the first submitted to the last in, without waiting for anything else.
 * Nothing read, or no time: left out. */
void rates_observe_read(struct rates *rates, uint64_t bytes, uint64_t requests, double seconds);
/* A batch took so long; depth: positions attended to, summed over its tokens (plan_depth). */
void rates_observe_compute(struct rates *rates, uint64_t tokens, double depth, double seconds);

#endif
