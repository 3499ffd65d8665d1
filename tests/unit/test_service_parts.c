/* Contexts that are larger, as they are computed, than the budget, and smaller as their policy lowers them:
 * they are served, in parts (service/parts.c). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"
#include "support/service_rig.h"

enum { CHUNK = 25344, BUDGET_CHUNKS = 24, WORDS = 440 }; /* a chunk at 8 bits; at 2 bits it is 10368 */

/* So many chunks at 8 bits of budget, and contexts of up to 640 tokens. */
static struct service_options tight(unsigned chunks)
{
    struct service_options options = rig_options(rig_home);
    options.kv_levels = 0;
    options.kv_budget_bytes = (uint64_t)chunks * CHUNK;
    options.context_length = 640;
    return options;
}

static const char *words(int count)
{
    static char text[WORDS * 6 + 1];
    assert_true(count <= WORDS);
    text[0] = 0;
    for (int i = 0; i < count; i++)
        memcpy(text + 6 * i, " table", 7);
    return text;
}

/* As rig_call, and all the while no more is resident than the budget allows (invariant 2). */
static struct rig_reply call_within(struct service *service, const char *id, const char *prompt,
                                    uint32_t max_tokens)
{
    struct service_status status = {.calls_running = 1};
    struct call_params params = rig_params(prompt ? prompt : "", max_tokens);
    struct call *call = NULL;
    params.prepare = !prompt;
    assert_int_equal(service_call_start(service, rig_me, id, &params, &call, NULL), 0);
    while (status.calls_running + status.calls_waiting) {
        service_status(service, &status);
        assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
        usleep(200);
    }
    return rig_finish(call);
}

static struct rig_reply ask_within(struct service *service, const char *id, const char *prompt,
                                   uint32_t max_tokens)
{
    struct rig_reply reply = call_within(service, id, prompt, max_tokens);
    if (reply.result.code < 0)
        fail_msg("%s", reply.result.error.text);
    return reply;
}

static void remove_chunks(void)
{
    char path[96];
    snprintf(path, sizeof path, "%s/chunks", rig_home);
    rig_remove(path);
}

/* A prompt that is larger than the budget at 8 bits; all of it computed again, its files gone, for a call and
 * for a warm-up; and sliding. */
static void test_larger_than_the_budget(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    uint64_t dropped = 0;
    struct service_options options = tight(BUDGET_CHUNKS);
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    struct rig_reply reply = ask_within(service, id, words(WORDS), 8);
    assert_true(reply.result.prompt_tokens > BUDGET_CHUNKS * KV_CHUNK_TOKENS);
    rig_reply_deinit(&reply);
    for (int i = 0; i < 3; i++) {
        struct context_info before = rig_info(service, id);
        service_close(service);
        remove_chunks();
        service = rig_open(&options);
        reply = ask_within(service, id, i == 1 ? NULL : "What did I say?", 8);
        assert_true(reply.result.chunks_recomputed >= before.tokens / KV_CHUNK_TOKENS);
        assert_int_equal(reply.result.chunks_loaded + reply.result.chunks_resident, 0);
        assert_int_equal(reply.result.cached_tokens, 0);
        rig_reply_deinit(&reply);
        context_info_deinit(&before);
    }
    for (int i = 0; i < 12; i++) {
        reply = ask_within(service, id, rig_prompts[i % RIG_TURNS], 30);
        dropped += reply.result.turns_dropped;
        rig_reply_deinit(&reply);
    }
    assert_true(dropped > 0);
    service_close(service);
}

/* What is said in parts is what is said at once, as near as lower levels let it: half of the replies, of a
 * model that is seldom sure, begin alike, where few would by chance. */
