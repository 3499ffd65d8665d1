/* The journal: contexts and turns. What is promised: journal.h; how it is stored: docs/FORMATS.md, Journal.
 *
 * Owns the process lock DIR/lock, the connection and the mutex that serialises its use. Every change is one
 * transaction; a function that fails has rolled its transaction back. */
#include "store/journal.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <sodium.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "os/file.h"
#include "store/database.h"

struct journal {
    struct database database;
    pthread_mutex_t mutex; /* around every use of database */
    int lock;              /* descriptor of DIR/lock */
};

/* ---- opening ---- */

static int lock_directory(const char *directory, int *lock, struct error *error)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/lock", directory);
    if (n < 0 || (size_t)n >= sizeof path)
        return error_set(error, -ENAMETOOLONG, "the state directory's path is too long");
    int code = os_make_directories(directory, 0700);
    if (code < 0)
        return error_set(error, code, "cannot create the state directory %s: %s", directory, strerror(-code));
    code = os_lock(path, lock);
    if (code == -EBUSY)
        return error_set(error, code, "another daemon uses the state directory %s", directory);
    if (code < 0)
        return error_set(error, code, "cannot use the state directory %s: %s", directory, strerror(-code));
    return 0;
}

int journal_open(const char *directory, const char *model, struct journal **out, struct error *error)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/journal.db", directory);
    if (n < 0 || (size_t)n >= sizeof path)
        return error_set(error, -ENAMETOOLONG, "the state directory's path is too long");
    if (sodium_init() < 0)
        return error_set(error, -ENOSYS, "libsodium cannot be used on this machine");
    struct journal *journal = mem_calloc(1, sizeof *journal);
    if (!journal)
        return error_set(error, -ENOMEM, "opening the journal: out of memory");
    int code = lock_directory(directory, &journal->lock, error);
    if (code < 0)
        goto no_lock;
    code = database_open(&journal->database, path, model, error);
    if (code < 0)
        goto no_database;
    code = -pthread_mutex_init(&journal->mutex, NULL);
    if (code < 0) {
        error_set(error, code, "opening the journal: %s", strerror(-code));
        goto no_mutex;
    }
    *out = journal;
    return 0;
no_mutex:
    database_close(&journal->database);
no_database:
    os_unlock(journal->lock);
no_lock:
    mem_free(journal);
    return code;
}

void journal_close(struct journal *journal)
{
    if (!journal)
        return;
    database_close(&journal->database);
    pthread_mutex_destroy(&journal->mutex);
    os_unlock(journal->lock);
    mem_free(journal);
}

/* ---- values ---- */

static void bind_text(sqlite3_stmt *statement, int index, const char *text)
{
    if (text)
        sqlite3_bind_text64(statement, index, text, strlen(text), SQLITE_STATIC, SQLITE_UTF8);
}

/* A copy of a text column; NULL where memory is short. */
static char *column_text(sqlite3_stmt *statement, int column)
{
    const unsigned char *text = sqlite3_column_text(statement, column);
    return text ? mem_strdup((const char *)text) : NULL;
}

static int read_context(sqlite3_stmt *statement, struct journal_context *out)
{
    struct journal_context context = {0};
    const unsigned char *id = sqlite3_column_text(statement, 0);
    if (!id)
        return -ENOMEM;
    snprintf(context.id, sizeof context.id, "%s", id);
    context.owner = column_text(statement, 1);
    context.name = column_text(statement, 2);
    context.system_prompt = column_text(statement, 3);
    context.created_ms = sqlite3_column_int64(statement, 4);
    context.used_ms = sqlite3_column_int64(statement, 5);
    context.window_turn = (uint64_t)sqlite3_column_int64(statement, 6);
    context.turn_count = (uint64_t)sqlite3_column_int64(statement, 7);
    context.tokens = (uint64_t)sqlite3_column_int64(statement, 8);
    if (!context.owner || !context.name || !context.system_prompt) {
        journal_context_deinit(&context);
        return -ENOMEM;
    }
    *out = context;
    return 0;
}

