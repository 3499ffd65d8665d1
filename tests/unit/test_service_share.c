/* Chunks that contexts of one app have in common are computed, kept and written once, and nothing of it shows
 * in the replies; a chunk's file lives as long as a context that needs it. */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"
#include "os/file.h"
#include "support/service_rig.h"

enum { MANY = 5, TURNS = 3, CHUNK = 49152, PATH = 512 };

/* A system prompt of many chunks. */
static char long_prompt[2048];

static int group_setup(void **state)
{
    for (int i = 0; i < 12; i++)
        snprintf(long_prompt + strlen(long_prompt), sizeof long_prompt - strlen(long_prompt), "Rule %d: %s ",
                 i, rig_system_prompt);
    return rig_group_setup(state);
}

static struct service_status status_of(struct service *service)
{
    struct service_status status;
    service_status(service, &status);
    return status;
}

/* Until the worker did what it does between calls. */
static void await_resident(struct service *service, uint64_t bytes)
{
    for (int i = 0; i < 1000 && status_of(service).kv_resident_bytes != bytes; i++)
        usleep(5000);
    assert_int_equal(status_of(service).kv_resident_bytes, bytes);
}

/* Chunk files, or names of them, by the store's count and by what lies in the directory. */
static int files(void)
{
    char path[PATH];
    int count = 0;
    snprintf(path, sizeof path, "%s/chunks", rig_home);
    DIR *top = opendir(path);
    assert_non_null(top);
    for (struct dirent *entry; (entry = readdir(top));) {
        snprintf(path, sizeof path, "%s/chunks/%s", rig_home, entry->d_name);
        DIR *below = entry->d_name[0] == '.' ? NULL : opendir(path);
        for (struct dirent *inner; below && (inner = readdir(below));)
            count += inner->d_name[0] != '.';
        if (below)
            closedir(below);
    }
    closedir(top);
    return count;
}

/* The replies of MANY conversations, each by an app of its own: nothing is shared. */
static void ask_apart(char *replies[MANY][TURNS], uint64_t *bytes)
{
    struct service *service = rig_open_default();
    *bytes = 0;
    for (int i = 0; i < MANY; i++) {
        char owner[32], id[JOURNAL_ID_BYTES];
        snprintf(owner, sizeof owner, "1000/app%d", i);
        rig_new(service, owner, long_prompt, id);
        for (int t = 0; t < TURNS; t++) {
            struct rig_reply reply = rig_ask(service, owner, id, rig_prompts[(i + t) % RIG_TURNS], RIG_REPLY);
            assert_true(t || reply.result.cached_tokens == 0); /* not even how long it takes */
            replies[i][t] = mem_strdup(reply.text.data);
            rig_reply_deinit(&reply);
        }
        struct context_info info;
        assert_int_equal(service_context_get(service, owner, id, &info, NULL), 0);
        *bytes += info.bytes_resident;
        context_info_deinit(&info);
    }
    if (!rig_stressed()) /* while it is written, a last chunk that is written on is there twice */
        await_resident(service, *bytes);
    service_close(service);
}

static void free_replies(char *replies[MANY][TURNS])
{
    for (int i = 0; i < MANY; i++)
        for (int t = 0; t < TURNS; t++)
            mem_free(replies[i][t]);
}

static void test_system_prompt_counts_once(void **state)
{
    (void)state;
    char ids[MANY][JOURNAL_ID_BYTES], *replies[MANY][TURNS];
    uint64_t apart, base = 0;
    ask_apart(replies, &apart);
    const int others = files();
    struct service *service = rig_open_default();
    for (int i = 0; i < MANY; i++) {
        rig_new(service, rig_me, long_prompt, ids[i]);
        struct context_info info = rig_info(service, ids[i]);
        base = info.tokens;
        context_info_deinit(&info);
        struct rig_reply reply = rig_ask(service, rig_me, ids[i], rig_prompts[i % RIG_TURNS], RIG_REPLY);
        const struct call_result *r = &reply.result;
        assert_string_equal(reply.text.data, replies[i][0]);
        assert_int_equal(r->context_tokens, r->prompt_tokens + r->reply_tokens + (i ? base / 16 * 16 : 0));
        if (i && !rig_stressed()) {
            assert_int_equal(r->cached_tokens, base / 16 * 16);
            assert_int_equal(r->chunks_resident, base / 16);
        }
        rig_reply_deinit(&reply);
    }
    for (int i = 0; i < MANY; i++)
        for (int t = 1; t < TURNS; t++)
            rig_expect(service, rig_me, ids[i], rig_prompts[(i + t) % RIG_TURNS], RIG_REPLY, replies[i][t]);
    assert_true(base / 16 > 8);
    if (!rig_stressed())
        await_resident(service, apart - (MANY - 1) * (base / 16) * CHUNK);
    /* it goes with the last */
    for (int i = 0; i < MANY; i++) {
        struct context_info info = rig_info(service, ids[i]);
        if (i == MANY - 1)
            await_resident(service, info.bytes_resident);
        context_info_deinit(&info);
        assert_int_equal(service_context_delete(service, rig_me, ids[i], NULL), 0);
    }
    await_resident(service, 0);
    service_close(service);
    assert_int_equal(files(), others);
    free_replies(replies);
}

