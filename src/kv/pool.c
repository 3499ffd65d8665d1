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
    struct spares {
        struct spare *first;
        size_t each, count; /* bytes of a block, blocks */
    } spares[KV_TAGS];
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

static struct spare *pop(struct spares *spares)
{
    struct spare *block = spares->first;
    if (!block)
        return NULL;
    spares->first = block->next;
    spares->count--;
    return block;
}

/* The bytes of a level are its own: a spare block of one serves no other. */
static void *take(struct kv_pool *pool, uint8_t level)
{
    struct spare *block = pop(&pool->spares[index_of(level)]);
    return block ? block : mem_aligned(64, kv_chunk_bytes(&pool->geometry, level));
}

/* Makes room for one more spare block by giving up such as the level that has most of them has, so that what
 * one time left in plenty (8 bits, after a long prompt was lowered) does not keep out what is needed again
 * and again. False: the block's own level has most. */
static bool spare_room(struct kv_pool *pool, const struct spares *own, size_t bytes)
{
    for (;;) {
        struct spares *most = NULL;
        uint64_t all = 0;
        for (struct spares *s = pool->spares; s < pool->spares + KV_TAGS; s++) {
            all += s->count * s->each;
            most = !most || s->count * s->each > most->count * most->each ? s : most;
        }
        if (all + bytes <= SPARE_MOST)
            return true;
        if (most == own || !most->count)
            return false;
        mem_free(pop(most));
    }
}

static void give(struct kv_pool *pool, void *data, uint8_t level)
{
    struct spares *spares = &pool->spares[index_of(level)];
    struct spare *block = data;
    spares->each = kv_chunk_bytes(&pool->geometry, level);
    if (spares->each < LARGE || !spare_room(pool, spares, spares->each)) {
        mem_free(data);
        return;
    }
    block->next = spares->first;
    spares->first = block;
    spares->count++;
}

static void free_spares(struct kv_pool *pool)
{
    for (size_t i = 0; i < KV_TAGS; i++)
        for (struct spare *block; (block = pop(&pool->spares[i]));)
            mem_free(block);
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
