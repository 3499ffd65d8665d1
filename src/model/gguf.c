/* GGUF files, versions 2 and 3. Owns the mapping and the index of what the file says; copies no data.
 *
 * Layout (all little-endian):
 *    0  4  magic "GGUF"
 *    4  4  version
 *    8  8  tensors T
 *   16  8  metadata entries M
 *   24     M x { string key; u32 type; value }              string = u64 bytes, bytes
 *          value = number | u8 bool (0, 1) | string | { u32 type; u64 count; count values }   (arrays)
 *          T x { string name; u32 dimensions; dimensions x u64 size; u32 type; u64 offset }
 *          padding to the alignment (general.alignment, default 32)
 *          tensor data; each offset counts from here and is a multiple of the alignment
 *
 * Refused with one line: whatever does not fit this, in order of the file; and nothing is allocated for a
 * count before the file was seen to be long enough to hold it. Accepted beyond what we compute with: value
 * types of metadata we never ask for. Not accepted: nested arrays, which no known file has.
 *
 * Everything is immutable once gguf_parse returns. */
#include "model/gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "os/file.h"

enum {
    HEADER_BYTES = 24,
    ENTRY_BYTES_MIN = 8 + 1 + 4 + 1,          /* a key of one byte, a value of one */
    TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* a name of one byte, one dimension */
    KEY_BYTES_MAX = 65535,
    NAME_BYTES_MAX = 64,
    DIMENSIONS_MAX = 4,
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MIN = 8,
    ALIGNMENT_MAX = 1 << 20,
};

struct entry {
    struct gguf_string key;
    enum gguf_value_type type;
    const uint8_t *data;         /* the value as the file has it */
    size_t bytes;                /* of it */
    struct gguf_array array;     /* GGUF_ARRAY */
    struct gguf_string *strings; /* owned; what array.strings points to */
};

/* Open addressing over the entries or tensors: slot = number + 1, 0 is free. At most half full. */
struct index {
    uint32_t *slots;
    size_t mask;
};

struct gguf {
    struct os_mapping mapping; /* empty where gguf_parse was given the bytes */
    const uint8_t *data;
    size_t bytes;
    uint32_t version;
    uint64_t seed; /* of the hashes, so that a file cannot be made to collide */
    struct entry *entries;
    size_t entry_count;
    struct gguf_tensor *tensors;
    size_t tensor_count;
    struct index entry_index, tensor_index;
};

/* Where the parser is. at <= bytes always. */
struct reader {
    const uint8_t *data;
    size_t bytes;
    size_t at;
    struct error *error;
};

/* A name fit for a line of text, whatever bytes the file has in it. */
struct shown {
    char text[NAME_BYTES_MAX + 4];
};

static struct shown show(struct gguf_string name)
{
    struct shown shown;
    size_t n = name.length < NAME_BYTES_MAX ? name.length : NAME_BYTES_MAX;
    for (size_t i = 0; i < n; i++)
        shown.text[i] = name.data[i] > 0x20 && name.data[i] < 0x7f ? name.data[i] : '?';
    memcpy(shown.text + n, name.length > n ? "..." : "", name.length > n ? 4 : 1);
    return shown;
}

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static uint64_t load_u64(const uint8_t *p)
{
    return (uint64_t)load_u32(p) | (uint64_t)load_u32(p + 4) << 32;
}

