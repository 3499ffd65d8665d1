/* A thread's share of a job is one atomic: the job's epoch, the first piece left and the end. Its owner takes
 * pieces from the front; whoever has none left takes the rear half of another's. Both by compare-and-swap,
 * which succeeds only while the epoch is still the one that the job's fields were read under, so a straggler
 * can never run a piece of another job; and a job is over when its pieces are done, so all shares are empty
 * when the next is published. */
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

enum { SPIN_NS = 20000, MAX_THREADS = 256, UNITS_MAX = 65535 };

struct workers {
    _Alignas(64) _Atomic uint32_t epoch; /* futex: changes when a job is published */
    _Atomic uint32_t sleepers;           /* threads asleep on epoch */
    _Alignas(64) _Atomic uint32_t done;  /* pieces finished of this job; futex for the caller */
    _Atomic bool caller_sleeps;
    _Alignas(64) _Atomic(workers_fn *) run;
    void *_Atomic argument;
    _Atomic uint32_t pieces;
    _Atomic bool stop;
    unsigned threads; /* the caller included */
    unsigned started;
    struct member {
        _Alignas(64) _Atomic uint64_t share; /* epoch << 32 | first << 16 | end, in units of unit_of() */
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

/* Pieces that are handed out together, so that a job's units can be counted in 16 bits. */
static uint32_t unit_of(uint32_t pieces)
{
    return pieces / UNITS_MAX + 1;
}

static uint64_t share_of(uint32_t epoch, uint32_t first, uint32_t end)
{
    return (uint64_t)epoch << 32 | first << 16 | end;
}

/* Takes the first unit off a share, or the rear half of it; false: nothing is left. */
static bool take(_Atomic uint64_t *share, uint32_t epoch, bool half, uint32_t *first, uint32_t *end)
{
    uint64_t left = atomic_load(share);
    while ((uint32_t)(left >> 32) == epoch) {
        uint32_t from = (uint32_t)left >> 16, to = (uint32_t)left & 0xffff;
        uint32_t cut = half ? from + (to - from) / 2 : from + 1;
        if (from == to)
            return false;
        *first = half ? cut : from;
        *end = half ? to : cut;
        if (atomic_compare_exchange_weak(share, &left,
                                         half ? share_of(epoch, from, cut) : share_of(epoch, cut, to)))
            return true;
    }
    return false;
}

static void finish(struct workers *w, uint32_t finished, uint32_t pieces)
{
    if (finished && atomic_fetch_add(&w->done, finished) + finished == pieces &&
        atomic_load(&w->caller_sleeps))
        futex_wake(&w->done);
}

/* Moves half of another's share to the thread's own, which is empty. */
static bool steal(struct workers *w, uint32_t epoch, unsigned thread)
{
    for (unsigned i = 1; i < w->threads; i++) {
        struct member *other = &w->members[(thread + i) % w->threads];
        uint32_t first, end;
        if (take(&other->share, epoch, true, &first, &end)) {
            atomic_store(&w->members[thread].share, share_of(epoch, first, end));
            return true;
        }
    }
    return false;
}

static void take_pieces(struct workers *w, uint32_t epoch, unsigned thread)
{
    workers_fn *run = atomic_load(&w->run);
    void *argument = atomic_load(&w->argument);
    uint32_t pieces = atomic_load(&w->pieces), unit = unit_of(pieces), first, end;
    do {
        uint32_t finished = 0;
        while (take(&w->members[thread].share, epoch, false, &first, &end))
            for (uint32_t i = first * unit; i < end * unit && i < pieces; i++, finished++)
                run(argument, i, thread);
        finish(w, finished, pieces);
    } while (steal(w, epoch, thread));
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
    atomic_store(&w->run, run);
    atomic_store(&w->argument, argument);
    atomic_store(&w->pieces, pieces);
    atomic_store(&w->done, 0);
    uint32_t units = (pieces + unit_of(pieces) - 1) / unit_of(pieces);
    for (uint32_t i = 0; i < w->threads; i++)
        atomic_store(&w->members[i].share,
                     share_of(epoch, units * i / w->threads, units * (i + 1) / w->threads));
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
