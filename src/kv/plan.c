/* The load plan.
 *
 * total = max(A, B) with A = io + compute / layers and B = io / layers + compute. For a price 0 <= p <= 1 the
 * subset with the least p A + (1 - p) B is found exactly by dynamic programming along the chunks (state: is
 * the last one read or recomputed, because a run of reads costs its requests once), and that least value is
 * below every plan's total. The price is bisected to where A and B cross; of the two subsets on either side
 * one reads more and one recomputes more, and the best plan lies between: each prefix of one with the rest of
 * the other is tried, then single flips (and pairs, for few chunks) for as long as they help. */
#include "kv/plan.h"

#include <string.h>

#include "base/random.h"
#include "kv/geometry.h"

enum {
    UNITS = 2048,   /* decided one by one; more chunks are decided in groups of neighbours */
    EXACT = 12,     /* up to so many that are free to choose: all subsets */
    PAIRS = 64,     /* up to so many units: pairs are flipped too */
    BISECTIONS = 28 /* of the price */
};

struct unit {
    double io, compute; /* seconds, its requests not counted */
    bool forced;        /* cannot be read */
    bool pinned;        /* is not to be recomputed */
    bool follows;       /* right behind the unit before */
};

struct search {
    struct unit units[UNITS];
    size_t count;
    double run_s;   /* the requests of one run of reads */
    double fixed_s; /* to be computed whatever is chosen */
    double batch_s; /* of a batch that exists only if anything is recomputed */
    double share;   /* 1 / layers; 1 if nothing overlaps */
};

struct choice {
    bool recompute[UNITS];
    double io, compute;
    size_t runs, recomputed;
};

double plan_depth(uint32_t position, uint32_t tokens)
{
    return (double)tokens * position + (double)tokens * ((double)tokens + 1) / 2;
}

static double read_s(const struct plan_rates *rates, uint64_t bytes)
{
    return (double)bytes * (rates->io_bytes_per_s > 0 ? 1 / rates->io_bytes_per_s : 1e3);
}

static double compute_s(const struct plan_rates *rates, uint32_t position, uint32_t tokens)
{
    return tokens * rates->token_s + plan_depth(position, tokens) * rates->depth_s;
}

static bool follows(const struct plan_chunk *chunks, size_t i)
{
    return i && chunks[i].position == chunks[i - 1].position + KV_CHUNK_TOKENS;
}

static double share_of(const struct plan_request *request)
{
    return request->serial || request->layers == 0 ? 1 : 1.0 / request->layers;
}

static double longer(double a, double b)
{
    return a > b ? a : b;
}

void plan_predict(const struct plan_rates *rates, const struct plan_request *request, struct plan *plan)
{
    uint64_t runs = 0;
    double share = share_of(request);
    bool *recompute = plan->recompute;
    *plan = (struct plan){.recompute = recompute};
    plan->compute_s = compute_s(rates, request->prompt_position, request->prompt_tokens);
    for (size_t i = 0; i < request->count; i++) {
        const struct plan_chunk *chunk = &request->chunks[i];
        recompute[i] = recompute[i] || chunk->bytes == 0;
        if (recompute[i]) {
            plan->recomputed++;
            plan->compute_s += compute_s(rates, chunk->position, chunk->tokens);
            continue;
        }
        plan->loaded++;
        plan->bytes_read += chunk->bytes;
        runs += !follows(request->chunks, i) || recompute[i - 1];
    }
    plan->requests = runs * request->layers;
    plan->io_s = (double)plan->requests * rates->io_request_s + read_s(rates, plan->bytes_read);
    if (plan->recomputed || request->prompt_tokens)
        plan->compute_s += rates->batch_s;
    plan->total_s = longer(plan->io_s + share * plan->compute_s, share * plan->io_s + plan->compute_s);
}

/* ---------------------------------------------------------------------------------------- flips and totals
 */

static size_t starts_run(const struct search *s, const struct choice *c, size_t i)
{
    return i < s->count && !c->recompute[i] && (i == 0 || c->recompute[i - 1] || !s->units[i].follows);
}

static void flip(const struct search *s, struct choice *c, size_t i)
{
    double sign = c->recompute[i] ? -1 : 1;
    c->runs -= starts_run(s, c, i) + starts_run(s, c, i + 1);
    c->recompute[i] = !c->recompute[i];
    c->runs += starts_run(s, c, i) + starts_run(s, c, i + 1);
    c->io -= sign * s->units[i].io;
    c->compute += sign * s->units[i].compute;
    c->recomputed += c->recompute[i] ? 1 : (size_t)-1;
}

