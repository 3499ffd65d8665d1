/* Traces as files.
 *
 *     llms-trace 1
 *     pattern markov                     random, markov or gaussian
 *     contexts 8
 *     hours 72
 *     interval 300                       seconds
 *     scale 0.0625
 *     context-length 2048                tokens
 *     seed 1
 *     fill 0 1432                        context, tokens: one line each, in order
 *     call 12.345678 3 comprehension 40 2
 *                                        seconds, context, kind, prompt and reply tokens: in order of time
 *
 * Lines end with a newline, words are separated by one space or more; empty lines and what follows # are left
 * out. The keys come once each, in this order. */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/array.h"
#include "base/memory.h"
#include "base/parse.h"
#include "os/file.h"
#include "trace.h"

enum { WORDS_MAX = 6, FILE_LIMIT_BYTES = 1 << 28 };

/* ---- writing ---- */

static int print(const struct trace *trace, struct buffer *text)
{
    const struct trace_rules *rules = &trace->rules;
    int code = buffer_printf(text,
                             "llms-trace 1\npattern %s\ncontexts %" PRIu32 "\nhours %.17g\ninterval %.17g\n"
                             "scale %.17g\ncontext-length %" PRIu32 "\nseed %" PRIu64 "\n",
                             trace_pattern_names[rules->pattern], rules->contexts, rules->hours,
                             rules->interval_s, rules->scale, rules->context_length, rules->seed);
    for (uint32_t i = 0; i < rules->contexts && code == 0; i++)
        code = buffer_printf(text, "fill %" PRIu32 " %" PRIu32 "\n", i, trace->fill[i]);
    for (size_t i = 0; i < trace->count && code == 0; i++) {
        const struct trace_call *call = &trace->calls[i];
        code = buffer_printf(text, "call %.6f %" PRIu32 " %s %" PRIu32 " %" PRIu32 "\n", call->at_s,
                             call->context, trace_kinds[call->kind].name, call->prompt, call->reply);
    }
    return code;
}

int trace_save(const struct trace *trace, const char *path, struct error *error)
{
    struct buffer text = {0};
    int code = print(trace, &text);
    if (code == 0)
        code = os_write_file(path, text.data, text.length, 0644);
    buffer_deinit(&text);
    return code < 0 ? error_set(error, code, "%s: %s", path, strerror(-code)) : 0;
}

/* ---- reading ---- */

struct reader {
    char *rest; /* NULL: at the end */
    unsigned line;
    char *words[WORDS_MAX];
    size_t count; /* words; WORDS_MAX + 1: too many */
};

/* The next line that says something, cut into words. False at the end. */
static bool next_line(struct reader *r)
{
    r->count = 0;
    while (r->rest && r->count == 0) {
        char *line = r->rest, *end = strchr(line, '\n'), *rest = NULL;
        r->rest = end ? end + 1 : NULL;
        if (end)
            *end = 0;
        line[strcspn(line, "#")] = 0;
        r->line++;
        for (char *word = strtok_r(line, " \t\r", &rest); word; word = strtok_r(NULL, " \t\r", &rest)) {
            if (r->count < WORDS_MAX)
                r->words[r->count] = word;
            if (r->count <= WORDS_MAX)
                r->count++;
        }
    }
    return r->count > 0;
}

static int bad(const struct reader *r, struct error *error, const char *wants)
{
    return error_set(error, -EBADMSG, "line %u: not %s", r->line, wants);
}

/* The next line is KEY and one value. */
static int read_key(struct reader *r, const char *key, const char **value, struct error *error)
{
    if (!next_line(r))
        return error_set(error, -EBADMSG, "it ends before '%s'", key);
    if (r->count != 2 || strcmp(r->words[0], key) != 0)
        return error_set(error, -EBADMSG, "line %u: not '%s' and its value", r->line, key);
    *value = r->words[1];
    return 0;
}

static int read_whole(struct reader *r, const char *key, uint64_t high, uint64_t *value, struct error *error)
{
    const char *text = NULL;
    int code = read_key(r, key, &text, error);
    if (code == 0 && parse_u64(text, 0, high, value) < 0)
        code = bad(r, error, "a whole number in range");
    return code;
}

static int read_real(struct reader *r, const char *key, double *value, struct error *error)
{
    const char *text = NULL;
    int code = read_key(r, key, &text, error);
    if (code == 0 && parse_double(text, 0, 1e12, value) < 0)
        code = bad(r, error, "a number in range");
    return code;
}

