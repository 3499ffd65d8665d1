#include "support/chunks.h"

#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/random.h"
#include "os/aio.h"

const struct chunk_geometry chunks_geometry = {CHUNKS_LAYERS, {8192, 4160, 2112, 1712, 1296, 3072, 2064}};

void chunks_directory_make(char path[64], bool in_memory)
{
    bool memory = in_memory && access("/dev/shm", W_OK) == 0;
    snprintf(path, 64, "%s/llms-chunks-XXXXXX", memory ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(path));
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *at)
{
    (void)st;
    (void)flag;
    (void)at;
    return remove(path);
}

void chunks_directory_remove(const char *path)
{
    assert_int_equal(nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static unsigned files;

static int count_entry(const char *path, const struct stat *st, int flag, struct FTW *at)
{
    (void)st;
    files += flag == FTW_F && strcmp(path + at->base, "salt") != 0;
    return 0;
}

unsigned chunks_files(const char *directory)
{
    files = 0;
    assert_int_equal(nftw(directory, count_entry, 8, FTW_PHYS), 0);
    return files;
}

static size_t slice_bytes(const struct segment_chunk *chunk)
{
    size_t index = 0;
    while (chunk_levels[index] != chunk->level)
        index++;
    return chunks_geometry.layer_bytes[index];
}

void chunks_make(const struct chunk_store *store, const char *owner, uint64_t seed,
                 struct segment_chunk *chunks, size_t count)
{
    static const uint8_t levels[] = {8, 2, 16, 64 | 4, 4, 3, 64 | 2};
    struct random random = {seed};
    struct chunk_key state;
    chunk_key_start(store, owner, &state);
    for (size_t i = 0; i < count; i++) {
        struct segment_chunk *chunk = &chunks[i];
        int32_t tokens[16];
        for (int k = 0; k < 16; k++)
            tokens[k] = (int32_t)(seed * 1000 + i * 16 + (size_t)k);
        *chunk =
            (struct segment_chunk){.level = levels[i % sizeof levels], .tokens = i + 1 == count ? 5 : 16};
        chunk_key_next(store, &state, tokens, chunk->tokens);
        chunk->key = state;
        chunk->received = random_next(&random);
        chunk->rows = random_next(&random);
        size_t bytes = CHUNKS_LAYERS * slice_bytes(chunk);
        uint64_t *words = malloc(bytes);
        assert_non_null(words);
        for (size_t k = 0; k < bytes / 8; k++)
            words[k] = random_next(&random);
        chunk->data = words;
    }
}

void chunks_free(struct segment_chunk *chunks, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free((void *)(uintptr_t)chunks[i].data);
}

/* One layer's slice, or why not. */
static int compare_layer(struct aio *aio, struct segment *segment, uint32_t layer, uint32_t index,
                         const struct segment_chunk *chunk)
{
    struct segment_range range;
    size_t at;
    int code = segment_layer_range(segment, layer, index, 1, &range, &at);
    if (code < 0)
        return code;
    assert_true(range.offset % 4096 == 0 && range.bytes % 4096 == 0);
    assert_true(at < 4096 && at + slice_bytes(chunk) <= range.bytes);
    char *data = aligned_alloc(4096, range.bytes);
    assert_non_null(data);
    struct aio_read read = {range.descriptor, range.offset, data, range.bytes, NULL, 0};
    code = aio_submit(aio, &read);
    if (code == 0) {
        assert_ptr_equal(aio_wait(aio, true), &read);
        code = read.code;
    }
    if (code == 0) {
        if (!segment_slice_valid(segment, layer, index, data + at))
            code = -EBADMSG;
        else
            assert_memory_equal(data + at, (const char *)chunk->data + layer * slice_bytes(chunk),
                                slice_bytes(chunk));
    }
    free(data);
    return code;
}

int chunks_compare(struct segment *segment, uint32_t index, const struct segment_chunk *chunk)
{
    const struct segment_chunk *stored = segment_chunk(segment, index);
    struct aio *aio = NULL;
    assert_memory_equal(&stored->key, &chunk->key, sizeof chunk->key);
    assert_true(stored->level == chunk->level && stored->tokens == chunk->tokens);
    assert_true(stored->received == chunk->received && stored->rows == chunk->rows && !stored->data);
    int code = aio_create(AIO_BEST, 4, &aio);
    for (uint32_t layer = 0; code == 0 && layer < CHUNKS_LAYERS; layer++)
        code = compare_layer(aio, segment, layer, index, chunk);
    aio_destroy(aio);
    return code;
}
