/* The service where things end: full contexts, stop strings, budgets and quotas, bad requests, others'
 * contexts. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/memory.h"
#include "support/service_rig.h"

/* ---- full contexts ---- */

static void test_slide(void **state)
{
    (void)state;
    enum { MANY = 24 };
    char id[JOURNAL_ID_BYTES], again[JOURNAL_ID_BYTES];
    char *replies[MANY], prompt[128];
    uint64_t dropped = 0, slides = 0;
    struct service_options options = rig_options(rig_home);
    options.context_length = 256;
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    for (int i = 0; i < MANY; i++) {
        snprintf(prompt, sizeof prompt, "Note number %d: %s", i, rig_prompts[i % RIG_TURNS]);
        struct rig_reply reply = rig_ask(service, rig_me, id, prompt, 15);
        assert_true(reply.result.context_tokens <= 256);
        assert_int_equal(reply.result.turn, i);
        dropped += reply.result.turns_dropped;
        slides += reply.result.turns_dropped > 0;
        if (reply.result.turns_dropped) /* what stays is computed again, the system prompt is not */
            assert_true(reply.result.chunks_recomputed > 0 &&
                        (rig_stressed() || reply.result.cached_tokens >= 10));
        replies[i] = mem_strdup(reply.text.data);
        rig_reply_deinit(&reply);
    }
    struct context_info info = rig_info(service, id);
    assert_int_equal(info.record.turn_count, MANY);
    assert_int_equal(info.record.window_turn, dropped);
    context_info_deinit(&info);
    assert_true(slides >= 3 && slides < MANY / 2);
    assert_true(dropped > slides); /* several at a time */

    /* the same when every call begins with a fresh service */
    rig_new(service, rig_me, rig_system_prompt, again);
    for (int i = 0; i < MANY; i++) {
        service_close(service);
        service = rig_open(&options);
        snprintf(prompt, sizeof prompt, "Note number %d: %s", i, rig_prompts[i % RIG_TURNS]);
        rig_expect(service, rig_me, again, prompt, 15, replies[i]);
        mem_free(replies[i]);
    }
    service_close(service);
}

static void test_full(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], words[3000] = "";
    struct context_info info;
    struct error error;
    struct service_options options = rig_options(rig_home);
    options.context_length = 128;
    struct service *service = rig_open(&options);
    for (int i = 0; i < 400; i++)
        strcat(words, " table");
    assert_int_equal(service_context_new(service, rig_me, NULL, words, &info, &error), -E2BIG);
    rig_new(service, rig_me, "Be kind.", id);
    struct call_params params = rig_params(words, 10);
    struct rig_reply reply = rig_call(service, rig_me, id, &params);
    assert_int_equal(reply.result.code, -E2BIG);
    assert_non_null(strstr(reply.result.error.text, "too long for a context of 128"));
    rig_reply_deinit(&reply);
    int code = 0;
    for (int i = 0; i < 20 && code == 0; i++) {
        params = rig_params(rig_prompts[i % RIG_TURNS], 10);
        params.overflow = CALL_REFUSE;
        reply = rig_call(service, rig_me, id, &params);
        code = reply.result.code;
        assert_int_equal(reply.result.turns_dropped, 0);
        if (code < 0)
            assert_non_null(strstr(reply.result.error.text, "the context is full"));
        rig_reply_deinit(&reply);
    }
    assert_int_equal(code, -E2BIG);
    reply = rig_ask(service, rig_me, id, "Hello there", 10);
    assert_true(reply.result.turns_dropped > 0);
    rig_reply_deinit(&reply);
    /* an open end: as many as fit, if no end token comes first */
    params = rig_params("Go on", 0);
    params.sampling.temperature = 3;
    reply = rig_call(service, rig_me, id, &params);
    assert_int_equal(reply.result.code, 0);
    assert_true(reply.result.context_tokens <= 128);
    if (reply.result.finish == CALL_FINISH_LENGTH)
        assert_int_equal(reply.result.context_tokens, 128);
    rig_reply_deinit(&reply);
    reply = rig_ask(service, rig_me, id, "Hello again", 4); /* a full one goes on */
    assert_true(reply.result.turns_dropped > 0 || reply.result.context_tokens < 128);
    rig_reply_deinit(&reply);
    service_close(service);
}

/* ---- stop strings ---- */

