/* The engine on the bundled model: whatever way tokens are batched, split over threads, recomputed in pieces
 * or computed by another instruction set, K, V and logits are the same bits (docs/INVARIANTS.md, 8 and 9). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "engine/engine.h"
#include "engine/engine_internal.h"
#include "engine/lowering.h"

enum { TOKENS = 150 };

static const char *const models[] = {"models/pocket-q8_0.gguf", "models/pocket-q4_k_m.gguf",
                                     "models/pocket-f16.gguf"};

struct run {
    struct engine *engine;
    struct kv_pool *pool;
    struct kv_sequence sequence;
    float *logits; /* [TOKENS][vocabulary] */
    uint32_t vocabulary;
};

static void start(struct run *run, const char *model, unsigned threads, uint8_t level)
{
    struct error error = {0};
    const struct engine_options options = {.model_path = model, .threads = threads};
    if (engine_open(&options, &run->engine, &error) < 0)
        fail_msg("%s", error.text);
    run->vocabulary = engine_model(run->engine)->vocabulary;
    assert_int_equal(kv_pool_create(&engine_model(run->engine)->kv, 1 << 30, &run->pool), 0);
    kv_sequence_init(&run->sequence, run->pool);
    assert_int_equal(kv_sequence_reserve(&run->sequence, TOKENS, level), 0);
    run->logits = mem_calloc(TOKENS, run->vocabulary * sizeof(float));
    assert_non_null(run->logits);
}

static void finish(struct run *run)
{
    kv_sequence_deinit(&run->sequence);
    kv_pool_destroy(run->pool);
    engine_close(run->engine);
    mem_free(run->logits);
}

static void draw_tokens(int32_t *tokens, uint64_t seed, uint32_t vocabulary)
{
    struct random r = {seed};
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)random_below(&r, vocabulary);
}

/* Runs all tokens, cut into batches of random sizes up to `most`. */
static void forward_all(struct run *run, const int32_t *tokens, size_t most, struct random *r)
{
    struct error error;
    for (size_t at = 0; at < TOKENS;) {
        size_t n = most >= TOKENS ? TOKENS : 1 + random_below(r, most);
        n = n < TOKENS - at ? n : TOKENS - at;
        const struct engine_batch batch = {.sequence = &run->sequence,
                                           .tokens = tokens + at,
                                           .count = n,
                                           .logits = run->logits + at * run->vocabulary};
        assert_int_equal(engine_forward(run->engine, &batch, &error), 0);
        kv_sequence_advance(&run->sequence, at += n);
    }
}

static void assert_same(const struct run *a, const struct run *b)
{
    const struct kv_geometry *g = kv_pool_geometry(a->pool);
    for (size_t c = 0; c < kv_chunks_of(TOKENS); c++)
        assert_memory_equal(a->sequence.chunks[c]->data, b->sequence.chunks[c]->data,
                            kv_chunk_bytes(g, a->sequence.chunks[c]->level));
    assert_memory_equal(a->logits, b->logits, (size_t)TOKENS * a->vocabulary * sizeof(float));
}

static void batches_and_threads_do_not_matter(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int level = 8; level <= 16; level += 8) {
            struct random r = {m + 1};
            struct run whole, parts;
            int32_t tokens[TOKENS];
            start(&whole, models[m], 2, (uint8_t)level);
            draw_tokens(tokens, m, whole.vocabulary);
            forward_all(&whole, tokens, TOKENS, &r);
            for (int round = 0; round < 3; round++) {
                start(&parts, models[m], 1 + (unsigned)round, (uint8_t)level);
                forward_all(&parts, tokens, (size_t[]){1, 7, 60}[round], &r);
                assert_same(&whole, &parts);
                finish(&parts);
            }
            finish(&whole);
        }
}

