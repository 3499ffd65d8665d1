/* Lowering what a context's chunks hold, step by step: the damage of lowering is measured once for each
 * chunk, the levels of the whole sequence are chosen from it and from the density that attention gave
 * (kv/levels.h), and what is above its level is lowered.
 *
 * A step takes one chunk, a fraction of a millisecond, so that whoever settles never keeps a call waiting.
 * The first chunk holds what all tokens attend to whatever it says (attention sinks), the newest are read
 * most: they keep their level until they are neither. The ratio is that of the chunks between, so that a
 * short context, whose few chunks cost little, does not pay for them with its precision. LEVELS_FIXED lowers
 * all full chunks, for comparison. The worker's alone, as its sequence is. */
#ifndef LLMS_ENGINE_LOWERING_H
#define LLMS_ENGINE_LOWERING_H

#include <stdbool.h>

#include "engine/engine.h"
#include "kv/levels.h"

struct lowering {
    const struct engine *engine;
    struct kv_pool *pool;
    const struct levels_rules *rules;
    uint8_t write_level; /* at which K and V are computed into chunks */
    void *room;          /* for a chunk below level 16, 64-byte aligned */
};

/* True: something was measured or lowered, and there may be more to do. */
bool lowering_step(const struct lowering *lowering, struct kv_sequence *sequence);

/* For a sequence of `count` chunks that does not fit its budget. The bytes they take, now at `levels`, once
 * all that may be lowered is at the lowest that the rules allow; the last chunk stays as it is beside the
 * newest that do, for it is computed before others are the newest. -ENOMEM. */
int64_t lowering_least(const struct lowering *lowering, const uint8_t *levels, size_t count);
/* The ratio at which they take no more than `bytes`, if there is one, and at most that of the rules. */
double lowering_ratio(const struct lowering *lowering, size_t count, uint64_t bytes);

#endif
