#include "kv/evict.h"

size_t evict_choose(const struct evict_candidate *candidates, size_t count)
{
    size_t freeing = EVICT_NONE, holding = EVICT_NONE;
    for (size_t i = 0; i < count; i++) {
        const struct evict_candidate *c = &candidates[i];
        if (c->locked || c->chunks == 0)
            continue;
        if (holding == EVICT_NONE || c->last_used < candidates[holding].last_used)
            holding = i;
        if (c->private_bytes && (freeing == EVICT_NONE || c->last_used < candidates[freeing].last_used))
            freeing = i;
    }
    return freeing != EVICT_NONE ? freeing : holding;
}
