/* KV sequences, chunks and the pool against a model: random reserves, writes, truncations, shares, attaches,
 * swap-outs, drops, restores, lowering, lost copies and budget changes. The pool's count always equals the
 * resident chunks held and never passes the budget by a claim; references and stored copies are counted
 * right; a write into one sequence is never seen by another. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "kv/sequence.h"

enum { SEQUENCES = 6, MOST_TOKENS = 200, MOST_CHUNKS = MOST_TOKENS / KV_CHUNK_TOKENS + 1, STORES = 1024 };

static const struct kv_geometry geometry = {2, 2, 8};

/* A copy on flash, counted: what chunks' `stored` points at. */
struct copy {
    int references;
    unsigned char mark[KV_CHUNK_TOKENS];
};

struct twin {
    size_t tokens;
    unsigned char mark[MOST_TOKENS]; /* what was written at each position */
};

struct world {
    struct random random;
    struct kv_pool *pool;
    struct kv_sequence s[SEQUENCES];
    struct twin t[SEQUENCES];
    struct copy copies[STORES];
    int live_copies, written_copies, dropped, restored, recomputed, lowered, attached, copied_on_write;
};

static unsigned char *slots(const struct kv_chunk *chunk)
{
    return chunk->data;
}

static void release_copy(void *argument, void *stored)
{
    struct world *w = argument;
    struct copy *copy = stored;
    assert_true(copy->references > 0);
    if (--copy->references == 0)
        w->live_copies--;
}

static size_t resident_bytes(const struct kv_chunk *chunk)
{
    return chunk->data ? kv_chunk_bytes(&geometry, chunk->level) : 0;
}

static uint32_t holders(const struct world *w, const struct kv_chunk *chunk, bool *first, int i)
{
    uint32_t count = 0;
    *first = true;
    for (int j = 0; j < SEQUENCES; j++)
        for (size_t c = 0; c < w->s[j].chunk_count; c++)
            if (w->s[j].chunks[c] == chunk) {
                count++;
                *first = *first && j >= i;
            }
    return count;
}

static void check_chunk(const struct world *w, const struct twin *t, const struct kv_chunk *chunk, size_t c)
{
    assert_int_equal(chunk->position, c * KV_CHUNK_TOKENS);
    size_t left = t->tokens > chunk->position ? t->tokens - chunk->position : 0;
    assert_int_equal(chunk->tokens, left < KV_CHUNK_TOKENS ? left : KV_CHUNK_TOKENS);
    assert_int_equal(chunk->data != NULL, chunk->level != 0);
    if (chunk->data)
        assert_memory_equal(slots(chunk), t->mark + chunk->position, chunk->tokens);
    assert_int_equal(chunk->stored != NULL, chunk->stored_level != 0);
    if (chunk->stored) {
        const struct copy *copy = chunk->stored;
        assert_true(copy >= w->copies && copy < w->copies + STORES && copy->references > 0);
        assert_true(chunk->stored_tokens <= chunk->tokens);
        assert_memory_equal(copy->mark, t->mark + chunk->position, chunk->stored_tokens);
    }
    assert_int_equal(kv_chunk_clean(chunk), chunk->data && chunk->stored &&
                                                chunk->level == chunk->stored_level &&
                                                chunk->tokens == chunk->stored_tokens);
}

static void check(const struct world *w)
{
    uint64_t bytes = 0;
    int copies = 0;
    for (int i = 0; i < SEQUENCES; i++) {
        const struct kv_sequence *s = &w->s[i];
        size_t private_bytes = 0;
        assert_int_equal(s->tokens, w->t[i].tokens);
        assert_true(s->chunk_count >= kv_chunks_of(s->tokens) && s->chunk_count <= s->chunk_capacity);
        for (size_t c = 0; c < s->chunk_count; c++) {
            bool first;
            uint32_t count = holders(w, s->chunks[c], &first, i);
            assert_int_equal(count, s->chunks[c]->references);
            check_chunk(w, &w->t[i], s->chunks[c], c);
            bytes += first ? resident_bytes(s->chunks[c]) : 0;
            copies += first && s->chunks[c]->stored;
            private_bytes += count == 1 ? resident_bytes(s->chunks[c]) : 0;
        }
        assert_int_equal(kv_sequence_private_bytes(s), private_bytes);
    }
    assert_int_equal(bytes, kv_pool_resident(w->pool));
    assert_int_equal(copies, w->live_copies);
}

