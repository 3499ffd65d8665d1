#include "kv/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Large blocks that were given back are kept for the next claims, up to so many bytes of them: fresh memory
 * costs a page fault for every 4 KiB, which a switch would wait for. Small ones are the heap's to keep. */
static const size_t LARGE = 64 << 10;
static const uint64_t SPARE_MOST = 13 << 20;

enum { KV_TAGS = KV_LEVELS + 2 }; /* places of index_of */

struct spare {
    struct spare *next;
};

struct kv_pool {
    struct kv_geometry geometry;
    struct spare *spares[KV_TAGS];
    uint64_t spare_bytes;
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

static size_t index_of(uint8_t level)
{
    if (level & KV_PAPER)
        return kv_level_bits(level) == 4 ? KV_LEVELS : KV_LEVELS + 1;
    return kv_level_index(level);
}

/* The bytes of a level are its own: a spare block of one serves no other. */
static void *take(struct kv_pool *pool, uint8_t level)
{
    size_t bytes = kv_chunk_bytes(&pool->geometry, level);
    struct spare **list = &pool->spares[index_of(level)], *block = *list;
    if (!block)
        return mem_aligned(64, bytes);
    *list = block->next;
    pool->spare_bytes -= bytes;
    return block;
}

static void give(struct kv_pool *pool, void *data, uint8_t level)
{
    size_t bytes = kv_chunk_bytes(&pool->geometry, level);
    struct spare *block = data;
    if (bytes < LARGE || pool->spare_bytes + bytes > SPARE_MOST) {
        mem_free(data);
        return;
    }
    block->next = pool->spares[index_of(level)];
    pool->spares[index_of(level)] = block;
    pool->spare_bytes += bytes;
}

static void free_spares(struct kv_pool *pool)
{
    for (size_t i = 0; i < KV_TAGS; i++)
        for (struct spare *next, *block = pool->spares[i]; block; block = next) {
            next = block->next;
            mem_free(block);
        }
    memset(pool->spares, 0, sizeof pool->spares);
    pool->spare_bytes = 0;
}

void kv_pool_destroy(struct kv_pool *pool)
{
    if (!pool)
        return;
    free_spares(pool);
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
    void *data = take(pool, level);
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
    give(pool, data, level);
}

void *kv_pool_exchange(struct kv_pool *pool, void *data, uint8_t level, uint8_t to)
{
    uint64_t before = kv_chunk_bytes(&pool->geometry, level), bytes = kv_chunk_bytes(&pool->geometry, to);
    assert(bytes <= before);
    void *smaller = take(pool, to);
    if (!smaller)
        return NULL;
    give(pool, data, level);
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
    if (budget_bytes < atomic_load(&pool->budget))
        free_spares(pool); /* somebody wants memory */
    atomic_store(&pool->budget, budget_bytes);
}
