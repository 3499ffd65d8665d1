/* llms-bench quality: what a conversation loses by keeping its KV in fewer bits. This file takes the options,
 * goes through the cases and tells the results; see quality.h for the rest.
 *
 * Every case runs under all settings before the next one begins, so that whatever was run can be compared,
 * and what is told of a setting is told beside the first one, case by case: cases differ far more than
 * settings do. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/parse.h"
#include "bench.h"
#include "quality.h"

enum { SETTINGS_MAX = 32, BANDS = 4, ROUNDS_MAX = 1000 };

static const char default_settings[] =
    "16,8,uniform-4,uniform-3,uniform-2,channel-4,channel-2,paper@0.5,paper-ours@0.5,llms@0.5,llms@0.4,"
    "llms@0.375,llms@0.3125,llms@0.5x20";

static const struct {
    const char *name;
    uint8_t write_level;
    struct levels_rules rules;
    const char *help;
} kinds[] = {
    {"16", 16, {LEVELS_KEEP, 0, 0, 1}, "FP16, nothing is lowered"},
    {"8", 8, {LEVELS_KEEP, 0, 0, 1}, "INT8, nothing is lowered"},
    {"uniform-4", 8, {LEVELS_FIXED, LEVELS_4, 4, 1}, "every full chunk at 4 bits"},
    {"uniform-3", 8, {LEVELS_FIXED, LEVELS_3, 3, 1}, "every full chunk at 3 bits: K at 4, V at 2"},
    {"uniform-2", 8, {LEVELS_FIXED, LEVELS_2, 2, 1}, "every full chunk at 2 bits"},
    {"channel-4",
     8,
     {LEVELS_FIXED, LEVELS_4, 4, 1, KV_PAPER},
     "every full chunk at 4 bits, the paper's codec"},
    {"channel-2",
     8,
     {LEVELS_FIXED, LEVELS_2, 2, 1, KV_PAPER},
     "every full chunk at 2 bits, the paper's codec"},
    {"paper",
     8,
     {LEVELS_PAPER, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, 0.5, KV_PAPER},
     "the paper's shares of 8, 4 and 2 bits, its codec"},
    {"paper-ours",
     8,
     {LEVELS_PAPER, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, 0.5},
     "the paper's shares, our codec"},
    {"llms-paper",
     8,
     {LEVELS_DAMAGE, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, 0.5, KV_PAPER},
     "least damage, the paper's codec"},
    {"llms",
     8,
     {LEVELS_DAMAGE, LEVELS_8 | LEVELS_4 | LEVELS_3 | LEVELS_2, 0, 0.5},
     "the default: least damage"},
    {"llms-no3", 8, {LEVELS_DAMAGE, LEVELS_8 | LEVELS_4 | LEVELS_2, 0, 0.5}, "the same without 3 bits"},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static const uint64_t bands[BANDS] = {0, 256, 512, 1024}; /* where each begins, tokens back */

struct bench {
    const char *model, *data_path, *settings_text, *csv;
    uint64_t cases, threads;
    struct quality_setting settings[SETTINGS_MAX];
    size_t setting_count;
    struct quality_data data;
    struct quality_result *results; /* [case][setting] */
    uint8_t *found;                 /* theirs */
    size_t done;                    /* cases */
    double seconds;
};

static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static const struct quality_result *result_of(const struct bench *bench, size_t one, size_t setting)
{
    return &bench->results[one * bench->setting_count + setting];
}

/* ---- figures ---- */

struct tally {
    uint64_t found, queries;
};

static double share(struct tally tally)
{
    return tally.queries ? (double)tally.found / (double)tally.queries : 0;
}

/* Of the queries of a kind (NULL: any) at least `from` and less than `to` tokens back. */
static struct tally count(const struct bench *bench, size_t setting, const char *kind, uint64_t from,
                          uint64_t to)
{
    struct tally tally = {0};
    for (size_t c = 0; c < bench->done; c++) {
        const struct quality_case *one = &bench->data.cases[c];
        for (size_t q = 0; q < one->query_count; q++) {
            const struct quality_query *query = &one->queries[q];
            if ((kind && strcmp(kind, query->kind) != 0) || query->distance < from || query->distance >= to)
                continue;
            tally.queries++;
            tally.found += result_of(bench, c, setting)->found[q];
        }
    }
    return tally;
}