/* Weighs A by price and B by 1 - price; a price below 0: the larger of them, the total. */
static double value(const struct search *s, const struct choice *c, double price)
{
    double io = c->io + (double)c->runs * s->run_s;
    double compute = c->compute + s->fixed_s + (c->recomputed ? s->batch_s : 0);
    double a = io + s->share * compute, b = s->share * io + compute;
    return price < 0 ? longer(a, b) : price * a + (1 - price) * b;
}

static double total(const struct search *s, const struct choice *c)
{
    return value(s, c, -1);
}

static void count_up(const struct search *s, struct choice *c)
{
    c->io = c->compute = 0;
    c->runs = c->recomputed = 0;
    for (size_t i = 0; i < s->count; i++) {
        c->runs += starts_run(s, c, i);
        *(c->recompute[i] ? &c->compute : &c->io) += c->recompute[i] ? s->units[i].compute : s->units[i].io;
        c->recomputed += c->recompute[i] && !s->units[i].forced;
    }
}

/* ------------------------------------------------------------------------------------------- the searches */

/* All subsets, each one flip from the last (Gray code). */
static void try_all(const struct search *s, struct choice *c)
{
    size_t free_units[EXACT], n = 0;
    for (size_t i = 0; i < s->count; i++) {
        c->recompute[i] = s->units[i].forced;
        if (!s->units[i].forced && !s->units[i].pinned)
            free_units[n++] = i;
    }
    count_up(s, c);
    double best = total(s, c);
    uint32_t best_code = 0;
    for (uint32_t i = 1; i < 1u << n; i++) {
        flip(s, c, free_units[__builtin_ctz(i)]);
        double here = total(s, c);
        if (here < best) {
            best = here;
            best_code = i ^ i >> 1;
        }
    }
    for (size_t i = 0; i < n; i++)
        c->recompute[free_units[i]] = best_code >> i & 1;
    count_up(s, c);
}

/* The subset with the least price x A + (1 - price) x B. */
static void cheapest(const struct search *s, double price, struct choice *c)
{
    double io_price = price + (1 - price) * s->share, compute_price = price * s->share + (1 - price);
    double run = io_price * s->run_s, read = 1e300, recompute = 0; /* the least so far that end so */
    static const uint8_t read_from_read = 1, recompute_from_read = 2;
    uint8_t from[UNITS];
    for (size_t i = 0; i < s->count; i++) {
        const struct unit *u = &s->units[i];
        double on = u->follows ? read : read + run, fresh = recompute + run;
        from[i] = (on <= fresh ? read_from_read : 0) | (read <= recompute ? recompute_from_read : 0);
        recompute = u->pinned ? 1e300 : (read <= recompute ? read : recompute) + compute_price * u->compute;
        read = u->forced ? 1e300 : (on <= fresh ? on : fresh) + io_price * u->io;
    }
    bool now = recompute < read;
    for (size_t i = s->count; i-- > 0;) {
        c->recompute[i] = now;
        now = now ? !(from[i] & recompute_from_read) : !(from[i] & read_from_read);
    }
    count_up(s, c);
}

/* Goes from one choice to the other, unit by unit from one end, and keeps the best on the way. */
static void try_between(const struct search *s, const struct choice *from, const struct choice *to,
                        bool backwards, struct choice *best)
{
    struct choice c = *from;
    double least = total(s, best);
    size_t at_least = 0;
    for (size_t n = 0; n < s->count; n++) {
        size_t i = backwards ? s->count - 1 - n : n;
        if (from->recompute[i] == to->recompute[i])
            continue;
        flip(s, &c, i);
        if (total(s, &c) < least) {
            least = total(s, &c);
            at_least = n + 1;
        }
    }
    if (!at_least)
        return;
    *best = backwards ? *from : *to;
    const struct choice *rest = backwards ? to : from; /* what lies behind the cut */
    size_t cut = backwards ? s->count - at_least : at_least;
    memcpy(best->recompute + cut, rest->recompute + cut, (s->count - cut) * sizeof *rest->recompute);
    count_up(s, best);
}

/* Flips unit i, and unit j too if it is another; takes it back if that does not help. */
static bool try_flip(const struct search *s, struct choice *c, size_t i, size_t j)
{
    struct choice_sums {
        double io, compute;
    } before = {c->io, c->compute};
    double least = total(s, c);
    flip(s, c, i);
    if (j != i)
        flip(s, c, j);
    if (total(s, c) < least * (1 - 1e-9))
        return true;
    flip(s, c, i);
    if (j != i)
        flip(s, c, j);
    c->io = before.io; /* exactly as it was: nothing adds up */
    c->compute = before.compute;
    return false;
}

static void improve(const struct search *s, struct choice *c)
{
    bool better = true;
    for (int pass = 0; pass < 8 && better; pass++) {
        better = false;
        for (size_t i = 0; i < s->count; i++) {
            if (s->units[i].forced || s->units[i].pinned)
                continue;
            better |= try_flip(s, c, i, i);
            for (size_t j = i + 1; s->count <= PAIRS && j < s->count; j++)
                better |= !s->units[j].forced && !s->units[j].pinned && try_flip(s, c, i, j);
        }
    }
}

