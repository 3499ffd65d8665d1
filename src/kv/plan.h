/* How missing chunks come back: which are read and which recomputed. A pure function (Eq. 4, and past it).
 *
 * Reading and recomputing go on together, layer by layer, under the new prompt's own processing, which must
 * be done anyway. Predicted finish of a split = max(io, compute) + what cannot overlap (the first layer's
 * read): io      = requests x io_request_s + bytes / io_bytes_per_s compute = base_s(prompt tokens) + per
 * recomputed token: token_s + position x depth_s, batches having a floor Chunks without a copy on flash must
 * be recomputed. Rates are measured on this machine and kept current by the caller. On a fast disk and a slow
 * processor the best plan recomputes nothing; that is a result, not a failure. */
#ifndef LLMS_KV_PLAN_H
#define LLMS_KV_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct plan_rates {
    double io_bytes_per_s;
    double io_request_s; /* fixed cost of a read request, seconds */
    double batch_s;      /* computing any batch at all: reading the weights once */
    double token_s;      /* each token of a batch, seconds */
    double depth_s;      /* added per token and per position it attends to, seconds */
};

struct plan_chunk {
    uint32_t position; /* of its first token */
    uint32_t tokens;   /* 1..16 */
    uint64_t bytes;    /* to read; 0: no copy on flash */
};

enum plan_mode { PLAN_BEST, PLAN_LOAD_ONLY, PLAN_RECOMPUTE_ONLY, PLAN_FORCED };

struct plan_request {
    const struct plan_chunk *chunks; /* the missing ones, by position */
    size_t count;
    uint32_t prompt_tokens; /* to be computed anyway, behind all chunks */
    uint32_t prompt_position;
    uint32_t layers;
    enum plan_mode mode;
    double forced_share;  /* PLAN_FORCED: this share of the loadable chunks is recomputed, 0..1 */
    uint64_t forced_seed; /* which: drawn with this seed */
};

struct plan {
    bool *recompute; /* count of them, the caller's array */
    size_t recomputed, loaded;
    uint64_t bytes_read;
    double io_s, compute_s, total_s; /* predicted */
};

/* Fills plan; plan->recompute must have room for count. PLAN_BEST within 1 % of the best subset under the
 * model (property-tested against brute force for small counts). */
void plan_choose(const struct plan_rates *rates, const struct plan_request *request, struct plan *plan);
/* Predicts a given choice (plan->recompute filled in). */
void plan_predict(const struct plan_rates *rates, const struct plan_request *request, struct plan *plan);

#endif
