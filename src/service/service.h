/* The service: whose context, whose turn. What the api room speaks to; it knows no HTTP.
 *
 * One worker thread owns the engine's inference and all mutable KV state. Functions here may be called from
 * any thread; they check, enqueue and wait. Calls queue per app (owner), apps take turns, and calls to one
 * context run in the order they came. Ownership is checked first: another owner's context is -ENOENT. */
#ifndef LLMS_SERVICE_SERVICE_H
#define LLMS_SERVICE_SERVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/array.h"
#include "base/error.h"
#include "engine/engine.h"
#include "model/sampler.h"
#include "store/journal.h"

struct service;
struct call;

struct service_options {
    const char *model_path;
    const char *state_directory;
    uint64_t kv_budget_bytes;
    const char *policy; /* NULL: the default row of kv/policy.h */
    const char *evict;  /* NULL: the policy's; lctru, lru or cost */
    double kv_ratio;    /* 0: the policy's; of INT8, scales counted: 0.5 is 4 bits a value */
    uint8_t kv_levels;  /* 0: the policy's; LEVELS_16: all FP16; else LEVELS_8 and LEVELS_4, _3, _2
                           (kv/levels.h) */
    bool force_split;   /* stress: recompute_share of what could be read is recomputed, not what is planned */
    double recompute_share;     /* 0 to 1 */
    bool evict_all;             /* stress: everything leaves memory after each call */
    uint64_t evict_random;      /* stress: so does a random part, some of it unsaved, and random parts of what
                                   could be read are recomputed; the seed, 0: off */
    uint32_t context_length;    /* 0: the model's */
    uint32_t contexts_per_app;  /* 0: no limit */
    uint32_t queue_limit;       /* calls waiting, all apps together; 0: 256 */
    unsigned threads;           /* 0: one per CPU */
    bool watch_pressure;        /* the budget in force shrinks while memory is short */
    const char *pressure_path;  /* what tells so; NULL: the system (os/pressure.h) */
    unsigned pressure_quiet_ms; /* over when nothing came for so long; 0: 5000 */
};

/* Opens the model and the journal and starts the worker. */
int service_open(const struct service_options *options, struct service **out, struct error *error);
/* Refuses new calls (-ESHUTDOWN), lets the running one finish for up to grace_ms, then cancels it and all
 * that wait. Returns when the worker is idle. */
void service_stop(struct service *service, unsigned grace_ms);
void service_close(
    struct service *service); /* after service_stop and the release of all calls; NULL is fine */

const struct engine_model *service_model(const struct service *service);
const struct tokenizer *service_tokenizer(const struct service *service);

/* ---- contexts ---- */

struct context_info {
    struct journal_context record;
    uint64_t tokens;          /* of the transcript that a next call would stand on */
    uint64_t tokens_resident; /* of them, whose KV is in memory */
    uint64_t chunks_resident; /* of them by level: */
    uint64_t chunks_level16, chunks_level8, chunks_level4, chunks_level3, chunks_level2;
    uint64_t chunks_stored;  /* on flash and not in memory (not loaded: as many as its files hold) */
    uint64_t chunks_missing; /* neither: to be computed */
    uint64_t bytes_resident;
    bool busy; /* a call of it runs or waits */
};
void context_info_deinit(struct context_info *info);
void context_infos_free(struct context_info *infos, size_t count);

int service_context_new(struct service *service, const char *owner, const char *name,
                        const char *system_prompt, struct context_info *out,
                        struct error *error); /* -EDQUOT, -E2BIG (longer than a context) */
int service_context_get(struct service *service, const char *owner, const char *id, struct context_info *out,
                        struct error *error);
int service_context_list(struct service *service, const char *owner, struct context_info **out, size_t *count,
                         struct error *error);
int service_context_turns(struct service *service, const char *owner, const char *id,
                          struct journal_turn **out, size_t *count, struct error *error);
/* Waits its turn behind the context's calls; shares its chunks. name may be NULL: the source's. */
int service_context_fork(struct service *service, const char *owner, const char *id, const char *name,
                         struct context_info *out, struct error *error);
/* The same without waiting: a call that is collected, cancelled and released as any other. service_forked,
 * after CALL_DONE without a failure and once: the copy. */
int service_fork_start(struct service *service, const char *owner, const char *id, const char *name,
                       struct call **out, struct error *error);
void service_forked(struct service *service, struct call *call, struct context_info *out);
/* Cancels the context's calls (they end with -ECANCELED), then deletes it for good. */
int service_context_delete(struct service *service, const char *owner, const char *id, struct error *error);

