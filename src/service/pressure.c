/* How much memory KV may take right now: the configured budget, and less of it while memory is short.
 *
 * Under pressure the budget in force shrinks to half of what is resident, and every two seconds by as much
 * again, down to a quarter of what is configured; when pressure is over the whole is in force again. Anyone
 * may change what shall hold, under the lock; the worker alone puts it in force, between two steps of its
 * own or two layers of a pass, so that room it made for something stays. What pressure took away the running
 * call may take back, as far as the configured budget, rather than fail. */
#include <errno.h>
#include <inttypes.h>

#include "base/clock.h"
#include "base/log.h"
#include "service/service_internal.h"

enum { STEP_MS = 2000, LEAST_CHUNKS = 4 };

static uint64_t least_of(const struct service *service)
{
    uint64_t least = LEAST_CHUNKS * kv_chunk_bytes(kv_pool_geometry(service->pool), service->kv_level);
    return least < service->budget ? least : service->budget;
}

/* Under the lock: half of what is resident, not less than floor and not more than before. */
static void shrink(struct service *service, uint64_t floor)
{
    uint64_t half = kv_pool_resident(service->pool) / 2, target = half > floor ? half : floor;
    if (target < service->target)
        service->target = target;
    service->shrunk_ns = clock_ns();
    service->sweep = true;
    pthread_cond_broadcast(&service->work);
}

static uint64_t floor_of(const struct service *service)
{
    uint64_t least = least_of(service), quarter = service->budget / 4;
    return quarter > least ? quarter : least;
}

static void on_pressure(void *argument, enum pressure_event event)
{
    struct service *service = argument;
    pthread_mutex_lock(&service->lock);
    service->pressed = event == PRESSURE_BEGIN;
    if (service->pressed) {
        shrink(service, least_of(service));
    } else {
        service->target = service->budget;
        service->sweep = true;
        pthread_cond_broadcast(&service->work);
    }
    uint64_t target = service->target, budget = service->budget;
    pthread_mutex_unlock(&service->lock);
    if (event == PRESSURE_BEGIN)
        log_info("memory is short: KV may take %" PRIu64 " of its %" PRIu64 " bytes", target, budget);
    else
        log_info("memory is not short any more: KV may take all of its %" PRIu64 " bytes", budget);
}

void budget_watch(struct service *service, const struct service_options *options)
{
    struct error error = {0};
    const struct pressure_options watch = {
        .path = options->pressure_path,
        .quiet_ms = (int)options->pressure_quiet_ms,
        .call = on_pressure,
        .argument = service,
    };
    if (!options->watch_pressure)
        return;
    int code = pressure_open(&watch, &service->pressure, &error);
    if (code == 0)
        log_info("memory pressure is watched (%s)", pressure_source(service->pressure));
    else if (code == -ENODATA || code == -ENOENT)
        log_info("memory pressure is not watched: %s", error.text);
    else
        log_warning("memory pressure is not watched: %s", error.text);
}

unsigned budget_due_ms(const struct service *service)
{
    if (!service->pressed || service->target <= floor_of(service))
        return 0;
    double since = clock_ms_since(service->shrunk_ns);
    return since < STEP_MS ? (unsigned)(STEP_MS - since) + 1 : 1;
}

bool budget_apply(struct service *service)
{
    bool due = service->pressed && service->target > floor_of(service) &&
               clock_ms_since(service->shrunk_ns) >= STEP_MS;
    if (due) {
        shrink(service, floor_of(service));
        log_info("memory is still short: KV may take %" PRIu64 " of its %" PRIu64 " bytes", service->target,
                 service->budget);
    }
    uint64_t stretched = service->stretched < service->budget ? service->stretched : service->budget;
    kv_pool_set_budget(service->pool, stretched > service->target ? stretched : service->target);
    return kv_pool_resident(service->pool) > kv_pool_budget(service->pool);
}

bool budget_stretch(struct service *service, uint64_t bytes)
{
    pthread_mutex_lock(&service->lock);
    bool may = bytes <= service->budget && bytes > kv_pool_budget(service->pool);
    if (may) {
        service->stretched = bytes;
        kv_pool_set_budget(service->pool, bytes);
    }
    pthread_mutex_unlock(&service->lock);
    return may;
}

void budget_tend(struct service *service)
{
    pthread_mutex_lock(&service->lock);
    bool over = budget_apply(service);
    pthread_mutex_unlock(&service->lock);
    if (!over)
        return;
    residency_sweep(service);
    if (kv_pool_resident(service->pool) > kv_pool_budget(service->pool)) /* the running call has it all */
        budget_stretch(service, kv_pool_resident(service->pool));
}

int service_set_budget(struct service *service, uint64_t budget_bytes, struct error *error)
{
    uint64_t chunk = kv_chunk_bytes(kv_pool_geometry(service->pool), service->kv_level);
    if (budget_bytes < chunk)
        return error_set(error, -EINVAL,
                         "a KV budget of %" PRIu64 " bytes holds nothing: a chunk is %" PRIu64, budget_bytes,
                         chunk);
    pthread_mutex_lock(&service->lock);
    service->budget = budget_bytes;
    if (!service->pressed || service->target > budget_bytes)
        service->target = budget_bytes;
    service->sweep = true;
    pthread_cond_broadcast(&service->work);
    pthread_mutex_unlock(&service->lock);
    log_info("the KV budget is now %" PRIu64 " bytes", budget_bytes);
    return 0;
}
