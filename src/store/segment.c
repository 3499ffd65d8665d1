#include "store/segment.h"

#include <errno.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

static const char magic[8] = "LLMS-KV\n";

enum { VERSION = 3, CHECKSUM_BYTES = 8 };

/* Offsets in the fixed part and in a chunk's entry: docs/FORMATS.md. */
enum {
    AT_VERSION = 8,
    AT_HEADER_BYTES = 12,
    AT_FINGERPRINT = 16,
    AT_FILE_BYTES = 24,
    AT_COUNT = 32,
    AT_LAYERS = 36,
    AT_LAYER_BYTES = 40,
    AT_RESERVED = 68,
    ENTRY_RECEIVED = 16,
    ENTRY_ROWS = 24,
    ENTRY_LEVEL = 32,
    ENTRY_TOKENS = 33,
    ENTRY_RESERVED = 34,
    ENTRY_RESERVED_BYTES = 6
};

static uint64_t pad(uint64_t bytes)
{
    return (bytes + SEGMENT_ALIGN - 1) & ~(uint64_t)(SEGMENT_ALIGN - 1);
}

static uint32_t get32(const uint8_t *p)
{
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static void put32(uint8_t *p, uint32_t value)
{
    memcpy(p, &value, sizeof value);
}

static void put64(uint8_t *p, uint64_t value)
{
    memcpy(p, &value, sizeof value);
}

const uint8_t chunk_levels[CHUNK_LEVELS] = {16, 8, 4, 3, 2, 64 | 4, 64 | 2};

int chunk_level_index(uint8_t level)
{
    for (int i = 0; i < CHUNK_LEVELS; i++)
        if (chunk_levels[i] == level)
            return i;
    return -1;
}

bool chunk_geometry_valid(const struct chunk_geometry *geometry)
{
    for (int i = 0; i < CHUNK_LEVELS; i++)
        if (geometry->layer_bytes[i] == 0 || geometry->layer_bytes[i] > SEGMENT_MAX_LAYER_BYTES)
            return false;
    return geometry->layers >= 1 && geometry->layers <= SEGMENT_MAX_LAYERS;
}

/* Without padding. */
static uint64_t header_size(uint64_t count, uint64_t layers)
{
    return SEGMENT_FIXED_BYTES + count * (SEGMENT_ENTRY_BYTES + CHECKSUM_BYTES * layers) + CHECKSUM_BYTES;
}

static bool chunk_valid(const struct segment_chunk *chunk)
{
    return chunk_level_index(chunk->level) >= 0 && chunk->tokens >= 1 &&
           chunk->tokens <= SEGMENT_CHUNK_TOKENS;
}

/* An empty table with room for its entries and checksums. */
static struct segment_table *table_alloc(const struct chunk_geometry *geometry, uint64_t fingerprint,
                                         size_t count)
{
    size_t entries = count * sizeof(struct segment_entry);
    struct segment_table *table =
        mem_calloc(1, sizeof *table + entries + count * geometry->layers * sizeof *table->checksums);
    if (!table)
        return NULL;
    table->checksums = (uint64_t *)((char *)table->entries + entries);
    table->header_bytes = pad(header_size(count, geometry->layers));
    table->seed = fingerprint;
    table->count = (uint32_t)count;
    table->layers = geometry->layers;
    return table;
}

/* Sizes and offsets, from the entries' levels. */
static void lay_out(struct segment_table *table, const struct chunk_geometry *geometry)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < table->count; i++) {
        struct segment_entry *entry = &table->entries[i];
        entry->slice_at = at;
        entry->slice_bytes = geometry->layer_bytes[chunk_level_index(entry->chunk.level)];
        at += entry->slice_bytes;
    }
    table->layer_bytes = pad(at);
    table->file_bytes = table->header_bytes + table->layers * table->layer_bytes;
}

int segment_table_create(const struct chunk_geometry *geometry, uint64_t fingerprint,
                         const struct segment_chunk *chunks, size_t count, struct segment_table **out)
{
    if (count == 0 || count > SEGMENT_MAX_CHUNKS)
        return -EINVAL;
    for (size_t i = 0; i < count; i++)
        if (!chunk_valid(&chunks[i]))
            return -EINVAL;
    struct segment_table *table = table_alloc(geometry, fingerprint, count);
    if (!table)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        table->entries[i].chunk = chunks[i];
        table->entries[i].chunk.data = NULL;
    }
    lay_out(table, geometry);
    *out = table;
    return 0;
}

uint64_t segment_header_checksum(const void *data, size_t bytes)
{
    return hash_bulk(data, bytes, VERSION);
}

