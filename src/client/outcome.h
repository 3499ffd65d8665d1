/* What the daemon's answers mean: errors to errno values, call objects to struct llms_call_result. Pure. */
#ifndef LLMS_CLIENT_OUTCOME_H
#define LLMS_CLIENT_OUTCOME_H

#include <jansson.h>

#include "base/error.h"
#include "llms.h"

/* The negative error for an error object's "code" and the HTTP status it came with (0 inside a stream). */
int outcome_code(const char *code, long status);

/* Reads {"error":{"message","code"}} (document may be NULL or anything); fills *error; returns its code. */
int outcome_error(const json_t *document, long status, struct error *error);

/* Reads a call object; what it lacks is 0 or "". */
void outcome_result(const json_t *call, struct llms_call_result *result);

#endif
