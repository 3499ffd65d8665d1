/* The KV cache of one context: a row of chunks over positions 0 .. tokens - 1.
 *
 * Chunks are counted references, so a fork shares them, and contexts with the same beginning do; a chunk that
 * is shared is copied before it is written (only the last, partly filled one ever is). Chunks may be resident
 * or not (kv/chunk.h). Memory comes from a kv_pool and counts in its budget. Owned and touched by one thread,
 * the worker. */
#ifndef LLMS_KV_SEQUENCE_H
#define LLMS_KV_SEQUENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kv/chunk.h"

struct kv_sequence {
    struct kv_pool *pool;
    struct kv_chunk **chunks; /* chunk i covers positions 16 i .. 16 i + 15; none is NULL */
    size_t chunk_count;
    size_t chunk_capacity;
    size_t tokens; /* positions 0 .. tokens - 1 were computed; whether they are resident the chunks say */
};

void kv_sequence_init(struct kv_sequence *sequence, struct kv_pool *pool);
void kv_sequence_deinit(struct kv_sequence *sequence); /* lets go of all chunks */

/* Makes positions [sequence->tokens, end) writable at `level`: claims new chunks, copies a shared last one.
 * The last chunk, if partly filled, must be resident and at a level that can be written (16 or 8). All or
 * nothing, and the lock of a shared last chunk goes over to its copy: 0, -ENOMEM, -ENOSPC where the pool's
 * budget is exhausted (evict, then call again), -EINVAL for the rule just stated. */
int kv_sequence_reserve(struct kv_sequence *sequence, size_t end, uint8_t level);
/* Bytes that kv_sequence_reserve would claim. */
size_t kv_sequence_reserve_bytes(const struct kv_sequence *sequence, size_t end, uint8_t level);

/* Positions up to `tokens` now hold K and V: moves sequence->tokens and the chunks' own counts. */
void kv_sequence_advance(struct kv_sequence *sequence, size_t tokens);

/* Appends a chunk that exists (a reference is taken): sequence->tokens must be a multiple of 16 and
 * chunk->position, with nothing reserved behind, and the chunk not empty (else -EINVAL). The chunk counts as
 * computed. 0 or -ENOMEM. */
int kv_sequence_attach(struct kv_sequence *sequence, struct kv_chunk *chunk);

/* Keeps the first `tokens` positions and lets go of chunks behind them (0: of everything). A chunk cut in the
 * middle is not stored any more; if it is shared, not resident, or at a level that cannot be written on, this
 * sequence lets go of it too, and sequence->tokens is then the multiple of 16 before it. A chunk that others
 * hold keeps its lock: the running call takes its locks off before it truncates. */
void kv_sequence_truncate(struct kv_sequence *sequence, size_t tokens);

/* Makes `copy` (initialised, empty) hold the same chunks. 0 or -ENOMEM. */
int kv_sequence_share(struct kv_sequence *copy, const struct kv_sequence *sequence);

/* Resident bytes of its chunks that no other sequence holds. */
size_t kv_sequence_private_bytes(const struct kv_sequence *sequence);

#endif