static float load_f32(const uint8_t *p)
{
    uint32_t bits = load_u32(p);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static double load_f64(const uint8_t *p)
{
    uint64_t bits = load_u64(p);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Bytes of a number or bool; 0 for strings, arrays and types that do not exist. */
static size_t scalar_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

static bool same(struct gguf_string a, struct gguf_string b)
{
    return a.length == b.length && memcmp(a.data, b.data, a.length) == 0;
}

/* ---- the index ---- */

static int index_init(struct index *index, size_t count)
{
    size_t slots = 4;
    while (slots < count * 2)
        slots *= 2;
    index->slots = mem_calloc(slots, sizeof *index->slots);
    index->mask = slots - 1;
    return index->slots ? 0 : -ENOMEM;
}

static const struct gguf_string *entry_name(const struct gguf *gguf, size_t i)
{
    return &gguf->entries[i].key;
}

static const struct gguf_string *tensor_name(const struct gguf *gguf, size_t i)
{
    return &gguf->tensors[i].name;
}

/* The slot that holds `name`, or the free one where it belongs. */
static uint32_t *index_slot(const struct gguf *gguf, const struct index *index, struct gguf_string name,
                            const struct gguf_string *name_of(const struct gguf *, size_t))
{
    size_t at = (size_t)hash_bytes(name.data, name.length, gguf->seed) & index->mask;
    while (index->slots[at] && !same(*name_of(gguf, index->slots[at] - 1), name))
        at = (at + 1) & index->mask;
    return &index->slots[at];
}

/* ---- reading ---- */

static int truncated(const struct reader *reader, const char *what)
{
    error_set(reader->error, -EINVAL, "file is cut short: it ends at byte %zu inside %s", reader->bytes,
              what);
    return -EINVAL; /* a constant, so that compilers see that nothing is used unset */
}

static int take(struct reader *reader, size_t bytes, const char *what, const uint8_t **data)
{
    if (bytes > reader->bytes - reader->at)
        return truncated(reader, what);
    *data = reader->data + reader->at;
    reader->at += bytes;
    return 0;
}

static int take_u32(struct reader *reader, const char *what, uint32_t *value)
{
    const uint8_t *data;
    int code = take(reader, 4, what, &data);
    if (code == 0)
        *value = load_u32(data);
    return code;
}

static int take_u64(struct reader *reader, const char *what, uint64_t *value)
{
    const uint8_t *data;
    int code = take(reader, 8, what, &data);
    if (code == 0)
        *value = load_u64(data);
    return code;
}

static int take_string(struct reader *reader, const char *what, struct gguf_string *string)
{
    uint64_t length;
    const uint8_t *data;
    int code = take_u64(reader, what, &length);
    if (code < 0)
        return code;
    if (length > reader->bytes - reader->at)
        return error_set(reader->error, -EINVAL,
                         "%s at byte %zu claims %" PRIu64 " bytes, but the file has only %zu more", what,
                         reader->at - 8, length, reader->bytes - reader->at);
    code = take(reader, (size_t)length, what, &data);
    *string = (struct gguf_string){(const char *)data, (size_t)length};
    return code;
}

static int check_bools(const struct reader *reader, const struct entry *entry, const uint8_t *data,
                       size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (data[i] > 1)
            return error_set(reader->error, -EINVAL, "key %s: %d is not a boolean", show(entry->key).text,
                             data[i]);
    return 0;
}

static int parse_string_array(struct reader *reader, struct entry *entry)
{
    size_t count = entry->array.count;
    entry->strings = mem_alloc(count * sizeof *entry->strings);
    if (!entry->strings)
        return error_set(reader->error, -ENOMEM, "out of memory");
    entry->array.strings = entry->strings;
    for (size_t i = 0; i < count; i++) {
        int code = take_string(reader, "a string of an array", &entry->strings[i]);
        if (code < 0)
            return error_prefix(reader->error, code, "key %s", show(entry->key).text);
    }
    return 0;
}

static int parse_array(struct reader *reader, struct entry *entry)
{
    uint32_t type;
    uint64_t count;
    const uint8_t *data;
    int code = take_u32(reader, "an array's type", &type);
    if (code == 0)
        code = take_u64(reader, "an array's length", &count);
    if (code < 0)
        return code;
    if (type == GGUF_ARRAY)
        return error_set(reader->error, -EINVAL, "key %s: arrays of arrays are not supported",
                         show(entry->key).text);
    size_t each = type == GGUF_STRING ? 8 : scalar_bytes(type);
    if (each == 0)
        return error_set(reader->error, -EINVAL, "key %s: array of unknown value type %" PRIu32,
                         show(entry->key).text, type);
    if (count > (reader->bytes - reader->at) / each)
        return error_set(reader->error, -EINVAL,
                         "key %s: array claims %" PRIu64 " elements, more than the file can hold",
                         show(entry->key).text, count);
    entry->array = (struct gguf_array){.type = (enum gguf_value_type)type, .count = (size_t)count};
    if (type == GGUF_STRING)
        return parse_string_array(reader, entry);
    code = take(reader, (size_t)count * each, "an array", &data);
    if (code < 0)
        return code;
    entry->array.data = data;
    return type == GGUF_BOOL ? check_bools(reader, entry, data, (size_t)count) : 0;
}

static int parse_value(struct reader *reader, struct entry *entry)
{
    uint32_t type;
    struct gguf_string string;
    int code = take_u32(reader, "a value's type", &type);
    if (code < 0)
        return code;
    entry->type = (enum gguf_value_type)type;
    size_t start = reader->at, bytes = scalar_bytes(type);
    entry->data = reader->data + start;
    if (type == GGUF_STRING)
        code = take_string(reader, "a string", &string);
    else if (type == GGUF_ARRAY)
        code = parse_array(reader, entry);
    else if (bytes)
        code = take(reader, bytes, "a value", &entry->data);
    else
        code = error_set(reader->error, -EINVAL, "key %s: unknown value type %" PRIu32, show(entry->key).text,
                         type);
    if (code == 0 && type == GGUF_BOOL)
        code = check_bools(reader, entry, entry->data, 1);
    entry->bytes = reader->at - start;
    return code;
}

static int parse_entries(struct gguf *gguf, struct reader *reader, size_t count)
{
    gguf->entries = mem_calloc(count, sizeof *gguf->entries);
    if (!gguf->entries || index_init(&gguf->entry_index, count) < 0)
        return error_set(reader->error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        struct entry *entry = &gguf->entries[i];
        int code = take_string(reader, "a key", &entry->key);
        if (code < 0)
            return code;
        if (entry->key.length == 0 || entry->key.length > KEY_BYTES_MAX)
            return error_set(reader->error, -EINVAL, "metadata entry %zu has a key of %zu bytes", i,
                             entry->key.length);
        uint32_t *slot = index_slot(gguf, &gguf->entry_index, entry->key, entry_name);
        if (*slot)
            return error_set(reader->error, -EINVAL, "key %s occurs twice", show(entry->key).text);
        gguf->entry_count = i + 1; /* from here on gguf_close sees its strings */
        code = parse_value(reader, entry);
        if (code < 0)
            return code;
        *slot = (uint32_t)(i + 1);
    }
    return 0;
}

/* Fills in the sizes and bytes of a tensor whose name stands; offset: from the start of the data. */
static int parse_tensor_shape(struct reader *reader, struct gguf_tensor *tensor)
{
    uint32_t type;
    uint64_t values = 1;
    struct shown name = show(tensor->name);
    int code = take_u32(reader, "a tensor's dimensions", &tensor->dimensions);
    if (code < 0)
        return code;
    if (tensor->dimensions == 0 || tensor->dimensions > DIMENSIONS_MAX)
        return error_set(reader->error, -EINVAL, "tensor %s has %" PRIu32 " dimensions, not 1 to %d",
                         name.text, tensor->dimensions, DIMENSIONS_MAX);
    for (uint32_t i = 0; i < DIMENSIONS_MAX; i++) {
        tensor->size[i] = 1;
        code = i < tensor->dimensions ? take_u64(reader, "a tensor's size", &tensor->size[i]) : 0;
        if (code < 0)
            return code;
        if (tensor->size[i] == 0)
            return error_set(reader->error, -EINVAL, "tensor %s has dimension %" PRIu32 " of size 0",
                             name.text, i);
        if (__builtin_mul_overflow(values, tensor->size[i], &values) || values > INT64_MAX)
            return error_set(reader->error, -EINVAL,
                             "tensor %s has an absurd size (dimension %" PRIu32 " is %" PRIu64 ")", name.text,
                             i, tensor->size[i]);
    }
    code = take_u32(reader, "a tensor's type", &type);
    if (code < 0)
        return code;
    const struct dtype_info *info = dtype_info(type);
    if (!info)
        return error_set(reader->error, -ENOTSUP,
                         "tensor %s is of type %s (%" PRIu32 "), which is not supported", name.text,
                         dtype_unsupported_name(type), type);
    if (tensor->size[0] % info->block_values)
        return error_set(reader->error, -EINVAL,
                         "tensor %s has rows of %" PRIu64 " values, not a multiple of %s's block of %" PRIu32,
                         name.text, tensor->size[0], info->name, info->block_values);
    tensor->type = info->type;
    if (__builtin_mul_overflow(values / info->block_values, info->block_bytes, &tensor->bytes))
        return error_set(reader->error, -EINVAL, "tensor %s has an absurd size", name.text);
    return 0;
}

/* Reads the tensors' descriptions; their offsets go to `offsets`. */
static int parse_tensors(struct gguf *gguf, struct reader *reader, size_t count, uint64_t *offsets)
{
    for (size_t i = 0; i < count; i++) {
        struct gguf_tensor *tensor = &gguf->tensors[i];
        int code = take_string(reader, "a tensor's name", &tensor->name);
        if (code < 0)
            return code;
        if (tensor->name.length == 0 || tensor->name.length > NAME_BYTES_MAX)
            return error_set(reader->error, -EINVAL, "tensor %zu has a name of %zu bytes, not 1 to %d", i,
                             tensor->name.length, NAME_BYTES_MAX);
        uint32_t *slot = index_slot(gguf, &gguf->tensor_index, tensor->name, tensor_name);
        if (*slot)
            return error_set(reader->error, -EINVAL, "tensor %s occurs twice", show(tensor->name).text);
        *slot = (uint32_t)(i + 1);
        code = parse_tensor_shape(reader, tensor);
        if (code == 0)
            code = take_u64(reader, "a tensor's offset", &offsets[i]);
        if (code < 0)
            return code;
    }
    return 0;
}

static int compare_data(const void *left, const void *right)
{
    const struct gguf_tensor *a = *(const struct gguf_tensor *const *)left;
    const struct gguf_tensor *b = *(const struct gguf_tensor *const *)right;
    return (a->data > b->data) - (a->data < b->data);
}

static int check_overlaps(const struct gguf *gguf, struct error *error)
{
    int code = 0;
    const struct gguf_tensor **sorted = mem_alloc(gguf->tensor_count * sizeof *sorted);
    if (!sorted)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < gguf->tensor_count; i++)
        sorted[i] = &gguf->tensors[i];
    qsort(sorted, gguf->tensor_count, sizeof *sorted, compare_data);
    for (size_t i = 1; i < gguf->tensor_count && code == 0; i++)
        if ((const uint8_t *)sorted[i - 1]->data + sorted[i - 1]->bytes > (const uint8_t *)sorted[i]->data)
            code = error_set(error, -EINVAL, "tensors %s and %s overlap", show(sorted[i - 1]->name).text,
                             show(sorted[i]->name).text);
    mem_free(sorted);
    return code;
}

/* Points the tensors at their data, which starts at `start`. */
static int place_tensors(struct gguf *gguf, const uint64_t *offsets, uint64_t start, uint64_t alignment,
                         struct error *error)
{
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        struct gguf_tensor *tensor = &gguf->tensors[i];
        uint64_t end;
        if (offsets[i] % alignment)
            return error_set(error, -EINVAL,
                             "tensor %s is at offset %" PRIu64 ", not a multiple of the alignment %" PRIu64,
                             show(tensor->name).text, offsets[i], alignment);
        if (__builtin_add_overflow(start, offsets[i], &end) ||
            __builtin_add_overflow(end, tensor->bytes, &end) || end > gguf->bytes)
            return error_set(error, -EINVAL,
                             "tensor %s (%" PRIu64 " bytes at offset %" PRIu64
                             ") lies outside the file of %zu bytes: cut short?",
                             show(tensor->name).text, tensor->bytes, offsets[i], gguf->bytes);
        tensor->data = gguf->data + start + offsets[i];
    }
    return check_overlaps(gguf, error);
}

