/* Chunk files: what is written is found and read back, by its key only, now and after a restart; what is
 * deleted or foreign is gone, from the directory too. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/random.h"
#include "os/aio.h"
#include "os/file.h"
#include "store/chunkfile.h"
#include "store/segment.h"
#include "support/chunks.h"

enum { MODEL = 77, COUNT = 9 };

struct fixture {
    char directory[64];
    struct chunk_store *store;
    struct segment_chunk chunks[COUNT];
};

static bool all_but_gone(void *argument, const char *context)
{
    (void)argument;
    return strcmp(context, "gone") != 0;
}

static void reopen_as(struct fixture *f, uint64_t model, const struct chunk_geometry *geometry)
{
    struct error error = {0};
    chunk_store_close(f->store);
    f->store = NULL;
    assert_int_equal(chunk_store_open(f->directory, model, geometry, all_but_gone, NULL, &f->store, &error),
                     0);
}

static void reopen(struct fixture *f)
{
    reopen_as(f, MODEL, &chunks_geometry);
}

static int setup_in(void **state, bool in_memory)
{
    static struct fixture fixture;
    fixture = (struct fixture){0};
    chunks_directory_make(fixture.directory, in_memory);
    reopen(&fixture);
    chunks_make(fixture.store, "1000/notes", 1, fixture.chunks, COUNT);
    *state = &fixture;
    return 0;
}

static int setup(void **state)
{
    return setup_in(state, false);
}

static int setup_in_memory(void **state) /* where there are too many syncs for a disk */
{
    return setup_in(state, true);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    chunk_store_close(f->store);
    chunks_free(f->chunks, COUNT);
    chunks_directory_remove(f->directory);
    return 0;
}

static struct segment *write_chunks(struct fixture *f, const char *context,
                                    const struct segment_chunk *chunks, size_t count)
{
    struct segment *segment = NULL;
    struct error error = {0};
    assert_int_equal(segment_write(f->store, context, chunks, count, &segment, &error), 0);
    return segment;
}

static int find(struct fixture *f, const struct segment_chunk *chunk, struct segment **segment,
                uint32_t *index)
{
    return chunk_store_find(f->store, &chunk->key, segment, index);
}

/* Each of the chunks is found and reads back as it was written. */
static void assert_all_there(struct fixture *f)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        struct segment *segment = NULL;
        uint32_t index = 99;
        assert_int_equal(find(f, &f->chunks[i], &segment, &index), 0);
        assert_int_equal(chunks_compare(segment, index, &f->chunks[i]), 0);
        segment_unref(f->store, segment);
    }
}

static void assert_none_there(struct fixture *f)
{
    struct segment *segment = NULL;
    uint32_t index;
    for (uint32_t i = 0; i < COUNT; i++)
        assert_int_equal(find(f, &f->chunks[i], &segment, &index), -ENOENT);
    assert_null(segment);
}

static void writes_and_finds(void **state)
{
    struct fixture *f = *state;
    assert_none_there(f);
    struct segment *segment = write_chunks(f, "a", f->chunks, COUNT);
    assert_int_equal(segment_chunk_count(segment), COUNT);
    assert_int_equal(segment_bytes(segment) % 4096, 0);
    assert_int_equal(segment_bytes(segment), chunk_store_bytes(f->store));
    assert_all_there(f);
    segment_unref(f->store, segment);
    assert_all_there(f); /* no reference is needed to stay */
    assert_int_equal(chunks_files(f->directory), 1);
    char path[PATH_MAX];
    struct stat st;
    snprintf(path, sizeof path, "%s/a/1.kv", f->directory);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(st.st_size, chunk_store_bytes(f->store));
    snprintf(path, sizeof path, "%s/salt", f->directory);
    assert_int_equal(stat(path, &st), 0);
    assert_true((st.st_mode & 0777) == 0600 && st.st_size == 32);
}