static struct tally count_all(const struct bench *bench, size_t setting)
{
    return count(bench, setting, NULL, 0, UINT64_MAX);
}

/* What is compared with the first setting. */
enum measure { CONVERSATION, REPLY, RECALL };

/* Of the conversations, or of the ideal replies. */
static double perplexity(const struct bench *bench, size_t setting, enum measure measure)
{
    double sum = 0, tokens = 0;
    for (size_t c = 0; c < bench->done; c++) {
        const struct quality_result *r = result_of(bench, c, setting);
        sum += measure == REPLY ? r->reply_log_probability : r->log_probability;
        tokens += (double)(measure == REPLY ? r->reply_tokens : r->tokens);
    }
    return tokens > 0 ? exp(-sum / tokens) : 0;
}

static double bits_per_value(const struct bench *bench, size_t setting)
{
    double bytes = 0, values = 0;
    for (size_t c = 0; c < bench->done; c++) {
        bytes += (double)result_of(bench, c, setting)->bytes;
        values += (double)result_of(bench, c, setting)->values;
    }
    return values > 0 ? 8 * bytes / values : 0;
}

/* A difference to the first setting and its standard error, conversations being what was drawn at random. */
struct difference {
    double mean, error;
};

static void case_difference(const struct bench *bench, size_t one, size_t setting, enum measure measure,
                            double *difference, double *weight)
{
    const struct quality_result *mine = result_of(bench, one, setting), *first = result_of(bench, one, 0);
    if (measure == CONVERSATION) {
        *difference = first->log_probability - mine->log_probability;
        *weight = (double)mine->tokens;
        return;
    }
    if (measure == REPLY) {
        *difference = first->reply_log_probability - mine->reply_log_probability;
        *weight = (double)mine->reply_tokens;
        return;
    }
    *difference = 0;
    *weight = (double)bench->data.cases[one].query_count;
    for (size_t q = 0; q < bench->data.cases[one].query_count; q++)
        *difference += (double)mine->found[q] - (double)first->found[q];
}

/* A ratio of sums over cases, and the error of such a ratio. */
static struct difference compare(const struct bench *bench, size_t setting, enum measure measure)
{
    struct difference out = {0};
    double total = 0, weights = 0, squares = 0, difference, weight, n = (double)bench->done;
    for (size_t c = 0; c < bench->done; c++) {
        case_difference(bench, c, setting, measure, &difference, &weight);
        total += difference;
        weights += weight;
    }
    out.mean = weights > 0 ? total / weights : 0;
    for (size_t c = 0; c < bench->done; c++) {
        case_difference(bench, c, setting, measure, &difference, &weight);
        double rest = difference - out.mean * weight;
        squares += rest * rest;
    }
    out.error = weights > 0 && n > 1 ? sqrt(squares * n / (n - 1)) / weights : 0;
    return out;
}

/* Percent of the first setting's perplexity. */
static struct difference perplexity_change(const struct bench *bench, size_t setting, enum measure measure)
{
    struct difference d = compare(bench, setting, measure);
    return (struct difference){100 * expm1(d.mean), 100 * exp(d.mean) * d.error};
}

static struct difference recall_change(const struct bench *bench, size_t setting)
{
    struct difference d = compare(bench, setting, RECALL);
    return (struct difference){100 * d.mean, 100 * d.error};
}

/* ---- telling ---- */

static json_t *number(double value)
{
    return json_real(round(value * 1e6) / 1e6);
}

static json_t *difference_json(struct difference d)
{
    return json_pack("{s:o,s:o}", "mean", number(d.mean), "error", number(d.error));
}

static json_t *tally_json(struct tally tally)
{
    return json_pack("{s:I,s:I,s:o}", "found", (json_int_t)tally.found, "queries", (json_int_t)tally.queries,
                     "recall", number(share(tally)));
}