/* Over what a turn says, so that a silently flipped bit is noticed when it is read. */
static int64_t turn_checksum(const char *prompt, const char *reply, const void *tokens, size_t token_bytes,
                             uint64_t prompt_tokens)
{
    uint64_t hash = hash_bytes(prompt, strlen(prompt), prompt_tokens);
    hash = hash_bytes(reply, strlen(reply), hash);
    return (int64_t)hash_bytes(tokens, token_bytes, hash);
}

static int read_turn(sqlite3_stmt *statement, struct journal_turn *out)
{
    struct journal_turn turn = {0};
    turn.ordinal = (uint64_t)sqlite3_column_int64(statement, 0);
    turn.prompt = column_text(statement, 1);
    turn.reply = column_text(statement, 2);
    turn.prompt_tokens = (size_t)sqlite3_column_int64(statement, 3);
    const void *tokens = sqlite3_column_blob(statement, 4);
    size_t bytes = (size_t)sqlite3_column_bytes(statement, 4);
    turn.created_ms = sqlite3_column_int64(statement, 5);
    turn.tokens = mem_alloc(bytes);
    int code = 0;
    if (!turn.prompt || !turn.reply || !turn.tokens || (bytes && !tokens)) {
        code = -ENOMEM;
        goto failed;
    }
    if (bytes)
        memcpy(turn.tokens, tokens, bytes);
    turn.token_count = bytes / sizeof *turn.tokens;
    if (bytes % sizeof *turn.tokens || turn.prompt_tokens > turn.token_count ||
        sqlite3_column_int64(statement, 6) !=
            turn_checksum(turn.prompt, turn.reply, turn.tokens, bytes, turn.prompt_tokens)) {
        code = -EBADMSG;
        goto failed;
    }
    *out = turn;
    return 0;
failed:
    mem_free(turn.prompt);
    mem_free(turn.reply);
    mem_free(turn.tokens);
    return code;
}

void journal_context_deinit(struct journal_context *context)
{
    mem_free(context->owner);
    mem_free(context->name);
    mem_free(context->system_prompt);
    *context = (struct journal_context){0};
}

void journal_contexts_free(struct journal_context *contexts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        journal_context_deinit(&contexts[i]);
    mem_free(contexts);
}

void journal_turns_free(struct journal_turn *turns, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        mem_free(turns[i].prompt);
        mem_free(turns[i].reply);
        mem_free(turns[i].tokens);
    }
    mem_free(turns);
}

/* Makes room for one more element; -ENOMEM leaves the array as it was. */
static int grow(void **array, size_t size, size_t count, size_t *capacity)
{
    if (count < *capacity)
        return 0;
    size_t next = *capacity ? *capacity * 2 : 8;
    void *more = mem_realloc(*array, next * size);
    if (!more)
        return -ENOMEM;
    *array = more;
    *capacity = next;
    return 0;
}

/* ---- contexts ---- */

static void new_id(char id[JOURNAL_ID_BYTES])
{
    unsigned char random[12];
    randombytes_buf(random, sizeof random);
    memcpy(id, "ctx_", 4);
    sodium_bin2hex(id + 4, JOURNAL_ID_BYTES - 4, random, sizeof random);
}

static int no_context(struct error *error, const char *id)
{
    return error_set(error, -ENOENT, "no such context: %.64s", id);
}

/* Inside a transaction: -EDQUOT if the owner has `limit` contexts. */
static int check_limit(struct journal *journal, const char *owner, uint64_t limit, struct error *error)
{
    if (limit == 0)
        return 0;
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_CONTEXT_COUNT);
    bind_text(statement, 1, owner);
    int code = 0;
    if (sqlite3_step(statement) != SQLITE_ROW)
        code = database_error(&journal->database, error, "counting contexts");
    else if ((uint64_t)sqlite3_column_int64(statement, 0) >= limit)
        code = error_set(error, -EDQUOT, "an app may have %" PRIu64 " contexts: delete one first", limit);
    database_done(statement);
    return code;
}

