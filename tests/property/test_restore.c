/* Invariant 8 at level 16: whatever leaves memory, is lost from flash, and comes back by reading or by
 * recompute, replies are token for token those of a service that keeps everything. Random conversations,
 * forks and deletes on two services side by side: one keeps all, the other has the stress option that evicts
 * at random. Invariant 2 is checked on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/random.h"
#include "kv/policy.h"
#include "support/service_rig.h"

enum { CONTEXTS = 6, STEPS = 60, CHUNK_BYTES = 49152 };

static const char me[] = "1000/tests";

/* The calm service keeps everything; the other has `options`. Contexts are pairs. */
struct pair {
    char calm[JOURNAL_ID_BYTES], stressed[JOURNAL_ID_BYTES];
};

struct play {
    char directories[2][64];
    struct service_options options;
    struct service *calm, *stressed;
    struct pair pairs[CONTEXTS];
    size_t count;
    struct random random;
    uint64_t loaded, recomputed;
};

static void open_both(struct play *play, const struct service_options *options)
{
    rig_directory(play->directories[0]);
    rig_directory(play->directories[1]);
    struct service_options calm = rig_options(play->directories[0]);
    calm.context_length = options->context_length;
    play->options = *options;
    play->options.state_directory = play->directories[1];
    play->calm = rig_open(&calm);
    play->stressed = rig_open(&play->options);
}

static void close_both(struct play *play)
{
    service_close(play->calm);
    service_close(play->stressed);
    rig_remove(play->directories[0]);
    rig_remove(play->directories[1]);
}