static void test_stop_strings(void **state)
{
    (void)state;
    const char *full = rig_reference[0][0];
    size_t length = strlen(full);
    struct service *service = rig_open_default();
    assert_true(length > 24);
    for (size_t at = 0; at < 24; at++) { /* of one token and of several */
        size_t bytes = at % 2 ? 3 : 12;
        if (at + bytes > length)
            continue;
        char id[JOURNAL_ID_BYTES], stop[16] = "", expected[256];
        memcpy(stop, full + at, bytes);
        size_t first = (size_t)(strstr(full, stop) - full);
        const char *stops[2] = {"never said, surely", stop};
        rig_new(service, rig_me, rig_system_prompt, id);
        struct call_params params = rig_params(rig_prompts[0], RIG_REPLY);
        params.stop = stops;
        params.stop_count = 2;
        struct rig_reply reply = rig_call(service, rig_me, id, &params);
        assert_int_equal(reply.result.code, 0);
        assert_int_equal(reply.result.finish, CALL_FINISH_STOP);
        snprintf(expected, sizeof expected, "%.*s", (int)first, full);
        assert_string_equal(reply.text.data, expected);
        uint64_t tokens = reply.result.context_tokens;
        rig_reply_deinit(&reply);

        struct journal_turn *turns;
        size_t count;
        struct buffer spelled = {0};
        buffer_append(&spelled, "", 0);
        assert_int_equal(service_context_turns(service, rig_me, id, &turns, &count, NULL), 0);
        assert_int_equal(count, 1);
        assert_string_equal(turns[0].reply, expected);
        for (size_t i = turns[0].prompt_tokens; i < turns[0].token_count; i++)
            tokenizer_piece(service_tokenizer(service), turns[0].tokens[i], false, &spelled);
        assert_string_equal(spelled.data, expected); /* the model reads what the app was told */
        buffer_deinit(&spelled);
        journal_turns_free(turns, count);

        if (at % 4 < 2) { /* what was kept in memory equals what is rebuilt */
            struct context_info copy;
            assert_int_equal(service_context_fork(service, rig_me, id, NULL, &copy, NULL), 0);
            reply = rig_ask(service, rig_me, id, rig_prompts[1], RIG_REPLY);
            assert_true(reply.result.cached_tokens <= tokens);
            service_close(service);
            service = rig_open_default();
            rig_expect(service, rig_me, copy.record.id, rig_prompts[1], RIG_REPLY, reply.text.data);
            context_info_deinit(&copy);
            rig_reply_deinit(&reply);
        }
        assert_int_equal(service_context_delete(service, rig_me, id, NULL), 0);
    }
    service_close(service);
}

/* A stop string that begins and never comes is shown after all. */
static void test_held_text_comes_out(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], stop[300];
    struct service *service = rig_open_default();
    snprintf(stop, sizeof stop, "%s and then some", rig_reference[0][0]);
    const char *stops[1] = {stop};
    rig_new(service, rig_me, rig_system_prompt, id);
    struct call_params params = rig_params(rig_prompts[0], RIG_REPLY);
    params.stop = stops;
    params.stop_count = 1;
    struct rig_reply reply = rig_call(service, rig_me, id, &params);
    assert_string_equal(reply.text.data, rig_reference[0][0]);
    assert_int_not_equal(reply.result.finish, CALL_FINISH_STOP);
    rig_reply_deinit(&reply);
    service_close(service);
}

/* ---- refusals ---- */

/* Invariant 7. */
static void test_foreign_contexts(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct context_info info, *infos;
    struct journal_turn *turns;
    struct call *call = NULL;
    struct error error;
    size_t count;
    struct service *service = rig_open_default();
    rig_new(service, rig_me, NULL, id);
    struct call_params params = rig_params("Hello", 1), prepare = {.prepare = true};
    assert_int_equal(service_call_start(service, rig_other, id, &params, &call, &error), -ENOENT);
    assert_int_equal(service_call_start(service, rig_other, id, &prepare, &call, &error), -ENOENT);
    assert_int_equal(service_context_get(service, rig_other, id, &info, &error), -ENOENT);
    assert_int_equal(service_context_turns(service, rig_other, id, &turns, &count, &error), -ENOENT);
    assert_int_equal(service_context_fork(service, rig_other, id, NULL, &info, &error), -ENOENT);
    assert_int_equal(service_context_delete(service, rig_other, id, &error), -ENOENT);
    assert_int_equal(service_context_list(service, rig_other, &infos, &count, &error), 0);
    assert_int_equal(count, 0);
    context_infos_free(infos, count);
    assert_int_equal(service_context_list(service, rig_me, &infos, &count, &error), 0);
    assert_int_equal(count, 1);
    context_infos_free(infos, count);
    service_close(service);
}

static void refused(struct service *service, const char *id, const struct call_params *params,
                    const char *words)
{
    struct call *call = NULL;
    struct error error = {0};
    assert_int_equal(service_call_start(service, rig_me, id, params, &call, &error), -EINVAL);
    assert_null(call);
    if (!strstr(error.text, words))
        fail_msg("'%s' does not say '%s'", error.text, words);
}

static void test_bad_requests(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct context_info info;
    struct error error;
    struct service *service = rig_open_default();
    rig_new(service, rig_me, NULL, id);
    struct call_params params = rig_params("", 1);
    refused(service, id, &params, "empty");
    params = rig_params("a\xff", 1);
    refused(service, id, &params, "UTF-8");
    params = rig_params("abc", 1);
    params.prompt = "a\0c";
    refused(service, id, &params, "NUL");
    params = rig_params("abc", 1);
    params.sampling.temperature = -1;
    refused(service, id, &params, "");
    params = rig_params("abc", 1);
    const char *stops[1] = {""};
    params.stop = stops;
    params.stop_count = 1;
    refused(service, id, &params, "stop string");
    assert_int_equal(service_context_new(service, rig_me, "\xff", NULL, &info, &error), -EINVAL);
    assert_int_equal(service_context_fork(service, rig_me, id, "\xff", &info, &error), -EINVAL);
    service_close(service);
}

