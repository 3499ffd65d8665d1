/* Chunk files under faults: every allocation and file operation of writing, opening and reading fails, once
 * or from then on; files are cut short, bits flip, files vanish.
 *
 * What must hold: a failed write leaves nothing behind, a published segment is whole, no slice that differs
 * from what was written passes its checksum, and the store works on. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/memory.h"
#include "os/aio.h"
#include "os/file.h"
#include "store/chunkfile.h"
#include "support/chunks.h"

enum { MODEL = 77, COUNT = 5, ALLOCATIONS = 1 << 30 };

struct fixture {
    char directory[64];
    struct chunk_store *store;
    struct segment_chunk chunks[COUNT];
};

/* The kinds of fault that are swept; of allocations too. */
static const struct {
    unsigned mask;
    int code;
} kinds[] = {
    {OS_FAULT_OPEN, EIO},     {OS_FAULT_OPEN, EMFILE}, {OS_FAULT_READ, EIO},   {OS_FAULT_WRITE, EIO},
    {OS_FAULT_WRITE, ENOSPC}, {OS_FAULT_SYNC, EIO},    {OS_FAULT_RENAME, EIO}, {ALLOCATIONS, ENOMEM},
};

static void fault_on(size_t kind, long nth, bool persistent)
{
    if (kinds[kind].mask == ALLOCATIONS)
        mem_fault_set(nth, persistent);
    else
        os_fault_set(kinds[kind].mask, nth, persistent, kinds[kind].code);
}

/* Turns faults off; how many there were. */
static long fault_off(size_t kind)
{
    long hits = kinds[kind].mask == ALLOCATIONS ? mem_fault_hits() : os_fault_hits();
    mem_fault_set(0, false);
    os_fault_set(0, 0, false, 0);
    return hits;
}

static int open_store(struct fixture *f)
{
    struct error error = {0};
    int code = chunk_store_open(f->directory, MODEL, &chunks_geometry, NULL, NULL, &f->store, &error);
    assert_true(code == 0 ? f->store && !error.text[0] : !f->store && error.text[0]);
    return code;
}

static void close_store(struct fixture *f)
{
    chunk_store_close(f->store);
    f->store = NULL;
}

static int setup(void **state)
{
    static struct fixture fixture;
    fixture = (struct fixture){0};
    log_set_level(LOG_LEVEL_ERROR); /* hundreds of warnings are meant to come */
    chunks_directory_make(fixture.directory, true);
    assert_int_equal(open_store(&fixture), 0);
    chunks_make(fixture.store, "1000/notes", 1, fixture.chunks, COUNT);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    close_store(f);
    chunks_free(f->chunks, COUNT);
    chunks_directory_remove(f->directory);
    return 0;
}

/* Chunk i, found and read back: 0, -ENOENT, or why its bytes are not to be had. */
static int read_back(struct fixture *f, size_t i)
{
    struct segment *segment;
    uint32_t index;
    int code = chunk_store_find(f->store, &f->chunks[i].key, &segment, &index);
    if (code < 0)
        return code;
    code = chunks_compare(segment, index, &f->chunks[i]);
    segment_unref(f->store, segment);
    return code;
}

static void assert_whole(struct fixture *f)
{
    for (size_t i = 0; i < COUNT; i++)
        assert_int_equal(read_back(f, i), 0);
}

static void write_whole(struct fixture *f, const char *context)
{
    struct segment *segment = NULL;
    assert_int_equal(segment_write(f->store, context, f->chunks, COUNT, &segment, NULL), 0);
    segment_unref(f->store, segment);
}

/* One write with a fault at its nth operation of a kind: whether the fault came. */
static bool write_once(struct fixture *f, size_t kind, long nth, bool persistent)
{
    struct segment *segment = NULL;
    struct error error = {0};
    fault_on(kind, nth, persistent);
    int code = segment_write(f->store, "a", f->chunks, COUNT, &segment, &error);
    long hits = fault_off(kind);
    if (code < 0) {
        assert_true(hits && !segment && error.text[0]);
        assert_int_equal(code, -kinds[kind].code);
        assert_int_equal(chunks_files(f->directory), 0);
        assert_int_equal(chunk_store_bytes(f->store), 0);
        for (size_t i = 0; i < COUNT; i++)
            assert_int_equal(read_back(f, i), -ENOENT);
        return true;
    }
    segment_unref(f->store, segment);
    assert_whole(f);
    chunk_store_delete_context(f->store, "a");
    assert_int_equal(chunks_files(f->directory), 0);
    return hits > 0;
}

static void writing(void **state)
{
    struct fixture *f = *state;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (int persistent = 0; persistent < 2; persistent++) {
            long nth = 1;
            while (write_once(f, kind, nth, persistent))
                nth++;
            assert_true(nth > 1 || kinds[kind].mask == OS_FAULT_READ); /* writing reads nothing */
        }
}

/* Opening fails with a line, or succeeds with a store whose chunks are whole or absent; and afterwards a
 * store without faults works. */
static bool open_once(struct fixture *f, size_t kind, long nth, bool persistent)
{
    fault_on(kind, nth, persistent);
    int code = open_store(f);
    long hits = fault_off(kind);
    if (code < 0)
        assert_true(hits);
    for (int again = code < 0; again < 2; again++) {
        if (again) {
            close_store(f);
            assert_int_equal(open_store(f), 0);
        }
        int first = read_back(f, 0);
        assert_true(first == 0 || first == -ENOENT);
        for (size_t i = 0; i < COUNT; i++)
            assert_int_equal(read_back(f, i), first);
        if (kinds[kind].mask != OS_FAULT_READ)
            assert_true(!again || first == 0); /* only what cannot be read is given up */
    }
    return hits > 0;
}

