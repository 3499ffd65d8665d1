/* HTTP to the daemon: where it listens, one exchange at a time, and which failure is which.
 *
 * Owns the curl handle. Every exchange has a connection of its own: a kept one could make curl repeat a POST
 * that a dying daemon had already journalled, and a local connect costs microseconds. Proxies of the
 * environment are not asked: prompts stay on this machine. One thread at a time. */
#ifndef LLMS_CLIENT_TRANSPORT_H
#define LLMS_CLIENT_TRANSPORT_H

#include <stddef.h>

#include "base/array.h"
#include "base/error.h"

enum { TRANSPORT_CONNECT_TIMEOUT_MS = 5000, TRANSPORT_ANSWER_LIMIT_BYTES = 256 << 20 };

struct transport;

/* address: "unix:PATH" or "tcp:HOST:PORT". Does not connect. 0, -EINVAL, -ENAMETOOLONG or -ENOMEM. */
int transport_create(const char *app, const char *address, struct transport **out, struct error *error);
void transport_destroy(struct transport *transport); /* NULL is fine */

struct transport_request {
    const char *method;
    const char *path;
    const char *body; /* JSON, or NULL */
    /* Both may be NULL. on_bytes takes the body of a successful text/event-stream answer as it comes; on_idle
     * is called at least once a second. A return other than 0 ends the exchange with that code. */
    int (*on_bytes)(void *user, const char *bytes, size_t length);
    int (*on_idle)(void *user);
    void *user;
};

struct transport_answer {
    long status;        /* 200 to 599 */
    struct buffer body; /* empty where on_bytes took it */
};

/* 0 when the whole answer came, whatever its status; else what connecting gave (-ENOENT, -ECONNREFUSED,
 * -EACCES, -ETIMEDOUT, ...), -ECONNRESET (the daemon went away in the middle), -EPROTO, -EMSGSIZE, -ENOMEM,
 * or what a callback returned. The caller releases answer->body in either case. */
int transport_exchange(struct transport *transport, const struct transport_request *request,
                       struct transport_answer *answer, struct error *error);

#endif
