#include "base/array.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

/* The next capacity that holds `need`, grown by half so that appending is linear overall. */
static size_t grown(size_t capacity, size_t need, size_t least)
{
    size_t next = capacity + capacity / 2;
    if (next < need)
        next = need;
    return next < least ? least : next;
}

int buffer_reserve(struct buffer *buffer, size_t extra_bytes)
{
    if (extra_bytes >= SIZE_MAX / 2 - buffer->length)
        return -ENOMEM;
    size_t need = buffer->length + extra_bytes + 1;
    if (need <= buffer->capacity)
        return 0;
    size_t capacity = grown(buffer->capacity, need, 64);
    char *data = mem_realloc(buffer->data, capacity);
    if (!data)
        return -ENOMEM;
    buffer->data = data;
    buffer->capacity = capacity;
    data[buffer->length] = 0;
    return 0;
}

int buffer_append(struct buffer *buffer, const void *data, size_t bytes)
{
    if (buffer_reserve(buffer, bytes) < 0)
        return -ENOMEM;
    if (bytes)
        memcpy(buffer->data + buffer->length, data, bytes);
    buffer->length += bytes;
    buffer->data[buffer->length] = 0;
    return 0;
}

int buffer_append_text(struct buffer *buffer, const char *text)
{
    return buffer_append(buffer, text, strlen(text));
}

int buffer_printf(struct buffer *buffer, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int bytes = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (bytes < 0)
        return -EINVAL;
    if (buffer_reserve(buffer, (size_t)bytes) < 0)
        return -ENOMEM;
    va_start(args, format);
    vsnprintf(buffer->data + buffer->length, (size_t)bytes + 1, format, args);
    va_end(args);
    buffer->length += (size_t)bytes;
    return 0;
}

void buffer_clear(struct buffer *buffer)
{
    buffer->length = 0;
    if (buffer->data)
        buffer->data[0] = 0;
}

void buffer_deinit(struct buffer *buffer)
{
    mem_free(buffer->data);
    *buffer = (struct buffer){0};
}

int tokens_reserve(struct tokens *tokens, size_t extra)
{
    if (extra >= SIZE_MAX / 8 - tokens->count)
        return -ENOMEM;
    size_t need = tokens->count + extra;
    if (need <= tokens->capacity)
        return 0;
    size_t capacity = grown(tokens->capacity, need, 32);
    int32_t *ids = mem_realloc(tokens->ids, capacity * sizeof *ids);
    if (!ids)
        return -ENOMEM;
    tokens->ids = ids;
    tokens->capacity = capacity;
    return 0;
}

int tokens_append_all(struct tokens *tokens, const int32_t *ids, size_t count)
{
    if (tokens_reserve(tokens, count) < 0)
        return -ENOMEM;
    if (count)
        memcpy(tokens->ids + tokens->count, ids, count * sizeof *ids);
    tokens->count += count;
    return 0;
}

int tokens_append(struct tokens *tokens, int32_t id)
{
    return tokens_append_all(tokens, &id, 1);
}

size_t tokens_common(const struct tokens *a, const struct tokens *b)
{
    size_t n = a->count < b->count ? a->count : b->count, i = 0;
    while (i < n && a->ids[i] == b->ids[i])
        i++;
    return i;
}

void tokens_deinit(struct tokens *tokens)
{
    mem_free(tokens->ids);
    *tokens = (struct tokens){0};
}
