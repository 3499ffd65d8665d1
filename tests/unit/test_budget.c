/* The KV budget while the service runs: changed by its owner, shrunk under memory pressure, a FIFO standing
 * in for what tells of that. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "support/service_rig.h"

enum { CHUNK = 49152, MANY_CHUNKS = 400, PATIENCE_MS = 20000 };

static char fifo[96];
static int teller = -1;

static int begin(void **state)
{
    (void)state;
    rig_setup(state);
    snprintf(fifo, sizeof fifo, "%s/pressure", rig_home);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    teller = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    return teller < 0 ? -1 : 0;
}

static int end(void **state)
{
    (void)state;
    close(teller);
    rig_teardown(state);
    return 0;
}

static struct service *open_watched(unsigned budget_chunks, unsigned quiet_ms)
{
    struct service_options options = rig_options(rig_home);
    options.kv_budget_bytes = (uint64_t)budget_chunks * CHUNK;
    options.watch_pressure = true;
    options.pressure_path = fifo;
    options.pressure_quiet_ms = quiet_ms;
    return rig_open(&options);
}

static void tell(void)
{
    assert_int_equal(write(teller, "!", 1), 1);
}

static struct service_status status_of(struct service *service)
{
    struct service_status status;
    service_status(service, &status);
    return status;
}

/* Two conversations of `turns` turns: with the system prompt and without. Returns what is resident. */
static uint64_t converse(struct service *service, char ids[2][JOURNAL_ID_BYTES], int turns)
{
    for (int c = 0; c < 2; c++) {
        rig_new(service, rig_me, c ? NULL : rig_system_prompt, ids[c]);
        for (int t = 0; t < turns; t++)
            rig_expect(service, rig_me, ids[c], rig_prompts[t], RIG_REPLY, rig_reference[c][t]);
    }
    return status_of(service).kv_resident_bytes;
}

/* Waits until `allowed` bytes hold (or at most so many) and no more are resident; `pressed` tells on that
 * memory is short. */
static void await_allowed(struct service *service, uint64_t allowed, bool pressed, bool exactly)
{
    uint64_t start = clock_ns();
    struct service_status status = status_of(service);
    while (status.kv_allowed_bytes > allowed || (exactly && status.kv_allowed_bytes != allowed) ||
           status.kv_resident_bytes > allowed) {
        if (clock_ms_since(start) > PATIENCE_MS)
            fail_msg("%llu bytes allowed and %llu resident, not %llu",
                     (unsigned long long)status.kv_allowed_bytes,
                     (unsigned long long)status.kv_resident_bytes, (unsigned long long)allowed);
        if (pressed)
            tell();
        usleep(20000);
        status = status_of(service);
    }
    assert_int_equal(status.pressure, pressed);
}

static void test_pressure_shrinks_and_ends(void **state)
{
    (void)state;
    char ids[2][JOURNAL_ID_BYTES];
    struct error error;
    struct service *service = open_watched(MANY_CHUNKS, 1000);
    const uint64_t resident = converse(service, ids, 4), budget = resident / 3 * 4;
    assert_true(resident > 16 * CHUNK);
    assert_int_equal(service_set_budget(service, budget, &error), 0);
    assert_int_equal(status_of(service).kv_allowed_bytes, budget);
    uint64_t start = clock_ns();
    tell();
    await_allowed(service, resident / 2, true, false);
    assert_int_equal(status_of(service).kv_budget_bytes, budget);
    await_allowed(service, budget / 4, true, true); /* half again would be less than a quarter of all */
    assert_true(clock_ms_since(start) >= 2000);
    assert_true(status_of(service).evicted_bytes_total >= resident - resident / 2);
    for (int i = 0; i < 25; i++) { /* there it stays */
        tell();
        usleep(100000);
        assert_int_equal(status_of(service).kv_allowed_bytes, budget / 4);
    }
    for (int c = 0; c < 2; c++) /* needs more than that, and gets it from what is configured */
        rig_expect(service, rig_me, ids[c], rig_prompts[4], RIG_REPLY, rig_reference[c][4]);
    await_allowed(service, budget, false, true);
    service_close(service);
}

static void test_few_chunks(void **state)
{
    (void)state;
    char ids[2][JOURNAL_ID_BYTES];
    struct service *service = open_watched(MANY_CHUNKS, 60000);
    tell(); /* nothing is resident: four chunks are always granted */
    await_allowed(service, 4 * CHUNK, true, true);
    converse(service, ids, 1);
    struct error error;
    assert_int_equal(service_set_budget(service, 3 * CHUNK, &error), 0); /* never above the configured */
    await_allowed(service, 3 * CHUNK, true, true);
    assert_int_equal(service_set_budget(service, 100 * CHUNK, &error), 0); /* still short */
    assert_int_equal(status_of(service).kv_budget_bytes, 100 * CHUNK);
    assert_int_equal(status_of(service).kv_allowed_bytes, 3 * CHUNK);
    service_close(service); /* in the middle of it */
}

static void squeeze(struct service *service)
{
    (void)service;
    tell();
}

static void lower(struct service *service)
{
    struct error error;
    assert_int_equal(service_set_budget(service, status_of(service).kv_resident_bytes - 2 * CHUNK, &error),
                     0);
}

/* Starts a call on `id` that is still in its middle when `change` was met, within a second: no
 * more is resident than is allowed. The call ends well. */
