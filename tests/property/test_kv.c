/* KV sequences and the pool against a model: random reserves, truncations, forks and budget changes. The
 * pool's count always equals the distinct chunks held, never passes the budget, and a write into one sequence
 * is never seen by another. */
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

enum { SEQUENCES = 6, MOST_TOKENS = 200 };

static const struct kv_geometry geometry = {2, 2, 8};

struct twin {
    size_t tokens;
    unsigned char mark[MOST_TOKENS]; /* what was written at each position */
};

static unsigned char *slot(struct kv_sequence *s, size_t position)
{
    return (unsigned char *)s->chunks[position / KV_CHUNK_TOKENS]->data + position % KV_CHUNK_TOKENS;
}

static void check(struct kv_pool *pool, struct kv_sequence *s, const struct twin *t)
{
    uint64_t bytes = 0;
    for (int i = 0; i < SEQUENCES; i++) {
        assert_int_equal(s[i].tokens, t[i].tokens);
        assert_true(s[i].chunk_count >= kv_chunks_of(s[i].tokens));
        for (size_t p = 0; p < t[i].tokens; p++)
            assert_int_equal(*slot(&s[i], p), t[i].mark[p]);
        for (size_t c = 0; c < s[i].chunk_count; c++) {
            uint32_t holders = 0;
            bool first = true;
            for (int j = 0; j < SEQUENCES; j++)
                for (size_t d = 0; d < s[j].chunk_count; d++)
                    if (s[j].chunks[d] == s[i].chunks[c]) {
                        holders++;
                        first = first && (j > i || (j == i && d >= c));
                    }
            assert_int_equal(holders, s[i].chunks[c]->references);
            bytes += first ? kv_chunk_bytes(&geometry, s[i].chunks[c]->level) : 0;
        }
    }
    assert_int_equal(bytes, kv_pool_resident(pool));
}

static void extend(struct kv_sequence *s, struct twin *t, struct random *r, struct kv_pool *pool)
{
    size_t end = s->tokens + random_below(r, 40);
    if (end > MOST_TOKENS)
        return;
    uint8_t level = random_below(r, 2) ? 16 : 8;
    uint64_t before = kv_pool_resident(pool), need = kv_sequence_reserve_bytes(s, end, level);
    size_t chunks = s->chunk_count;
    bool fault = random_below(r, 8) == 0;
    if (fault)
        mem_fault_set((long)(1 + random_below(r, 4)), false);
    int code = kv_sequence_reserve(s, end, level);
    mem_fault_set(0, false);
    if (code < 0) {
        assert_true(fault || before + need > kv_pool_budget(pool));
        assert_true(code == -ENOSPC || (fault && code == -ENOMEM));
        assert_int_equal(kv_pool_resident(pool), before);
        assert_int_equal(s->chunk_count, chunks);
        return;
    }
    assert_int_equal(kv_pool_resident(pool), before + need);
    if (need)
        assert_true(kv_pool_resident(pool) <= kv_pool_budget(pool));
    for (; s->tokens < end; s->tokens++) {
        unsigned char mark = (unsigned char)(1 + random_below(r, 255));
        *slot(s, s->tokens) = t->mark[t->tokens++] = mark;
    }
}

static void random_walk(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct random r = {seed};
        struct kv_pool *pool;
        struct kv_sequence s[SEQUENCES];
        struct twin t[SEQUENCES] = {0};
        assert_int_equal(kv_pool_create(&geometry, 40 * kv_chunk_bytes(&geometry, 16), &pool), 0);
        for (int i = 0; i < SEQUENCES; i++)
            kv_sequence_init(&s[i], pool);
        for (int step = 0; step < 400; step++) {
            int i = (int)random_below(&r, SEQUENCES), j = (int)random_below(&r, SEQUENCES);
            switch (random_below(&r, 6)) {
            case 0:
                t[i].tokens = random_below(&r, t[i].tokens + 1);
                kv_sequence_truncate(&s[i], t[i].tokens);
                break;
            case 1:
                if (i == j)
                    break;
                kv_sequence_deinit(&s[i]);
                assert_int_equal(kv_sequence_share(&s[i], &s[j]), 0);
                t[i] = t[j];
                break;
            case 2:
                kv_pool_set_budget(pool, (10 + random_below(&r, 60)) * kv_chunk_bytes(&geometry, 16));
                break;
            default:
                extend(&s[i], &t[i], &r, pool);
            }
            check(pool, s, t);
        }
        for (int i = 0; i < SEQUENCES; i++)
            kv_sequence_deinit(&s[i]);
        assert_int_equal(kv_pool_resident(pool), 0);
        kv_pool_destroy(pool);
    }
}

static void sizes_are_as_stated(void **state)
{
    (void)state;
    const struct kv_geometry llama = {16, 8, 64}; /* Llama 3.2 1B */
    assert_int_equal(kv_chunk_bytes(&llama, 16), 16 * 8 * 2 * 16 * 64 * 2);
    assert_int_equal(kv_chunk_bytes(&llama, 8), 16 * 8 * (2 * 16 * 64 + 2 * 16 * 2));
    assert_int_equal(kv_chunks_of(0), 0);
    assert_int_equal(kv_chunks_of(1), 1);
    assert_int_equal(kv_chunks_of(16), 1);
    assert_int_equal(kv_chunks_of(17), 2);
}

static void private_bytes_are_what_dropping_frees(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence a, b;
    assert_int_equal(kv_pool_create(&geometry, 1 << 20, &pool), 0);
    kv_sequence_init(&a, pool);
    kv_sequence_init(&b, pool);
    assert_int_equal(kv_sequence_reserve(&a, 40, 8), 0);
    a.tokens = 40;
    assert_int_equal(kv_sequence_private_bytes(&a), 3 * kv_chunk_bytes(&geometry, 8));
    assert_int_equal(kv_sequence_share(&b, &a), 0);
    assert_int_equal(kv_sequence_private_bytes(&a), 0);
    assert_int_equal(kv_sequence_reserve(&b, 41, 8), 0); /* copies the shared last chunk */
    assert_int_equal(kv_sequence_private_bytes(&a), kv_chunk_bytes(&geometry, 8));
    kv_sequence_deinit(&b);
    kv_sequence_deinit(&a);
    kv_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_walk),
        cmocka_unit_test(sizes_are_as_stated),
        cmocka_unit_test(private_bytes_are_what_dropping_frees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
