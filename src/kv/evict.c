/* The eviction order: a heap of indices in the caller's array, of which only as many are taken out as are
 * needed. */
#include "kv/evict.h"

#include "kv/geometry.h"

#include <errno.h>
#include <string.h>

struct heap {
    const struct evict_candidate *candidates;
    enum evict_order order;
    uint64_t now;
    size_t *at; /* at[0] goes first */
    size_t count;
};

static double score(const struct heap *h, const struct evict_candidate *c)
{
    double age = c->last_used < h->now ? (double)(h->now - c->last_used) + 1 : 1;
    return c->reload_s / (age * (double)c->bytes);
}

static bool before(const struct heap *h, size_t i, size_t j)
{
    const struct evict_candidate *a = &h->candidates[i], *b = &h->candidates[j];
    if (h->order == EVICT_LCTRU && kv_level_bits(a->level) != kv_level_bits(b->level))
        return kv_level_bits(a->level) > kv_level_bits(b->level);
    if (h->order == EVICT_COST) {
        double of_a = score(h, a), of_b = score(h, b);
        if (of_a < of_b || of_b < of_a)
            return of_a < of_b;
    }
    if (a->last_used != b->last_used)
        return a->last_used < b->last_used;
    return a->position != b->position ? a->position < b->position : i < j;
}

static void sink(struct heap *h, size_t hole, size_t index)
{
    for (;;) {
        size_t child = 2 * hole + 1;
        if (child >= h->count)
            break;
        if (child + 1 < h->count && before(h, h->at[child + 1], h->at[child]))
            child++;
        if (!before(h, h->at[child], index))
            break;
        h->at[hole] = h->at[child];
        hole = child;
    }
    h->at[hole] = index;
}

size_t evict_choose(enum evict_order order, uint64_t now, const struct evict_candidate *candidates,
                    size_t count, uint64_t need, size_t *out, uint64_t *freed)
{
    struct heap heap = {candidates, order, now, out, 0};
    *freed = 0;
    if (need == 0)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (candidates[i].clean && !candidates[i].locked && candidates[i].bytes)
            out[heap.count++] = i;
    size_t all = heap.count;
    for (size_t i = all / 2; i-- > 0;)
        sink(&heap, i, out[i]);
    while (heap.count && *freed < need) {
        size_t first = out[0], last = out[--heap.count];
        *freed += candidates[first].bytes;
        sink(&heap, 0, last);
        out[heap.count] = first; /* behind the heap, in the place it left */
    }
    size_t chosen = all - heap.count;
    for (size_t i = 0, j = all - 1; all && i < j; i++, j--) { /* from the back of the array to its front */
        size_t swap = out[i];
        out[i] = out[j];
        out[j] = swap;
    }
    return chosen;
}

static const char *const names[] = {[EVICT_LCTRU] = "lctru", [EVICT_LRU] = "lru", [EVICT_COST] = "cost"};

const char *evict_order_name(enum evict_order order)
{
    return names[order];
}

int evict_order_find(const char *name, enum evict_order *order)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *order = (enum evict_order)i;
            return 0;
        }
    return -EINVAL;
}
