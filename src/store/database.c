/* Opening, schema, statements and errors of the journal's database. The format: docs/FORMATS.md, Journal.
 *
 * The connection is in WAL mode with synchronous=FULL: a commit returns once its pages are synced in the log.
 * Locking is exclusive for as long as the database is open, which needs no shared-memory file; the process
 * lock (journal.c) keeps a second daemon from getting that far. */
#include "store/database.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "os/file.h"

enum {
    APPLICATION_ID = 0x4c4c4d53, /* "LLMS" */
    SCHEMA_VERSION = 1,
};

/* Up to so many bytes the whole file is checked at every opening: some tenths of a second. */
static const int64_t check_limit_bytes = INT64_C(64) << 20;

static const char schema[] =
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE contexts("
    " number INTEGER PRIMARY KEY,"
    " id TEXT NOT NULL UNIQUE,"
    " owner TEXT NOT NULL,"
    " name TEXT NOT NULL,"
    " system_prompt TEXT NOT NULL,"
    " created_ms INTEGER NOT NULL,"
    " used_ms INTEGER NOT NULL,"
    " window_turn INTEGER NOT NULL CHECK(window_turn BETWEEN 0 AND turn_count),"
    " turn_count INTEGER NOT NULL CHECK(turn_count >= 0),"
    " tokens INTEGER NOT NULL CHECK(tokens >= 0)) STRICT;"
    "CREATE INDEX contexts_by_owner ON contexts(owner, used_ms);"
    "CREATE TABLE turns("
    " context INTEGER NOT NULL REFERENCES contexts(number) ON DELETE CASCADE,"
    " ordinal INTEGER NOT NULL CHECK(ordinal >= 0),"
    " prompt TEXT NOT NULL,"
    " reply TEXT NOT NULL,"
    " prompt_tokens INTEGER NOT NULL CHECK(prompt_tokens BETWEEN 0 AND length(tokens) / 4),"
    " tokens BLOB NOT NULL CHECK(length(tokens) % 4 = 0),"
    " created_ms INTEGER NOT NULL,"
    " checksum INTEGER NOT NULL,"
    " PRIMARY KEY(context, ordinal)) STRICT;";

#define CONTEXT_COLUMNS "id, owner, name, system_prompt, created_ms, used_ms, window_turn, turn_count, tokens"

static const char *const statement_text[DATABASE_STATEMENTS] = {
    [DATABASE_BEGIN] = "BEGIN IMMEDIATE",
    [DATABASE_COMMIT] = "COMMIT",
    [DATABASE_ROLLBACK] = "ROLLBACK",
    [DATABASE_CONTEXT_INSERT] = "INSERT INTO contexts(" CONTEXT_COLUMNS ") VALUES(?,?,?,?,?,?,0,0,?)",
    [DATABASE_CONTEXT_COPY] = "INSERT INTO contexts(" CONTEXT_COLUMNS
                              ") SELECT ?2, owner, coalesce(?3, name), system_prompt, ?4, ?4,"
                              " window_turn, turn_count, tokens FROM contexts WHERE number = ?1",
    [DATABASE_CONTEXT_DELETE] = "DELETE FROM contexts WHERE owner = ? AND id = ?",
    [DATABASE_CONTEXT_GET] = "SELECT " CONTEXT_COLUMNS " FROM contexts WHERE owner = ? AND id = ?",
    [DATABASE_CONTEXT_LIST] =
        "SELECT " CONTEXT_COLUMNS " FROM contexts WHERE owner = ? ORDER BY used_ms DESC, number DESC",
    [DATABASE_CONTEXT_LIST_ALL] =
        "SELECT " CONTEXT_COLUMNS " FROM contexts ORDER BY used_ms DESC, number DESC",
    [DATABASE_CONTEXT_COUNT] = "SELECT count(*) FROM contexts WHERE owner = ?",
    [DATABASE_CONTEXT_FIND] = "SELECT number, owner, turn_count FROM contexts WHERE id = ?",
    [DATABASE_CONTEXT_TOUCH] =
        "UPDATE contexts SET used_ms = ?2, window_turn = ?3, turn_count = ?4, tokens = ?5 WHERE number = ?1",
    [DATABASE_TURN_INSERT] = "INSERT INTO turns VALUES(?,?,?,?,?,?,?,?)",
    [DATABASE_TURN_COPY] =
        "INSERT INTO turns SELECT ?2, ordinal, prompt, reply, prompt_tokens, tokens, created_ms, checksum"
        " FROM turns WHERE context = ?1",
    [DATABASE_TURN_LIST] =
        "SELECT ordinal, prompt, reply, prompt_tokens, tokens, created_ms, checksum FROM turns"
        " WHERE context = ? AND ordinal >= ? ORDER BY ordinal",
};

static int errno_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_NOMEM:
        return -ENOMEM;
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_READONLY:
        return -EROFS;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_SCHEMA:
        return -EBADMSG;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -EBUSY;
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return -EACCES;
    case SQLITE_TOOBIG:
        return -E2BIG;
    case SQLITE_IOERR:
        return (rc == SQLITE_IOERR_NOMEM) ? -ENOMEM : -EIO;
    case SQLITE_CANTOPEN:
        return -EIO;
    default:
        return -EINVAL;
    }
}

