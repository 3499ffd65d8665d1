/* The service on the default model: whatever happens around a conversation, its replies are those of a
 * conversation to which nothing happened. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "support/service_rig.h"

/* ---- replies ---- */

static void test_a_call(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    rig_new(service, rig_me, rig_system_prompt, id);
    struct context_info info = rig_info(service, id);
    uint64_t base = info.tokens;
    assert_true(base > 5 && info.tokens_resident == 0 && !info.busy);
    assert_int_equal(info.chunks_missing, (base + 15) / 16);
    context_info_deinit(&info);

    struct rig_reply reply = rig_ask(service, rig_me, id, rig_prompts[0], RIG_REPLY);
    struct call_result *r = &reply.result;
    assert_true(reply.text.length > 0);
    assert_int_equal(r->turn, 0);
    assert_int_equal(r->context_tokens, r->prompt_tokens + r->reply_tokens);
    assert_true(r->prompt_tokens > base && r->cached_tokens == 0);
    assert_int_equal(r->chunks_resident + r->chunks_loaded + r->chunks_recomputed, 0);
    assert_true(r->reply_tokens >= 1 && r->reply_tokens <= RIG_REPLY);
    assert_int_equal(r->finish, r->reply_tokens == RIG_REPLY ? CALL_FINISH_LENGTH : CALL_FINISH_END);
    assert_true(r->ttft_ms > 0 && r->prompt_ms > 0 && r->total_ms >= r->ttft_ms);
    uint64_t tokens = r->context_tokens;
    rig_reply_deinit(&reply);

    info = rig_info(service, id);
    assert_int_equal(info.tokens, tokens);
    if (!rig_stressed())
        assert_true(info.tokens_resident + 1 >= tokens && info.tokens_resident <= tokens);
    assert_int_equal(info.chunks_resident, info.chunks_level16);
    assert_int_equal(info.chunks_resident, (info.tokens_resident + 15) / 16);
    assert_true(rig_stressed() || info.bytes_resident > 0);
    assert_int_equal(info.record.turn_count, 1);
    context_info_deinit(&info);

    reply = rig_ask(service, rig_me, id, rig_prompts[1], 3);
    assert_int_equal(r->turn, 1);
    if (!rig_stressed())
        assert_true(r->cached_tokens + 1 >= tokens && r->cached_tokens <= tokens);
    assert_true(rig_stressed() || r->chunks_recomputed == 0);
    assert_true(r->chunks_resident + r->chunks_loaded + r->chunks_recomputed > 0);
    assert_int_equal(r->context_tokens, tokens + r->prompt_tokens + r->reply_tokens);
    rig_reply_deinit(&reply);

    struct service_status status;
    service_status(service, &status);
    assert_int_equal(status.contexts, 1);
    assert_true(rig_stressed() || status.contexts_resident == 1);
    assert_int_equal(status.calls_total, 2);
    assert_int_equal(status.calls_failed + status.calls_cancelled + status.calls_waiting, 0);
    assert_true((rig_stressed() || status.kv_resident_bytes > 0) &&
                status.kv_resident_bytes <= status.kv_budget_bytes);
    assert_true(rig_stressed() || status.recomputed_tokens_total == 0);
    assert_int_equal(status.context_length, 2048);
    assert_int_equal(status.threads, 2);

    struct journal_turn *turns;
    size_t count;
    assert_int_equal(service_context_turns(service, rig_me, id, &turns, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(turns[0].prompt, rig_prompts[0]);
    assert_string_equal(turns[0].reply, rig_reference[0][0]);
    journal_turns_free(turns, count);
    service_close(service);
}

static void test_goes_on_after_reopening(void **state)
{
    (void)state;
    char ids[2][JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    rig_new(service, rig_me, rig_system_prompt, ids[0]);
    rig_new(service, rig_me, NULL, ids[1]);
    for (int t = 0; t < RIG_TURNS; t++)
        for (int c = 0; c < 2; c++) {
            rig_expect_turn(service, ids[c], c, t);
            service_close(service);
            service = rig_open_default();
        }
    struct service_status status;
    service_status(service, &status);
    assert_int_equal(status.contexts, 2);
    assert_int_equal(status.contexts_resident, 0);
    service_close(service);
}

/* Invariants 2, 6 and 8: a budget that holds only one of three contexts, and calls in turn. */
static void switch_contexts(uint8_t level, const char *expected[RIG_TURNS])
{
    enum { CONTEXTS = 3 };
    char ids[CONTEXTS][JOURNAL_ID_BYTES], more[JOURNAL_ID_BYTES];
    struct service_options options = rig_options(rig_home);
    options.kv_levels = level == 16 ? LEVELS_16 : LEVELS_8;
    options.kv_budget_bytes = 20 * (level == 16 ? 49152 : 26112); /* 320 tokens of pocket */
    struct service *service = rig_open(&options);
    struct service_status status;
    uint64_t recomputed = 0, back = 0, evicted = 0;
    for (int c = 0; c < CONTEXTS; c++)
        rig_new(service, rig_me, rig_system_prompt, ids[c]);
    for (int t = 0; t < RIG_TURNS; t++)
        for (int c = 0; c < CONTEXTS; c++) {
            struct rig_reply reply = rig_ask(service, rig_me, ids[c], rig_prompts[t], RIG_REPLY);
            if (expected[t])
                assert_string_equal(reply.text.data, expected[t]);
            else
                expected[t] = mem_strdup(reply.text.data);
            recomputed += reply.result.chunks_recomputed;
            back += reply.result.chunks_recomputed + reply.result.chunks_loaded;
            rig_reply_deinit(&reply);
            service_status(service, &status);
            assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
            evicted = status.evicted_bytes_total;
        }
    assert_true(back > 0 && evicted > 0);
    assert_int_equal(status.chunks_recomputed_total, recomputed);
    assert_true((status.recomputed_tokens_total > 0) == (recomputed > 0));

    /* it comes back by being prepared, too */
    struct call_params params = {.prepare = true};
    struct rig_reply reply = rig_call(service, rig_me, ids[0], &params);
    assert_int_equal(reply.result.code, 0);
    assert_true(reply.result.chunks_recomputed + reply.result.chunks_loaded > 0);
    assert_int_equal(reply.text.length, 0);
    rig_reply_deinit(&reply);
    reply = rig_ask(service, rig_me, ids[0], "And now?", 1);
    if (!rig_stressed()) {
        assert_int_equal(reply.result.chunks_recomputed + reply.result.chunks_loaded, 0);
        assert_true(reply.result.chunks_resident > 0);
    }
    rig_reply_deinit(&reply);
    rig_new(service, rig_me, rig_system_prompt, more); /* so does the system prompt of a fresh one */
    reply = rig_call(service, rig_me, more, &params);
    assert_int_equal(reply.result.code, 0);
    rig_reply_deinit(&reply);
    struct context_info info = rig_info(service, more);
    assert_true(info.tokens > 0 && (rig_stressed() || info.tokens_resident == info.tokens));
    assert_int_equal(info.record.turn_count, 0);
    context_info_deinit(&info);
    service_close(service);
}

static void test_eviction_changes_nothing(void **state)
{
    (void)state;
    const char *expected[RIG_TURNS];
    for (int t = 0; t < RIG_TURNS; t++)
        expected[t] = rig_reference[0][t];
    switch_contexts(16, expected);
}

static void test_eviction_changes_nothing_at_8(void **state)
{
    (void)state;
    const char *expected[RIG_TURNS] = {NULL};
    switch_contexts(8, expected);
    for (int t = 0; t < RIG_TURNS; t++) {
        assert_true(strlen(expected[t]) > 0);
        mem_free((char *)(uintptr_t)expected[t]);
    }
}

/* ---- many threads ---- */

enum { THREADS = 4 };

struct talker {
    struct service *service;
    char owner[32];
    char ids[2][JOURNAL_ID_BYTES];
    char *replies[2][RIG_TURNS]; /* cmocka's asserts belong to the main thread */
    int failures;
};

static void *talk(void *argument)
{
    struct talker *talker = argument;
    for (int t = 0; t < RIG_TURNS; t++) {
        struct call *calls[2] = {NULL};
        struct error error;
        for (int c = 0; c < 2; c++) {
            struct call_params params = rig_params(rig_prompts[t], RIG_REPLY);
            if (service_call_start(talker->service, talker->owner, talker->ids[c], &params, &calls[c],
                                   &error) < 0) {
                talker->failures++;
                return NULL;
            }
        }
        struct context_info *infos;
        size_t count;
        if (service_context_list(talker->service, talker->owner, &infos, &count, &error) == 0) {
            talker->failures += count != 2;
            context_infos_free(infos, count);
        }
        for (int c = 0; c < 2; c++) {
            struct buffer text = {0};
            while (call_wait(calls[c], 100, &text) != CALL_DONE)
                ;
            talker->failures += call_result(calls[c])->code < 0;
            talker->replies[c][t] = text.data ? text.data : mem_strdup("");
            call_release(calls[c]);
        }
        struct service_status status;
        service_status(talker->service, &status);
        talker->failures += status.kv_resident_bytes > status.kv_budget_bytes;
    }
    return NULL;
}

static void test_many_threads(void **state)
{
    (void)state;
    struct service_options options = rig_options(rig_home);
    options.kv_budget_bytes = 40 * 49152;
    struct service *service = rig_open(&options);
    struct talker talkers[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        talkers[i] = (struct talker){.service = service};
        snprintf(talkers[i].owner, sizeof talkers[i].owner, "1000/app%d", i);
        for (int c = 0; c < 2; c++)
            rig_new(service, talkers[i].owner, c ? NULL : rig_system_prompt, talkers[i].ids[c]);
    }
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, talk, &talkers[i]), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(talkers[i].failures, 0);
        for (int c = 0; c < 2; c++)
            for (int t = 0; t < RIG_TURNS; t++) {
                assert_string_equal(talkers[i].replies[c][t], rig_reference[c][t]);
                mem_free(talkers[i].replies[c][t]);
            }
    }
    service_close(service);
}

struct timed {
    struct call *call;
    double before_ms, after_ms; /* around its arrival */
    double queue_ms;
};

static double now_ms(void)
{
    return (double)clock_ns() / 1e6;
}

static void start_timed(struct service *service, const char *owner, const char *id, struct timed *timed)
{
    struct call_params params = rig_params(rig_prompts[0], RIG_REPLY);
    timed->before_ms = now_ms();
    assert_int_equal(service_call_start(service, owner, id, &params, &timed->call, NULL), 0);
    timed->after_ms = now_ms();
}

/* Apps take turns: one app's backlog does not keep another waiting for more than the call that runs and one
 * more. */
static void test_fair_between_apps(void **state)
{
    (void)state;
    enum { BACKLOG = 8 };
    char mine[JOURNAL_ID_BYTES], theirs[JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    struct timed timed[BACKLOG], late;
    int passed = 0;
    rig_new(service, rig_me, NULL, mine);
    rig_new(service, rig_other, NULL, theirs);
    for (int i = 0; i < BACKLOG; i++)
        start_timed(service, rig_me, mine, &timed[i]);
    start_timed(service, rig_other, theirs, &late);
    for (int i = 0; i < BACKLOG; i++) {
        struct rig_reply reply = rig_finish(timed[i].call);
        assert_int_equal(reply.result.code, 0);
        assert_int_equal(reply.result.turn, i); /* in their order */
        timed[i].queue_ms = reply.result.queue_ms;
        rig_reply_deinit(&reply);
    }
    struct rig_reply reply = rig_finish(late.call);
    assert_int_equal(reply.result.code, 0);
    late.queue_ms = reply.result.queue_ms;
    rig_reply_deinit(&reply);
    for (int i = 0; i < BACKLOG; i++) /* those that began surely after it came and surely before it began */
        passed += timed[i].before_ms + timed[i].queue_ms > late.after_ms &&
                  timed[i].after_ms + timed[i].queue_ms < late.before_ms + late.queue_ms;
    assert_in_range(passed, 0, 1);
    service_close(service);
}

/* ---- cancelling ---- */

/* Starts two long calls to id, cancels one in its middle and the other before it begins, and checks that the
 * context is as before; true if it had slid. A call that was done before it could be cancelled is not what is
 * looked for: then id becomes the context of before, and other calls are tried. */
static bool cancel_in_the_middle(struct service *service, char id[JOURNAL_ID_BYTES])
{
    for (int tries = 0; tries < 50; tries++) {
        struct context_info before;
        assert_int_equal(service_context_fork(service, rig_me, id, NULL, &before, NULL), 0);
        struct call *call = rig_start_long(service, rig_me, id),
                    *waiting = rig_start_long(service, rig_me, id);
        rig_wait_for_text(call);
        call_cancel(waiting);
        call_cancel(call);
        struct rig_reply reply = rig_finish(call), none = rig_finish(waiting);
        bool slid = reply.result.turns_dropped > 0;
        bool cancelled = reply.result.code == -ECANCELED && none.result.code == -ECANCELED;
        if (cancelled) {
            assert_string_equal(reply.result.error.text, "the call was cancelled");
            assert_int_equal(none.text.length, 0);
            struct context_info after = rig_info(service, id);
            assert_int_equal(after.tokens, before.tokens);
            assert_int_equal(after.record.turn_count, before.record.turn_count);
            assert_int_equal(after.record.window_turn, before.record.window_turn);
            assert_true(after.tokens_resident <= after.tokens);
            if (!slid)
                assert_true(rig_stressed() || after.tokens_resident >= before.tokens_resident);
            assert_false(after.busy);
            context_info_deinit(&after);
        }
        rig_reply_deinit(&reply);
        rig_reply_deinit(&none);
        assert_int_equal(service_context_delete(service, rig_me, cancelled ? before.record.id : id, NULL), 0);
        if (!cancelled)
            memcpy(id, before.record.id, JOURNAL_ID_BYTES);
        context_info_deinit(&before);
        if (cancelled)
            return slid;
    }
    fail_msg("no call was ever in its middle");
    return false;
}

static void test_cancel_leaves_things_as_before(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], gone[JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    rig_new(service, rig_me, rig_system_prompt, id);
    rig_new(service, rig_me, rig_system_prompt, gone);
    for (int t = 0; t < RIG_TURNS; t++) {
        assert_false(cancel_in_the_middle(service, id));
        call_release(rig_start_long(service, rig_me, gone)); /* a client that goes away */
        rig_expect_turn(service, id, 0, t);
    }
    struct service_status status;
    service_status(service, &status);
    assert_true(status.calls_cancelled >= 2 * RIG_TURNS);
    assert_true(status.calls_total >= status.calls_cancelled + RIG_TURNS);
    assert_int_equal(status.calls_failed, 0);
    service_close(service);
}

static void test_busy(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    bool busy = false;
    rig_new(service, rig_me, rig_system_prompt, id);
    for (int tries = 0; tries < 50 && !busy; tries++) {
        struct call *call = rig_start_long(service, rig_me, id);
        struct context_info info = rig_info(service, id);
        busy = info.busy;
        context_info_deinit(&info);
        call_cancel(call);
        struct rig_reply reply = rig_finish(call);
        rig_reply_deinit(&reply);
        info = rig_info(service, id);
        assert_false(info.busy);
        context_info_deinit(&info);
    }
    assert_true(busy);
    service_close(service);
}

static void test_delete(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct context_info info;
    struct service *service = rig_open_default();
    bool met = false; /* a call in its middle */
    for (int tries = 0; tries < 50 && !met; tries++) {
        rig_new(service, rig_me, rig_system_prompt, id);
        rig_expect_turn(service, id, 0, 0);
        struct call *running = rig_start_long(service, rig_me, id),
                    *waiting = rig_start_long(service, rig_me, id);
        rig_wait_for_text(running);
        assert_int_equal(service_context_delete(service, rig_me, id, NULL), 0);
        struct rig_reply reply = rig_finish(running), none = rig_finish(waiting);
        met = reply.result.code == -ECANCELED && none.result.code == -ECANCELED;
        rig_reply_deinit(&reply);
        rig_reply_deinit(&none);
        assert_int_equal(service_context_get(service, rig_me, id, &info, NULL), -ENOENT);
        assert_int_equal(service_context_delete(service, rig_me, id, NULL), -ENOENT);
    }
    assert_true(met);
    struct service_status status = {.kv_resident_bytes = 1};
    for (int i = 0; i < 500 && status.kv_resident_bytes; i++) {
        service_status(service, &status);
        usleep(10000); /* the worker drops the KV in its own time */
    }
    assert_int_equal(status.kv_resident_bytes, 0);
    assert_int_equal(status.contexts, 0);
    service_close(service);
}

static void *stop_soon(void *service)
{
    service_stop(service, 5);
    return NULL;
}

/* Stops a service in the middle of a call, with another waiting, and checks that what was told is what is
 * found. True if both were cut short. */
static bool stop_in_the_middle(void)
{
    char ids[2][JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    struct error error;
    pthread_t thread;
    for (int i = 0; i < 2; i++)
        rig_new(service, rig_me, rig_system_prompt, ids[i]);
    rig_expect_turn(service, ids[0], 0, 0);
    struct call *running = rig_start_long(service, rig_me, ids[0]),
                *waiting = rig_start_long(service, rig_me, ids[1]), *late = NULL;
    rig_wait_for_text(running);
    uint64_t start = clock_ns();
    assert_int_equal(pthread_create(&thread, NULL, stop_soon, service), 0);
    struct rig_reply replies[2] = {rig_finish(running), rig_finish(waiting)};
    pthread_join(thread, NULL);
    assert_true(clock_ms_since(start) < 10000);
    struct call_params params = rig_params("Hello", 1);
    assert_int_equal(service_call_start(service, rig_me, ids[0], &params, &late, &error), -ESHUTDOWN);
    assert_string_equal(error.text, "the service is shutting down");
    service_close(service);
    service = rig_open_default();
    for (int i = 0; i < 2; i++) {
        struct context_info info = rig_info(service, ids[i]);
        assert_true(replies[i].result.code == -ESHUTDOWN || replies[i].result.code == 0);
        assert_int_equal(info.record.turn_count, (i == 0) + (replies[i].result.code == 0));
        context_info_deinit(&info);
    }
    bool cut = replies[0].result.code && replies[1].result.code;
    if (replies[0].result.code)
        rig_expect_turn(service, ids[0], 0, 1);
    rig_reply_deinit(&replies[0]);
    rig_reply_deinit(&replies[1]);
    service_close(service);
    return cut;
}

static void test_stop_cancels_after_the_grace(void **state)
{
    (void)state;
    int tries = 0;
    while (!stop_in_the_middle())
        assert_true(++tries < 50);
}

static void test_stop_lets_the_running_call_finish(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    struct call *call = NULL;
    struct call_params params = rig_params(rig_prompts[0], RIG_REPLY);
    rig_new(service, rig_me, rig_system_prompt, id);
    assert_int_equal(service_call_start(service, rig_me, id, &params, &call, NULL), 0);
    rig_wait_for_text(call);
    service_stop(service, 60000);
    struct rig_reply reply = rig_finish(call);
    assert_int_equal(reply.result.code, 0);
    rig_reply_deinit(&reply);
    service_close(service);
    service = rig_open_default();
    rig_expect_turn(service, id, 0, 1);
    service_close(service);
}

static void test_slide_is_undone(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], twin[JOURNAL_ID_BYTES];
    struct service_options options = rig_options(rig_home);
    options.context_length = 256;
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    rig_new(service, rig_me, rig_system_prompt, twin);
    bool slid = false;
    for (int i = 0; i < 12; i++) {
        slid = cancel_in_the_middle(service, id) || slid;
        struct rig_reply reply = rig_ask(service, rig_me, twin, rig_prompts[i % RIG_TURNS], 10);
        rig_expect(service, rig_me, id, rig_prompts[i % RIG_TURNS], 10, reply.text.data);
        rig_reply_deinit(&reply);
    }
    assert_true(slid);
    service_close(service);
}

/* ---- forks ---- */

static void test_fork(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct context_info copy, named, info;
    struct service_status before, after;
    struct service *service = rig_open_default();
    rig_new(service, rig_me, rig_system_prompt, id);
    for (int t = 0; t < 3; t++)
        rig_expect_turn(service, id, 0, t);
    service_status(service, &before);
    assert_int_equal(service_context_fork(service, rig_me, id, NULL, &copy, NULL), 0);
    service_status(service, &after);
    assert_true(after.kv_resident_bytes <= before.kv_resident_bytes); /* shared */
    assert_int_equal(after.contexts, before.contexts + 1);
    assert_true(rig_stressed() || (copy.tokens_resident > 0 && copy.tokens_resident + 1 >= copy.tokens));
    info = rig_info(service, id);
    assert_int_equal(info.tokens, copy.tokens);
    assert_int_equal(info.tokens_resident, copy.tokens_resident);
    context_info_deinit(&info);
    rig_expect_turn(service, copy.record.id, 0, 3);
    rig_expect_turn(service, id, 0, 3);
    rig_expect_turn(service, copy.record.id, 0, 4);
    assert_int_equal(service_context_delete(service, rig_me, copy.record.id, NULL), 0);
    rig_expect_turn(service, id, 0, 4);
    /* behind a waiting call: the copy has its turn */
    struct call *call = NULL;
    struct call_params params = rig_params("One more.", 5);
    assert_int_equal(service_call_start(service, rig_me, id, &params, &call, NULL), 0);
    assert_int_equal(service_context_fork(service, rig_me, id, "copy", &named, NULL), 0);
    assert_int_equal(named.record.turn_count, RIG_TURNS + 1);
    assert_string_equal(named.record.name, "copy");
    struct rig_reply reply = rig_finish(call);
    rig_reply_deinit(&reply);
    context_info_deinit(&copy);
    context_info_deinit(&named);
    service_close(service);
}

/* A copy and its source under a budget that cannot hold both apart. */
static void test_fork_under_pressure(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], third[JOURNAL_ID_BYTES];
    struct context_info copy;
    struct service_options options = rig_options(rig_home);
    options.kv_budget_bytes = 20 * 49152;
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    rig_new(service, rig_me, NULL, third);
    for (int t = 0; t < 2; t++)
        rig_expect_turn(service, id, 0, t);
    assert_int_equal(service_context_fork(service, rig_me, id, NULL, &copy, NULL), 0);
    for (int t = 2; t < RIG_TURNS; t++) {
        rig_expect_turn(service, id, 0, t);
        rig_expect_turn(service, third, 1, t - 2);
        rig_expect_turn(service, copy.record.id, 0, t);
    }
    context_info_deinit(&copy);
    service_close(service);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_a_call),
        WITH(test_goes_on_after_reopening),
        WITH(test_eviction_changes_nothing),
        WITH(test_eviction_changes_nothing_at_8),
        WITH(test_many_threads),
        WITH(test_fair_between_apps),
        WITH(test_cancel_leaves_things_as_before),
        WITH(test_busy),
        WITH(test_delete),
        WITH(test_stop_cancels_after_the_grace),
        WITH(test_stop_lets_the_running_call_finish),
        WITH(test_fork),
        WITH(test_fork_under_pressure),
        WITH(test_slide_is_undone),
    };
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    return cmocka_run_group_tests_name("service", tests, rig_group_setup, rig_group_teardown);
}
