#include "kv/sequence.h"

#include <errno.h>
#include <string.h>

#include "base/memory.h"

void kv_sequence_init(struct kv_sequence *sequence, struct kv_pool *pool)
{
    *sequence = (struct kv_sequence){.pool = pool};
}

void kv_sequence_deinit(struct kv_sequence *sequence)
{
    kv_sequence_truncate(sequence, 0);
    mem_free(sequence->chunks);
    *sequence = (struct kv_sequence){.pool = sequence->pool};
}

static int room_for(struct kv_sequence *sequence, size_t chunks)
{
    if (chunks <= sequence->chunk_capacity)
        return 0;
    size_t capacity = chunks + chunks / 2 + 8;
    struct kv_chunk **grown = mem_realloc(sequence->chunks, capacity * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    sequence->chunks = grown;
    sequence->chunk_capacity = capacity;
    return 0;
}

/* The last chunk, if partly filled and to be written on. */
static struct kv_chunk **written_tail(const struct kv_sequence *sequence, size_t end)
{
    if (sequence->tokens % KV_CHUNK_TOKENS == 0 || end <= sequence->tokens)
        return NULL;
    return &sequence->chunks[sequence->tokens / KV_CHUNK_TOKENS];
}

size_t kv_sequence_reserve_bytes(const struct kv_sequence *sequence, size_t end, uint8_t level)
{
    const struct kv_geometry *geometry = kv_pool_geometry(sequence->pool);
    size_t need = kv_chunks_of(end), bytes = 0;
    if (need > sequence->chunk_count)
        bytes = (need - sequence->chunk_count) * kv_chunk_bytes(geometry, level);
    struct kv_chunk **tail = written_tail(sequence, end);
    return bytes +
           (tail && (*tail)->data && (*tail)->references > 1 ? kv_chunk_bytes(geometry, (*tail)->level) : 0);
}

/* A resident copy of a shared chunk, with one reference. It is not stored, and what lowering it would cost is
 * not known: it is about to be written on. */
static int copy_chunk(struct kv_pool *pool, const struct kv_chunk *chunk, struct kv_chunk **out)
{
    struct kv_chunk *copy = kv_chunk_create(chunk->position);
    if (!copy)
        return -ENOMEM;
    int code = kv_chunk_claim_unfilled(pool, copy, chunk->level);
    if (code < 0) {
        kv_chunk_release(pool, copy);
        return code;
    }
    memcpy(copy->data, chunk->data, kv_chunk_bytes(kv_pool_geometry(pool), chunk->level));
    copy->tokens = chunk->tokens;
    copy->received = chunk->received;
    copy->rows = chunk->rows;
    copy->last_used = chunk->last_used;
    copy->locked = chunk->locked;
    *out = copy;
    return 0;
}

int kv_sequence_reserve(struct kv_sequence *sequence, size_t end, uint8_t level)
{
    size_t need = kv_chunks_of(end), before = sequence->chunk_count;
    struct kv_chunk *copy = NULL;
    int code = room_for(sequence, need);
    if (code < 0)
        return code;
    struct kv_chunk **tail = written_tail(sequence, end);
    if (tail && (!(*tail)->data || kv_level_bits((*tail)->level) < 8))
        return -EINVAL;
    if (tail && (*tail)->references > 1 && (code = copy_chunk(sequence->pool, *tail, &copy)) < 0)
        return code;
    while (sequence->chunk_count < need) {
        struct kv_chunk *chunk = kv_chunk_create((uint32_t)(sequence->chunk_count * KV_CHUNK_TOKENS));
        code = chunk ? kv_chunk_claim(sequence->pool, chunk, level) : -ENOMEM;
        if (code < 0) {
            kv_chunk_release(sequence->pool, chunk);
            goto undo;
        }
        sequence->chunks[sequence->chunk_count++] = chunk;
    }
    if (copy) {
        (*tail)->locked = false; /* the running call's lock goes over to the copy */
        kv_chunk_release(sequence->pool, *tail);
        *tail = copy;
    }
    return 0;
undo:
    while (sequence->chunk_count > before)
        kv_chunk_release(sequence->pool, sequence->chunks[--sequence->chunk_count]);
    kv_chunk_release(sequence->pool, copy);
    return code;
}

void kv_sequence_advance(struct kv_sequence *sequence, size_t tokens)
{
    for (size_t c = sequence->tokens / KV_CHUNK_TOKENS; c < kv_chunks_of(tokens); c++) {
        size_t left = tokens - c * KV_CHUNK_TOKENS;
        sequence->chunks[c]->tokens = (uint8_t)(left < KV_CHUNK_TOKENS ? left : KV_CHUNK_TOKENS);
    }
    sequence->tokens = tokens;
}

int kv_sequence_attach(struct kv_sequence *sequence, struct kv_chunk *chunk)
{
    if (sequence->tokens % KV_CHUNK_TOKENS || sequence->chunk_count != sequence->tokens / KV_CHUNK_TOKENS ||
        chunk->position != sequence->tokens || chunk->tokens == 0)
        return -EINVAL;
    if (room_for(sequence, sequence->chunk_count + 1) < 0)
        return -ENOMEM;
    chunk->references++;
    sequence->chunks[sequence->chunk_count++] = chunk;
    sequence->tokens += chunk->tokens;
    return 0;
}

void kv_sequence_truncate(struct kv_sequence *sequence, size_t tokens)
{
    size_t keep = kv_chunks_of(tokens), inside = tokens % KV_CHUNK_TOKENS;
    if (inside && keep <= sequence->chunk_count && sequence->chunks[keep - 1]->tokens > inside) {
        struct kv_chunk *cut = sequence->chunks[keep - 1];
        if (cut->references > 1 ||
            kv_level_bits(cut->level) < 8) { /* not ours to cut, or not to be written on: computed again */
            tokens -= inside;
            keep--;
        } else {
            cut->tokens = (uint8_t)inside;
            kv_chunk_forget_stored(sequence->pool, cut);
        }
    }
    while (sequence->chunk_count > keep)
        kv_chunk_release(sequence->pool, sequence->chunks[--sequence->chunk_count]);
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
        if (sequence->chunks[i]->references == 1 && sequence->chunks[i]->data)
            bytes += kv_chunk_bytes(kv_pool_geometry(sequence->pool), sequence->chunks[i]->level);
    return bytes;
}
