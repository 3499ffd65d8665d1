#include "kv/sequence.h"

#include <errno.h>
#include <string.h>

#include "base/memory.h"

void kv_sequence_init(struct kv_sequence *sequence, struct kv_pool *pool)
{
    *sequence = (struct kv_sequence){.pool = pool};
}

static void release(struct kv_pool *pool, struct kv_chunk *chunk)
{
    if (!chunk || --chunk->references)
        return;
    kv_pool_reclaim(pool, chunk->data, chunk->level);
    mem_free(chunk);
}

static int claim(struct kv_pool *pool, uint8_t level, struct kv_chunk **out)
{
    int code = -ENOMEM;
    struct kv_chunk *chunk = mem_alloc(sizeof *chunk);
    if (!chunk)
        return -ENOMEM;
    void *data = kv_pool_claim(pool, level, &code);
    if (!data) {
        mem_free(chunk);
        return code;
    }
    *chunk = (struct kv_chunk){data, 1, level};
    *out = chunk;
    return 0;
}

void kv_sequence_deinit(struct kv_sequence *sequence)
{
    kv_sequence_truncate(sequence, 0);
    mem_free(sequence->chunks);
    *sequence = (struct kv_sequence){.pool = sequence->pool};
}

/* The last chunk, if new tokens would be written into it while another sequence holds it too. */
static struct kv_chunk **shared_tail(const struct kv_sequence *sequence, size_t end)
{
    if (sequence->tokens % KV_CHUNK_TOKENS == 0 || end <= sequence->tokens)
        return NULL;
    struct kv_chunk **tail = &sequence->chunks[sequence->tokens / KV_CHUNK_TOKENS];
    return (*tail)->references > 1 ? tail : NULL;
}

size_t kv_sequence_reserve_bytes(const struct kv_sequence *sequence, size_t end, uint8_t level)
{
    const struct kv_geometry *geometry = kv_pool_geometry(sequence->pool);
    size_t need = kv_chunks_of(end), bytes = 0;
    if (need > sequence->chunk_count)
        bytes = (need - sequence->chunk_count) * kv_chunk_bytes(geometry, level);
    struct kv_chunk **tail = shared_tail(sequence, end);
    return bytes + (tail ? kv_chunk_bytes(geometry, (*tail)->level) : 0);
}

int kv_sequence_reserve(struct kv_sequence *sequence, size_t end, uint8_t level)
{
    size_t need = kv_chunks_of(end), before = sequence->chunk_count;
    struct kv_chunk *copy = NULL;
    int code = 0;
    if (need > sequence->chunk_capacity) {
        size_t capacity = need + need / 2 + 8;
        struct kv_chunk **chunks = mem_realloc(sequence->chunks, capacity * sizeof *chunks);
        if (!chunks)
            return -ENOMEM;
        sequence->chunks = chunks;
        sequence->chunk_capacity = capacity;
    }
    struct kv_chunk **tail = shared_tail(sequence, end);
    if (tail) {
        code = claim(sequence->pool, (*tail)->level, &copy);
        if (code < 0)
            return code;
    }
    while (sequence->chunk_count < need) {
        code = claim(sequence->pool, level, &sequence->chunks[sequence->chunk_count]);
        if (code < 0)
            goto undo;
        sequence->chunk_count++;
    }
    if (copy) {
        memcpy(copy->data, (*tail)->data, kv_chunk_bytes(kv_pool_geometry(sequence->pool), copy->level));
        release(sequence->pool, *tail);
        *tail = copy;
    }
    return 0;
undo:
    while (sequence->chunk_count > before)
        release(sequence->pool, sequence->chunks[--sequence->chunk_count]);
    release(sequence->pool, copy);
    return code;
}

void kv_sequence_truncate(struct kv_sequence *sequence, size_t tokens)
{
    size_t keep = kv_chunks_of(tokens);
    while (sequence->chunk_count > keep)
        release(sequence->pool, sequence->chunks[--sequence->chunk_count]);
    if (sequence->tokens > tokens)
        sequence->tokens = tokens;
}

int kv_sequence_share(struct kv_sequence *copy, const struct kv_sequence *sequence)
{
    size_t count = kv_chunks_of(sequence->tokens);
    struct kv_chunk **chunks = mem_alloc((count + 8) * sizeof *chunks);
    if (!chunks)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        chunks[i] = sequence->chunks[i];
        chunks[i]->references++;
    }
    copy->chunks = chunks;
    copy->chunk_count = count;
    copy->chunk_capacity = count + 8;
    copy->tokens = sequence->tokens;
    return 0;
}

size_t kv_sequence_private_bytes(const struct kv_sequence *sequence)
{
    size_t bytes = 0;
    for (size_t i = 0; i < sequence->chunk_count; i++)
        if (sequence->chunks[i]->references == 1)
            bytes += kv_chunk_bytes(kv_pool_geometry(sequence->pool), sequence->chunks[i]->level);
    return bytes;
}
