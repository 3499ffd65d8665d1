/* GGUF files: what a right one says, and that every wrong one is refused with a line that names the fault. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/array.h"
#include "base/memory.h"
#include "base/random.h"
#include "model/gguf.h"
#include "os/file.h"
#include "support/gguf_build.h"

static const uint64_t row32[] = {32};
static const char zeros[4096];

/* Parses an aligned copy, as a mapping would be. */
static int parse_exact(const struct buffer *file, size_t bytes, struct gguf **out, void **copy,
                       struct error *error)
{
    *copy = aligned_alloc(64, (bytes + 64) & ~(size_t)63);
    assert_non_null(*copy);
    memcpy(*copy, file->data, bytes);
    return gguf_parse(*copy, bytes, out, error);
}

static void refused(struct gguf_build *build, int code, const char *words)
{
    struct error error = {0};
    struct gguf *gguf = NULL;
    const struct buffer *file = gguf_build_finish(build);
    char *copy = malloc(file->length);
    assert_non_null(copy);
    memcpy(copy, file->data, file->length);
    int got = gguf_parse(copy, file->length, &gguf, &error);
    if (got != code || !strstr(error.text, words))
        print_message("got %d \"%s\", wanted %d \"%s\"\n", got, error.text, code, words);
    assert_int_equal(got, code);
    assert_int_equal(error.code, code);
    assert_non_null(strstr(error.text, words));
    assert_null(strchr(error.text, '\n'));
    assert_null(gguf);
    assert_int_equal(gguf_parse(copy, file->length, &gguf, NULL), code);
    free(copy);
    gguf_build_deinit(build);
}

static void put_scalar(struct gguf_build *build, const char *key, uint32_t type, const void *value,
                       size_t bytes)
{
    gguf_build_key(build, key, type);
    gguf_build_put(build, value, bytes);
}

static void put_every_type(struct gguf_build *build)
{
    put_scalar(build, "u8", GGUF_U8, &(uint8_t){200}, 1);
    put_scalar(build, "i8", GGUF_I8, &(int8_t){-100}, 1);
    put_scalar(build, "u16", GGUF_U16, &(uint16_t){60000}, 2);
    put_scalar(build, "i16", GGUF_I16, &(int16_t){30000}, 2);
    put_scalar(build, "u32", GGUF_U32, &(uint32_t){4000000000u}, 4);
    put_scalar(build, "i32", GGUF_I32, &(int32_t){-2000000000}, 4);
    put_scalar(build, "i32+", GGUF_I32, &(int32_t){77}, 4);
    put_scalar(build, "f32", GGUF_F32, &(float){1.5f}, 4);
    put_scalar(build, "yes", GGUF_BOOL, &(uint8_t){1}, 1);
    put_scalar(build, "no", GGUF_BOOL, &(uint8_t){0}, 1);
    gguf_build_string(build, "string", "h\xc3\xa9llo");
    gguf_build_string(build, "empty", "");
    put_scalar(build, "u64", GGUF_U64, &(uint64_t){1ull << 40}, 8);
    put_scalar(build, "i64", GGUF_I64, &(int64_t){1ll << 33}, 8);
    put_scalar(build, "i64-", GGUF_I64, &(int64_t){-1}, 8);
    put_scalar(build, "f64", GGUF_F64, &(double){-0.25}, 8);
    put_scalar(build, "f64big", GGUF_F64, &(double){1e300}, 8);
}

static void integers_are_read(const struct gguf *gguf)
{
    uint32_t u = 0;
    uint64_t w = 0;
    assert_int_equal(gguf_get_u32(gguf, "u8", &u), 0);
    assert_int_equal(u, 200);
    assert_int_equal(gguf_get_u32(gguf, "u16", &u), 0);
    assert_int_equal(u, 60000);
    assert_int_equal(gguf_get_u32(gguf, "i16", &u), 0);
    assert_int_equal(u, 30000);
    assert_int_equal(gguf_get_u32(gguf, "u32", &u), 0);
    assert_int_equal(u, 4000000000u);
    assert_int_equal(gguf_get_u32(gguf, "i32+", &u), 0);
    assert_int_equal(u, 77);
    assert_int_equal(gguf_get_u64(gguf, "u64", &w), 0);
    assert_int_equal(w, 1ull << 40);
    assert_int_equal(gguf_get_u64(gguf, "i64", &w), 0);
    assert_int_equal(w, 1ull << 33);
    u = 5;
    assert_int_equal(gguf_get_u32(gguf, "u64", &u), -EINVAL);
    assert_int_equal(gguf_get_u32(gguf, "i8", &u), -EINVAL);
    assert_int_equal(gguf_get_u32(gguf, "i32", &u), -EINVAL);
    assert_int_equal(gguf_get_u64(gguf, "i64-", &w), -EINVAL);
    assert_int_equal(gguf_get_u32(gguf, "f32", &u), -EINVAL);
    assert_int_equal(gguf_get_u32(gguf, "string", &u), -EINVAL);
    assert_int_equal(gguf_get_u32(gguf, "yes", &u), -EINVAL);
    assert_int_equal(gguf_get_u32(gguf, "missing", &u), -ENOENT);
    assert_int_equal(u, 5); /* failures leave the value */
}