static int insert_context(struct journal *journal, const struct journal_context *context, struct error *error)
{
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_CONTEXT_INSERT);
    bind_text(statement, 1, context->id);
    bind_text(statement, 2, context->owner);
    bind_text(statement, 3, context->name);
    bind_text(statement, 4, context->system_prompt);
    sqlite3_bind_int64(statement, 5, context->created_ms);
    sqlite3_bind_int64(statement, 6, context->used_ms);
    sqlite3_bind_int64(statement, 7, (int64_t)context->tokens);
    return database_run(&journal->database, statement, error, "creating a context");
}

int journal_context_create(struct journal *journal, struct journal_context *context, uint64_t limit,
                           struct error *error)
{
    struct journal_context fresh = *context;
    new_id(fresh.id);
    fresh.created_ms = fresh.used_ms = clock_wall_ms();
    fresh.window_turn = fresh.turn_count = 0;
    pthread_mutex_lock(&journal->mutex);
    int code = database_begin(&journal->database, error);
    if (code < 0)
        goto unlock;
    code = check_limit(journal, fresh.owner, limit, error);
    if (code == 0)
        code = insert_context(journal, &fresh, error);
    if (code == 0)
        code = database_commit(&journal->database, error);
    else
        database_rollback(&journal->database);
unlock:
    pthread_mutex_unlock(&journal->mutex);
    if (code == 0)
        *context = fresh;
    return code;
}

/* Under the mutex: the row number and turn count of a context, owner's or (NULL) anyone's. */
static int find_context(struct journal *journal, const char *owner, const char *id, int64_t *number,
                        uint64_t *turn_count, struct error *error)
{
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_CONTEXT_FIND);
    bind_text(statement, 1, id);
    int rc = sqlite3_step(statement), code = 0;
    if (rc == SQLITE_ROW) {
        const char *name = (const char *)sqlite3_column_text(statement, 1);
        *number = sqlite3_column_int64(statement, 0);
        *turn_count = (uint64_t)sqlite3_column_int64(statement, 2);
        if (!name)
            code = error_set(error, -ENOMEM, "finding a context: out of memory");
        else if (owner && strcmp(name, owner) != 0)
            code = no_context(error, id);
    } else if (rc == SQLITE_DONE) {
        code = no_context(error, id);
    } else {
        code = database_error(&journal->database, error, "finding a context");
    }
    database_done(statement);
    return code;
}

/* Under the mutex. */
static int get_context(struct journal *journal, const char *owner, const char *id,
                       struct journal_context *out, struct error *error)
{
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_CONTEXT_GET);
    bind_text(statement, 1, owner);
    bind_text(statement, 2, id);
    int rc = sqlite3_step(statement), code = 0;
    if (rc == SQLITE_DONE)
        code = no_context(error, id);
    else if (rc != SQLITE_ROW)
        code = database_error(&journal->database, error, "reading a context");
    else if (read_context(statement, out) < 0)
        code = error_set(error, -ENOMEM, "reading a context: out of memory");
    database_done(statement);
    return code;
}

/* Inside a transaction: the rows of a copy. */
static int copy_rows(struct journal *journal, int64_t number, const char *id, const char *name,
                     struct error *error)
{
    static const char doing[] = "copying a context";
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_CONTEXT_COPY);
    sqlite3_bind_int64(statement, 1, number);
    bind_text(statement, 2, id);
    bind_text(statement, 3, name);
    sqlite3_bind_int64(statement, 4, clock_wall_ms());
    int code = database_run(&journal->database, statement, error, doing);
    if (code < 0)
        return code;
    statement = database_statement(&journal->database, DATABASE_TURN_COPY);
    sqlite3_bind_int64(statement, 1, number);
    sqlite3_bind_int64(statement, 2, sqlite3_last_insert_rowid(journal->database.handle));
    return database_run(&journal->database, statement, error, doing);
}

