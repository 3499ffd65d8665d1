/* Calls under faults of memory and disk: each succeeds or fails cleanly, and the conversation goes on as if
 * the failed ones had never been. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "base/log.h"
#include "base/memory.h"
#include "support/service_rig.h"
#include "support/sqlite_faults.h"

static char directory[64];
static const char me[] = "1000/tests";
static const char system_prompt[] = "You are a helpful assistant.";

enum { REPLY = 6 };

static int setup(void **state)
{
    (void)state;
    rig_directory(directory);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sqlite_faults_set(0, 0, false, 0);
    mem_fault_set(0, false);
    rig_remove(directory);
    return 0;
}

/* A call while something fails; like rig_call, but starting it may fail too. */
static struct rig_reply try_call(struct service *service, const char *id, const char *prompt)
{
    struct rig_reply reply = {0};
    struct call_params params = rig_params(prompt, REPLY);
    struct call *call = NULL;
    reply.result.code = service_call_start(service, me, id, &params, &call, &reply.result.error);
    if (reply.result.code < 0)
        return reply;
    while (call_wait(call, 1000, &reply.text) != CALL_DONE)
        ;
    reply.result = *call_result(call);
    call_release(call);
    return reply;
}

static void check_turns(struct service *service, const char *id, uint64_t turns)
{
    struct context_info info;
    assert_int_equal(service_context_get(service, me, id, &info, NULL), 0);
    assert_int_equal(info.record.turn_count, turns);
    assert_true(info.tokens_resident <= info.tokens);
    assert_false(info.busy);
    context_info_deinit(&info);
}

static void prompt_of(int turn, char prompt[64])
{
    snprintf(prompt, 64, "I have question number %d about the weather.", turn);
}

/* Every allocation of a call fails in turn, that of the reading side too. The reference is a context to which
 * nothing happened. pressure: a small budget, so that each call evicts and recomputes as well. */
static void allocations(bool persistent, bool pressure)
{
    char id[JOURNAL_ID_BYTES], calm[JOURNAL_ID_BYTES], prompt[64];
    struct service_options options = rig_options(directory);
    if (pressure)
        options.kv_budget_bytes = 14 * 49152;
    options.context_length = 192;
    struct service *service = rig_open(&options);
    rig_new(service, me, system_prompt, id);
    rig_new(service, me, system_prompt, calm);
    int turn = 0, failures = 0;
    for (long n = 1; turn < 8; n += persistent ? 5 : 1) {
        prompt_of(turn, prompt);
        mem_fault_set(n, persistent);
        struct call *call = NULL;
        struct call_params params = rig_params(prompt, REPLY);
        struct rig_reply reply = {0};
        int code = service_call_start(service, me, id, &params, &call, NULL);
        if (code == 0) {
            while (!persistent && call_wait(call, 1000, &reply.text) != CALL_DONE)
                ;
            /* for the reader memory never comes back: it looks on until the call is over */
            struct service_status status = {.calls_running = 1};
            while (persistent && status.calls_running + status.calls_waiting)
                service_status(service, &status);
            mem_fault_set(0, false);
            while (persistent && call_wait(call, 1000, &reply.text) != CALL_DONE)
                ;
            code = call_result(call)->code;
            if (code < 0)
                assert_true(call_result(call)->error.text[0] != 0);
            call_release(call);
        }
        mem_fault_set(0, false);
        assert_true(code == 0 || code == -ENOMEM);
        failures += code < 0;
        if (code == 0) {
            if (!reply.text.data)
                buffer_append(&reply.text, "", 0);
            rig_expect(service, me, calm, prompt, REPLY, reply.text.data);
            turn++;
            n = (long)turn * 7; /* the next turn's allocations from elsewhere on */
        }
        check_turns(service, id, (uint64_t)turn);
        rig_reply_deinit(&reply);
    }
    assert_true(failures > 30);
    struct service_status status;
    service_status(service, &status);
    assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
    service_close(service);
    service = rig_open(&options);
    check_turns(service, id, 8);
    struct rig_reply reply = rig_ask(service, me, id, "And?", REPLY);
    rig_expect(service, me, calm, "And?", REPLY, reply.text.data);
    rig_reply_deinit(&reply);
    service_close(service);
}

static void test_allocations_fail_once(void **state)
{
    (void)state;
    allocations(false, false);
}

static void test_allocations_fail_under_pressure(void **state)
{
    (void)state;
    allocations(false, true);
}

static void test_memory_is_gone(void **state)
{
    (void)state;
    allocations(true, false);
}

