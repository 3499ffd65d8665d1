/* One chunk: where it is, at which level, and how much attention it gets.
 *
 *   resident: data != NULL; data holds slots 0 .. tokens - 1 at `level`
 *   stored:   stored != NULL; a copy of stored_tokens slots at stored_level lies on flash
 *   clean:    resident, and the copy has the same level and tokens; no I/O to drop it
 *   lost:     neither; its K and V are recomputed from the context's tokens (invariant 6)
 * A copy of fewer tokens than the chunk has now is of no use to a restore.
 *
 * density (Eq. 1) = received / rows x 2^-18: `received` sums, over layers, heads and the query rows that
 * could see them, the probabilities its tokens were given (attention.h's units); `rows` counts those (token,
 * row, head, layer).
 *
 * Counted references: sequences that hold it, and whoever writes it to flash: a chunk that is being written
 * (writing) keeps its data until that ends, and a sequence that goes on in it copies it, as if it were
 * shared. Owned and touched by one thread, the worker. */
#ifndef LLMS_KV_CHUNK_H
#define LLMS_KV_CHUNK_H

#include <stdbool.h>
#include <stdint.h>

#include "kv/pool.h"

struct kv_chunk {
    void *data;
    uint32_t references;
    uint32_t position; /* of its first token */
    uint8_t level;     /* of data; 0 while not resident */
    uint8_t tokens;    /* slots filled, 0 .. 16 */
    uint8_t stored_level;
    uint8_t stored_tokens;
    bool locked;  /* of the running call (invariant 3) */
    bool writing; /* a swap-out reads data */
    void *stored; /* the pool's owner knows what it is; released through kv_pool_on_release */
    uint32_t stored_index;
    uint64_t received, rows;
    uint64_t last_used;
    uint64_t mark;            /* for walks that must see a shared chunk once */
    double damage[KV_LEVELS]; /* squared error measured when lowered to 16, 8, 4, 3, 2 bits; negative: not
                                 known */
    double damage_keys;       /* K's share of that at 4 bits, where it is known */
};

struct kv_chunk *kv_chunk_create(uint32_t position); /* lost, one reference; NULL: out of memory */
void kv_chunk_release(struct kv_pool *pool, struct kv_chunk *chunk);             /* NULL is fine */
int kv_chunk_claim(struct kv_pool *pool, struct kv_chunk *chunk, uint8_t level); /* data; -ENOMEM, -ENOSPC */
/* The same where all of the data is going to be written before anything reads it. */
int kv_chunk_claim_unfilled(struct kv_pool *pool, struct kv_chunk *chunk, uint8_t level);
/* Its data; not locked, not writing. A copy from before it was lowered is forgotten, so that what comes back
 * is never at a higher level but by recompute (invariant 5). */
void kv_chunk_drop(struct kv_pool *pool, struct kv_chunk *chunk);
/* A copy of `lowered`, its content at a lower level, takes the place of the chunk's data. -ENOMEM: it stays.
 */
int kv_chunk_lower(struct kv_pool *pool, struct kv_chunk *chunk, const void *lowered, uint8_t level);
void kv_chunk_forget_stored(struct kv_pool *pool, struct kv_chunk *chunk);
bool kv_chunk_clean(const struct kv_chunk *chunk);
double kv_chunk_density(const struct kv_chunk *chunk); /* 0 before anything was gathered */

#endif