static json_t *kinds_json(const struct bench *bench, size_t setting)
{
    json_t *out = json_object();
    for (size_t c = 0; c < bench->done; c++)
        for (size_t q = 0; q < bench->data.cases[c].query_count; q++) {
            const char *kind = bench->data.cases[c].queries[q].kind;
            if (!json_object_get(out, kind))
                json_object_set_new(out, kind, tally_json(count(bench, setting, kind, 0, UINT64_MAX)));
        }
    return out;
}

static json_t *bands_json(const struct bench *bench, size_t setting)
{
    json_t *out = json_array();
    for (size_t i = 0; i < BANDS; i++) {
        uint64_t to = i + 1 < BANDS ? bands[i + 1] : UINT64_MAX;
        json_t *band = tally_json(count(bench, setting, NULL, bands[i], to));
        json_object_set_new(band, "from_tokens", json_integer((json_int_t)bands[i]));
        json_object_set_new(band, "to_tokens", i + 1 < BANDS ? json_integer((json_int_t)to) : json_null());
        json_array_append_new(out, band);
    }
    return out;
}

static json_t *setting_json(const struct bench *bench, size_t i)
{
    struct tally tally = count_all(bench, i);
    return json_pack("{s:s,s:o,s:o,s:o,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o}", "name", bench->settings[i].name,
                     "bits_per_value", number(bits_per_value(bench, i)), "perplexity",
                     number(perplexity(bench, i, CONVERSATION)), "recall", number(share(tally)), "cases",
                     (json_int_t)bench->done, "queries", (json_int_t)tally.queries,
                     "perplexity_change_percent", difference_json(perplexity_change(bench, i, CONVERSATION)),
                     "reply_perplexity", number(perplexity(bench, i, REPLY)),
                     "reply_perplexity_change_percent", difference_json(perplexity_change(bench, i, REPLY)),
                     "recall_change_points", difference_json(recall_change(bench, i)), "by_kind",
                     kinds_json(bench, i), "by_distance", bands_json(bench, i));
}