static int read_alignment(const struct gguf *gguf, uint64_t *alignment, struct error *error)
{
    *alignment = ALIGNMENT_DEFAULT;
    int code = gguf_get_u64(gguf, "general.alignment", alignment);
    if (code == -EINVAL)
        return error_set(error, -EINVAL, "general.alignment is not a positive integer");
    if (*alignment < ALIGNMENT_MIN || *alignment > ALIGNMENT_MAX || (*alignment & (*alignment - 1)))
        return error_set(error, -EINVAL, "general.alignment is %" PRIu64 ", not a power of two from %d to %d",
                         *alignment, ALIGNMENT_MIN, ALIGNMENT_MAX);
    return 0;
}

static int parse_header(struct reader *reader, uint32_t *version, uint64_t *tensors, uint64_t *entries)
{
    uint32_t magic;
    if (reader->bytes < 4)
        return error_set(reader->error, -EINVAL, "not a GGUF file (only %zu bytes)", reader->bytes);
    (void)take_u32(reader, "the header", &magic);
    if (magic != 0x46554747)
        return error_set(reader->error, -EINVAL, "not a GGUF file (magic is 0x%08" PRIx32 ")", magic);
    if (reader->bytes < HEADER_BYTES)
        return truncated(reader, "the header");
    (void)take_u32(reader, "the header", version);
    (void)take_u64(reader, "the header", tensors);
    (void)take_u64(reader, "the header", entries);
    if (*version && (*version & 0xffff) == 0)
        return error_set(reader->error, -ENOTSUP, "big-endian GGUF files are not supported");
    if (*version != 2 && *version != 3)
        return error_set(reader->error, -ENOTSUP, "GGUF version %" PRIu32 " is not supported (2 and 3 are)",
                         *version);
    size_t rest = reader->bytes - HEADER_BYTES;
    if (*entries > rest / ENTRY_BYTES_MIN || *entries >= UINT32_MAX)
        return error_set(reader->error, -EINVAL,
                         "header claims %" PRIu64 " metadata entries, more than the file can hold", *entries);
    if (*tensors > rest / TENSOR_BYTES_MIN || *tensors >= UINT32_MAX)
        return error_set(reader->error, -EINVAL,
                         "header claims %" PRIu64 " tensors, more than the file can hold", *tensors);
    return 0;
}

