/* A daemon of a bench's own: llmsd as it is, as a child process, spoken to over its Unix socket. */
#ifndef LLMS_BENCH_DAEMON_H
#define LLMS_BENCH_DAEMON_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct llms;

struct daemon_options {
    const char *program; /* NULL: the llmsd beside this program */
    const char *model;
    const char *directory;      /* for its socket, log and state; absolute */
    const char *policy, *evict; /* evict NULL: the policy's */
    double kv_ratio;            /* 0: the policy's */
    uint64_t budget_bytes, context_length, threads;
    uint64_t storage_bytes_per_s; /* 0: as it is */
};

/* Zeroed is stopped. */
struct daemon {
    pid_t pid;
    struct llms *llms; /* the connection */
    char log[512];     /* a path */
};

/* Returns when it answers calls. A daemon that ends instead is an error with the last line of its log. It
 * dies with this process. */
int daemon_start(const struct daemon_options *options, struct daemon *out, struct error *error);
/* SIGTERM, and its end: all is written then. */
void daemon_stop(struct daemon *daemon);

/* POST (body: NULL or an object, taken over) or GET (`get`); *answer is the caller's to json_decref. */
int daemon_post(struct daemon *daemon, const char *path, json_t *body, json_t **answer, struct error *error);
int daemon_get(struct daemon *daemon, const char *path, json_t **answer, struct error *error);

/* A number of the answer: object OBJECT's member KEY (OBJECT NULL: the answer's own); 0 where it is missing.
 */
double daemon_number(const json_t *answer, const char *object, const char *key);

#endif
