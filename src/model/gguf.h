/* GGUF model files, versions 2 and 3: parsed, validated, mapped and not copied.
 *
 * A `struct gguf` owns the mapping; names, strings and tensor data point into it and live as long as it does.
 * Everything a file says is checked before use: sizes that overflow, types we do not compute with, tensors
 * outside the file or overlapping, duplicate names, absurd dimensions. A file that fails is refused whole
 * with one line that says what is wrong. Immutable after open; safe to read from many threads.
 *
 * Strings in GGUF are counted, not NUL-terminated: `struct gguf_string`. */
#ifndef LLMS_MODEL_GGUF_H
#define LLMS_MODEL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"

struct gguf;

struct gguf_string {
    const char *data;
    size_t length;
};

enum gguf_value_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
};

struct gguf_array {
    enum gguf_value_type type; /* of the elements; never GGUF_ARRAY */
    size_t count;
    const void *data;                  /* numbers: packed little-endian, maybe unaligned; NULL for strings */
    const struct gguf_string *strings; /* GGUF_STRING: count of them, owned by the gguf */
};

struct gguf_tensor {
    struct gguf_string name;
    enum dtype type;
    uint32_t dimensions; /* 1 to 4 */
    uint64_t size[4];    /* size[0] is the row length (contiguous); unused ones are 1 */
    const void
        *data; /* inside the mapping, aligned as the file says: to 32 bytes, or general.alignment (>= 8) */
    uint64_t bytes;
};

int gguf_open(const char *path, struct gguf **out, struct error *error);
/* The same over bytes in memory, which must outlive the gguf (for tests and fuzzing). Tensor data is as
 * aligned as `data` allows. */
int gguf_parse(const void *data, size_t bytes, struct gguf **out, struct error *error);
/* All of the tensors will be read soon: begins to bring them into memory, in the background (os/file.h). */
void gguf_read_ahead(struct gguf *gguf);
void gguf_close(struct gguf *gguf); /* NULL is fine */

/* Metadata. Getters return 0; -ENOENT where the key is missing; -EINVAL where it has another type or does not
 * fit (any integer type serves u32 and u64 if its value fits; F32 and F64 serve f32). */
int gguf_get_u32(const struct gguf *gguf, const char *key, uint32_t *value);
int gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *value);
int gguf_get_f32(const struct gguf *gguf, const char *key, float *value);
int gguf_get_bool(const struct gguf *gguf, const char *key, bool *value);
int gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *value);
int gguf_get_array(const struct gguf *gguf, const char *key, struct gguf_array *value);
/* Number i of an array of integers or floats, widened; i < count and a numeric type are the caller's duty. */
double gguf_array_number(const struct gguf_array *array, size_t i);

/* Metadata in the order of the file, values as the file has them (for copying). i < count is the caller's
 * duty. */
struct gguf_entry {
    struct gguf_string key;
    enum gguf_value_type type;
    const void *data;
    size_t bytes;
};
size_t gguf_entry_count(const struct gguf *gguf);
struct gguf_entry gguf_entry_at(const struct gguf *gguf, size_t i);

size_t gguf_tensor_count(const struct gguf *gguf);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, size_t i);
const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name); /* NULL: none */

uint64_t gguf_file_bytes(const struct gguf *gguf);
uint32_t gguf_version(const struct gguf *gguf);

#endif
