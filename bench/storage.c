/* See storage.h. */
#include "storage.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/random.h"
#include "os/aio.h"
#include "os/file.h"

enum { REQUEST_BYTES = 1 << 20, REQUESTS = 8, LARGE_PAGE = 2 << 20 };

static int write_file(const char *path, uint64_t bytes, void *data)
{
    struct random random = {1}; /* what does not compress */
    int file = os_create_direct(path, 0600), code = file < 0 ? file : 0;
    for (uint64_t at = 0; at < bytes && code == 0; at += REQUEST_BYTES) {
        for (size_t i = 0; i < REQUEST_BYTES / sizeof(uint64_t); i++)
            ((uint64_t *)data)[i] = random_next(&random);
        code = os_pwrite(file, at, data, REQUEST_BYTES);
    }
    if (code == 0)
        code = os_sync(file);
    if (code == 0) /* in case it went through the page cache: a hint, which direct reads do not need */
        (void)posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    if (file >= 0)
        os_close(file);
    return code;
}

/* Keeps REQUESTS reads in flight until all is read; `buffers`: one of REQUEST_BYTES for each. */
static int read_through(struct aio *aio, int file, uint64_t bytes, char *buffers)
{
    struct aio_read reads[REQUESTS];
    uint64_t at = 0;
    int code = 0;
    for (int i = 0; i < REQUESTS; i++)
        reads[i] =
            (struct aio_read){file, 0, buffers + (size_t)i * REQUEST_BYTES, REQUEST_BYTES, &reads[i], 0};
    for (int i = 0; i < REQUESTS && at < bytes && code == 0; i++, at += REQUEST_BYTES) {
        reads[i].offset = at;
        code = aio_submit(aio, &reads[i]);
    }
    for (struct aio_read *done; (done = aio_wait(aio, true)) != NULL;) {
        if (code == 0)
            code = done->code;
        if (at >= bytes || code < 0)
            continue;
        done->offset = at;
        at += REQUEST_BYTES;
        code = aio_submit(aio, done);
    }
    return code;
}

static int measure_file(const char *path, uint64_t bytes, char *buffers, struct storage *out)
{
    struct aio *aio = NULL;
    int file = os_open_direct(path), code = file < 0 ? file : aio_create(AIO_BEST, REQUESTS, &aio);
    if (code == 0) {
        uint64_t start = clock_ns();
        code = read_through(aio, file, bytes, buffers);
        out->bytes_per_s = (double)bytes / clock_ms_since(start) * 1e3;
        out->direct = (fcntl(file, F_GETFL) & O_DIRECT) != 0;
    }
    aio_destroy(aio);
    if (file >= 0)
        os_close(file);
    return code;
}

int storage_measure_file(const char *path, struct storage *out)
{
    uint64_t bytes = 0;
    char *buffers = mem_aligned(LARGE_PAGE, (size_t)REQUESTS * REQUEST_BYTES);
    if (buffers) /* a hint; a request in one piece goes faster */
        (void)madvise(buffers, (size_t)REQUESTS * REQUEST_BYTES, MADV_HUGEPAGE);
    int file = os_open_direct(path), code = file < 0 ? file : buffers ? 0 : -ENOMEM;
    *out = (struct storage){0};
    if (code == 0)
        code = os_descriptor_bytes(file, &bytes);
    if (file >= 0)
        os_close(file);
    /* Direct reads are of whole blocks; the odd end is nothing beside the file. */
    bytes = bytes >= REQUEST_BYTES ? bytes / REQUEST_BYTES * REQUEST_BYTES : 0;
    if (code == 0 && bytes == 0)
        code = -EINVAL;
    if (code == 0)
        code = measure_file(path, bytes, buffers, out);
    mem_free(buffers);
    return code;
}

int storage_measure(const char *directory, uint64_t bytes, struct storage *out, struct error *error)
{
    struct buffer path = {0};
    struct statfs system = {0};
    int code = buffer_printf(&path, "%s/storage", directory);
    char *buffers = mem_aligned(4096, (size_t)REQUESTS * REQUEST_BYTES);
    *out = (struct storage){0};
    if (code == 0 && !buffers)
        code = -ENOMEM;
    if (code == 0 && statfs(directory, &system) < 0)
        code = -errno;
    out->memory = system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC;
    if (code == 0)
        code = write_file(path.data, bytes, buffers);
    if (code == 0)
        code = measure_file(path.data, bytes, buffers, out);
    if (path.data)
        (void)os_remove(path.data);
    if (code < 0)
        error_set(error, code, "%s: measuring the storage: %s", directory, strerror(-code));
    buffer_deinit(&path);
    mem_free(buffers);
    return code;
}

/* ---- directories ---- */

/* *path is the caller's to free. */
static int make_directory(const char *parent, char **path, struct error *error)
{
    struct buffer name = {0};
    char *full = NULL;
    int code = os_make_directories(parent, 0700);
    if (code == 0)
        code = buffer_printf(&name, "%s/llms-bench-XXXXXX", parent);
    if (code == 0 && !mkdtemp(name.data))
        code = -errno;
    if (code == 0 && !(full = realpath(name.data, NULL)))
        code = -errno;
    if (code < 0)
        error_set(error, code, "%s: %s", parent, strerror(-code));
    buffer_deinit(&name);
    *path = full;
    return code;
}

static int remove_entry(void *directory, const char *name)
{
    struct buffer path = {0};
    int code = buffer_printf(&path, "%s/%s", (const char *)directory, name);
    if (code == 0 && (code = os_remove(path.data)) < 0)
        code = storage_remove(path.data);
    buffer_deinit(&path);
    return code;
}

int storage_remove(const char *path)
{
    int code = os_list(path, remove_entry, (void *)(uintptr_t)path);
    return code < 0 ? code : os_remove_directory(path);
}

int storage_within(const char *parent, int (*run)(void *argument, const char *directory, struct error *error),
                   void *argument, struct error *error)
{
    char *directory = NULL;
    int code = make_directory(parent, &directory, error);
    if (code < 0)
        return code;
    code = run(argument, directory, error);
    int removed = storage_remove(directory);
    if (removed < 0)
        log_warning("%s: not removed: %s", directory, strerror(-removed));
    free(directory);
    return code;
}

const char *storage_words(const struct storage *storage)
{
    return storage->memory   ? "in memory: not a disk's figures"
           : storage->direct ? "read past the page cache"
                             : "through the page cache (direct reads are refused)";
}