/* Claims data for a chunk that has none; false where the budget does not allow it. */
static bool claim(struct world *w, struct kv_chunk *chunk, uint8_t level)
{
    uint64_t before = kv_pool_resident(w->pool), need = kv_chunk_bytes(&geometry, level);
    int code = kv_chunk_claim(w->pool, chunk, level);
    assert_int_equal(code, before + need <= kv_pool_budget(w->pool) ? 0 : -ENOSPC);
    assert_int_equal(kv_pool_resident(w->pool), before + (code ? 0 : need));
    return code == 0;
}

static void extend(struct world *w, struct kv_sequence *s, struct twin *t)
{
    struct random *r = &w->random;
    size_t end = s->tokens + random_below(r, 40), chunks = s->chunk_count;
    if (end > MOST_TOKENS)
        return;
    uint8_t level = random_below(r, 2) ? 16 : 8;
    uint64_t before = kv_pool_resident(w->pool), need = kv_sequence_reserve_bytes(s, end, level);
    struct kv_chunk *tail =
        s->tokens % KV_CHUNK_TOKENS && end > s->tokens ? s->chunks[s->tokens / KV_CHUNK_TOKENS] : NULL;
    bool writable = !tail || tail->level >= 8, shared = tail && tail->references > 1;
    bool fault = random_below(r, 8) == 0, locked = tail && random_below(r, 2);
    if (tail)
        tail->locked = locked;
    if (fault)
        mem_fault_set((long)(1 + random_below(r, 4)), false);
    int code = kv_sequence_reserve(s, end, level);
    mem_fault_set(0, false);
    if (code < 0) {
        assert_true(code == (writable ? -ENOSPC : -EINVAL) || (fault && code == -ENOMEM));
        assert_true(fault || !writable || before + need > kv_pool_budget(w->pool));
        assert_int_equal(kv_pool_resident(w->pool), before);
        assert_int_equal(s->chunk_count, chunks);
        assert_true(!tail || (s->chunks[s->tokens / KV_CHUNK_TOKENS] == tail && tail->locked == locked));
        if (tail)
            tail->locked = false;
        return;
    }
    assert_true(writable);
    assert_int_equal(kv_pool_resident(w->pool), before + need);
    assert_true(need == 0 || before + need <= kv_pool_budget(w->pool)); /* invariant 2 */
    if (tail) {
        struct kv_chunk *now = s->chunks[s->tokens / KV_CHUNK_TOKENS];
        assert_int_equal(now != tail, shared);
        assert_true(now->locked == locked &&
                    (!shared || !tail->locked)); /* one lock, with the one that runs */
        assert_true(!shared || !now->stored);
        now->locked = false;
        w->copied_on_write += shared;
    }
    for (size_t p = s->tokens; p < end; p++) {
        assert_true(s->chunks[p / KV_CHUNK_TOKENS]->references == 1);
        t->mark[p] = slots(s->chunks[p / KV_CHUNK_TOKENS])[p % KV_CHUNK_TOKENS] =
            (unsigned char)(1 + random_below(r, 255));
    }
    size_t computed = s->tokens + random_below(r, end - s->tokens + 1); /* a call that was stopped */
    if (random_below(r, 4))
        computed = end;
    kv_sequence_advance(s, computed);
    t->tokens = computed;
    if (random_below(r, 2)) /* as after every call: what was reserved and not used goes */
        kv_sequence_truncate(s, s->tokens);
}

static void truncate(struct world *w, struct kv_sequence *s, struct twin *t)
{
    size_t tokens = random_below(&w->random, t->tokens + 20), inside = tokens % KV_CHUNK_TOKENS;
    const struct kv_chunk *cut = tokens < t->tokens && inside ? s->chunks[tokens / KV_CHUNK_TOKENS] : NULL;
    bool whole = cut && (cut->references > 1 || cut->level < 8);
    kv_sequence_truncate(s, tokens);
    t->tokens = tokens >= t->tokens ? t->tokens : whole ? tokens - inside : tokens;
    assert_true(s->chunk_count <= kv_chunks_of(tokens));
    assert_true(!cut || whole || !cut->stored);
}

