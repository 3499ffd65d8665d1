/* What the parts of llms-bench speed share: what is measured, and what came out. */
#ifndef LLMS_BENCH_SPEED_H
#define LLMS_BENCH_SPEED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "bench.h"

enum { SPEED_RUNS_MAX = 100, SPEED_MODELS_MAX = 16 };

/* Figures of the runs, in any order until speed_sort. */
struct spread {
    double values[SPEED_RUNS_MAX];
    size_t count;
};

/* One kind of work at one depth with one number of threads; rates are tokens a second. */
struct speed_test {
    const char *model;
    char type[16]; /* of most weights */
    char isa[16];
    bool generate;
    uint64_t tokens, depth;
    unsigned threads;
    double bytes;         /* read from memory, for all tokens of a prompt or for one generated */
    bool from_memory;     /* false: the weights fit caches, so that memory is no bound */
    double compute_bound; /* a prompt's, by arithmetic alone; 0: not measured */
    struct spread ours, peer, busy, peer_busy;
    struct spread dense;  /* ours with density gathered */
    struct spread memory; /* bytes a second, measured in each of the runs */
};

/* Milliseconds from a process's start to its first token, and what bounds them. */
struct speed_cold {
    const char *model;
    unsigned threads;
    uint64_t file_bytes;
    struct spread cold, warm;
    struct spread storage; /* bytes a second that the file was read at */
};

struct speed {
    const char *models[SPEED_MODELS_MAX];
    size_t model_count;
    const char *peer; /* NULL: none */
    const char *isa;  /* the highest that either side may use; NULL: the best */
    struct bench_list prompts, depths, threads;
    uint64_t generate, runs, level;
    uint64_t busy; /* other processes, for a second measurement of each run; 0: none */
    bool density;  /* measure each run a second time with density gathered */
    bool start;    /* measure cold starts */
    bool lenient;  /* depths that do not fit the model are left out */
    struct speed_test *tests;
    size_t count;
    struct speed_cold *starts;
    size_t start_count;
};

int speed_measure(struct speed *speed, struct error *error); /* fills tests */
int speed_start(struct speed *speed, struct error *error);   /* fills starts */

void spread_add(struct spread *spread, double value);
void spread_sort(struct spread *spread);
double spread_median(const struct spread *spread); /* sorted; 0 for none */

/* The bound on a test's rate, tokens a second; 0: none is known. */
double speed_bound(const struct speed_test *test);

void speed_print_json(const struct speed *speed);
void speed_print_text(const struct speed *speed);

#endif