static void opening(void **state)
{
    struct fixture *f = *state;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (int persistent = 0; persistent < 2; persistent++)
            for (long nth = 1;; nth++) {
                chunk_store_delete_context(f->store, "a");
                write_whole(f, "a");
                close_store(f);
                if (!open_once(f, kind, nth, persistent))
                    break;
            }
}

/* The first start makes the salt: it is there whole, or the store does not open. */
static void first_start(void **state)
{
    struct fixture *f = *state;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (int persistent = 0; persistent < 2; persistent++)
            for (long nth = 1;; nth++) {
                struct fixture fresh = {0};
                struct chunk_key first, second;
                snprintf(fresh.directory, sizeof fresh.directory, "%.40s/fresh", f->directory);
                fault_on(kind, nth, persistent);
                int code = open_store(&fresh);
                long hits = fault_off(kind);
                assert_true(code == 0 || hits);
                if (code < 0)
                    assert_int_equal(open_store(&fresh), 0);
                chunk_key_start(fresh.store, "o", &first);
                close_store(&fresh);
                assert_int_equal(open_store(&fresh), 0);
                chunk_key_start(fresh.store, "o", &second);
                assert_memory_equal(&first, &second, sizeof first);
                close_store(&fresh);
                chunks_directory_remove(fresh.directory);
                if (hits == 0)
                    break;
            }
}

static void reading(void **state)
{
    struct fixture *f = *state;
    write_whole(f, "a");
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (int persistent = 0; persistent < 2; persistent++)
            for (long nth = 1, hits = 1; hits; nth++) {
                close_store(f); /* so that the file is opened again */
                assert_int_equal(open_store(f), 0);
                fault_on(kind, nth, persistent);
                int code = read_back(f, 1);
                hits = fault_off(kind);
                assert_true(code == 0 || (hits && code == -kinds[kind].code));
                assert_whole(f);
            }
    os_fault_short_reads(true);
    assert_whole(f);
    os_fault_short_reads(false);
}

/* ---- damage ---- */

struct image {
    char path[PATH_MAX];
    char *data;
    size_t bytes;
};

/* The one segment of context "a" as bytes. */
static void image_take(struct fixture *f, struct image *image)
{
    write_whole(f, "a");
    snprintf(image->path, sizeof image->path, "%s/a/1.kv", f->directory);
    assert_int_equal(os_read_file(image->path, 1 << 24, &image->data, &image->bytes), 0);
    assert_int_equal(image->bytes, chunk_store_bytes(f->store));
}

static void put(const char *path, const char *data, size_t bytes)
{
    FILE *file = fopen(path, "wb"); /* no sync: this is done thousands of times */
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

/* How many chunks read back whole; the others must say that they are damaged or cut off. */
static size_t count_whole(struct fixture *f)
{
    size_t whole = 0;
    for (size_t i = 0; i < COUNT; i++) {
        int code = read_back(f, i);
        assert_true(code == 0 || code == -EBADMSG || code == -EIO || code == -ENOENT);
        whole += code == 0;
    }
    return whole;
}

static void cut_short(void **state)
{
    struct fixture *f = *state;
    struct image image;
    image_take(f, &image);
    char directory[PATH_MAX];
    snprintf(directory, sizeof directory, "%s/a", f->directory);
    for (size_t bytes = 0; bytes < image.bytes; bytes += 512) {
        put(image.path, image.data, image.bytes);
        close_store(f);
        assert_int_equal(open_store(f), 0);
        assert_whole(f);
        assert_int_equal(truncate(image.path, (off_t)bytes), 0); /* under an open store */
        assert_true(count_whole(f) < COUNT);
        close_store(f);
        assert_int_equal(open_store(f), 0);
        assert_int_equal(read_back(f, 0), -ENOENT);
        assert_int_equal(chunks_files(f->directory), 0);
        assert_int_equal(os_make_directories(directory, 0700), 0); /* it was empty, and went too */
    }
    mem_free(image.data);
}

static void flipped_bits(void **state)
{
    struct fixture *f = *state;
    struct image image;
    image_take(f, &image);
    size_t header = 72 + COUNT * (40 + 8 * CHUNKS_LAYERS) + 8, damaged = 0;
    for (size_t at = 0; at < image.bytes; at += at < header ? 1 : 97) {
        char bit = (char)(1 << at % 8);
        image.data[at] ^= bit;
        put(image.path, image.data, image.bytes);
        close_store(f);
        assert_int_equal(open_store(f), 0);
        image.data[at] ^= bit;
        size_t whole = count_whole(f);
        if (at < header) {
            assert_int_equal(whole, 0); /* not believed at all, and removed */
            assert_int_equal(chunks_files(f->directory), 0);
            char directory[PATH_MAX];
            snprintf(directory, sizeof directory, "%s/a", f->directory);
            assert_int_equal(os_make_directories(directory, 0700), 0);
        } else {
            assert_true(whole >= COUNT - 1); /* one slice, or padding */
            damaged += whole < COUNT;
        }
    }
    assert_true(damaged > image.bytes / 97 / 2);
    mem_free(image.data);
}

static void vanished(void **state)
{
    struct fixture *f = *state;
    char path[PATH_MAX];
    write_whole(f, "a");
    close_store(f);
    assert_int_equal(open_store(f), 0);
    snprintf(path, sizeof path, "%s/a/1.kv", f->directory);
    assert_int_equal(os_remove(path), 0);
    assert_int_equal(read_back(f, 0), -ENOENT);
    chunk_store_delete_context(f->store, "a");
    assert_int_equal(chunk_store_bytes(f->store), 0);
    write_whole(f, "a");
    assert_whole(f);
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(writing),   CASE(opening),      CASE(first_start), CASE(reading),
        CASE(cut_short), CASE(flipped_bits), CASE(vanished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
