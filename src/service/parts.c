/* A context that is larger, as it is computed, than the budget, and smaller as its policy lowers it.
 *
 * K and V are computed at the write level and lowered after the call. Where what is missing or new does not
 * fit so, it is done in parts: up to a boundary of chunks, as far as fits beside what the context has in
 * memory; then its own full chunks are lowered, and on it goes. Between two passes only: then every chunk in
 * memory up to sequence->tokens holds content, and nothing is claimed that does not. What is on flash is read
 * rather than computed again at a higher level, unless a stress option says otherwise.
 *
 * What is lowered: no further than after a call, where that makes the room; else as far as the whole context
 * takes to fit. That it does fit at the lowest levels is known before anything is lowered or computed: a call
 * that is refused leaves the context at the levels it had. The worker's alone. */
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"
#include "base/memory.h"
#include "service/service_internal.h"

static uint64_t configured(struct service *service)
{
    pthread_mutex_lock(&service->lock);
    uint64_t budget = service->budget;
    pthread_mutex_unlock(&service->lock);
    return budget;
}

/* The level at which chunk i is, or comes back, at most. */
static uint8_t level_back(const struct turn *turn, size_t i)
{
    const struct service *service = turn->service;
    const struct kv_sequence *sequence = &turn->context->sequence;
    const struct kv_chunk *chunk = i < sequence->chunk_count ? sequence->chunks[i] : NULL;
    if (chunk && chunk->data)
        return chunk->level;
    bool read = chunk && chunk->stored && chunk->stored_tokens >= chunk->tokens && turn->tight &&
                service->plan_mode != PLAN_FORCED && service->plan_mode != PLAN_RECOMPUTE_ONLY;
    return read ? chunk->stored_level : service->kv_level;
}

/* What is in memory already, and what a copy of the last chunk takes that is shared and written on. */
static uint64_t held(const struct turn *turn, size_t end)
{
    const struct kv_sequence *sequence = &turn->context->sequence;
    const struct kv_geometry *geometry = kv_pool_geometry(sequence->pool);
    size_t whole = sequence->chunk_count * KV_CHUNK_TOKENS; /* to there nothing is claimed but a copy */
    uint64_t bytes = kv_sequence_reserve_bytes(sequence, end < whole ? end : whole, turn->service->kv_level);
    for (size_t i = 0; i < sequence->chunk_count; i++)
        if (sequence->chunks[i]->data)
            bytes += kv_chunk_bytes(geometry, sequence->chunks[i]->level);
    return bytes;
}

/* How far, at most to `end`, all fits the budget as it is now. */
static size_t reach(const struct turn *turn, size_t end)
{
    const struct kv_sequence *sequence = &turn->context->sequence;
    const struct kv_geometry *geometry = kv_pool_geometry(sequence->pool);
    uint64_t budget = configured(turn->service), bytes = held(turn, end);
    for (size_t i = 0; i < kv_chunks_of(end); i++) {
        if (i >= sequence->chunk_count || !sequence->chunks[i]->data)
            bytes += kv_chunk_bytes(geometry, level_back(turn, i));
        if (bytes > budget)
            return i * KV_CHUNK_TOKENS;
    }
    return end;
}

/* Whether a pass to `stop` brings a chunk that is not there yet. */
static bool brings(const struct kv_sequence *sequence, size_t stop)
{
    for (size_t i = 0; i < stop / KV_CHUNK_TOKENS; i++)
        if (i >= sequence->chunk_count || !sequence->chunks[i]->data)
            return true;
    return false;
}

static int out_of_memory(struct turn *turn)
{
    return error_set(&turn->result->error, -ENOMEM, "out of memory to lower the context");
}

/* 0 where the context to `end` fits the budget once it is lowered as far as it may be, one chunk at the level
 * it is computed at beside it; else -ENOSPC: nothing was changed. */
static int check(struct turn *turn, const struct lowering *lowering, size_t end)
{
    const struct kv_sequence *sequence = &turn->context->sequence;
    size_t count = kv_chunks_of(end), whole = sequence->chunk_count * KV_CHUNK_TOKENS;
    uint64_t budget = configured(turn->service);
    uint8_t *levels = mem_alloc(count);
    if (!levels)
        return out_of_memory(turn);
    for (size_t i = 0; i < count; i++)
        levels[i] = level_back(turn, i);
    int64_t least = lowering_least(lowering, levels, count);
    mem_free(levels);
    if (least < 0)
        return out_of_memory(turn);
    least += (int64_t)kv_sequence_reserve_bytes(sequence, end < whole ? end : whole, turn->service->kv_level);
    if ((uint64_t)least <= budget)
        return 0;
    return error_set(&turn->result->error, -ENOSPC,
                     "the KV budget of %" PRIu64 " bytes cannot hold this context alone: its %zu tokens take "
                     "%" PRId64 " at the lowest levels they may have",
                     budget, end, least);
}

