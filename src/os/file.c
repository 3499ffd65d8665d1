#include "os/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "os/fault.h"

static int open_file(const char *path, int flags, mode_t mode)
{
    int fd;
    if (os_fault(OS_FAULT_OPEN))
        return -errno;
    do
        fd = open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int write_all(int fd, const char *data, size_t bytes)
{
    while (bytes) {
        if (os_fault(OS_FAULT_WRITE))
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

int os_sync(int fd)
{
    if (os_fault(OS_FAULT_SYNC))
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
    int code = os_sync(fd);
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
        *mapping = (struct os_mapping){data, (size_t)st.st_size, NULL};
done:
    close(fd);
    return code;
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
        ssize_t n =
            os_fault(OS_FAULT_READ) ? -1 : read(fd, data + bytes, os_fault_read_size(capacity - bytes - 1));
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
        code = os_sync(fd);
    if (close(fd) < 0 && code == 0)
        code = -errno;
    if (code == 0)
        code = os_publish(temporary, path);
    if (code < 0)
        unlink(temporary);
    return code;
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

int os_open_direct(const char *path)
{
    int fd = open_file(path, O_RDONLY | O_DIRECT, 0);
    return fd == -EINVAL ? open_file(path, O_RDONLY, 0) : fd;
}

int os_create_direct(const char *path, unsigned mode)
{
    int flags = O_WRONLY | O_CREAT | O_TRUNC;
    int fd = open_file(path, flags | O_DIRECT, mode);
    return fd == -EINVAL ? open_file(path, flags, mode) : fd;
}

bool os_leave_direct(int descriptor)
{
    int flags = fcntl(descriptor, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT) && fcntl(descriptor, F_SETFL, flags & ~O_DIRECT) == 0;
}

int os_close(int descriptor)
{
    /* The descriptor is gone whatever close says; EINTR is no failure of what was written. */
    return descriptor >= 0 && close(descriptor) < 0 && errno != EINTR ? -errno : 0;
}

int os_descriptor_bytes(int descriptor, uint64_t *bytes)
{
    struct stat st;
    if (fstat(descriptor, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    *bytes = (uint64_t)st.st_size;
    return 0;
}

int os_pread(int descriptor, uint64_t offset, void *data, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        if (os_fault(OS_FAULT_READ))
            return -errno;
        ssize_t n =
            pread(descriptor, (char *)data + done, os_fault_read_size(bytes - done), (off_t)(offset + done));
        if (n < 0 && (errno == EINTR || (errno == EINVAL && os_leave_direct(descriptor))))
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

int os_pwrite(int descriptor, uint64_t offset, const void *data, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        if (os_fault(OS_FAULT_WRITE))
            return -errno;
        ssize_t n = pwrite(descriptor, (const char *)data + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && (errno == EINTR || (errno == EINVAL && os_leave_direct(descriptor))))
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

int os_publish(const char *temporary, const char *path)
{
    if (os_fault(OS_FAULT_RENAME) || rename(temporary, path) < 0)
        return -errno;
    return sync_parent(path);
}

int os_link(const char *path, const char *other)
{
    return os_fault(OS_FAULT_LINK) || link(path, other) < 0 ? -errno : 0;
}

int os_remove(const char *path)
{
    return unlink(path) < 0 ? -errno : 0;
}

int os_remove_directory(const char *path)
{
    return rmdir(path) < 0 ? -errno : 0;
}

static int list_entries(DIR *stream, int (*entry)(void *argument, const char *name), void *argument)
{
    for (;;) {
        errno = 0;
        struct dirent *found = os_fault(OS_FAULT_READ) ? NULL : readdir(stream);
        if (!found)
            return -errno;
        if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0)
            continue;
        int code = entry(argument, found->d_name);
        if (code != 0)
            return code;
    }
}

int os_list(const char *directory, int (*entry)(void *argument, const char *name), void *argument)
{
    int fd = open_file(directory, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return fd;
    DIR *stream = fdopendir(fd);
    if (!stream) {
        int code = -errno;
        close(fd);
        return code;
    }
    int code = list_entries(stream, entry, argument);
    closedir(stream);
    return code;
}
