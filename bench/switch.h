/* llms-bench switch: what its parts share. switch.c takes the options and tells the results, switch_run.c
 * makes the calls on a service of its own, switch_peer.c repeats them on llama-server. */
#ifndef LLMS_BENCH_SWITCH_H
#define LLMS_BENCH_SWITCH_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/array.h"
#include "base/error.h"

struct switch_options {
    const char *model;
    const char *directory; /* a fresh one; absolute */
    uint64_t contexts;
    uint64_t tokens; /* that each is filled to */
    uint64_t budget_bytes;
    uint64_t delta; /* new prompt tokens a call, markup included */
    uint64_t calls; /* switches that count; as many resident calls */
    uint64_t pause_ms;
    uint64_t threads;
    uint64_t seed;
    const char *evict; /* NULL, or an eviction order to replace the policy's */
    double kv_ratio;   /* 0, or the ratio of compression to replace the policy's */
    bool restores;     /* measure bringing a context in without a call, too */
};

enum switch_kind {
    SWITCH_AWAY,     /* to a context that others were used since */
    SWITCH_RESIDENT, /* to the same once more */
    SWITCH_RESTORE,  /* away, but only bringing it in: no prompt */
    SWITCH_KINDS
};

struct switch_call {
    enum switch_kind kind;
    uint32_t context;
    bool warmup;         /* not counted */
    uint64_t turn;       /* ordinal within the context */
    size_t sent;         /* tokens of the context with this call's prompt */
    struct tokens whole; /* they themselves, where they are not the first `sent` of the context's sequence:
                            llms-bench trace, where contexts slide */
    uint64_t prompt;     /* new ones of them */
    double ms;           /* to the first token; of a restore: until the context was in */
    double queue_ms, stall_ms, plan_ms;
    uint64_t bytes_read;
    uint64_t resident, loaded, recomputed; /* chunks */
    uint64_t recomputed_tokens;
};

/* What one policy did. Zeroed is empty. */
struct switch_run {
    const char *policy; /* NULL: the service's default */
    int split;          /* -1: as planned; else this many percent of what could be read is recomputed */
    struct error error; /* code < 0: it came to no result, as where its contexts do not fit the budget */
    struct switch_call *calls;
    size_t call_count;
    struct tokens *sequences; /* each context's tokens at the end (of runs[0] only) */
    size_t *filled;           /* of them, before the first call */
    size_t context_count;
    double compute_tokens_per_s; /* of computing: the best that any run of the bench saw */
    uint64_t kv_resident_bytes;  /* at the end */
    unsigned threads;            /* the service's */
};

/* Makes the calls of runs[0 .. count - 1], all of one policy, one run after the other: the first one fills
 * the contexts, the others go on with them. The caller gives policy and split. A failure is the error of the
 * run it came in and of those after it. */
int switch_run(const struct switch_options *options, struct switch_run *runs, size_t count);
void switch_run_deinit(struct switch_run *run);

/* What llama-server did with the same calls. */
struct switch_peer {
    const char *mode;
    double *ms[2], *computed[2]; /* by SWITCH_AWAY, SWITCH_RESIDENT: to the first token; prompt tokens that
                                    were not found in a cache */
    size_t count[2];
    double *save_ms; /* saving the slot after each call: not in ms */
    size_t save_count;
};

enum { SWITCH_PEER_MODES = 3 };
/* path: a peer-llama-cpp. Modes 0 .. SWITCH_PEER_MODES - 1: a host cache of the budget, one without limit,
 * slots saved and restored by hand. */
int switch_peer(const struct switch_options *options, const struct switch_run *run, const char *path,
                unsigned mode, struct switch_peer *out, struct error *error);
void switch_peer_deinit(struct switch_peer *peer);

/* Set by SIGINT and SIGTERM: what runs ends with -EINTR, so that the directory is removed. */
extern volatile sig_atomic_t switch_interrupted;

#endif
