/* Writes a GGUF v3 file: metadata in memory, tensors streamed row by row, published by rename.
 *
 * A zeroed struct is ready; deinit releases. The adders keep the first failure (-ENOMEM) and
 * gguf_write_publish reports it. One thread. */
#ifndef LLMS_BENCH_GGUF_WRITE_H
#define LLMS_BENCH_GGUF_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/array.h"
#include "base/dtype.h"
#include "base/error.h"
#include "model/gguf.h"

struct gguf_write_tensor {
    char name[64];
    enum dtype type;
    uint64_t columns; /* values a row: a multiple of the type's block */
    uint64_t rows;    /* 0: one row, described as of one dimension */
    uint64_t offset;  /* set here */
    void *user;       /* for the callback */
};

struct gguf_write {
    struct buffer entries;
    uint64_t entry_count;
    struct gguf_write_tensor *tensors;
    size_t tensor_count, tensor_capacity;
    uint64_t data_bytes; /* of all tensors with their padding */
    int failed;
};

void gguf_write_deinit(struct gguf_write *write);

void gguf_write_u32(struct gguf_write *write, const char *key, uint32_t value);
void gguf_write_f32(struct gguf_write *write, const char *key, float value);
void gguf_write_bool(struct gguf_write *write, const char *key, bool value);
void gguf_write_text(struct gguf_write *write, const char *key, const char *value);
void gguf_write_entry(struct gguf_write *write,
                      const struct gguf_entry *entry); /* copied from another file */
/* Begins an array; its elements follow through the two below, `count` of them. */
void gguf_write_array(struct gguf_write *write, const char *key, enum gguf_value_type type, uint64_t count);
void gguf_write_element(struct gguf_write *write, const void *data, size_t bytes);
void gguf_write_string(struct gguf_write *write, const char *data, size_t length);

/* tensor->offset need not be set. */
void gguf_write_tensor(struct gguf_write *write, const struct gguf_write_tensor *tensor);

/* Fills one row of a tensor. */
typedef void gguf_write_row(void *context, const struct gguf_write_tensor *tensor, uint64_t row, void *out);

/* Writes PATH.tmpPID, syncs and renames; on failure nothing is left behind. Tells its progress on a terminal.
 */
int gguf_write_publish(struct gguf_write *write, const char *path, gguf_write_row *fill, void *context,
                       struct error *error);

#endif