/* Opening, forking and the like. */
static void test_allocations_of_the_rest(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct service_options options = rig_options(directory);
    struct service *service = NULL;
    struct error error = {0};
    for (long n = 1, hits = 1; hits; n += 37) { /* most are the vocabulary's */
        mem_fault_set(n, false);
        int code = service_open(&options, &service, &error);
        hits = mem_fault_hits();
        mem_fault_set(0, false);
        assert_true(code == 0 || (hits && error.text[0]));
        if (code == 0)
            service_close(service);
    }
    service = rig_open(&options);
    rig_new(service, me, system_prompt, id);
    struct rig_reply reply = rig_ask(service, me, id, "Hello", REPLY), second;
    rig_reply_deinit(&reply);
    uint64_t copies = 0;
    for (long n = 1, hits = 1; hits; n++) {
        struct context_info copy;
        mem_fault_set(n, false);
        int code = service_context_fork(service, me, id, "copy", &copy, &error);
        hits = mem_fault_hits();
        mem_fault_set(0, false);
        assert_true(code == 0 || code == -ENOMEM);
        if (code < 0)
            continue;
        copies++;
        reply = rig_ask(service, me, copy.record.id, "What is next?", REPLY);
        struct context_info twin; /* it answers as an undisturbed copy does */
        assert_int_equal(service_context_fork(service, me, id, NULL, &twin, NULL), 0);
        second = rig_ask(service, me, twin.record.id, "What is next?", REPLY);
        assert_string_equal(reply.text.data, second.text.data);
        rig_reply_deinit(&reply);
        rig_reply_deinit(&second);
        assert_int_equal(service_context_delete(service, me, twin.record.id, NULL), 0);
        context_info_deinit(&twin);
        context_info_deinit(&copy);
    }
    assert_true(copies > 1); /* a copy that could not share chunks is a copy all the same */
    for (long n = 1, hits = 1; hits; n++) {
        struct context_info *infos;
        size_t count;
        mem_fault_set(n, false);
        int code = service_context_list(service, me, &infos, &count, &error);
        hits = mem_fault_hits();
        mem_fault_set(0, false);
        assert_true(code == 0 || code == -ENOMEM);
        if (code == 0)
            context_infos_free(infos, count);
    }
    for (long n = 1, hits = 1; hits; n++) {
        mem_fault_set(n, false);
        int code = service_context_delete(service, me, id, &error);
        hits = mem_fault_hits();
        mem_fault_set(0, false);
        assert_true(code == 0 || code == -ENOMEM);
        if (code == 0)
            break;
    }
    service_close(service);
}

/* The disk is full, or fails: calls fail with that error and nothing is lost; when it is well again the
 * service goes on. Invariant 1: no such call ends well. */
static void test_disk(void **state)
{
    (void)state;
    static const struct {
        unsigned mask;
        int code, expected;
        const char *words;
    } kinds[] = {
        {SQLITE_FAULT_WRITE, SQLITE_FULL, -ENOSPC, "no space left for the journal"},
        {SQLITE_FAULT_WRITE, SQLITE_READONLY, -EROFS, "can only be read"},
        {SQLITE_FAULT_WRITE, SQLITE_IOERR_WRITE, -EIO, "journal"},
        {SQLITE_FAULT_SYNC, 0, -EIO, "journal"},
    };
    char id[JOURNAL_ID_BYTES], calm[JOURNAL_ID_BYTES], prompt[64];
    struct service_options options = rig_options(directory);
    struct service *service = rig_open(&options);
    struct context_info info;
    struct error error;
    rig_new(service, me, system_prompt, id);
    rig_new(service, me, system_prompt, calm);
    for (int i = 0; i < 4; i++) {
        prompt_of(i, prompt);
        struct rig_reply expected = rig_ask(service, me, calm, prompt, REPLY);
        sqlite_faults_set(kinds[i].mask, 1, true, kinds[i].code);
        for (int tries = 0; tries < 2; tries++) {
            struct rig_reply reply = try_call(service, id, prompt);
            assert_int_equal(reply.result.code, kinds[i].expected);
            if (!strstr(reply.result.error.text, kinds[i].words))
                fail_msg("'%s' does not say '%s'", reply.result.error.text, kinds[i].words);
            rig_reply_deinit(&reply);
            check_turns(service, id, (uint64_t)i);
        }
        assert_int_equal(service_context_new(service, me, NULL, NULL, &info, &error), kinds[i].expected);
        assert_int_equal(service_context_fork(service, me, id, NULL, &info, &error), kinds[i].expected);
        assert_int_equal(service_context_delete(service, me, id, &error), kinds[i].expected);
        sqlite_faults_set(0, 0, false, 0);
        rig_expect(service, me, id, prompt, REPLY, expected.text.data);
        rig_reply_deinit(&expected);
    }
    struct service_status status;
    service_status(service, &status);
    assert_int_equal(status.contexts, 2);
    assert_int_equal(status.calls_failed, 8);
    service_close(service);
    service = rig_open(&options);
    check_turns(service, id, 4);
    service_close(service);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_allocations_fail_once),
        WITH(test_allocations_fail_under_pressure),
        WITH(test_memory_is_gone),
        WITH(test_allocations_of_the_rest),
        WITH(test_disk),
    };
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    log_set_level(LOG_LEVEL_ERROR);
    if (sqlite_faults_install() < 0)
        return 1;
    return cmocka_run_group_tests_name("service faults", tests, NULL, NULL);
}
