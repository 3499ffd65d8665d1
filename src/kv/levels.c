/* The level choice. What is searched for, a price or a rank, is found by bisecting the bits of a non-negative
 * double, which are ordered as the double is: exact, and it needs neither a sort nor memory. */
#include "kv/levels.h"

#include <float.h>
#include <math.h>
#include <string.h>

static double from_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t to_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

double levels_damage_model(uint8_t bits)
{
    static const double model[KV_LEVELS] = {0, 8.769e-5, 0.01154, 0.06517,
                                            0.1188}; /* 16 bits: what damage is measured from */
    return model[kv_level_index(bits)];
}

uint64_t levels_budget(double ratio, const struct kv_geometry *g, size_t count)
{
    double int8 = (double)g->layers * g->kv_heads * 2 * KV_CHUNK_TOKENS * g->dim;
    return (uint64_t)(ratio * int8 * (double)count + 0.5);
}

/* Which levels a chunk may get, as LEVELS_* bits; never none. */
static unsigned choices(unsigned allowed, const struct levels_chunk *chunk)
{
    unsigned now = 1u << kv_level_index(chunk->level), lower = allowed & LEVELS_ALL & ~(now - 1);
    return chunk->keep || !lower ? now : lower;
}

static uint8_t lowest(unsigned mask)
{
    unsigned index = KV_LEVELS - 1;
    while (index && !(mask & 1u << index))
        index--;
    return kv_level_at(index);
}

/* The level wanted, or the next one below that may be had, or the lowest. */
static uint8_t nearest(unsigned mask, uint8_t wanted)
{
    for (unsigned i = kv_level_index(wanted); i < KV_LEVELS; i++)
        if (mask & 1u << i)
            return kv_level_at(i);
    return lowest(mask);
}

/* ------------------------------------------------------------------------------------------------ Eq. 3
 *
 * Densities by rank, falling: f(x), x in 0..1. With shares a at 8 bits, b at 2, the rest at 4, the ratio r
 * forces b = 2a + 2 - 4r (b = 2a at r = 0.5). Eq. 3 weighs each chunk's density by 1 / its own ratio (1, 1/2,
 * 1/4 of INT8):
 *     O(a) = F(a) + 2 (F(1 - b) - F(a)) + 4 (F(1) - F(1 - b)),   F the integral of f
 *     O'(a) = 4 f(1 - b) - f(a)
 * f falls, so O' rises: O is convex, and where its derivative is 0 it has its minimum. Read as a sum to make
 * large (more density at higher ratios, as the text around it would have it) that point is the worst there
 * is; read as an error that goes with 1 / bits it is the best. Neither says how much a value loses at 4 or at
 * 2 bits, which is what LEVELS_DAMAGE goes by. */

struct shares {
    size_t ranked, at8, at2; /* of the ranked ones, at8 get 8 bits and at2 get 2 */
};

static double density_of(const struct levels_chunk *chunk)
{
    return chunk->density > 0 && chunk->density <= DBL_MAX ? chunk->density : 0;
}

static size_t count_above(const struct levels_chunk *chunks, size_t count, double density, bool equal_too)
{
    size_t above = 0;
    for (size_t i = 0; i < count; i++) {
        double d = density_of(&chunks[i]);
        above += !chunks[i].keep && (d > density || (equal_too && d == density));
    }
    return above;
}

/* The density of the chunk at this rank, 0 the densest. */
static double density_at(const struct levels_chunk *chunks, size_t count, size_t rank)
{
    uint64_t low = 0, high = to_bits(DBL_MAX) + 1;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (count_above(chunks, count, from_bits(middle), true) > rank)
            low = middle;
        else
            high = middle;
    }
    return from_bits(low);
}

static size_t forced_at2(double ratio, size_t ranked, size_t at8)
{
    double at2 = ceil(2 * (double)at8 + (2 - 4 * ratio) * (double)ranked - 1e-6);
    return at2 <= 0 ? 0 : (size_t)at2 < ranked - at8 ? (size_t)at2 : ranked - at8;
}

