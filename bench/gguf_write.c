/* See gguf_write.h. Format: src/model/gguf.c. */
#include "gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "bench.h"

enum { ALIGNMENT = 32, PIECE_BYTES = 4 << 20 };

/* The file being written: what is appended is gathered in pieces. */
struct sink {
    int descriptor;
    uint8_t *piece; /* PIECE_BYTES, more where a row is longer */
    size_t capacity;
    size_t used;
    uint64_t written;
    uint64_t total;
};

static uint64_t padded(uint64_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

static void append(struct gguf_write *write, const void *data, size_t bytes)
{
    if (write->failed == 0 && bytes)
        write->failed = buffer_append(&write->entries, data, bytes);
}

void gguf_write_deinit(struct gguf_write *write)
{
    buffer_deinit(&write->entries);
    mem_free(write->tensors);
    *write = (struct gguf_write){0};
}

void gguf_write_string(struct gguf_write *write, const char *data, size_t length)
{
    uint64_t bytes = length;
    append(write, &bytes, sizeof bytes);
    append(write, data, length);
}

static void put_key(struct gguf_write *write, const char *key, uint32_t type)
{
    gguf_write_string(write, key, strlen(key));
    append(write, &type, sizeof type);
    write->entry_count++;
}

void gguf_write_u32(struct gguf_write *write, const char *key, uint32_t value)
{
    put_key(write, key, GGUF_U32);
    append(write, &value, sizeof value);
}

void gguf_write_f32(struct gguf_write *write, const char *key, float value)
{
    put_key(write, key, GGUF_F32);
    append(write, &value, sizeof value);
}

void gguf_write_bool(struct gguf_write *write, const char *key, bool value)
{
    put_key(write, key, GGUF_BOOL);
    append(write, &(uint8_t){value}, 1);
}

void gguf_write_text(struct gguf_write *write, const char *key, const char *value)
{
    put_key(write, key, GGUF_STRING);
    gguf_write_string(write, value, strlen(value));
}

void gguf_write_entry(struct gguf_write *write, const struct gguf_entry *entry)
{
    uint32_t type = entry->type;
    gguf_write_string(write, entry->key.data, entry->key.length);
    append(write, &type, sizeof type);
    append(write, entry->data, entry->bytes);
    write->entry_count++;
}

void gguf_write_array(struct gguf_write *write, const char *key, enum gguf_value_type type, uint64_t count)
{
    put_key(write, key, GGUF_ARRAY);
    append(write, &(uint32_t){type}, 4);
    append(write, &count, sizeof count);
}

void gguf_write_element(struct gguf_write *write, const void *data, size_t bytes)
{
    append(write, data, bytes);
}

static uint64_t tensor_bytes(const struct gguf_write_tensor *tensor)
{
    return dtype_row_bytes(tensor->type, tensor->columns) * (tensor->rows ? tensor->rows : 1);
}

void gguf_write_tensor(struct gguf_write *write, const struct gguf_write_tensor *tensor)
{
    if (write->tensor_count == write->tensor_capacity && write->failed == 0) {
        size_t capacity = write->tensor_capacity ? write->tensor_capacity * 2 : 64;
        struct gguf_write_tensor *more = mem_realloc(write->tensors, capacity * sizeof *more);
        if (!more)
            write->failed = -ENOMEM;
        else {
            write->tensors = more;
            write->tensor_capacity = capacity;
        }
    }
    if (write->failed)
        return;
    struct gguf_write_tensor *added = &write->tensors[write->tensor_count++];
    *added = *tensor;
    added->offset = write->data_bytes;
    write->data_bytes += padded(tensor_bytes(tensor));
}

/* Header, metadata and tensor descriptions with their padding. */
static int put_head(struct gguf_write *write, struct buffer *head)
{
    struct gguf_write descriptions = {0};
    uint64_t counts[] = {write->tensor_count, write->entry_count};
    static const char zeros[ALIGNMENT];
    for (size_t i = 0; i < write->tensor_count; i++) {
        const struct gguf_write_tensor *tensor = &write->tensors[i];
        uint32_t dimensions = tensor->rows ? 2 : 1, type = tensor->type;
        uint64_t sizes[] = {tensor->columns, tensor->rows};
        gguf_write_string(&descriptions, tensor->name, strlen(tensor->name));
        append(&descriptions, &dimensions, sizeof dimensions);
        append(&descriptions, sizes, 8 * (size_t)dimensions);
        append(&descriptions, &type, sizeof type);
        append(&descriptions, &tensor->offset, 8);
    }
    int code = write->failed ? write->failed : descriptions.failed;
    if (code == 0)
        code = buffer_append(head, "GGUF\3\0\0\0", 8);
    if (code == 0)
        code = buffer_append(head, counts, sizeof counts);
    if (code == 0)
        code = buffer_append(head, write->entries.data, write->entries.length);
    if (code == 0)
        code = buffer_append(head, descriptions.entries.data, descriptions.entries.length);
    if (code == 0)
        code = buffer_append(head, zeros, (size_t)(padded(head->length) - head->length));
    gguf_write_deinit(&descriptions);
    return code;
}

static int put_bytes(struct sink *sink, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    while (bytes) {
        ssize_t n = write(sink->descriptor, p, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        p += n;
        bytes -= (size_t)n;
        sink->written += (uint64_t)n;
    }
    if (sink->total > 64u << 20)
        bench_progress("%llu of %llu MB", (unsigned long long)(sink->written >> 20),
                       (unsigned long long)(sink->total >> 20));
    return 0;
}

static int flush(struct sink *sink)
{
    size_t used = sink->used;
    sink->used = 0;
    return put_bytes(sink, sink->piece, used);
}

static int put_tensor(struct sink *sink, const struct gguf_write_tensor *tensor, gguf_write_row *fill,
                      void *context)
{
    int code = 0;
    size_t row_bytes = dtype_row_bytes(tensor->type, tensor->columns);
    uint64_t rows = tensor->rows ? tensor->rows : 1, bytes = tensor_bytes(tensor);
    for (uint64_t row = 0; row < rows && code == 0; row++) {
        if (sink->used + row_bytes + ALIGNMENT > sink->capacity)
            code = flush(sink);
        fill(context, tensor, row, sink->piece + sink->used);
        sink->used += row_bytes;
    }
    memset(sink->piece + sink->used, 0, (size_t)(padded(bytes) - bytes));
    sink->used += (size_t)(padded(bytes) - bytes);
    return code;
}

static int put_all(struct gguf_write *write, struct sink *sink, gguf_write_row *fill, void *context)
{
    struct buffer head = {0};
    int code = put_head(write, &head);
    sink->total = head.length + write->data_bytes;
    sink->capacity = PIECE_BYTES;
    for (size_t i = 0; i < write->tensor_count; i++) {
        size_t row_bytes = dtype_row_bytes(write->tensors[i].type, write->tensors[i].columns);
        if (row_bytes + ALIGNMENT > sink->capacity)
            sink->capacity = row_bytes + ALIGNMENT;
    }
    sink->piece = code == 0 ? mem_aligned(64, sink->capacity) : NULL;
    if (code == 0 && !sink->piece)
        code = -ENOMEM;
    if (code == 0)
        code = put_bytes(sink, head.data, head.length);
    for (size_t i = 0; i < write->tensor_count && code == 0; i++)
        code = put_tensor(sink, &write->tensors[i], fill, context);
    if (code == 0)
        code = flush(sink);
    if (code == 0 && fsync(sink->descriptor) < 0)
        code = -errno;
    mem_free(sink->piece);
    buffer_deinit(&head);
    bench_progress(NULL);
    return code;
}

int gguf_write_publish(struct gguf_write *write, const char *path, gguf_write_row *fill, void *context,
                       struct error *error)
{
    char temporary[PATH_MAX];
    struct sink sink = {0};
    int n = snprintf(temporary, sizeof temporary, "%s.tmp%ld", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof temporary)
        return error_set(error, -ENAMETOOLONG, "%s: %s", path, strerror(ENAMETOOLONG));
    sink.descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (sink.descriptor < 0)
        return error_set(error, -errno, "%s: %s", path, strerror(errno));
    int code = put_all(write, &sink, fill, context);
    if (close(sink.descriptor) < 0 && code == 0)
        code = -errno;
    if (code == 0 && rename(temporary, path) < 0)
        code = -errno;
    if (code < 0) {
        unlink(temporary);
        return error_set(error, code, "%s: %s", path, strerror(-code));
    }
    return 0;
}
