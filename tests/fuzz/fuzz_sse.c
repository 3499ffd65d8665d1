/* The event stream parser: any bytes, fed whole and cut as the first byte says, give the same events. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/sse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int record(void *user, const char *event, const char *data, size_t length)
{
    struct buffer *seen = user;
    if (strlen(data) > length)
        abort();
    buffer_append_text(seen, event);
    buffer_append(seen, "\n", 2);
    buffer_append(seen, data, length);
    buffer_append(seen, "\n", 2);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    const char *text = (const char *)data + 1;
    size_t length = size - 1, step = data[0] % 16 + 1u;
    struct sse whole = {0}, cut = {0};
    struct buffer one = {0}, other = {0};
    if (sse_feed(&whole, text, length, record, &one) != 0)
        abort();
    for (size_t at = 0; at < length; at += step)
        if (sse_feed(&cut, text + at, length - at < step ? length - at : step, record, &other) != 0)
            abort();
    if (one.length != other.length || (one.length && memcmp(one.data, other.data, one.length) != 0))
        abort();
    sse_deinit(&whole);
    sse_deinit(&cut);
    buffer_deinit(&one);
    buffer_deinit(&other);
    return 0;
}