static void others_are_read(const struct gguf *gguf)
{
    float f = 0;
    bool b = false;
    struct gguf_string s;
    assert_int_equal(gguf_get_f32(gguf, "f32", &f), 0);
    assert_true(f == 1.5f);
    assert_int_equal(gguf_get_f32(gguf, "f64", &f), 0);
    assert_true(f == -0.25f);
    assert_int_equal(gguf_get_f32(gguf, "f64big", &f), -EINVAL);
    assert_int_equal(gguf_get_f32(gguf, "u32", &f), -EINVAL);
    assert_int_equal(gguf_get_f32(gguf, "missing", &f), -ENOENT);
    assert_int_equal(gguf_get_bool(gguf, "yes", &b), 0);
    assert_true(b);
    assert_int_equal(gguf_get_bool(gguf, "no", &b), 0);
    assert_false(b);
    assert_int_equal(gguf_get_bool(gguf, "u8", &b), -EINVAL);
    assert_int_equal(gguf_get_string(gguf, "string", &s), 0);
    assert_int_equal(s.length, 6);
    assert_memory_equal(s.data, "h\xc3\xa9llo", 6);
    assert_int_equal(gguf_get_string(gguf, "empty", &s), 0);
    assert_int_equal(s.length, 0);
    assert_int_equal(gguf_get_string(gguf, "u8", &s), -EINVAL);
    assert_int_equal(gguf_get_string(gguf, "strin", &s), -ENOENT);
}

static void every_type_is_read(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    put_every_type(&build);
    const struct buffer *file = gguf_build_finish(&build);
    struct gguf *gguf = NULL;
    void *copy;
    assert_int_equal(parse_exact(file, file->length, &gguf, &copy, NULL), 0);
    integers_are_read(gguf);
    others_are_read(gguf);
    assert_int_equal(gguf_version(gguf), 3);
    assert_int_equal(gguf_file_bytes(gguf), file->length);
    assert_int_equal(gguf_tensor_count(gguf), 0);
    assert_null(gguf_tensor_find(gguf, "string"));
    gguf_close(gguf);
    free(copy);
    gguf_build_deinit(&build);
}

static void put_array(struct gguf_build *build, const char *key, uint32_t type, uint64_t count,
                      const void *data, size_t bytes)
{
    gguf_build_key(build, key, GGUF_ARRAY);
    gguf_build_put_u32(build, type);
    gguf_build_put_u64(build, count);
    if (bytes)
        gguf_build_put(build, data, bytes);
}

static double number(const struct gguf *gguf, const char *key, enum gguf_value_type type, size_t count,
                     size_t i)
{
    struct gguf_array array;
    assert_int_equal(gguf_get_array(gguf, key, &array), 0);
    assert_int_equal(array.type, type);
    assert_int_equal(array.count, count);
    return gguf_array_number(&array, i);
}

