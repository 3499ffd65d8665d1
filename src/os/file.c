#include "os/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

static atomic_uint fault_mask;
static atomic_long fault_nth;
static atomic_long fault_calls;
static atomic_long fault_hit_count;
static atomic_bool fault_persistent;
static atomic_int fault_code;

void os_fault_set(unsigned mask, long nth, bool persistent, int code)
{
    atomic_store(&fault_mask, 0);
    atomic_store(&fault_nth, nth);
    atomic_store(&fault_calls, 0);
    atomic_store(&fault_hit_count, 0);
    atomic_store(&fault_persistent, persistent);
    atomic_store(&fault_code, code);
    atomic_store(&fault_mask, nth > 0 ? mask : 0);
}

long os_fault_hits(void)
{
    return atomic_load(&fault_hit_count);
}

/* True, with errno set, where the test asked for this operation to fail. */
static bool fault(enum os_fault kind)
{
    if (!(atomic_load_explicit(&fault_mask, memory_order_relaxed) & kind))
        return false;
    long call = atomic_fetch_add(&fault_calls, 1) + 1;
    long nth = atomic_load(&fault_nth);
    if (call != nth && !(call > nth && atomic_load(&fault_persistent)))
        return false;
    atomic_fetch_add(&fault_hit_count, 1);
    errno = atomic_load(&fault_code);
    return true;
}

static int open_file(const char *path, int flags, mode_t mode)
{
    int fd;
    if (fault(OS_FAULT_OPEN))
        return -errno;
    do
        fd = open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int write_all(int fd, const char *data, size_t bytes)
{
    while (bytes) {
        if (fault(OS_FAULT_WRITE))
            return -errno;
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int sync_file(int fd)
{
    if (fault(OS_FAULT_SYNC))
        return -errno;
    while (fsync(fd) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

static int sync_parent(const char *path)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int n = slash ? snprintf(directory, sizeof directory, "%.*s", (int)(slash - path + 1), path)
                  : snprintf(directory, sizeof directory, ".");
    if (n < 0 || (size_t)n >= sizeof directory)
        return -ENAMETOOLONG;
    int fd = open_file(directory, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return fd;
    int code = sync_file(fd);
    close(fd);
    return code;
}

int os_map(const char *path, struct os_mapping *mapping)
{
    struct stat st;
    int code = 0, fd = open_file(path, O_RDONLY | O_NONBLOCK, 0); /* a FIFO must not block us */
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) < 0)
        code = -errno;
    else if (S_ISDIR(st.st_mode))
        code = -EISDIR;
    else if (!S_ISREG(st.st_mode) || st.st_size <= 0)
        code = -EINVAL;
    if (code < 0)
        goto done;
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        code = -errno;
    else
        *mapping = (struct os_mapping){data, (size_t)st.st_size};
done:
    close(fd);
    return code;
}

void os_unmap(struct os_mapping *mapping)
{
    if (mapping->data)
        munmap((void *)(uintptr_t)mapping->data, mapping->bytes);
    *mapping = (struct os_mapping){0};
}

int os_read_file(const char *path, size_t limit, char **out, size_t *out_bytes)
{
    size_t bytes = 0, capacity = 4096;
    int code = 0, fd = open_file(path, O_RDONLY, 0);
    if (fd < 0)
        return fd;
    char *data = mem_alloc(capacity);
    if (!data)
        code = -ENOMEM;
    while (code == 0) {
        if (bytes + 1 == capacity) {
            char *more = mem_realloc(data, capacity *= 2);
            if (!more) {
                code = -ENOMEM;
                break;
            }
            data = more;
        }
        ssize_t n = fault(OS_FAULT_READ) ? -1 : read(fd, data + bytes, capacity - bytes - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            code = -errno;
        else if ((bytes += (size_t)n) > limit)
            code = -EFBIG;
        else if (n == 0)
            break;
    }
    close(fd);
    if (code < 0) {
        mem_free(data);
        return code;
    }
    data[bytes] = 0;
    *out = data;
    *out_bytes = bytes;
    return 0;
}

int os_write_file(const char *path, const void *data, size_t bytes, unsigned mode)
{
    char temporary[PATH_MAX];
    int n = snprintf(temporary, sizeof temporary, "%s.tmp%ld", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof temporary)
        return -ENAMETOOLONG;
    int fd = open_file(temporary, O_WRONLY | O_CREAT | O_TRUNC, mode);
    if (fd < 0)
        return fd;
    int code = write_all(fd, data, bytes);
    if (code == 0)
        code = sync_file(fd);
    if (close(fd) < 0 && code == 0)
        code = -errno;
    if (code == 0 && (fault(OS_FAULT_RENAME) || rename(temporary, path) < 0))
        code = -errno;
    if (code < 0) {
        unlink(temporary);
        return code;
    }
    return sync_parent(path);
}

int os_make_directories(const char *path, unsigned mode)
{
    char part[PATH_MAX];
    size_t length = strlen(path);
    if (length == 0)
        return -ENOENT;
    if (length >= sizeof part)
        return -ENAMETOOLONG;
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != 0)
            continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, mode) < 0 && errno != EEXIST)
            return -errno;
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

int os_lock(const char *path, int *descriptor)
{
    int fd = open_file(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0)
        return fd;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int code = errno == EWOULDBLOCK ? -EBUSY : -errno;
        close(fd);
        return code;
    }
    *descriptor = fd;
    return 0;
}

void os_unlock(int descriptor)
{
    if (descriptor >= 0)
        close(descriptor);
}
