/* Routes: from method and path to a row of a table. Pure. */
#ifndef LLMS_API_ROUTE_H
#define LLMS_API_ROUTE_H

#include <stdbool.h>
#include <stddef.h>

struct exchange;

typedef void route_handler(struct exchange *exchange);

struct route {
    const char *method;  /* GET (which serves HEAD too), POST, DELETE */
    const char *pattern; /* "/v1/contexts/{id}": a {name} stands for one path segment that is not empty */
    route_handler *handler;
    bool open; /* needs no token and no loaded model */
};

enum { ROUTE_ARGUMENT_BYTES = 64, ROUTE_ALLOW_BYTES = 64 };

struct route_match {
    const struct route *route;           /* NULL: see allow */
    char argument[ROUTE_ARGUMENT_BYTES]; /* what {name} stood for; "" if none, or if it was too long */
    char allow[ROUTE_ALLOW_BYTES];       /* methods the path knows, "GET, DELETE"; "": no such path */
};

/* Finds the row for a method and a path (as sent, nothing unescaped). */
void route_find(const struct route *routes, size_t count, const char *method, const char *path,
                struct route_match *out);

#endif