static void every_array_is_read(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    put_array(&build, "u8", GGUF_U8, 3, (uint8_t[]){1, 2, 255}, 3);
    put_array(&build, "i8", GGUF_I8, 2, (int8_t[]){-128, 7}, 2);
    put_array(&build, "u16", GGUF_U16, 2, (uint16_t[]){9, 65535}, 4);
    put_array(&build, "i16", GGUF_I16, 2, (int16_t[]){-9, 5}, 4);
    put_array(&build, "u32", GGUF_U32, 2, (uint32_t[]){0, 4294967295u}, 8);
    put_array(&build, "i32", GGUF_I32, 2, (int32_t[]){-1, 3}, 8);
    put_array(&build, "f32", GGUF_F32, 2, (float[]){0.5f, -2}, 8);
    put_array(&build, "bool", GGUF_BOOL, 2, (uint8_t[]){0, 1}, 2);
    put_array(&build, "u64", GGUF_U64, 1, (uint64_t[]){1ull << 50}, 8);
    put_array(&build, "i64", GGUF_I64, 1, (int64_t[]){-(1ll << 50)}, 8);
    put_array(&build, "f64", GGUF_F64, 1, (double[]){1e200}, 8);
    put_array(&build, "none", GGUF_F64, 0, NULL, 0);
    gguf_build_key(&build, "strings", GGUF_ARRAY);
    gguf_build_put_u32(&build, GGUF_STRING);
    gguf_build_put_u64(&build, 3);
    gguf_build_put_string(&build, "one");
    gguf_build_put_string(&build, "");
    gguf_build_put_string(&build, "three");
    gguf_build_u32(&build, "after", 4);
    const struct buffer *file = gguf_build_finish(&build);
    struct gguf *gguf = NULL;
    void *copy;
    assert_int_equal(parse_exact(file, file->length, &gguf, &copy, NULL), 0);
    assert_true(number(gguf, "u8", GGUF_U8, 3, 2) == 255);
    assert_true(number(gguf, "i8", GGUF_I8, 2, 0) == -128);
    assert_true(number(gguf, "u16", GGUF_U16, 2, 1) == 65535);
    assert_true(number(gguf, "i16", GGUF_I16, 2, 0) == -9);
    assert_true(number(gguf, "u32", GGUF_U32, 2, 1) == 4294967295.0);
    assert_true(number(gguf, "i32", GGUF_I32, 2, 0) == -1);
    assert_true(number(gguf, "f32", GGUF_F32, 2, 1) == -2);
    assert_true(number(gguf, "bool", GGUF_BOOL, 2, 1) == 1);
    assert_true(number(gguf, "u64", GGUF_U64, 1, 0) == 0x1p50);
    assert_true(number(gguf, "i64", GGUF_I64, 1, 0) == -0x1p50);
    assert_true(number(gguf, "f64", GGUF_F64, 1, 0) == 1e200);
    struct gguf_array array;
    assert_int_equal(gguf_get_array(gguf, "none", &array), 0);
    assert_int_equal(array.count, 0);
    assert_int_equal(gguf_get_array(gguf, "strings", &array), 0);
    assert_int_equal(array.type, GGUF_STRING);
    assert_int_equal(array.count, 3);
    assert_null(array.data);
    assert_int_equal(array.strings[1].length, 0);
    assert_int_equal(array.strings[2].length, 5);
    assert_memory_equal(array.strings[2].data, "three", 5);
    assert_int_equal(gguf_get_array(gguf, "after", &array), -EINVAL);
    assert_int_equal(gguf_get_array(gguf, "before", &array), -ENOENT);
    struct gguf_entry last = gguf_entry_at(gguf, gguf_entry_count(gguf) - 1);
    assert_int_equal(last.type, GGUF_U32);
    assert_int_equal(last.bytes, 4);
    assert_memory_equal(last.key.data, "after", 5);
    gguf_close(gguf);
    free(copy);
    gguf_build_deinit(&build);
}