static int print_json(const struct bench *bench)
{
    json_t *settings = json_array();
    uint64_t tokens = 0;
    for (size_t i = 0; i < bench->setting_count; i++)
        json_array_append_new(settings, setting_json(bench, i));
    for (size_t c = 0; c < bench->done; c++)
        tokens += result_of(bench, c, 0)->tokens;
    json_t *root =
        json_pack("{s:s,s:s,s:s,s:b,s:I,s:I,s:o,s:o}", "model", bench->model, "data", bench->data_path,
                  "reference", bench->settings[0].name, "complete", bench->done == bench->data.count,
                  "cases_wanted", (json_int_t)bench->data.count, "tokens", (json_int_t)tokens, "seconds",
                  number(bench->seconds), "settings", settings);
    int code = json_dumpf(root, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(root);
    return code;
}

static void print_text(const struct bench *bench)
{
    printf("%zu conversations, %" PRIu64 " questions; changes are against %s, with their standard error\n\n",
           bench->done, count_all(bench, 0).queries, bench->settings[0].name);
    printf("%-16s %6s %10s %17s %8s %17s %8s %15s   recall %%, tokens back:", "", "bits", "perplexity",
           "change, %", "replies", "change, %", "recall %", "points");
    for (size_t i = 0; i < BANDS; i++)
        printf(" %5" PRIu64 "+", bands[i]);
    putchar('\n');
    for (size_t i = 0; i < bench->setting_count; i++) {
        struct difference all = perplexity_change(bench, i, CONVERSATION);
        struct difference replies = perplexity_change(bench, i, REPLY), recall = recall_change(bench, i);
        printf("%-16s %6.3f %10.4f %+8.3f +- %5.3f %8.4f %+8.3f +- %5.3f %8.1f %+6.2f +- %5.2f %24s",
               bench->settings[i].name, bits_per_value(bench, i), perplexity(bench, i, CONVERSATION),
               all.mean, all.error, perplexity(bench, i, REPLY), replies.mean, replies.error,
               100 * share(count_all(bench, i)), recall.mean, recall.error, "");
        for (size_t b = 0; b < BANDS; b++)
            printf(" %6.1f",
                   100 * share(count(bench, i, NULL, bands[b], b + 1 < BANDS ? bands[b + 1] : UINT64_MAX)));
        putchar('\n');
    }
}

/* A line for each case and setting. */
static int write_csv(const struct bench *bench, struct error *error)
{
    FILE *file = fopen(bench->csv, "we");
    if (!file)
        return error_set(error, -errno, "%s: %s", bench->csv, strerror(errno));
    fputs("case,setting,tokens,log_probability,bytes,values,queries,found\n", file);
    for (size_t c = 0; c < bench->done; c++)
        for (size_t i = 0; i < bench->setting_count; i++) {
            const struct quality_result *r = result_of(bench, c, i);
            size_t queries = bench->data.cases[c].query_count, found = 0;
            for (size_t q = 0; q < queries; q++)
                found += r->found[q];
            fprintf(file, "%s,%s,%" PRIu64 ",%.6f,%" PRIu64 ",%" PRIu64 ",%zu,%zu\n", bench->data.cases[c].id,
                    bench->settings[i].name, r->tokens, r->log_probability, r->bytes, r->values, queries,
                    found);
        }
    bool failed = ferror(file);
    if (fclose(file) != 0 || failed)
        return error_set(error, -EIO, "%s: cannot be written", bench->csv);
    return 0;
}

/* ---- running ---- */

static int prepare(struct bench *bench, struct error *error)
{
    size_t cases = bench->data.count, queries = 0;
    for (size_t c = 0; c < cases; c++)
        queries += bench->data.cases[c].query_count;
    bench->results = mem_calloc(cases * bench->setting_count, sizeof *bench->results);
    bench->found = mem_calloc(queries * bench->setting_count + 1, 1);
    if (!bench->results || !bench->found)
        return error_set(error, -ENOMEM, "out of memory");
    uint8_t *at = bench->found;
    for (size_t i = 0; i < cases * bench->setting_count; i++) {
        bench->results[i].found = at;
        at += bench->data.cases[i / bench->setting_count].query_count;
    }
    return 0;
}

static int run_all(struct bench *bench, struct error *error)
{
    struct quality_runner runner = {0};
    uint64_t start = clock_ns();
    int code = quality_open(&runner, bench->model, (unsigned)bench->threads, error);
    size_t each = bench->setting_count, all = bench->data.count * each;
    for (size_t i = 0; i < all && code == 0 && !interrupted; i++) {
        double spent = clock_ms_since(start) / 1e3;
        bench_progress("quality: conversation %zu of %zu, %s; %.0f s left", i / each + 1, bench->data.count,
                       bench->settings[i % each].name, i ? spent / (double)i * (double)(all - i) : 0);
        code = quality_run(&runner, &bench->settings[i % each], &bench->data.cases[i / each],
                           &bench->results[i], error);
        if (code == 0 && i % each + 1 == each)
            bench->done = i / each + 1;
    }
    bench->seconds = clock_ms_since(start) / 1e3;
    bench_progress(NULL);
    quality_close(&runner);
    return code;
}

/* NAME[@RATIO][xROUNDS] */
static int take_setting(char *text, struct quality_setting *out)
{
    uint64_t rounds = 0;
    snprintf(out->name, sizeof out->name, "%s", text);
    char *at = strchr(text, '@'), *times = strchr(at ? at : text, 'x');
    if (times)
        *times++ = 0;
    if (at)
        *at++ = 0;
    if (times && parse_u64(times, 1, ROUNDS_MAX, &rounds) < 0)
        return -EINVAL;
    for (size_t i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].name, text) == 0) {
            out->write_level = kinds[i].write_level;
            out->rules = kinds[i].rules;
            out->rounds = (unsigned)rounds;
            bool rated = out->rules.rule == LEVELS_PAPER || out->rules.rule == LEVELS_DAMAGE;
            if (at && (!rated || parse_double(at, 0, 1, &out->rules.ratio) < 0 || out->rules.ratio <= 0))
                return -EINVAL;
            return 0;
        }
    return -ENOENT;
}

