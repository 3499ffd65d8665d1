/* The KV cache of one context: a row of chunks over positions 0 .. tokens - 1.
 *
 * Chunks are counted references, so a fork shares them; a chunk that is shared is copied before it is written
 * (only the last, partly filled one ever is). Memory comes from a kv_pool and counts in its budget. Owned and
 * touched by one thread, the worker. */
#ifndef LLMS_KV_SEQUENCE_H
#define LLMS_KV_SEQUENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kv/pool.h"

struct kv_chunk {
    void *data;          /* layers x kv_layer_bytes(level) */
    uint32_t references; /* sequences that hold it */
    uint8_t level;
};

struct kv_sequence {
    struct kv_pool *pool;
    struct kv_chunk **chunks; /* kv_chunks_of(reserved tokens); NULL where missing */
    size_t chunk_count;
    size_t chunk_capacity;
    size_t tokens; /* positions 0 .. tokens - 1 hold valid K and V */
};

void kv_sequence_init(struct kv_sequence *sequence, struct kv_pool *pool);
void kv_sequence_deinit(struct kv_sequence *sequence); /* drops all chunks */

/* Makes positions [sequence->tokens, end) writable at `level`: claims new chunks, copies a shared last one.
 * All or nothing: 0, -ENOMEM, or -ENOSPC where the pool's budget is exhausted (evict, then call again). */
int kv_sequence_reserve(struct kv_sequence *sequence, size_t end, uint8_t level);
/* Bytes that kv_sequence_reserve would claim. */
size_t kv_sequence_reserve_bytes(const struct kv_sequence *sequence, size_t end, uint8_t level);

/* Keeps the first `tokens` positions and gives back chunks behind them (0 drops everything). */
void kv_sequence_truncate(struct kv_sequence *sequence, size_t tokens);

/* Makes `copy` (initialised, empty) hold the same chunks. 0 or -ENOMEM. */
int kv_sequence_share(struct kv_sequence *copy, const struct kv_sequence *sequence);

/* Bytes of its chunks that no other sequence holds: what dropping it frees. */
size_t kv_sequence_private_bytes(const struct kv_sequence *sequence);

#endif