static void share(struct world *w, int i, int j)
{
    if (i == j)
        return;
    kv_sequence_deinit(&w->s[i]);
    kv_sequence_init(&w->s[i], w->pool);
    w->t[i].tokens = 0;
    check(w);
    mem_fault_set(1, false);
    assert_int_equal(kv_sequence_share(&w->s[i], &w->s[j]), -ENOMEM);
    mem_fault_set(0, false);
    check(w);
    assert_int_equal(kv_sequence_share(&w->s[i], &w->s[j]), 0);
    w->t[i] = w->t[j];
}

/* A chunk that another context has, found by its key: sequence i's beginning must be the same. */
static void attach(struct world *w, int i, int j)
{
    struct kv_sequence *s = &w->s[i], *from = &w->s[j];
    if (s->chunk_count >= from->chunk_count)
        return;
    struct kv_chunk *chunk = from->chunks[s->chunk_count];
    bool valid =
        s->tokens % KV_CHUNK_TOKENS == 0 && s->chunk_count == s->tokens / KV_CHUNK_TOKENS && chunk->tokens;
    bool same =
        memcmp(w->t[i].mark, w->t[j].mark, s->tokens < w->t[j].tokens ? s->tokens : w->t[j].tokens) == 0;
    if (valid && !same)
        return;
    assert_int_equal(kv_sequence_attach(s, chunk), valid ? 0 : -EINVAL);
    if (!valid)
        return;
    memcpy(w->t[i].mark + chunk->position, w->t[j].mark + chunk->position, chunk->tokens);
    w->t[i].tokens += chunk->tokens;
    w->attached++;
}

/* A swap-out: a new copy takes the place of the old one. */
static void store(struct world *w, struct kv_chunk *chunk)
{
    struct copy *copy = w->copies;
    if (!chunk->data || !chunk->tokens)
        return;
    while (copy->references)
        copy++;
    kv_chunk_forget_stored(w->pool, chunk);
    *copy = (struct copy){1, {0}};
    memcpy(copy->mark, slots(chunk), chunk->tokens);
    w->live_copies++;
    w->written_copies++;
    chunk->stored = copy;
    chunk->stored_level = chunk->level;
    chunk->stored_tokens = chunk->tokens;
}

static void lower(struct world *w, struct kv_chunk *chunk)
{
    unsigned index = kv_level_index(chunk->level);
    uint64_t before = kv_pool_resident(w->pool);
    if (!chunk->data || index + 1 == KV_LEVELS || !chunk->tokens)
        return;
    uint8_t level = kv_level_at(index + 1);
    size_t bytes = kv_chunk_bytes(kv_pool_geometry(w->pool), level);
    void *lowered = mem_calloc(1, bytes);
    if (lowered) {
        memcpy(lowered, chunk->data, chunk->tokens);
        size_t old = kv_chunk_bytes(kv_pool_geometry(w->pool), chunk->level);
        if (kv_chunk_lower(w->pool, chunk, lowered, level) == 0) { /* however full the pool is */
            assert_int_equal(kv_pool_resident(w->pool), before - old + bytes);
            w->lowered++;
        }
    }
    mem_free(lowered);
}

/* Brings a chunk back: from its copy if that is whole, else computed again. */
static void bring_back(struct world *w, struct kv_chunk *chunk, const struct twin *t)
{
    const struct copy *copy = chunk->stored;
    bool whole = copy && chunk->stored_tokens == chunk->tokens;
    if (!claim(w, chunk, whole ? chunk->stored_level : 8))
        return;
    memcpy(chunk->data, whole ? copy->mark : t->mark + chunk->position, chunk->tokens);
    assert_int_equal(kv_chunk_clean(chunk), whole);
    w->restored += whole;
    w->recomputed += !whole;
}

