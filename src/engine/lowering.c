/* See lowering.h. */
#include "engine/lowering.h"

#include <errno.h>
#include <string.h>

#include "base/memory.h"

enum { KEEP_FIRST = 1, KEEP_NEWEST = 2 };
enum { FOUR = 2, THREE, TWO }; /* kv_level_index */

/* The chunks whose levels are chosen: sequence->chunks[*first] and on, returns how many. */
static size_t tolerant(const struct lowering *l, const struct kv_sequence *sequence, size_t *first)
{
    size_t count = kv_chunks_of(sequence->tokens);
    *first = 0;
    if (l->rules->rule == LEVELS_FIXED) /* all at one level, for comparison */
        return count;
    *first = KEEP_FIRST;
    return count > KEEP_FIRST + KEEP_NEWEST ? count - KEEP_FIRST - KEEP_NEWEST : 0;
}

static bool may_lower(const struct kv_chunk *chunk)
{
    return chunk->data && !chunk->writing && !chunk->locked && chunk->tokens == KV_CHUNK_TOKENS;
}

static bool allowed(const struct lowering *l, unsigned index, const struct kv_chunk *chunk)
{
    return (l->rules->allowed >> index & 1) && index > kv_level_index(chunk->level);
}

static void measure(const struct lowering *l, struct kv_chunk *chunk, unsigned index)
{
    struct engine_damage damage = engine_lower(l->engine, chunk->data, chunk->level, chunk->tokens, l->room,
                                               levels_tag(l->rules, kv_level_at(index)));
    chunk->damage[index] = damage.keys + damage.values;
    if (index == FOUR)
        chunk->damage_keys = damage.keys;
    if (index == TWO && allowed(l, FOUR, chunk) && allowed(l, THREE, chunk))
        chunk->damage[THREE] = chunk->damage_keys + damage.values;
}

/* Measures one level of one chunk that was not measured yet. Level 3 is 4's K and 2's V (kernels/codec.h):
 * where those are measured it comes with them. */
static bool measure_one(const struct lowering *l, struct kv_sequence *sequence)
{
    size_t first, count = tolerant(l, sequence, &first);
    for (size_t i = first; i < first + count; i++) {
        struct kv_chunk *chunk = sequence->chunks[i];
        for (unsigned k = 0; k < KV_LEVELS && may_lower(chunk) && chunk->level == l->write_level; k++) {
            bool comes_with = k == THREE && allowed(l, FOUR, chunk) && allowed(l, TWO, chunk);
            if (!(chunk->damage[k] < 0) || !allowed(l, k, chunk) || comes_with)
                continue;
            measure(l, chunk, k);
            return true;
        }
    }
    return false;
}

/* What lowering from `level` to kv_level_at(k) would add: damage is measured once, from the level the chunk
 * was written at. Negative: not known (a chunk that came back from flash), and kv/levels.h takes its model.
 */
static double damage_from(const struct kv_chunk *chunk, uint8_t level, unsigned k)
{
    double before = 0;
    if (kv_level_at(k) >= kv_level_bits(level))
        return 0;
    for (unsigned j = 0; j < k; j++)
        if (kv_level_at(j) == kv_level_bits(level) && chunk->damage[j] > 0)
            before = chunk->damage[j];
    return chunk->damage[k] < 0 ? -1 : chunk->damage[k] > before ? chunk->damage[k] - before : 0;
}

static uint8_t level_now(const struct lowering *l, const struct kv_chunk *chunk)
{
    return chunk->data ? chunk->level : chunk->stored_level ? chunk->stored_level : l->write_level;
}

/* Whether its tolerant chunks take more than the levels' ratio grants them. */
static bool over_budget(const struct lowering *l, const struct kv_sequence *sequence)
{
    const struct kv_geometry *geometry = kv_pool_geometry(l->pool);
    size_t first, count = tolerant(l, sequence, &first);
    uint64_t bytes = 0;
    for (size_t i = first; i < first + count; i++)
        bytes += kv_chunk_bytes(geometry, level_now(l, sequence->chunks[i]));
    return bytes > levels_budget(l->rules->ratio, geometry, count);
}