static struct shares paper_shares(double ratio, const struct levels_chunk *chunks, size_t count)
{
    struct shares s = {count_above(chunks, count, 0, true), 0, 0};
    double n = (double)s.ranked;
    if (ratio >= 1)
        s.at8 = s.ranked;
    if (ratio <= 0.25)
        s.at2 = s.ranked;
    if (ratio >= 1 || ratio <= 0.25 || s.ranked == 0)
        return s;
    size_t low = ratio > 0.5 ? (size_t)((2 * ratio - 1) * n + 1e-6) : 0; /* b >= 0 */
    size_t high = (size_t)((4 * ratio - 1) / 3 * n + 1e-6);              /* a + b <= 1 */
    while (low < high) { /* the first with a derivative that is not negative */
        size_t at8 = low + (high - low) / 2, at2 = forced_at2(ratio, s.ranked, at8);
        double last4 = density_at(chunks, count, s.ranked > at2 ? s.ranked - at2 - 1 : 0);
        if (4 * last4 - density_at(chunks, count, at8) >= 0)
            high = at8;
        else
            low = at8 + 1;
    }
    s.at8 = low;
    s.at2 = forced_at2(ratio, s.ranked, low);
    return s;
}

double levels_paper_share(double ratio, const struct levels_chunk *chunks, size_t count)
{
    struct shares s = paper_shares(ratio, chunks, count);
    return s.ranked ? (double)s.at8 / (double)s.ranked : 0;
}

/* Counts out the ranks of chunks that have the same density, by index. */
struct tie {
    double density;
    size_t rank;
};

static void choose_paper(const struct levels_rules *rules, const struct levels_chunk *chunks, size_t count,
                         uint8_t *out)
{
    struct shares s = paper_shares(rules->ratio, chunks, count);
    struct tie tie[2] = {{DBL_MAX, 0},
                         {-1, 0}}; /* at the end of those with 8, at the start of those with 2 */
    if (s.at8)
        tie[0].density = density_at(chunks, count, s.at8 - 1);
    if (s.at2)
        tie[1].density = density_at(chunks, count, s.ranked - s.at2);
    for (int t = 0; t < 2; t++)
        tie[t].rank = count_above(chunks, count, tie[t].density, false);
    for (size_t i = 0; i < count; i++) {
        double density = density_of(&chunks[i]);
        size_t rank = density > tie[0].density ? 0 : density < tie[1].density ? s.ranked - 1 : s.at8;
        for (int t = 0; t < 2 && !chunks[i].keep; t++)
            if (density == tie[t].density)
                rank = tie[t].rank++;
        uint8_t wanted = rank < s.at8 ? 8 : rank >= s.ranked - s.at2 ? 2 : 4;
        out[i] = nearest(choices(rules->allowed, &chunks[i]), wanted);
    }
}

/* ------------------------------------------------------------------------------------------ least damage
 *
 * Every byte has the same price p; each chunk takes the level with the least density x damage + p x bytes, a
 * corner of the lower convex hull of its (bytes, damage) points. The lowest price whose choices fit the
 * budget gives the best assignment for the bytes it takes. What is left over is filled up: first the chunks
 * that change their minds at the very next lower price, in order, then single steps, the largest gain first.
 * The price's other side is past the budget, so no assignment within the budget is better by more than the
 * one step that did not fit. */

struct market {
    const struct levels_chunk *chunks;
    size_t count;
    unsigned allowed;
    uint64_t bytes[KV_LEVELS]; /* of a chunk at 16, 8, 4, 3, 2 bits */
    double floor;              /* least density: what got no attention is still not worth nothing */
    double scale;              /* measured damage / modelled, over the context */
};

static bool known(double damage)
{
    return damage >= 0 && damage <= DBL_MAX;
}

/* Adds up what was measured and what the model says of the same. */
static void compare(const struct levels_chunk *chunk, double *measured, double *modelled)
{
    for (unsigned i = 1; i < KV_LEVELS; i++)
        if (known(chunk->damage[i])) {
            *measured += chunk->damage[i];
            *modelled += levels_damage_model(kv_level_at(i));
        }
}

/* A chunk's damage at each level; what is not known comes from the model, scaled like what is. */
static void damages(const struct market *m, const struct levels_chunk *chunk, double *out)
{
    double measured = 0, modelled = 0, scale = -1;
    for (unsigned i = 0; i < KV_LEVELS; i++) {
        out[i] = chunk->damage[i];
        if (known(out[i]))
            continue;
        if (scale < 0) {
            compare(chunk, &measured, &modelled);
            scale = modelled > 0 ? measured / modelled : m->scale;
        }
        out[i] = scale * levels_damage_model(kv_level_at(i));
    }
}

static double worth(const struct market *m, const struct levels_chunk *chunk)
{
    double density = density_of(chunk);
    return density > m->floor ? density : m->floor;
}

