/* Asynchronous reads: io_uring where the kernel allows it, else threads and pread.
 *
 * A queue belongs to one thread, which submits and waits; completions are handed out by aio_wait. Buffers and
 * descriptors must stay valid until their read is done. Reads are whole: short ones are continued, a file
 * that ends early is -EIO. Faults are injected here too (os_fault_set, OS_FAULT_READ), and short reads and a
 * rate limit for emulating slower storage. */
#ifndef LLMS_OS_AIO_H
#define LLMS_OS_AIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aio;

enum aio_backend { AIO_BEST, AIO_URING, AIO_THREADS };

struct aio_read {
    int descriptor;
    uint64_t offset;
    void *data; /* for a descriptor opened with O_DIRECT all three are aligned to 4096 */
    size_t bytes;
    void *tag; /* the caller's */
    int code;  /* out: 0 or a negative errno value */
};

/* depth: reads in flight at once; more may be submitted and wait inside. */
int aio_create(enum aio_backend backend, unsigned depth, struct aio **out);
void aio_destroy(struct aio *aio);                   /* waits for what is in flight */
const char *aio_backend_name(const struct aio *aio); /* "io_uring" or "threads" */

/* Reads are started in the order they are submitted. The struct must stay in place until it is handed out by
 * aio_wait. 0 or -ENOMEM. */
int aio_submit(struct aio *aio, struct aio_read *read);
/* The next finished read, waiting for it if `wait`; NULL: nothing in flight, or nothing finished and not
 * `wait`. */
struct aio_read *aio_wait(struct aio *aio, bool wait);
size_t aio_in_flight(const struct aio *aio); /* submitted and not handed out */

/* Emulates storage of so many bytes a second (0: as it is) in all queues of the process, reads and os/file
 * writes through aio_pace alike. */
void aio_set_limit(uint64_t bytes_per_second);
void aio_pace(
    uint64_t bytes); /* sleeps as long as moving so many bytes would take, counted over all callers */

#endif
