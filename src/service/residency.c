/* Which chunks are in memory. The worker's alone; others see what context_publish tells.
 *
 * The list holds every context that has a chunk in memory, the running one too. What leaves memory first is
 * decided by kv/evict.h; the policy says whether chunks go one by one or a whole context at once, and whether
 * they must be on flash before. */
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"
#include "base/memory.h"
#include "service/service_internal.h"

void residency_enter(struct service *service, struct context *context)
{
    context->last_used = ++service->tick;
    pthread_mutex_lock(&service->lock);
    bool known = context->resident;
    context->resident = true;
    pthread_mutex_unlock(&service->lock);
    if (known)
        return;
    context->next_resident = service->resident;
    service->resident = context;
}

static void leave(struct service *service, struct context *context)
{
    struct context **link = &service->resident;
    if (context->unsaved)
        share_files(service, context);
    while (*link != context)
        link = &(*link)->next_resident;
    *link = context->next_resident;
    pthread_mutex_lock(&service->lock);
    context_forget(service, context);
    pthread_mutex_unlock(&service->lock);
}

static bool holds_data(const struct context *context)
{
    for (size_t i = 0; i < context->sequence.chunk_count; i++)
        if (context->sequence.chunks[i]->data)
            return true;
    return false;
}

void residency_settle(struct service *service, struct context *context)
{
    struct kv_sequence *sequence = &context->sequence;
    kv_sequence_truncate(sequence, sequence->tokens); /* chunks reserved and not used */
    context->last_used = ++service->tick;
    context->unsaved = true;
    for (size_t i = 0; i < sequence->chunk_count; i++) {
        sequence->chunks[i]->locked = false;
        sequence->chunks[i]->last_used = context->last_used;
    }
    if (holds_data(context))
        context_publish(service, context);
    else
        leave(service, context);
}

/* Drops what was deleted: it is gone for good and costs nothing to lose. True if there was any. */
static bool drop_deleted(struct service *service)
{
    bool any = false;
    for (struct context *context = service->resident, *next; context; context = next) {
        next = context->next_resident;
        pthread_mutex_lock(&service->lock);
        bool gone = context->deleted && context->jobs == 0;
        pthread_mutex_unlock(&service->lock);
        if (!gone)
            continue;
        kv_sequence_truncate(&context->sequence, 0);
        leave(service, context);
        any = true;
    }
    return any;
}

/* ---- eviction ---- */

static void drop(struct service *service, struct kv_chunk *chunk)
{
    uint64_t bytes = kv_chunk_bytes(kv_pool_geometry(service->pool), chunk->level);
    if (chunk->stored && kv_level_bits(chunk->stored_level) >
                             kv_level_bits(chunk->level)) /* invariant 5: never to be found again */
        segment_withdraw(service->store, chunk->stored, chunk->stored_index);
    kv_chunk_drop(service->pool, chunk);
    pthread_mutex_lock(&service->lock);
    service->status.evicted_bytes_total += bytes;
    pthread_mutex_unlock(&service->lock);
}

/* Tells of what the contexts hold now, and takes those off the list that hold nothing. */
static void publish_all(struct service *service)
{
    for (struct context *context = service->resident, *next; context; context = next) {
        next = context->next_resident;
        pthread_mutex_lock(&service->lock);
        bool used = context->jobs > 0;
        pthread_mutex_unlock(&service->lock);
        if (used || holds_data(context))
            context_publish(service, context);
        else
            leave(service, context);
    }
}

static double reload_seconds(const struct service *service, const struct kv_chunk *chunk)
{
    const struct plan_rates *rates = &service->rates.now;
    uint64_t bytes = kv_chunk_bytes(kv_pool_geometry(service->pool), chunk->level);
    if (chunk->stored)
        return (double)bytes / rates->io_bytes_per_s;
    return chunk->tokens * (rates->token_s + chunk->position * rates->depth_s);
}

struct candidates {
    struct evict_candidate *facts;
    struct kv_chunk **chunks;
    size_t *order;
    size_t count;
};

static void candidates_deinit(struct candidates *all)
{
    mem_free(all->facts);
    mem_free(all->chunks);
    mem_free(all->order);
}

