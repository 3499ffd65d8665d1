/* A job is published as a ticket: its epoch in the high half and the next piece in the low half of one
 * atomic. A thread takes a piece by compare-and-swap on the ticket; the swap succeeds only while the epoch it
 * read the job's fields under is still current, so a straggler can never run a piece of another job. */
#include "base/workers.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

enum { SPIN_NS = 20000, MAX_THREADS = 256 };

struct workers {
    _Alignas(64) _Atomic uint64_t ticket; /* epoch << 32 | next piece */
    _Alignas(64) _Atomic uint32_t epoch;  /* futex: changes when a job is published */
    _Atomic uint32_t sleepers;            /* threads asleep on epoch */
    _Alignas(64) _Atomic uint32_t done;   /* pieces finished of this job; futex for the caller */
    _Atomic bool caller_sleeps;
    _Alignas(64) _Atomic(workers_fn *) run;
    void *_Atomic argument;
    _Atomic uint32_t pieces;
    _Atomic bool stop;
    unsigned threads; /* the caller included */
    unsigned started;
    struct member {
        struct workers *workers;
        unsigned index;
        pthread_t handle;
    } members[];
};

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void take_pieces(struct workers *w, uint32_t epoch, unsigned thread)
{
    workers_fn *run = atomic_load(&w->run);
    void *argument = atomic_load(&w->argument);
    uint32_t pieces = atomic_load(&w->pieces);
    uint64_t ticket = atomic_load(&w->ticket);
    while ((uint32_t)(ticket >> 32) == epoch && (uint32_t)ticket < pieces) {
        if (!atomic_compare_exchange_weak(&w->ticket, &ticket, ticket + 1))
            continue;
        run(argument, (uint32_t)ticket, thread);
        if (atomic_fetch_add(&w->done, 1) + 1 == pieces && atomic_load(&w->caller_sleeps))
            futex_wake(&w->done);
        ticket = atomic_load(&w->ticket);
    }
}

static uint32_t wait_for_epoch(struct workers *w, uint32_t seen)
{
    uint64_t start = clock_ns();
    for (unsigned i = 1;; i++) {
        uint32_t epoch = atomic_load(&w->epoch);
        if (epoch != seen)
            return epoch;
        pause_briefly();
        if (i % 64 == 0 && clock_ns() - start > SPIN_NS)
            break;
    }
    atomic_fetch_add(&w->sleepers, 1);
    while (atomic_load(&w->epoch) == seen)
        futex_wait(&w->epoch, seen);
    atomic_fetch_sub(&w->sleepers, 1);
    return atomic_load(&w->epoch);
}

static void *member_main(void *argument)
{
    struct member *member = argument;
    struct workers *w = member->workers;
    for (uint32_t epoch = 0;;) {
        epoch = wait_for_epoch(w, epoch);
        if (atomic_load(&w->stop))
            return NULL;
        take_pieces(w, epoch, member->index);
    }
}

int workers_create(unsigned threads, struct workers **out)
{
    if (threads < 1 || threads > MAX_THREADS)
        return -EINVAL;
    size_t bytes = sizeof(struct workers) + threads * sizeof(struct member);
    struct workers *w = mem_aligned(64, bytes);
    if (!w)
        return -ENOMEM;
    __builtin_memset(w, 0, bytes);
    w->threads = threads;
    for (w->started = 1; w->started < threads; w->started++) {
        struct member *member = &w->members[w->started];
        member->workers = w;
        member->index = w->started;
        int failed = pthread_create(&member->handle, NULL, member_main, member);
        if (failed) {
            workers_destroy(w);
            return -failed;
        }
    }
    *out = w;
    return 0;
}

void workers_destroy(struct workers *w)
{
    if (!w)
        return;
    atomic_store(&w->stop, true);
    atomic_fetch_add(&w->epoch, 1);
    futex_wake(&w->epoch);
    for (unsigned i = 1; i < w->started; i++)
        pthread_join(w->members[i].handle, NULL);
    mem_free(w);
}

unsigned workers_threads(const struct workers *w)
{
    return w->threads;
}

void workers_run(struct workers *w, workers_fn *run, void *argument, unsigned pieces)
{
    if (w->threads == 1 || pieces == 1) {
        for (unsigned i = 0; i < pieces; i++)
            run(argument, i, 0);
        return;
    }
    uint32_t epoch = atomic_load(&w->epoch) + 1;
    /* An epoch nobody holds closes the ticket while the fields change. */
    atomic_store(&w->ticket, (uint64_t)(epoch - 1) << 32 | UINT32_MAX);
    atomic_store(&w->run, run);
    atomic_store(&w->argument, argument);
    atomic_store(&w->pieces, pieces);
    atomic_store(&w->done, 0);
    atomic_store(&w->ticket, (uint64_t)epoch << 32);
    atomic_store(&w->epoch, epoch);
    if (atomic_load(&w->sleepers))
        futex_wake(&w->epoch);
    take_pieces(w, epoch, 0);
    uint64_t start = clock_ns();
    for (unsigned i = 1; atomic_load(&w->done) != pieces; i++) {
        pause_briefly();
        if (i % 64 || clock_ns() - start < SPIN_NS)
            continue;
        atomic_store(&w->caller_sleeps, true);
        for (uint32_t done; (done = atomic_load(&w->done)) != pieces;)
            futex_wait(&w->done, done);
        atomic_store(&w->caller_sleeps, false);
    }
}
