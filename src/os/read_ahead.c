/* Reading a mapped file ahead, in its order and before its pages are asked for.
 *
 * Threads of their own let the kernel bring in window after window, in large pages where the file system has
 * them: page faults would come in small pieces and out of order, one for each thread that computes. Whoever
 * touches a page that is not there yet waits for it as always, so nothing depends on this; where the kernel
 * does not know the request, it is told what will be needed instead. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "os/file.h"

enum { READERS = 2 }; /* so that the storage has the next request when one is done */
static const size_t WINDOW_BYTES = (size_t)8 << 20;

struct os_read_ahead {
    unsigned char *data;
    size_t bytes;
    _Atomic size_t next;
    _Atomic bool stop;
    unsigned started;
    pthread_t threads[READERS];
};

static bool bring_in(void *data, size_t bytes)
{
#ifdef MADV_POPULATE_READ
    if (madvise(data, bytes, MADV_POPULATE_READ) == 0)
        return true;
#endif
    return posix_madvise(data, bytes, POSIX_MADV_WILLNEED) == 0;
}

static void *read_windows(void *argument)
{
    struct os_read_ahead *r = argument;
    for (size_t at; (at = atomic_fetch_add(&r->next, WINDOW_BYTES)) < r->bytes && !atomic_load(&r->stop);)
        if (!bring_in(r->data + at, r->bytes - at < WINDOW_BYTES ? r->bytes - at : WINDOW_BYTES))
            break;
    return NULL;
}

/* Of a file that takes most of the memory, the first pages would have to go for the last. */
static bool fits(size_t bytes)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 && bytes / 3 < (size_t)pages / 4 * (size_t)page;
}

void os_map_read_ahead(struct os_mapping *mapping)
{
    sigset_t all, before;
    if (mapping->read_ahead || !mapping->data || !fits(mapping->bytes))
        return;
    struct os_read_ahead *r = mem_calloc(1, sizeof *r);
    if (!r)
        return;
    r->data = (unsigned char *)(uintptr_t)mapping->data;
    r->bytes = mapping->bytes;
#ifdef MADV_HUGEPAGE
    (void)madvise(r->data, r->bytes, MADV_HUGEPAGE); /* a hint */
#endif
    sigfillset(&all); /* signals are for the other threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (r->started < READERS && r->started * WINDOW_BYTES < r->bytes &&
           pthread_create(&r->threads[r->started], NULL, read_windows, r) == 0)
        r->started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    mapping->read_ahead = r;
}

void os_unmap(struct os_mapping *mapping)
{
    struct os_read_ahead *r = mapping->read_ahead;
    if (r) {
        atomic_store(&r->stop, true);
        for (unsigned i = 0; i < r->started; i++)
            pthread_join(r->threads[i], NULL);
        mem_free(r);
    }
    if (mapping->data)
        munmap((void *)(uintptr_t)mapping->data, mapping->bytes);
    *mapping = (struct os_mapping){0};
}