/* While some are deleted and all are pushed out and come back, by reading and by recompute. */
static void test_pushed_out_and_deleted(void **state)
{
    (void)state;
    char ids[MANY][JOURNAL_ID_BYTES], *replies[MANY][TURNS];
    uint64_t apart, loaded = 0;
    ask_apart(replies, &apart);
    struct service_options options = rig_options(rig_home);
    options.kv_budget_bytes = 28 * CHUNK; /* the shared chunks and not two more conversations */
    options.force_split = true;
    options.recompute_share = 0.25;
    struct service *service = rig_open(&options);
    for (int i = 0; i < MANY; i++)
        rig_new(service, rig_me, long_prompt, ids[i]);
    for (int t = 0; t < TURNS; t++)
        for (int i = t; i < MANY; i++) { /* one fewer each time */
            struct rig_reply reply =
                rig_ask(service, rig_me, ids[i], rig_prompts[(i + t) % RIG_TURNS], RIG_REPLY);
            assert_string_equal(reply.text.data, replies[i][t]);
            loaded += reply.result.chunks_loaded;
            rig_reply_deinit(&reply);
            if (i == t)
                assert_int_equal(service_context_delete(service, rig_me, ids[i], NULL), 0);
        }
    assert_true(rig_stressed() || loaded > 0);
    service_close(service);
    free_replies(replies);
}

/* Another context's chunks on flash serve a new one after a restart. */
static void test_found_after_a_restart(void **state)
{
    (void)state;
    char first[JOURNAL_ID_BYTES], second[JOURNAL_ID_BYTES], third[JOURNAL_ID_BYTES];
    if (rig_stressed()) /* it has its own */
        skip();
    struct service_options options = rig_options(rig_home);
    options.force_split = true; /* everything is read */
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, long_prompt, first);
    struct rig_reply expected = rig_ask(service, rig_me, first, rig_prompts[0], RIG_REPLY);
    service_close(service);
    service = rig_open(&options);
    rig_new(service, rig_me, long_prompt, second);
    struct context_info info = rig_info(service, second);
    uint64_t base = info.tokens;
    context_info_deinit(&info);
    struct rig_reply reply = rig_ask(service, rig_me, second, rig_prompts[0], RIG_REPLY);
    assert_string_equal(reply.text.data, expected.text.data);
    assert_true(reply.result.chunks_loaded >= base / 16); /* the prompt is the same, too */
    assert_int_equal(reply.result.chunks_recomputed, 0);
    assert_true(reply.result.cached_tokens >= base / 16 * 16);
    rig_reply_deinit(&reply);
    rig_new(service, rig_other, long_prompt, third); /* not another app's */
    reply = rig_ask(service, rig_other, third, rig_prompts[0], RIG_REPLY);
    assert_string_equal(reply.text.data, expected.text.data);
    assert_int_equal(reply.result.chunks_loaded + reply.result.cached_tokens, 0);
    rig_reply_deinit(&reply);
    rig_reply_deinit(&expected);
    service_close(service);
}

static void test_prepared_before_its_first_call(void **state)
{
    (void)state;
    char ids[2][JOURNAL_ID_BYTES];
    struct service *service = rig_open_default();
    const struct call_params prepare = {.sampling = sampler_defaults, .prepare = true};
    for (int i = 0; i < 2; i++) {
        rig_new(service, rig_me, rig_system_prompt, ids[i]);
        struct rig_reply reply = rig_call(service, rig_me, ids[i], &prepare);
        assert_int_equal(reply.result.code, 0);
        rig_reply_deinit(&reply);
    }
    for (int t = 0; t < RIG_TURNS; t++)
        for (int i = 0; i < 2; i++)
            rig_expect_turn(service, ids[i], 0, t);
    service_close(service);
}

