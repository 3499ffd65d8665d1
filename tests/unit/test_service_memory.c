/* What the process takes stays what was said: the KV budget and a fixed overhead, however long it runs.
 *
 * The same play twice, from no contexts to no contexts: so their sizes are no excuse, and what is in use at
 * the end of the second that was not at the end of the first has leaked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cmocka.h>

#include "base/log.h"
#include "base/parse.h"
#include "base/random.h"
#include "support/service_rig.h"

enum { CONTEXTS = 64, STEPS = 1000, PLAYS = 2, FULL_CHUNKS = 12, LEAK_MOST = 96 << 10 };

#define MIB (UINT64_C(1) << 20)

/* Sanitizers keep freed memory and shadows of their own: the same plays there for what else they find. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { MEASURED = 0 };
#else
enum { MEASURED = 1 };
#endif

static const char me[] = "1000/tests";

/* Bytes of anonymous memory. */
static uint64_t anonymous(void)
{
    char line[256];
    unsigned long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %lu kB", &kib) == 1)
            break;
    fclose(file);
    assert_true(kib > 0);
    return (uint64_t)kib << 10;
}

struct play {
    struct service *service;
    char ids[CONTEXTS][JOURNAL_ID_BYTES];
    size_t count;
    struct random random;
    uint64_t switched; /* chunks that came back */
};

static void add(struct play *play)
{
    rig_new(play->service, me, random_below(&play->random, 2) ? rig_system_prompt : NULL,
            play->ids[play->count++]);
}

static void fork_one(struct play *play, size_t i)
{
    struct context_info info;
    assert_int_equal(service_context_fork(play->service, me, play->ids[i], NULL, &info, NULL), 0);
    memcpy(play->ids[play->count++], info.record.id, JOURNAL_ID_BYTES);
    context_info_deinit(&info);
}

static void drop(struct play *play, size_t i)
{
    assert_int_equal(service_context_delete(play->service, me, play->ids[i], NULL), 0);
    memmove(play->ids[i], play->ids[--play->count], JOURNAL_ID_BYTES);
}

static void call(struct play *play, size_t i)
{
    struct rig_reply reply =
        rig_ask(play->service, me, play->ids[i], rig_prompts[random_below(&play->random, RIG_TURNS)],
                1 + (uint32_t)random_below(&play->random, 4));
    play->switched += reply.result.chunks_loaded + reply.result.chunks_recomputed;
    rig_reply_deinit(&reply);
}

static void step(struct play *play)
{
    size_t i = (size_t)random_below(&play->random, play->count);
    unsigned dice = (unsigned)random_below(&play->random, 100);
    if (dice < 8 && play->count < CONTEXTS)
        fork_one(play, i);
    else if (dice < 14)
        drop(play, i);
    else
        call(play, i);
    if (play->count < CONTEXTS - 8)
        add(play);
}

/* On another model, as LLMS_MEMORY_MODEL and LLMS_MEMORY_BUDGET (bytes) say. */
static void choose_model(struct service_options *options)
{
    const char *model = getenv("LLMS_MEMORY_MODEL"), *budget = getenv("LLMS_MEMORY_BUDGET");
    if (model)
        options->model_path = model;
    if (budget)
        assert_int_equal(parse_u64(budget, 1, UINT64_MAX, &options->kv_budget_bytes), 0);
}

/* Until the worker has nothing to do and nothing is left of deleted contexts; then what is in use of the
 * heap. */
static uint64_t settle(struct service *service)
{
    struct service_status status = {.stored_bytes = 1};
    for (int ms = 0; ms < 10000 && status.stored_bytes + status.kv_resident_bytes; ms++) {
        usleep(1000);
        service_status(service, &status);
    }
    assert_int_equal(status.stored_bytes + status.kv_resident_bytes, 0);
    usleep(50000);
#ifdef __GLIBC__
    struct mallinfo2 heap = mallinfo2();
    return heap.uordblks + heap.hblkhd;
#else
    return 0;
#endif
}

/* The most that was seen of anonymous memory on the way; *settled: what is in use at its end. */
static uint64_t run(struct play *play, const struct service_options *options, uint64_t *settled)
{
    struct service_status status;
    uint64_t most = 0, evicted;
    service_status(play->service, &status);
    evicted = status.evicted_bytes_total;
    play->switched = 0;
    play->random = (struct random){7};
    while (play->count < CONTEXTS)
        add(play);
    for (int i = 0; i < STEPS / PLAYS; i++) {
        step(play);
        uint64_t now = anonymous();
        most = now > most ? now : most;
        service_status(play->service, &status);
        assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
    }
    assert_true(play->switched > STEPS / PLAYS / 2);
    assert_true(status.evicted_bytes_total - evicted >
                (getenv("LLMS_MEMORY_BUDGET") ? 1 : 5) * status.kv_budget_bytes);
    while (play->count)
        drop(play, play->count - 1);
    *settled = settle(play->service);
    if (MEASURED)
        assert_true(most <= options->kv_budget_bytes + 32 * MIB);
    return most;
}

static void test_memory_is_bounded(void **state)
{
    (void)state;
    char directory[64];
    uint64_t most[PLAYS], settled[PLAYS];
    rig_directory(directory);
    struct service_options options = rig_options(directory);
    options.kv_levels = 0; /* the whole mechanism, levels too */
    options.context_length = 16 * FULL_CHUNKS;
    options.kv_budget_bytes = 2 * MIB; /* of more than 10 that all would take */
    choose_model(&options);
    struct play play = {.service = rig_open(&options)};
    for (int i = 0; i < PLAYS; i++) {
        most[i] = run(&play, &options, &settled[i]);
        print_message("anonymous: at most %.2f MB, %.2f at rest without contexts, of which %.3f in use; %lu "
                      "chunks came back\n",
                      (double)most[i] / 1e6, (double)anonymous() / 1e6, (double)settled[i] / 1e6,
                      (unsigned long)play.switched);
    }
    if (MEASURED) {
        assert_true(settled[1] <= settled[0] + LEAK_MOST);
        assert_true(most[1] <= most[0] + 4 * MIB); /* peaks of the heap between two idle moments */
    }
    service_close(play.service);
    rig_remove(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory_is_bounded)};
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests_name("service memory", tests, NULL, NULL);
}