/* The levels of `count` chunks from `first` on. */
static int choose(const struct lowering *l, struct kv_sequence *sequence, size_t first, size_t count,
                  uint8_t *levels)
{
    struct levels_chunk *facts = mem_calloc(count, sizeof *facts);
    if (!facts)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        const struct kv_chunk *chunk = sequence->chunks[first + i];
        facts[i] = (struct levels_chunk){
            .density = kv_chunk_density(chunk),
            .level = level_now(l, chunk),
            .keep = !may_lower(chunk),
        };
        for (unsigned k = 0; k < KV_LEVELS; k++)
            facts[i].damage[k] = damage_from(chunk, facts[i].level, k);
    }
    levels_choose(l->rules, kv_pool_geometry(l->pool), facts, count, levels);
    mem_free(facts);
    return 0;
}

static int lower(const struct lowering *l, struct kv_chunk *chunk, uint8_t level)
{
    engine_lower(l->engine, chunk->data, chunk->level, chunk->tokens, l->room, level);
    return kv_chunk_lower(l->pool, chunk, l->room, level);
}

/* Lowers one chunk that is above its level. */
static bool lower_one(const struct lowering *l, struct kv_sequence *sequence)
{
    size_t first, count = tolerant(l, sequence, &first);
    uint8_t *levels = mem_alloc(count);
    bool done = false;
    if (levels && choose(l, sequence, first, count, levels) == 0)
        for (size_t i = 0; i < count && !done; i++) {
            struct kv_chunk *chunk = sequence->chunks[first + i];
            if (may_lower(chunk) && kv_level_bits(levels[i]) < kv_level_bits(chunk->level))
                done = lower(l, chunk, levels[i]) == 0;
        }
    mem_free(levels);
    return done;
}

bool lowering_step(const struct lowering *l, struct kv_sequence *sequence)
{
    if (l->rules->rule == LEVELS_KEEP || (l->rules->rule == LEVELS_DAMAGE && !over_budget(l, sequence)))
        return false;
    return (l->rules->rule == LEVELS_DAMAGE && measure_one(l, sequence)) || lower_one(l, sequence);
}

/* Whether chunk i keeps its level while the last of `count` chunks is computed. */
static bool kept(const struct lowering *l, size_t i, size_t count)
{
    if (l->rules->rule == LEVELS_FIXED)
        return i + 1 == count;
    return i < KEEP_FIRST || i + KEEP_NEWEST + 1 >= count;
}

int64_t lowering_least(const struct lowering *l, const uint8_t *levels, size_t count)
{
    struct levels_rules rules = *l->rules;
    struct levels_chunk *facts = mem_calloc(count, sizeof *facts);
    uint8_t *lowest = mem_alloc(count);
    int64_t bytes = -ENOMEM;
    if (facts && lowest) {
        for (size_t i = 0; i < count; i++)
            facts[i] = (struct levels_chunk){.level = levels[i], .keep = kept(l, i, count)};
        rules.ratio = 0;
        bytes = (int64_t)levels_choose(&rules, kv_pool_geometry(l->pool), facts, count, lowest);
    }
    mem_free(facts);
    mem_free(lowest);
    return bytes;
}

double lowering_ratio(const struct lowering *l, size_t count, uint64_t bytes)
{
    const struct kv_geometry *geometry = kv_pool_geometry(l->pool);
    size_t keep = KEEP_FIRST + KEEP_NEWEST + 1;
    uint64_t keeps = keep * kv_chunk_bytes(geometry, l->write_level);
    if (count <= keep)
        return l->rules->ratio;
    double left = bytes > keeps ? (double)(bytes - keeps) : 0;
    double ratio = left / (double)levels_budget(1, geometry, count - keep);
    return ratio < l->rules->ratio ? ratio : l->rules->ratio;
}