static void change_chunk(struct world *w, int i)
{
    struct kv_sequence *s = &w->s[i];
    if (s->chunk_count == 0)
        return;
    struct kv_chunk *chunk = s->chunks[random_below(&w->random, s->chunk_count)];
    switch (random_below(&w->random, 6)) {
    case 0:
    case 1:
        store(w, chunk);
        break;
    case 2:
        lower(w, chunk);
        break;
    case 3:
        if (!random_below(&w->random, 4))
            kv_chunk_forget_stored(w->pool, chunk); /* the copy turned out torn */
        break;
    default:
        if (!chunk->data) {
            bring_back(w, chunk, &w->t[i]);
        } else if (kv_chunk_clean(chunk) || (chunk->tokens && random_below(&w->random, 4) == 0)) {
            uint8_t level = chunk->level;
            kv_chunk_drop(w->pool, chunk);
            assert_true(chunk->stored_level <= level); /* invariant 5: what comes back is no higher */
            w->dropped++;
        }
    }
}

static void step(struct world *w)
{
    struct random *r = &w->random;
    int i = (int)random_below(r, SEQUENCES), j = (int)random_below(r, SEQUENCES);
    switch (random_below(r, 16)) {
    case 0:
        truncate(w, &w->s[i], &w->t[i]);
        break;
    case 1:
        share(w, i, j);
        break;
    case 2:
        kv_pool_set_budget(w->pool, (10 + random_below(r, 60)) * kv_chunk_bytes(&geometry, 16));
        break;
    case 3:
        attach(w, i, j);
        break;
    case 4:
        if (random_below(r, 4) == 0) {
            kv_sequence_truncate(&w->s[i], 0);
            assert_int_equal(w->s[i].chunk_count, w->t[i].tokens = 0);
        }
        break;
    case 5:
    case 6:
    case 7:
        extend(w, &w->s[i], &w->t[i]);
        break;
    default:
        change_chunk(w, i);
    }
}

static void random_walk(void **state)
{
    (void)state;
    static struct world w;
    int dropped = 0, restored = 0, recomputed = 0, lowered = 0, attached = 0, copied = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        w = (struct world){.random = {seed}};
        assert_int_equal(kv_pool_create(&geometry, 40 * kv_chunk_bytes(&geometry, 16), &w.pool), 0);
        kv_pool_on_release(w.pool, release_copy, &w);
        for (int i = 0; i < SEQUENCES; i++)
            kv_sequence_init(&w.s[i], w.pool);
        for (int n = 0; n < 800; n++) {
            step(&w);
            check(&w);
        }
        for (int i = 0; i < SEQUENCES; i++)
            kv_sequence_deinit(&w.s[i]);
        assert_int_equal(kv_pool_resident(w.pool), 0);
        assert_int_equal(w.live_copies, 0); /* the space of what is gone comes back */
        kv_pool_destroy(w.pool);
        dropped += w.dropped;
        restored += w.restored;
        recomputed += w.recomputed;
        lowered += w.lowered;
        attached += w.attached;
        copied += w.copied_on_write;
    }
    /* The walk went everywhere. */
    assert_true(dropped > 500 && restored > 200 && recomputed > 20 && lowered > 500 && attached > 50 &&
                copied > 20);
}

static void sizes_are_as_stated(void **state)
{
    (void)state;
    const struct kv_geometry llama = {16, 8, 64}; /* Llama 3.2 1B */
    assert_int_equal(kv_chunk_bytes(&llama, 16), 16 * 8 * 2 * 16 * 64 * 2);
    assert_int_equal(kv_chunk_bytes(&llama, 8), 16 * 8 * (2 * 16 * 64 + 2 * 16 * 2));
    assert_int_equal(kv_chunk_bytes(&llama, 4), 16 * 8 * (2 * 16 * 64 / 2 + 2 * 16 * 2));
    assert_int_equal(kv_chunk_bytes(&llama, 3), 16 * 8 * (16 * 64 / 2 + 16 * 64 / 4 + 16 * 2 + 64 + 2 * 2));
    assert_int_equal(kv_chunk_bytes(&llama, 2), 16 * 8 * (2 * 16 * 64 / 4 + 2 * 64 + 4 * 2));
    assert_int_equal(kv_chunk_bytes(&llama, KV_PAPER | 4), 16 * 8 * (2 * 16 * 64 / 2 + 4 * 64 * 2));
    assert_int_equal(kv_chunk_bytes(&llama, KV_PAPER | 2), 16 * 8 * (2 * 16 * 64 / 4 + 4 * 64 * 2));
    const struct kv_geometry odd = {1, 1, 24}; /* its last 8 bytes fill up to 16 */
    assert_int_equal(kv_chunk_bytes(&odd, 2), 2 * 16 * 24 / 4 + 2 * 24 + 4 * 2 + 8);
    for (unsigned level = 0; level < 300; level++)
        assert_int_equal(kv_level_valid(level), level == 2 || level == 3 || level == 4 || level == 8 ||
                                                    level == 16 || level == (KV_PAPER | 2) ||
                                                    level == (KV_PAPER | 4));
    for (unsigned i = 0; i < KV_LEVELS; i++) {
        assert_int_equal(kv_level_at(i), ((const uint8_t[KV_LEVELS]){16, 8, 4, 3, 2})[i]);
        assert_int_equal(kv_level_index(kv_level_at(i)), i);
        assert_true(i == 0 ||
                    kv_chunk_bytes(&llama, kv_level_at(i)) < kv_chunk_bytes(&llama, kv_level_at(i - 1)));
    }
    assert_int_equal(kv_level_index(KV_PAPER | 4), 2);
    assert_int_equal(kv_level_index(KV_PAPER | 2), 4);
    assert_int_equal(kv_chunks_of(0), 0);
    assert_int_equal(kv_chunks_of(1), 1);
    assert_int_equal(kv_chunks_of(16), 1);
    assert_int_equal(kv_chunks_of(17), 2);
}

