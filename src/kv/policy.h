/* The policies that can be compared, as rows of one table over one mechanism. Constant data. */
#ifndef LLMS_KV_POLICY_H
#define LLMS_KV_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kv/evict.h"
#include "kv/levels.h"
#include "kv/plan.h"

enum kv_unit {
    KV_UNIT_CHUNK,   /* chunks are evicted and brought back one by one */
    KV_UNIT_CONTEXT, /* a context leaves memory as a whole and comes back as a whole */
};

struct kv_policy {
    const char *name;        /* as --policy takes it */
    const char *description; /* one line */
    uint8_t write_level;     /* at which K and V are computed into chunks: 16 or 8 */
    struct levels_rules
        levels; /* applied after each call; ratio is the default, the daemon's option goes first */
    enum kv_unit unit;
    bool stores;  /* chunks are written to flash; if not, an evicted chunk is lost and recomputed */
    bool ahead;   /* written after each call, so that eviction does no I/O; if not, when they are evicted */
    bool overlap; /* layer l is computed while layer l + 1 is read; if not, all is read first */
    enum plan_mode plan;
    enum evict_order evict;
};

const struct kv_policy *kv_policy_find(const char *name); /* NULL: there is none of this name */
/* All of them, the default first. */
const struct kv_policy *kv_policy_list(size_t *count);

#endif