/* A batch of three parts, taken through the layers together, or one after the other, or given in pieces. */
static void parts_and_spans_do_not_matter(void **state)
{
    (void)state;
    enum { LONG = 2 * ENGINE_BATCH + 88, LAST = 20, WAYS = 3 };
    static const size_t most[WAYS] = {LONG, LONG, 100};
    struct run runs[WAYS] = {0};
    int32_t tokens[LONG];
    struct random r = {5};
    for (int i = 0; i < LONG; i++)
        tokens[i] = (int32_t)random_below(&r, 4096);
    for (int w = 0; w < WAYS; w++) {
        struct error error;
        start(&runs[w], models[0], 2, 8);
        assert_true(runs[w].engine->span > LONG);
        if (w == 1)
            runs[w].engine->span = ENGINE_BATCH;
        assert_int_equal(kv_sequence_reserve(&runs[w].sequence, LONG, 8), 0);
        for (size_t at = 0, n; at < LONG; at += n) {
            n = most[w] < LONG - at ? most[w] : LONG - at;
            size_t first = LONG - LAST > at ? LONG - LAST : at; /* of those whose logits are wanted */
            const struct engine_batch batch = {.sequence = &runs[w].sequence,
                                               .tokens = tokens + at,
                                               .count = n,
                                               .logits_from = first - at < n ? first - at : n,
                                               .logits = runs[w].logits +
                                                         (first - (LONG - LAST)) * runs[w].vocabulary,
                                               .density_tokens = n};
            assert_int_equal(engine_forward(runs[w].engine, &batch, &error), 0);
            kv_sequence_advance(&runs[w].sequence, at + n);
        }
    }
    size_t bytes = kv_chunk_bytes(kv_pool_geometry(runs[0].pool), 8);
    for (int w = 1; w < WAYS; w++) {
        for (size_t c = 0; c < kv_chunks_of(LONG); c++) {
            const struct kv_chunk *a = runs[0].sequence.chunks[c], *b = runs[w].sequence.chunks[c];
            assert_memory_equal(a->data, b->data, bytes);
            assert_true(a->rows > 0 && a->rows == b->rows && a->received == b->received);
        }
        assert_memory_equal(runs[0].logits, runs[w].logits, LAST * runs[0].vocabulary * sizeof(float));
    }
    for (int w = 0; w < WAYS; w++)
        finish(&runs[w]);
}

static void instruction_sets_agree(void **state)
{
    (void)state;
    static const char *const isas[] = {"plain", "avx2", "avxvnni", "avx512", "amx"};
    struct random r = {1};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct run first, other;
        int32_t tokens[TOKENS];
        for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
            struct run *run = i ? &other : &first;
            setenv("LLMS_ISA", isas[i], 1);
            start(run, models[m], 2, 16);
            draw_tokens(tokens, 5, run->vocabulary);
            forward_all(run, tokens, TOKENS, &r);
            if (i) {
                assert_same(&first, run);
                finish(run);
            }
        }
        finish(&first);
    }
    unsetenv("LLMS_ISA");
}

/* Chunks are wiped at random and recomputed, all together and interleaved: they come back bit by bit. */
static void recomputed_chunks_are_the_same(void **state)
{
    (void)state;
    struct random r = {77};
    struct run run, twin;
    struct error error;
    int32_t tokens[TOKENS], lost[TOKENS];
    uint32_t positions[TOKENS];
    start(&run, models[0], 2, 16);
    start(&twin, models[0], 2, 16);
    draw_tokens(tokens, 3, run.vocabulary);
    forward_all(&run, tokens, TOKENS, &r);
    forward_all(&twin, tokens, TOKENS, &r);
    for (int round = 0; round < 12; round++) {
        size_t count = 0;
        for (size_t c = 0; c < kv_chunks_of(TOKENS); c++) {
            if (random_below(&r, 2))
                continue;
            memset(run.sequence.chunks[c]->data, 0x3c, kv_chunk_bytes(kv_pool_geometry(run.pool), 16));
            for (size_t t = c * KV_CHUNK_TOKENS; t < (c + 1) * KV_CHUNK_TOKENS && t < TOKENS; t++, count++) {
                lost[count] = tokens[t];
                positions[count] = (uint32_t)t;
            }
        }
        const struct engine_batch batch = {.sequence = &run.sequence,
                                           .tokens = lost,
                                           .positions = positions,
                                           .count = count,
                                           .logits_from = count};
        assert_int_equal(engine_forward(run.engine, &batch, &error), 0);
        for (size_t t = 0; t < TOKENS / KV_CHUNK_TOKENS; t++) /* whole chunks; the last has unused slots */
            assert_memory_equal(run.sequence.chunks[t]->data, twin.sequence.chunks[t]->data,
                                kv_chunk_bytes(kv_pool_geometry(run.pool), 16));
    }
    finish(&run);
    finish(&twin);
}

static void bad_batches_are_refused(void **state)
{
    (void)state;
    struct run run;
    struct error error;
    start(&run, models[0], 2, 16);
    int32_t tokens[2] = {1, (int32_t)run.vocabulary};
    const uint32_t backwards[2] = {5, 5}, far[1] = {100000};
    struct engine_batch batch = {
        .sequence = &run.sequence, .tokens = tokens, .count = 2, .logits = run.logits};
    assert_int_equal(engine_forward(run.engine, &batch, &error), -EINVAL); /* no such token */
    tokens[1] = -1;
    assert_int_equal(engine_forward(run.engine, &batch, &error), -EINVAL);
    tokens[1] = 2;
    batch.positions = backwards;
    assert_int_equal(engine_forward(run.engine, &batch, &error), -EINVAL);
    batch.positions = far;
    batch.count = 1;
    assert_int_equal(engine_forward(run.engine, &batch, &error), -EINVAL);
    batch.positions = NULL;
    batch.logits = NULL;
    assert_int_equal(engine_forward(run.engine, &batch, &error), -EINVAL);
    atomic_bool cancel = true;
    batch.logits_from = 1;
    batch.cancel = &cancel;
    assert_int_equal(engine_forward(run.engine, &batch, &error), -ECANCELED);
    cancel = false;
    assert_int_equal(engine_forward(run.engine, &batch, &error), 0);
    finish(&run);
}