static void test_replies(void **state)
{
    (void)state;
    enum { QUESTIONS = 6, ASKED = 3, BEGINNING = 8 };
    char said[2][QUESTIONS * ASKED][BEGINNING + 1], id[JOURNAL_ID_BYTES], prompt[4000];
    size_t alike = 0;
    for (int wide = 0; wide < 2; wide++)
        for (int q = 0; q < QUESTIONS; q++) {
            struct service_options options = tight(wide ? 60 : BUDGET_CHUNKS);
            struct service *service = rig_open(&options);
            rig_new(service, rig_me, rig_system_prompt, id);
            snprintf(prompt, sizeof prompt, "%s %s %s", rig_prompts[1], words(WORDS),
                     rig_prompts[q % RIG_TURNS]);
            for (int i = 0; i < ASKED; i++) {
                struct rig_reply reply =
                    ask_within(service, id, i ? rig_prompts[(q + i) % RIG_TURNS] : prompt, 16);
                snprintf(said[wide][q * ASKED + i], BEGINNING + 1, "%s", reply.text.data);
                rig_reply_deinit(&reply);
                service_close(service);
                remove_chunks();
                service = rig_open(&options);
            }
            service_close(service);
            rig_remove(rig_home);
        }
    for (size_t i = 0; i < QUESTIONS * ASKED; i++)
        alike += strcmp(said[0][i], said[1][i]) == 0;
    print_message("%zu of %d replies begin alike\n", alike, QUESTIONS * ASKED);
    assert_true(alike >= QUESTIONS * ASKED / 2);
}

/* A reply that goes on where the prompt alone just fits. */
static void test_a_reply_beyond_the_budget(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct service_options options = tight(1);
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, NULL, id);
    struct rig_reply reply = call_within(service, id, words(200), 1);
    assert_int_equal(reply.result.code, -ENOSPC);
    size_t chunks = reply.result.prompt_tokens / KV_CHUNK_TOKENS + 1;
    rig_reply_deinit(&reply);
    assert_true(chunks > 8);
    assert_int_equal(service_set_budget(service, chunks * CHUNK, NULL), 0);
    for (int i = 0; i < 4; i++) { /* an end token may come first */
        struct call_params params = rig_params(i ? "Go on." : words(200), 80);
        params.sampling.temperature = 10;
        params.sampling.top_k = 0;
        params.sampling.top_p = 1;
        params.sampling.seed = (uint64_t)i + 1;
        reply = rig_call(service, rig_me, id, &params);
        assert_int_equal(reply.result.code, 0);
        rig_reply_deinit(&reply);
    }
    struct context_info info = rig_info(service, id);
    assert_true(info.tokens > (chunks + 2) * KV_CHUNK_TOKENS);
    context_info_deinit(&info);
    service_close(service);
}

/* The bytes of a context whose chunks are at `level` but those that stay as they are computed. */
static uint64_t bytes_of(const struct service *service, uint64_t tokens, uint8_t written, uint8_t level,
                         unsigned kept)
{
    const struct kv_geometry *geometry = &service_model(service)->kv;
    uint64_t chunks = kv_chunks_of(tokens);
    return kept * kv_chunk_bytes(geometry, written) + (chunks - kept) * kv_chunk_bytes(geometry, level);
}

/* A policy computes a context of 30 chunks within any budget that holds it at its lowest level, but the first
 * chunk, the newest two and the one that is computed, and refuses it with less, with one line and nothing
 * changed. */
static void every_budget(const char *policy, uint8_t levels, uint8_t level, unsigned kept)
{
    enum { STEP = CHUNK * 2 };
    char id[JOURNAL_ID_BYTES];
    uint64_t served = 0, least = 0;
    struct service_options options = tight(66);
    options.policy = policy;
    options.kv_levels = levels;
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    struct rig_reply reply = ask_within(service, id, words(WORDS), 4);
    rig_reply_deinit(&reply);
    for (uint64_t budget = 3 * STEP; budget <= 33 * STEP; budget += STEP) {
        service_close(service);
        remove_chunks(); /* computed again at the write level, whatever it was lowered to */
        options.kv_budget_bytes = budget;
        service = rig_open(&options);
        struct context_info before = rig_info(service, id);
        reply = call_within(service, id, rig_prompts[0], 1);
        struct context_info after = rig_info(service, id);
        if (reply.result.code == 0 && !served) {
            served = budget;
            least = bytes_of(service, before.tokens + reply.result.prompt_tokens,
                             levels == LEVELS_16 ? 16 : 8, level, kept);
        }
        if (reply.result.code < 0) {
            assert_int_equal(reply.result.code, -ENOSPC);
            assert_non_null(strstr(reply.result.error.text, "cannot hold this context alone"));
            assert_int_equal(served, 0); /* what a budget holds a larger one holds */
            assert_int_equal(after.tokens, before.tokens);
            assert_int_equal(after.record.turn_count, before.record.turn_count);
            assert_int_equal(after.chunks_resident, 0);
        }
        context_info_deinit(&before);
        context_info_deinit(&after);
        rig_reply_deinit(&reply);
    }
    service_close(service);
    rig_remove(rig_home);
    if (served < least || served >= least + STEP || !least)
        fail_msg("%s, %u: served with %lu bytes, and it takes %lu", policy, levels, (unsigned long)served,
                 (unsigned long)least);
}