static int take_settings(struct bench *bench)
{
    int status = BENCH_GO;
    char *copy = mem_strdup(bench->settings_text), *rest = NULL;
    for (char *name = copy ? strtok_r(copy, ",", &rest) : NULL; name && status == BENCH_GO;
         name = strtok_r(NULL, ",", &rest)) {
        char whole[sizeof bench->settings[0].name];
        snprintf(whole, sizeof whole, "%s", name);
        if (bench->setting_count == SETTINGS_MAX)
            status = bench_misuse("quality", "--settings: at most %d", SETTINGS_MAX);
        else if (strlen(name) >= sizeof whole ||
                 take_setting(name, &bench->settings[bench->setting_count++]) < 0)
            status = bench_misuse("quality", "--settings: '%s' is no setting (see llms-bench quality --help)",
                                  whole);
    }
    if (status == BENCH_GO && bench->setting_count == 0)
        status = bench_misuse("quality", "--settings: none is given");
    mem_free(copy);
    return status;
}

static int run_command(struct bench *bench, bool json)
{
    struct error error = {0};
    struct sigaction action = {.sa_handler = interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    int code = quality_data_read(bench->data_path, (size_t)bench->cases, &bench->data, &error);
    if (code == 0)
        code = prepare(bench, &error);
    if (code == 0)
        code = run_all(bench, &error);
    if (bench->done) { /* also what there is of a run that did not end */
        if (json && print_json(bench) < 0)
            code = error_set(&error, -EIO, "the results cannot be written");
        else if (!json)
            print_text(bench);
        if (bench->csv && code == 0)
            code = write_csv(bench, &error);
    }
    if (code == 0 && bench->done < bench->data.count)
        code = error_set(&error, -EINTR, "interrupted: %zu of %zu conversations were run", bench->done,
                         bench->data.count);
    mem_free(bench->results);
    mem_free(bench->found);
    quality_data_deinit(&bench->data);
    return code < 0 ? bench_fail("quality", &error) : 0;
}

static char *explain(void)
{
    struct buffer text = {0};
    int code = buffer_append_text(
        &text, "Each turn is computed on chunks lowered after the turns before, and every token is scored; "
               "then each\nquestion is asked on a fork of the whole conversation. A setting is "
               "NAME[@RATIO][xROUNDS]: the ratio of INT8\nthat its chunks may take, and how often "
               "everything leaves memory and comes back, half of it recomputed:\n");
    for (size_t i = 0; i < KINDS && code == 0; i++)
        code = buffer_printf(&text, "  %-10s %s\n", kinds[i].name, kinds[i].help);
    if (code == 0)
        code = buffer_printf(&text, "default: %s\n", default_settings);
    if (code < 0)
        buffer_deinit(&text);
    return text.data;
}

int bench_quality(int argc, char **argv)
{
    struct bench bench = {.settings_text = default_settings, .cases = 40};
    bool json = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &bench.model, "F", "the GGUF", .required = true},
        {"data", BENCH_TEXT, &bench.data_path, "FILE", "conversations with questions, a JSON object a line",
         .required = true},
        {"cases", BENCH_NUMBER, &bench.cases, "N", "conversations, from the first on (default 40)", 1,
         1000000},
        {"settings", BENCH_TEXT, &bench.settings_text, "S[,S..]", "the first is what others are compared to"},
        {"csv", BENCH_TEXT, &bench.csv, "FILE", "also a line for every conversation and setting"},
        {"threads", BENCH_NUMBER, &bench.threads, "T", "compute threads (default: one per CPU)", 1, 1024},
        {"json", BENCH_FLAG, &json, NULL, "one JSON document"},
    };
    char *more = explain();
    const struct bench_usage usage = {"quality",
                                      "Measures perplexity and recall against the bits that KV is kept in.",
                                      more, options, sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status == BENCH_GO)
        status = take_settings(&bench);
    if (status == BENCH_GO)
        status = run_command(&bench, json);
    mem_free(more);
    return status;
}
