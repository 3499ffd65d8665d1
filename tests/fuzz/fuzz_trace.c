/* Trace files: any bytes either are refused with a line that says why or give a trace that keeps its rules.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../bench/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct trace *trace)
{
    if (trace_check_rules(&trace->rules, NULL) < 0)
        abort();
    for (uint32_t i = 0; i < trace->rules.contexts; i++)
        if (trace->fill[i] > trace->rules.context_length)
            abort();
    for (size_t i = 0; i < trace->count; i++) {
        const struct trace_call *call = &trace->calls[i];
        if (call->context >= trace->rules.contexts || call->kind >= TRACE_KINDS || call->prompt < 1 ||
            call->reply < 1 || (i > 0 && call->at_s < call[-1].at_s))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct trace trace;
    struct error error = {0};
    char *text = malloc(size + 1);
    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = 0;
    if (trace_parse(text, &trace, &error) == 0)
        check(&trace);
    else if (error.code == 0 || !error.text[0] || trace.calls || trace.fill)
        abort();
    trace_deinit(&trace);
    free(text);
    return 0;
}
