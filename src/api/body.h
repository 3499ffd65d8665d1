/* What a request's body asks for: from JSON text to checked parameters.
 *
 * Refuses what is not one JSON object in UTF-8, duplicate keys, unknown fields, wrong types, values out of
 * range, deep nesting. Pure, any thread; no daemon needed. Texts in the results are borrowed from the parsed
 * JSON, which the caller keeps for as long and releases with json_decref. */
#ifndef LLMS_API_BODY_H
#define LLMS_API_BODY_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/fields.h"
#include "base/array.h"
#include "base/error.h"
#include "service/service.h"

enum {
    BODY_DEPTH = 32,       /* arrays and objects within each other; the parser recurses on small stacks */
    BODY_NAME_BYTES = 256, /* of a context's name */
    BODY_STOPS = 16,       /* stop strings a call */
    BODY_STOP_BYTES = 256, /* of one of them */
    BODY_MAX_TOKENS = 1 << 24,
    BODY_REPEAT_LAST = 1 << 20,
};

/* Lets jansson take its memory from base/memory.h. Process-wide, before any other use of jansson. */
void body_init(void);

/* Parses the text; an empty one stands for {}. 0, -EINVAL with text, -ENOMEM. */
int body_parse(const char *text, size_t bytes, json_t **out, struct error *error);

struct body_context {
    struct field_text system_prompt, name; /* fork: name only */
};
int body_read_context(const json_t *body, struct body_context *out, struct error *error);
int body_read_fork(const json_t *body, struct body_context *out, struct error *error);
int body_read_nothing(const json_t *body, struct error *error); /* for routes that take no fields */

int body_read_budget(const json_t *body, uint64_t *bytes, struct error *error);

struct body_call {
    struct call_params params; /* prompt and stop point into the JSON and into `stops`: do not copy */
    bool stream;
    bool seed_given; /* else the caller draws one */
    size_t stop_count;
    const char *stops[BODY_STOPS];
};
int body_read_call(const json_t *body, struct body_call *out, struct error *error);

struct body_tokenize {
    struct field_text text;
    bool special; /* names of special tokens in the text become those tokens */
};
int body_read_tokenize(const json_t *body, struct body_tokenize *out, struct error *error);

/* tokens: appended to *out, which the caller releases with tokens_deinit in any case. vocabulary: ids are
 * below it. */
int body_read_detokenize(const json_t *body, size_t vocabulary, struct tokens *out, struct error *error);

#endif