static void tensors_are_found(void **state)
{
    (void)state;
    struct gguf_build build = {.version = 2};
    float f32[6] = {1, 2, 3, 4, 5, 6};
    char blocks[2 * 18];
    memset(blocks, 7, sizeof blocks);
    gguf_build_string(&build, "general.architecture", "llama");
    gguf_build_tensor(&build, "a", DTYPE_F32, 2, (uint64_t[]){3, 2}, f32, sizeof f32);
    gguf_build_tensor(&build, "b.weight", DTYPE_Q4_0, 1, (uint64_t[]){64}, blocks, sizeof blocks);
    gguf_build_tensor(&build, "c", DTYPE_Q6_K, 4, (uint64_t[]){256, 1, 2, 3}, zeros, 6 * 210);
    const struct buffer *file = gguf_build_finish(&build);
    struct gguf *gguf = NULL;
    void *copy;
    assert_int_equal(parse_exact(file, file->length, &gguf, &copy, NULL), 0);
    assert_int_equal(gguf_version(gguf), 2);
    assert_int_equal(gguf_tensor_count(gguf), 3);
    const struct gguf_tensor *a = gguf_tensor_find(gguf, "a");
    assert_ptr_equal(a, gguf_tensor_at(gguf, 0));
    assert_int_equal(a->dimensions, 2);
    assert_int_equal(a->size[0], 3);
    assert_int_equal(a->size[1], 2);
    assert_int_equal(a->size[2], 1);
    assert_int_equal(a->size[3], 1);
    assert_int_equal(a->bytes, 24);
    assert_memory_equal(a->data, f32, sizeof f32);
    const struct gguf_tensor *b = gguf_tensor_find(gguf, "b.weight");
    assert_non_null(b);
    assert_int_equal(b->type, DTYPE_Q4_0);
    assert_int_equal(b->bytes, 36);
    assert_memory_equal(b->data, blocks, sizeof blocks);
    assert_int_equal((uintptr_t)b->data % 32, 0);
    const struct gguf_tensor *c = gguf_tensor_find(gguf, "c");
    assert_non_null(c);
    assert_int_equal(c->bytes, 6 * 210);
    assert_int_equal(c->size[3], 3);
    assert_null(gguf_tensor_find(gguf, "b"));
    assert_null(gguf_tensor_find(gguf, ""));
    gguf_close(gguf);
    free(copy);
    gguf_build_deinit(&build);
}

static void many_names_are_found(void **state)
{
    (void)state;
    enum { COUNT = 5000 };
    struct gguf_build build = {0};
    char name[32];
    for (uint32_t i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "key.%u", i);
        gguf_build_u32(&build, name, i * 3);
        snprintf(name, sizeof name, "blk.%u.w", i);
        gguf_build_tensor(&build, name, DTYPE_F32, 1, (uint64_t[]){1}, &(float){(float)i}, 4);
    }
    const struct buffer *file = gguf_build_finish(&build);
    struct gguf *gguf = NULL;
    assert_int_equal(gguf_parse(file->data, file->length, &gguf, NULL), 0);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t value;
        float f;
        snprintf(name, sizeof name, "key.%u", i);
        assert_int_equal(gguf_get_u32(gguf, name, &value), 0);
        assert_int_equal(value, i * 3);
        snprintf(name, sizeof name, "blk.%u.w", i);
        const struct gguf_tensor *tensor = gguf_tensor_find(gguf, name);
        assert_non_null(tensor);
        memcpy(&f, tensor->data, 4);
        assert_true(f == (float)i);
    }
    gguf_close(gguf);
    gguf_build_deinit(&build);
}

static void alignment_is_followed(void **state)
{
    (void)state;
    for (uint64_t alignment = 8; alignment <= 4096; alignment *= 2) {
        struct gguf_build build = {.alignment = alignment};
        gguf_build_u32(&build, "general.alignment", (uint32_t)alignment);
        gguf_build_tensor(&build, "a", DTYPE_F32, 1, (uint64_t[]){1}, &(float){1}, 4);
        gguf_build_tensor(&build, "b", DTYPE_F32, 1, (uint64_t[]){1}, &(float){2}, 4);
        const struct buffer *file = gguf_build_finish(&build);
        struct gguf *gguf = NULL;
        assert_int_equal(gguf_parse(file->data, file->length, &gguf, NULL), 0);
        const char *a = gguf_tensor_at(gguf, 0)->data, *b = gguf_tensor_at(gguf, 1)->data;
        assert_int_equal(b - a, alignment);
        assert_int_equal((uint64_t)(a - file->data) % alignment, 0);
        assert_memory_equal(b, (float[]){2}, 4);
        gguf_close(gguf);
        gguf_build_deinit(&build);
    }
}

static void bad_alignments_are_refused(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 1, 4, 24, 33, 1u << 21, 0x80000000u, 0xffffffffu};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gguf_build build = {0};
        gguf_build_u32(&build, "general.alignment", bad[i]);
        refused(&build, -EINVAL, "not a power of two");
    }
    struct gguf_build build = {0};
    gguf_build_string(&build, "general.alignment", "32");
    refused(&build, -EINVAL, "general.alignment is not a positive integer");
}