static void search_between(const struct search *s, struct choice *best)
{
    struct choice reads, recomputes, middle; /* at a price too low, and at one that is not */
    double low = 0, high = 1;
    cheapest(s, 0, &reads);
    cheapest(s, 1, &recomputes);
    *best = total(s, &reads) <= total(s, &recomputes) ? reads : recomputes;
    /* At either end the least A, or the least B, is its own total: nothing is better. */
    bool between =
        value(s, &reads, 1) > value(s, &reads, 0) && value(s, &recomputes, 1) < value(s, &recomputes, 0);
    for (int i = 0; between && i < BISECTIONS; i++) {
        double price = (low + high) / 2;
        cheapest(s, price, &middle);
        if (total(s, &middle) < total(s, best))
            *best = middle;
        if (total(s, best) <= value(s, &middle, price) * 1.001)
            break;
        if (value(s, &middle, 1) > value(s, &middle, 0)) {
            low = price;
            reads = middle;
        } else {
            high = price;
            recomputes = middle;
        }
    }
    if (between) {
        try_between(s, &reads, &recomputes, false, best);
        try_between(s, &reads, &recomputes, true, best);
    }
    /* Without a prompt nothing at all is computed if everything can be read. */
    for (size_t i = 0; i < s->count; i++)
        middle.recompute[i] = s->units[i].forced;
    count_up(s, &middle);
    if (total(s, &middle) < total(s, best))
        *best = middle;
    improve(s, best);
}

/* --------------------------------------------------------------------------------------------- the choices
 */

static void open_search(const struct plan_rates *rates, const struct plan_request *request, size_t group,
                        struct search *s)
{
    bool batch = request->prompt_tokens > 0;
    s->count = (request->count + group - 1) / group;
    s->run_s = request->layers * rates->io_request_s;
    s->share = share_of(request);
    s->fixed_s = compute_s(rates, request->prompt_position, request->prompt_tokens);
    for (size_t u = 0; u < s->count; u++)
        s->units[u] = (struct unit){.forced = true, .follows = follows(request->chunks, u * group)};
    for (size_t i = 0; i < request->count; i++) {
        const struct plan_chunk *chunk = &request->chunks[i];
        struct unit *unit = &s->units[i / group];
        double compute = compute_s(rates, chunk->position, chunk->tokens);
        batch = batch || chunk->bytes == 0;
        if (chunk->bytes == 0) {
            s->fixed_s += compute;
            continue;
        }
        unit->io += read_s(rates, chunk->bytes);
        unit->compute += compute;
        unit->forced = false;
        unit->pinned = unit->pinned || chunk->pinned;
    }
    s->fixed_s += batch ? rates->batch_s : 0;
    s->batch_s = batch ? 0 : rates->batch_s;
}

static void choose_best(const struct plan_rates *rates, const struct plan_request *request, bool *recompute)
{
    struct search s;
    struct choice best = {.runs = 0};
    size_t group = (request->count + UNITS - 1) / UNITS, free_units = 0;
    if (request->count == 0)
        return;
    open_search(rates, request, group, &s);
    for (size_t u = 0; u < s.count; u++)
        free_units += !s.units[u].forced && !s.units[u].pinned;
    if (free_units <= EXACT)
        try_all(&s, &best);
    else
        search_between(&s, &best);
    for (size_t i = 0; i < request->count; i++)
        recompute[i] = best.recompute[i / group] && !request->chunks[i].pinned;
}

static void choose_forced(const struct plan_request *request, bool *recompute)
{
    struct random random = {request->forced_seed};
    uint64_t left = 0;
    for (size_t i = 0; i < request->count; i++)
        left += request->chunks[i].bytes != 0;
    double share = request->forced_share > 0 ? request->forced_share < 1 ? request->forced_share : 1 : 0;
    uint64_t draw = (uint64_t)(share * (double)left + 0.5);
    for (size_t i = 0; i < request->count; i++) {
        recompute[i] = request->chunks[i].bytes == 0;
        if (recompute[i])
            continue;
        recompute[i] = random_below(&random, left--) < draw; /* draw of those left, each as likely */
        draw -= recompute[i];
    }
}

void plan_choose(const struct plan_rates *rates, const struct plan_request *request, struct plan *plan)
{
    if (request->mode == PLAN_BEST)
        choose_best(rates, request, plan->recompute);
    else if (request->mode == PLAN_FORCED)
        choose_forced(request, plan->recompute);
    else
        for (size_t i = 0; i < request->count; i++)
            plan->recompute[i] = request->mode == PLAN_RECOMPUTE_ONLY;
    plan_predict(rates, request, plan);
}
