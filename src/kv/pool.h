/* Counted memory for KV chunks: the one place they are claimed from.
 *
 *   resident bytes = sum of the bytes of all chunks claimed and not given back  <=  budget   (invariant 2)
 *
 * The budget may be changed at any time; lowering it below what is resident makes every claim fail until
 * enough was given back. Not thread-safe, except kv_pool_resident and kv_pool_budget, which any thread may
 * read.
 *
 * Beside it up to 13 MiB that were given back are kept for the next claims, until the budget is lowered. */
#ifndef LLMS_KV_POOL_H
#define LLMS_KV_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "kv/geometry.h"

struct kv_pool;

int kv_pool_create(const struct kv_geometry *geometry, uint64_t budget_bytes, struct kv_pool **out);
void kv_pool_destroy(struct kv_pool *pool); /* all chunks must have been given back */
const struct kv_geometry *kv_pool_geometry(const struct kv_pool *pool);

/* A chunk's memory, zeroed: slots not written yet are read by whole-chunk kernels and must be finite. NULL:
 * *error is -ENOMEM or -ENOSPC. */
void *kv_pool_claim(struct kv_pool *pool, uint8_t level, int *error);
/* The same with any content: the caller writes all of it before anything reads it. */
void *kv_pool_claim_unfilled(struct kv_pool *pool, uint8_t level, int *error);
void kv_pool_reclaim(struct kv_pool *pool, void *data, uint8_t level);
/* Room at `to`, of no more bytes than `level`, in place of data, which is freed: fits however full the pool
 * is. NULL: out of memory, and data stays. */
void *kv_pool_exchange(struct kv_pool *pool, void *data, uint8_t level, uint8_t to);

/* What a chunk's `stored` is, and how it is let go of. */
void kv_pool_on_release(struct kv_pool *pool, void (*release)(void *argument, void *stored), void *argument);
void kv_pool_release_stored(struct kv_pool *pool, void *stored);

uint64_t kv_pool_resident(const struct kv_pool *pool); /* bytes */
uint64_t kv_pool_budget(const struct kv_pool *pool);   /* bytes */
void kv_pool_set_budget(struct kv_pool *pool, uint64_t budget_bytes);

#endif