static void headers_are_checked(void **state)
{
    (void)state;
    struct error error;
    struct gguf *gguf = NULL;
    assert_int_equal(gguf_parse("", 0, &gguf, &error), -EINVAL);
    assert_string_equal(error.text, "not a GGUF file (only 0 bytes)");
    assert_int_equal(gguf_parse("\x7f"
                                "ELF\2\1\1",
                                7, &gguf, &error),
                     -EINVAL);
    assert_string_equal(error.text, "not a GGUF file (magic is 0x464c457f)");
    assert_int_equal(gguf_parse("GGUF\3\0\0\0", 8, &gguf, &error), -EINVAL);
    assert_non_null(strstr(error.text, "cut short"));

    struct gguf_build one = {.version = 1}, four = {.version = 4}, big = {.version = 3u << 24};
    refused(&one, -ENOTSUP, "version 1 is not supported");
    refused(&four, -ENOTSUP, "version 4 is not supported");
    refused(&big, -ENOTSUP, "big-endian");
    struct gguf_build keys = {.entry_count = UINT64_MAX}, tensors = {.tensor_count = 1ull << 60};
    refused(&keys, -EINVAL, "18446744073709551615 metadata entries, more than the file can hold");
    refused(&tensors, -EINVAL, "tensors, more than the file can hold");
}

static void metadata_is_checked(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    gguf_build_key(&build, "k", 13);
    gguf_build_put_u64(&build, 0);
    refused(&build, -EINVAL, "key k: unknown value type 13");

    build = (struct gguf_build){0};
    gguf_build_key(&build, "k\n\x01\xff", 0x80000008u);
    gguf_build_put_u64(&build, 0);
    refused(&build, -EINVAL, "key k???: unknown value type 2147483656");

    build = (struct gguf_build){0};
    gguf_build_u32(&build, "twice", 1);
    gguf_build_string(&build, "twice", "2");
    refused(&build, -EINVAL, "key twice occurs twice");

    build = (struct gguf_build){0};
    gguf_build_u32(&build, "", 1);
    refused(&build, -EINVAL, "has a key of 0 bytes");

    build = (struct gguf_build){0};
    gguf_build_key(&build, "text", GGUF_STRING);
    gguf_build_put_u64(&build, UINT64_MAX - 7);
    refused(&build, -EINVAL, "claims 18446744073709551608 bytes");

    build = (struct gguf_build){0};
    gguf_build_key(&build, "text", GGUF_STRING);
    gguf_build_put_u64(&build, 1);
    refused(&build, -EINVAL, "claims 1 bytes, but the file has only 0 more");

    build = (struct gguf_build){0};
    gguf_build_key(&build, "flag", GGUF_BOOL);
    gguf_build_put(&build, "\2", 1);
    refused(&build, -EINVAL, "key flag: 2 is not a boolean");
}

static void arrays_are_checked(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    put_array(&build, "nested", GGUF_ARRAY, 1, zeros, 64);
    refused(&build, -EINVAL, "key nested: arrays of arrays");

    build = (struct gguf_build){0};
    put_array(&build, "odd", 99, 1, zeros, 64);
    refused(&build, -EINVAL, "key odd: array of unknown value type 99");

    static const uint32_t types[] = {GGUF_U8, GGUF_U16, GGUF_F32, GGUF_STRING, GGUF_U64};
    static const uint64_t counts[] = {65, 1ull << 61, UINT64_MAX};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            build = (struct gguf_build){0};
            put_array(&build, "long", types[t], counts[c], zeros, 64);
            refused(&build, -EINVAL, "key long: array claims");
        }

    build = (struct gguf_build){0};
    put_array(&build, "texts", GGUF_STRING, 8, (uint64_t[]){0, 0, 999, 0, 0, 0, 0, 0}, 64);
    refused(&build, -EINVAL, "key texts: a string of an array");

    build = (struct gguf_build){0};
    put_array(&build, "flags", GGUF_BOOL, 4, "\1\0\3\1", 4);
    refused(&build, -EINVAL, "key flags: 3 is not a boolean");
}

static void bad_shape(uint32_t type, uint32_t dimensions, const uint64_t *sizes, int code, const char *words)
{
    struct gguf_build build = {0};
    gguf_build_tensor(&build, "weight", type, dimensions, sizes, zeros, sizeof zeros);
    refused(&build, code, words);
}

