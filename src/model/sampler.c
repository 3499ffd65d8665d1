/* Choosing the next token from logits.
 *
 * Candidates are ordered by logit and then by id, so that the choice does not depend on how they were
 * selected. Only as many are sorted as the cut-offs ask for: top-k selects in linear time, top-p takes them
 * off a heap until it has enough, and without either nothing is sorted at all. Sums are in double precision.
 *
 * Logits that are no numbers count as minus infinity, plus infinity as the largest finite number. One thread
 * at a time. */
#include "model/sampler.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "base/memory.h"
#include "base/random.h"

enum { REPEAT_LAST_MAX = 1 << 20 };

struct candidate {
    float logit;
    int32_t id;
};

struct sampler {
    struct sampler_params params;
    size_t vocabulary;
    struct random random;
    struct candidate *candidates; /* vocabulary of them */
    int32_t *recent;              /* ring of the last repeat_last tokens */
    size_t recent_capacity, recent_count, recent_next;
    uint32_t *seen; /* per token: how often it stands in the ring */
};

const struct sampler_params sampler_defaults = {
    .temperature = 0.8f,
    .top_k = 40,
    .top_p = 0.95f,
    .min_p = 0.05f,
    .repeat_penalty = 1.0f,
    .repeat_last = 64,
    .seed = 0,
};

const char *sampler_params_check(const struct sampler_params *params)
{
    /* Written so that a NaN fails. */
    if (!(params->temperature >= 0 && params->temperature <= 10))
        return "temperature must be between 0 and 10";
    if (!(params->top_p > 0 && params->top_p <= 1))
        return "top_p must be above 0 and at most 1";
    if (!(params->min_p >= 0 && params->min_p < 1))
        return "min_p must be at least 0 and below 1";
    if (!(params->repeat_penalty >= 1 && params->repeat_penalty <= 10))
        return "repeat_penalty must be between 1 and 10";
    if (params->repeat_last > REPEAT_LAST_MAX)
        return "repeat_last must be at most 1048576";
    return NULL;
}

int sampler_create(const struct sampler_params *params, size_t vocabulary, struct sampler **out)
{
    if (sampler_params_check(params) || vocabulary == 0 || vocabulary > INT32_MAX)
        return -EINVAL;
    struct sampler *sampler = mem_calloc(1, sizeof *sampler);
    if (!sampler)
        return -ENOMEM;
    sampler->params = *params;
    sampler->vocabulary = vocabulary;
    sampler->random.state = params->seed;
    sampler->candidates = mem_alloc(vocabulary * sizeof *sampler->candidates);
    bool ok = sampler->candidates != NULL;
    if (ok && params->repeat_penalty != 1 && params->repeat_last > 0) {
        sampler->recent_capacity = params->repeat_last;
        sampler->recent = mem_calloc(sampler->recent_capacity, sizeof *sampler->recent);
        sampler->seen = mem_calloc(vocabulary, sizeof *sampler->seen);
        ok = sampler->recent && sampler->seen;
    }
    if (!ok) {
        sampler_destroy(sampler);
        return -ENOMEM;
    }
    *out = sampler;
    return 0;
}

void sampler_destroy(struct sampler *sampler)
{
    if (!sampler)
        return;
    mem_free(sampler->candidates);
    mem_free(sampler->recent);
    mem_free(sampler->seen);
    mem_free(sampler);
}

void sampler_accept(struct sampler *sampler, int32_t token)
{
    if (sampler->recent_capacity == 0 || token < 0 || (size_t)token >= sampler->vocabulary)
        return;
    if (sampler->recent_count == sampler->recent_capacity)
        sampler->seen[sampler->recent[sampler->recent_next]]--;
    else
        sampler->recent_count++;
    sampler->recent[sampler->recent_next] = token;
    sampler->seen[token]++;
    sampler->recent_next = (sampler->recent_next + 1) % sampler->recent_capacity;
}

/* --- candidates ----------------------------------------------------------------------------------------- */