static int parse_all(struct gguf *gguf, struct error *error)
{
    struct reader reader = {gguf->data, gguf->bytes, 0, error};
    uint64_t tensors, entries, alignment, *offsets = NULL;
    int code = parse_header(&reader, &gguf->version, &tensors, &entries);
    if (code == 0)
        code = parse_entries(gguf, &reader, (size_t)entries);
    if (code == 0)
        code = read_alignment(gguf, &alignment, error);
    if (code < 0)
        return code;
    offsets = mem_calloc((size_t)tensors, sizeof *offsets);
    gguf->tensors = mem_calloc((size_t)tensors, sizeof *gguf->tensors);
    if (!offsets || !gguf->tensors || index_init(&gguf->tensor_index, (size_t)tensors) < 0) {
        code = error_set(error, -ENOMEM, "out of memory");
        goto done;
    }
    code = parse_tensors(gguf, &reader, (size_t)tensors, offsets);
    if (code < 0)
        goto done;
    gguf->tensor_count = (size_t)tensors;
    code = place_tensors(gguf, offsets, ((uint64_t)reader.at + alignment - 1) & ~(alignment - 1), alignment,
                         error);
done:
    mem_free(offsets);
    return code;
}

int gguf_parse(const void *data, size_t bytes, struct gguf **out, struct error *error)
{
    struct gguf *gguf = mem_calloc(1, sizeof *gguf);
    if (!gguf)
        return error_set(error, -ENOMEM, "out of memory");
    gguf->data = data;
    gguf->bytes = bytes;
    gguf->seed = clock_ns() ^ (uintptr_t)gguf;
    int code = parse_all(gguf, error);
    if (code < 0)
        gguf_close(gguf);
    else
        *out = gguf;
    return code;
}

