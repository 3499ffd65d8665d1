/* Faults under chunk files while contexts push each other out (invariant 6): whatever fails, is torn, flipped
 * or gone, replies are those of a service to which nothing happened, and the log says what it was. SQLite
 * does its own input and output, so no fault here is the journal's. */
#include <dirent.h>
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
#include "os/aio.h"
#include "os/file.h"
#include "support/service_rig.h"

enum {
    CONTEXTS = 3,
    ROUNDS = 40,
    WARM = 6,
    REPLY = 8,
    CHUNK_BYTES = 49152,
    CHUNK8_BYTES = 25344,
    PATH = 512
};

static const char me[] = "1000/tests";

/* What each context says in each round when nothing happens. */
static char *expected[ROUNDS][CONTEXTS];

static void prompt_of(int round, int context, char prompt[128])
{
    snprintf(prompt, 128, "%d.%d %s", context, round, rig_prompts[(round + context) % RIG_TURNS]);
}

/* ---- a service whose contexts talk round after round, and begin anew when all was said ---- */

struct talk {
    struct service_options options;
    char directory[64];
    struct service *service;
    char ids[CONTEXTS][JOURNAL_ID_BYTES];
    int round;
    uint64_t loaded, recomputed, whole; /* whole: calls that kept all of their context */
};

static struct service_options small(void)
{
    struct service_options options = rig_options("");
    options.kv_budget_bytes = 14 * CHUNK_BYTES; /* not two of three */
    options.context_length = 192;
    return options;
}

static void talk_new(struct talk *talk)
{
    rig_directory(talk->directory);
    talk->options.state_directory = talk->directory;
    talk->service = rig_open(&talk->options);
    for (int c = 0; c < CONTEXTS; c++)
        rig_new(talk->service, me, c ? rig_system_prompt : NULL, talk->ids[c]);
    talk->round = 0;
}

static void talk_round(struct talk *talk);

/* Long enough to push each other out. */
static void talk_warm(struct talk *talk)
{
    talk_new(talk);
    while (talk->round < WARM)
        talk_round(talk);
}

static void talk_close(struct talk *talk)
{
    service_close(talk->service);
    rig_remove(talk->directory);
}

static void check_budget(const struct talk *talk)
{
    struct service_status status;
    service_status(talk->service, &status);
    assert_true(status.kv_resident_bytes <= status.kv_budget_bytes);
}

/* Where levels are lowered a reply depends on what was lowered and when: only that it is told and kept can be
 * said of it. */
static bool exact(const struct service_options *options)
{
    return options->kv_levels == LEVELS_16;
}

/* The reply was the context's turn of this round, and the journal has it as it was told. */
static void check_reply(const struct talk *talk, int context, const struct rig_reply *reply)
{
    struct journal_turn *turns;
    size_t count;
    if (exact(&talk->options)) {
        assert_string_equal(reply->text.data, expected[talk->round][context]);
        return;
    }
    assert_int_equal(service_context_turns(talk->service, me, talk->ids[context], &turns, &count, NULL), 0);
    assert_int_equal(count, talk->round + 1);
    assert_string_equal(turns[count - 1].reply, reply->text.data);
    journal_turns_free(turns, count);
}

static void talk_round(struct talk *talk)
{
    for (int c = 0; c < CONTEXTS; c++) {
        char prompt[128];
        prompt_of(talk->round, c, prompt);
        struct rig_reply reply = rig_ask(talk->service, me, talk->ids[c], prompt, REPLY);
        check_reply(talk, c, &reply);
        talk->loaded += reply.result.chunks_loaded;
        if (!reply.result.turns_dropped) { /* sliding computes anew whatever there is */
            talk->recomputed += reply.result.chunks_recomputed;
            talk->whole++;
        }
        rig_reply_deinit(&reply);
        check_budget(talk);
    }
    talk->round++;
}

static void talk_open(struct talk *talk, const struct service_options *options)
{
    *talk = (struct talk){.options = *options};
    talk_warm(talk);
}

/* Room for so many more rounds. */
static void talk_room(struct talk *talk, int rounds)
{
    if (talk->round + rounds <= ROUNDS)
        return;
    talk_close(talk);
    talk_warm(talk);
}

