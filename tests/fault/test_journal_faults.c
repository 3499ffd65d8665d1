/* The journal under faults: every allocation (the project's and SQLite's own) and every file operation of
 * SQLite fails once, or from some point on; then the journal is opened again without faults.
 *
 * What must hold then: all that was acknowledged is there, unchanged; what was not is there whole or not at
 * all; and the journal works on. "Whole or not at all" and not "not at all": a commit whose sync fails may
 * still have reached the disk. */
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
#include <sqlite3.h>

#include "base/memory.h"
#include "os/file.h"
#include "store/journal.h"
#include "support/sqlite_faults.h"

/* ---- SQLite's own allocations, through base/memory so that they can fail ---- */

enum { HEADER = 16 };

static void *heap_alloc(int bytes)
{
    char *memory = mem_alloc((size_t)bytes + HEADER);
    if (!memory)
        return NULL;
    memcpy(memory, &bytes, sizeof bytes);
    return memory + HEADER;
}

static void heap_free(void *memory)
{
    if (memory)
        mem_free((char *)memory - HEADER);
}

static int heap_size(void *memory)
{
    int bytes = 0;
    if (memory)
        memcpy(&bytes, (char *)memory - HEADER, sizeof bytes);
    return bytes;
}

static void *heap_realloc(void *memory, int bytes)
{
    if (!memory)
        return heap_alloc(bytes);
    char *more = mem_realloc((char *)memory - HEADER, (size_t)bytes + HEADER);
    if (!more)
        return NULL;
    memcpy(more, &bytes, sizeof bytes);
    return more + HEADER;
}

static int heap_round(int bytes)
{
    return (bytes + 7) & ~7;
}

static int heap_init(void *unused)
{
    (void)unused;
    return SQLITE_OK;
}

static void heap_shutdown(void *unused)
{
    (void)unused;
}

static int setup_sqlite(void **state)
{
    (void)state;
    static const sqlite3_mem_methods heap = {heap_alloc, heap_free, heap_realloc,  heap_size,
                                             heap_round, heap_init, heap_shutdown, NULL};
    if (sqlite3_config(SQLITE_CONFIG_MALLOC, &heap) != SQLITE_OK ||
        sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0) != SQLITE_OK || sqlite3_initialize() != SQLITE_OK)
        return -1;
    return sqlite_faults_install();
}

static int teardown_sqlite(void **state)
{
    (void)state;
    return 0;
}

/* ---- what is done under faults, and what was acknowledged of it ---- */

static const char model[] = "4096/00112233aabbccdd";
static char directory[64];

enum { TURNS = 4 };

struct outcome {
    bool opened;
    char id[JOURNAL_ID_BYTES]; /* "" where creating it failed */
    char fork[JOURNAL_ID_BYTES];
    char deleted[JOURNAL_ID_BYTES]; /* a context whose deletion was acknowledged */
    int turns;                      /* acknowledged */
    int failures;
};

static void clean(void)
{
    static const char *const names[] = {"journal.db", "journal.db-wal", "journal.db-journal", "lock"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        assert_true(unlink(path) == 0 || errno == ENOENT);
    }
}

/* A prompt long enough for several pages, different for every turn. */
static void prompt_of(int turn, char text[9000])
{
    memset(text, 'a' + turn, 8999);
    text[8999] = 0;
}

static int append(struct journal *journal, const char *id, int ordinal)
{
    static char prompt[9000];
    char reply[32];
    int32_t tokens[3] = {ordinal, 7, 8};
    struct error error = {0};
    prompt_of(ordinal, prompt);
    snprintf(reply, sizeof reply, "reply %d", ordinal);
    struct journal_turn turn = {(uint64_t)ordinal, prompt, reply, tokens, 3, 1, 0};
    int code = journal_turn_append(journal, id, &turn, 0, 3 * ((uint64_t)ordinal + 1), &error);
    assert_true(code <= 0);
    if (code < 0)
        assert_true(error.text[0] != 0 && !strchr(error.text, '\n'));
    return code;
}

