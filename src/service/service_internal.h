/* What the files of the service room share. Private to it.
 *
 * Threads. API threads and the worker meet at service->lock, which is held for moments only: never while
 * computing, and never while the journal is used. Each field below says whose it is: "lock" (read and written
 * under service->lock), "worker" (touched by the worker thread only), "fixed" (set before it is shared).
 * A call's own lock is taken last, below service->lock. */
#ifndef LLMS_SERVICE_INTERNAL_H
#define LLMS_SERVICE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/random.h"
#include "engine/lowering.h"
#include "kv/evict.h"
#include "kv/plan.h"
#include "kv/policy.h"
#include "kv/rates.h"
#include "kv/sequence.h"
#include "os/aio.h"
#include "os/pressure.h"
#include "service/queue.h"
#include "service/service.h"
#include "service/transcript.h"
#include "store/chunkfile.h"

/* A context that is in use: it has jobs, or KV in memory. All others exist in the journal only. It lives
 * while jobs > 0 or resident. */
struct context {
    struct context *next;      /* lock: the table */
    char id[JOURNAL_ID_BYTES]; /* fixed */
    char *owner;               /* fixed */
    unsigned jobs;             /* lock: calls waiting or running, and whoever else holds on to it */
    bool deleted;              /* lock: being deleted, or deleted and its KV not dropped yet */
    bool resident;             /* lock: the worker has it in its list */
    struct context_shown {     /* lock: what is told of it; the worker publishes it */
        uint64_t tokens_resident, bytes;
        uint64_t levels[KV_LEVELS]; /* chunks in memory at 16, 8, 4, 3, 2 bits */
        uint64_t stored;            /* chunks on flash and not in memory */
    } shown;

    struct context *next_resident; /* worker: the list of those that may hold chunks */
    bool loaded;                   /* worker: the fields below are valid */
    struct journal_context record; /* worker: as journalled */
    struct tokens tokens;          /* worker: the sequence a next call stands on */
    size_t base_count;             /* worker: the first so many are the system prompt's */
    size_t computed; /* worker: the KV of the first so many was computed once, so that computing it
                        now is recomputing; >= sequence.tokens */
    struct kv_sequence sequence; /* worker: KV of the first sequence.tokens of tokens */
    uint64_t last_used;          /* worker: service->tick then */
    bool unsaved;                /* worker: it may have chunks to be written ahead of time */
};

enum call_kind { CALL_KIND_TURN, CALL_KIND_PREPARE, CALL_KIND_FORK };

struct call {
    struct queue_item item;        /* lock: queued while item.app */
    struct call *next, **previous; /* lock: service->calls, while not done */
    struct service *service;       /* fixed */
    struct context *context;       /* fixed; held (jobs) until done */
    enum call_kind kind;           /* fixed */
    atomic_uint references;        /* the caller's, and the service's until it is done */
    uint64_t arrived_ns;           /* fixed */

    char *prompt; /* fixed from here: the request */
    size_t prompt_length;
    uint32_t max_tokens;
    struct sampler_params sampling;
    char **stops;
    size_t stop_count;
    enum call_overflow overflow;
    char *fork_name; /* NULL: the source's */

    atomic_int cancelled; /* 0, or the code it ends with */
    atomic_bool cancel;   /* the same for the engine */

    struct journal_context forked; /* written before done, read after */

    pthread_mutex_t lock; /* around what follows */
    pthread_cond_t changed;
    bool done;
    struct buffer text; /* not collected yet */
    struct call_result result;
};

enum { RESTORE_SLOTS = 3 }; /* layers that a restore reads at once */

struct service {
    struct engine *engine; /* fixed */
    struct journal *journal;
    struct kv_pool *pool;
    struct transcript_rules rules;
    uint32_t context_length, contexts_per_app, queue_limit;
    uint8_t kv_level;
    uint64_t opened_ns;
    pthread_t worker;

    pthread_mutex_t lock;
    pthread_cond_t work; /* the worker waits: something to do */
    pthread_cond_t idle; /* others wait: a call came to its end */
    struct queue queue;
    struct context *table;
    struct call *calls;   /* not done yet */
    struct call *running; /* NULL: none */
    bool stopping;        /* nothing new is taken */
    bool quit;            /* the worker shall end */
    bool sweep;           /* the worker shall look for deleted contexts and a changed budget */
    struct buffer
        deleted; /* lock: ids of deleted contexts, JOURNAL_ID_BYTES each; the worker drops their files */
    struct service_status status; /* its counters */