/* Neighbouring chunks come in one read, whichever run of them. */
static void layer_ranges(void **state)
{
    struct fixture *f = *state;
    struct segment *segment = write_chunks(f, "a", f->chunks, COUNT);
    struct segment_range range;
    size_t at[COUNT];
    static char data[1 << 17] __attribute__((aligned(4096)));
    for (uint32_t layer = 0; layer < CHUNKS_LAYERS; layer++)
        for (uint32_t first = 0; first < COUNT; first++)
            for (uint32_t count = 1; first + count <= COUNT; count++) {
                assert_int_equal(segment_layer_range(segment, layer, first, count, &range, at), 0);
                assert_true(range.offset % 4096 == 0 && range.bytes % 4096 == 0 &&
                            range.bytes <= sizeof data);
                assert_int_equal(os_pread(range.descriptor, range.offset, data, range.bytes), 0);
                for (uint32_t i = 0; i < count; i++) {
                    assert_int_equal(at[i] % 16, 0);
                    assert_true(segment_slice_valid(segment, layer, first + i, data + at[i]));
                    data[at[i] + 17] ^= 4;
                    assert_false(segment_slice_valid(segment, layer, first + i, data + at[i]));
                    data[at[i] + 17] ^= 4;
                }
            }
    assert_int_equal(segment_layer_range(segment, CHUNKS_LAYERS, 0, 1, &range, at), -EINVAL);
    assert_int_equal(segment_layer_range(segment, 0, COUNT, 1, &range, at), -EINVAL);
    assert_int_equal(segment_layer_range(segment, 0, 1, COUNT, &range, at), -EINVAL);
    assert_int_equal(segment_layer_range(segment, 0, 1, UINT32_MAX, &range, at), -EINVAL);
    assert_int_equal(segment_layer_range(segment, 0, 0, 0, &range, at), -EINVAL);
    segment_unref(f->store, segment);
}

static void survives_a_restart(void **state)
{
    struct fixture *f = *state;
    segment_unref(f->store, write_chunks(f, "a", f->chunks, 4));
    segment_unref(f->store, write_chunks(f, "a", f->chunks + 4, 3));
    segment_unref(f->store, write_chunks(f, "b", f->chunks + 7, 2));
    uint64_t bytes = chunk_store_bytes(f->store);
    for (int i = 0; i < 2; i++) {
        reopen(f);
        assert_all_there(f);
        assert_int_equal(chunk_store_bytes(f->store), bytes);
        assert_int_equal(chunks_files(f->directory), 3);
    }
    /* keys are made as before, and numbers go on */
    struct segment_chunk again[COUNT];
    chunks_make(f->store, "1000/notes", 1, again, COUNT);
    for (int i = 0; i < COUNT; i++)
        assert_memory_equal(&again[i].key, &f->chunks[i].key, sizeof again[i].key);
    segment_unref(f->store, write_chunks(f, "b", again, 1));
    assert_int_equal(chunks_files(f->directory), 4);
    chunks_free(again, COUNT);
}

static void the_newest_wins(void **state)
{
    struct fixture *f = *state;
    struct segment_chunk lower = f->chunks[2];
    assert_int_equal(lower.level, 16);
    lower.level = 4;
    struct segment *older = write_chunks(f, "a", f->chunks, 4), *newer = write_chunks(f, "a", &lower, 1),
                   *found;
    uint32_t index;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(find(f, &lower, &found, &index), 0);
        assert_int_equal(index, 0);
        assert_int_equal(chunks_compare(found, index, &lower), 0);
        segment_unref(f->store, found);
        if (i == 0)
            reopen(f);
    }
    /* without the newer one the older one is as good as ever */
    assert_int_equal(find(f, &lower, &newer, &index), 0);
    segment_unref(f->store, newer);
    segment_kill(f->store, newer);
    assert_int_equal(find(f, &lower, &older, &index), 0);
    assert_int_equal(index, 2);
    assert_int_equal(chunks_compare(older, index, &f->chunks[2]), 0);
    segment_unref(f->store, older);
}

