#include "kv/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct kv_pool {
    struct kv_geometry geometry;
    _Atomic uint64_t resident; /* bytes claimed and not given back */
    _Atomic uint64_t budget;   /* bytes */
    void (*release)(void *argument, void *stored);
    void *release_argument;
};

int kv_pool_create(const struct kv_geometry *geometry, uint64_t budget_bytes, struct kv_pool **out)
{
    struct kv_pool *pool = mem_calloc(1, sizeof *pool);
    if (!pool)
        return -ENOMEM;
    pool->geometry = *geometry;
    atomic_store(&pool->budget, budget_bytes);
    *out = pool;
    return 0;
}

void kv_pool_destroy(struct kv_pool *pool)
{
    if (!pool)
        return;
    if (atomic_load(&pool->resident) !=
        0) /* a chunk outlived its pool: a bug that would corrupt memory later */
        abort();
    mem_free(pool);
}

const struct kv_geometry *kv_pool_geometry(const struct kv_pool *pool)
{
    return &pool->geometry;
}

void *kv_pool_claim_unfilled(struct kv_pool *pool, uint8_t level, int *error)
{
    uint64_t bytes = kv_chunk_bytes(&pool->geometry, level);
    uint64_t resident = atomic_load(&pool->resident), budget = atomic_load(&pool->budget);
    if (resident > budget || bytes > budget - resident) {
        *error = -ENOSPC;
        return NULL;
    }
    void *data = mem_aligned(64, bytes);
    if (!data) {
        *error = -ENOMEM;
        return NULL;
    }
    atomic_fetch_add(&pool->resident, bytes);
    return data;
}

void *kv_pool_claim(struct kv_pool *pool, uint8_t level, int *error)
{
    void *data = kv_pool_claim_unfilled(pool, level, error);
    return data ? memset(data, 0, kv_chunk_bytes(&pool->geometry, level)) : NULL;
}

void kv_pool_reclaim(struct kv_pool *pool, void *data, uint8_t level)
{
    atomic_fetch_sub(&pool->resident, kv_chunk_bytes(&pool->geometry, level));
    mem_free(data);
}

void *kv_pool_exchange(struct kv_pool *pool, void *data, uint8_t level, uint8_t to)
{
    uint64_t before = kv_chunk_bytes(&pool->geometry, level), bytes = kv_chunk_bytes(&pool->geometry, to);
    assert(bytes <= before);
    void *smaller = mem_aligned(64, bytes);
    if (!smaller)
        return NULL;
    mem_free(data);
    atomic_fetch_sub(&pool->resident, before - bytes);
    return smaller;
}

void kv_pool_on_release(struct kv_pool *pool, void (*release)(void *argument, void *stored), void *argument)
{
    pool->release = release;
    pool->release_argument = argument;
}

void kv_pool_release_stored(struct kv_pool *pool, void *stored)
{
    if (pool->release)
        pool->release(pool->release_argument, stored);
}

uint64_t kv_pool_resident(const struct kv_pool *pool)
{
    return atomic_load(&pool->resident);
}

uint64_t kv_pool_budget(const struct kv_pool *pool)
{
    return atomic_load(&pool->budget);
}

void kv_pool_set_budget(struct kv_pool *pool, uint64_t budget_bytes)
{
    atomic_store(&pool->budget, budget_bytes);
}
