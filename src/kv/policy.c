/* The table of policies. */
#include "kv/policy.h"

#include <string.h>

#define TOLERANT                                                                                             \
    {                                                                                                        \
        LEVELS_DAMAGE, LEVELS_8 | LEVELS_4 | LEVELS_3 | LEVELS_2, 0, 0.5                                     \
    }
#define AS_WRITTEN                                                                                           \
    {                                                                                                        \
        LEVELS_KEEP, 0, 0, 1                                                                                 \
    }

static const struct kv_policy policies[] = {
    {"llms", "levels by density and damage, swap-out ahead of time, reads and recompute in one pipeline", 8,
     TOLERANT, KV_UNIT_CHUNK, .stores = true, .ahead = true, .overlap = true, PLAN_BEST, EVICT_COST},
    {"paper",
     "as llms, with the paper's own level shares (Eq. 3), codec and eviction order (LCTRU)",
     8,
     {LEVELS_PAPER, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, 0.5, KV_PAPER},
     KV_UNIT_CHUNK,
     .stores = true,
     .ahead = true,
     .overlap = true,
     PLAN_BEST,
     EVICT_LCTRU},
    {"lmk", "whole contexts are dropped and recomputed", 16, AS_WRITTEN, KV_UNIT_CONTEXT, .stores = false,
     .ahead = false, .overlap = false, PLAN_RECOMPUTE_ONLY, EVICT_LRU},
    {"swapping", "whole contexts are written out when evicted and read back, uncompressed", 16, AS_WRITTEN,
     KV_UNIT_CONTEXT, .stores = true, .ahead = false, .overlap = false, PLAN_LOAD_ONLY, EVICT_LRU},
    {"vllm-s", "chunks are written out when evicted and read back, uncompressed", 16, AS_WRITTEN,
     KV_UNIT_CHUNK, .stores = true, .ahead = false, .overlap = false, PLAN_LOAD_ONLY, EVICT_LRU},
    {"vllm-sq", "as vllm-s, with every chunk at 8 bits", 8, AS_WRITTEN, KV_UNIT_CHUNK, .stores = true,
     .ahead = false, .overlap = false, PLAN_LOAD_ONLY, EVICT_LRU},
    {"int4",
     "every chunk at 4 bits after its call, swap-out ahead of time, only read back",
     8,
     {LEVELS_FIXED, LEVELS_4, 4, 1},
     KV_UNIT_CHUNK,
     .stores = true,
     .ahead = true,
     .overlap = true,
     PLAN_LOAD_ONLY,
     EVICT_COST},
    {"no-compression", "llms without its levels: every chunk at 8 bits", 8, AS_WRITTEN, KV_UNIT_CHUNK,
     .stores = true, .ahead = true, .overlap = true, PLAN_BEST, EVICT_COST},
    {"no-pipeline", "llms without its pipeline: everything is read, and only then computed", 8, TOLERANT,
     KV_UNIT_CHUNK, .stores = true, .ahead = true, .overlap = false, PLAN_LOAD_ONLY, EVICT_COST},
    {"no-lifecycle", "llms without its lifecycle: written out when evicted, least recently used first", 8,
     TOLERANT, KV_UNIT_CHUNK, .stores = true, .ahead = false, .overlap = true, PLAN_BEST, EVICT_LRU},
};

const struct kv_policy *kv_policy_list(size_t *count)
{
    *count = sizeof policies / sizeof *policies;
    return policies;
}

const struct kv_policy *kv_policy_find(const char *name)
{
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        if (strcmp(policies[i].name, name) == 0)
            return &policies[i];
    return NULL;
}
