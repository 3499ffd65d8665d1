/* Traces: which context is called when, and by how much it grows (the paper's evaluation). This header is the
 * trace itself, made or read from a file; trace_replay.h runs one on a daemon.
 *
 * The generator. Calls arrive as a Poisson process, one in `interval_s` on average, for `hours`. Context i
 * belongs to an app of kind i mod 6, whose calls make it grow by a number of tokens uniform in the kind's
 * range (trace_kinds), times `scale`; part of it is the prompt, the rest the reply. Which context is called:
 *     random    each with the same chance
 *     markov    first order: after context i comes j with a chance in proportion to 1 / (1 + d), d their
 *               distance on a ring of all contexts: the same or a neighbour mostly, so that what was used
 *               lately comes again sooner
 *     gaussian  contexts are ranked by the mean growth of their kind, and a normal variable with mean (n - 1)
 * / 2 and deviation n / 4, drawn again where it falls outside, is rounded to a rank: kinds of medium growth
 * come most often A context that slides drops to 5/8 of what it holds and grows again, so in the long run its
 * length is about uniform between the two: that is the length (`fill`) contexts start with, so that a short
 * trace already meets them full. The same rules and seed give the same trace on every machine of the same
 * libm. */
#ifndef LLMS_BENCH_TRACE_H
#define LLMS_BENCH_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { TRACE_KINDS = 6, TRACE_CONTEXTS_MAX = 4096, TRACE_CALLS_MAX = 1000000, TRACE_TOKENS_MAX = 1 << 20 };

enum trace_pattern { TRACE_RANDOM, TRACE_MARKOV, TRACE_GAUSSIAN, TRACE_PATTERNS };

struct trace_kind {
    const char *name;
    uint32_t low, high;   /* tokens a call adds, before scaling */
    uint32_t reply_share; /* percent of them that are the reply; ours, as the paper gives the sum only */
};
extern const struct trace_kind trace_kinds[TRACE_KINDS];
extern const char *const trace_pattern_names[TRACE_PATTERNS];

struct trace_rules {
    enum trace_pattern pattern;
    uint32_t contexts;
    double hours, interval_s;
    double scale;
    uint32_t context_length; /* tokens that a context holds */
    uint64_t seed;
};

struct trace_call {
    double at_s; /* since the trace began */
    uint32_t context;
    uint32_t kind;
    uint32_t prompt, reply; /* tokens, at least 1 each; the prompt with its markup where that fits */
};

/* Zeroed is empty. */
struct trace {
    struct trace_rules rules;
    uint32_t *fill; /* rules.contexts of them: tokens at the start */
    struct trace_call *calls;
    size_t count;
};

/* -EINVAL for rules out of range, -ENOMEM. */
int trace_generate(const struct trace_rules *rules, struct trace *out, struct error *error);
void trace_deinit(struct trace *trace);

/* A text file, its form atop trace_file.c. Loading checks everything: -EBADMSG with the line for what is
 * wrong. Saving and loading gives the same trace, times to the microsecond. */
int trace_save(const struct trace *trace, const char *path, struct error *error);
int trace_load(const char *path, struct trace *out, struct error *error);
/* text: NUL-terminated; it is cut up. */
int trace_parse(char *text, struct trace *out, struct error *error);

/* 0 or -EINVAL. */
int trace_pattern_find(const char *name, enum trace_pattern *out);
int trace_check_rules(const struct trace_rules *rules, struct error *error);

#endif
