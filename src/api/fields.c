#include "api/fields.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static const struct field *find(const struct field *fields, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(fields[i].name, name) == 0)
            return &fields[i];
    return NULL;
}

int fields_read(const struct field *fields, size_t count, const json_t *object, void *out,
                struct error *error)
{
    const char *name;
    json_t *value;
    if (!json_is_object(object))
        return error_set(error, -EINVAL, "the body must be a JSON object");
    json_object_foreach((json_t *)object, name, value)
    {
        const struct field *field = find(fields, count, name);
        if (!field)
            return error_set(error, -EINVAL, "unknown field \"%.64s\"", name);
        if (json_is_null(value))
            continue;
        int code = field->read(field, value, (char *)out + field->offset, error);
        if (code < 0)
            return code;
    }
    for (size_t i = 0; i < count; i++) {
        value = json_object_get(object, fields[i].name);
        if (fields[i].required && (!value || json_is_null(value)))
            return error_set(error, -EINVAL, "\"%s\" is required", fields[i].name);
    }
    return 0;
}

int field_read_text(const struct field *field, const json_t *value, void *out, struct error *error)
{
    if (!json_is_string(value))
        return error_set(error, -EINVAL, "\"%s\" must be a string", field->name);
    size_t length = json_string_length(value);
    if ((double)length < field->low)
        return error_set(error, -EINVAL, "\"%s\" must not be empty", field->name);
    if (field->high > 0 && (double)length > field->high)
        return error_set(error, -EINVAL, "\"%s\" must have at most %.0f bytes", field->name, field->high);
    *(struct field_text *)out = (struct field_text){json_string_value(value), length};
    return 0;
}

int field_read_bool(const struct field *field, const json_t *value, void *out, struct error *error)
{
    if (!json_is_boolean(value))
        return error_set(error, -EINVAL, "\"%s\" must be true or false", field->name);
    *(bool *)out = json_is_true(value);
    return 0;
}

static int read_integer(const struct field *field, const json_t *value, uint64_t *out, struct error *error)
{
    json_int_t x = json_integer_value(value);
    /* high may be 2^63, which only its double can hold */
    if (!json_is_integer(value) || x < (json_int_t)field->low || (double)x > field->high)
        return error_set(error, -EINVAL, "\"%s\" must be a whole number from %.0f to %.0f", field->name,
                         field->low, field->high);
    *out = (uint64_t)x;
    return 0;
}

int field_read_u64(const struct field *field, const json_t *value, void *out, struct error *error)
{
    return read_integer(field, value, out, error);
}

int field_read_u32(const struct field *field, const json_t *value, void *out, struct error *error)
{
    uint64_t x = 0;
    int code = read_integer(field, value, &x, error);
    if (code == 0)
        *(uint32_t *)out = (uint32_t)x;
    return code;
}

int field_read_float(const struct field *field, const json_t *value, void *out, struct error *error)
{
    float x = (float)json_number_value(value), low = (float)field->low, high = (float)field->high;
    if (!json_is_number(value) || !(x >= low && x <= high) || (field->above_low && x == low) ||
        (field->below_high && x == high))
        return error_set(error, -EINVAL, "\"%s\" must be a number %s %g %s %g", field->name,
                         field->above_low ? "above" : "from", field->low,
                         field->below_high ? "to below" : "to", field->high);
    *(float *)out = x;
    return 0;
}
