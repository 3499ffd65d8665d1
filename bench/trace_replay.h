/* A trace replayed on a daemon of its own, under one policy; back to back, its times left out. */
#ifndef LLMS_BENCH_TRACE_REPLAY_H
#define LLMS_BENCH_TRACE_REPLAY_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "switch.h"
#include "trace.h"

/* Which of the two a call is measured for. A switch is measured by bringing the context in before the call is
 * made (prepare), which takes the restore out of the call's time to its first token. */
enum replay_measure { REPLAY_BOTH, REPLAY_SWITCH, REPLAY_TTFT }; /* both: in turn */

struct replay_options {
    const char *model, *daemon; /* daemon NULL: the llmsd beside this program */
    const char *directory;      /* fresh and absolute */
    const char *evict;          /* NULL: the policy's */
    double kv_ratio;            /* 0: the policy's */
    uint64_t budget_bytes, threads;
    uint64_t storage_bytes_per_s; /* 0: as it is */
    uint64_t calls;               /* at most, of the trace */
    uint64_t warmup;              /* the first of them, which do not count */
    uint64_t reply;               /* tokens of every reply; 0: as the trace has it */
    uint64_t pause_ms;            /* after each call */
    enum replay_measure measure;
};

struct replay_call {
    uint32_t context;
    bool same;        /* as the call before */
    bool prepared;    /* measured for its switch; if not, for its time to the first token */
    bool warmup;      /* not counted */
    double switch_ms; /* prepared: from arrival until the context is usable, the wait for its turn included */
    double ttft_ms;   /* from arrival to the first token */
    double queue_ms;  /* of it, or of the switch: until its turn came */
    double socket_ms; /* prepared: what the way over the socket adds, at the client */
    double generate_tokens_per_s; /* 0: no second token */
    uint64_t turn, window_turn, prompt, reply, context_tokens;
    uint64_t dropped;                                  /* turns that slid out */
    uint64_t bytes_read, resident, loaded, recomputed; /* of the switch or, where not prepared, the call */
};

/* What one policy did. Zeroed is empty. */
struct replay_run {
    const char *policy;
    struct error error; /* code < 0: it came to no result */
    struct replay_call *calls;
    size_t call_count;
    uint64_t stored_bytes, resident_bytes; /* at the end */
    uint64_t threads;
    double fill_tokens_per_s; /* while the contexts were filled, prompt tokens */
    double seconds;           /* that it took */
    struct switch_run peer;   /* the same calls as llama-server is sent them; where asked for */
};

/* keep: fills run->peer. */
int replay_run(const struct replay_options *options, const struct trace *trace, struct replay_run *run,
               bool keep);
void replay_run_deinit(struct replay_run *run);

#endif
