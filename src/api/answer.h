/* The answer to one request: a status and a body, made by a route's handler and sent by the server.
 *
 * Zeroed is an empty answer. Setting one replaces what was there. Where memory is short the answer becomes
 * one that says so; setting never fails. */
#ifndef LLMS_API_ANSWER_H
#define LLMS_API_ANSWER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/array.h"
#include "base/error.h"

struct call_stream;

struct answer {
    unsigned status;          /* HTTP's */
    const char *content_type; /* static */
    char *text;               /* the body; NULL: out of memory (a fixed text is sent), unless stream is
                                 set */
    size_t text_bytes;
    struct call_stream *stream; /* the body comes from here (owned), text is NULL */
    const char *allow;          /* 405: the methods there are; borrowed from the request */
    bool retry;                 /* worth trying again in a second */
    bool challenge;             /* 401: a token is asked for */
    bool close;                 /* the connection ends with this answer */
};

/* value: taken over; NULL: memory was short. */
void answer_json(struct answer *answer, unsigned status, json_t *value);
void answer_text(struct answer *answer, const char *content_type, struct buffer *text); /* takes the bytes */

/* {"error":{"message","type","code"}} */
void answer_error(struct answer *answer, unsigned status, const char *type, const char *code,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));
void answer_invalid(struct answer *answer, const struct error *error); /* 400, or 500 for -ENOMEM */
void answer_failure(struct answer *answer, const struct error *error); /* what the service said */

/* The error object for a service's failure, as it stands in an event. NULL: memory was short. */
json_t *answer_failure_json(const struct error *error);

/* Appends value, which is taken over, as one line of JSON. -ENOMEM (also for NULL), and nothing was appended.
 */
int answer_dump(json_t *value, struct buffer *out);

/* The message when even an error body cannot be made. */
extern const char answer_out_of_memory[];

void answer_deinit(struct answer *answer); /* the stream too */

/* Text as a JSON string; bytes that are not UTF-8 become '?'. */
json_t *answer_string(const char *text, size_t bytes);
/* A measured number with three decimals; what is not a number is 0. */
json_t *answer_number(double value);

#endif
