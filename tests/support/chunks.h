/* Chunks with made-up content, a temporary directory for their store, and readers of what it wrote. */
#ifndef LLMS_TESTS_CHUNKS_H
#define LLMS_TESTS_CHUNKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/chunkfile.h"

enum { CHUNKS_LAYERS = 3 };
extern const struct chunk_geometry chunks_geometry; /* slices of no round size at the low levels */

/* A new one on disk, or where there is a file system in memory there; removed with all in it. */
void chunks_directory_make(char path[64], bool in_memory);
void chunks_directory_remove(const char *path);
unsigned chunks_files(const char *directory); /* files below it, the salt not counted */

/* Chunk i of a sequence of content `seed`: level by i, the last partly filled; keys as for `owner`. */
void chunks_make(const struct chunk_store *store, const char *owner, uint64_t seed,
                 struct segment_chunk *chunks, size_t count);
void chunks_free(struct segment_chunk *chunks, size_t count);

/* Reads chunk `index` of a segment back, layer by layer, through os/aio, and compares it with `chunk`: 0, a
 * read's error, or -EBADMSG where a checksum does not match. Content that has a matching checksum and is not
 * the chunk's fails the test. */
int chunks_compare(struct segment *segment, uint32_t index, const struct segment_chunk *chunk);

#endif