static void killing_frees_space(void **state)
{
    struct fixture *f = *state;
    struct segment *segment = write_chunks(f, "a", f->chunks, COUNT);
    assert_ptr_equal(segment_ref(segment), segment);
    segment_kill(f->store, segment);
    segment_kill(f->store, segment);
    assert_none_there(f);
    segment_unref(f->store, segment);
    assert_int_equal(chunks_files(f->directory), 1);
    for (uint32_t i = 0; i < COUNT; i++) /* what is referred to can still be read */
        assert_int_equal(chunks_compare(segment, i, &f->chunks[i]), 0);
    segment_unref(f->store, segment);
    assert_int_equal(chunks_files(f->directory), 0);
    assert_int_equal(chunk_store_bytes(f->store), 0);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/a", f->directory);
    assert_int_equal(os_remove_directory(path), -ENOENT);
}

static void deletes_and_sweeps_a_context(void **state)
{
    struct fixture *f = *state;
    struct segment *kept = write_chunks(f, "a", f->chunks, 2);
    segment_unref(f->store, write_chunks(f, "a", f->chunks + 2, 2));
    segment_unref(f->store, write_chunks(f, "b", f->chunks + 4, 5));
    chunk_store_sweep(f->store, "a");
    assert_int_equal(chunks_files(f->directory), 2);
    assert_int_equal(chunks_compare(kept, 1, &f->chunks[1]), 0);
    chunk_store_delete_context(f->store, "a");
    struct segment *found;
    uint32_t index;
    assert_int_equal(find(f, &f->chunks[0], &found, &index), -ENOENT);
    assert_int_equal(chunks_files(f->directory), 2);
    segment_unref(f->store, kept);
    assert_int_equal(chunks_files(f->directory), 1);
    assert_int_equal(find(f, &f->chunks[4], &found, &index), 0);
    segment_unref(f->store, found);
    chunk_store_delete_context(f->store, "b");
    chunk_store_delete_context(f->store, "never was");
    assert_int_equal(chunk_store_bytes(f->store), 0);
}

/* One file in the directories of those that need it; the last one takes it away. */
static void several_contexts_have_it(void **state)
{
    struct fixture *f = *state;
    struct segment *segment = write_chunks(f, "a", f->chunks, COUNT), *found;
    uint64_t bytes = chunk_store_bytes(f->store);
    uint32_t index;
    for (int i = 0; i < 2; i++) { /* again: nothing more */
        assert_int_equal(segment_link(f->store, segment, "b"), 0);
        assert_int_equal(segment_link(f->store, segment, "c"), 0);
        assert_int_equal(segment_link(f->store, segment, "a"), 0);
    }
    segment_unref(f->store, segment);
    assert_int_equal(chunks_files(f->directory), 3);
    assert_int_equal(chunk_store_bytes(f->store), bytes); /* counted once */
    chunk_store_delete_context(f->store, "a");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(chunks_files(f->directory), 2);
        assert_int_equal(chunk_store_bytes(f->store), bytes);
        assert_int_equal(chunk_store_count(f->store, "a"), 0);
        assert_int_equal(chunk_store_count(f->store, "b"), COUNT);
        assert_all_there(f);
        reopen(f);
    }
    assert_int_equal(find(f, &f->chunks[0], &found, &index), 0);
    chunk_store_sweep(f->store, "b"); /* somebody refers to it */
    assert_int_equal(chunk_store_count(f->store, "b"), COUNT);
    segment_unref(f->store, found);
    chunk_store_sweep(f->store, "b");
    assert_int_equal(chunks_files(f->directory), 1);
    assert_all_there(f);
    assert_int_equal(find(f, &f->chunks[0], &found, &index), 0);
    chunk_store_delete_context(f->store, "c");
    assert_false(segment_alive(found));
    assert_int_equal(segment_link(f->store, found, "d"), -ESTALE);
    assert_int_equal(chunks_compare(found, index, &f->chunks[0]), 0);
    segment_unref(f->store, found);
    assert_int_equal(chunks_files(f->directory), 0);
    assert_int_equal(chunk_store_bytes(f->store), 0);
}

static void links_that_fail(void **state)
{
    struct fixture *f = *state;
    struct segment *segment = write_chunks(f, "a", f->chunks, COUNT);
    os_fault_set(OS_FAULT_LINK, 1, true, EPERM);
    assert_int_equal(segment_link(f->store, segment, "b"), -EPERM);
    os_fault_set(0, 0, false, 0);
    assert_int_equal(chunk_store_count(f->store, "b"), 0);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/b", f->directory);
    assert_int_equal(os_remove_directory(path), -ENOENT);
    mem_fault_set(1, false);
    assert_int_equal(segment_link(f->store, segment, "b"), -ENOMEM);
    mem_fault_set(0, false);
    assert_int_equal(chunks_files(f->directory), 1);
    assert_all_there(f);
    segment_unref(f->store, segment);
}

