#include "client/sse.h"

#include <errno.h>
#include <string.h>

static const char *text_of(const struct buffer *buffer)
{
    return buffer->data ? buffer->data : "";
}

static int add(struct buffer *buffer, const char *bytes, size_t length)
{
    if (length > SSE_LIMIT_BYTES - buffer->length)
        return -EMSGSIZE;
    return length ? buffer_append(buffer, bytes, length) : 0;
}

/* An empty line: the event is complete. One without data is none. */
static int dispatch(struct sse *sse, sse_event_fn *on_event, void *user)
{
    int code = 0;
    if (sse->has_data)
        code = on_event(user, text_of(&sse->event), text_of(&sse->data), sse->data.length);
    buffer_clear(&sse->data);
    buffer_clear(&sse->event);
    sse->has_data = false;
    return code;
}

static int take_field(struct sse *sse, const char *name, size_t name_length, const char *value, size_t length)
{
    if (name_length == 4 && memcmp(name, "data", 4) == 0) {
        int code = sse->has_data ? add(&sse->data, "\n", 1) : 0;
        sse->has_data = true;
        return code < 0 ? code : add(&sse->data, value, length);
    }
    if (name_length == 5 && memcmp(name, "event", 5) == 0) {
        buffer_clear(&sse->event);
        return add(&sse->event, value, length);
    }
    return 0; /* id, retry and what may come */
}

static int take_line(struct sse *sse, sse_event_fn *on_event, void *user)
{
    const char *line = text_of(&sse->line);
    size_t length = sse->line.length;
    if (!sse->started && length >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) {
        line += 3;
        length -= 3;
    }
    sse->started = true;
    if (length == 0)
        return dispatch(sse, on_event, user);
    const char *colon = memchr(line, ':', length);
    if (colon == line)
        return 0; /* a comment */
    size_t name_length = colon ? (size_t)(colon - line) : length;
    const char *value = colon ? colon + 1 : line + length;
    const char *end = line + length;
    if (value < end && *value == ' ')
        value++;
    return take_field(sse, line, name_length, value, (size_t)(end - value));
}

int sse_feed(struct sse *sse, const char *bytes, size_t length, sse_event_fn *on_event, void *user)
{
    const char *end = bytes + length;
    if (length && sse->after_cr) {
        sse->after_cr = false;
        bytes += *bytes == '\n';
    }
    while (bytes < end) {
        const char *stop = bytes;
        while (stop < end && *stop != '\n' && *stop != '\r')
            stop++;
        int code = add(&sse->line, bytes, (size_t)(stop - bytes));
        if (code < 0)
            return code;
        if (stop == end)
            return 0;
        bytes = stop + 1;
        if (*stop == '\r') {
            if (bytes == end)
                sse->after_cr = true;
            else
                bytes += *bytes == '\n';
        }
        code = take_line(sse, on_event, user);
        if (code)
            return code;
        buffer_clear(&sse->line);
    }
    return 0;
}

void sse_deinit(struct sse *sse)
{
    buffer_deinit(&sse->line);
    buffer_deinit(&sse->data);
    buffer_deinit(&sse->event);
    *sse = (struct sse){0};
}
