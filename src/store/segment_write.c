/* Writing a segment: layer after layer through one buffer, then the header, then publication.
 *
 * The file has its final name only once all of it is on flash; whatever fails before leaves nothing. */
#include <errno.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "os/aio.h"
#include "os/file.h"
#include "store/chunkfile_internal.h"

enum { GATHER_BYTES = 1 << 20 };

/* Slices on their way into the file. */
struct gather {
    int descriptor;
    char *buffer; /* aligned */
    size_t capacity, filled;
    uint64_t offset; /* of buffer in the file */
};

static int gather_flush(struct gather *gather)
{
    if (gather->filled == 0)
        return 0;
    aio_pace(gather->filled);
    int code = os_pwrite(gather->descriptor, gather->offset, gather->buffer, gather->filled);
    gather->offset += gather->filled;
    gather->filled = 0;
    return code;
}

/* data NULL: zeros. */
static int gather_add(struct gather *gather, const char *data, size_t bytes)
{
    while (bytes) {
        size_t room = gather->capacity - gather->filled, piece = bytes < room ? bytes : room;
        if (data) {
            memcpy(gather->buffer + gather->filled, data, piece);
            data += piece;
        } else {
            memset(gather->buffer + gather->filled, 0, piece);
        }
        gather->filled += piece;
        bytes -= piece;
        if (gather->filled == gather->capacity) {
            int code = gather_flush(gather);
            if (code < 0)
                return code;
        }
    }
    return 0;
}

/* All layers, and their checksums into the table. */
static int write_layers(struct segment_table *table, const struct segment_chunk *chunks,
                        struct gather *gather)
{
    for (uint32_t layer = 0; layer < table->layers; layer++) {
        uint64_t end = 0;
        for (uint32_t i = 0; i < table->count; i++) {
            const struct segment_entry *entry = &table->entries[i];
            const char *slice = (const char *)chunks[i].data + (size_t)layer * entry->slice_bytes;
            table->checksums[(size_t)i * table->layers + layer] =
                hash_bulk(slice, entry->slice_bytes, table->seed);
            int code = gather_add(gather, slice, entry->slice_bytes);
            if (code < 0)
                return code;
            end = entry->slice_at + entry->slice_bytes;
        }
        int code = gather_add(gather, NULL, (size_t)(table->layer_bytes - end));
        if (code < 0)
            return code;
    }
    return gather_flush(gather);
}

static int write_content(const struct chunk_store *store, int descriptor, struct segment_table *table,
                         const struct segment_chunk *chunks)
{
    uint64_t layers_bytes = table->file_bytes - table->header_bytes;
    struct gather gather = {.descriptor = descriptor, .offset = table->header_bytes};
    gather.capacity = layers_bytes < GATHER_BYTES ? (size_t)layers_bytes : GATHER_BYTES;
    gather.buffer = mem_aligned(SEGMENT_ALIGN, gather.capacity);
    void *header = mem_aligned(SEGMENT_ALIGN, (size_t)table->header_bytes);
    int code = gather.buffer && header ? write_layers(table, chunks, &gather) : -ENOMEM;
    if (code == 0) {
        segment_format(table, &store->geometry, header);
        aio_pace(table->header_bytes);
        code = os_pwrite(descriptor, 0, header, (size_t)table->header_bytes);
    }
    if (code == 0)
        code = os_sync(descriptor);
    mem_free(header);
    mem_free(gather.buffer);
    return code;
}

/* The temporary file in the context's directory, which is made if need be. */
static int create_file(struct chunk_store *store, const char *context, const char *temporary)
{
    char directory[PATH_MAX];
    int code = chunk_store_context_path(store, context, directory);
    if (code < 0)
        return code;
    pthread_mutex_lock(&store->mutex); /* lest the worker removes the empty directory in between */
    code = os_make_directories(directory, 0700);
    if (code == 0)
        code = os_create_direct(temporary, 0600);
    if (code < 0)
        os_remove_directory(directory);
    pthread_mutex_unlock(&store->mutex);
    return code;
}

static void remove_file(struct chunk_store *store, const char *context, const char *path,
                        const char *temporary)
{
    char directory[PATH_MAX];
    pthread_mutex_lock(&store->mutex);
    os_remove(temporary);
    os_remove(path); /* renamed, but perhaps not for good */
    if (chunk_store_context_path(store, context, directory) == 0)
        os_remove_directory(directory);
    pthread_mutex_unlock(&store->mutex);
}

static int write_file(struct chunk_store *store, struct segment *segment, const struct segment_chunk *chunks)
{
    char path[PATH_MAX], temporary[PATH_MAX];
    const char *context = segment->holders->context;
    int code = chunk_store_segment_path(store, context, segment->number, SEGMENT_SUFFIX, path);
    if (code == 0)
        code = chunk_store_segment_path(store, context, segment->number, SEGMENT_TEMPORARY_SUFFIX, temporary);
    if (code < 0)
        return code;
    int descriptor = create_file(store, context, temporary);
    if (descriptor < 0) {
        code = descriptor;
    } else {
        code = write_content(store, descriptor, segment->table, chunks);
        int closed = os_close(descriptor);
        if (code == 0)
            code = closed;
        if (code == 0)
            code = os_publish(temporary, path);
    }
    if (code < 0)
        remove_file(store, context, path, temporary);
    return code;
}

static bool context_valid(const char *context)
{
    return context[0] && !strchr(context, '/') && strcmp(context, ".") != 0 && strcmp(context, "..") != 0 &&
           strncmp(context, "salt", 4) != 0 && strlen(context) <= 128;
}

int segment_write(struct chunk_store *store, const char *context, const struct segment_chunk *chunks,
                  size_t count, struct segment **out, struct error *error)
{
    struct segment_table *table = NULL;
    if (!context_valid(context))
        return error_set(error, -EINVAL, "a context cannot have this name");
    int code = segment_table_create(&store->geometry, store->fingerprint, chunks, count, &table);
    if (code < 0)
        return error_set(error, code, "cannot store %zu chunks: %s", count, strerror(-code));
    pthread_mutex_lock(&store->mutex);
    uint64_t number = store->next_number++;
    pthread_mutex_unlock(&store->mutex);
    struct segment *segment = segment_create(context, number, table);
    if (!segment) {
        mem_free(table);
        return error_set(error, -ENOMEM, "cannot store %zu chunks: out of memory", count);
    }
    code = write_file(store, segment, chunks);
    if (code < 0) {
        segment_destroy(segment);
        return error_set(error, code, "cannot store %zu chunks of %s: %s", count, context, strerror(-code));
    }
    pthread_mutex_lock(&store->mutex);
    chunk_store_publish(store, segment);
    pthread_mutex_unlock(&store->mutex);
    *out = segment;
    return 0;
}
