/* The SQLite side of the journal: opening it safely, its schema, its statements, its errors.
 *
 * Private to the store room. One connection, used under the journal's mutex. Statements are prepared once at
 * opening; a user of one binds, steps and then calls database_done with it on every path. */
#ifndef LLMS_STORE_DATABASE_H
#define LLMS_STORE_DATABASE_H

#include <sqlite3.h>

#include "base/error.h"

enum database_statement {
    DATABASE_BEGIN,
    DATABASE_COMMIT,
    DATABASE_ROLLBACK,
    DATABASE_CONTEXT_INSERT,
    DATABASE_CONTEXT_COPY,
    DATABASE_CONTEXT_DELETE,
    DATABASE_CONTEXT_GET,
    DATABASE_CONTEXT_LIST,
    DATABASE_CONTEXT_LIST_ALL,
    DATABASE_CONTEXT_COUNT,
    DATABASE_CONTEXT_FIND,
    DATABASE_CONTEXT_TOUCH,
    DATABASE_TURN_INSERT,
    DATABASE_TURN_COPY,
    DATABASE_TURN_LIST,
    DATABASE_STATEMENTS
};

struct database {
    sqlite3 *handle;
    sqlite3_stmt *statements[DATABASE_STATEMENTS];
    char *path; /* for messages */
};

/* Opens (creating) the file at path, checks it, and prepares the statements. model: the vocabulary it must
 * belong to. On failure nothing stays open. */
int database_open(struct database *database, const char *path, const char *model, struct error *error);
void database_close(struct database *database); /* a zeroed one is fine */

/* Maps the connection's last error to a negative errno value and one line that starts with `doing`. */
int database_error(const struct database *database, struct error *error, const char *doing);

sqlite3_stmt *database_statement(struct database *database, enum database_statement statement);
void database_done(sqlite3_stmt *statement); /* resets it and forgets its bindings */

/* Steps a statement that returns no rows. 0 or a negative errno value with text; the statement is done. */
int database_run(struct database *database, sqlite3_stmt *statement, struct error *error, const char *doing);

/* A transaction: begin; then commit, which on failure has rolled back; or rollback. */
int database_begin(struct database *database, struct error *error);
int database_commit(struct database *database, struct error *error);
void database_rollback(struct database *database);

/* Moves what was committed from the log file into the database and empties the log, so that deleted text is
 * on the disk no longer. Best effort. */
void database_flush(struct database *database);

#endif
