/* Which context's KV leaves memory next. A pure function of what is known about them. */
#ifndef LLMS_KV_EVICT_H
#define LLMS_KV_EVICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct evict_candidate {
    uint64_t last_used;     /* when a call last used it, on any clock that goes forward */
    uint64_t chunks;        /* it holds */
    uint64_t private_bytes; /* of chunks that it alone holds: what evicting it frees at once */
    bool locked;            /* a call runs on it (invariant 3) */
};

#define EVICT_NONE SIZE_MAX

/* The index of the one to evict, or EVICT_NONE. The least recently used of those whose eviction frees memory;
 * where no single one does, because all that is left is shared, the least recently used that holds any chunk,
 * so that evicting one after the other still frees everything. Never a locked one. Ties: the first. */
size_t evict_choose(const struct evict_candidate *candidates, size_t count);

#endif
