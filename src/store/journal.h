/* The journal: every context's transcript, in SQLite (WAL, synchronous=FULL). The truth the KV cache is made
 * from.
 *
 * A function that returned 0 has made its change durable; one that failed has changed nothing. Contexts
 * belong to an owner, a string such as "1000/mail"; every function that takes an owner sees only that owner's
 * contexts and answers -ENOENT for others' (invariant 7). Thread-safe (one connection under a mutex).
 *
 * A turn is stored as its text and as the token ids it added to the context, so that the exact sequence is
 * rebuilt after a restart even if tokenizer rules change. Schema and its version: docs/FORMATS.md.
 *
 * Where the disk fails in the very moment of a commit the outcome is unknown to anyone: the function fails,
 * and after a crash right then the transaction may be found whole. It is never found in part. */
#ifndef LLMS_STORE_JOURNAL_H
#define LLMS_STORE_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct journal;

enum { JOURNAL_ID_BYTES = 32 }; /* "ctx_" and 24 hex digits of randomness, NUL-terminated */

struct journal_context {
    char id[JOURNAL_ID_BYTES];
    char *owner;
    char *name;          /* "" if none */
    char *system_prompt; /* "" if none */
    int64_t created_ms;  /* Unix epoch */
    int64_t used_ms;
    uint64_t window_turn; /* turns before this ordinal have slid out (the system prompt stays) */
    uint64_t turn_count;  /* turns stored */
    uint64_t tokens;      /* length of the sequence that a next call stands on */
};

struct journal_turn {
    uint64_t ordinal; /* 0, 1, ... within the context */
    char *prompt;     /* what the app sent */
    char *reply;      /* what the model answered */
    int32_t *tokens;  /* all the ids this turn added to the sequence, in order */
    size_t token_count;
    size_t prompt_tokens; /* the first so many of them are the prompt's (markup included) */
    int64_t created_ms;
};

/* Opens (creating) DIR/journal.db, the directory too; -EBUSY if another process holds it (DIR/lock); -EBADMSG
 * if it is damaged or of a newer version; -EROFS, -EACCES, -ENOSPC as they come. `model` names the tokenizer
 * the ids belong to: opening a journal of another vocabulary is -EINVAL with a line that says so. */
int journal_open(const char *directory, const char *model, struct journal **out, struct error *error);
void journal_close(struct journal *journal);

/* Fills context->id and times; the caller gives owner, name, system_prompt and tokens. limit: -EDQUOT if the
 * owner already has so many (0: no limit). */
int journal_context_create(struct journal *journal, struct journal_context *context, uint64_t limit,
                           struct error *error);
/* A copy of source (owner's) with all its turns, under a new id. name NULL: the source's. */
int journal_context_fork(struct journal *journal, const char *owner, const char *source, const char *name,
                         uint64_t limit, struct journal_context *out, struct error *error);
int journal_context_delete(struct journal *journal, const char *owner, const char *id, struct error *error);
int journal_context_get(struct journal *journal, const char *owner, const char *id,
                        struct journal_context *out, struct error *error);
/* owner NULL: everyone's (for the daemon itself). Sorted by used_ms, latest first. */
int journal_context_list(struct journal *journal, const char *owner, struct journal_context **out,
                         size_t *count, struct error *error);
void journal_context_deinit(struct journal_context *context);
void journal_contexts_free(struct journal_context *contexts, size_t count);

/* Appends a turn and sets used_ms, in one durable transaction; window_turn and the length of the sequence
 * with this turn are stored with it. ordinal must be the next (turn_count), else -EEXIST. */
int journal_turn_append(struct journal *journal, const char *id, const struct journal_turn *turn,
                        uint64_t window_turn, uint64_t context_tokens, struct error *error);
/* Turns from ordinal `from` on, in order. */
int journal_turns(struct journal *journal, const char *id, uint64_t from, struct journal_turn **out,
                  size_t *count, struct error *error);
void journal_turns_free(struct journal_turn *turns, size_t count);

#endif
