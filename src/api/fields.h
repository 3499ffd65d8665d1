/* Reading a JSON object by a table of fields. A field the table does not know is an error, so that a typo
 * does not silently do nothing; so are wrong types and values out of range, each with the field's name. A
 * null is the same as a field that is not there. Pure. */
#ifndef LLMS_API_FIELDS_H
#define LLMS_API_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct field {
    const char *name;
    /* Stores value at `out` (the struct's address + offset). 0, -EINVAL with text, or -ENOMEM. */
    int (*read)(const struct field *field, const json_t *value, void *out, struct error *error);
    size_t offset;
    double low, high;           /* numbers: allowed, both included unless ... */
    bool above_low, below_high; /* ... these are set; texts: bytes allowed */
    bool required;
};

struct field_text {
    const char *data; /* NULL: not given; NUL-terminated; lives as long as the JSON value */
    size_t length;
};

/* Fills `out` from object. Fields that are not there leave their place in `out` untouched. 0, -EINVAL with
 * text, or -ENOMEM. */
int fields_read(const struct field *fields, size_t count, const json_t *object, void *out,
                struct error *error);

int field_read_text(const struct field *field, const json_t *value, void *out /* struct field_text */,
                    struct error *error);
int field_read_bool(const struct field *field, const json_t *value, void *out /* bool */,
                    struct error *error);
int field_read_u32(const struct field *field, const json_t *value, void *out /* uint32_t */,
                   struct error *error);
int field_read_u64(const struct field *field, const json_t *value, void *out /* uint64_t */,
                   struct error *error);
int field_read_float(const struct field *field, const json_t *value, void *out /* float */,
                     struct error *error);

#endif
