#include "api/body.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/memory.h"
#include "base/parse.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- parsing ---- */

static _Thread_local bool starved; /* jansson calls some of its failures for memory a syntax error */

static void *json_alloc(size_t bytes)
{
    void *memory = mem_alloc(bytes);
    if (!memory)
        starved = true;
    return memory;
}

void body_init(void)
{
    json_set_alloc_funcs(json_alloc, mem_free);
}

/* The deepest nesting of a JSON text, valid or not. */
static unsigned nesting(const char *text, size_t bytes)
{
    unsigned depth = 0, deepest = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > deepest)
                deepest = depth;
        } else if ((c == ']' || c == '}') && depth) {
            depth--;
        }
    }
    return deepest;
}

int body_parse(const char *text, size_t bytes, json_t **out, struct error *error)
{
    json_error_t problem;
    if (nesting(text, bytes) > BODY_DEPTH)
        return error_set(error, -EINVAL, "the body nests deeper than %d levels", BODY_DEPTH);
    starved = false;
    *out = bytes ? json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &problem) : json_object();
    if (!*out && starved)
        return error_set(error, -ENOMEM, "out of memory");
    if (!*out)
        return error_set(error, -EINVAL, "the body is not valid JSON: %s (line %d, column %d)", problem.text,
                         problem.line, problem.column);
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return error_set(error, -EINVAL, "the body must be a JSON object");
    }
    return 0;
}

/* ---- contexts ---- */

#define NAME_FIELD                                                                                           \
    {                                                                                                        \
        "name", field_read_text, offsetof(struct body_context, name), .high = BODY_NAME_BYTES                \
    }

int body_read_context(const json_t *body, struct body_context *out, struct error *error)
{
    static const struct field fields[] = {
        {"system_prompt", field_read_text, offsetof(struct body_context, system_prompt)},
        NAME_FIELD,
    };
    *out = (struct body_context){0};
    return fields_read(fields, COUNT(fields), body, out, error);
}

int body_read_fork(const json_t *body, struct body_context *out, struct error *error)
{
    static const struct field fields[] = {NAME_FIELD};
    *out = (struct body_context){0};
    return fields_read(fields, COUNT(fields), body, out, error);
}

int body_read_nothing(const json_t *body, struct error *error)
{
    return fields_read(NULL, 0, body, NULL, error);
}

/* ---- the budget ---- */

/* Bytes, or a size as people write it. */
static int read_size(const struct field *field, const json_t *value, void *out, struct error *error)
{
    const char *text = json_string_value(value);
    uint64_t bytes = 0;
    if (text ? parse_size(text, &bytes) < 0 : !json_is_integer(value) || json_integer_value(value) < 0)
        return error_set(error, -EINVAL, "\"%s\" must be a number of bytes or a size such as \"40M\"",
                         field->name);
    *(uint64_t *)out = text ? bytes : (uint64_t)json_integer_value(value);
    return 0;
}

int body_read_budget(const json_t *body, uint64_t *bytes, struct error *error)
{
    static const struct field fields[] = {{"kv_budget", read_size, 0, .required = true}};
    return fields_read(fields, COUNT(fields), body, bytes, error);
}

/* ---- calls ---- */

static int read_prompt(const struct field *field, const json_t *value, void *out, struct error *error)
{
    struct call_params *params = out;
    struct field_text text;
    int code = field_read_text(field, value, &text, error);
    if (code == 0) {
        params->prompt = text.data;
        params->prompt_length = text.length;
    }
    return code;
}

static int read_seed(const struct field *field, const json_t *value, void *out, struct error *error)
{
    struct body_call *call = out;
    call->seed_given = true;
    return field_read_u64(field, value, &call->params.sampling.seed, error);
}

static int add_stop(const struct field *field, const json_t *value, struct body_call *call,
                    struct error *error)
{
    const char *text = json_string_value(value);
    if (!text || !*text || json_string_length(value) > BODY_STOP_BYTES)
        return error_set(error, -EINVAL,
                         "\"%s\" must be a string, or an array of at most %d strings, of 1 to %d bytes each",
                         field->name, BODY_STOPS, BODY_STOP_BYTES);
    call->stops[call->stop_count++] = text;
    return 0;
}

