/* Any bytes as a segment's header: refused, or everything it says lies inside the file.
 *
 * The first two bytes choose the layers and whether the checksum is made to match, without which nothing
 * past it would ever be reached. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "store/segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void demand(bool holds)
{
    if (!holds)
        abort();
}

static void walk(const struct segment_table *table, const struct chunk_geometry *geometry,
                 uint64_t file_bytes)
{
    demand(table->count >= 1 && table->layers == geometry->layers);
    demand(table->file_bytes == file_bytes && table->header_bytes % SEGMENT_ALIGN == 0);
    uint64_t at = 0;
    for (uint32_t i = 0; i < table->count; i++) {
        const struct segment_entry *entry = &table->entries[i];
        int level = chunk_level_index(entry->chunk.level);
        demand(level >= 0 && entry->slice_bytes == geometry->layer_bytes[level] && entry->slice_at == at);
        demand(entry->chunk.tokens >= 1 && entry->chunk.tokens <= SEGMENT_CHUNK_TOKENS);
        at += entry->slice_bytes;
    }
    demand(at <= table->layer_bytes);
    demand(table->header_bytes + table->layers * table->layer_bytes == file_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct chunk_geometry geometry = {1, {8192, 4160, 2112, 1712, 1296, 3072, 2064}};
    uint64_t file_bytes = 0, fingerprint = 0;
    if (bytes < 2 + SEGMENT_FIXED_BYTES)
        return 0;
    geometry.layers = 1 + data[0] % 4;
    bool mend = data[1] & 1;
    data += 2;
    bytes -= 2;
    size_t padded = (bytes + SEGMENT_ALIGN - 1) & ~(size_t)(SEGMENT_ALIGN - 1);
    uint8_t *header = aligned_alloc(64, padded);
    demand(header != NULL);
    memset(header, 0, padded);
    memcpy(header, data, bytes);
    memcpy(&fingerprint, header + 16, sizeof fingerprint);
    memcpy(&file_bytes, header + 24, sizeof file_bytes);
    uint32_t size;
    memcpy(&size, header + 12, sizeof size);
    if (mend && size > SEGMENT_FIXED_BYTES + 8 && size <= padded) {
        uint64_t checksum = segment_header_checksum(header, size - 8);
        memcpy(header + size - 8, &checksum, sizeof checksum);
    }
    struct segment_table *table = NULL;
    int code = segment_parse(header, padded, file_bytes, &geometry, fingerprint, &table);
    demand((code == 0) == (table != NULL));
    if (table) {
        uint8_t *again = aligned_alloc(64, padded);
        demand(again != NULL && table->header_bytes <= padded);
        walk(table, &geometry, file_bytes);
        segment_format(table, &geometry, again);
        demand(memcmp(again, header, size) == 0); /* the format has one way to say it */
        free(again);
    }
    mem_free(table);
    free(header);
    return 0;
}