static void test_limits(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], second[JOURNAL_ID_BYTES];
    struct context_info info;
    struct error error;
    struct service_options options = rig_options(rig_home);
    options.contexts_per_app = 2;
    options.queue_limit = 2;
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, NULL, id);
    rig_new(service, rig_me, NULL, second);
    assert_int_equal(service_context_new(service, rig_me, NULL, NULL, &info, &error), -EDQUOT);
    assert_int_equal(service_context_fork(service, rig_me, id, NULL, &info, &error), -EDQUOT);
    struct call *calls[50] = {NULL}, *late = NULL;
    struct call_params params = rig_params("Hello", 1);
    int code = 0, count = 0;
    while (code == 0 && count < 50) { /* they come faster than they go */
        struct call_params open = rig_params(rig_prompts[0], 0);
        code = service_call_start(service, rig_me, id, &open, &calls[count], &error);
        count += code == 0;
    }
    assert_int_equal(code, -EAGAIN);
    assert_non_null(strstr(error.text, "too many calls wait"));
    call_cancel(calls[count - 1]); /* makes room */
    assert_int_equal(service_call_start(service, rig_me, second, &params, &late, &error), 0);
    for (int i = 0; i < count; i++)
        call_release(calls[i]);
    struct rig_reply reply = rig_finish(late);
    assert_int_equal(reply.result.code, 0);
    rig_reply_deinit(&reply);
    service_close(service);
}

static void test_budget(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], small[JOURNAL_ID_BYTES];
    struct error error;
    struct service_status status;
    struct service *service = rig_open_default();
    rig_new(service, rig_me, rig_system_prompt, id);
    rig_new(service, rig_me, NULL, small);
    for (int t = 0; t < 3; t++)
        rig_expect_turn(service, id, 0, t);
    assert_int_equal(service_set_budget(service, 100, &error), -EINVAL);
    assert_int_equal(service_set_budget(service, 4 * 49152, &error), 0);
    for (int i = 0; i < 500; i++) {
        service_status(service, &status);
        if (status.kv_resident_bytes <= status.kv_budget_bytes)
            break;
        usleep(10000);
    }
    assert_int_equal(status.kv_budget_bytes, 4 * 49152);
    assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
    assert_true(status.evicted_bytes_total > 0);
    struct call_params params = rig_params(rig_prompts[3], RIG_REPLY);
    struct rig_reply reply = rig_call(service, rig_me, id, &params);
    assert_int_equal(reply.result.code, -ENOSPC);
    assert_non_null(
        strstr(reply.result.error.text, "the KV budget of 196608 bytes cannot hold this context"));
    rig_reply_deinit(&reply);
    reply = rig_ask(service, rig_me, small, "Hi", 2); /* the others are served on */
    rig_reply_deinit(&reply);
    /* it fits at first and not to its end: nothing is kept of it */
    params = rig_params("Tell me a lot.", 0);
    params.sampling.temperature = 2;
    params.sampling.seed = 3;
    reply = rig_call(service, rig_me, small, &params);
    assert_true(reply.result.code == -ENOSPC || reply.result.finish == CALL_FINISH_END);
    bool kept = reply.result.code == 0;
    rig_reply_deinit(&reply);
    struct context_info info = rig_info(service, small);
    assert_int_equal(info.record.turn_count, kept ? 2 : 1);
    context_info_deinit(&info);
    assert_int_equal(service_set_budget(service, 1 << 28, &error), 0);
    rig_expect_turn(service, id, 0, 3);
    service_close(service);
}

static void not_opened(const struct service_options *options, int code, const char *words)
{
    struct service *service = NULL;
    struct error error = {0};
    assert_int_equal(service_open(options, &service, &error), code);
    assert_null(service);
    if (!strstr(error.text, words))
        fail_msg("'%s' does not say '%s'", error.text, words);
}

static void test_bad_options(void **state)
{
    (void)state;
    struct service_options good = rig_options(rig_home), options = good;
    options.model_path = "/nonexistent.gguf";
    not_opened(&options, -ENOENT, "/nonexistent.gguf");
    options = good;
    options.policy = "none";
    not_opened(&options, -EINVAL, "no policy \"none\"");
    options = good;
    options.kv_budget_bytes = 10;
    not_opened(&options, -EINVAL, "KV budget");
    options = good;
    options.context_length = 1 << 20;
    not_opened(&options, -EINVAL, "context of 1048576");
    options.context_length = 8;
    not_opened(&options, -EINVAL, "too short");
    struct service *service = rig_open(&good);
    not_opened(&good, -EBUSY, "another daemon");
    service_close(service);
    service_close(NULL);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_slide),
        WITH(test_full),
        WITH(test_stop_strings),
        WITH(test_held_text_comes_out),
        WITH(test_foreign_contexts),
        WITH(test_bad_requests),
        WITH(test_limits),
        WITH(test_budget),
        WITH(test_bad_options),
    };
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    return cmocka_run_group_tests_name("service limits", tests, rig_group_setup, rig_group_teardown);
}