/* Every resident chunk once. any: those that are not on flash may go as well (they will be recomputed). */
static int gather(struct service *service, bool any, struct candidates *all)
{
    size_t count = 0;
    for (struct context *context = service->resident; context; context = context->next_resident)
        count += context->sequence.chunk_count;
    *all = (struct candidates){mem_calloc(count, sizeof *all->facts),
                               mem_calloc(count, sizeof(struct kv_chunk *)),
                               mem_calloc(count, sizeof *all->order), 0};
    if (!all->facts || !all->chunks || !all->order) {
        candidates_deinit(all);
        return -ENOMEM;
    }
    uint64_t mark = ++service->mark;
    for (struct context *context = service->resident; context; context = context->next_resident)
        for (size_t i = 0; i < context->sequence.chunk_count; i++) {
            struct kv_chunk *chunk = context->sequence.chunks[i];
            if (!chunk->data || chunk->mark == mark)
                continue;
            chunk->mark = mark;
            all->facts[all->count] = (struct evict_candidate){
                .last_used = chunk->last_used,
                .bytes = kv_chunk_bytes(kv_pool_geometry(service->pool), chunk->level),
                .reload_s = reload_seconds(service, chunk),
                .position = chunk->position,
                .level = chunk->level,
                .clean = any || !service->policy->stores || kv_chunk_clean(chunk),
                .locked = chunk->locked || chunk->writing,
            };
            all->chunks[all->count++] = chunk;
        }
    return 0;
}

/* Drops chunks one by one until `need` bytes are free or none may go. Returns bytes freed, or -ENOMEM. */
static int64_t evict_chunks(struct service *service, uint64_t need, bool any)
{
    struct candidates all;
    uint64_t freed = 0;
    if (gather(service, any, &all) < 0)
        return -ENOMEM;
    size_t chosen =
        evict_choose(service->policy->evict, service->tick, all.facts, all.count, need, all.order, &freed);
    for (size_t i = 0; i < chosen; i++)
        drop(service, all.chunks[all.order[i]]);
    candidates_deinit(&all);
    return (int64_t)freed;
}

/* May leave memory: not the running call's (invariant 3), and nobody is writing it. */
static bool free_to_go(const struct kv_chunk *chunk)
{
    return chunk->data && !chunk->locked && !chunk->writing;
}

static bool may_go(const struct context *context, bool dirty_only)
{
    for (size_t i = 0; i < context->sequence.chunk_count; i++) {
        const struct kv_chunk *chunk = context->sequence.chunks[i];
        if (free_to_go(chunk) && !(dirty_only && kv_chunk_clean(chunk)))
            return true;
    }
    return false;
}

/* The context that was used longest ago and holds chunks that may go, with `dirty_only` such as are not on
 * flash. */
static struct context *oldest(struct service *service, bool dirty_only)
{
    struct context *found = NULL;
    for (struct context *context = service->resident; context; context = context->next_resident) {
        if (may_go(context, dirty_only) && (!found || context->last_used < found->last_used))
            found = context;
    }
    return found;
}

/* Writes what the context has not on flash and waits for it. False: nothing was written, or not all of it. */
static bool flush(struct service *service, struct context *context)
{
    swapout_finish(service, true);
    while (context && settle_context(service, context))
        ;
    return context && swapout_start(service, context) && swapout_finish(service, true);
}

/* Drops the oldest context whole. Returns bytes freed. */
static int64_t evict_context(struct service *service)
{
    struct context *context = oldest(service, false);
    uint64_t before = kv_pool_resident(service->pool);
    if (!context)
        return 0;
    if (service->policy->stores && may_go(context, true))
        flush(service, context);
    for (size_t i = 0; i < context->sequence.chunk_count; i++)
        if (free_to_go(context->sequence.chunks[i]))
            drop(service, context->sequence.chunks[i]);
    return (int64_t)(before - kv_pool_resident(service->pool));
}

/* One step towards `need` free bytes, the cheapest there is. 0: none is left. */
static int64_t evict_some(struct service *service, uint64_t need)
{
    int64_t freed;
    if (service->policy->unit == KV_UNIT_CONTEXT)
        return evict_context(service);
    freed = evict_chunks(service, need, false);
    if (freed != 0)
        return freed;
    if (swapout_finish(service, true)) /* what was being written is clean now */
        return 1;
    if (service->policy->stores && flush(service, oldest(service, true)))
        return 1;
    return evict_chunks(service, need, true);
}