static void withdrawn_chunks_are_not_found(void **state)
{
    struct fixture *f = *state;
    struct segment *segment = write_chunks(f, "a", f->chunks, COUNT), *found;
    uint32_t index;
    segment_withdraw(f->store, segment, 3);
    segment_withdraw(f->store, segment, 3);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_int_equal(find(f, &f->chunks[i], &found, &index), i == 3 ? -ENOENT : 0);
        if (i != 3)
            segment_unref(f->store, found);
    }
    segment_kill(f->store, segment);
    segment_withdraw(f->store, segment, 4);
    segment_unref(f->store, segment);
    assert_int_equal(chunks_files(f->directory), 0);
}

static void keys_are_the_owners(void **state)
{
    struct fixture *f = *state;
    segment_unref(f->store, write_chunks(f, "a", f->chunks, COUNT));
    struct segment_chunk others[COUNT];
    struct segment *found;
    uint32_t index;
    chunks_make(f->store, "1000/mail", 1, others, COUNT);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(find(f, &others[i], &found, &index), -ENOENT);
    chunks_free(others, COUNT);
    /* any other token before makes another key, also in the last place, and so does the number of tokens */
    int32_t tokens[16] = {1, 2, 3};
    struct chunk_key first, second;
    chunk_key_start(f->store, "o", &first);
    second = first;
    chunk_key_next(f->store, &first, tokens, 16);
    chunk_key_next(f->store, &second, tokens, 15);
    assert_memory_not_equal(&first, &second, sizeof first);
    chunk_key_start(f->store, "o", &second);
    tokens[15] = 1;
    chunk_key_next(f->store, &second, tokens, 16);
    assert_memory_not_equal(&first, &second, sizeof first);
    /* another daemon's salt gives other keys */
    struct fixture other = {0};
    chunks_directory_make(other.directory, true);
    reopen(&other);
    chunk_key_start(other.store, "o", &first);
    chunk_key_start(f->store, "o", &second);
    assert_memory_not_equal(&first, &second, sizeof first);
    chunk_store_close(other.store);
    chunks_directory_remove(other.directory);
}

static void put_file(const struct fixture *f, const char *name, const void *data, size_t bytes)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", f->directory, name);
    assert_int_equal(os_write_file(path, data, bytes, 0600), 0);
}

static bool has_file(const struct fixture *f, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", f->directory, name);
    return stat(path, &st) == 0;
}

static void cleans_up_at_start(void **state)
{
    struct fixture *f = *state;
    static char zeros[8192];
    segment_unref(f->store, write_chunks(f, "a", f->chunks, COUNT));
    segment_unref(f->store, write_chunks(f, "gone", f->chunks, COUNT));
    assert_int_equal(chunks_files(f->directory), 2);
    put_file(f, "a/900.kv.tmp", zeros, 10);
    put_file(f, "a/901.kv", zeros, sizeof zeros);
    put_file(f, "a/902.kv", zeros, 1);
    put_file(f, "a/02.kv", zeros, 1);     /* no name of ours */
    put_file(f, "a/notes.txt", zeros, 1); /* nor this */
    put_file(f, "salt.tmp12", zeros, 1);
    reopen(f);
    assert_false(has_file(f, "gone"));
    assert_false(has_file(f, "a/900.kv.tmp") || has_file(f, "a/901.kv") || has_file(f, "a/902.kv"));
    assert_false(has_file(f, "salt.tmp12"));
    assert_true(has_file(f, "a/02.kv") && has_file(f, "a/notes.txt") && has_file(f, "a/1.kv"));
    assert_all_there(f);
    segment_unref(f->store, write_chunks(f, "a", f->chunks, 1));
    assert_true(has_file(f, "a/903.kv")); /* never a number again */
}

