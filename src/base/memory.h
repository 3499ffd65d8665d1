/* Heap memory. Every allocation of the project goes through here, so that tests can make the Nth one fail.
 *
 * Memory from any of these is released with mem_free (or free, for code that cannot know). All return NULL
 * when memory is short. Thread-safe. */
#ifndef LLMS_BASE_MEMORY_H
#define LLMS_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

void *mem_alloc(size_t bytes);
void *mem_calloc(size_t count, size_t size); /* zeroed; fails on overflow */
void *mem_realloc(void *memory, size_t bytes);
void *mem_aligned(size_t alignment, size_t bytes); /* alignment: a power of two */
/* 64-byte aligned; of two MiB or more, in large pages where the system has them: for rows of which a little
 * is read at a time, so that each would need the translation of a page of its own. */
void *mem_large(size_t bytes);
char *mem_strdup(const char *text);
void mem_free(void *memory);
/* For the whole process: blocks of 64 KiB and more come from the system each for itself and go back when
 * freed, so that large ones that come and go leave no holes between what stays. */
void mem_set_large_apart(void);
/* Gives memory that was freed back to the system, where the heap holds much of it in pieces. Takes up to some
 * milliseconds. */
void mem_trim(void);

/* Tests: let the `nth` allocation from now on (1 is the next) fail, and with `persistent` all after it too.
 * 0 turns it off. mem_fault_hits: how many have failed since. */
void mem_fault_set(long nth, bool persistent);
long mem_fault_hits(void);

#endif