static int fail(const char *path, int rc, const char *words, struct error *error, const char *doing)
{
    int code = errno_of(rc);
    switch (code) {
    case -ENOSPC:
        return error_set(error, code, "%s: no space left for the journal %s", doing, path);
    case -EROFS:
        return error_set(error, code, "%s: the journal %s can only be read", doing, path);
    case -EBADMSG:
        error_set(error, code, "%s: the journal %s is damaged (%s)", doing, path, words);
        for (char *c = error ? strchr(error->text, '\n') : NULL; c; c = strchr(c, '\n'))
            *c = ' '; /* what the check found comes in lines */
        return code;
    case -ENOMEM:
        return error_set(error, code, "%s: out of memory", doing);
    default:
        return error_set(error, code, "%s: journal %s: %s", doing, path, words);
    }
}

int database_error(const struct database *database, struct error *error, const char *doing)
{
    if (!database->handle)
        return error_set(error, -ENOMEM, "%s: out of memory", doing);
    int rc = sqlite3_extended_errcode(database->handle), system = sqlite3_system_errno(database->handle);
    const char *words = sqlite3_errmsg(database->handle);
    if ((rc & 0xff) == SQLITE_IOERR && (system == ENOSPC || system == EDQUOT))
        rc = SQLITE_FULL; /* a sync may be the first to learn of it */
    if ((rc & 0xff) == SQLITE_CANTOPEN && system > 0)
        return error_set(error, -system, "%s: journal %s: %s", doing, database->path, strerror(system));
    return fail(database->path, rc, words, error, doing);
}

/* Runs statements given as text. */
static int execute(struct database *database, const char *text, struct error *error, const char *doing)
{
    if (sqlite3_exec(database->handle, text, NULL, NULL, NULL) == SQLITE_OK)
        return 0;
    return database_error(database, error, doing);
}

/* The first column of the first row of a query, as an integer. */
static int query_number(struct database *database, const char *text, int64_t *value, struct error *error)
{
    sqlite3_stmt *statement = NULL;
    int code = 0;
    if (sqlite3_prepare_v2(database->handle, text, -1, &statement, NULL) == SQLITE_OK &&
        sqlite3_step(statement) == SQLITE_ROW)
        *value = sqlite3_column_int64(statement, 0);
    else
        code = database_error(database, error, "opening");
    sqlite3_finalize(statement);
    return code;
}

static int check_whole(struct database *database, struct error *error)
{
    int64_t pages = 0, page_bytes = 0;
    int code = query_number(database, "PRAGMA page_count", &pages, error);
    if (code == 0)
        code = query_number(database, "PRAGMA page_size", &page_bytes, error);
    if (code < 0 || pages * page_bytes > check_limit_bytes)
        return code;
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(database->handle, "PRAGMA quick_check(1)", -1, &statement, NULL) != SQLITE_OK ||
        sqlite3_step(statement) != SQLITE_ROW)
        code = database_error(database, error, "checking");
    else {
        const char *words = (const char *)sqlite3_column_text(statement, 0);
        if (!words)
            code = error_set(error, -ENOMEM, "checking: out of memory");
        else if (strcmp(words, "ok") != 0)
            code = fail(database->path, SQLITE_CORRUPT, words, error, "checking");
    }
    sqlite3_finalize(statement);
    return code;
}

static int create_schema(struct database *database, const char *model, struct error *error)
{
    static const char doing[] = "creating";
    char *meta = sqlite3_mprintf("BEGIN IMMEDIATE; %s INSERT INTO meta VALUES('model', %Q);"
                                 "PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT;",
                                 schema, model, APPLICATION_ID, SCHEMA_VERSION);
    if (!meta)
        return error_set(error, -ENOMEM, "%s: out of memory", doing);
    int code = execute(database, meta, error, doing);
    sqlite3_free(meta);
    if (code < 0)
        database_rollback(database);
    return code;
}

static int check_model(struct database *database, const char *model, struct error *error)
{
    sqlite3_stmt *statement = NULL;
    int code = 0;
    if (sqlite3_prepare_v2(database->handle, "SELECT value FROM meta WHERE key = 'model'", -1, &statement,
                           NULL) != SQLITE_OK)
        code = database_error(database, error, "opening");
    else {
        int rc = sqlite3_step(statement);
        const char *value = rc == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
        if (rc == SQLITE_DONE)
            code = fail(database->path, SQLITE_CORRUPT, "names no vocabulary", error, "opening");
        else if (!value)
            code = rc == SQLITE_ROW ? error_set(error, -ENOMEM, "opening: out of memory")
                                    : database_error(database, error, "opening");
        else if (strcmp(value, model) != 0)
            code =
                error_set(error, -EINVAL,
                          "the journal %s belongs to a model with another vocabulary (%s, not %s): use that "
                          "model or another state directory",
                          database->path, value, model);
    }
    sqlite3_finalize(statement);
    return code;
}

