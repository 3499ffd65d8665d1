/* After a call, off its path: what it left in memory is lowered by how much each chunk tolerates, then
 * written to flash (swapout.c).
 *
 * Done in steps of one chunk, a fraction of a millisecond each, so that the next call never waits long: the
 * damage of lowering is measured once for each chunk, the levels of the whole context are chosen from it and
 * from the density that attention gave (kv/levels.h), and what is above its level is lowered. The worker's
 * alone. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "service/service_internal.h"

/* The first chunks hold what all tokens attend to whatever it says (attention sinks), the newest are read
 * most: they keep their level until they are neither. The ratio is that of the chunks between, so that a
 * short context, whose few chunks cost little, does not pay for them with its precision. */
enum { KEEP_FIRST = 1, KEEP_NEWEST = 2 };

static const uint8_t level_of[4] = {16, 8, 4, 2};

static bool lowers(const struct service *service)
{
    return service->policy->levels.rule != LEVELS_KEEP;
}

/* The chunks whose levels are chosen: sequence->chunks[*first] and on, returns how many. */
static size_t tolerant(const struct service *service, const struct kv_sequence *sequence, size_t *first)
{
    size_t count = kv_chunks_of(sequence->tokens);
    *first = 0;
    if (service->policy->levels.rule == LEVELS_FIXED) /* all at one level, for comparison */
        return count;
    *first = KEEP_FIRST;
    return count > KEEP_FIRST + KEEP_NEWEST ? count - KEEP_FIRST - KEEP_NEWEST : 0;
}

static bool may_lower(const struct kv_chunk *chunk)
{
    return chunk->data && !chunk->writing && !chunk->locked && chunk->tokens == KV_CHUNK_TOKENS;
}

static bool allowed(const struct service *service, int index, const struct kv_chunk *chunk)
{
    return (service->policy->levels.allowed >> index & 1) && level_of[index] < chunk->level;
}

/* Measures one level of one chunk that was not measured yet. */
static bool measure_one(struct service *service, struct context *context)
{
    size_t first, count = tolerant(service, &context->sequence, &first);
    for (size_t i = first; i < first + count; i++) {
        struct kv_chunk *chunk = context->sequence.chunks[i];
        for (int k = 0; k < 4 && may_lower(chunk) && chunk->level == service->kv_level; k++) {
            if (chunk->damage[k] >= 0 || !allowed(service, k, chunk))
                continue;
            chunk->damage[k] = engine_lower(service->engine, chunk->data, chunk->level, chunk->tokens,
                                            service->lowered, level_of[k]);
            return true;
        }
    }
    return false;
}

/* What lowering from `level` to level_of[k] would add: damage is measured once, from the level the chunk was
 * written at. Negative: not known (a chunk that came back from flash), and kv/levels.h takes its model. */
static double damage_from(const struct kv_chunk *chunk, uint8_t level, int k)
{
    double before = 0;
    if (level_of[k] >= level)
        return 0;
    for (int j = 0; j < k; j++)
        if (level_of[j] == level && chunk->damage[j] > 0)
            before = chunk->damage[j];
    return chunk->damage[k] < 0 ? -1 : chunk->damage[k] > before ? chunk->damage[k] - before : 0;
}

static uint8_t level_now(const struct service *service, const struct kv_chunk *chunk)
{
    return chunk->data ? chunk->level : chunk->stored_level ? chunk->stored_level : service->kv_level;
}

/* Whether its tolerant chunks take more than the levels' ratio grants them. */
static bool over_budget(const struct service *service, const struct context *context)
{
    const struct kv_geometry *geometry = kv_pool_geometry(service->pool);
    size_t first, count = tolerant(service, &context->sequence, &first);
    uint64_t bytes = 0;
    for (size_t i = first; i < first + count; i++)
        bytes += kv_chunk_bytes(geometry, level_now(service, context->sequence.chunks[i]));
    return bytes > levels_budget(service->policy->levels.ratio, geometry, count);
}

/* The levels of `count` chunks from `first` on. */
static int choose(struct service *service, struct context *context, size_t first, size_t count,
                  uint8_t *levels)
{
    struct levels_chunk *facts = mem_calloc(count, sizeof *facts);
    if (!facts)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        const struct kv_chunk *chunk = context->sequence.chunks[first + i];
        facts[i] = (struct levels_chunk){
            .density = kv_chunk_density(chunk),
            .level = level_now(service, chunk),
            .keep = !may_lower(chunk),
        };
        for (int k = 0; k < 4; k++)
            facts[i].damage[k] = damage_from(chunk, facts[i].level, k);
    }
    levels_choose(&service->policy->levels, kv_pool_geometry(service->pool), facts, count, levels);
    mem_free(facts);
    return 0;
}

static int lower(struct service *service, struct kv_chunk *chunk, uint8_t level)
{
    size_t bytes = kv_chunk_bytes(kv_pool_geometry(service->pool), level);
    int code = 0;
    engine_lower(service->engine, chunk->data, chunk->level, chunk->tokens, service->lowered, level);
    void *data = kv_pool_claim(service->pool, level, &code);
    if (!data)
        return code; /* no room beside the old data: as it is until there is */
    memcpy(data, service->lowered, bytes);
    kv_chunk_replace(service->pool, chunk, data, level);
    return 0;
}

/* Lowers one chunk that is above its level. */
static bool lower_one(struct service *service, struct context *context)
{
    size_t first, count = tolerant(service, &context->sequence, &first);
    uint8_t *levels = mem_alloc(count);
    bool done = false;
    if (levels && choose(service, context, first, count, levels) == 0)
        for (size_t i = 0; i < count && !done; i++) {
            struct kv_chunk *chunk = context->sequence.chunks[first + i];
            if (may_lower(chunk) && levels[i] < chunk->level)
                done = lower(service, chunk, levels[i]) == 0;
        }
    mem_free(levels);
    return done;
}

bool settle_context(struct service *service, struct context *context)
{
    if (!lowers(service) || (service->policy->levels.rule == LEVELS_DAMAGE && !over_budget(service, context)))
        return false;
    bool measured = service->policy->levels.rule == LEVELS_DAMAGE && measure_one(service, context);
    return measured || lower_one(service, context);
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