static int read_rules(struct reader *r, struct trace_rules *rules, struct error *error)
{
    const char *pattern = NULL;
    uint64_t version = 0, contexts = 0, length = 0;
    int code = read_whole(r, "llms-trace", UINT64_MAX, &version, error);
    if (code == 0 && version != 1)
        code = error_set(error, -EBADMSG, "a trace of version %" PRIu64 ", and this reads 1", version);
    if (code == 0)
        code = read_key(r, "pattern", &pattern, error);
    if (code == 0 && trace_pattern_find(pattern, &rules->pattern) < 0)
        code = bad(r, error, "random, markov or gaussian");
    if (code == 0)
        code = read_whole(r, "contexts", UINT32_MAX, &contexts, error);
    if (code == 0)
        code = read_real(r, "hours", &rules->hours, error);
    if (code == 0)
        code = read_real(r, "interval", &rules->interval_s, error);
    if (code == 0)
        code = read_real(r, "scale", &rules->scale, error);
    if (code == 0)
        code = read_whole(r, "context-length", UINT32_MAX, &length, error);
    if (code == 0)
        code = read_whole(r, "seed", UINT64_MAX, &rules->seed, error);
    rules->contexts = (uint32_t)contexts;
    rules->context_length = (uint32_t)length;
    if (code == 0 && trace_check_rules(rules, error) < 0)
        code = error_set(error, -EBADMSG, "a rule is out of range");
    return code;
}

static int read_fill(struct reader *r, struct trace *trace, struct error *error)
{
    trace->fill = mem_calloc(trace->rules.contexts, sizeof *trace->fill);
    if (!trace->fill)
        return error_set(error, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < trace->rules.contexts; i++) {
        uint64_t context, tokens;
        if (!next_line(r))
            return error_set(error, -EBADMSG, "it ends before the fill of context %" PRIu32, i);
        if (r->count != 3 || strcmp(r->words[0], "fill") != 0 || parse_u64(r->words[1], i, i, &context) < 0 ||
            parse_u64(r->words[2], 0, trace->rules.context_length, &tokens) < 0)
            return error_set(error, -EBADMSG, "line %u: not 'fill %" PRIu32 "' and tokens that fit", r->line,
                             i);
        trace->fill[i] = (uint32_t)tokens;
    }
    return 0;
}

static int read_call(struct reader *r, const struct trace *trace, struct trace_call *call)
{
    uint64_t context, prompt, reply;
    const struct trace_rules *rules = &trace->rules;
    if (r->count != 6 || strcmp(r->words[0], "call") != 0 ||
        parse_double(r->words[1], 0, 1e12, &call->at_s) < 0)
        return -EINVAL;
    if (parse_u64(r->words[2], 0, rules->contexts - 1, &context) < 0 ||
        parse_u64(r->words[4], 1, rules->context_length, &prompt) < 0 ||
        parse_u64(r->words[5], 1, rules->context_length, &reply) < 0)
        return -EINVAL;
    if (trace->count > 1 && call->at_s < call[-1].at_s)
        return -EINVAL;
    call->context = (uint32_t)context;
    call->prompt = (uint32_t)prompt;
    call->reply = (uint32_t)reply;
    for (call->kind = 0; call->kind < TRACE_KINDS; call->kind++)
        if (strcmp(trace_kinds[call->kind].name, r->words[3]) == 0)
            return 0;
    return -EINVAL;
}

static int read_calls(struct reader *r, struct trace *trace, struct error *error)
{
    size_t room = 0;
    while (next_line(r)) {
        if (trace->count == TRACE_CALLS_MAX)
            return error_set(error, -EBADMSG, "more than %d calls", TRACE_CALLS_MAX);
        if (trace->count == room) {
            room = room ? room * 2 : 256;
            struct trace_call *calls = mem_realloc(trace->calls, room * sizeof *calls);
            if (!calls)
                return error_set(error, -ENOMEM, "out of memory");
            trace->calls = calls;
        }
        trace->count++;
        if (read_call(r, trace, &trace->calls[trace->count - 1]) < 0)
            return bad(r, error,
                       "'call' with a time not before the last, a context, a kind, prompt and reply");
    }
    return 0;
}

int trace_parse(char *text, struct trace *out, struct error *error)
{
    struct reader reader = {.rest = text};
    *out = (struct trace){0};
    int code = read_rules(&reader, &out->rules, error);
    if (code == 0)
        code = read_fill(&reader, out, error);
    if (code == 0)
        code = read_calls(&reader, out, error);
    if (code < 0)
        trace_deinit(out);
    return code;
}

int trace_load(const char *path, struct trace *out, struct error *error)
{
    char *text = NULL;
    size_t bytes = 0;
    *out = (struct trace){0};
    int code = os_read_file(path, FILE_LIMIT_BYTES, &text, &bytes);
    if (code < 0)
        return error_set(error, code, "%s: %s", path, strerror(-code));
    code =
        strlen(text) == bytes ? trace_parse(text, out, error) : error_set(error, -EBADMSG, "not a text file");
    mem_free(text);
    return code < 0 ? error_prefix(error, code, "%s", path) : 0;
}
