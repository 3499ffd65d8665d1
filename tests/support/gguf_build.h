/* Writes GGUF bytes for tests, right or wrong: every count, size, type and offset can be a lie.
 *
 * Entries and tensors are appended in order; gguf_build_finish puts header, entries, tensors, padding and
 * data together. A zeroed struct is ready to use; deinit releases. Out of memory fails the test. */
#ifndef LLMS_TESTS_GGUF_BUILD_H
#define LLMS_TESTS_GGUF_BUILD_H

#include <stddef.h>
#include <stdint.h>

#include "base/array.h"

struct gguf_build {
    struct buffer entries, tensors, data;
    uint64_t entry_count, tensor_count;
    uint32_t version;   /* 0: 3 */
    uint64_t alignment; /* of the layout; 0: 32. The key general.alignment is the test's own business */
    struct buffer file; /* what gguf_build_finish made */
};

void gguf_build_deinit(struct gguf_build *build);

/* Metadata. gguf_build_key writes only key and type: the value is the test's to append with the put
 * functions. */
void gguf_build_key(struct gguf_build *build, const char *key, uint32_t type);
void gguf_build_put(struct gguf_build *build, const void *data, size_t bytes);
void gguf_build_put_u32(struct gguf_build *build, uint32_t value);
void gguf_build_put_u64(struct gguf_build *build, uint64_t value);
void gguf_build_put_string(struct gguf_build *build, const char *text);
void gguf_build_u32(struct gguf_build *build, const char *key, uint32_t value);
void gguf_build_string(struct gguf_build *build, const char *key, const char *text);

/* A tensor whose data goes behind what is there already. sizes: `dimensions` of them. */
void gguf_build_tensor(struct gguf_build *build, const char *name, uint32_t type, uint32_t dimensions,
                       const uint64_t *sizes, const void *data, size_t bytes);
/* Only the description, with any offset. */
void gguf_build_tensor_at(struct gguf_build *build, const char *name, uint32_t type, uint32_t dimensions,
                          const uint64_t *sizes, uint64_t offset);

/* build->file, until the next call. */
const struct buffer *gguf_build_finish(struct gguf_build *build);

#endif