static void check_memory(struct service *service)
{
    struct context_info *infos;
    struct service_status status;
    size_t count;
    assert_int_equal(service_context_list(service, me, &infos, &count, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(infos[i].bytes_resident, infos[i].chunks_resident * CHUNK_BYTES);
        assert_true(infos[i].tokens_resident <= infos[i].tokens);
    }
    context_infos_free(infos, count);
    service_status(service, &status);
    assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
    assert_int_equal(status.kv_resident_bytes % CHUNK_BYTES, 0);
}

static void new_pair(struct play *play)
{
    static const char *const prompts[] = {NULL, rig_system_prompt, "You are brief."};
    const char *prompt = prompts[random_below(&play->random, 3)];
    struct pair *pair = &play->pairs[play->count++];
    rig_new(play->calm, me, prompt, pair->calm);
    rig_new(play->stressed, me, prompt, pair->stressed);
}

static void fork_one(struct service *service, const char *id, char copy[JOURNAL_ID_BYTES])
{
    struct context_info info;
    assert_int_equal(service_context_fork(service, me, id, NULL, &info, NULL), 0);
    memcpy(copy, info.record.id, JOURNAL_ID_BYTES);
    context_info_deinit(&info);
}

static void fork_pair(struct play *play, const struct pair *pair)
{
    struct pair *copy = &play->pairs[play->count++];
    fork_one(play->calm, pair->calm, copy->calm);
    fork_one(play->stressed, pair->stressed, copy->stressed);
}

static void delete_pair(struct play *play, size_t i)
{
    assert_int_equal(service_context_delete(play->calm, me, play->pairs[i].calm, NULL), 0);
    assert_int_equal(service_context_delete(play->stressed, me, play->pairs[i].stressed, NULL), 0);
    play->pairs[i] = play->pairs[--play->count];
}

static void prepare_pair(struct play *play, const struct pair *pair)
{
    struct call_params params = {.prepare = true};
    struct rig_reply reply = rig_call(play->stressed, me, pair->stressed, &params);
    assert_int_equal(reply.result.code, 0);
    rig_reply_deinit(&reply);
}

static void call_pair(struct play *play, const struct pair *pair)
{
    char prompt[160];
    uint32_t tokens = 1 + (uint32_t)random_below(&play->random, 24);
    snprintf(prompt, sizeof prompt, "%u: %s", (unsigned)random_below(&play->random, 1000),
             rig_prompts[random_below(&play->random, RIG_TURNS)]);
    struct call_params params = rig_params(prompt, tokens);
    if (random_below(&play->random, 2)) { /* a sampled reply shows what a greedy one may hide */
        params.sampling.temperature = 1.5;
        params.sampling.seed = random_next(&play->random) >> 1;
    }
    struct rig_reply expected = rig_call(play->calm, me, pair->calm, &params);
    struct rig_reply reply = rig_call(play->stressed, me, pair->stressed, &params);
    assert_int_equal(expected.result.code, 0);
    if (reply.result.code < 0)
        fail_msg("%s", reply.result.error.text);
    assert_string_equal(reply.text.data, expected.text.data);
    assert_int_equal(reply.result.context_tokens, expected.result.context_tokens);
    assert_int_equal(reply.result.turns_dropped, expected.result.turns_dropped);
    play->loaded += reply.result.chunks_loaded;
    play->recomputed += reply.result.chunks_recomputed;
    rig_reply_deinit(&expected);
    rig_reply_deinit(&reply);
}

static void step(struct play *play)
{
    size_t i = play->count ? (size_t)random_below(&play->random, play->count) : 0;
    unsigned dice = (unsigned)random_below(&play->random, 100);
    if (play->count == 0 || (dice < 6 && play->count < CONTEXTS)) {
        new_pair(play);
    } else if (dice < 16 && play->count < CONTEXTS) {
        fork_pair(play, &play->pairs[i]);
    } else if (dice < 22) {
        delete_pair(play, i);
    } else if (dice < 30) {
        prepare_pair(play, &play->pairs[i]);
    } else if (dice < 33) { /* what is on flash is found again */
        service_close(play->stressed);
        play->options.evict_random += play->options.evict_random != 0;
        play->stressed = rig_open(&play->options);
    } else {
        call_pair(play, &play->pairs[i]);
    }
    check_memory(play->stressed);
}

static void random_play(const struct service_options *options, uint64_t seed, bool reads, bool recomputes)
{
    struct play play = {.random = {seed}};
    open_both(&play, options);
    for (int i = 0; i < STEPS; i++)
        step(&play);
    if (reads)
        assert_true(play.loaded > 0);
    if (recomputes)
        assert_true(play.recomputed > 0);
    close_both(&play);
}

static void test_random_evictions(void **state)
{
    (void)state;
    struct service_options options = rig_options("");
    options.context_length = 512;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        options.evict_random = seed;
        random_play(&options, seed, true, true);
    }
}

/* A budget of one context and a little, beside them. */
static void test_random_evictions_under_pressure(void **state)
{
    (void)state;
    struct service_options options = rig_options("");
    options.context_length = 256;
    options.kv_budget_bytes = 18 * CHUNK_BYTES;
    for (uint64_t seed = 11; seed <= 13; seed++) {
        options.evict_random = seed;
        random_play(&options, seed, true, true);
    }
}

/* Every policy, kept at level 16, under pressure: they differ in time only. */
static void test_policies(void **state)
{
    (void)state;
    size_t count;
    const struct kv_policy *policies = kv_policy_list(&count);
    for (size_t i = 0; i < count; i++) {
        struct service_options options = rig_options("");
        options.policy = policies[i].name;
        options.context_length = 256;
        options.kv_budget_bytes = 18 * CHUNK_BYTES;
        bool recomputes = policies[i].plan == PLAN_RECOMPUTE_ONLY, reads = policies[i].plan == PLAN_LOAD_ONLY;
        random_play(&options, 100 + i, reads, recomputes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_evictions),
        cmocka_unit_test(test_random_evictions_under_pressure),
        cmocka_unit_test(test_policies),
    };
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    log_set_level(LOG_LEVEL_ERROR);
    unsetenv("LLMS_STRESS"); /* the calm service must stay calm */
    return cmocka_run_group_tests_name("restore", tests, NULL, NULL);
}