static void of_another_model(void **state)
{
    struct fixture *f = *state;
    struct chunk_geometry wider = chunks_geometry;
    wider.layer_bytes[3] += 64;
    for (int i = 0; i < 2; i++) {
        segment_unref(f->store, write_chunks(f, "a", f->chunks, COUNT));
        assert_int_equal(chunks_files(f->directory), 1);
        reopen_as(f, i ? MODEL : MODEL + 1, i ? &wider : &chunks_geometry);
        assert_none_there(f);
        assert_int_equal(chunks_files(f->directory), 0);
        reopen(f);
    }
    segment_unref(f->store, write_chunks(f, "a", f->chunks, COUNT));
    put_file(f, "salt", "short", 5);
    reopen(f);
    assert_none_there(f);
    assert_int_equal(chunks_files(f->directory), 0);
}

/* A header that says what no program of this version writes, its checksum right. */
static void a_level_that_is_none_is_damage(void **state)
{
    struct fixture *f = *state;
    enum { AT_RESERVED = 68, AT_LEVEL = SEGMENT_FIXED_BYTES + 32 };
    struct segment_table *table = NULL, *parsed = NULL;
    assert_int_equal(segment_table_create(&chunks_geometry, MODEL, f->chunks, 1, &table), 0);
    uint8_t *header = mem_calloc(1, table->header_bytes);
    assert_non_null(header);
    for (unsigned level = 0; level < 256; level++)
        for (uint8_t reserved = 0; reserved < 2; reserved++) {
            f->chunks[0].level = (uint8_t)level;
            bool exists = chunk_level_index((uint8_t)level) >= 0, valid = exists && reserved == 0;
            struct segment_table *of = NULL;
            if (exists)
                assert_int_equal(segment_table_create(&chunks_geometry, MODEL, f->chunks, 1, &of), 0);
            segment_format(of ? of : table, &chunks_geometry, header);
            header[AT_LEVEL] = (uint8_t)level;
            header[AT_RESERVED] = reserved;
            uint32_t bytes;
            memcpy(&bytes, header + 12, sizeof bytes);
            uint64_t checksum = segment_header_checksum(header, bytes - 8);
            memcpy(header + bytes - 8, &checksum, sizeof checksum);
            uint64_t size = of ? of->file_bytes : table->file_bytes;
            assert_int_equal(
                segment_parse(header, table->header_bytes, size, &chunks_geometry, MODEL, &parsed),
                valid ? 0 : -EBADMSG);
            assert_int_equal(parsed != NULL, valid);
            mem_free(parsed);
            mem_free(of);
            parsed = NULL;
        }
    assert_int_equal(chunk_level_index(3), 3);
    assert_int_equal(chunk_level_index(64 | 3), -1);
    mem_free(header);
    mem_free(table);
}

static void refuses(void **state)
{
    struct fixture *f = *state;
    static const char *const names[] = {"", ".", "..", "a/b", "salt"};
    struct segment *segment = NULL;
    struct error error = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(segment_write(f->store, names[i], f->chunks, 1, &segment, &error), -EINVAL);
    assert_int_equal(segment_write(f->store, "a", f->chunks, 0, &segment, &error), -EINVAL);
    struct segment_chunk bad = f->chunks[0];
    bad.level = 5;
    assert_int_equal(segment_write(f->store, "a", &bad, 1, &segment, &error), -EINVAL);
    bad = f->chunks[0];
    for (int tokens = 0; tokens <= 17; tokens += 17) {
        bad.tokens = (uint8_t)tokens;
        assert_int_equal(segment_write(f->store, "a", &bad, 1, &segment, &error), -EINVAL);
    }
    assert_null(segment);
    assert_int_equal(chunks_files(f->directory), 0);
    struct chunk_store *store = NULL;
    struct chunk_geometry none = {0};
    assert_int_equal(chunk_store_open(f->directory, MODEL, &none, NULL, NULL, &store, &error), -EINVAL);
    assert_null(store);
}

