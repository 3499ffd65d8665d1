#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *error, int code, const char *format, ...)
{
    if (!error)
        return code;
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    error->code = code;
    return code;
}

int error_prefix(struct error *error, int code, const char *format, ...)
{
    if (!error)
        return code;
    char text[sizeof error->text];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n + 2 < sizeof text) {
        size_t room = sizeof text - (size_t)n - 3, length = strlen(error->text);
        memcpy(text + n, ": ", 2);
        memcpy(text + n + 2, error->text, length < room ? length : room);
        text[(size_t)n + 2 + (length < room ? length : room)] = 0;
    }
    memcpy(error->text, text, sizeof text);
    return error->code;
}