static uint8_t pick(const struct market *m, const struct levels_chunk *chunk, double price)
{
    unsigned mask = choices(m->allowed, chunk);
    uint8_t best = lowest(mask);
    if (mask == 1u << kv_level_index(best))
        return best;
    double damage[KV_LEVELS], density = worth(m, chunk);
    damages(m, chunk, damage);
    double cost = density * damage[kv_level_index(best)] + price * (double)m->bytes[kv_level_index(best)];
    for (unsigned i = kv_level_index(best); i-- > 0;) {
        double other = density * damage[i] + price * (double)m->bytes[i];
        if (mask & 1u << i && other < cost) {
            best = kv_level_at(i);
            cost = other;
        }
    }
    return best;
}

static uint64_t bytes_at(const struct market *m, double price)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < m->count; i++)
        bytes += m->bytes[kv_level_index(pick(m, &m->chunks[i], price))];
    return bytes;
}

/* Takes single steps up, the largest gain first, while any fits. */
static void fill(const struct market *m, uint64_t left, uint8_t *out)
{
    for (;;) {
        double best_gain = 0;
        size_t best = 0;
        uint8_t best_level = 0;
        for (size_t i = 0; i < m->count; i++) {
            unsigned mask = choices(m->allowed, &m->chunks[i]), now = kv_level_index(out[i]);
            double damage[KV_LEVELS];
            if (!(mask & ((1u << now) - 1)) || m->bytes[now - 1] - m->bytes[now] > left)
                continue;
            damages(m, &m->chunks[i], damage);
            for (unsigned up = now; up-- > 0;) {
                double gain = worth(m, &m->chunks[i]) * (damage[now] - damage[up]);
                if (mask & 1u << up && m->bytes[up] - m->bytes[now] <= left && gain > best_gain) {
                    best_gain = gain;
                    best = i;
                    best_level = kv_level_at(up);
                }
            }
        }
        if (!best_level)
            return;
        left -= m->bytes[kv_level_index(best_level)] - m->bytes[kv_level_index(out[best])];
        out[best] = best_level;
    }
}

static void open_market(struct market *m)
{
    double density = 0, measured = 0, modelled = 0;
    for (size_t i = 0; i < m->count; i++) {
        density += density_of(&m->chunks[i]) / (double)m->count;
        compare(&m->chunks[i], &measured, &modelled);
    }
    m->floor = density > 0 ? density * 1e-6 : 1;
    m->scale = measured > 0 ? measured / modelled : 1;
}

static void choose_damage(struct market *m, uint64_t budget, uint8_t *out)
{
    uint64_t low = 0, high = to_bits(DBL_MAX / 1e30); /* prices: too low, and high enough */
    open_market(m);
    if (bytes_at(m, 0) <= budget)
        high = 0;
    while (high - low > 1 && high) {
        uint64_t middle = low + (high - low) / 2;
        if (bytes_at(m, from_bits(middle)) <= budget)
            high = middle;
        else
            low = middle;
    }
    uint64_t used = 0;
    for (size_t i = 0; i < m->count; i++) {
        out[i] = pick(m, &m->chunks[i], from_bits(high));
        used += m->bytes[kv_level_index(out[i])];
    }
    if (high == 0 || used > budget)
        return;
    for (size_t i = 0; i < m->count; i++) {
        uint8_t next = pick(m, &m->chunks[i], from_bits(low));
        uint64_t bytes = used - m->bytes[kv_level_index(out[i])] + m->bytes[kv_level_index(next)];
        if (next > out[i] && bytes <= budget) {
            out[i] = next;
            used = bytes;
        }
    }
    fill(m, budget - used, out);
}

uint64_t levels_choose(const struct levels_rules *rules, const struct kv_geometry *geometry,
                       const struct levels_chunk *chunks, size_t count, uint8_t *out)
{
    struct market market = {.chunks = chunks, .count = count, .allowed = rules->allowed};
    for (unsigned i = 0; i < KV_LEVELS; i++)
        market.bytes[i] = kv_chunk_bytes(geometry, levels_tag(rules, kv_level_at(i)));
    if (rules->rule == LEVELS_PAPER)
        choose_paper(rules, chunks, count, out);
    else if (rules->rule == LEVELS_DAMAGE)
        choose_damage(&market, levels_budget(rules->ratio, geometry, count), out);
    else
        for (size_t i = 0; i < count; i++)
            out[i] = rules->rule == LEVELS_KEEP
                         ? kv_level_at(kv_level_index(chunks[i].level))
                         : nearest(choices(1u << kv_level_index(rules->fixed), &chunks[i]), rules->fixed);
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        out[i] = kv_level_index(out[i]) == kv_level_index(chunks[i].level) ? chunks[i].level
                                                                           : levels_tag(rules, out[i]);
        bytes += kv_chunk_bytes(geometry, out[i]);
    }
    return bytes;
}
