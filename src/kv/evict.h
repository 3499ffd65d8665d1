/* In which order chunks leave memory. Pure functions of what is known about them.
 *
 * Each order is complete, so that a choice never depends on how the candidates happen to be listed: behind
 * what it goes by come, in turn, least recently used first, earlier positions first, lower index first.
 * Chunks of one context were all last used by the same call, so inside a context it is the position that
 * decides: the earliest go first, because attention reaches back less far from there (recompute is cheapest),
 * and because what is missing then is one run of neighbours (fewest reads). */
#ifndef LLMS_KV_EVICT_H
#define LLMS_KV_EVICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum evict_order {
    EVICT_LCTRU, /* the paper's: heaviest level first, least recently used inside a level */
    EVICT_LRU,   /* least recently used first */
    EVICT_COST,  /* least of reload_s x chance of reuse / bytes first; the chance falls with age as
                    1 / (now - last_used + 1): a context called n calls ago comes back in the next one with a
                    probability that goes down like 1 / n, as it does where popularity is uneven (Zipf) */
};

int evict_order_find(const char *name, enum evict_order *order); /* "lctru", "lru", "cost": 0; else -EINVAL */
const char *evict_order_name(enum evict_order order);

struct evict_candidate {
    uint64_t last_used; /* on a clock that goes up by one a call */
    uint64_t bytes;     /* freed by dropping it */
    double reload_s;    /* to bring it back: reading, or recomputing if that is all there is */
    uint32_t position;  /* of its first token in its context */
    uint8_t level;
    bool clean;  /* a copy is on flash, or by policy none is wanted: dropping it does no I/O (invariant 4) */
    bool locked; /* of the running call (invariant 3), or being written */
};

/* Orders the indices of those that may be dropped now (clean, not locked, and with bytes to free), first to
 * go first, until their bytes reach `need`. Returns how many are in out (room for count); *freed their bytes,
 * which may be less than need. Costs O(count + chosen x log count); no allocation. */
size_t evict_choose(enum evict_order order, uint64_t now, const struct evict_candidate *candidates,
                    size_t count, uint64_t need, size_t *out, uint64_t *freed);

#endif