int gguf_open(const char *path, struct gguf **out, struct error *error)
{
    struct os_mapping mapping = {0};
    int code = os_map(path, &mapping);
    if (code == -EINVAL)
        return error_set(error, code, "%s: not a model (an empty file, or no regular one)", path);
    if (code < 0)
        return error_set(error, code, "%s: %s", path, strerror(-code));
    code = gguf_parse(mapping.data, mapping.bytes, out, error);
    if (code < 0) {
        os_unmap(&mapping);
        return error_prefix(error, code, "%s", path);
    }
    (*out)->mapping = mapping;
    return 0;
}

void gguf_read_ahead(struct gguf *gguf)
{
    os_map_read_ahead(&gguf->mapping);
}

void gguf_close(struct gguf *gguf)
{
    if (!gguf)
        return;
    for (size_t i = 0; i < gguf->entry_count; i++)
        mem_free(gguf->entries[i].strings);
    mem_free(gguf->entries);
    mem_free(gguf->tensors);
    mem_free(gguf->entry_index.slots);
    mem_free(gguf->tensor_index.slots);
    os_unmap(&gguf->mapping);
    mem_free(gguf);
}

/* ---- asking ---- */

static const struct entry *find(const struct gguf *gguf, const char *key)
{
    struct gguf_string name = {key, strlen(key)};
    uint32_t slot = *index_slot(gguf, &gguf->entry_index, name, entry_name);
    return slot ? &gguf->entries[slot - 1] : NULL;
}

