/* The journal: what it keeps over a reopening, whose it is, and what it refuses to open. */
#include <errno.h>
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
#include <sqlite3.h>

#include "base/hash.h"
#include "base/memory.h"
#include "os/file.h"
#include "store/journal.h"

static const char model[] = "4096/00112233aabbccdd";

static char directory[64];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/llms-journal-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static struct journal *open_journal(void)
{
    struct journal *journal = NULL;
    struct error error = {0};
    int code = journal_open(directory, model, &journal, &error);
    if (code < 0)
        fail_msg("%s", error.text);
    return journal;
}

static void create(struct journal *journal, const char *owner, const char *name, const char *system_prompt,
                   char id[JOURNAL_ID_BYTES])
{
    struct journal_context context = {.owner = (char *)(uintptr_t)owner,
                                      .name = (char *)(uintptr_t)name,
                                      .system_prompt = (char *)(uintptr_t)system_prompt,
                                      .tokens = 3};
    assert_int_equal(journal_context_create(journal, &context, 0, NULL), 0);
    memcpy(id, context.id, JOURNAL_ID_BYTES);
}

static int append(struct journal *journal, const char *id, uint64_t ordinal, const char *prompt,
                  const char *reply, uint64_t window, struct error *error)
{
    int32_t ids[5] = {(int32_t)ordinal, 1, 2, -1, INT32_MAX};
    struct journal_turn turn = {.ordinal = ordinal,
                                .prompt = (char *)(uintptr_t)prompt,
                                .reply = (char *)(uintptr_t)reply,
                                .tokens = ids,
                                .token_count = 5,
                                .prompt_tokens = 2};
    return journal_turn_append(journal, id, &turn, window, 3 + 5 * (ordinal + 1), error);
}

