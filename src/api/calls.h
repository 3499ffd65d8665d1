/* A streamed reply: server-sent events made from a call as it goes on. */
#ifndef LLMS_API_CALLS_H
#define LLMS_API_CALLS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct call_stream;

/* libmicrohttpd's content reader: waits for something to send and copies up to `max` bytes of it. */
ssize_t call_stream_read(void *stream, uint64_t position, char *out, size_t max);

/* Releases the call, which cancels it if it still runs. Takes a void pointer to be a content free callback.
 */
void call_stream_destroy(void *stream);

#endif