int journal_context_fork(struct journal *journal, const char *owner, const char *source, const char *name,
                         uint64_t limit, struct journal_context *out, struct error *error)
{
    struct journal_context copy = {0};
    char id[JOURNAL_ID_BYTES];
    int64_t number = 0;
    uint64_t turns = 0;
    new_id(id);
    pthread_mutex_lock(&journal->mutex);
    int code = database_begin(&journal->database, error);
    if (code < 0)
        goto unlock;
    code = find_context(journal, owner, source, &number, &turns, error);
    if (code == 0)
        code = check_limit(journal, owner, limit, error);
    if (code == 0)
        code = copy_rows(journal, number, id, name, error);
    if (code == 0)
        code = get_context(journal, owner, id, &copy, error);
    if (code == 0)
        code = database_commit(&journal->database, error);
    else
        database_rollback(&journal->database);
unlock:
    pthread_mutex_unlock(&journal->mutex);
    if (code == 0)
        *out = copy;
    else
        journal_context_deinit(&copy);
    return code;
}

int journal_context_delete(struct journal *journal, const char *owner, const char *id, struct error *error)
{
    pthread_mutex_lock(&journal->mutex);
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_CONTEXT_DELETE);
    bind_text(statement, 1, owner);
    bind_text(statement, 2, id);
    int code = database_run(&journal->database, statement, error, "deleting a context");
    if (code == 0 && sqlite3_changes(journal->database.handle) == 0)
        code = no_context(error, id);
    else if (code == 0)
        database_flush(&journal->database);
    pthread_mutex_unlock(&journal->mutex);
    return code;
}

int journal_context_get(struct journal *journal, const char *owner, const char *id,
                        struct journal_context *out, struct error *error)
{
    pthread_mutex_lock(&journal->mutex);
    int code = get_context(journal, owner, id, out, error);
    pthread_mutex_unlock(&journal->mutex);
    return code;
}

int journal_context_list(struct journal *journal, const char *owner, struct journal_context **out,
                         size_t *count, struct error *error)
{
    struct journal_context *contexts = NULL;
    size_t n = 0, capacity = 0;
    int code = 0, rc;
    pthread_mutex_lock(&journal->mutex);
    sqlite3_stmt *statement =
        database_statement(&journal->database, owner ? DATABASE_CONTEXT_LIST : DATABASE_CONTEXT_LIST_ALL);
    bind_text(statement, 1, owner);
    while (code == 0 && (rc = sqlite3_step(statement)) != SQLITE_DONE) {
        if (rc != SQLITE_ROW)
            code = database_error(&journal->database, error, "listing contexts");
        else if (grow((void **)&contexts, sizeof *contexts, n, &capacity) < 0 ||
                 read_context(statement, &contexts[n]) < 0)
            code = error_set(error, -ENOMEM, "listing contexts: out of memory");
        else
            n++;
    }
    database_done(statement);
    pthread_mutex_unlock(&journal->mutex);
    if (code < 0) {
        journal_contexts_free(contexts, n);
        return code;
    }
    *out = contexts;
    *count = n;
    return 0;
}

/* ---- turns ---- */

/* Inside a transaction. */
static int insert_turn(struct journal *journal, int64_t number, const struct journal_turn *turn,
                       int64_t now_ms, struct error *error)
{
    size_t bytes = turn->token_count * sizeof *turn->tokens;
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_TURN_INSERT);
    sqlite3_bind_int64(statement, 1, number);
    sqlite3_bind_int64(statement, 2, (int64_t)turn->ordinal);
    bind_text(statement, 3, turn->prompt);
    bind_text(statement, 4, turn->reply);
    sqlite3_bind_int64(statement, 5, (int64_t)turn->prompt_tokens);
    if (bytes)
        sqlite3_bind_blob64(statement, 6, turn->tokens, bytes, SQLITE_STATIC);
    else
        sqlite3_bind_zeroblob(statement, 6, 0);
    sqlite3_bind_int64(statement, 7, turn->created_ms ? turn->created_ms : now_ms);
    sqlite3_bind_int64(statement, 8,
                       turn_checksum(turn->prompt, turn->reply, turn->tokens, bytes, turn->prompt_tokens));
    return database_run(&journal->database, statement, error, "storing a turn");
}

