/* See gguf_build.h. */
#include "support/gguf_build.h"

#include <stdlib.h>
#include <string.h>

static void append(struct buffer *buffer, const void *data, size_t bytes)
{
    if (buffer_append(buffer, data, bytes) < 0)
        abort();
}

static void append_string(struct buffer *buffer, const char *text)
{
    uint64_t length = strlen(text);
    append(buffer, &length, 8);
    append(buffer, text, length);
}

static void pad(struct buffer *buffer, uint64_t alignment)
{
    while (buffer->length % (alignment ? alignment : 32))
        append(buffer, "", 1);
}

void gguf_build_deinit(struct gguf_build *build)
{
    buffer_deinit(&build->entries);
    buffer_deinit(&build->tensors);
    buffer_deinit(&build->data);
    buffer_deinit(&build->file);
}

void gguf_build_key(struct gguf_build *build, const char *key, uint32_t type)
{
    append_string(&build->entries, key);
    append(&build->entries, &type, 4);
    build->entry_count++;
}

void gguf_build_put(struct gguf_build *build, const void *data, size_t bytes)
{
    append(&build->entries, data, bytes);
}

void gguf_build_put_u32(struct gguf_build *build, uint32_t value)
{
    append(&build->entries, &value, 4);
}

void gguf_build_put_u64(struct gguf_build *build, uint64_t value)
{
    append(&build->entries, &value, 8);
}

void gguf_build_put_string(struct gguf_build *build, const char *text)
{
    append_string(&build->entries, text);
}

void gguf_build_u32(struct gguf_build *build, const char *key, uint32_t value)
{
    gguf_build_key(build, key, 4);
    gguf_build_put_u32(build, value);
}

void gguf_build_string(struct gguf_build *build, const char *key, const char *text)
{
    gguf_build_key(build, key, 8);
    gguf_build_put_string(build, text);
}

void gguf_build_tensor_at(struct gguf_build *build, const char *name, uint32_t type, uint32_t dimensions,
                          const uint64_t *sizes, uint64_t offset)
{
    append_string(&build->tensors, name);
    append(&build->tensors, &dimensions, 4);
    append(&build->tensors, sizes, 8 * (size_t)dimensions);
    append(&build->tensors, &type, 4);
    append(&build->tensors, &offset, 8);
    build->tensor_count++;
}

void gguf_build_tensor(struct gguf_build *build, const char *name, uint32_t type, uint32_t dimensions,
                       const uint64_t *sizes, const void *data, size_t bytes)
{
    pad(&build->data, build->alignment);
    gguf_build_tensor_at(build, name, type, dimensions, sizes, build->data.length);
    append(&build->data, data, bytes);
}

const struct buffer *gguf_build_finish(struct gguf_build *build)
{
    uint32_t version = build->version ? build->version : 3;
    buffer_clear(&build->file);
    append(&build->file, "GGUF", 4);
    append(&build->file, &version, 4);
    append(&build->file, &build->tensor_count, 8);
    append(&build->file, &build->entry_count, 8);
    if (build->entries.length)
        append(&build->file, build->entries.data, build->entries.length);
    if (build->tensors.length)
        append(&build->file, build->tensors.data, build->tensors.length);
    if (build->tensor_count)
        pad(&build->file, build->alignment);
    if (build->data.length)
        append(&build->file, build->data.data, build->data.length);
    return &build->file;
}
