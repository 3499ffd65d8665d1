/* What the process takes stays what was said: the KV budget and a fixed overhead, however long it runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/parse.h"
#include "base/random.h"
#include "support/service_rig.h"

enum { CONTEXTS = 64, STEPS = 1000, FULL_CHUNKS = 12 };

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

static void test_memory_is_bounded(void **state)
{
    (void)state;
    char directory[64];
    uint64_t most[2] = {0};
    struct service_status status;
    rig_directory(directory);
    struct service_options options = rig_options(directory);
    options.kv_levels = 0; /* the whole mechanism, levels too */
    options.context_length = 16 * FULL_CHUNKS;
    options.kv_budget_bytes = 2 * MIB; /* of more than 10 that all would take */
    choose_model(&options);
    uint64_t before = anonymous();
    struct play play = {.service = rig_open(&options), .random = {7}};
    while (play.count < CONTEXTS)
        add(&play);
    for (int i = 0; i < STEPS; i++) {
        step(&play);
        uint64_t now = anonymous();
        uint64_t *half = &most[i >= STEPS / 2];
        *half = now > *half ? now : *half;
        service_status(play.service, &status);
        assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
    }
    print_message("anonymous: %.1f MB before, at most %.1f in the first half, %.1f in the second; %lu chunks "
                  "came back\n",
                  (double)before / 1e6, (double)most[0] / 1e6, (double)most[1] / 1e6,
                  (unsigned long)play.switched);
    assert_true(play.switched > STEPS / 2);
    assert_true(status.evicted_bytes_total >
                (getenv("LLMS_MEMORY_BUDGET") ? 1 : 10) * status.kv_budget_bytes);
    if (MEASURED) {
        assert_true(most[1] <= options.kv_budget_bytes + 32 * MIB);
        assert_true(most[0] <= options.kv_budget_bytes + 32 * MIB);
        assert_true(most[1] <= most[0] + 4 * MIB); /* peaks of the heap between two idle moments */
    }
    while (play.count)
        drop(&play, play.count - 1);
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
