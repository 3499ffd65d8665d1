/* Reads by io_uring.
 *
 * Every operation is sent to the kernel as soon as it may be under way. Should the kernel take no more (it is
 * short of memory, or forbids what it allowed at creation), the ring is only emptied from then on, and reads
 * are done one at a time in the calling thread: slow, and right. */
#include <errno.h>
#include <liburing.h>
#include <sched.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "os/aio_internal.h"

enum { MAX_DEPTH = 1024, SUBMIT_TRIES = 100 };

struct uring {
    struct io_uring ring;
    struct aio_list todo; /* beyond the depth */
    struct aio_list done; /* over without the kernel's part, or with it by the slow way */
    unsigned under_way, depth;
    bool broken; /* nothing is submitted any more */
};

static int uring_create(unsigned depth, void **out)
{
    struct uring *state = mem_calloc(1, sizeof *state);
    if (!state)
        return -ENOMEM;
    state->depth = depth < MAX_DEPTH ? depth : MAX_DEPTH;
    struct io_uring_params parameters = {0};
    int code = io_uring_queue_init_params(state->depth, &state->ring, &parameters);
    if (code == 0 && !(parameters.features & IORING_FEAT_EXT_ARG)) { /* waiting with a timeout needs it */
        io_uring_queue_exit(&state->ring);
        code = -ENOSYS;
    }
    if (code < 0) {
        mem_free(state);
        return code;
    }
    *out = state;
    return 0;
}

static void uring_destroy(void *argument)
{
    struct uring *state = argument;
    io_uring_queue_exit(&state->ring);
    mem_free(state);
}

/* Whether the kernel took the entry just made. */
static bool submit(struct uring *state)
{
    int code = 0;
    for (int i = 0; i < SUBMIT_TRIES; i++) {
        code = io_uring_submit(&state->ring);
        if (io_uring_sq_ready(&state->ring) == 0)
            return true;
        if (code < 0 && code != -EINTR && code != -EAGAIN && code != -EBUSY)
            break;
        sched_yield();
    }
    log_warning("io_uring takes no more reads (error %d): reading one by one from now on", -code);
    state->broken = true;
    return false;
}

static void begin(struct uring *state, struct aio_operation *operation)
{
    const struct aio_read *read = operation->read;
    size_t bytes = aio_attempt(operation);
    if (bytes && !state->broken) {
        struct io_uring_sqe *entry = io_uring_get_sqe(&state->ring); /* each is taken at once: never full */
        io_uring_prep_read(entry, read->descriptor, (char *)read->data + operation->done, (unsigned)bytes,
                           read->offset + operation->done);
        io_uring_sqe_set_data(entry, operation);
        if (submit(state)) {
            state->under_way++;
            return;
        }
    }
    aio_read_through(operation, bytes);
    aio_list_push(&state->done, operation);
}

static void begin_waiting(struct uring *state)
{
    while (state->todo.head && state->under_way < state->depth)
        begin(state, aio_list_pop(&state->todo));
}

static void uring_start(void *argument, struct aio_operation *operation)
{
    struct uring *state = argument;
    aio_list_push(&state->todo, operation);
    begin_waiting(state);
}

/* The next completion, or NULL where none comes in time. */
static struct io_uring_cqe *next_completion(struct uring *state, uint64_t until_ns)
{
    struct io_uring_cqe *completion = NULL;
    for (;;) {
        uint64_t now = until_ns == 0 || until_ns == AIO_FOREVER ? 0 : clock_ns();
        uint64_t left = until_ns > now ? until_ns - now : 0;
        struct __kernel_timespec timeout = {(long long)(left / 1000000000u), (long long)(left % 1000000000u)};
        int code = left == 0 ? io_uring_peek_cqe(&state->ring, &completion)
                             : io_uring_wait_cqe_timeout(&state->ring, &completion,
                                                         until_ns == AIO_FOREVER ? NULL : &timeout);
        if (code == 0)
            return completion;
        if (left == 0)
            return NULL;
    }
}

static struct aio_operation *uring_finish(void *argument, uint64_t until_ns)
{
    struct uring *state = argument;
    while (!state->done.head) {
        struct io_uring_cqe *completion = next_completion(state, until_ns);
        if (!completion)
            break;
        struct aio_operation *operation = io_uring_cqe_get_data(completion);
        ssize_t answer = completion->res;
        io_uring_cqe_seen(&state->ring, completion);
        state->under_way--;
        if (aio_advance(operation, answer))
            aio_list_push(&state->done, operation);
        else
            begin(state, operation);
        begin_waiting(state);
    }
    return aio_list_pop(&state->done);
}

const struct aio_driver aio_uring = {"io_uring", uring_create, uring_destroy, uring_start, uring_finish};