static void tensor_shapes_are_checked(void **state)
{
    (void)state;
    bad_shape(DTYPE_F32, 0, row32, -EINVAL, "tensor weight has 0 dimensions");
    bad_shape(DTYPE_F32, 5, (uint64_t[]){1, 1, 1, 1, 1}, -EINVAL, "has 5 dimensions");
    bad_shape(DTYPE_F32, 1, (uint64_t[]){0}, -EINVAL, "dimension 0 of size 0");
    bad_shape(DTYPE_F32, 3, (uint64_t[]){4, 4, 0}, -EINVAL, "dimension 2 of size 0");
    bad_shape(DTYPE_F32, 1, (uint64_t[]){UINT64_MAX}, -EINVAL, "absurd size");
    bad_shape(DTYPE_F32, 2, (uint64_t[]){1ull << 32, 1ull << 32}, -EINVAL, "absurd size");
    bad_shape(DTYPE_F32, 2, (uint64_t[]){1ull << 31, 1ull << 31}, -EINVAL, "absurd size");
    bad_shape(DTYPE_F32, 4, (uint64_t[]){1ull << 20, 1ull << 20, 1ull << 20, 16}, -EINVAL, "absurd size");
    bad_shape(DTYPE_F32, 1, (uint64_t[]){1ull << 40}, -EINVAL, "lies outside the file");
    bad_shape(DTYPE_Q4_0, 2, (uint64_t[]){48, 2}, -EINVAL,
              "rows of 48 values, not a multiple of Q4_0's block of 32");
    bad_shape(DTYPE_Q4_K, 2, (uint64_t[]){128, 2}, -EINVAL, "not a multiple of Q4_K's block of 256");
    bad_shape(20, 1, row32, -ENOTSUP, "tensor weight is of type IQ4_NL (20), which is not supported");
    bad_shape(39, 1, row32, -ENOTSUP, "MXFP4");
    bad_shape(4, 1, row32, -ENOTSUP, "unknown (4)");
    bad_shape(0xffffffffu, 1, row32, -ENOTSUP, "unknown (4294967295)");
}

static void tensor_places_are_checked(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    gguf_build_tensor(&build, "same", DTYPE_F32, 1, row32, zeros, 128);
    gguf_build_tensor(&build, "same", DTYPE_F32, 1, row32, zeros, 128);
    refused(&build, -EINVAL, "tensor same occurs twice");

    build = (struct gguf_build){0};
    gguf_build_tensor(&build, "", DTYPE_F32, 1, row32, zeros, 128);
    refused(&build, -EINVAL, "has a name of 0 bytes");

    char name[66];
    memset(name, 'x', 65);
    name[65] = 0;
    build = (struct gguf_build){0};
    gguf_build_tensor(&build, name, DTYPE_F32, 1, row32, zeros, 128);
    refused(&build, -EINVAL, "has a name of 65 bytes");

    build = (struct gguf_build){0};
    gguf_build_tensor(&build, "a", DTYPE_F32, 1, row32, zeros, 128);
    gguf_build_tensor_at(&build, "b", DTYPE_F32, 1, row32, 96);
    refused(&build, -EINVAL, "lies outside the file");

    build = (struct gguf_build){0};
    gguf_build_tensor_at(&build, "b", DTYPE_F32, 1, row32, 64);
    gguf_build_tensor(&build, "a", DTYPE_F32, 1, row32, zeros, 192);
    refused(&build, -EINVAL, "tensors a and b overlap");

    build = (struct gguf_build){0};
    gguf_build_tensor(&build, "a", DTYPE_F32, 1, row32, zeros, 256);
    gguf_build_tensor_at(&build, "b", DTYPE_F32, 1, row32, 0);
    refused(&build, -EINVAL, "overlap");

    build = (struct gguf_build){0};
    gguf_build_tensor_at(&build, "a", DTYPE_F32, 1, (uint64_t[]){1}, 4);
    gguf_build_tensor(&build, "b", DTYPE_F32, 1, row32, zeros, 256);
    refused(&build, -EINVAL, "offset 4, not a multiple of the alignment 32");

    build = (struct gguf_build){0};
    gguf_build_tensor_at(&build, "a", DTYPE_F32, 1, row32, UINT64_MAX - 31);
    gguf_build_tensor(&build, "b", DTYPE_F32, 1, row32, zeros, 256);
    refused(&build, -EINVAL, "lies outside the file");

    build = (struct gguf_build){0};
    gguf_build_tensor_at(&build, "a", DTYPE_F32, 1, row32, 1ull << 50);
    refused(&build, -EINVAL, "lies outside the file");
}

