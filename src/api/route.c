#include "api/route.h"

#include <stdio.h>
#include <string.h>

static bool pattern_matches(const char *pattern, const char *path, char argument[ROUTE_ARGUMENT_BYTES])
{
    argument[0] = 0;
    while (*pattern) {
        if (*pattern != '{') {
            if (*pattern++ != *path++)
                return false;
            continue;
        }
        size_t length = strcspn(path, "/");
        if (length == 0)
            return false;
        if (length < ROUTE_ARGUMENT_BYTES) {
            memcpy(argument, path, length);
            argument[length] = 0;
        }
        path += length;
        pattern = strchr(pattern, '}') + 1;
    }
    return !*path;
}

static void allow_add(struct route_match *match, const char *method)
{
    size_t length = strlen(match->allow);
    snprintf(match->allow + length, sizeof match->allow - length, "%s%s", length ? ", " : "", method);
    if (strcmp(method, "GET") == 0)
        allow_add(match, "HEAD");
}

void route_find(const struct route *routes, size_t count, const char *method, const char *path,
                struct route_match *out)
{
    char argument[ROUTE_ARGUMENT_BYTES];
    *out = (struct route_match){0};
    if (strcmp(method, "HEAD") == 0)
        method = "GET";
    for (size_t i = 0; i < count; i++) {
        if (!pattern_matches(routes[i].pattern, path, argument))
            continue;
        allow_add(out, routes[i].method);
        if (strcmp(routes[i].method, method) == 0) {
            out->route = &routes[i];
            memcpy(out->argument, argument, sizeof argument);
        }
    }
}
