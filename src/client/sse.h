/* Server-sent events: the text/event-stream format, parsed as it arrives.
 *
 * A zeroed struct is a parser at the start of a stream. Bytes may be cut anywhere, lines may end in LF, CR or
 * CRLF; comments and unknown fields are skipped, and an event cut off by the end of the stream is not
 * delivered (as the WHATWG HTML standard, 9.2, has it). Memory is bounded by SSE_LIMIT_BYTES. One thread at a
 * time. */
#ifndef LLMS_CLIENT_SSE_H
#define LLMS_CLIENT_SSE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/array.h"

enum { SSE_LIMIT_BYTES = 16 << 20 }; /* of one event, and of one line */

struct sse {
    struct buffer line;  /* what came of the current line */
    struct buffer data;  /* the event's data lines, joined by LF */
    struct buffer event; /* its name */
    bool has_data;
    bool after_cr; /* a LF that comes now belongs to the CR before it */
    bool started;  /* the first line is over: no byte order mark any more */
};

/* Receives one event: its name ("" if it has none) and its data, NUL-terminated, which may hold NULs itself.
 * Both are valid during the call. A return other than 0 stops the parser. */
typedef int sse_event_fn(void *user, const char *event, const char *data, size_t length);

/* 0, or -ENOMEM, -EMSGSIZE (an event or line over the limit), or what on_event returned. After a failure only
 * sse_deinit is of use. */
int sse_feed(struct sse *sse, const char *bytes, size_t length, sse_event_fn *on_event, void *user);
void sse_deinit(struct sse *sse);

#endif
