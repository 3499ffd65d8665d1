/* What a backend of os/aio is. All functions are called by the queue's thread only. */
#ifndef LLMS_OS_AIO_INTERNAL_H
#define LLMS_OS_AIO_INTERNAL_H

#include <stdint.h>
#include <sys/types.h>

#include "os/aio.h"

/* One read on its way. Owned by aio.c; between start and finish the backend may use `next`. */
struct aio_operation {
    struct aio_read *read;
    size_t done;     /* bytes already there */
    uint64_t due_ns; /* not handed out before; 0: at once */
    struct aio_operation *next;
};

struct aio_list { /* first in, first out */
    struct aio_operation *head, *tail;
};
void aio_list_push(struct aio_list *list, struct aio_operation *operation);
struct aio_operation *aio_list_pop(struct aio_list *list); /* NULL: empty */

#define AIO_FOREVER UINT64_MAX

struct aio_driver {
    const char *name;
    int (*create)(unsigned depth, void **state);
    void (*destroy)(void *state); /* nothing is under way any more */
    /* Takes any number; they begin in this order, at most `depth` under way at once. */
    void (*start)(void *state, struct aio_operation *operation);
    /* The next finished operation, its read's code set; NULL: none until clock_ns() reached until_ns. */
    struct aio_operation *(*finish)(void *state, uint64_t until_ns);
};

extern const struct aio_driver aio_threads;
#ifdef LLMS_HAVE_URING
extern const struct aio_driver aio_uring;
#endif

/* The steps a driver takes an operation through: attempt says how many bytes to ask for at offset + done
 * (> 0), or that the operation is over (0, its code set: a fault); advance takes what the system answered (a
 * count or a negative errno value) and says whether the operation is over, else it is attempted again. */
size_t aio_attempt(struct aio_operation *operation);
bool aio_advance(struct aio_operation *operation, ssize_t answer);
/* Attempts, reads and advances in the calling thread until the operation is over; `bytes`: what the first
 * attempt said. */
void aio_read_through(struct aio_operation *operation, size_t bytes);

#endif
