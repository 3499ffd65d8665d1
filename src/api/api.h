/* The HTTP side of the daemon: listeners, who calls, routes, streaming. The routes are in docs/HTTP.md.
 *
 * One libmicrohttpd daemon a listener and one thread a connection, so a slow client holds up only itself.
 * Before api_serve every route but /health answers 503, at once or when loading_wait_ms are over. A caller on
 * a Unix socket is known by its uid, one on TCP by the token; with the app's name that makes the owner of its
 * contexts. */
#ifndef LLMS_API_API_H
#define LLMS_API_API_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "os/socket.h"

struct api;
struct service;

enum { API_TOKEN_BYTES = 65 }; /* 64 hexadecimal digits and the NUL */

struct api_options {
    const char *version;         /* of the daemon; borrowed */
    char token[API_TOKEN_BYTES]; /* what TCP callers must show; "" if there is no TCP listener */
    unsigned connection_limit;   /* a listener; 0: 256. One uid may hold half of them */
    unsigned idle_timeout_s;     /* without a byte either way; 0: 60 */
    unsigned loading_wait_ms;    /* requests that come before api_serve wait for it so long */
    size_t body_limit_bytes;     /* larger bodies are refused with 413; 0: 1 MiB */
};

/* Process-wide: sets jansson's allocation functions; call before any other use of it. */
int api_create(const struct api_options *options, struct api **out, struct error *error);

/* Starts to answer on a listener, whose descriptor moves here (it is -1 afterwards, also on failure). */
int api_listen(struct api *api, struct os_listener *listener, struct error *error);

/* From now on requests go to this service, which must outlive the api. */
void api_serve(struct api *api, struct service *service);

/* Accepts no more connections; those open are told to close after their answer. */
void api_quiesce(struct api *api);

/* Waits until no request is under way, for up to timeout_ms; false: some still are. */
bool api_drain(struct api *api, unsigned timeout_ms);

/* Closes the connections left, releases their calls and everything else. NULL is fine. */
void api_destroy(struct api *api);

/* Reads DIRECTORY/token, or makes it (mode 0600) with the directory (0700). -EINVAL: it holds no token. */
int api_token_load(const char *directory, char token[API_TOKEN_BYTES], struct error *error);

#endif
