/* How missing chunks come back: which are read and which recomputed. Pure functions (Eq. 4, and past it).
 *
 * Reading and recomputing go on together, layer by layer, under the new prompt's own processing, which must
 * be done anyway. The model:
 *     io      = requests x io_request_s + bytes / io_bytes_per_s
 *               requests: one a layer for each run of chunks read whose positions follow each other
 *     compute = batch_s, if there is anything to compute at all
 *               + for each recomputed token and each of the prompt: token_s + positions it attends to x
 * depth_s total   = max(io + compute / layers, io / layers + compute) the last being two stages one behind
 * the other, each layer the same: what cannot overlap is the first layer's read, or the last one's
 * computation. A batch costs batch_s however small it is, so recompute that joins a prompt pays only for its
 * tokens. Later positions cost more than earlier ones.
 *
 * Chunks without a copy on flash must be recomputed. Rates are measured on this machine and kept current by
 * the caller (kv/rates.h). On a fast disk and a slow processor the best plan recomputes nothing; that is a
 * result, not a failure. */
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
    uint64_t bytes;    /* to read, all layers; 0: no copy on flash */
    bool pinned;       /* PLAN_BEST reads it where it can: recomputed it would take memory that is not free */
};

enum plan_mode { PLAN_BEST, PLAN_LOAD_ONLY, PLAN_RECOMPUTE_ONLY, PLAN_FORCED };

struct plan_request {
    const struct plan_chunk *chunks; /* the missing ones, by position */
    size_t count;
    uint32_t prompt_tokens; /* to be computed anyway, behind all chunks; may be 0 */
    uint32_t prompt_position;
    uint32_t layers;
    enum plan_mode mode;
    bool serial;          /* reading and computing do not overlap: total = io + compute */
    double forced_share;  /* PLAN_FORCED: this share of the loadable chunks is recomputed, 0..1, rounded */
    uint64_t forced_seed; /* which: drawn with this seed */
};

struct plan {
    bool *recompute; /* count of them, the caller's array */
    size_t recomputed, loaded;
    uint64_t bytes_read;
    uint64_t requests;
    double io_s, compute_s, total_s; /* predicted */
};

/* Fills plan; plan->recompute must have room for count. PLAN_BEST is exact up to 12 loadable chunks and
 * within 1 %, or half of one chunk's own time, of the best subset beyond (property-tested against all
 * subsets). No allocation; 2,000 chunks take a fraction of a millisecond. */
void plan_choose(const struct plan_rates *rates, const struct plan_request *request, struct plan *plan);
/* Predicts a given choice (plan->recompute filled in; true is put in where bytes is 0). */
void plan_predict(const struct plan_rates *rates, const struct plan_request *request, struct plan *plan);
/* The positions that `tokens` tokens from `position` on attend to, summed: for rates_observe_compute too. */
double plan_depth(uint32_t position, uint32_t tokens);

#endif