static void test_keeps_over_reopening(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct journal *journal = open_journal();
    create(journal, "1000/mail", "inbox", "You are terse.", id);
    assert_memory_equal(id, "ctx_", 4);
    assert_int_equal(strlen(id), 28);
    assert_int_equal(strspn(id + 4, "0123456789abcdef"), 24);
    assert_int_equal(append(journal, id, 0, "hello", "hi \xe2\x82\xac", 0, NULL), 0);
    assert_int_equal(append(journal, id, 1, "more\nlines", "", 1, NULL), 0);
    journal_close(journal);

    journal = open_journal();
    struct journal_context context;
    assert_int_equal(journal_context_get(journal, "1000/mail", id, &context, NULL), 0);
    assert_string_equal(context.owner, "1000/mail");
    assert_string_equal(context.name, "inbox");
    assert_string_equal(context.system_prompt, "You are terse.");
    assert_int_equal(context.turn_count, 2);
    assert_int_equal(context.window_turn, 1);
    assert_int_equal(context.tokens, 13);
    assert_true(context.created_ms > INT64_C(1600000000000) && context.used_ms >= context.created_ms);
    journal_context_deinit(&context);

    struct journal_turn *turns;
    size_t count;
    assert_int_equal(journal_turns(journal, id, 0, &turns, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(turns[0].prompt, "hello");
    assert_string_equal(turns[0].reply, "hi \xe2\x82\xac");
    assert_string_equal(turns[1].prompt, "more\nlines");
    assert_string_equal(turns[1].reply, "");
    assert_int_equal(turns[1].ordinal, 1);
    assert_int_equal(turns[1].token_count, 5);
    assert_int_equal(turns[1].prompt_tokens, 2);
    assert_int_equal(turns[1].tokens[0], 1);
    assert_int_equal(turns[1].tokens[3], -1);
    assert_int_equal(turns[1].tokens[4], INT32_MAX);
    journal_turns_free(turns, count);
    assert_int_equal(journal_turns(journal, id, 1, &turns, &count, NULL), 0);
    assert_int_equal(count, 1);
    assert_int_equal(turns[0].ordinal, 1);
    journal_turns_free(turns, count);
    assert_int_equal(journal_turns(journal, id, 7, &turns, &count, NULL), 0);
    assert_int_equal(count, 0);
    journal_turns_free(turns, count);
    journal_close(journal);
}

static void test_turn_order(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct error error;
    struct journal *journal = open_journal();
    create(journal, "a/b", "", "", id);
    assert_int_equal(append(journal, id, 1, "p", "r", 0, &error), -EEXIST);
    assert_int_equal(append(journal, id, 0, "p", "r", 1, &error), -EINVAL); /* a window past the turn */
    assert_int_equal(append(journal, id, 0, "p", "r", 0, &error), 0);
    assert_int_equal(append(journal, id, 0, "p", "r", 0, &error), -EEXIST);
    assert_int_equal(append(journal, "ctx_nonsense", 0, "p", "r", 0, &error), -ENOENT);
    struct journal_turn bad = {.ordinal = 1, .prompt = error.text, .reply = error.text, .prompt_tokens = 1};
    assert_int_equal(journal_turn_append(journal, id, &bad, 0, 0, &error), -EINVAL);
    struct journal_context context;
    assert_int_equal(journal_context_get(journal, "a/b", id, &context, NULL), 0);
    assert_int_equal(context.turn_count, 1);
    journal_context_deinit(&context);
    journal_close(journal);
}

/* Invariant 7. */
static void test_owners_are_apart(void **state)
{
    (void)state;
    char mine[JOURNAL_ID_BYTES], theirs[JOURNAL_ID_BYTES];
    struct journal_context context, *contexts;
    struct error error;
    size_t count;
    struct journal *journal = open_journal();
    create(journal, "1000/mail", "", "", mine);
    create(journal, "1000/notes", "", "", theirs);
    assert_int_equal(journal_context_get(journal, "1000/mail", theirs, &context, &error), -ENOENT);
    assert_non_null(strstr(error.text, theirs));
    assert_int_equal(journal_context_delete(journal, "1000/mail", theirs, &error), -ENOENT);
    assert_int_equal(journal_context_fork(journal, "1000/mail", theirs, NULL, 0, &context, &error), -ENOENT);
    assert_int_equal(journal_context_list(journal, "1000/mail", &contexts, &count, NULL), 0);
    assert_int_equal(count, 1);
    assert_string_equal(contexts[0].id, mine);
    journal_contexts_free(contexts, count);
    assert_int_equal(journal_context_list(journal, "nobody/here", &contexts, &count, NULL), 0);
    assert_int_equal(count, 0);
    journal_contexts_free(contexts, count);
    assert_int_equal(journal_context_list(journal, NULL, &contexts, &count, NULL), 0);
    assert_int_equal(count, 2);
    journal_contexts_free(contexts, count);
    journal_close(journal);
}

static void test_list_is_latest_first(void **state)
{
    (void)state;
    char ids[3][JOURNAL_ID_BYTES];
    struct journal_context *contexts;
    size_t count;
    struct journal *journal = open_journal();
    for (int i = 0; i < 3; i++)
        create(journal, "a/b", "", "", ids[i]);
    usleep(3000);
    assert_int_equal(append(journal, ids[1], 0, "p", "r", 0, NULL), 0);
    assert_int_equal(journal_context_list(journal, "a/b", &contexts, &count, NULL), 0);
    assert_int_equal(count, 3);
    assert_string_equal(contexts[0].id, ids[1]);
    assert_true(contexts[1].used_ms >= contexts[2].used_ms);
    journal_contexts_free(contexts, count);
    journal_close(journal);
}

static void test_limit(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct error error;
    struct journal *journal = open_journal();
    create(journal, "a/b", "", "", id);
    create(journal, "a/other", "", "", id);
    char owner[] = "a/b", empty[] = "";
    struct journal_context context = {.owner = owner, .name = empty, .system_prompt = empty};
    assert_int_equal(journal_context_create(journal, &context, 2, &error), 0);
    struct journal_context third = {.owner = owner, .name = empty, .system_prompt = empty}, copy;
    assert_int_equal(journal_context_create(journal, &third, 2, &error), -EDQUOT);
    assert_string_equal(third.id, "");
    assert_int_equal(journal_context_fork(journal, owner, context.id, NULL, 2, &copy, &error), -EDQUOT);
    assert_int_equal(journal_context_delete(journal, owner, context.id, &error), 0);
    assert_int_equal(journal_context_create(journal, &third, 2, &error), 0);
    journal_close(journal);
}

static void test_fork(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct journal_context copy, named;
    struct journal_turn *turns;
    size_t count;
    struct journal *journal = open_journal();
    create(journal, "a/b", "source", "system", id);
    assert_int_equal(append(journal, id, 0, "p0", "r0", 0, NULL), 0);
    assert_int_equal(append(journal, id, 1, "p1", "r1", 1, NULL), 0);
    assert_int_equal(journal_context_fork(journal, "a/b", id, NULL, 0, &copy, NULL), 0);
    assert_string_not_equal(copy.id, id);
    assert_string_equal(copy.name, "source");
    assert_string_equal(copy.system_prompt, "system");
    assert_int_equal(copy.turn_count, 2);
    assert_int_equal(copy.window_turn, 1);
    assert_int_equal(copy.tokens, 13);
    assert_int_equal(journal_context_fork(journal, "a/b", id, "other", 0, &named, NULL), 0);
    assert_string_equal(named.name, "other");
    /* they part from here on */
    assert_int_equal(append(journal, id, 2, "only mine", "r2", 1, NULL), 0);
    assert_int_equal(journal_context_delete(journal, "a/b", id, NULL), 0);
    assert_int_equal(journal_turns(journal, copy.id, 0, &turns, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(turns[1].reply, "r1");
    journal_turns_free(turns, count);
    assert_int_equal(append(journal, copy.id, 2, "p", "r", 1, NULL), 0);
    journal_context_deinit(&copy);
    journal_context_deinit(&named);
    journal_close(journal);
}

static bool file_contains(const char *name, const char *text)
{
    char *data;
    size_t bytes;
    if (os_read_file(path_of(name), 1 << 24, &data, &bytes) < 0)
        return false;
    bool found = memmem(data, bytes, text, strlen(text)) != NULL;
    mem_free(data);
    return found;
}

static void test_delete_is_for_good(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct journal_turn *turns;
    size_t count;
    static const char secret[] = "the code of the safe is 4711";
    struct journal *journal = open_journal();
    create(journal, "a/b", "", "", id);
    assert_int_equal(append(journal, id, 0, secret, "noted", 0, NULL), 0);
    assert_true(file_contains("journal.db-wal", secret));
    assert_int_equal(journal_context_delete(journal, "a/b", id, NULL), 0);
    assert_int_equal(journal_context_delete(journal, "a/b", id, NULL), -ENOENT);
    assert_int_equal(journal_turns(journal, id, 0, &turns, &count, NULL), -ENOENT);
    assert_false(file_contains("journal.db-wal", secret));
    assert_false(file_contains("journal.db", secret));
    journal_close(journal);
    assert_false(file_contains("journal.db", secret));
}

static void test_one_process_and_modes(void **state)
{
    (void)state;
    struct error error;
    struct stat st;
    char deeper[128];
    snprintf(deeper, sizeof deeper, "%s/a/b", directory);
    struct journal *journal, *second;
    mode_t old = umask(0);
    assert_int_equal(journal_open(deeper, model, &journal, &error), 0);
    umask(old);
    assert_int_equal(journal_open(deeper, model, &second, &error), -EBUSY);
    assert_non_null(strstr(error.text, "another daemon uses the state directory"));
    assert_int_equal(stat(deeper, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(stat(path_of("a/b/journal.db"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(path_of("a/b/journal.db-wal"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(path_of("a/b/lock"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    journal_close(journal);
    assert_int_equal(journal_open(deeper, model, &journal, &error), 0);
    journal_close(journal);
}

static void refused(int code, const char *words)
{
    struct journal *journal = NULL;
    struct error error = {0};
    assert_int_equal(journal_open(directory, model, &journal, &error), code);
    assert_null(journal);
    if (!strstr(error.text, words))
        fail_msg("'%s' does not say '%s'", error.text, words);
    assert_null(strchr(error.text, '\n'));
}

static void change(const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path_of("journal.db"), &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void test_refuses_what_is_not_ours(void **state)
{
    (void)state;
    struct error error;
    struct journal *journal = NULL;
    char garbage[8192];
    memset(garbage, 'x', sizeof garbage);
    assert_int_equal(os_write_file(path_of("journal.db"), garbage, sizeof garbage, 0600), 0);
    refused(-EBADMSG, "damaged");
    assert_int_equal(unlink(path_of("journal.db")), 0);
    change("CREATE TABLE something(x)");
    refused(-EBADMSG, "not a journal of this program");
    assert_int_equal(unlink(path_of("journal.db")), 0);
    journal_close(open_journal());
    assert_int_equal(journal_open(directory, "32000/0", &journal, &error), -EINVAL);
    assert_non_null(strstr(error.text, "another vocabulary"));
    change("PRAGMA user_version = 2");
    refused(-EBADMSG, "newer version");
}

static void test_notices_damage(void **state)
{
    (void)state;
    char id[JOURNAL_ID_BYTES];
    struct journal_turn *turns;
    struct error error;
    size_t count;
    struct journal *journal = open_journal();
    create(journal, "a/b", "", "", id);
    assert_int_equal(append(journal, id, 0, "hello there", "general", 0, NULL), 0);
    assert_int_equal(append(journal, id, 1, "second", "turn", 0, NULL), 0);
    journal_close(journal);
    change("UPDATE turns SET reply = 'genera1' WHERE ordinal = 0");
    journal = open_journal();
    assert_int_equal(journal_turns(journal, id, 0, &turns, &count, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "damaged (turn 0 of ctx_"));
    assert_int_equal(journal_turns(journal, id, 1, &turns, &count, &error), 0); /* the rest can be read */
    journal_turns_free(turns, count);
    journal_close(journal);
    change("DELETE FROM turns WHERE ordinal = 1");
    journal = open_journal();
    assert_int_equal(journal_turns(journal, id, 1, &turns, &count, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "lacks turns"));
    journal_close(journal);

    char *data; /* a torn page: quick_check's finding */
    size_t bytes;
    assert_int_equal(os_read_file(path_of("journal.db"), 1 << 24, &data, &bytes), 0);
    assert_true(bytes > 8192);
    memset(data + 4096, 0xa5, bytes - 4096);
    assert_int_equal(os_write_file(path_of("journal.db"), data, bytes, 0600), 0);
    mem_free(data);
    refused(-EBADMSG, "damaged");
}

static void test_cannot_write_there(void **state)
{
    (void)state;
    os_fault_set(OS_FAULT_OPEN, 1, true, EROFS);
    refused(-EROFS, "cannot use the state directory");
    os_fault_set(OS_FAULT_WRITE | OS_FAULT_SYNC, 1, true, ENOSPC);
    refused(-ENOSPC, "No space left");
    os_fault_set(0, 0, false, 0);
    assert_int_equal(os_write_file(path_of("file"), "x", 1, 0600), 0);
    struct journal *journal;
    struct error error;
    assert_int_equal(journal_open(path_of("file"), model, &journal, &error), -ENOTDIR);
    journal_close(open_journal());
}

/* Checksums are on disks: the hash must stay as it is. */
static void test_hash_is_fixed(void **state)
{
    (void)state;
    uint64_t a = hash_bytes("", 0, 0), b = hash_bytes("hello, journal", 14, 7);
    assert_true(a == UINT64_C(0x3da4588b8c08334f));
    assert_true(b == UINT64_C(0x0f89ab30c44dab9c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_keeps_over_reopening, setup, teardown),
        cmocka_unit_test_setup_teardown(test_turn_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_owners_are_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_list_is_latest_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fork, setup, teardown),
        cmocka_unit_test_setup_teardown(test_delete_is_for_good, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_process_and_modes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refuses_what_is_not_ours, setup, teardown),
        cmocka_unit_test_setup_teardown(test_notices_damage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cannot_write_there, setup, teardown),
        cmocka_unit_test(test_hash_is_fixed),
    };
    return cmocka_run_group_tests_name("journal", tests, NULL, NULL);
}
