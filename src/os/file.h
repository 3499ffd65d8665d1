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
};
int os_map(const char *path,
           struct os_mapping *mapping); /* read-only; -EINVAL for an empty file or no regular one */
void os_unmap(struct os_mapping *mapping);

int os_read_file(const char *path, size_t limit, char **data,
                 size_t *bytes); /* NUL-terminated; -EFBIG past limit; mem_free */
/* Publishes data as path: temporary file, sync, rename, sync of the directory. */
int os_write_file(const char *path, const void *data, size_t bytes, unsigned mode);
int os_make_directories(const char *path, unsigned mode); /* as mkdir -p */

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
    OS_FAULT_RENAME = 16
};
void os_fault_set(unsigned mask, long nth, bool persistent, int code);
long os_fault_hits(void);

#endif
