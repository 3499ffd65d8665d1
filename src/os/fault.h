/* Faults inside the os room: every operation asks here first whether a test wants it to fail (os/file.h says
 * how a test asks). Thread-safe. */
#ifndef LLMS_OS_FAULT_H
#define LLMS_OS_FAULT_H

#include <stdbool.h>
#include <stddef.h>

#include "os/file.h"

/* Counts one operation; true, with errno set, where it is to fail. */
bool os_fault(enum os_fault kind);
/* How many of `bytes` the next read may ask for: all, or fewer while a test wants short reads. Multiples of
 * 4096 stay multiples, so that direct reads stay aligned. */
size_t os_fault_read_size(size_t bytes);

#endif
