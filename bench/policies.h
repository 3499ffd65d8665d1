/* The policies that a command compares: what --policy names, one run or more each. */
#ifndef LLMS_BENCH_POLICIES_H
#define LLMS_BENCH_POLICIES_H

#include <stddef.h>

enum { POLICIES_MAX = 16 };

struct policies {
    const char *names[POLICIES_MAX]; /* of kv/policy.h's table */
    size_t count;
};

/* text: names with commas between, or NULL: the default one. BENCH_GO, or the exit status of `command`, which
 * was told why. */
int policies_take(const char *command, const char *text, struct policies *out);

#endif
