/* llms-bench: its commands and what they share.
 *
 * A command gets argv with its own name at 0 and returns the exit status: 0, 1 for failure, 2 for bad usage.
 * It writes results on standard output and one line for an error, through bench_fail or bench_usage, on
 * standard error. */
#ifndef LLMS_BENCH_BENCH_H
#define LLMS_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/array.h"
#include "base/error.h"

int bench_kernels(int argc, char **argv);
int bench_model(int argc, char **argv);
int bench_logits(int argc, char **argv);
int bench_tokens(int argc, char **argv);
int bench_speed(int argc, char **argv);
int bench_switch(int argc, char **argv);
int bench_quality(int argc, char **argv);
int bench_trace(int argc, char **argv);
int bench_regimes(int argc, char **argv);
int bench_chunks(int argc, char **argv);

/* ---- options ---- */

enum { BENCH_LIST_MAX = 16 };

struct bench_list {
    size_t count;
    uint64_t values[BENCH_LIST_MAX];
};

enum bench_option_kind {
    BENCH_FLAG,   /* bool */
    BENCH_TEXT,   /* const char *, points into argv */
    BENCH_NUMBER, /* uint64_t from low to high */
    BENCH_SIZE,   /* uint64_t, bytes: 40M */
    BENCH_NUMBERS /* struct bench_list: numbers from low to high, with commas between */
};

struct bench_option {
    const char *name; /* without the dashes */
    enum bench_option_kind kind;
    void *target;         /* left as it is where the option is not given */
    const char *argument; /* what --help calls its value; NULL for flags */
    const char *help;
    uint64_t low, high; /* both 0: any */
    bool required;      /* BENCH_TEXT only */
};

struct bench_usage {
    const char *command;
    const char *summary; /* one line */
    const char *more;    /* more lines, or NULL */
    const struct bench_option *options;
    size_t count;
};

/* Reads argv. BENCH_GO: all is well; otherwise the exit status to return (help was asked for, or an error
 * told). */
enum { BENCH_GO = -1 };
int bench_options(const struct bench_usage *usage, int argc, char **argv);

/* One line on standard error: "llms-bench COMMAND: TEXT"; return 1 and 2. */
int bench_fail(const char *command, const struct error *error);
int bench_misuse(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A line that is written over by the next one; nothing where standard error is no terminal. NULL wipes it. */
void bench_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
