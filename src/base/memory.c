#include "base/memory.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

static atomic_long fault_nth; /* 0: off */
static atomic_bool fault_persistent;
static atomic_long fault_calls;
static atomic_long fault_hits;

static bool fails(void)
{
    long nth = atomic_load_explicit(&fault_nth, memory_order_relaxed);
    if (nth == 0)
        return false;
    long call = atomic_fetch_add(&fault_calls, 1) + 1;
    if (call != nth && !(call > nth && atomic_load(&fault_persistent)))
        return false;
    atomic_fetch_add(&fault_hits, 1);
    return true;
}

void *mem_alloc(size_t bytes)
{
    return fails() ? NULL : malloc(bytes ? bytes : 1);
}

void *mem_calloc(size_t count, size_t size)
{
    return fails() ? NULL : calloc(count ? count : 1, size ? size : 1);
}

void *mem_realloc(void *memory, size_t bytes)
{
    return fails() ? NULL : realloc(memory, bytes ? bytes : 1);
}

void *mem_aligned(size_t alignment, size_t bytes)
{
    if (fails() || bytes > SIZE_MAX - alignment)
        return NULL;
    return aligned_alloc(alignment, (bytes + alignment - 1) & ~(alignment - 1));
}

void *mem_large(size_t bytes)
{
    enum { LARGE = 2 << 20 };
    void *memory = mem_aligned(bytes < LARGE ? 64 : LARGE, bytes);
#ifdef MADV_HUGEPAGE
    if (memory && bytes >= LARGE) /* whether it does is the system's affair */
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

char *mem_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = mem_alloc(bytes);
    if (copy)
        memcpy(copy, text, bytes);
    return copy;
}

void mem_free(void *memory)
{
    free(memory);
}

void mem_set_large_apart(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 64 << 10); /* set once, the heap does not raise it by itself any more */
#endif
}

void mem_trim(void)
{
#ifdef __GLIBC__
    enum { MUCH = 2 << 20 };
    if (mallinfo2().fordblks > MUCH)
        malloc_trim(MUCH / 4);
#endif
}

void mem_fault_set(long nth, bool persistent)
{
    atomic_store(&fault_nth, 0);
    atomic_store(&fault_calls, 0);
    atomic_store(&fault_hits, 0);
    atomic_store(&fault_persistent, persistent);
    atomic_store(&fault_nth, nth);
}

long mem_fault_hits(void)
{
    return atomic_load(&fault_hits);
}
