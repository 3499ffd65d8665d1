#include "kv/chunk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/memory.h"

struct kv_chunk *kv_chunk_create(uint32_t position)
{
    struct kv_chunk *chunk = mem_calloc(1, sizeof *chunk);
    if (!chunk)
        return NULL;
    chunk->references = 1;
    chunk->position = position;
    for (int i = 0; i < KV_LEVELS; i++)
        chunk->damage[i] = -1;
    return chunk;
}

void kv_chunk_release(struct kv_pool *pool, struct kv_chunk *chunk)
{
    if (!chunk || --chunk->references)
        return;
    assert(!chunk->writing); /* who writes it holds a reference */
    if (chunk->data)
        kv_pool_reclaim(pool, chunk->data, chunk->level);
    kv_chunk_forget_stored(pool, chunk);
    mem_free(chunk);
}

static int take(struct kv_chunk *chunk, void *data, uint8_t level, int code)
{
    if (!data)
        return code;
    chunk->data = data;
    chunk->level = level;
    return 0;
}

int kv_chunk_claim(struct kv_pool *pool, struct kv_chunk *chunk, uint8_t level)
{
    int code = -ENOMEM;
    assert(!chunk->data);
    void *data = kv_pool_claim(pool, level, &code);
    return take(chunk, data, level, code);
}

int kv_chunk_claim_unfilled(struct kv_pool *pool, struct kv_chunk *chunk, uint8_t level)
{
    int code = -ENOMEM;
    assert(!chunk->data);
    void *data = kv_pool_claim_unfilled(pool, level, &code);
    return take(chunk, data, level, code);
}

void kv_chunk_drop(struct kv_pool *pool, struct kv_chunk *chunk)
{
    assert(chunk->data && !chunk->locked && !chunk->writing); /* invariant 3 */
    if (kv_level_bits(chunk->stored_level) > kv_level_bits(chunk->level))
        kv_chunk_forget_stored(pool, chunk);
    kv_pool_reclaim(pool, chunk->data, chunk->level);
    chunk->data = NULL;
    chunk->level = 0;
}

int kv_chunk_lower(struct kv_pool *pool, struct kv_chunk *chunk, const void *lowered, uint8_t level)
{
    assert(chunk->data && !chunk->writing);
    void *data = kv_pool_exchange(pool, chunk->data, chunk->level, level);
    if (!data)
        return -ENOMEM;
    chunk->data = memcpy(data, lowered, kv_chunk_bytes(kv_pool_geometry(pool), level));
    chunk->level = level;
    return 0;
}

void kv_chunk_forget_stored(struct kv_pool *pool, struct kv_chunk *chunk)
{
    if (chunk->stored)
        kv_pool_release_stored(pool, chunk->stored);
    chunk->stored = NULL;
    chunk->stored_index = 0;
    chunk->stored_level = chunk->stored_tokens = 0;
}

bool kv_chunk_clean(const struct kv_chunk *chunk)
{
    return chunk->data && chunk->stored && chunk->stored_level == chunk->level &&
           chunk->stored_tokens == chunk->tokens;
}

double kv_chunk_density(const struct kv_chunk *chunk)
{
    return chunk->rows ? (double)chunk->received / (double)chunk->rows * 0x1p-18 : 0;
}