static int create(struct journal *journal, char id[JOURNAL_ID_BYTES])
{
    char owner[] = "1/app", empty[] = "";
    struct journal_context context = {.owner = owner, .name = empty, .system_prompt = empty};
    int code = journal_context_create(journal, &context, 100, NULL);
    memcpy(id, context.id, JOURNAL_ID_BYTES);
    return code;
}

static void work(struct outcome *outcome)
{
    struct journal *journal = NULL;
    struct error error = {0};
    char doomed[JOURNAL_ID_BYTES];
    *outcome = (struct outcome){0};
    int code = journal_open(directory, model, &journal, &error);
    if (code < 0) {
        assert_null(journal);
        assert_true(error.text[0] != 0);
        outcome->failures++;
        return;
    }
    outcome->opened = true;
    outcome->failures += create(journal, outcome->id) < 0;
    if (create(journal, doomed) < 0)
        outcome->failures++;
    else if (append(journal, doomed, 0) < 0 || journal_context_delete(journal, "1/app", doomed, NULL) < 0)
        outcome->failures++;
    else
        memcpy(outcome->deleted, doomed, sizeof doomed);
    /* an app tries again what failed, until it gives up */
    for (int tries = 0; outcome->id[0] && outcome->turns < TURNS && tries < TURNS + 2; tries++) {
        code = append(journal, outcome->id, outcome->turns);
        outcome->failures += code < 0;
        outcome->turns += code == 0;
    }
    struct journal_context copy;
    if (outcome->id[0]) {
        code = journal_context_fork(journal, "1/app", outcome->id, "copy", 100, &copy, NULL);
        outcome->failures += code < 0;
        if (code == 0) {
            memcpy(outcome->fork, copy.id, sizeof copy.id);
            journal_context_deinit(&copy);
        }
    }
    journal_close(journal);
}

