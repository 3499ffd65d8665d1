/* Growing arrays: bytes (always NUL-terminated after the end) and token ids.
 *
 * A zeroed struct is a valid empty array. The holder owns the memory; *_deinit releases it and leaves an
 * empty array. Appending returns 0 or -ENOMEM and then leaves the array as it was. */
#ifndef LLMS_BASE_ARRAY_H
#define LLMS_BASE_ARRAY_H

#include <stddef.h>
#include <stdint.h>

struct buffer {
    char *data; /* NULL while nothing was ever appended */
    size_t length;
    size_t capacity;
};

int buffer_append(struct buffer *buffer, const void *data, size_t bytes);
int buffer_append_text(struct buffer *buffer, const char *text);
int buffer_printf(struct buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
int buffer_reserve(struct buffer *buffer, size_t extra_bytes);
void buffer_clear(struct buffer *buffer); /* empty, memory kept */
void buffer_deinit(struct buffer *buffer);

struct tokens {
    int32_t *ids;
    size_t count;
    size_t capacity;
};

int tokens_append(struct tokens *tokens, int32_t id);
int tokens_append_all(struct tokens *tokens, const int32_t *ids, size_t count);
int tokens_reserve(struct tokens *tokens, size_t extra);
/* How many ids both begin with. */
size_t tokens_common(const struct tokens *a, const struct tokens *b);
void tokens_deinit(struct tokens *tokens);

#endif