static void in_the_middle(struct service *service, void (*change)(struct service *service), const char *id,
                          const char *idle)
{
    for (int attempt = 0; attempt < 20; attempt++) {
        struct context_info info = rig_info(service, idle);
        assert_true(info.chunks_resident > 0);
        context_info_deinit(&info);
        struct call *call = rig_start_long(service, rig_me, id);
        rig_wait_for_text(call);
        uint64_t start = clock_ns();
        change(service);
        do {
            usleep(500);
            info = rig_info(service, idle);
            struct service_status status = status_of(service);
            bool met =
                (change == lower || status.pressure) && status.kv_resident_bytes <= status.kv_allowed_bytes;
            assert_int_equal(info.chunks_resident + info.chunks_stored + info.chunks_missing,
                             (info.tokens + 15) / 16);
            context_info_deinit(&info);
            if (met)
                break;
        } while (status_of(service).calls_running && clock_ms_since(start) < PATIENCE_MS);
        double ms = clock_ms_since(start);
        bool running = status_of(service).calls_running > 0;
        assert_true(!running || ms < 1000);
        call_cancel(call);
        struct rig_reply reply = rig_finish(call);
        /* lowered for good, the budget may be too small for where the call would go */
        assert_true(reply.result.code == 0 || reply.result.code == -ECANCELED ||
                    (change == lower && reply.result.code == -ENOSPC));
        rig_reply_deinit(&reply);
        if (running)
            return;
        /* an end token was drawn too early: again, with the budget as it was */
        while (status_of(service).pressure)
            usleep(10000);
        assert_int_equal(service_set_budget(service, (uint64_t)MANY_CHUNKS * CHUNK, NULL), 0);
        struct rig_reply again = rig_ask(service, rig_me, idle, rig_prompts[1], RIG_REPLY);
        rig_reply_deinit(&again);
    }
    fail_msg("every reply ended before it could be looked at");
}

static void converse_once(struct service *service, char id[JOURNAL_ID_BYTES], char idle[JOURNAL_ID_BYTES])
{
    rig_new(service, rig_me, NULL, id);
    rig_new(service, rig_me, NULL, idle);
    for (int t = 0; t < 4; t++)
        rig_expect(service, rig_me, idle, rig_prompts[t], RIG_REPLY, rig_reference[1][t]);
}

static void test_pressure_during_a_call(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], idle[JOURNAL_ID_BYTES];
    struct service *service = open_watched(MANY_CHUNKS, 500);
    converse_once(service, id, idle);
    in_the_middle(service, squeeze, id, idle);
    service_close(service);
}

static void test_lowered_during_a_call(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], idle[JOURNAL_ID_BYTES];
    struct service *service = open_watched(MANY_CHUNKS, 60000);
    converse_once(service, id, idle);
    in_the_middle(service, lower, id, idle);
    service_close(service);
}

/* Lowered while a long prompt is computed: met before its first token, within a second. */
static void test_lowered_during_a_prompt(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES], idle[JOURNAL_ID_BYTES];
    static char words[1700 * 6 + 1];
    double ms = -1;
    for (size_t i = 0; i < 1700; i++)
        memcpy(words + 6 * i, " table", 6);
    struct service *service = open_watched(MANY_CHUNKS, 60000);
    converse_once(service, id, idle);
    for (int attempt = 0; attempt < 20 && ms < 0; attempt++) {
        struct call *call = NULL;
        struct buffer text = {0};
        struct call_params params = rig_params(words, 2);
        uint64_t before = status_of(service).kv_resident_bytes;
        rig_new(service, rig_me, NULL, id);
        assert_int_equal(service_call_start(service, rig_me, id, &params, &call, NULL), 0);
        while (status_of(service).kv_resident_bytes < before + 1700 / 16 * CHUNK && /* all it needs */
               call_wait(call, 1, &text) == CALL_WAITING)
            ;
        uint64_t start = clock_ns();
        lower(service);
        while (status_of(service).kv_resident_bytes > status_of(service).kv_allowed_bytes &&
               clock_ms_since(start) < PATIENCE_MS)
            usleep(1000);
        if (call_wait(call, 0, &text) == CALL_WAITING) { /* still at its prompt */
            ms = clock_ms_since(start);
            struct context_info info = rig_info(service, idle);
            assert_true(info.chunks_resident < (info.tokens + 15) / 16);
            context_info_deinit(&info);
        }
        struct rig_reply reply = rig_finish(call);
        assert_int_equal(reply.result.code, 0);
        rig_reply_deinit(&reply);
        buffer_deinit(&text);
        assert_int_equal(service_context_delete(service, rig_me, id, NULL), 0);
        assert_int_equal(service_set_budget(service, (uint64_t)MANY_CHUNKS * CHUNK, NULL), 0);
        rig_new(service, rig_me, NULL, idle);
        reply = rig_ask(service, rig_me, idle, rig_prompts[0], RIG_REPLY);
        rig_reply_deinit(&reply);
    }
    print_message("met after %.1f ms\n", ms);
    assert_true(ms >= 0 && ms < 1000);
    service_close(service);
}

int main(void)
{
    if (!rig_model()) {
        printf("no model: skipped\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_pressure_shrinks_and_ends, begin, end),
        cmocka_unit_test_setup_teardown(test_few_chunks, begin, end),
        cmocka_unit_test_setup_teardown(test_pressure_during_a_call, begin, end),
        cmocka_unit_test_setup_teardown(test_lowered_during_a_call, begin, end),
        cmocka_unit_test_setup_teardown(test_lowered_during_a_prompt, begin, end),
    };
    return cmocka_run_group_tests(tests, rig_group_setup, rig_group_teardown);
}