static int group_setup(void **state)
{
    (void)state;
    char directory[64], ids[CONTEXTS][JOURNAL_ID_BYTES], prompt[128];
    rig_directory(directory);
    struct service_options options = rig_options(directory);
    options.context_length = 192;
    struct service *service = rig_open(&options);
    for (int c = 0; c < CONTEXTS; c++)
        rig_new(service, me, c ? rig_system_prompt : NULL, ids[c]);
    for (int round = 0; round < ROUNDS; round++)
        for (int c = 0; c < CONTEXTS; c++) {
            prompt_of(round, c, prompt);
            struct rig_reply reply = rig_ask(service, me, ids[c], prompt, REPLY);
            expected[round][c] = mem_strdup(reply.text.data);
            rig_reply_deinit(&reply);
        }
    service_close(service);
    rig_remove(directory);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++)
        for (int c = 0; c < CONTEXTS; c++)
            mem_free(expected[round][c]);
    return 0;
}

/* ---- what the log said ---- */

static int stderr_kept = -1;

static void log_begin(void)
{
    FILE *file = tmpfile();
    assert_non_null(file);
    stderr_kept = dup(STDERR_FILENO);
    assert_true(stderr_kept >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
    fclose(file);
    log_set_level(LOG_LEVEL_WARNING);
}

/* Also after a test that failed in between, whose message would go where the log went. */
static void log_restore(void)
{
    if (stderr_kept < 0)
        return;
    log_set_level(LOG_LEVEL_ERROR);
    dup2(stderr_kept, STDERR_FILENO);
    close(stderr_kept);
    stderr_kept = -1;
}

static bool log_end(const char *words)
{
    static char text[1 << 16];
    ssize_t n = pread(STDERR_FILENO, text, sizeof text - 1, 0);
    log_restore();
    assert_true(n >= 0);
    text[n] = 0;
    return strstr(text, words) != NULL;
}

static int teardown(void **state)
{
    (void)state;
    log_restore();
    os_fault_set(0, 0, false, 0);
    os_fault_short_reads(false);
    mem_fault_set(0, false);
    aio_set_limit(0);
    return 0;
}

/* ---- operations that fail ---- */

/* Each operation of a kind in turn, once and from there on, until there are no more in a round. */
static long fail_in_turn(const struct service_options *options, unsigned mask, int code, bool persistent,
                         long most)
{
    struct talk talk;
    talk_open(&talk, options);
    long all = 0, hits = 1;
    /* On a busy machine a whole round may pass before the writer's first turn: that one is tried again. */
    for (long nth = 1, idle = 0; nth <= most && (hits || (!all && idle < 6)); idle += !hits) {
        talk_room(&talk, 2);
        os_fault_set(mask, nth, persistent, code);
        talk_round(&talk);
        hits = os_fault_hits();
        os_fault_set(0, 0, false, 0);
        talk_round(&talk); /* and afterwards */
        all += hits;
        if (hits)
            nth += persistent ? 3 : 1;
    }
    talk_close(&talk);
    return all;
}

static void test_operations(void **state)
{
    (void)state;
    static const struct {
        unsigned mask;
        int code;
    } kinds[] = {
        {OS_FAULT_OPEN, EMFILE}, {OS_FAULT_READ, EIO}, {OS_FAULT_WRITE, ENOSPC},
        {OS_FAULT_WRITE, EIO},   {OS_FAULT_SYNC, EIO}, {OS_FAULT_RENAME, EIO},
    };
    static const char *const policies[] = {"llms", "swapping", "vllm-s"};
    log_set_level(LOG_LEVEL_ERROR);
    for (size_t p = 0; p < 3; p++)
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
            struct service_options options = small();
            options.policy = policies[p];
            options.force_split = kinds[i].mask == OS_FAULT_READ; /* whatever the storage: it is read */
            options.evict_all = kinds[i].mask == OS_FAULT_OPEN;
            long once = fail_in_turn(&options, kinds[i].mask, kinds[i].code, false, 6);
            long on = fail_in_turn(&options, kinds[i].mask, kinds[i].code, true, 4);
            if (once == 0 || on < 2)
                fail_msg("%s: kind %u: %ld and %ld faults", policies[p], kinds[i].mask, once, on);
        }
}

/* A budget of a few chunks at 16 bits, of which lower levels hold more. */
static struct service_options lossy(void)
{
    struct service_options options = small();
    options.kv_levels = LEVELS_8 | LEVELS_4 | LEVELS_3 | LEVELS_2;
    options.kv_ratio = 0.4;
    options.kv_budget_bytes = 8 * CHUNK_BYTES;
    return options;
}