/* More segments than stay open, more keys than the index began with, headers longer than the first read. */
static void many(void **state)
{
    struct fixture *f = *state;
    enum { SEGMENTS = 280, LARGE = 1200 };
    static struct segment *segments[SEGMENTS];
    struct segment_chunk one = f->chunks[1];
    for (uint32_t i = 0; i < SEGMENTS; i++) {
        memcpy(one.key.bytes, &i, sizeof i);
        segments[i] = write_chunks(f, "a", &one, 1);
    }
    static struct segment_chunk large[LARGE];
    for (uint32_t i = 0; i < LARGE; i++) {
        large[i] = f->chunks[1];
        memcpy(large[i].key.bytes, &(uint32_t){SEGMENTS + i}, sizeof i);
    }
    segment_unref(f->store, write_chunks(f, "b", large, LARGE));
    struct segment_range range;
    size_t at;
    int highest = 0;
    for (int i = 0; i < SEGMENTS; i++) {
        assert_int_equal(segment_layer_range(segments[i], 0, 0, 1, &range, &at), 0);
        highest = range.descriptor > highest ? range.descriptor : highest;
    }
    assert_true(highest >= SEGMENTS);
    chunk_store_trim(f->store);
    int next = os_open_direct(f->directory);
    assert_true(next >= 0 && next < highest);
    os_close(next);
    for (uint32_t i = 0; i < SEGMENTS; i++) {
        memcpy(one.key.bytes, &i, sizeof i);
        assert_int_equal(chunks_compare(segments[i], 0, &one), 0);
        segment_unref(f->store, segments[i]);
    }
    reopen(f);
    for (uint32_t i = 0; i < SEGMENTS + LARGE; i++) {
        struct segment *found;
        uint32_t index;
        memcpy(one.key.bytes, &i, sizeof i);
        assert_int_equal(find(f, &one, &found, &index), 0);
        assert_int_equal(index, i < SEGMENTS ? 0 : i - SEGMENTS);
        if (i % 50 == 0)
            assert_int_equal(chunks_compare(found, index, &one), 0);
        segment_unref(f->store, found);
    }
}

/* Any one bit, and any change of length, changes the hash; and it keeps up with storage. */
static void bulk_hash(void **state)
{
    (void)state;
    static unsigned char data[1 << 20];
    struct random random = {3};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)random_next(&random);
    static const size_t sizes[] = {0, 1, 8, 31, 32, 33, 64, 100};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint64_t hash = hash_bulk(data, sizes[s], 5);
        assert_true(hash == hash_bulk(data, sizes[s], 5) && hash != hash_bulk(data, sizes[s], 6));
        assert_true(hash != hash_bulk(data, sizes[s] + 1, 5));
        for (size_t bit = 0; bit < sizes[s] * 8; bit++) {
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
            assert_true(hash != hash_bulk(data, sizes[s], 5));
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
    }
    /* swapped words in all distances do not cancel */
    uint64_t hash = hash_bulk(data, 256, 5), *words = (uint64_t *)(void *)data;
    for (int i = 0; i < 32; i++)
        for (int k = 0; k < i; k++) {
            uint64_t word = words[i];
            words[i] = words[k];
            words[k] = word;
            assert_true(hash != hash_bulk(data, 256, 5));
            words[k] = words[i];
            words[i] = word;
        }
    uint64_t best = UINT64_MAX, sum = 0;
    for (int i = 0; i < 50; i++) {
        uint64_t start = clock_ns();
        sum += hash_bulk(data, sizeof data, (uint64_t)i);
        uint64_t spent = clock_ns() - start;
        best = spent < best ? spent : best;
    }
    print_message("hash_bulk: %.1f GB/s (%x)\n", sizeof data / (double)best, (unsigned)(sum & 15));
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(writes_and_finds),
        CASE(layer_ranges),
        CASE(survives_a_restart),
        CASE(the_newest_wins),
        CASE(killing_frees_space),
        CASE(deletes_and_sweeps_a_context),
        CASE(several_contexts_have_it),
        CASE(links_that_fail),
        CASE(withdrawn_chunks_are_not_found),
        CASE(keys_are_the_owners),
        CASE(cleans_up_at_start),
        CASE(of_another_model),
        CASE(refuses),
        CASE(a_level_that_is_none_is_damage),
        cmocka_unit_test_setup_teardown(many, setup_in_memory, teardown),
        cmocka_unit_test(bulk_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
