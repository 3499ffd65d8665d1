/* After a call, off its path: what it left in memory is lowered by how much each chunk tolerates
 * (engine/lowering.c), then written to flash (swapout.c).
 *
 * Done in steps of one chunk, a fraction of a millisecond each, so that the next call never waits long. The
 * worker's alone. */
#include "base/clock.h"
#include "service/service_internal.h"

struct lowering settle_lowering(const struct service *service)
{
    return (struct lowering){
        .engine = service->engine,
        .pool = service->pool,
        .rules = &service->policy->levels,
        .write_level = service->kv_level,
        .room = service->lowered,
    };
}

bool settle_context(struct service *service, struct context *context)
{
    const struct lowering lowering = settle_lowering(service);
    return lowering_step(&lowering, &context->sequence);
}

static bool step(struct service *service)
{
    for (struct context *context = service->resident; context; context = context->next_resident) {
        if (!context->unsaved)
            continue;
        if (settle_context(service, context))
            return true;
        if (!service->policy->ahead || service->swapping)
            continue;
        share_files(service, context);
        context->unsaved = false;
        context_publish(service, context); /* levels fell */
        if (swapout_start(service, context))
            return true;
    }
    return false;
}

bool settle_run(struct service *service, unsigned limit_ms)
{
    uint64_t start = clock_ns();
    while (step(service))
        if (clock_ms_since(start) >= limit_ms)
            return true;
    return false;
}