/* A file system that cannot do WAL would leave us in another mode without an error. */
static int check_mode(struct database *database, struct error *error)
{
    sqlite3_stmt *statement = NULL;
    int code = 0;
    if (sqlite3_prepare_v2(database->handle, "PRAGMA journal_mode", -1, &statement, NULL) != SQLITE_OK ||
        sqlite3_step(statement) != SQLITE_ROW)
        code = database_error(database, error, "opening");
    else {
        const char *mode = (const char *)sqlite3_column_text(statement, 0);
        if (!mode)
            code = error_set(error, -ENOMEM, "opening: out of memory");
        else if (strcmp(mode, "wal") != 0)
            code = error_set(error, -EIO, "opening: journal %s: cannot keep a write-ahead log here",
                             database->path);
    }
    sqlite3_finalize(statement);
    return code;
}

/* Creates the schema in a new file; else checks that the file is ours and sound. */
static int check_or_create(struct database *database, const char *model, struct error *error)
{
    int64_t application = 0, version = 0, tables = 0;
    int code = query_number(database, "PRAGMA application_id", &application, error);
    if (code == 0)
        code = query_number(database, "PRAGMA user_version", &version, error);
    if (code == 0)
        code = query_number(database, "SELECT count(*) FROM sqlite_schema", &tables, error);
    if (code < 0)
        return code;
    if (application == 0 && version == 0 && tables == 0)
        return create_schema(database, model, error);
    if (application != APPLICATION_ID || version < 1)
        return error_set(error, -EBADMSG, "opening: %s is not a journal of this program", database->path);
    if (version > SCHEMA_VERSION)
        return error_set(
            error, -EBADMSG,
            "opening: the journal %s was written by a newer version (schema %lld, this one knows %d)",
            database->path, (long long)version, SCHEMA_VERSION);
    code = check_whole(database, error);
    return code < 0 ? code : check_model(database, model, error);
}

static int prepare(struct database *database, struct error *error)
{
    for (int i = 0; i < DATABASE_STATEMENTS; i++)
        if (sqlite3_prepare_v3(database->handle, statement_text[i], -1, SQLITE_PREPARE_PERSISTENT,
                               &database->statements[i], NULL) != SQLITE_OK)
            return database_error(database, error, "opening");
    return 0;
}

/* SQLite would create the file readable by all; made here first it is ours alone, and in the directory for
 * good. */
static int create_file(const char *path, struct error *error)
{
    struct stat st;
    if (stat(path, &st) == 0)
        return 0;
    int code = os_write_file(path, "", 0, 0600);
    return code < 0 ? error_set(error, code, "cannot create %s: %s", path, strerror(-code)) : 0;
}

int database_open(struct database *database, const char *path, const char *model, struct error *error)
{
    static const char pragmas[] = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;"
                                  "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
                                  "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;"
                                  "PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY;"
                                  "PRAGMA cache_size = -256;"; /* KiB: a context's turns, not the journal */
    *database = (struct database){0};
    int code = create_file(path, error);
    if (code < 0)
        return code;
    database->path = mem_strdup(path);
    if (!database->path)
        return error_set(error, -ENOMEM, "opening: out of memory");
    int rc = sqlite3_open_v2(path, &database->handle,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    code = rc == SQLITE_OK ? 0 : database_error(database, error, "opening");
    if (code == 0)
        code = execute(database, pragmas, error, "opening");
    if (code == 0)
        code = check_mode(database, error);
    if (code == 0)
        code = check_or_create(database, model, error);
    if (code == 0)
        code = prepare(database, error);
    if (code < 0)
        database_close(database);
    return code;
}

void database_close(struct database *database)
{
    for (int i = 0; i < DATABASE_STATEMENTS; i++)
        sqlite3_finalize(database->statements[i]);
    sqlite3_close(database->handle);
    mem_free(database->path);
    *database = (struct database){0};
}

sqlite3_stmt *database_statement(struct database *database, enum database_statement statement)
{
    return database->statements[statement];
}

void database_done(sqlite3_stmt *statement)
{
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
}

int database_run(struct database *database, sqlite3_stmt *statement, struct error *error, const char *doing)
{
    int rc = sqlite3_step(statement);
    int code = rc == SQLITE_DONE ? 0 : database_error(database, error, doing);
    database_done(statement);
    return code;
}

int database_begin(struct database *database, struct error *error)
{
    return database_run(database, database_statement(database, DATABASE_BEGIN), error, "journal");
}

int database_commit(struct database *database, struct error *error)
{
    int code = database_run(database, database_statement(database, DATABASE_COMMIT), error, "journal");
    if (code < 0)
        database_rollback(database);
    return code;
}

void database_rollback(struct database *database)
{
    if (sqlite3_get_autocommit(database->handle))
        return; /* SQLite rolled back by itself */
    sqlite3_stmt *statement = database_statement(database, DATABASE_ROLLBACK);
    if (statement) {
        sqlite3_step(statement);
        database_done(statement);
    } else {
        sqlite3_exec(database->handle, "ROLLBACK", NULL, NULL, NULL);
    }
}

void database_flush(struct database *database)
{
    sqlite3_wal_checkpoint_v2(database->handle, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
}