/* ---- files that several contexts need ---- */

/* The copy's chunks are read though its source is gone, before and after a restart. */
static void test_fork_outlives_its_source(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct context_info copy;
    if (rig_stressed()) /* it has its own */
        skip();
    struct service_options options = rig_options(rig_home);
    options.evict_all = options.force_split = true; /* all leaves after each call, and is read back */
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    for (int t = 0; t < 2; t++)
        rig_expect_turn(service, id, 0, t);
    assert_int_equal(service_context_fork(service, rig_me, id, NULL, &copy, NULL), 0);
    assert_int_equal(service_context_delete(service, rig_me, id, NULL), 0);
    for (int t = 2; t < RIG_TURNS; t++) {
        struct rig_reply reply = rig_ask(service, rig_me, copy.record.id, rig_prompts[t], RIG_REPLY);
        assert_string_equal(reply.text.data, rig_reference[0][t]);
        assert_int_equal(reply.result.chunks_recomputed, 0);
        assert_true(reply.result.chunks_loaded > 3);
        rig_reply_deinit(&reply);
        service_close(service);
        service = rig_open(&options);
    }
    assert_int_equal(service_context_delete(service, rig_me, copy.record.id, NULL), 0);
    service_close(service);
    assert_int_equal(files(), 0);
    context_info_deinit(&copy);
}

/* As if the file system knew no links: read until the source is gone, then recomputed. */
static void test_without_links(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct context_info copy;
    struct service_options options = rig_options(rig_home);
    options.evict_all = options.force_split = true;
    struct service *service = rig_open(&options);
    os_fault_set(OS_FAULT_LINK, 1, true, EPERM);
    rig_new(service, rig_me, rig_system_prompt, id);
    for (int t = 0; t < 2; t++)
        rig_expect_turn(service, id, 0, t);
    assert_int_equal(service_context_fork(service, rig_me, id, NULL, &copy, NULL), 0);
    for (int t = 2; t < 4; t++) {
        rig_expect_turn(service, copy.record.id, 0, t);
        rig_expect_turn(service, id, 0, t);
    }
    assert_true(os_fault_hits() > 0);
    assert_int_equal(service_context_delete(service, rig_me, id, NULL), 0);
    rig_expect_turn(service, copy.record.id, 0, 4);
    assert_int_equal(service_context_delete(service, rig_me, copy.record.id, NULL), 0);
    service_close(service);
    os_fault_set(0, 0, false, 0);
    assert_int_equal(files(), 0);
    context_info_deinit(&copy);
}

/* ---- levels ---- */

/* Lowered while nothing can be written, and dropped: the older copy is at a higher level, and is not what
 * comes back (invariant 5). */
static void test_lowered_and_dropped(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    if (rig_stressed()) /* it has its own */
        skip();
    struct service_options options = rig_options(rig_home);
    options.kv_levels = LEVELS_8 | LEVELS_4 | LEVELS_2;
    options.kv_ratio = 0.3;
    options.evict_all = options.force_split = true;
    struct service *service = rig_open(&options);
    rig_new(service, rig_me, rig_system_prompt, id);
    for (int t = 0; t < RIG_TURNS; t++) {
        struct rig_reply reply = rig_ask(service, rig_me, id, rig_prompts[t], 4);
        rig_reply_deinit(&reply);
    }
    os_fault_set(OS_FAULT_WRITE, 1, true, ENOSPC);
    struct rig_reply reply = rig_ask(service, rig_me, id, long_prompt, 4); /* what was newest is lowered */
    os_fault_set(0, 0, false, 0);
    uint64_t stored = reply.result.chunks_loaded;
    assert_true(stored > 6 && reply.result.chunks_recomputed <= 1);
    rig_reply_deinit(&reply);
    reply = rig_ask(service, rig_me, id, rig_prompts[0], 4);
    assert_true(reply.result.chunks_loaded > 0);
    assert_true(reply.result.chunks_loaded + 1 < stored); /* not one less: the last, which grew */
    rig_reply_deinit(&reply);
    service_close(service);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_system_prompt_counts_once), WITH(test_pushed_out_and_deleted),
        WITH(test_found_after_a_restart),     WITH(test_prepared_before_its_first_call),
        WITH(test_fork_outlives_its_source),  WITH(test_without_links),
        WITH(test_lowered_and_dropped),
    };
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    return cmocka_run_group_tests_name("service share", tests, group_setup, rig_group_teardown);
}
