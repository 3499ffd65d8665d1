/* One request and its answer, as the routes' handlers see it. Lives on its connection's thread. */
#ifndef LLMS_API_EXCHANGE_H
#define LLMS_API_EXCHANGE_H

#include <jansson.h>
#include <stdint.h>

#include "api/answer.h"
#include "api/caller.h"
#include "api/route.h"
#include "base/array.h"

struct MHD_Connection;
struct api;
struct service;

struct exchange {
    struct api *api;
    struct MHD_Connection *connection;
    int socket;               /* the connection's, to see whether the client is still there */
    struct service *service;  /* NULL while the model loads; handlers of other than open routes have it */
    const char *version;      /* the daemon's */
    int64_t started_s;        /* when the daemon started, Unix epoch */
    struct route_match match; /* match.argument: the path's {id} */
    bool administrator;       /* the daemon's own uid, root, or whoever shows the token */
    char owner[CALLER_OWNER_BYTES]; /* whose contexts these are: "<uid>/<app>" or "token/<app>" */
    struct buffer body;
    uint64_t body_bytes; /* received, kept or not */
    bool immediate;      /* the answer is sent without reading the body */
    struct answer answer;
};

/* The body as a JSON object for the caller to release, or NULL and the answer says why. */
json_t *exchange_json(struct exchange *exchange);

extern const struct route api_routes[];
extern const size_t api_route_count;

#endif