static void sample(struct gguf_build *build)
{
    gguf_build_string(build, "general.architecture", "llama");
    gguf_build_u32(build, "llama.block_count", 2);
    gguf_build_key(build, "tokens", GGUF_ARRAY);
    gguf_build_put_u32(build, GGUF_STRING);
    gguf_build_put_u64(build, 2);
    gguf_build_put_string(build, "a");
    gguf_build_put_string(build, "bc");
    put_array(build, "scores", GGUF_F32, 2, (float[]){1, 2}, 8);
    gguf_build_tensor(build, "x", DTYPE_Q8_0, 2, (uint64_t[]){32, 2}, zeros, 68);
    gguf_build_tensor(build, "y", DTYPE_F32, 1, row32, zeros, 128);
}

/* Cut anywhere, a file is refused and no byte past its end is read. */
static void every_truncation_is_refused(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    sample(&build);
    const struct buffer *file = gguf_build_finish(&build);
    for (size_t bytes = 0; bytes < file->length; bytes++) {
        struct error error = {0};
        struct gguf *gguf = NULL;
        char *copy = malloc(bytes ? bytes : 1);
        assert_non_null(copy);
        memcpy(copy, file->data, bytes);
        assert_int_equal(gguf_parse(copy, bytes, &gguf, &error), -EINVAL);
        assert_true(error.text[0] != 0);
        assert_null(gguf);
        free(copy);
    }
    gguf_build_deinit(&build);
}

/* Touches everything a parsed file offers. */
static uint64_t walk(const struct gguf *gguf)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        for (uint64_t k = 0; k < tensor->bytes; k++)
            sum += ((const uint8_t *)tensor->data)[k];
    }
    for (size_t i = 0; i < gguf_entry_count(gguf); i++) {
        struct gguf_entry entry = gguf_entry_at(gguf, i);
        for (size_t k = 0; k < entry.bytes; k++)
            sum += ((const uint8_t *)entry.data)[k];
    }
    return sum;
}

/* Whatever bytes change, the file is either refused or all it offers lies inside it. */
static void corrupt_files_do_no_harm(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    sample(&build);
    const struct buffer *file = gguf_build_finish(&build);
    struct random random = {7};
    unsigned accepted = 0, rejected = 0;
    for (int round = 0; round < 20000; round++) {
        struct gguf *gguf = NULL;
        struct error error = {0};
        char *copy = malloc(file->length);
        assert_non_null(copy);
        memcpy(copy, file->data, file->length);
        for (uint64_t n = 1 + random_below(&random, 3); n; n--)
            copy[4 + random_below(&random, file->length - 4)] = (char)random_next(&random);
        if (gguf_parse(copy, file->length, &gguf, &error) == 0) {
            (void)walk(gguf);
            gguf_close(gguf);
            accepted++;
        } else {
            assert_true(error.text[0] != 0);
            rejected++;
        }
        free(copy);
    }
    assert_true(accepted > 1000);
    assert_true(rejected > 1000);
    gguf_build_deinit(&build);
}

static void every_failed_allocation_is_survived(void **state)
{
    (void)state;
    struct gguf_build build = {0};
    sample(&build);
    const struct buffer *file = gguf_build_finish(&build);
    long nth = 1;
    for (;; nth++) {
        struct gguf *gguf = NULL;
        struct error error = {0};
        mem_fault_set(nth, true);
        int code = gguf_parse(file->data, file->length, &gguf, &error);
        long hits = mem_fault_hits();
        mem_fault_set(0, false);
        if (hits == 0) {
            assert_int_equal(code, 0);
            gguf_close(gguf);
            break;
        }
        assert_int_equal(code, -ENOMEM);
        assert_string_equal(error.text, "out of memory");
        assert_null(gguf);
    }
    assert_true(nth > 6);
    gguf_build_deinit(&build);
}

