/* See policies.h. */
#include "policies.h"

#include <string.h>

#include "bench.h"
#include "kv/policy.h"

/* The row whose name is text's first `length` bytes. */
static const struct kv_policy *find(const char *text, size_t length)
{
    size_t count;
    const struct kv_policy *all = kv_policy_list(&count);
    for (size_t i = 0; i < count; i++)
        if (strlen(all[i].name) == length && memcmp(all[i].name, text, length) == 0)
            return &all[i];
    return NULL;
}

static int add(const char *command, const char *text, size_t length, struct policies *out)
{
    const struct kv_policy *policy = find(text, length);
    if (!policy)
        return bench_misuse(command, "--policy: there is no policy '%.*s'", (int)length, text);
    for (size_t i = 0; i < out->count; i++)
        if (strcmp(out->names[i], policy->name) == 0)
            return bench_misuse(command, "--policy: '%s' is there twice", policy->name);
    if (out->count == POLICIES_MAX)
        return bench_misuse(command, "--policy: at most %d", POLICIES_MAX);
    out->names[out->count++] = policy->name;
    return BENCH_GO;
}

int policies_take(const char *command, const char *text, struct policies *out)
{
    size_t count;
    int status = BENCH_GO;
    out->count = 0;
    if (!text)
        out->names[out->count++] = kv_policy_list(&count)->name;
    while (text && *text && status == BENCH_GO) {
        size_t length = strcspn(text, ",");
        if (length)
            status = add(command, text, length, out);
        text += length + (text[length] == ',');
    }
    return status != BENCH_GO || out->count ? status : bench_misuse(command, "--policy: no name is given");
}
