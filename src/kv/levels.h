/* Which level each chunk of a context gets. Pure functions; deterministic; no allocation.
 *
 * The budget: sum of bytes at the chosen levels <= ratio x sum of bytes the chunks' values would take at INT8
 * without scales (the paper's global compression ratio; 0.5 means 4 bits a value, scales counted), or as near
 * as the allowed levels come: where even the lowest do not meet it, all that may be lowered gets the lowest.
 *
 * A chunk's choices are the allowed levels not above the one it has; a chunk that has none, or must be kept,
 * stays as it is (and counts in the budget). */
#ifndef LLMS_KV_LEVELS_H
#define LLMS_KV_LEVELS_H

#include <stddef.h>
#include <stdint.h>

#include "kv/geometry.h"

enum levels_rule {
    LEVELS_KEEP,   /* nothing is lowered */
    LEVELS_PAPER,  /* Eq. 3 as printed: shares a, 1 - 3a, 2a at 8, 4, 2 bits by density rank, a where its
                      derivative is 0; scales are not counted */
    LEVELS_DAMAGE, /* ours: least sum of density x squared error under the byte budget; at worst one chunk's
                      one step behind the best assignment */
    LEVELS_FIXED,  /* all at the one level of `fixed`, whatever is allowed */
};

/* Bits of levels_rules.allowed: by the bits of a value, whatever the codec; 3 is ours alone. */
enum { LEVELS_16 = 1, LEVELS_8 = 2, LEVELS_4 = 4, LEVELS_3 = 8, LEVELS_2 = 16, LEVELS_ALL = 31 };

struct levels_chunk {
    double density;           /* Eq. 1, >= 0 */
    double damage[KV_LEVELS]; /* error at 16, 8, 4, 3, 2 bits (index 0 .. 4); negative: not known, modelled */
    uint8_t level;            /* now; the choice is never above it (invariant 5) */
    uint8_t keep;             /* 1: must not be lowered now (the sink, the newest, a chunk still filling) */
};

struct levels_rules {
    enum levels_rule rule;
    uint8_t allowed; /* LEVELS_*; not LEVELS_3 with the paper's codec */
    uint8_t fixed;
    double ratio;  /* (0, 2] */
    uint8_t codec; /* of 4 and 2 bits: 0, ours, or KV_PAPER */
};

/* The level of so many bits under these rules. */
static inline uint8_t levels_tag(const struct levels_rules *rules, unsigned bits)
{
    return (uint8_t)(bits < 8 ? bits | rules->codec : bits);
}

/* Writes the chosen level of each chunk. A chunk that keeps its bits keeps its codec. Returns the bytes they
 * take. */
uint64_t levels_choose(const struct levels_rules *rules, const struct kv_geometry *geometry,
                       const struct levels_chunk *chunks, size_t count, uint8_t *out);

/* The bytes that `ratio` grants. */
uint64_t levels_budget(double ratio, const struct kv_geometry *geometry, size_t count);

/* Squared error of a unit-variance value at a level, where it was not measured: the least that a uniform
 * quantiser of so many bits can have on a normal distribution; at level 3 the mean of 4's and 2's. */
double levels_damage_model(uint8_t bits);

/* The paper's share a of chunks that get 8 bits (LEVELS_PAPER), for the record and its test: it depends on
 * how the density is spread. */
double levels_paper_share(double ratio, const struct levels_chunk *chunks, size_t count);

#endif