    uint64_t budget;           /* lock: for KV, as configured */
    uint64_t target;           /* lock: what pressure leaves of it */
    bool pressed;              /* lock: memory is short */
    uint64_t shrunk_ns;        /* lock: when the target was lowered last */
    uint64_t stretched;        /* worker: what the running call needs beyond the target */
    struct pressure *pressure; /* fixed; NULL: not watched */

    struct swapout *swapping; /* lock: handed to the writer, NULL: none */
    bool swapped;             /* lock: the writer is done with it */
    bool writer_quit;         /* lock */
    pthread_cond_t write;     /* the writer waits */
    pthread_t writer;

    struct kv_policy chosen;        /* fixed: a row of the table, as the options change it */
    const struct kv_policy *policy; /* fixed: it */
    enum plan_mode plan_mode;       /* worker; changed by evict_random only */
    double plan_share;              /* worker: of PLAN_FORCED */
    bool evict_all;                 /* fixed: the stress option */
    struct random evict_random;     /* worker: the stress option, where not 0 */
    struct chunk_store *store;      /* worker, and the writer in segment_write; NULL: nothing is stored */
    struct aio *aio;                /* worker */
    struct read_buffer {
        unsigned char *data;
        size_t bytes;
    } read_buffers[RESTORE_SLOTS]; /* worker: what restores read into */
    struct rates rates;            /* worker */
    uint64_t mark;                 /* worker */
    void *lowered;                 /* worker: room for a chunk below level 16 */
    struct context *resident;      /* worker */
    uint64_t tick;                 /* worker: goes up with every job */
    float *logits;                 /* worker: a vocabulary of them */
};

/* ---- context.c: the table, and a context's tokens ---- */

/* Under the lock: the context in the table, made if need be, with one more job. NULL: out of memory. */
struct context *context_hold(struct service *service, const char *owner, const char *id);
struct context *context_find(struct service *service, const char *id);  /* under the lock; NULL: not in use */
void context_release(struct service *service, struct context *context); /* under the lock */
void context_forget(struct service *service, struct context *context);  /* under the lock: not resident now */

/* The worker's: reads it from the journal unless that was done. */
int context_load(struct service *service, struct context *context, struct error *error);
void context_publish(struct service *service, struct context *context);

/* ---- share.c: chunks that contexts of one owner have in common; the worker's ---- */

/* Gives the empty sequence its chunks up to context->computed: others', those on flash under their keys, and
 * lost ones. May find that the last token was not computed. 0 or -ENOMEM. */
int share_attach(struct service *service, struct context *context);
/* Extends a sequence of whole chunks by whole ones that others have already or that are on flash, up to
 * `limit` tokens, as far as they follow each other; context->computed goes with it. 0 or -ENOMEM. */
int share_extend(struct service *service, struct context *context, size_t limit);
/* Lets the copy that was journalled begin with the source's chunks. It can always be computed from its tokens
 * instead, so nothing that goes wrong here matters. */
void share_fork(struct service *service, struct context *source, const struct journal_context *record);
/* The files that the context's chunks lie in are its own too from now on, so that they outlive other
 * contexts' end. A chunk in memory whose file is about to go is to be written again. */
void share_files(struct service *service, struct context *context);
/* These chunks lie in another file now: whoever shares them is to look after it. */
void share_rewritten(struct service *service, struct kv_chunk *const *chunks, size_t count);

/* ---- residency.c: the worker's memory ---- */

/* Room for `need` more bytes of the running context: evicts others as far as that takes. */
int residency_make_room(struct service *service, uint64_t need, struct error *error);
void residency_evict_all(struct service *service); /* the stress option: nothing stays */
/* The stress option: a random part of what is in memory goes, a random part of it is not on flash then. */
void residency_evict_random(struct service *service);
/* Room for positions up to `end` of context, which is the running one: evicts others as far as that takes
 * (invariants 2 and 3). -ENOSPC where the budget cannot hold it even alone. */
int residency_reserve(struct service *service, struct context *context, size_t end, struct error *error);
void residency_enter(struct service *service, struct context *context); /* it may hold chunks from now on */
/* The job on context is over: publishes what it holds, and takes it off the list if that is nothing. */
void residency_settle(struct service *service, struct context *context);
void residency_sweep(struct service *service);    /* drops deleted contexts, meets a lowered budget */
void residency_drop_all(struct service *service); /* at the end */

/* ---- pressure.c: the budget in force ---- */

void budget_watch(struct service *service, const struct service_options *options); /* where it can */
/* Under the lock, the worker's: puts in force what shall hold. True: more is resident than that allows. */
bool budget_apply(struct service *service);
unsigned budget_due_ms(const struct service *service); /* under the lock: until it shrinks again; 0: never */
/* Between two steps of a call, and two layers of a pass: the budget applied and met. Reads may be under way.
 */
