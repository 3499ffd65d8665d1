/* Which contexts' KV is in memory. The worker's alone; others see what context_publish tells.
 *
 * The list holds every context that may hold chunks, the running one too. Evicting a context drops its whole
 * KV, which is recomputed from its tokens when it is called again; what to evict next is decided by
 * kv/evict.h. */
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
    while (*link != context)
        link = &(*link)->next_resident;
    *link = context->next_resident;
    pthread_mutex_lock(&service->lock);
    context_forget(service, context);
    pthread_mutex_unlock(&service->lock);
}

void residency_settle(struct service *service, struct context *context)
{
    kv_sequence_truncate(&context->sequence, context->sequence.tokens); /* chunks reserved and not used */
    context->last_used = ++service->tick;
    if (context->sequence.chunk_count)
        context_publish(service, context);
    else
        leave(service, context);
}

static void evict(struct service *service, struct context *context)
{
    uint64_t before = kv_pool_resident(service->pool);
    kv_sequence_truncate(&context->sequence, 0);
    uint64_t bytes = before - kv_pool_resident(service->pool);
    log_debug("evicted %s: %" PRIu64 " bytes", context->id, bytes);
    pthread_mutex_lock(&service->lock);
    service->status.evicted_bytes_total += bytes;
    pthread_mutex_unlock(&service->lock);
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

/* Evicts one context other than `running` (may be NULL). 0, -ENOENT where there is none, or -ENOMEM. */
static int evict_one(struct service *service, const struct context *running)
{
    size_t count = 0, i = 0;
    if (drop_deleted(service))
        return 0;
    for (struct context *context = service->resident; context; context = context->next_resident)
        count++;
    struct evict_candidate *candidates = mem_calloc(count, sizeof *candidates);
    if (!candidates)
        return -ENOMEM;
    for (struct context *context = service->resident; context; context = context->next_resident)
        candidates[i++] = (struct evict_candidate){
            .last_used = context->last_used,
            .chunks = context->sequence.chunk_count,
            .private_bytes = kv_sequence_private_bytes(&context->sequence),
            .locked = context == running,
        };
    size_t choice = evict_choose(candidates, count);
    mem_free(candidates);
    if (choice == EVICT_NONE)
        return -ENOENT;
    struct context *context = service->resident;
    while (choice--)
        context = context->next_resident;
    evict(service, context);
    return 0;
}

static int too_small(struct service *service, size_t end, struct error *error)
{
    uint64_t need = kv_chunks_of(end) * kv_chunk_bytes(kv_pool_geometry(service->pool), service->kv_level);
    return error_set(error, -ENOSPC,
                     "the KV budget of %" PRIu64
                     " bytes cannot hold this context alone: %zu tokens need %" PRIu64 " bytes",
                     kv_pool_budget(service->pool), end, need);
}

int residency_reserve(struct service *service, struct context *context, size_t end, struct error *error)
{
    uint64_t need = kv_chunks_of(end) * kv_chunk_bytes(kv_pool_geometry(service->pool), service->kv_level);
    if (need > kv_pool_budget(service->pool))
        return too_small(service, end, error); /* known before anyone else is evicted in vain */
    for (;;) {
        int code = kv_sequence_reserve(&context->sequence, end, service->kv_level);
        if (code == 0)
            return 0;
        if (code == -ENOSPC)
            code = evict_one(service, context);
        if (code == -ENOENT)
            return too_small(service, end, error);
        if (code < 0)
            return error_set(error, code, "out of memory for KV");
    }
}

void residency_sweep(struct service *service)
{
    drop_deleted(service);
    while (kv_pool_resident(service->pool) > kv_pool_budget(service->pool))
        if (evict_one(service, NULL) < 0)
            return; /* out of memory: tried again before the next call */
}

void residency_drop_all(struct service *service)
{
    while (service->resident) {
        kv_sequence_truncate(&service->resident->sequence, 0);
        leave(service, service->resident);
    }
}
