/* Files: the only place the project opens, maps, reads, writes, syncs and renames. Faults are injected here.
 *
 * All return 0 or a negative errno value; reads and writes are whole (short ones are continued; a file that
 * ends early is -EIO). Interrupted calls are repeated. */
#ifndef LLMS_OS_FILE_H
#define LLMS_OS_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct os_mapping {
    const void *data;
    size_t bytes;
    struct os_read_ahead *read_ahead; /* NULL: not asked for */
};
int os_map(const char *path,
           struct os_mapping *mapping); /* read-only; -EINVAL for an empty file or no regular one */
/* Begins to bring the whole file into memory, on threads of its own (read_ahead.c). A hint: it fails
 * silently, and does nothing for a file that takes more than three quarters of the machine's memory. */
void os_map_read_ahead(struct os_mapping *mapping);
void os_unmap(struct os_mapping *mapping);

int os_read_file(const char *path, size_t limit, char **data,
                 size_t *bytes); /* NUL-terminated; -EFBIG past limit; mem_free */
/* Publishes data as path: temporary file, sync, rename, sync of the directory. */
int os_write_file(const char *path, const void *data, size_t bytes, unsigned mode);
int os_make_directories(const char *path, unsigned mode); /* as mkdir -p */

/* Open for reading past the page cache (O_DIRECT), or through it where the file system refuses; the
 * descriptor, to be closed with os_close. Direct transfers want offset, memory and bytes aligned to 4096. */
int os_open_direct(const char *path);
/* The same for writing a new file, emptied if it was there. */
int os_create_direct(const char *path, unsigned mode);
/* Some file systems take O_DIRECT at open and refuse it at the transfer, with EINVAL: true where the
 * descriptor was direct and no longer is, so that the transfer may be tried again. */
bool os_leave_direct(int descriptor);
int os_close(int descriptor);                             /* negative: do nothing */
int os_descriptor_bytes(int descriptor, uint64_t *bytes); /* -EINVAL: not a regular file */
int os_pread(int descriptor, uint64_t offset, void *data, size_t bytes);
int os_pwrite(int descriptor, uint64_t offset, const void *data, size_t bytes);
int os_sync(int descriptor);
/* Renames and syncs the directory. On failure the file may lie under either name. */
int os_publish(const char *temporary, const char *path);
int os_link(const char *path, const char *other); /* a second name of a file; not synced. -EEXIST: taken */
int os_remove(const char *path);                  /* a file, or one of its names */
int os_remove_directory(const char *path);        /* an empty one */
/* Calls entry for each name in a directory, in no order, without "." and ".."; it may remove what it is
 * shown. What entry returns, where not 0, ends the listing and is returned. */
int os_list(const char *directory, int (*entry)(void *argument, const char *name), void *argument);

/* Takes an exclusive lock on path (created), held until os_unlock or the process ends. -EBUSY: another has
 * it. */
int os_lock(const char *path, int *descriptor);
void os_unlock(int descriptor);

/* Tests: let the nth of the operations in `mask` from now on fail with -code; persistent: and all after it.
 */
enum os_fault {
    OS_FAULT_OPEN = 1,
    OS_FAULT_READ = 2,
    OS_FAULT_WRITE = 4,
    OS_FAULT_SYNC = 8,
    OS_FAULT_RENAME = 16,
    OS_FAULT_LINK = 32
};
void os_fault_set(unsigned mask, long nth, bool persistent, int code);
long os_fault_hits(void);
/* Tests: reads, os/aio's too, are given fewer bytes than they ask for and must go on. */
void os_fault_short_reads(bool on);

#endif
