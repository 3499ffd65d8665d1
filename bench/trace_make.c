/* The generator of traces. See trace.h. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "trace.h"

const struct trace_kind trace_kinds[TRACE_KINDS] = {
    {"classification", 200, 500, 2}, {"document-summary", 1000, 2000, 10}, {"chat-summary", 100, 300, 20},
    {"comprehension", 500, 1000, 5}, {"translation", 100, 500, 50},        {"sentiment", 10, 100, 5},
};

const char *const trace_pattern_names[TRACE_PATTERNS] = {"random", "markov", "gaussian"};

int trace_pattern_find(const char *name, enum trace_pattern *out)
{
    for (int i = 0; i < TRACE_PATTERNS; i++)
        if (strcmp(name, trace_pattern_names[i]) == 0) {
            *out = (enum trace_pattern)i;
            return 0;
        }
    return -EINVAL;
}

int trace_check_rules(const struct trace_rules *rules, struct error *error)
{
    const char *wrong = NULL;
    if (rules->contexts < 1 || rules->contexts > TRACE_CONTEXTS_MAX)
        wrong = "contexts: 1 to 4096";
    else if (!(rules->hours > 0 && rules->hours <= 1e6))
        wrong = "hours: above 0, to 1000000";
    else if (!(rules->interval_s > 0 && rules->interval_s <= 1e9))
        wrong = "seconds between calls: above 0, to 1000000000";
    else if (!(rules->scale > 0 && rules->scale <= 16))
        wrong = "scale: above 0, to 16";
    else if (rules->context_length < 64 || rules->context_length > TRACE_TOKENS_MAX)
        wrong = "context length: 64 to 1048576";
    else if (rules->hours * 3600 / rules->interval_s > TRACE_CALLS_MAX / 2.0)
        wrong = "so many calls are too many (500000 at most)";
    return wrong ? error_set(error, -EINVAL, "%s", wrong) : 0;
}

/* ---- which context ---- */

struct chooser {
    const struct trace_rules *rules;
    struct random *random;
    uint32_t *by_growth; /* contexts by their rank */
    uint32_t last;
    bool any; /* a call was made */
};

static uint32_t kind_of(uint32_t context)
{
    return context % TRACE_KINDS;
}

static uint32_t mean_growth(uint32_t context)
{
    return trace_kinds[kind_of(context)].low + trace_kinds[kind_of(context)].high;
}

static void rank(uint32_t *by_growth, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) { /* insertion, in order: equal ones stay so */
        uint32_t at = i;
        for (; at > 0 && mean_growth(by_growth[at - 1]) > mean_growth(i); at--)
            by_growth[at] = by_growth[at - 1];
        by_growth[at] = i;
    }
}

static double weight_on_ring(uint32_t step, uint32_t count)
{
    uint32_t distance = step < count - step ? step : count - step;
    return 1.0 / (1 + distance);
}

static uint32_t choose_markov(struct chooser *c)
{
    uint32_t count = c->rules->contexts;
    double total = 0;
    for (uint32_t step = 0; step < count; step++)
        total += weight_on_ring(step, count);
    double left = random_unit(c->random) * total;
    uint32_t step = 0;
    for (; step + 1 < count; step++) {
        left -= weight_on_ring(step, count);
        if (left < 0)
            break;
    }
    return (c->last + step) % count;
}

/* Standard normal (Box and Muller). */
static double normal(struct random *random)
{
    double radius = sqrt(-2 * log(1 - random_unit(random)));
    return radius * cos(6.283185307179586 * random_unit(random));
}

static uint32_t choose_gaussian(struct chooser *c)
{
    double count = c->rules->contexts, at;
    do
        at = floor((count - 1) / 2 + count / 4 * normal(c->random) + 0.5);
    while (at < 0 || at >= count);
    return c->by_growth[(uint32_t)at];
}

static uint32_t choose(struct chooser *c)
{
    uint32_t context = 0;
    if (c->rules->pattern == TRACE_GAUSSIAN)
        context = choose_gaussian(c);
    else if (c->rules->pattern == TRACE_MARKOV && c->any)
        context = choose_markov(c);
    else
        context = (uint32_t)random_below(c->random, c->rules->contexts);
    c->any = true;
    c->last = context;
    return context;
}

/* ---- the trace ---- */

static struct trace_call grow(struct chooser *c, double at_s)
{
    struct trace_call call = {.at_s = at_s, .context = choose(c)};
    call.kind = kind_of(call.context);
    const struct trace_kind *kind = &trace_kinds[call.kind];
    uint32_t growth = kind->low + (uint32_t)random_below(c->random, kind->high - kind->low + 1);
    double scaled = growth * c->rules->scale, reply = floor(scaled * kind->reply_share / 100 + 0.5);
    reply = reply < 1 ? 1 : reply;
    double prompt = floor(scaled - reply + 0.5), most = c->rules->context_length / 2.0;
    call.reply = (uint32_t)(reply < most / 2 ? reply : most / 2);
    call.prompt = (uint32_t)(prompt < 1 ? 1 : prompt < most ? prompt : most);
    return call;
}

static int append(struct trace *trace, size_t *room, const struct trace_call *call)
{
    if (trace->count == *room) {
        size_t more = *room ? *room * 2 : 256;
        struct trace_call *calls = mem_realloc(trace->calls, more * sizeof *calls);
        if (!calls)
            return -ENOMEM;
        trace->calls = calls;
        *room = more;
    }
    trace->calls[trace->count++] = *call;
    return 0;
}

static int make_calls(struct chooser *c, struct trace *out)
{
    size_t room = 0;
    int code = 0;
    double at = 0;
    while (code == 0 && out->count < TRACE_CALLS_MAX) {
        at += -log(1 - random_unit(c->random)) * c->rules->interval_s;
        if (at >= c->rules->hours * 3600)
            break;
        struct trace_call call = grow(c, at);
        code = append(out, &room, &call);
    }
    return code;
}

int trace_generate(const struct trace_rules *rules, struct trace *out, struct error *error)
{
    *out = (struct trace){0};
    int code = trace_check_rules(rules, error);
    if (code < 0)
        return code;
    struct random fills = {~rules->seed}, calls = {rules->seed};
    struct chooser chooser = {.rules = rules, .random = &calls};
    out->rules = *rules;
    out->fill = mem_calloc(rules->contexts, sizeof *out->fill);
    chooser.by_growth = mem_calloc(rules->contexts, sizeof *chooser.by_growth);
    code = out->fill && chooser.by_growth ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < rules->contexts && code == 0; i++)
        out->fill[i] = (uint32_t)(rules->context_length * (0.625 + 0.375 * random_unit(&fills)));
    if (code == 0) {
        rank(chooser.by_growth, rules->contexts);
        code = make_calls(&chooser, out);
    }
    mem_free(chooser.by_growth);
    if (code < 0) {
        trace_deinit(out);
        return error_set(error, code, "out of memory");
    }
    return 0;
}

void trace_deinit(struct trace *trace)
{
    mem_free(trace->fill);
    mem_free(trace->calls);
    *trace = (struct trace){0};
}
