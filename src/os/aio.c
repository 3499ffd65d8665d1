/* The queue of asynchronous reads: what both backends share (os/aio.h is the contract).
 *
 * Owns the operations and the order in which finished ones are handed out: by the time they are due, which an
 * emulated rate sets (0 without one, so that they go out as they finish). The clock of that rate is the only
 * state that queues share. */
#include "os/aio.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "os/aio_internal.h"
#include "os/fault.h"

struct aio {
    const struct aio_driver *driver;
    void *state;
    struct aio_list finished; /* sorted by due_ns */
    struct aio_operation *spare;
    size_t under_way; /* with the driver */
    size_t waiting;   /* in `finished` */
};

/* ---- emulated storage ---- */

enum { PACE_PIECE = 128 * 1024 }; /* a long transfer lets others in between */

static atomic_uint_fast64_t rate; /* bytes a second; 0: as it is */
static pthread_mutex_t rate_mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t rate_busy_until; /* when the emulated device has moved all it was asked for */

void aio_set_limit(uint64_t bytes_per_second)
{
    pthread_mutex_lock(&rate_mutex);
    atomic_store(&rate, bytes_per_second);
    rate_busy_until = 0;
    pthread_mutex_unlock(&rate_mutex);
}

/* When the emulated device, which begins no earlier than begin_ns, will have moved so many bytes more; 0:
 * nothing is emulated. */
static uint64_t reserve(uint64_t bytes, uint64_t begin_ns)
{
    uint64_t due = 0;
    pthread_mutex_lock(&rate_mutex);
    uint64_t per_second = atomic_load(&rate);
    if (per_second) {
        due = rate_busy_until > begin_ns ? rate_busy_until : begin_ns;
        due += (uint64_t)((double)bytes * 1e9 / (double)per_second);
        rate_busy_until = due;
    }
    pthread_mutex_unlock(&rate_mutex);
    return due;
}

static bool limited(void)
{
    return atomic_load_explicit(&rate, memory_order_relaxed) != 0;
}

static void sleep_until(uint64_t until_ns)
{
    struct timespec until = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

void aio_pace(uint64_t bytes)
{
    uint64_t due = clock_ns();
    while (bytes && limited()) {
        uint64_t piece = bytes < PACE_PIECE ? bytes : PACE_PIECE;
        due = reserve(piece, due); /* from the last piece's end: sleeping too long costs no rate */
        sleep_until(due);
        bytes -= piece;
    }
}

/* ---- operations ---- */

void aio_list_push(struct aio_list *list, struct aio_operation *operation)
{
    operation->next = NULL;
    if (list->tail)
        list->tail->next = operation;
    else
        list->head = operation;
    list->tail = operation;
}

struct aio_operation *aio_list_pop(struct aio_list *list)
{
    struct aio_operation *operation = list->head;
    if (!operation)
        return NULL;
    list->head = operation->next;
    if (!list->head)
        list->tail = NULL;
    return operation;
}

size_t aio_attempt(struct aio_operation *operation)
{
    const size_t most = (size_t)1 << 30; /* the kernel reads no more than 2 GiB at once */
    size_t left = operation->read->bytes - operation->done;
    operation->read->code = 0;
    if (left == 0)
        return 0;
    if (os_fault(OS_FAULT_READ)) {
        operation->read->code = -errno;
        return 0;
    }
    return os_fault_read_size(left < most ? left : most);
}

bool aio_advance(struct aio_operation *operation, ssize_t answer)
{
    struct aio_read *read = operation->read;
    if (answer > 0) {
        operation->done += (size_t)answer;
        return operation->done == read->bytes;
    }
    if (answer == -EINTR || answer == -EAGAIN || (answer == -EINVAL && os_leave_direct(read->descriptor)))
        return false;
    read->code = answer == 0 ? -EIO : (int)answer;
    return true;
}

void aio_read_through(struct aio_operation *operation, size_t bytes)
{
    const struct aio_read *read = operation->read;
    while (bytes) {
        ssize_t answer = pread(read->descriptor, (char *)read->data + operation->done, bytes,
                               (off_t)(read->offset + operation->done));
        if (aio_advance(operation, answer < 0 ? -errno : answer))
            return;
        bytes = aio_attempt(operation);
    }
}

/* ---- the queue ---- */

static int create_driver(struct aio *aio, const struct aio_driver *driver, unsigned depth)
{
    aio->driver = driver;
    return driver->create(depth, &aio->state);
}

int aio_create(enum aio_backend backend, unsigned depth, struct aio **out)
{
    int code = -ENOSYS;
    if (depth == 0)
        return -EINVAL;
    struct aio *aio = mem_calloc(1, sizeof *aio);
    if (!aio)
        return -ENOMEM;
#ifdef LLMS_HAVE_URING
    if (backend != AIO_THREADS)
        code = create_driver(aio, &aio_uring, depth);
#endif
    /* Containers, hardened kernels and phones refuse io_uring in many ways; threads always work. */
    if (code < 0 && backend != AIO_URING)
        code = create_driver(aio, &aio_threads, depth);
    if (code < 0) {
        mem_free(aio);
        return code;
    }
    *out = aio;
    return 0;
}

const char *aio_backend_name(const struct aio *aio)
{
    return aio->driver->name;
}

size_t aio_in_flight(const struct aio *aio)
{
    return aio->under_way + aio->waiting;
}

int aio_submit(struct aio *aio, struct aio_read *read)
{
    struct aio_operation *operation = aio->spare;
    if (operation)
        aio->spare = operation->next;
    else if (!(operation = mem_alloc(sizeof *operation)))
        return -ENOMEM;
    *operation =
        (struct aio_operation){.read = read, .due_ns = limited() ? reserve(read->bytes, clock_ns()) : 0};
    aio->under_way++;
    aio->driver->start(aio->state, operation);
    return 0;
}

/* Waits for the driver and sorts what it gives in among the finished. */
static bool collect(struct aio *aio, uint64_t until_ns)
{
    struct aio_operation *operation = aio->driver->finish(aio->state, until_ns);
    if (!operation)
        return false;
    aio->under_way--;
    aio->waiting++;
    struct aio_list *finished = &aio->finished;
    if (!finished->tail || finished->tail->due_ns <= operation->due_ns) {
        aio_list_push(finished, operation);
        return true;
    }
    struct aio_operation **at = &finished->head;
    while ((*at)->due_ns <= operation->due_ns)
        at = &(*at)->next;
    operation->next = *at;
    *at = operation;
    return true;
}

struct aio_read *aio_wait(struct aio *aio, bool wait)
{
    for (;;) {
        while (aio->under_way && collect(aio, 0))
            ;
        struct aio_operation *first = aio->finished.head;
        if (first && (first->due_ns == 0 || first->due_ns <= clock_ns())) {
            struct aio_read *read = first->read;
            aio_list_pop(&aio->finished);
            first->next = aio->spare;
            aio->spare = first;
            aio->waiting--;
            return read;
        }
        if (!wait || aio_in_flight(aio) == 0)
            return NULL;
        if (aio->under_way)
            collect(aio, first ? first->due_ns : AIO_FOREVER);
        else
            sleep_until(first->due_ns);
    }
}

void aio_destroy(struct aio *aio)
{
    if (!aio)
        return;
    while (aio->under_way)
        collect(aio, AIO_FOREVER);
    aio->driver->destroy(aio->state);
    for (struct aio_operation *operation; (operation = aio_list_pop(&aio->finished));)
        mem_free(operation);
    for (struct aio_operation *next, *operation = aio->spare; operation; operation = next) {
        next = operation->next;
        mem_free(operation);
    }
    mem_free(aio);
}