/* No context fits as it is computed: it comes back in parts. */
static struct service_options larger(void)
{
    struct service_options options = lossy();
    options.kv_budget_bytes = 8 * CHUNK8_BYTES;
    return options;
}

static void operations_at_low_levels(const struct service_options *given)
{
    static const struct {
        unsigned mask;
        int code;
    } kinds[] = {
        {OS_FAULT_OPEN, EMFILE}, {OS_FAULT_READ, EIO},   {OS_FAULT_WRITE, ENOSPC},
        {OS_FAULT_SYNC, EIO},    {OS_FAULT_RENAME, EIO},
    };
    log_set_level(LOG_LEVEL_ERROR);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct service_options options = *given;
        options.force_split = kinds[i].mask == OS_FAULT_READ;
        options.evict_all = kinds[i].mask == OS_FAULT_OPEN || kinds[i].mask == OS_FAULT_READ;
        long once = fail_in_turn(&options, kinds[i].mask, kinds[i].code, false, 8);
        long on = fail_in_turn(&options, kinds[i].mask, kinds[i].code, true, 4);
        if (once == 0 || on < 2)
            fail_msg("kind %u: %ld and %ld faults", kinds[i].mask, once, on);
    }
}

static void test_operations_at_low_levels(void **state)
{
    (void)state;
    const struct service_options small_levels = lossy(), parts = larger();
    operations_at_low_levels(&small_levels);
    operations_at_low_levels(&parts);
}

static void test_short_reads(void **state)
{
    (void)state;
    struct service_options options = small();
    options.evict_all = options.force_split = true;
    struct talk talk;
    talk_open(&talk, &options);
    os_fault_short_reads(true);
    for (int i = 0; i < 8; i++)
        talk_round(&talk);
    assert_true(talk.loaded > 8 && talk.recomputed < talk.loaded);
    talk_close(&talk);
}

static void test_full_disk(void **state)
{
    (void)state;
    struct service_options options = small();
    struct talk talk;
    talk_open(&talk, &options);
    talk_round(&talk);
    log_begin();
    os_fault_set(OS_FAULT_WRITE, 1, true, ENOSPC);
    for (int i = 0; i < 4; i++)
        talk_round(&talk);
    assert_true(os_fault_hits() > 4);
    assert_true(log_end("No space left on device"));
    service_close(talk.service); /* the disk is full to the end */
    os_fault_set(0, 0, false, 0);
    talk.service = rig_open(&talk.options);
    for (int i = 0; i < 4; i++)
        talk_round(&talk);
    talk_close(&talk);
}

/* At the start each operation on files may fail: the service does not open, or it answers. */
static void test_opening(void **state)
{
    (void)state;
    struct service_options options = small();
    struct talk talk;
    talk_open(&talk, &options);
    struct error error = {0};
    int opened = 0, refused = 0;
    talk_round(&talk);
    for (long nth = 1, hits = 1; hits && nth < 30; nth++) {
        service_close(talk.service);
        os_fault_set(OS_FAULT_OPEN | OS_FAULT_READ | OS_FAULT_WRITE | OS_FAULT_SYNC | OS_FAULT_RENAME, nth,
                     nth % 2, EIO);
        int code = service_open(&talk.options, &talk.service, &error);
        hits = os_fault_hits();
        os_fault_set(0, 0, false, 0);
        refused += code < 0;
        opened += code == 0 && hits;
        if (code < 0) {
            assert_true(error.text[0] != 0);
            talk.service = rig_open(&talk.options);
        }
        talk_room(&talk, 1);
        talk_round(&talk);
    }
    assert_true(opened > 0 && refused > 0);
    talk_close(&talk);
}

/* ---- allocations ---- */

/* A call to which memory is refused fails and leaves the context as it was, or answers as it should. */
static bool refused_call(struct talk *talk, int context, long nth, bool persistent, long *hits)
{
    char prompt[128];
    struct call *call = NULL;
    struct rig_reply reply = {0};
    prompt_of(talk->round, context, prompt);
    struct call_params params = rig_params(prompt, REPLY);
    mem_fault_set(nth, persistent);
    int code = service_call_start(talk->service, me, talk->ids[context], &params, &call, NULL);
    if (code == 0) {
        struct service_status status = {.calls_running = 1};
        while (status.calls_running + status.calls_waiting)
            service_status(talk->service, &status);
        *hits = mem_fault_hits();
        mem_fault_set(0, false);
        reply = rig_finish(call);
        code = reply.result.code;
        if (code < 0)
            assert_true(reply.result.error.text[0] != 0);
        else
            check_reply(talk, context, &reply);
        rig_reply_deinit(&reply);
    }
    mem_fault_set(0, false);
    assert_true(code == 0 || code == -ENOMEM);
    return code == 0;
}

