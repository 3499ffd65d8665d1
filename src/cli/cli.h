/* What the `llms` commands share: parsed options, the bound daemon, output helpers.
 *
 * A command returns the process's exit status: 0, 1 (it failed) or 2 (bad usage). Whoever finds the failure
 * prints its one line to standard error; nobody prints it twice. One thread. */
#ifndef LLMS_CLI_CLI_H
#define LLMS_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "llms.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_STOPS = 16 };

struct cli {
    const char *command; /* for messages: "call" */
    struct llms *llms;   /* bound before a command runs */

    const char *app;
    const char *address; /* NULL: where libllms looks */
    const char *context; /* chat --ctx */
    const char *name;    /* new, fork --name */
    const char *system;  /* --system */
    bool json, stats, turns, special;
    struct llms_call_options call;
    const char *stops[CLI_STOPS + 1]; /* call.stop, NULL-terminated */

    int count; /* arguments after the command's name */
    char **arguments;
};

/* Which options a command takes beside the global ones, and how many arguments. */
enum cli_group {
    CLI_TAKES_CALL = 1, /* --max-tokens and the other ways to generate, --stats */
    CLI_TAKES_NAME = 2,
    CLI_TAKES_SYSTEM = 4,
    CLI_TAKES_CONTEXT = 8,
    CLI_TAKES_TURNS = 16,
    CLI_TAKES_SPECIAL = 32,
};
struct cli_command {
    const char *name;
    const char *synopsis; /* after the name, for usage */
    const char *summary;
    int (*run)(struct cli *cli);
    unsigned groups; /* of enum cli_group */
    int least, most; /* arguments; most < 0: any number */
};
extern const struct cli_command cli_commands[]; /* ends with a NULL name */

/* Parses argv into *cli. Returns -1 to go on with *out, or the exit status where all is said already
 * (help, version, bad usage). */
int options_parse(struct cli *cli, int argc, char **argv, const struct cli_command **out);

int command_new(struct cli *cli);
int command_ls(struct cli *cli);
int command_show(struct cli *cli);
int command_rm(struct cli *cli);
int command_fork(struct cli *cli);
int command_prepare(struct cli *cli);
int command_call(struct cli *cli);
int command_chat(struct cli *cli);
int command_status(struct cli *cli);
int command_budget(struct cli *cli);
int command_models(struct cli *cli);
int command_tokenize(struct cli *cli);
int command_detokenize(struct cli *cli);

/* ---- talking to the daemon ---- */

/* Prints "llms COMMAND: ..." as one line; returns CLI_FAILED. */
int cli_fail(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for a failed llms_* call, in the daemon's own words where it gave any. */
int cli_fail_code(const struct cli *cli, int code);

/* Asks; body is taken over (NULL: none). The answer as JSON, or NULL after printing why. With --json the
 * answer's text goes to standard output as it is. */
json_t *cli_ask(struct cli *cli, const char *method, const char *path, json_t *body);

/* Finds the one context of the app whose id is or starts with `given`, its "ctx_" left out or not; prints why
 * not. False: none. */
bool cli_find(struct cli *cli, const char *given, char id[LLMS_ID_BYTES]);
bool cli_ask_context(struct cli *cli, const char *method, const char *given, const char *suffix, json_t *body,
                     json_t **answer);

/* The argument, or standard input whole for "-", in memory to free(); NULL after printing why. */
char *cli_text(struct cli *cli, const char *argument);

/* ---- output ---- */

/* Left-aligned columns two blanks apart; a column whose header starts with '>' is right-aligned (the '>' is
 * not shown). Cells are row by row. Control characters in cells are shown as '?'. */
void table_print(const char *const *headers, size_t columns, const char *const *cells, size_t rows);
void format_mib(char *text, size_t bytes, uint64_t size);              /* "12.3 MiB" */
void format_ago(char *text, size_t bytes, int64_t then_ms);            /* "5 min ago" */
void format_duration(char *text, size_t bytes, uint64_t milliseconds); /* "5 min" */
void print_stats(const struct llms_call_result *result);               /* one line to standard error */

const char *get_text(const json_t *object, const char *key); /* "" where there is none */
uint64_t get_whole(const json_t *object, const char *key);   /* 0 where there is none */

#endif