static size_t check_turns(struct journal *journal, const char *id, uint64_t turn_count)
{
    static char prompt[9000];
    char reply[32];
    struct journal_turn *turns;
    size_t count;
    struct error error = {0};
    if (journal_turns(journal, id, 0, &turns, &count, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(count, turn_count);
    for (size_t i = 0; i < count; i++) {
        prompt_of((int)i, prompt);
        snprintf(reply, sizeof reply, "reply %d", (int)i);
        assert_string_equal(turns[i].prompt, prompt);
        assert_string_equal(turns[i].reply, reply);
        assert_int_equal(turns[i].token_count, 3);
        assert_int_equal(turns[i].tokens[0], i);
    }
    journal_turns_free(turns, count);
    return count;
}

static void check_after(const struct outcome *outcome)
{
    struct journal *journal = NULL;
    struct journal_context context;
    struct error error = {0};
    if (journal_open(directory, model, &journal, &error) < 0)
        fail_msg("opening again: %s", error.text);
    if (outcome->id[0]) {
        assert_int_equal(journal_context_get(journal, "1/app", outcome->id, &context, NULL), 0);
        assert_in_range(context.turn_count, outcome->turns, outcome->turns + 1);
        assert_int_equal(context.tokens, 3 * context.turn_count);
        check_turns(journal, outcome->id, context.turn_count);
        if (context.turn_count < TURNS)
            assert_int_equal(append(journal, outcome->id, (int)context.turn_count), 0);
        journal_context_deinit(&context);
    }
    if (outcome->fork[0]) {
        assert_int_equal(journal_context_get(journal, "1/app", outcome->fork, &context, NULL), 0);
        assert_int_equal(check_turns(journal, outcome->fork, context.turn_count), outcome->turns);
        journal_context_deinit(&context);
    }
    if (outcome->deleted[0])
        assert_int_equal(journal_context_get(journal, "1/app", outcome->deleted, &context, NULL), -ENOENT);
    struct journal_context *all;
    size_t count;
    assert_int_equal(journal_context_list(journal, NULL, &all, &count, NULL), 0);
    for (size_t i = 0; i < count; i++)
        check_turns(journal, all[i].id, all[i].turn_count);
    journal_contexts_free(all, count);
    journal_close(journal);
}

/* ---- the tests ---- */

/* Runs the work with the nth operation failing, n = 1, 2, ... until none fails any more. */
static void sweep(unsigned mask, bool persistent, int code, bool existing)
{
    struct outcome outcome;
    for (long n = 1;; n++) {
        clean();
        if (existing) {
            sqlite_faults_set(0, 0, false, 0);
            work(&outcome);
            assert_int_equal(outcome.failures, 0);
        }
        sqlite_faults_set(mask, n, persistent, code);
        work(&outcome);
        long hits = sqlite_faults_hits();
        sqlite_faults_set(0, 0, false, 0);
        check_after(&outcome);
        if (hits == 0) {
            assert_int_equal(outcome.failures, 0);
            assert_int_equal(outcome.turns, TURNS);
            assert_true(n > 2); /* the faults did meet something */
            return;
        }
    }
}

static void test_writes_fail_once(void **state)
{
    (void)state;
    sweep(SQLITE_FAULT_WRITE, false, SQLITE_IOERR_WRITE, false);
    sweep(SQLITE_FAULT_WRITE, false, SQLITE_FULL, true);
}

static void test_writes_fail_for_good(void **state)
{
    (void)state;
    sweep(SQLITE_FAULT_WRITE, true, SQLITE_FULL, false);
    sweep(SQLITE_FAULT_WRITE, true, SQLITE_IOERR_WRITE, true);
}

static void test_syncs_fail(void **state)
{
    (void)state;
    sweep(SQLITE_FAULT_SYNC, false, 0, false);
    sweep(SQLITE_FAULT_SYNC, true, 0, false);
    sweep(SQLITE_FAULT_SYNC, true, 0, true);
}

static void test_opens_fail(void **state)
{
    (void)state;
    sweep(SQLITE_FAULT_OPEN, false, 0, true);
    sweep(SQLITE_FAULT_OPEN, true, 0, true);
}

static void test_reads_fail(void **state)
{
    (void)state;
    sweep(SQLITE_FAULT_READ, false, 0, true);
    sweep(SQLITE_FAULT_READ, true, 0, true);
}

/* The files made outside SQLite: directory, lock, the empty database. */
static void test_files_fail(void **state)
{
    (void)state;
    struct outcome outcome;
    for (int persistent = 0; persistent < 2; persistent++)
        for (long n = 1;; n++) {
            clean();
            os_fault_set(OS_FAULT_OPEN | OS_FAULT_WRITE | OS_FAULT_SYNC | OS_FAULT_RENAME, n, persistent,
                         EIO);
            work(&outcome);
            long hits = os_fault_hits();
            os_fault_set(0, 0, false, 0);
            check_after(&outcome);
            if (hits == 0) {
                assert_true(n > 4);
                break;
            }
            assert_false(outcome.opened);
        }
}

static void allocations(bool persistent, bool existing, long step)
{
    struct outcome outcome;
    for (long n = 1;; n += step) {
        clean();
        if (existing)
            work(&outcome);
        mem_fault_set(n, persistent);
        work(&outcome);
        long hits = mem_fault_hits();
        mem_fault_set(0, false);
        check_after(&outcome);
        if (hits == 0) {
            assert_int_equal(outcome.failures, 0);
            return;
        }
    }
}

static void test_allocations_fail(void **state)
{
    (void)state;
    allocations(false, false, 3);
    allocations(true, true, 29);
}

/* A reader that runs out of memory answers so and leaves nothing behind. */
static void test_readers_fail(void **state)
{
    (void)state;
    struct outcome outcome;
    struct journal *journal;
    struct journal_context *contexts;
    struct journal_turn *turns;
    size_t count;
    clean();
    work(&outcome);
    assert_int_equal(journal_open(directory, model, &journal, NULL), 0);
    for (long n = 1, hits = 1; hits; n++) {
        mem_fault_set(n, false);
        int code = journal_context_list(journal, "1/app", &contexts, &count, NULL);
        hits = mem_fault_hits();
        mem_fault_set(0, false);
        assert_true(code == 0 || code == -ENOMEM);
        if (code == 0)
            journal_contexts_free(contexts, count);
    }
    for (long n = 1, hits = 1; hits; n++) {
        mem_fault_set(n, false);
        int code = journal_turns(journal, outcome.id, 0, &turns, &count, NULL);
        hits = mem_fault_hits();
        mem_fault_set(0, false);
        assert_true(code == 0 || code == -ENOMEM);
        if (code == 0)
            journal_turns_free(turns, count);
    }
    journal_close(journal);
}

/* Power is lost right after something was acknowledged: what was synced by then is all there is, and it is
 * enough. */
static void check_power_loss(const char *image, const char *id, const char *deleted, uint64_t turns)
{
    static const char *const names[] = {"journal.db", "journal.db-wal"};
    char command[512], lost[80];
    struct journal *journal = NULL;
    struct journal_context context;
    struct error error = {0};
    snprintf(lost, sizeof lost, "%s/lost", image);
    snprintf(command, sizeof command, "rm -rf %s && mkdir %s && cp %s/journal.db* %s", lost, lost, image,
             lost);
    assert_int_equal(system(command), 0);
    sqlite_faults_shadow(NULL);
    if (journal_open(lost, model, &journal, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(journal_context_get(journal, "1/app", id, &context, NULL), 0);
    assert_int_equal(context.turn_count, turns);
    check_turns(journal, id, turns);
    journal_context_deinit(&context);
    if (deleted)
        assert_int_equal(journal_context_get(journal, "1/app", deleted, &context, NULL), -ENOENT);
    journal_close(journal);
    for (int i = 0; i < 2; i++) {
        snprintf(lost, sizeof lost, "%s/lost/%s", image, names[i]);
        unlink(lost);
    }
    sqlite_faults_shadow(image);
}

static void test_power_loss(void **state)
{
    (void)state;
    char image[] = "/tmp/llms-journal-XXXXXX", command[512];
    char id[JOURNAL_ID_BYTES], doomed[JOURNAL_ID_BYTES];
    struct journal *journal = NULL;
    clean();
    assert_non_null(mkdtemp(image));
    assert_int_equal(journal_open(directory, model, &journal, NULL), 0); /* the empty file was synced by us */
    journal_close(journal);
    snprintf(command, sizeof command, "cp %s/journal.db %s", directory, image);
    assert_int_equal(system(command), 0);
    sqlite_faults_shadow(image);
    assert_int_equal(journal_open(directory, model, &journal, NULL), 0);
    assert_int_equal(create(journal, id), 0);
    check_power_loss(image, id, NULL, 0);
    for (int turn = 0; turn < TURNS; turn++) {
        assert_int_equal(create(journal, doomed), 0);
        assert_int_equal(append(journal, doomed, 0), 0);
        assert_int_equal(append(journal, id, turn), 0);
        check_power_loss(image, id, NULL, (uint64_t)turn + 1);
        assert_int_equal(journal_context_delete(journal, "1/app", doomed, NULL), 0);
        check_power_loss(image, id, doomed, (uint64_t)turn + 1);
    }
    journal_close(journal);
    check_power_loss(image, id, doomed, TURNS);
    sqlite_faults_shadow(NULL);
    snprintf(command, sizeof command, "rm -rf %s", image);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"; /* what is tested needs no disk */
    snprintf(directory, sizeof directory, "%s/llms-journal-XXXXXX", base);
    if (!mkdtemp(directory))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes_fail_once), cmocka_unit_test(test_writes_fail_for_good),
        cmocka_unit_test(test_syncs_fail),       cmocka_unit_test(test_opens_fail),
        cmocka_unit_test(test_reads_fail),       cmocka_unit_test(test_files_fail),
        cmocka_unit_test(test_allocations_fail), cmocka_unit_test(test_readers_fail),
        cmocka_unit_test(test_power_loss),
    };
    int failed = cmocka_run_group_tests_name("journal faults", tests, setup_sqlite, teardown_sqlite);
    clean();
    return rmdir(directory) == 0 ? failed : 1;
}