static void allocations(const struct service_options *options, bool persistent)
{
    struct talk talk;
    talk_open(&talk, options);
    int failures = 0;
    long nth = 1, hits = 1;
    for (int rounds = 0; rounds < ROUNDS && hits; rounds++) {
        talk_room(&talk, 1);
        for (int c = 0; c < CONTEXTS; c++) {
            while (!refused_call(&talk, c, nth, persistent, &hits)) {
                failures++;
                nth += persistent ? 4 : 1;
            }
            nth += persistent ? 4 : 1;
            check_budget(&talk);
        }
        talk.round++;
    }
    assert_true(failures > 15);
    talk_close(&talk);
}

static void test_allocations(void **state)
{
    (void)state;
    struct service_options options = small();
    allocations(&options, false);
    options.policy = "swapping";
    allocations(&options, false);
    options.policy = NULL;
    options.evict_all = options.force_split = true; /* all is read */
    allocations(&options, false);
    options.recompute_share = 0.5;
    allocations(&options, true);
    options = lossy();
    allocations(&options, false);
    options.evict_all = options.force_split = true;
    allocations(&options, true);
    options = larger();
    allocations(&options, false);
    options.evict_all = options.force_split = true;
    options.recompute_share = 0.5;
    allocations(&options, false);
}

/* ---- chunk files that are damaged or gone ---- */

static void each_file(const char *directory, void (*act)(const char *path), int *count)
{
    char path[PATH], file[2 * PATH];
    snprintf(path, sizeof path, "%s/chunks", directory);
    DIR *top = opendir(path);
    assert_non_null(top);
    for (struct dirent *entry; (entry = readdir(top));) {
        snprintf(path, sizeof path, "%s/chunks/%s", directory, entry->d_name);
        DIR *below = entry->d_name[0] == '.' ? NULL : opendir(path);
        for (struct dirent *inner; below && (inner = readdir(below));) {
            if (inner->d_name[0] == '.')
                continue;
            snprintf(file, sizeof file, "%s/%s", path, inner->d_name);
            if (act)
                act(file);
            ++*count;
        }
        if (below)
            closedir(below);
    }
    closedir(top);
}

/* One bit in every slice, whatever its size: the smallest is larger than the stride. */
static void flip(const char *path)
{
    static unsigned turn;
    struct stat stat;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && fstat(fd, &stat) == 0);
    for (off_t at = 4096 + turn % 1000; at < stat.st_size; at += 1024) {
        unsigned char byte;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= (unsigned char)(1u << turn % 8);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    turn += 37;
    close(fd);
}

static void flip_header(const char *path)
{
    unsigned char byte = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &byte, 1, 70) == 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, 70), 1);
    close(fd);
}

static void halve(const char *path)
{
    struct stat information;
    assert_int_equal(stat(path, &information), 0);
    assert_int_equal(truncate(path, information.st_size / 2 / 4096 * 4096), 0);
}

static void empty(const char *path)
{
    assert_int_equal(truncate(path, 0), 0);
}

static void delete (const char *path)
{
    assert_int_equal(unlink(path), 0);
}

/* Between calls; again: the service is closed for it and opened again. */
static void damage(const struct service_options *given, void (*act)(const char *path), bool again,
                   const char *words)
{
    struct service_options options = *given;
    options.evict_all = options.force_split = true;
    struct talk talk;
    talk_open(&talk, &options);
    for (int i = 0; i < 3; i++)
        talk_round(&talk);
    assert_true(talk.loaded > 0 && talk.recomputed == 0);
    uint64_t whole = 0;
    log_begin();
    for (int i = 0; i < 3; i++) {
        int count = 0;
        if (again)
            service_close(talk.service);
        each_file(talk.directory, act, &count);
        assert_true(count >= CONTEXTS);
        if (again)
            talk.service = rig_open(&talk.options);
        talk.recomputed = talk.whole = 0;
        talk_round(&talk);
        whole += talk.whole;
        if (talk.whole && (act != delete || again)) /* it may have them open */
            assert_true(talk.recomputed > 0);
    }
    assert_true(whole > CONTEXTS);
    bool said = log_end(words);
    assert_true(said || !words[0]);
    talk.recomputed = 0;
    talk_round(&talk); /* and all is on flash again */
    talk_round(&talk);
    assert_int_equal(talk.recomputed, 0);
    talk_close(&talk);
}