/* ---- calls ---- */

enum call_overflow { CALL_SLIDE, CALL_REFUSE }; /* when the context is full: drop oldest turns, or -E2BIG */

struct call_params {
    const char *prompt; /* UTF-8; copied */
    size_t prompt_length;
    uint32_t max_tokens; /* 0: as many as fit */
    struct sampler_params sampling;
    const char *const *stop; /* copied; a reply ends before the first of these it would contain */
    size_t stop_count;
    enum call_overflow overflow;
    bool prepare; /* only bring the context in: no prompt, no reply, nothing journalled */
};

enum call_finish {
    CALL_FINISH_END,
    CALL_FINISH_STOP,
    CALL_FINISH_LENGTH
}; /* end token, stop string, max_tokens or full */

struct call_result {
    int code;           /* 0, or why it failed: -ECANCELED, -E2BIG, -ENOSPC, -ESHUTDOWN, ... */
    struct error error; /* text when code < 0 */
    enum call_finish finish;
    uint64_t turn;          /* ordinal of the journalled turn */
    uint64_t prompt_tokens; /* new in this call */
    uint64_t reply_tokens;
    uint64_t cached_tokens;  /* of the transcript before this call that did not have to be computed again */
    uint64_t context_tokens; /* after the call */
    uint64_t turns_dropped;  /* slid out by this call */
    uint64_t chunks_resident, chunks_loaded,
        chunks_recomputed; /* of the context's, at the start of the call */
    uint64_t bytes_read;   /* from flash, by restoring */
    double plan_ms;        /* what the plan of restoring predicted for its pass */
    double queue_ms;       /* waiting for its turn */
    double stall_ms;       /* of restoring: the computation waited for reads */
    double switch_ms;      /* from its turn until the context was usable */
    double prompt_ms;      /* processing the new prompt */
    double ttft_ms;        /* from arrival to the first token of the reply */
    double generate_ms;    /* from the first token to the last */
    double total_ms;       /* from arrival to durable */
};

/* Queues a call. 0, or -ENOENT, -EINVAL (bad sampling, empty prompt), -EAGAIN (queue full), -ESHUTDOWN.
 * *out must be released, once; releasing an unfinished call cancels it. */
int service_call_start(struct service *service, const char *owner, const char *id,
                       const struct call_params *params, struct call **out, struct error *error);

enum call_event { CALL_WAITING, CALL_TEXT, CALL_DONE };

/* Waits up to timeout_ms for something new: CALL_TEXT appended whole UTF-8 characters to *text; CALL_DONE
 * means all text was delivered, the turn is durable (or failed), and call_result is valid; CALL_WAITING is a
 * timeout. One thread at a time. */
enum call_event call_wait(struct call *call, unsigned timeout_ms, struct buffer *text);
const struct call_result *call_result(const struct call *call); /* after CALL_DONE */
void call_cancel(struct call *call); /* any thread; the context stays as it was before the call */
void call_release(struct call *call);

/* ---- the whole ---- */

struct service_status {
    uint64_t uptime_ms;
    uint64_t contexts, contexts_resident; /* all apps; with any KV in memory */
    uint64_t kv_budget_bytes, kv_resident_bytes;
    uint64_t kv_allowed_bytes; /* what pressure leaves of the budget */
    bool pressure;             /* memory is short */
    uint8_t kv_level;          /* K and V are written at */
    uint8_t kv_levels;         /* LEVELS_*: and may be lowered to */
    double kv_ratio;           /* towards so much of INT8; 0: nothing is lowered */
    const char *policy, *evict;
    uint64_t stored_bytes; /* chunk files on flash */
    uint32_t context_length, contexts_per_app;
    uint64_t calls_running, calls_waiting;
    uint64_t calls_total, calls_failed, calls_cancelled;
    uint64_t prompt_tokens_total, reply_tokens_total, recomputed_tokens_total;
    uint64_t chunks_resident_total, chunks_loaded_total, chunks_recomputed_total; /* as calls found them */
    uint64_t evicted_bytes_total;
    double switch_ms_total, stall_ms_total, ttft_ms_total, generate_ms_total;
    unsigned threads;
    const char *isa;
};
void service_status(struct service *service, struct service_status *out);

/* Changes the budget while running: at the next step of the running call or the next layer of its prompt, and
 * before the next call starts, what is over it leaves memory. */
int service_set_budget(struct service *service, uint64_t budget_bytes, struct error *error);

#endif