/* Until `need` bytes fit under the budget. 0, -ENOSPC or -ENOMEM. */
static int make_room(struct service *service, uint64_t need)
{
    for (;;) {
        uint64_t resident = kv_pool_resident(service->pool), budget = kv_pool_budget(service->pool);
        if (resident <= budget && need <= budget - resident)
            return 0;
        if (drop_deleted(service))
            continue;
        int64_t freed = evict_some(service, resident + need - budget);
        if (freed == 0 && need && budget_stretch(service, kv_pool_resident(service->pool) + need))
            continue;
        if (freed <= 0 && kv_pool_resident(service->pool) >= resident) /* a swap-out may have let go, too */
            return freed < 0 ? (int)freed : -ENOSPC;
    }
}

int residency_make_room(struct service *service, uint64_t need, struct error *error)
{
    uint64_t before = kv_pool_resident(service->pool);
    int code = make_room(service, need);
    if (kv_pool_resident(service->pool) != before)
        publish_all(service);
    if (code == -ENOSPC)
        return error_set(error, code,
                         "the KV budget of %" PRIu64 " bytes cannot hold this context alone: %" PRIu64
                         " more bytes are needed beside the %" PRIu64 " it has",
                         kv_pool_budget(service->pool), need, kv_pool_resident(service->pool));
    return code < 0 ? error_set(error, code, "out of memory for KV") : 0;
}

int residency_reserve(struct service *service, struct context *context, size_t end, struct error *error)
{
    struct kv_sequence *sequence = &context->sequence;
    size_t first = sequence->chunk_count;
    int code;
    do { /* again where the budget was lowered in between */
        size_t need = kv_sequence_reserve_bytes(sequence, end, service->kv_level);
        code = need ? residency_make_room(service, need, error) : 0;
        if (code < 0)
            return code;
        code = kv_sequence_reserve(sequence, end, service->kv_level);
    } while (code == -ENOSPC);
    for (size_t i = first; i < sequence->chunk_count; i++)
        sequence->chunks[i]->locked = true;
    return code < 0 ? error_set(error, code, "out of memory for KV") : 0;
}

/* Removes the files of contexts that were deleted. */
static void delete_files(struct service *service)
{
    pthread_mutex_lock(&service->lock);
    struct buffer ids = service->deleted;
    service->deleted = (struct buffer){0};
    pthread_mutex_unlock(&service->lock);
    for (struct context *context = service->resident; context && ids.length; context = context->next_resident)
        share_files(service, context); /* what they share with those stays theirs */
    for (size_t i = 0; service->store && i + JOURNAL_ID_BYTES <= ids.length; i += JOURNAL_ID_BYTES) {
        swapout_abandon(service, ids.data + i);
        chunk_store_delete_context(service->store, ids.data + i);
    }
    buffer_deinit(&ids);
}

void residency_sweep(struct service *service)
{
    drop_deleted(service);
    delete_files(service);
    if (kv_pool_resident(service->pool) > kv_pool_budget(service->pool))
        residency_make_room(service, 0, NULL); /* out of memory: tried again before the next call */
}

void residency_evict_all(struct service *service)
{
    for (struct context *context = service->resident; context; context = context->next_resident) {
        flush(service, context);
        for (size_t i = 0; i < context->sequence.chunk_count; i++)
            if (context->sequence.chunks[i]->data)
                drop(service, context->sequence.chunks[i]);
    }
    publish_all(service);
}

void residency_evict_random(struct service *service)
{
    struct random *random = &service->evict_random;
    bool fresh = random_below(random, 3) != 0; /* else what a swap-out is writing now stays */
    double share = random_unit(random);
    if (fresh)
        swapout_finish(service, true);
    for (struct context *context = service->resident; context; context = context->next_resident) {
        if (fresh && random_below(random, 4) != 0)
            flush(service, context);
        for (size_t i = 0; i < context->sequence.chunk_count; i++) {
            struct kv_chunk *chunk = context->sequence.chunks[i];
            if (free_to_go(chunk) && random_unit(random) < share)
                drop(service, chunk);
            if (!chunk->data && random_below(random, 16) == 0)
                kv_chunk_forget_stored(service->pool, chunk);
        }
    }
    publish_all(service);
    service->plan_mode = PLAN_FORCED;
    service->plan_share = random_unit(random);
}

void residency_drop_all(struct service *service)
{
    while (service->resident) {
        if (service->policy->stores && service->policy->ahead)
            flush(service, service->resident); /* so that the next start finds it */
        kv_sequence_truncate(&service->resident->sequence, 0);
        leave(service, service->resident);
    }
}
