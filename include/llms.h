/* libllms: talk to llmsd, the language model service of this machine.
 *
 * An app binds once, owns contexts (conversations that persist across calls, restarts and reboots), and calls
 * them. (The interface is Table 1 of the LLMS paper, arXiv 2403.11805: bindLLMService, newLLMCtx, callLLM,
 * delLLMCtx.)
 *
 *     struct llms *llms;
 *     char id[LLMS_ID_BYTES];
 *     if (llms_bind("notes", NULL, &llms) < 0) ...
 *     llms_context_new(llms, NULL, "You are a helpful assistant.", id);
 *     llms_call(llms, id, "Hello!", NULL, on_piece, NULL, NULL);
 *     llms_unbind(llms);
 *
 * Functions return 0 or a negative error (an errno value, negated); llms_strerror gives its meaning and
 * llms_last_error the daemon's own line about the last failure on this handle. A handle serves one thread at
 * a time; different handles are independent. Strings are UTF-8 and NUL-terminated. */
#ifndef LLMS_H
#define LLMS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LLMS_API __attribute__((visibility("default")))
#else
#define LLMS_API
#endif

#define LLMS_ID_BYTES 32 /* a context's id with its NUL */

struct llms;

/* app: the calling app's name, 1 to 64 of [A-Za-z0-9._-]. address: "unix:PATH", "tcp:HOST:PORT", or NULL for
 * $LLMS_ADDRESS and else the default sockets ($XDG_RUNTIME_DIR/llms/llmsd.sock, then /run/llms/llmsd.sock).
 * Over TCP the token in $LLMS_TOKEN is sent. Fails with -ECONNREFUSED or -ENOENT where no daemon answers. A
 * daemon that is still loading its model answers; calls then fail with -EAGAIN until it is ready. */
LLMS_API int llms_bind(const char *app, const char *address, struct llms **out);
LLMS_API void llms_unbind(struct llms *llms); /* NULL is fine; contexts stay */

/* name and system_prompt may be NULL. Writes the new context's id. */
LLMS_API int llms_context_new(struct llms *llms, const char *name, const char *system_prompt,
                              char id[LLMS_ID_BYTES]);
LLMS_API int llms_context_fork(struct llms *llms, const char *id, const char *name, char copy[LLMS_ID_BYTES]);
LLMS_API int llms_context_prepare(struct llms *llms, const char *id); /* bring its KV into memory now */
LLMS_API int llms_context_delete(struct llms *llms, const char *id);

/* How to generate. Start from LLMS_CALL_DEFAULTS; a zero or negative number means the daemon's default where
 * stated. */
struct llms_call_options {
    uint32_t max_tokens;     /* 0: as many as fit */
    double temperature;      /* < 0: the default; 0: greedy */
    int top_k;               /* < 0: the default; 0: off */
    double top_p;            /* < 0: the default; 1: off */
    double min_p;            /* < 0: the default; 0: off */
    double repeat_penalty;   /* < 0: the default; 1: off */
    int64_t seed;            /* < 0: a fresh one */
    const char *const *stop; /* NULL-terminated list, or NULL */
    int refuse_when_full;    /* 0: the oldest turns slide out; 1: fail with -E2BIG */
};
#define LLMS_CALL_DEFAULTS                                                                                   \
    {                                                                                                        \
        0, -1, -1, -1, -1, -1, -1, NULL, 0                                                                   \
    }

struct llms_call_result {
    char finish[16];        /* "end", "stop" or "length" */
    uint64_t prompt_tokens; /* new in this call */
    uint64_t reply_tokens;
    uint64_t cached_tokens;
    uint64_t context_tokens;
    uint64_t turns_dropped;
    uint64_t chunks_resident, chunks_loaded, chunks_recomputed;
    double queue_ms, switch_ms, ttft_ms, total_ms;
    double prompt_tokens_per_s, generate_tokens_per_s;
};

/* Receives the reply's text as it comes, whole UTF-8 characters, not NUL-terminated. Also called with length
 * 0 when a signal arrives and about once a second while nothing comes, so that a call can be cancelled at any
 * time. A return other than 0 cancels the call (llms_call then returns -ECANCELED, and the context stays as
 * it was). The handle must not be used from within. */
typedef int llms_piece_fn(void *user, const char *text, size_t length);

/* Appends prompt to the context and generates the reply. options, piece and result may be NULL. Returns once
 * the turn is durable. Fails with -ENOENT (no such context), -E2BIG (does not fit), -EAGAIN (the queue is
 * full, or the model is loading: try again), -ECANCELED, -ESHUTDOWN, -ENOSPC, or -ECONNRESET where the daemon
 * went away before it acknowledged the turn. */
LLMS_API int llms_call(struct llms *llms, const char *id, const char *prompt,
                       const struct llms_call_options *options, llms_piece_fn *piece, void *user,
                       struct llms_call_result *result);

/* Any other route of the daemon: sends body (JSON, or NULL) and gives its JSON answer, which the caller frees
 * with free(). On an error status returns its negative error and *answer is the error body (or NULL). */
LLMS_API int llms_request(struct llms *llms, const char *method, const char *path, const char *body,
                          char **answer);

LLMS_API const char *llms_strerror(int error);
/* "" if none; valid until the next call on the handle. */
LLMS_API const char *llms_last_error(const struct llms *llms);

#ifdef __cplusplus
}
#endif
#endif