static void density_is_an_average(void **state)
{
    (void)state;
    struct kv_chunk chunk = {0};
    assert_true(kv_chunk_density(&chunk) == 0);
    chunk.received = 3u << 18; /* three whole attentions, over twelve rows that could see it */
    chunk.rows = 12;
    assert_true(kv_chunk_density(&chunk) == 0.25);
}

static void what_cannot_be_written_on_is_refused(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence s;
    assert_int_equal(kv_pool_create(&geometry, 1 << 20, &pool), 0);
    kv_sequence_init(&s, pool);
    assert_int_equal(kv_sequence_reserve(&s, 20, 8), 0);
    kv_sequence_advance(&s, 20);
    kv_chunk_drop(pool, s.chunks[1]); /* lost */
    assert_int_equal(kv_sequence_reserve_bytes(&s, 21, 8), 0);
    assert_int_equal(kv_sequence_reserve(&s, 21, 8), -EINVAL);
    assert_int_equal(kv_sequence_reserve(&s, 20, 8), 0); /* nothing to write */
    assert_int_equal(kv_chunk_claim(pool, s.chunks[1], 4), 0);
    assert_int_equal(kv_sequence_reserve(&s, 33, 8), -EINVAL);
    assert_int_equal(s.chunk_count, 2);
    kv_sequence_truncate(&s, 18); /* nor can it be cut: the 4-bit chunk goes as a whole */
    assert_int_equal(s.tokens, 16);
    assert_int_equal(kv_sequence_reserve(&s, 33, 8), 0);
    kv_sequence_deinit(&s);
    assert_int_equal(kv_pool_resident(pool), 0);
    kv_pool_destroy(pool);
}

static void who_writes_a_chunk_out_keeps_it(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence s;
    assert_int_equal(kv_pool_create(&geometry, 1 << 20, &pool), 0);
    kv_sequence_init(&s, pool);
    assert_int_equal(kv_sequence_reserve(&s, 20, 8), 0);
    kv_sequence_advance(&s, 20);
    struct kv_chunk *tail = s.chunks[1];
    memset(tail->data, 7, 4);
    tail->references++; /* the writer */
    tail->writing = true;
    assert_int_equal(kv_sequence_reserve(&s, 21, 8), 0);
    assert_true(s.chunks[1] != tail); /* written on in a copy */
    assert_memory_equal(slots(s.chunks[1]), ((unsigned char[]){7, 7, 7, 7}), 4);
    kv_sequence_deinit(&s);
    assert_int_equal(kv_pool_resident(pool), kv_chunk_bytes(&geometry, 8));
    tail->writing = false;
    kv_chunk_release(pool, tail);
    assert_int_equal(kv_pool_resident(pool), 0);
    kv_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_walk),
        cmocka_unit_test(sizes_are_as_stated),
        cmocka_unit_test(density_is_an_average),
        cmocka_unit_test(what_cannot_be_written_on_is_refused),
        cmocka_unit_test(who_writes_a_chunk_out_keeps_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
