/* Waiting for calls, and a streamed reply: server-sent events made from a call as it goes on. */
#ifndef LLMS_API_CALLS_H
#define LLMS_API_CALLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct buffer;
struct call;
struct call_stream;
struct exchange;

/* Waits for the end of a call that is not streamed. False: the client went away first; call_answer_gone. */
bool call_wait_done(struct exchange *exchange, struct call *call, struct buffer *text);
void call_answer_gone(struct exchange *exchange);

/* libmicrohttpd's content reader: waits for something to send and copies up to `max` bytes of it. */
ssize_t call_stream_read(void *stream, uint64_t position, char *out, size_t max);

/* Releases the call, which cancels it if it still runs. Takes a void pointer to be a content free callback.
 */
void call_stream_destroy(void *stream);

#endif