static void test_damage(void **state)
{
    (void)state;
    struct service_options options = small();
    damage(&options, flip, false, "is recomputed");
    damage(&options, halve, false, "is recomputed");
    damage(&options, empty, false, "is recomputed");
    damage(&options, delete, false, "");
    options = larger();
    damage(&options, flip, false, "is recomputed");
    damage(&options, empty, false, "is recomputed");
}

static void test_damage_while_closed(void **state)
{
    (void)state;
    struct service_options options = small();
    damage(&options, flip, true, "is recomputed");
    damage(&options, flip_header, true, "damaged chunk file");
    damage(&options, halve, true, "damaged chunk file");
    damage(&options, empty, true, "damaged chunk file");
    damage(&options, delete, true, "");
    options = larger();
    damage(&options, flip, true, "is recomputed");
    damage(&options, delete, true, "");
}

/* The whole directory goes, under files that are open and files that are not. */
static void test_directory_removed(void **state)
{
    (void)state;
    struct service_options options = small();
    options.force_split = true;
    for (int all = 0; all < 2; all++) {
        options.evict_all = all;
        struct talk talk;
        talk_open(&talk, &options);
        char path[PATH];
        for (int i = 0; i < 8; i++) {
            talk_round(&talk);
            snprintf(path, sizeof path, "%s/chunks", talk.directory);
            if (i % 2)
                rig_remove(path);
        }
        service_close(talk.service);
        talk.service = rig_open(&talk.options);
        talk_round(&talk);
        talk_close(&talk);
    }
}

/* ---- files of deleted contexts ---- */

/* A context is deleted while its swap-out is being written, slowly: nothing of it stays. */
static void test_deleted_while_written(void **state)
{
    (void)state;
    struct service_options options = small();
    char id[JOURNAL_ID_BYTES];
    struct talk talk = {.options = options};
    talk_new(&talk);
    for (int i = 0; i < 4; i++) {
        rig_new(talk.service, me, NULL, id);
        aio_set_limit(i % 2 ? 8 << 20 : 2 << 20);
        struct rig_reply reply = rig_ask(talk.service, me, id, rig_prompts[0], REPLY);
        rig_reply_deinit(&reply);
        usleep(i < 2 ? 10000 : 0); /* the worker hands it over between calls */
        assert_int_equal(service_context_delete(talk.service, me, id, NULL), 0);
        struct service_status status = {.stored_bytes = 1};
        for (int ms = 0; ms < 2000 && status.stored_bytes + status.kv_resident_bytes; ms++) {
            usleep(1000);
            service_status(talk.service, &status);
        }
        int count = 0;
        aio_set_limit(0);
        assert_int_equal(status.kv_resident_bytes, 0);
        each_file(talk.directory, NULL, &count);
        assert_int_equal(count, 0);
    }
    talk_round(&talk);
    talk_round(&talk);
    int before = 0, after = 0;
    each_file(talk.directory, NULL, &before);
    assert_true(before > 0);
    for (int c = 0; c < CONTEXTS; c++)
        assert_int_equal(service_context_delete(talk.service, me, talk.ids[c], NULL), 0);
    service_close(talk.service); /* at once: what the worker had not done is done at the end */
    each_file(talk.directory, NULL, &after);
    assert_int_equal(after, 0);
    rig_remove(talk.directory);
}

#define WITH(test) cmocka_unit_test_teardown(test, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_operations),
        WITH(test_operations_at_low_levels),
        WITH(test_short_reads),
        WITH(test_full_disk),
        WITH(test_opening),
        WITH(test_allocations),
        WITH(test_damage),
        WITH(test_damage_while_closed),
        WITH(test_directory_removed),
        WITH(test_deleted_while_written),
    };
    if (!rig_model()) {
        printf("no model here: skipped\n");
        return 77;
    }
    log_set_level(LOG_LEVEL_ERROR);
    unsetenv("LLMS_STRESS");
    return cmocka_run_group_tests_name("restore faults", tests, group_setup, group_teardown);
}
