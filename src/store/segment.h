/* The header of a segment file: what it says, to and from bytes (docs/FORMATS.md, Chunk files). Pure. */
#ifndef LLMS_STORE_SEGMENT_H
#define LLMS_STORE_SEGMENT_H

#include "store/chunkfile.h"

enum {
    SEGMENT_ALIGN = 4096,
    SEGMENT_FIXED_BYTES = 72, /* before the entries of the chunks */
    SEGMENT_ENTRY_BYTES = 40, /* of one, before its checksums */
    SEGMENT_MAX_CHUNKS = 1 << 16,
    SEGMENT_MAX_LAYERS = 1024,
    SEGMENT_MAX_LAYER_BYTES = 1 << 26,
    SEGMENT_CHUNK_TOKENS = 16
};

struct segment_entry {
    struct segment_chunk chunk;
    uint64_t slice_at; /* of a slice within its layer */
    uint32_t slice_bytes;
    /* chunkfile's index: */
    struct segment_entry *next; /* of the same bucket */
    struct segment *segment;    /* NULL: not in it */
};

/* file bytes = header_bytes + layers x layer_bytes */
struct segment_table {
    uint64_t header_bytes; /* padded to SEGMENT_ALIGN */
    uint64_t layer_bytes;  /* of all chunks' slices of one layer, padded likewise */
    uint64_t file_bytes;
    uint64_t seed; /* of the checksums: the model's fingerprint */
    uint32_t count, layers;
    uint64_t *checksums; /* chunk after chunk, a layer each */
    struct segment_entry entries[];
};

bool chunk_geometry_valid(const struct chunk_geometry *geometry);
int chunk_level_index(uint8_t level); /* into chunk_levels; -1: no level */

/* For chunks as given (their data is not looked at), sizes and offsets set, checksums zero. One allocation,
 * mem_free. -EINVAL: no such chunks can be; -ENOMEM. */
int segment_table_create(const struct chunk_geometry *geometry, uint64_t fingerprint,
                         const struct segment_chunk *chunks, size_t count, struct segment_table **out);
void segment_format(const struct segment_table *table, const struct chunk_geometry *geometry, void *header);

/* What the first SEGMENT_ALIGN bytes of a file say about the header's padded size, distrusted; 0: nothing
 * that can be. */
uint64_t segment_header_bytes(const void *data, uint64_t file_bytes);
/* Reads a whole header of a file of so many bytes. -EBADMSG: damaged; -ESTALE: of another model, geometry or
 * version; -ENOMEM. */
int segment_parse(const void *data, size_t bytes, uint64_t file_bytes, const struct chunk_geometry *geometry,
                  uint64_t fingerprint, struct segment_table **out);
uint64_t segment_header_checksum(const void *data, size_t bytes); /* of a header without its checksum */

#endif
