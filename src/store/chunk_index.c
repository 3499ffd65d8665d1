#include <errno.h>
#include <string.h>

#include "base/memory.h"
#include "store/chunkfile_internal.h"

enum { FIRST_BUCKETS = 1024 };

int chunk_index_init(struct chunk_index *index)
{
    index->count = 0;
    index->bucket_count = FIRST_BUCKETS;
    index->buckets = mem_calloc(index->bucket_count, sizeof *index->buckets);
    return index->buckets ? 0 : -ENOMEM;
}

void chunk_index_deinit(struct chunk_index *index)
{
    mem_free(index->buckets);
    *index = (struct chunk_index){0};
}

/* Keys are hashes: any of their bits will do. */
static struct segment_entry **bucket(struct segment_entry **buckets, size_t count,
                                     const struct chunk_key *key)
{
    uint64_t bits;
    memcpy(&bits, key->bytes, sizeof bits);
    return &buckets[bits & (count - 1)];
}

static void grow(struct chunk_index *index)
{
    size_t count = index->bucket_count * 2;
    struct segment_entry **buckets = mem_calloc(count, sizeof *buckets);
    if (!buckets)
        return; /* longer chains */
    for (size_t i = 0; i < index->bucket_count; i++)
        for (struct segment_entry *next, *entry = index->buckets[i]; entry; entry = next) {
            struct segment_entry **at = bucket(buckets, count, &entry->chunk.key);
            next = entry->next;
            entry->next = *at;
            *at = entry;
        }
    mem_free(index->buckets);
    index->buckets = buckets;
    index->bucket_count = count;
}

void chunk_index_add(struct chunk_index *index, struct segment *segment)
{
    for (uint32_t i = 0; i < segment->table->count; i++) {
        struct segment_entry *entry = &segment->table->entries[i];
        if (index->count >= index->bucket_count)
            grow(index);
        struct segment_entry **at = bucket(index->buckets, index->bucket_count, &entry->chunk.key);
        entry->segment = segment;
        entry->next = *at;
        *at = entry;
        index->count++;
    }
}

void chunk_index_remove_entry(struct chunk_index *index, struct segment_entry *entry)
{
    struct segment_entry **at = bucket(index->buckets, index->bucket_count, &entry->chunk.key);
    while (*at != entry)
        at = &(*at)->next;
    *at = entry->next;
    entry->segment = NULL;
    index->count--;
}

void chunk_index_remove(struct chunk_index *index, struct segment *segment)
{
    for (uint32_t i = 0; i < segment->table->count; i++) {
        struct segment_entry *entry = &segment->table->entries[i];
        if (entry->segment)
            chunk_index_remove_entry(index, entry);
    }
}

struct segment_entry *chunk_index_find(const struct chunk_index *index, const struct chunk_key *key)
{
    struct segment_entry *best = NULL;
    for (struct segment_entry *entry = *bucket(index->buckets, index->bucket_count, key); entry;
         entry = entry->next)
        if (memcmp(&entry->chunk.key, key, sizeof *key) == 0 &&
            (!best || entry->segment->number > best->segment->number))
            best = entry;
    return best;
}