void segment_format(const struct segment_table *table, const struct chunk_geometry *geometry, void *header)
{
    uint8_t *p = header;
    size_t bytes = header_size(table->count, table->layers);
    memset(p, 0, table->header_bytes);
    memcpy(p, magic, sizeof magic);
    put32(p + AT_VERSION, VERSION);
    put32(p + AT_HEADER_BYTES, (uint32_t)bytes);
    put64(p + AT_FINGERPRINT, table->seed);
    put64(p + AT_FILE_BYTES, table->file_bytes);
    put32(p + AT_COUNT, table->count);
    put32(p + AT_LAYERS, table->layers);
    for (int i = 0; i < CHUNK_LEVELS; i++)
        put32(p + AT_LAYER_BYTES + 4 * i, geometry->layer_bytes[i]);
    p += SEGMENT_FIXED_BYTES;
    for (uint32_t i = 0; i < table->count; i++) {
        const struct segment_chunk *chunk = &table->entries[i].chunk;
        memcpy(p, chunk->key.bytes, sizeof chunk->key.bytes);
        put64(p + ENTRY_RECEIVED, chunk->received);
        put64(p + ENTRY_ROWS, chunk->rows);
        p[ENTRY_LEVEL] = chunk->level;
        p[ENTRY_TOKENS] = chunk->tokens;
        p += SEGMENT_ENTRY_BYTES;
        memcpy(p, table->checksums + (size_t)i * table->layers, table->layers * sizeof *table->checksums);
        p += table->layers * sizeof *table->checksums;
    }
    put64(p, segment_header_checksum(header, bytes - CHECKSUM_BYTES));
}

uint64_t segment_header_bytes(const void *data, uint64_t file_bytes)
{
    const uint8_t *p = data;
    uint64_t bytes = get32(p + AT_HEADER_BYTES);
    uint32_t count = get32(p + AT_COUNT), layers = get32(p + AT_LAYERS);
    if (memcmp(p, magic, sizeof magic) != 0 || count == 0 || count > SEGMENT_MAX_CHUNKS || layers == 0 ||
        layers > SEGMENT_MAX_LAYERS || bytes != header_size(count, layers) || pad(bytes) >= file_bytes)
        return 0;
    return pad(bytes);
}

/* Whether the header is one that this program and model wrote, going by its fixed part: -ESTALE; or -EBADMSG:
 * nobody did. */
static int check_fixed(const uint8_t *p, const struct chunk_geometry *geometry, uint64_t fingerprint)
{
    if (get32(p + AT_VERSION) != VERSION || get64(p + AT_FINGERPRINT) != fingerprint ||
        get32(p + AT_LAYERS) != geometry->layers)
        return -ESTALE;
    for (int i = 0; i < CHUNK_LEVELS; i++)
        if (get32(p + AT_LAYER_BYTES + 4 * i) != geometry->layer_bytes[i])
            return -ESTALE;
    return get32(p + AT_RESERVED) == 0 ? 0 : -EBADMSG;
}

static bool parse_entry(const uint8_t *p, struct segment_chunk *chunk)
{
    static const uint8_t zeros[ENTRY_RESERVED_BYTES];
    memcpy(chunk->key.bytes, p, sizeof chunk->key.bytes);
    chunk->received = get64(p + ENTRY_RECEIVED);
    chunk->rows = get64(p + ENTRY_ROWS);
    chunk->level = p[ENTRY_LEVEL];
    chunk->tokens = p[ENTRY_TOKENS];
    return chunk_valid(chunk) && memcmp(p + ENTRY_RESERVED, zeros, sizeof zeros) == 0;
}

int segment_parse(const void *data, size_t bytes, uint64_t file_bytes, const struct chunk_geometry *geometry,
                  uint64_t fingerprint, struct segment_table **out)
{
    const uint8_t *p = data;
    if (bytes < SEGMENT_ALIGN || segment_header_bytes(p, file_bytes) == 0 ||
        segment_header_bytes(p, file_bytes) > bytes)
        return -EBADMSG;
    size_t size = get32(p + AT_HEADER_BYTES);
    if (get64(p + size - CHECKSUM_BYTES) != segment_header_checksum(p, size - CHECKSUM_BYTES))
        return -EBADMSG;
    int code = check_fixed(p, geometry, fingerprint);
    if (code < 0)
        return code;
    struct segment_table *table = table_alloc(geometry, fingerprint, get32(p + AT_COUNT));
    if (!table)
        return -ENOMEM;
    p += SEGMENT_FIXED_BYTES;
    for (uint32_t i = 0; i < table->count; i++) {
        if (!parse_entry(p, &table->entries[i].chunk))
            goto damaged;
        p += SEGMENT_ENTRY_BYTES;
        memcpy(table->checksums + (size_t)i * table->layers, p, table->layers * sizeof *table->checksums);
        p += table->layers * sizeof *table->checksums;
    }
    lay_out(table, geometry);
    if (table->file_bytes != file_bytes || table->file_bytes != get64((const uint8_t *)data + AT_FILE_BYTES))
        goto damaged;
    *out = table;
    return 0;
damaged:
    mem_free(table);
    return -EBADMSG;
}