/* a stands before b. */
static bool before(struct candidate a, struct candidate b)
{
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

static void swap(struct candidate *a, struct candidate *b)
{
    struct candidate c = *a;
    *a = *b;
    *b = c;
}

static void fill(struct sampler *sampler, const float *logits)
{
    float penalty = sampler->params.repeat_penalty;
    for (size_t i = 0; i < sampler->vocabulary; i++) {
        float logit = isnan(logits[i]) ? -INFINITY : logits[i] > FLT_MAX ? FLT_MAX : logits[i];
        if (sampler->seen && sampler->seen[i])
            logit = logit > 0 ? logit / penalty : logit * penalty;
        sampler->candidates[i] = (struct candidate){logit, (int32_t)i};
    }
}

static struct candidate best(const struct candidate *candidates, size_t count)
{
    struct candidate top = candidates[0];
    for (size_t i = 1; i < count; i++)
        if (before(candidates[i], top))
            top = candidates[i];
    return top;
}

/* Moves the k best to the front, in no order: Hoare's selection with the median of three. */
static void select_best(struct candidate *c, size_t count, size_t k)
{
    size_t low = 0, high = count - 1;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (before(c[middle], c[low]))
            swap(&c[middle], &c[low]);
        if (before(c[high], c[low]))
            swap(&c[high], &c[low]);
        if (before(c[high], c[middle]))
            swap(&c[high], &c[middle]);
        struct candidate pivot = c[middle];
        size_t i = low, j = high;
        for (;;) {
            while (before(c[i], pivot))
                i++;
            while (before(pivot, c[j]))
                j--;
            if (i >= j)
                break;
            swap(&c[i++], &c[j--]);
        }
        /* c[low..j] are not after the pivot, c[j+1..high] not before it. */
        if (k - 1 <= j)
            high = j;
        else
            low = j + 1;
    }
}

static void sift(struct candidate *heap, size_t count, size_t i)
{
    for (size_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child]))
            child++;
        if (!before(heap[child], heap[i]))
            return;
        swap(&heap[child], &heap[i]);
    }
}

/* Keeps the fewest best candidates whose share of the whole is at least top_p; they end up in front, best
 * first. floor: logits below it are not wanted in any case. The heap stands behind what was taken: reversed
 * in place at the end of the array, so that taking the best is a swap. */
static size_t keep_top_p(struct candidate *candidates, size_t count, float top_p, double floor)
{
    double top = best(candidates, count).logit, whole = 0, taken = 0;
    for (size_t i = 0; i < count; i++)
        whole += exp(candidates[i].logit - top);
    for (size_t i = count / 2; i-- > 0;)
        sift(candidates, count, i);
    size_t left = count;
    while (left > 0 && taken < (double)top_p * whole && candidates[0].logit >= floor) {
        taken += exp(candidates[0].logit - top);
        swap(&candidates[0], &candidates[--left]);
        sift(candidates, left, 0);
    }
    /* The taken ones stand at the end, best last. */
    for (size_t i = 0, j = count - 1; i < j; i++, j--)
        swap(&candidates[i], &candidates[j]);
    return count - left;
}

static size_t keep_above(struct candidate *candidates, size_t count, double floor)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (candidates[i].logit >= floor)
            candidates[kept++] = candidates[i];
    return kept;
}

static int32_t draw(struct sampler *sampler, size_t count, double top)
{
    const struct candidate *candidates = sampler->candidates;
    double whole = 0, temperature = sampler->params.temperature;
    for (size_t i = 0; i < count; i++)
        whole += exp((candidates[i].logit - top) / temperature);
    double at = random_unit(&sampler->random) * whole;
    int32_t last = -1;
    for (size_t i = 0; i < count; i++) {
        double share = exp((candidates[i].logit - top) / temperature);
        if (share > 0)
            last = candidates[i].id;
        if (share > 0 && at < share)
            break;
        at -= share;
    }
    return last;
}

int32_t sampler_pick(struct sampler *sampler, const float *logits)
{
    const struct sampler_params *params = &sampler->params;
    struct candidate *candidates = sampler->candidates;
    size_t count = sampler->vocabulary;
    fill(sampler, logits);
    struct candidate top = best(candidates, count);
    if (params->temperature == 0 || top.logit == -INFINITY)
        return top.id;
    if (params->top_k > 0 && params->top_k < count) {
        select_best(candidates, count, params->top_k);
        count = params->top_k;
    }
    double floor = params->min_p > 0 ? top.logit + log(params->min_p) : -INFINITY;
    if (params->top_p < 1)
        count = keep_top_p(candidates, count, params->top_p, floor);
    else if (params->min_p > 0)
        count = keep_above(candidates, count, floor);
    return draw(sampler, count, top.logit);
}
