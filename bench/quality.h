/* What llms-bench quality's files share: the cases it asks, a setting of the KV, and what came of a case. */
#ifndef LLMS_BENCH_QUALITY_H
#define LLMS_BENCH_QUALITY_H

#include <stddef.h>
#include <stdint.h>

#include "base/array.h"
#include "base/error.h"
#include "kv/levels.h"
#include "run.h"
#include "service/transcript.h"

/* ---- quality_data.c: the conversations ---- */

struct quality_turn {
    char *user, *assistant;
};

struct quality_query {
    char *kind, *question, *answer;
    char *reply;       /* an ideal one; NULL if none is given */
    uint64_t distance; /* tokens back, as the file says; 0 where it does not */
};

struct quality_case {
    char *id, *system; /* system: "" if none */
    struct quality_turn *turns;
    size_t turn_count;
    struct quality_query *queries;
    size_t query_count;
};

struct quality_data {
    struct quality_case *cases;
    size_t count;
};

/* The first `limit` lines of a file as ../shared/eval describes it. 0 or negative, and then it is empty. */
int quality_data_read(const char *path, size_t limit, struct quality_data *out, struct error *error);
void quality_data_deinit(struct quality_data *data);

/* ---- quality_run.c: one case under one setting ---- */

struct quality_setting {
    char name[48];
    uint8_t write_level;
    struct levels_rules rules;
    unsigned rounds; /* of evicting everything and bringing it back, spread over the turns */
};

enum { QUALITY_REPLY = 40 }; /* tokens of an answer at most */

struct quality_result {
    double log_probability;       /* natural, summed over `tokens` */
    uint64_t tokens;              /* scored: all but the first of the conversation */
    double reply_log_probability; /* the same of the ideal replies to the questions */
    uint64_t reply_tokens;
    uint64_t bytes, values; /* of its chunks at the end, and how many K and V they have room for */
    uint8_t *found;         /* for each query, whether its answer was in the reply */
};

struct quality_runner {
    struct bench_run run; /* its engine and pool; its sequence and level are not used */
    struct transcript_rules rules;
    void *room;    /* for lowering a chunk */
    float *logits; /* QUALITY_BATCH rows of the vocabulary */
};

/* Positions whose logits are kept at once. */
enum { QUALITY_BATCH = 64 };

int quality_open(struct quality_runner *runner, const char *model, unsigned threads, struct error *error);
void quality_close(struct quality_runner *runner);

/* result->found has room for the case's queries. */
int quality_run(struct quality_runner *runner, const struct quality_setting *setting,
                const struct quality_case *one, struct quality_result *result, struct error *error);

#endif