static int read_stop(const struct field *field, const json_t *value, void *out, struct error *error)
{
    struct body_call *call = out;
    if (!json_is_array(value))
        return add_stop(field, value, call, error);
    if (json_array_size(value) > BODY_STOPS)
        return error_set(error, -EINVAL, "\"%s\" must have at most %d strings", field->name, BODY_STOPS);
    int code = 0;
    for (size_t i = 0; i < json_array_size(value) && code == 0; i++)
        code = add_stop(field, json_array_get(value, i), call, error);
    return code;
}

static int read_overflow(const struct field *field, const json_t *value, void *out, struct error *error)
{
    const char *text = json_string_value(value);
    enum call_overflow *overflow = out;
    if (text && strcmp(text, "slide") == 0)
        *overflow = CALL_SLIDE;
    else if (text && strcmp(text, "refuse") == 0)
        *overflow = CALL_REFUSE;
    else
        return error_set(error, -EINVAL, "\"%s\" must be \"slide\" or \"refuse\"", field->name);
    return 0;
}

#define CALL_FIELD(name) offsetof(struct body_call, name)
static const struct field call_fields[] = {
    {"prompt", read_prompt, CALL_FIELD(params), .low = 1, .required = true},
    {"max_tokens", field_read_u32, CALL_FIELD(params.max_tokens), .high = BODY_MAX_TOKENS},
    {"stream", field_read_bool, CALL_FIELD(stream)},
    {"temperature", field_read_float, CALL_FIELD(params.sampling.temperature), .high = 10},
    {"top_k", field_read_u32, CALL_FIELD(params.sampling.top_k), .high = BODY_MAX_TOKENS},
    {"top_p", field_read_float, CALL_FIELD(params.sampling.top_p), .high = 1, .above_low = true},
    {"min_p", field_read_float, CALL_FIELD(params.sampling.min_p), .high = 1, .below_high = true},
    {"repeat_penalty", field_read_float, CALL_FIELD(params.sampling.repeat_penalty), .low = 1, .high = 10},
    {"repeat_last", field_read_u32, CALL_FIELD(params.sampling.repeat_last), .high = BODY_REPEAT_LAST},
    {"seed", read_seed, 0, .high = 0x1p63},
    {"stop", read_stop, 0},
    {"when_full", read_overflow, CALL_FIELD(params.overflow)},
};

int body_read_call(const json_t *body, struct body_call *out, struct error *error)
{
    *out = (struct body_call){.params = {.sampling = sampler_defaults}};
    int code = fields_read(call_fields, COUNT(call_fields), body, out, error);
    out->params.stop = out->stops;
    out->params.stop_count = out->stop_count;
    return code;
}

/* ---- tokens ---- */

int body_read_tokenize(const json_t *body, struct body_tokenize *out, struct error *error)
{
    static const struct field fields[] = {
        {"text", field_read_text, offsetof(struct body_tokenize, text), .required = true},
        {"special", field_read_bool, offsetof(struct body_tokenize, special)},
    };
    *out = (struct body_tokenize){0};
    return fields_read(fields, COUNT(fields), body, out, error);
}

static int read_tokens(const struct field *field, const json_t *value, void *out, struct error *error)
{
    struct tokens *tokens = out;
    if (!json_is_array(value))
        return error_set(error, -EINVAL, "\"%s\" must be an array of token ids", field->name);
    size_t count = json_array_size(value);
    if (tokens_reserve(tokens, count) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(value, i);
        json_int_t x = json_integer_value(id);
        if (!json_is_integer(id) || x < 0 || (double)x > field->high)
            return error_set(error, -EINVAL, "\"%s\" must hold whole numbers from 0 to %.0f", field->name,
                             field->high);
        tokens_append(tokens, (int32_t)x); /* cannot fail: reserved */
    }
    return 0;
}

int body_read_detokenize(const json_t *body, size_t vocabulary, struct tokens *out, struct error *error)
{
    const struct field fields[] = {
        {"tokens", read_tokens, 0, .high = (double)vocabulary - 1, .required = true},
    };
    return fields_read(fields, COUNT(fields), body, out, error);
}