/* Lowers what the context has in memory, chunk by chunk, until all to `end` fits or `ratio` is met. */
static int lower_own(struct turn *turn, const struct lowering *lowering, double ratio, size_t end)
{
    struct kv_sequence *sequence = &turn->context->sequence;
    struct kv_sequence content = {.pool = sequence->pool};
    struct levels_rules rules = *lowering->rules;
    struct lowering lower = *lowering;
    size_t count = kv_chunks_of(sequence->tokens);
    content.chunks = mem_calloc(count, sizeof(struct kv_chunk *));
    if (!content.chunks)
        return out_of_memory(turn);
    for (size_t i = 0; i < count; i++)
        if (sequence->chunks[i]->data) {
            content.chunks[content.chunk_count++] = sequence->chunks[i];
            sequence->chunks[i]->locked = false;
        }
    content.tokens = content.chunk_count * KV_CHUNK_TOKENS;
    rules.ratio = ratio;
    lower.rules = &rules;
    while (reach(turn, end) < end && lowering_step(&lower, &content))
        ;
    for (size_t i = 0; i < content.chunk_count; i++)
        content.chunks[i]->locked = true;
    mem_free(content.chunks);
    return 0;
}

/* How far the next pass goes: to `end`, or as far as lowering makes room for one chunk at least that is not
 * there yet. */
static int next_part(struct turn *turn, size_t end, size_t *stop)
{
    struct service *service = turn->service;
    struct kv_sequence *sequence = &turn->context->sequence;
    const struct lowering lowering = settle_lowering(service);
    turn->tight = false;
    if ((*stop = reach(turn, end)) == end)
        return 0;
    turn->tight = true;
    if ((*stop = reach(turn, end)) == end)
        return 0;
    int code = check(turn, &lowering, end);
    if (code < 0)
        return code;
    kv_sequence_truncate(sequence, sequence->tokens); /* reserved by a pass that failed */
    swapout_finish(service, true);                    /* what is being written keeps its level */
    for (double ratio = lowering_ratio(&lowering, kv_chunks_of(end), configured(service));;
         ratio = ratio > 0.1 ? ratio * 3 / 4 : 0) {
        if ((code = lower_own(turn, &lowering, ratio, end)) < 0)
            return code;
        if ((*stop = reach(turn, end)) == end || brings(sequence, *stop))
            break;
        if (ratio == 0)
            return out_of_memory(turn); /* it would have fitted */
    }
    if (*stop < end)
        log_debug("%s is computed to token %zu of %zu, then lowered", turn->context->id, *stop, end);
    return 0;
}

/* It ends: each time around at least one more chunk holds content, which stays in memory to the end of the
 * call (invariant 3), or one more copy on flash is lost (-EBADMSG), or the owner has changed the budget, or
 * it was the last. */
int parts_restore(struct turn *turn, size_t end, bool logits)
{
    const struct kv_sequence *sequence = &turn->context->sequence;
    uint64_t budget;
    size_t stop = 0;
    int code;
    turn->result->chunks_resident = 0;
    for (size_t i = 0; i < kv_chunks_of(sequence->tokens); i++)
        turn->result->chunks_resident += sequence->chunks[i]->data != NULL;
    do {
        budget = configured(turn->service);
        code = next_part(turn, end, &stop);
        if (code == 0)
            code = restore_pass(turn, stop, logits && stop == end);
    } while (code == -EBADMSG || (code == 0 && stop < end) ||
             (code == -ENOSPC && budget != configured(turn->service)));
    return code == -ECANCELED ? turn_cancelled(turn) : code;
}

int parts_reserve(struct turn *turn, size_t end)
{
    struct service *service = turn->service;
    struct context *context = turn->context;
    uint64_t budget;
    size_t stop;
    int code = 0;
    do {
        budget = configured(service);
        if (kv_sequence_reserve_bytes(&context->sequence, end, service->kv_level))
            code = next_part(turn, end, &stop);
        if (code == 0)
            code = residency_reserve(service, context, end, &turn->result->error);
    } while (code == -ENOSPC && budget != configured(service));
    return code;
}