static void files_are_opened(void **state)
{
    (void)state;
    char path[] = "/tmp/test-gguf-XXXXXX";
    struct error error;
    struct gguf *gguf = NULL;
    struct gguf_build build = {0};
    sample(&build);
    const struct buffer *file = gguf_build_finish(&build);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(gguf_open(path, &gguf, &error), -EINVAL); /* empty */
    assert_non_null(strstr(error.text, path));
    assert_int_equal(write(fd, file->data, file->length), file->length);
    assert_int_equal(gguf_open(path, &gguf, &error), 0);
    struct gguf_string name;
    assert_int_equal(gguf_get_string(gguf, "general.architecture", &name), 0);
    assert_int_equal(name.length, 5);
    assert_int_equal((uintptr_t)gguf_tensor_find(gguf, "y")->data % 32, 0);
    gguf_close(gguf);
    gguf = NULL;
    assert_int_equal(ftruncate(fd, 100), 0);
    assert_int_equal(gguf_open(path, &gguf, &error), -EINVAL);
    assert_int_equal(strncmp(error.text, path, strlen(path)), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(gguf_open(path, &gguf, &error), -ENOENT);
    assert_non_null(strstr(error.text, "No such file"));
    assert_int_equal(gguf_open("/tmp", &gguf, &error), -EISDIR);
    os_fault_set(OS_FAULT_OPEN, 1, false, EACCES);
    assert_int_equal(gguf_open(path, &gguf, &error), -EACCES);
    os_fault_set(0, 0, false, 0);
    assert_null(gguf);
    gguf_close(NULL);
    close(fd);
    gguf_build_deinit(&build);
}

static bool resident(const struct os_mapping *mapping)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (mapping->bytes + page - 1) / page, count = 0;
    unsigned char *in = malloc(pages);
    assert_non_null(in);
    assert_int_equal(mincore((void *)(uintptr_t)mapping->data, mapping->bytes, in), 0);
    for (size_t i = 0; i < pages; i++)
        count += in[i] & 1;
    free(in);
    return count == pages;
}

/* A file that is read ahead comes in whole without being touched, says what it said, and may be closed at any
 * time meanwhile. */
static void files_are_read_ahead(void **state)
{
    (void)state;
    char path[] = "/tmp/test-gguf-XXXXXX";
    enum { BYTES = (20 << 20) + 123 };
    struct random random = {5};
    struct os_mapping mapping = {0};
    unsigned char *data = malloc(BYTES);
    assert_non_null(data);
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (unsigned char)random_next(&random);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, BYTES), BYTES);
    for (int wait = 0; wait < 2; wait++) {
        assert_int_equal(fsync(fd), 0);
        assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
        assert_int_equal(os_map(path, &mapping), 0);
        os_map_read_ahead(&mapping);
        os_map_read_ahead(&mapping);
        for (int i = 0; wait && i < 2000 && !resident(&mapping); i++)
            usleep(10000);
        assert_true(!wait || resident(&mapping));
        assert_true(!wait || memcmp(mapping.data, data, BYTES) == 0);
        os_unmap(&mapping);
        assert_null(mapping.data);
    }
    struct os_mapping none = {0};
    os_map_read_ahead(&none);
    os_unmap(&none);
    free(data);
    close(fd);
    assert_int_equal(unlink(path), 0);
}

/* The bundled model reads as its card says. */
static void bundled_model_is_read(void **state)
{
    (void)state;
    struct error error;
    struct gguf *gguf = NULL;
    assert_int_equal(gguf_open("models/pocket-q8_0.gguf", &gguf, &error), 0);
    uint32_t layers = 0, width = 0;
    struct gguf_array tokens;
    assert_int_equal(gguf_get_u32(gguf, "llama.block_count", &layers), 0);
    assert_int_equal(layers, 6);
    assert_int_equal(gguf_get_u32(gguf, "llama.embedding_length", &width), 0);
    assert_int_equal(width, 256);
    assert_int_equal(gguf_get_array(gguf, "tokenizer.ggml.tokens", &tokens), 0);
    assert_int_equal(tokens.count, 4096);
    const struct gguf_tensor *embedding = gguf_tensor_find(gguf, "token_embd.weight");
    assert_non_null(embedding);
    assert_int_equal(embedding->type, DTYPE_Q8_0);
    assert_int_equal(embedding->size[0], 256);
    assert_int_equal(embedding->size[1], 4096);
    gguf_read_ahead(gguf);
    gguf_close(gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_read),        cmocka_unit_test(every_array_is_read),
        cmocka_unit_test(tensors_are_found),         cmocka_unit_test(many_names_are_found),
        cmocka_unit_test(alignment_is_followed),     cmocka_unit_test(bad_alignments_are_refused),
        cmocka_unit_test(headers_are_checked),       cmocka_unit_test(metadata_is_checked),
        cmocka_unit_test(arrays_are_checked),        cmocka_unit_test(tensor_shapes_are_checked),
        cmocka_unit_test(tensor_places_are_checked), cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(corrupt_files_do_no_harm),  cmocka_unit_test(every_failed_allocation_is_survived),
        cmocka_unit_test(files_are_opened),          cmocka_unit_test(files_are_read_ahead),
        cmocka_unit_test(bundled_model_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