void budget_tend(struct service *service);
/* Lets the running call have `bytes` of the configured budget though memory is short. False: it has, or they
 * are more than is configured. */
bool budget_stretch(struct service *service, uint64_t bytes);

/* ---- turn.c and generate.c: one call ---- */

/* A running call: what it has to undo if it fails, and its reply so far. */
struct turn {
    struct service *service;
    struct call *call;
    struct context *context;
    struct call_result *result; /* the worker's own, copied to the call when done */
    uint64_t started_ns;
    size_t before;        /* tokens before the prompt */
    size_t prompt_end;    /* tokens with it */
    uint64_t window_turn; /* after sliding */
    size_t old_computed;
    uint64_t recount;         /* chunks computed again before this pass, or by sliding in it */
    uint64_t reread;          /* chunks read before this pass */
    bool tight;               /* not all fits as it is computed: what is on flash is read */
    size_t recomputed_tokens; /* by restoring */
    struct kv_chunk **bad;    /* restore: found unreadable in this attempt */
    size_t bad_count;
    bool slid;
    struct tokens old_tokens; /* if slid: the sequence before */
    size_t old_base_count;
    struct buffer reply;
    size_t delivered;   /* bytes of reply given to the caller */
    struct tokens ends; /* for each reply token: reply's length after it, or -1 inside a character */
};

int turn_run(struct turn *turn);                              /* restore, prompt, generate, settle */
int turn_prepare(struct turn *turn);                          /* restore only */
int turn_generate(struct turn *turn);                         /* from service->logits on */
int turn_compute(struct turn *turn, size_t end, bool logits); /* KV of positions up to end */
int turn_cancelled(struct turn *turn);                        /* 0, or the code to end with, its text set */

/* ---- restore.c ---- */

/* Brings back what is missing of the chunks before `end`, and in the same pass computes the positions from
 * sequence.tokens to `end`, with the logits after the last into service->logits if asked for: one of them is
 * to do, and `end` is the last token or a multiple of 16. Moves sequence.tokens to end if that is further.
 * -EBADMSG: a copy on flash was bad and its chunk is lost now; another pass goes on without it. */
int restore_pass(struct turn *turn, size_t end, bool logits);
void restore_release(struct service *service); /* what restores keep for the next */

/* ---- parts.c ---- */

/* The same for the whole context up to `end`, in as many passes as the budget takes. -ENOSPC where it does
 * not fit at the lowest levels that its policy allows. */
int parts_restore(struct turn *turn, size_t end, bool logits);
/* Room for the next tokens up to `end`: residency_reserve, for a context of which all is in memory, which is
 * lowered where nothing else makes room. */
int parts_reserve(struct turn *turn, size_t end);

/* ---- settle.c ---- */

/* Lowers and writes what calls left, for about limit_ms at most. True: there is more to do. */
bool settle_run(struct service *service, unsigned limit_ms);
/* How chunks are lowered here. */
struct lowering settle_lowering(const struct service *service);
/* One step of lowering on this context. False: nothing is left to lower. */
bool settle_context(struct service *service, struct context *context);

/* ---- swapout.c ---- */

struct swapout;
void *swapout_main(void *service); /* the writer */
bool swapout_start(struct service *service,
                   struct context *context);             /* false: nothing to write, or one is under way */
bool swapout_finish(struct service *service, bool wait); /* takes in what was written; false: nothing was */
void swapout_abandon(struct service *service,
                     const char *id); /* the context is deleted: leaves no file of it */

/* ---- call.c ---- */

int call_create(struct service *service, enum call_kind kind, const struct call_params *params,
                struct call **out);
void call_unref(struct call *call);
/* Under the service's lock: lets a waiting call end with code, or tells a running one to. */
void call_cancel_locked(struct call *call, int code);
int call_deliver(struct call *call, const char *text, size_t length);
/* Under the service's lock: result is final; wakes the caller and drops the service's reference. */
void call_finish(struct call *call, const struct call_result *result);
const char *call_cancel_words(int code);
/* Checks that the service takes calls, and queues call for the context. */
int call_enqueue(struct service *service, struct call *call, const char *owner, const char *id,
                 struct error *error);
void call_await(struct call *call); /* until it is done */

/* ---- worker.c ---- */

void *worker_main(void *service);

int condition_init(pthread_cond_t *condition);           /* on the monotonic clock */
struct timespec condition_deadline(unsigned timeout_ms); /* for it */

#endif
