#include "service/stop.h"

#include <string.h>

static bool starts_with(const char *text, size_t length, const char *stop)
{
    size_t n = strlen(stop);
    return n <= length && memcmp(text, stop, n) == 0;
}

/* All of text is the beginning of stop, which goes on after it. */
static bool may_become(const char *text, size_t length, const char *stop)
{
    return length < strlen(stop) && memcmp(text, stop, length) == 0;
}

bool stop_scan(const char *const *stops, size_t count, const char *text, size_t length, size_t from,
               size_t *end)
{
    size_t shown = length;
    for (size_t i = from; i < length; i++)
        for (size_t s = 0; s < count; s++) {
            if (starts_with(text + i, length - i, stops[s])) {
                *end = i;
                return true;
            }
            if (shown == length && may_become(text + i, length - i, stops[s]))
                shown = i;
        }
    *end = shown;
    return false;
}
