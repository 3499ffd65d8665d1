/* Reads by a few threads and pread, for kernels that refuse io_uring.
 *
 * One mutex guards both lists; a thread takes the oldest operation and asks for faults while it holds it, so
 * that operations begin, and faults hit them, in the order of submission. */
#include <errno.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/memory.h"
#include "os/aio_internal.h"

enum { MAX_THREADS = 8, STACK_BYTES = 256 * 1024 };

struct threads {
    pthread_mutex_t mutex;
    pthread_cond_t work, finished;
    struct aio_list todo, done;
    bool stop;
    unsigned count;
    pthread_t threads[MAX_THREADS];
};

static void *serve(void *argument)
{
    struct threads *state = argument;
    pthread_mutex_lock(&state->mutex);
    for (;;) {
        struct aio_operation *operation = aio_list_pop(&state->todo);
        if (!operation) {
            if (state->stop)
                break;
            pthread_cond_wait(&state->work, &state->mutex);
            continue;
        }
        size_t bytes = aio_attempt(operation);
        pthread_mutex_unlock(&state->mutex);
        aio_read_through(operation, bytes);
        pthread_mutex_lock(&state->mutex);
        aio_list_push(&state->done, operation);
        pthread_cond_signal(&state->finished);
    }
    pthread_mutex_unlock(&state->mutex);
    return NULL;
}

static void threads_destroy(void *argument)
{
    struct threads *state = argument;
    pthread_mutex_lock(&state->mutex);
    state->stop = true;
    pthread_cond_broadcast(&state->work);
    pthread_mutex_unlock(&state->mutex);
    for (unsigned i = 0; i < state->count; i++)
        pthread_join(state->threads[i], NULL);
    pthread_cond_destroy(&state->finished);
    pthread_cond_destroy(&state->work);
    pthread_mutex_destroy(&state->mutex);
    mem_free(state);
}

static int threads_create(unsigned depth, void **out)
{
    struct threads *state = mem_calloc(1, sizeof *state);
    if (!state)
        return -ENOMEM;
    pthread_condattr_t clock;
    pthread_attr_t attributes;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_mutex_init(&state->mutex, NULL);
    pthread_cond_init(&state->work, NULL);
    pthread_cond_init(&state->finished, &clock);
    int code = 0;
    while (code == 0 && state->count < depth && state->count < MAX_THREADS) {
        code = -pthread_create(&state->threads[state->count], &attributes, serve, state);
        state->count += code == 0;
    }
    pthread_attr_destroy(&attributes);
    pthread_condattr_destroy(&clock);
    if (state->count == 0) {
        threads_destroy(state);
        return code;
    }
    *out = state; /* fewer threads than asked for only read more slowly */
    return 0;
}

static void threads_start(void *argument, struct aio_operation *operation)
{
    struct threads *state = argument;
    pthread_mutex_lock(&state->mutex);
    aio_list_push(&state->todo, operation);
    pthread_cond_signal(&state->work);
    pthread_mutex_unlock(&state->mutex);
}

static struct aio_operation *threads_finish(void *argument, uint64_t until_ns)
{
    struct threads *state = argument;
    struct timespec until = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};
    int code = until_ns ? 0 : ETIMEDOUT;
    pthread_mutex_lock(&state->mutex);
    while (!state->done.head && code != ETIMEDOUT)
        code = until_ns == AIO_FOREVER ? pthread_cond_wait(&state->finished, &state->mutex)
                                       : pthread_cond_timedwait(&state->finished, &state->mutex, &until);
    struct aio_operation *operation = aio_list_pop(&state->done);
    pthread_mutex_unlock(&state->mutex);
    return operation;
}

const struct aio_driver aio_threads = {"threads", threads_create, threads_destroy, threads_start,
                                       threads_finish};
