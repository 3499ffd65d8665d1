/* Which level each chunk of a context gets. Pure functions; deterministic.
 *
 * The budget: sum of bytes at the chosen levels <= ratio x sum of bytes the chunks' values would take at INT8
 * without scales (the paper's global compression ratio; 0.5 means 4 bits a value, scales counted), or as near
 * as the allowed levels come. */
#ifndef LLMS_KV_LEVELS_H
#define LLMS_KV_LEVELS_H

#include <stddef.h>
#include <stdint.h>

#include "kv/geometry.h"

enum levels_rule {
    LEVELS_KEEP,   /* nothing is lowered */
    LEVELS_PAPER,  /* Eq. 3 as printed: shares a, 1 - 3a, 2a at 8, 4, 2 bits by density rank, a where its
                      derivative is 0 */
    LEVELS_DAMAGE, /* ours: least sum of density x squared error under the byte budget (greedy on the convex
                      hull) */
    LEVELS_FIXED,  /* all at the one level of `fixed` */
};

struct levels_chunk {
    double density;   /* Eq. 1, >= 0 */
    double damage[4]; /* expected squared error at levels 16, 8, 4, 2 (index 0 .. 3): measured or modelled */
    uint8_t level;    /* now; the choice is never above it (invariant 5) */
    uint8_t keep;     /* 1: must not be lowered now (the sink, the newest, a chunk still filling) */
};

struct levels_rules {
    enum levels_rule rule;
    uint8_t allowed; /* bits: 1 level 16, 2 level 8, 4 level 4, 8 level 2 */
    uint8_t fixed;
    double ratio; /* (0, 2] */
};

/* Writes the chosen level of each chunk. Returns the bytes they take. */
uint64_t levels_choose(const struct levels_rules *rules, const struct kv_geometry *geometry,
                       const struct levels_chunk *chunks, size_t count, uint8_t *out);

/* The paper's share a for a given ratio (LEVELS_PAPER), for the record and its test. */
double levels_paper_share(double ratio);

#endif