/* Inside a transaction. */
static int touch_context(struct journal *journal, int64_t number, int64_t now_ms, uint64_t window_turn,
                         uint64_t turn_count, uint64_t tokens, struct error *error)
{
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_CONTEXT_TOUCH);
    sqlite3_bind_int64(statement, 1, number);
    sqlite3_bind_int64(statement, 2, now_ms);
    sqlite3_bind_int64(statement, 3, (int64_t)window_turn);
    sqlite3_bind_int64(statement, 4, (int64_t)turn_count);
    sqlite3_bind_int64(statement, 5, (int64_t)tokens);
    return database_run(&journal->database, statement, error, "storing a turn");
}

int journal_turn_append(struct journal *journal, const char *id, const struct journal_turn *turn,
                        uint64_t window_turn, uint64_t context_tokens, struct error *error)
{
    int64_t number = 0, now = clock_wall_ms();
    uint64_t turns = 0;
    if (turn->prompt_tokens > turn->token_count || window_turn > turn->ordinal)
        return error_set(error, -EINVAL, "storing a turn: its counts contradict each other");
    pthread_mutex_lock(&journal->mutex);
    int code = database_begin(&journal->database, error);
    if (code < 0)
        goto unlock;
    code = find_context(journal, NULL, id, &number, &turns, error);
    if (code == 0 && turn->ordinal != turns)
        code = error_set(error, -EEXIST, "storing a turn: number %" PRIu64 " is next, not %" PRIu64, turns,
                         turn->ordinal);
    if (code == 0)
        code = insert_turn(journal, number, turn, now, error);
    if (code == 0)
        code = touch_context(journal, number, now, window_turn, turns + 1, context_tokens, error);
    if (code == 0)
        code = database_commit(&journal->database, error);
    else
        database_rollback(&journal->database);
unlock:
    pthread_mutex_unlock(&journal->mutex);
    return code;
}

/* Under the mutex: one row into turns[n], whose ordinal must be `ordinal`. */
static int list_turn(struct journal *journal, sqlite3_stmt *statement, const char *id, uint64_t ordinal,
                     struct journal_turn *turn, struct error *error)
{
    int code = read_turn(statement, turn);
    if (code == 0 && turn->ordinal != ordinal) {
        mem_free(turn->prompt);
        mem_free(turn->reply);
        mem_free(turn->tokens);
        code = -EBADMSG;
    }
    if (code == -EBADMSG)
        error_set(error, code, "reading turns: the journal %s is damaged (turn %" PRIu64 " of %.64s)",
                  journal->database.path, ordinal, id);
    else if (code < 0)
        error_set(error, code, "reading turns: out of memory");
    return code;
}

int journal_turns(struct journal *journal, const char *id, uint64_t from, struct journal_turn **out,
                  size_t *count, struct error *error)
{
    struct journal_turn *turns = NULL;
    size_t n = 0, capacity = 0;
    int64_t number = 0;
    uint64_t total = 0;
    int rc;
    pthread_mutex_lock(&journal->mutex);
    int code = find_context(journal, NULL, id, &number, &total, error);
    sqlite3_stmt *statement = database_statement(&journal->database, DATABASE_TURN_LIST);
    sqlite3_bind_int64(statement, 1, number);
    sqlite3_bind_int64(statement, 2, from > INT64_MAX ? INT64_MAX : (int64_t)from);
    while (code == 0 && (rc = sqlite3_step(statement)) != SQLITE_DONE) {
        if (rc != SQLITE_ROW)
            code = database_error(&journal->database, error, "reading turns");
        else if (grow((void **)&turns, sizeof *turns, n, &capacity) < 0)
            code = error_set(error, -ENOMEM, "reading turns: out of memory");
        else
            code = list_turn(journal, statement, id, from + n, &turns[n], error);
        if (code == 0)
            n++;
    }
    database_done(statement);
    if (code == 0 && n != (from < total ? total - from : 0))
        code = error_set(error, -EBADMSG, "reading turns: the journal %s is damaged (%.64s lacks turns)",
                         journal->database.path, id);
    pthread_mutex_unlock(&journal->mutex);
    if (code < 0) {
        journal_turns_free(turns, n);
        return code;
    }
    *out = turns;
    *count = n;
    return 0;
}