static void opening_survives_memory_faults(void **state)
{
    (void)state;
    const struct engine_options options = {.model_path = models[0], .threads = 2};
    struct engine *engine = NULL;
    struct error error;
    for (long n = 1;; n++) {
        mem_fault_set(n, false);
        int code = engine_open(&options, &engine, &error);
        long hits = mem_fault_hits();
        mem_fault_set(0, false);
        if (code == 0)
            engine_close(engine);
        if (!hits)
            break; /* every allocation has failed once */
        if (code < 0)
            assert_int_equal(code, -ENOMEM);
        n += n / 64; /* the tokenizer makes very many alike */
    }
}

static void model_is_described(void **state)
{
    (void)state;
    struct run run;
    start(&run, models[1], 1, 16);
    const struct engine_model *m = engine_model(run.engine);
    assert_string_equal(m->name, "pocket");
    assert_string_equal(m->architecture, "llama");
    assert_string_equal(m->type, "Q4_K");
    assert_int_equal(m->context_length, 2048);
    assert_int_equal(m->vocabulary, 4096);
    assert_int_equal(m->kv.layers, 6);
    assert_int_equal(m->kv.kv_heads, 2);
    assert_int_equal(m->kv.dim, 64);
    assert_true(m->chat_recognised && m->chat == CHAT_CHATML);
    finish(&run);
}

/* Every level a chunk may get is measured once, and what is told of level 3 without measuring it is what
 * measuring would have told. */
static void damage_is_that_of_lowering(void **state)
{
    (void)state;
    static const uint8_t allowed[] = {LEVELS_8 | LEVELS_4 | LEVELS_3 | LEVELS_2,
                                      LEVELS_8 | LEVELS_3 | LEVELS_2, LEVELS_8 | LEVELS_4 | LEVELS_2,
                                      LEVELS_8 | LEVELS_4 | LEVELS_3};
    struct random r = {3};
    struct run kept, lowered;
    int32_t tokens[TOKENS];
    start(&kept, models[0], 2, 8);
    draw_tokens(tokens, 3, kept.vocabulary);
    forward_all(&kept, tokens, TOKENS, &r);
    size_t bytes = kv_chunk_bytes(kv_pool_geometry(kept.pool), 8), last = kv_chunks_of(TOKENS) - 2;
    void *room = mem_aligned(64, bytes);
    assert_non_null(room);
    for (size_t i = 0; i < sizeof allowed; i++) {
        const struct levels_rules rules = {LEVELS_DAMAGE, allowed[i], 0, 0.4};
        start(&lowered, models[0], 2, 8);
        forward_all(&lowered, tokens, TOKENS, &r);
        const struct lowering lowering = {lowered.engine, lowered.pool, &rules, 8, room};
        unsigned steps = 0, changed = 0;
        while (lowering_step(&lowering, &lowered.sequence))
            steps++;
        for (size_t c = 1; c < last; c++) {
            const struct kv_chunk *chunk = lowered.sequence.chunks[c], *from = kept.sequence.chunks[c];
            assert_true(allowed[i] >> kv_level_index(chunk->level) & 1);
            changed += chunk->level != 8;
            for (unsigned k = 2; k < KV_LEVELS; k++) {
                struct engine_damage is =
                    engine_lower(kept.engine, from->data, 8, from->tokens, room, kv_level_at(k));
                if (allowed[i] >> k & 1)
                    assert_true(chunk->damage[k] == is.keys + is.values && is.keys > 0 && is.values > 0);
                else
                    assert_true(chunk->damage[k] < 0);
            }
        }
        assert_true(changed > 3);
        assert_int_equal(steps,
                         2 * (last - 1) + changed); /* two levels measured a chunk, each lowered once */
        finish(&lowered);
    }
    mem_free(room);
    finish(&kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_and_threads_do_not_matter),
        cmocka_unit_test(parts_and_spans_do_not_matter),
        cmocka_unit_test(instruction_sets_agree),
        cmocka_unit_test(recomputed_chunks_are_the_same),
        cmocka_unit_test(bad_batches_are_refused),
        cmocka_unit_test(opening_survives_memory_faults),
        cmocka_unit_test(model_is_described),
        cmocka_unit_test(damage_is_that_of_lowering),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