/* The value of an integer of any type; false for a negative one and for what is no integer. */
static bool unsigned_value(const struct entry *entry, uint64_t *value)
{
    const uint8_t *p = entry->data;
    int64_t number;
    switch (entry->type) {
    case GGUF_U8:
        *value = p[0];
        return true;
    case GGUF_U16:
        *value = load_u16(p);
        return true;
    case GGUF_U32:
        *value = load_u32(p);
        return true;
    case GGUF_U64:
        *value = load_u64(p);
        return true;
    case GGUF_I8:
        number = (int8_t)p[0];
        break;
    case GGUF_I16:
        number = (int16_t)load_u16(p);
        break;
    case GGUF_I32:
        number = (int32_t)load_u32(p);
        break;
    case GGUF_I64:
        number = (int64_t)load_u64(p);
        break;
    default:
        return false;
    }
    *value = (uint64_t)number;
    return number >= 0;
}

int gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *value)
{
    uint64_t number;
    const struct entry *entry = find(gguf, key);
    if (!entry)
        return -ENOENT;
    if (!unsigned_value(entry, &number))
        return -EINVAL;
    *value = number;
    return 0;
}

int gguf_get_u32(const struct gguf *gguf, const char *key, uint32_t *value)
{
    uint64_t number;
    int code = gguf_get_u64(gguf, key, &number);
    if (code < 0)
        return code;
    if (number > UINT32_MAX)
        return -EINVAL;
    *value = (uint32_t)number;
    return 0;
}

int gguf_get_f32(const struct gguf *gguf, const char *key, float *value)
{
    const struct entry *entry = find(gguf, key);
    if (!entry)
        return -ENOENT;
    if (entry->type == GGUF_F32) {
        *value = load_f32(entry->data);
        return 0;
    }
    if (entry->type != GGUF_F64)
        return -EINVAL;
    double wide = load_f64(entry->data);
    if (isfinite(wide) && !isfinite((float)wide))
        return -EINVAL;
    *value = (float)wide;
    return 0;
}

int gguf_get_bool(const struct gguf *gguf, const char *key, bool *value)
{
    const struct entry *entry = find(gguf, key);
    if (!entry)
        return -ENOENT;
    if (entry->type != GGUF_BOOL)
        return -EINVAL;
    *value = entry->data[0] != 0;
    return 0;
}

int gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *value)
{
    const struct entry *entry = find(gguf, key);
    if (!entry)
        return -ENOENT;
    if (entry->type != GGUF_STRING)
        return -EINVAL;
    *value = (struct gguf_string){(const char *)entry->data + 8, entry->bytes - 8};
    return 0;
}

int gguf_get_array(const struct gguf *gguf, const char *key, struct gguf_array *value)
{
    const struct entry *entry = find(gguf, key);
    if (!entry)
        return -ENOENT;
    if (entry->type != GGUF_ARRAY)
        return -EINVAL;
    *value = entry->array;
    return 0;
}

double gguf_array_number(const struct gguf_array *array, size_t i)
{
    const uint8_t *p = (const uint8_t *)array->data + i * scalar_bytes(array->type);
    switch (array->type) {
    case GGUF_U8:
    case GGUF_BOOL:
        return p[0];
    case GGUF_I8:
        return (int8_t)p[0];
    case GGUF_U16:
        return load_u16(p);
    case GGUF_I16:
        return (int16_t)load_u16(p);
    case GGUF_U32:
        return load_u32(p);
    case GGUF_I32:
        return (int32_t)load_u32(p);
    case GGUF_F32:
        return load_f32(p);
    case GGUF_U64:
        return (double)load_u64(p);
    case GGUF_I64:
        return (double)(int64_t)load_u64(p);
    case GGUF_F64:
        return load_f64(p);
    default:
        return 0;
    }
}

size_t gguf_entry_count(const struct gguf *gguf)
{
    return gguf->entry_count;
}

struct gguf_entry gguf_entry_at(const struct gguf *gguf, size_t i)
{
    const struct entry *entry = &gguf->entries[i];
    return (struct gguf_entry){entry->key, entry->type, entry->data, entry->bytes};
}

size_t gguf_tensor_count(const struct gguf *gguf)
{
    return gguf->tensor_count;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, size_t i)
{
    return &gguf->tensors[i];
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name)
{
    struct gguf_string key = {name, strlen(name)};
    uint32_t slot = *index_slot(gguf, &gguf->tensor_index, key, tensor_name);
    return slot ? &gguf->tensors[slot - 1] : NULL;
}

uint64_t gguf_file_bytes(const struct gguf *gguf)
{
    return gguf->bytes;
}

uint32_t gguf_version(const struct gguf *gguf)
{
    return gguf->version;
}