static void test_every_budget(void **state)
{
    (void)state;
    every_budget("llms", 0, 2, 4);
    every_budget("llms", LEVELS_8 | LEVELS_4, 4, 4);
    every_budget("no-lifecycle", 0, 2, 4);
    every_budget("no-pipeline", 0, 2, 4);
    every_budget("paper", 0, 2 | KV_PAPER, 4);
    every_budget("int4", 0, 4, 1);
    every_budget("no-compression", 0, 8, 0);
    every_budget("vllm-sq", 0, 8, 0);
    every_budget("llms", LEVELS_16, 16, 0);
}

/* A refused call leaves what is in memory as it is. */
static void test_refused(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct service_options options = tight(BUDGET_CHUNKS / 2);
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    struct rig_reply reply = ask_within(service, id, rig_prompts[1], 8);
    rig_reply_deinit(&reply);
    struct service_status status = {0};
    for (int ms = 0; ms < 5000 && !status.stored_bytes; ms++) { /* it is written once it is lowered */
        usleep(1000);
        service_status(service, &status);
    }
    struct context_info before = rig_info(service, id);
    reply = call_within(service, id, words(WORDS), 8);
    assert_int_equal(reply.result.code, -ENOSPC);
    assert_non_null(strstr(reply.result.error.text, "at the lowest levels"));
    assert_null(strchr(reply.result.error.text, '\n'));
    rig_reply_deinit(&reply);
    struct context_info after = rig_info(service, id);
    assert_int_equal(after.tokens, before.tokens);
    assert_int_equal(after.record.turn_count, 1);
    if (!rig_stressed()) {
        assert_int_equal(after.chunks_level8, before.chunks_level8);
        assert_int_equal(after.bytes_resident, before.bytes_resident);
    }
    context_info_deinit(&before);
    context_info_deinit(&after);
    assert_int_equal(service_set_budget(service, BUDGET_CHUNKS * CHUNK, NULL), 0);
    reply = ask_within(service, id, words(WORDS), 8);
    rig_reply_deinit(&reply);
    service_close(service);
}

/* The owner takes some of the budget away while a prompt goes on in parts. */
static void test_lowered_meanwhile(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct service_options options = tight(BUDGET_CHUNKS + 4);
    struct service *service = rig_open(&options);
    for (int i = 0; i < 12; i++) {
        struct call_params params = rig_params(words(WORDS), 4);
        struct call *call = NULL;
        struct service_status status;
        uint64_t budget = (uint64_t)(BUDGET_CHUNKS - i % 4) * CHUNK;
        rig_new(service, rig_me, NULL, id);
        assert_int_equal(service_set_budget(service, options.kv_budget_bytes, NULL), 0);
        assert_int_equal(service_call_start(service, rig_me, id, &params, &call, NULL), 0);
        usleep((unsigned)i * 4000);
        assert_int_equal(service_set_budget(service, budget, NULL), 0);
        struct rig_reply reply = rig_finish(call);
        assert_int_equal(reply.result.code, 0);
        rig_reply_deinit(&reply);
        service_status(service, &status);
        for (int ms = 0; ms < 1000 && status.kv_resident_bytes > budget; ms++) {
            usleep(1000);
            service_status(service, &status);
        }
        assert_true(status.kv_resident_bytes <= budget);
        assert_int_equal(service_context_delete(service, rig_me, id, NULL), 0);
    }
    service_close(service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_larger_than_the_budget, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_replies, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_a_reply_beyond_the_budget, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_every_budget, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_refused, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_lowered_meanwhile, rig_setup, rig_teardown),
    };
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    return cmocka_run_group_tests_name("service parts", tests, rig_group_setup, rig_group_teardown);
}
