/* What llms-bench speed tells: figures with their bounds, for people and as JSON. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "speed.h"

void spread_add(struct spread *spread, double value)
{
    if (spread->count < SPEED_RUNS_MAX)
        spread->values[spread->count++] = value;
}

static int compare(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

void spread_sort(struct spread *spread)
{
    qsort(spread->values, spread->count, sizeof(double), compare);
}

double spread_median(const struct spread *spread)
{
    size_t half = spread->count / 2;
    if (spread->count == 0)
        return 0;
    return spread->count % 2 ? spread->values[half] : (spread->values[half - 1] + spread->values[half]) / 2;
}

static double least(const struct spread *spread)
{
    return spread->count ? spread->values[0] : 0;
}

static double most(const struct spread *spread)
{
    return spread->count ? spread->values[spread->count - 1] : 0;
}

double speed_bound(const struct speed_test *test)
{
    double bound = test->compute_bound, memory = spread_median(&test->memory);
    if (!test->from_memory || memory <= 0)
        return bound;
    memory = memory / test->bytes * (test->generate ? 1 : (double)test->tokens);
    return bound > 0 && bound < memory ? bound : memory;
}

/* The share of the memory's rate that a generating test reads at; 0: memory is no bound. */
static double memory_share(const struct speed_test *test)
{
    double memory = spread_median(&test->memory);
    if (!test->generate || !test->from_memory || memory <= 0)
        return 0;
    return spread_median(&test->ours) * test->bytes / memory;
}

/* ---- JSON ---- */

static void print_spread(const char *key, const struct spread *spread)
{
    printf("\"%s\":{\"median\":%.3f,\"min\":%.3f,\"max\":%.3f}", key, spread_median(spread), least(spread),
           most(spread));
}

static void print_string(const char *text)
{
    putchar('"');
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            printf("\\u%04x", (unsigned char)*text);
        else
            putchar(*text);
    putchar('"');
}

static void print_busy(const struct speed *speed, const struct speed_test *test)
{
    printf(",\"busy\":{\"processes\":%" PRIu64 ",", speed->busy);
    print_spread("tokens_per_s", &test->busy);
    printf(",\"share\":%.3f", spread_median(&test->busy) / spread_median(&test->ours));
    if (test->peer_busy.count) {
        printf(",\"peer_tokens_per_s\":%.3f,", spread_median(&test->peer_busy));
        print_spread("peer", &test->peer_busy);
        printf(",\"peer_share\":%.3f", spread_median(&test->peer_busy) / spread_median(&test->peer));
    }
    putchar('}');
}

static void print_test(const struct speed *speed, const struct speed_test *test)
{
    printf("{\"kind\":\"%s\",\"model\":", test->generate ? "generate" : "prompt");
    print_string(test->model);
    printf(",\"type\":\"%s\",\"isa\":\"%s\",\"kv_level\":%" PRIu64 ",\"tokens\":%" PRIu64
           ",\"depth\":%" PRIu64 ",\"threads\":%u,",
           test->type, test->isa, speed->level, test->tokens, test->depth, test->threads);
    print_spread("tokens_per_s", &test->ours);
    if (speed_bound(test) > 0)
        printf(",\"bound_tokens_per_s\":%.3f", speed_bound(test));
    printf(",\"memory_gb_s\":%.2f", spread_median(&test->memory) / 1e9);
    if (memory_share(test) > 0)
        printf(",\"memory_share\":%.3f", memory_share(test));
    if (test->peer.count) {
        printf(",\"peer_tokens_per_s\":%.3f,", spread_median(&test->peer));
        printf("\"peer_range_tokens_per_s\":{\"min\":%.3f,\"max\":%.3f}", least(&test->peer),
               most(&test->peer));
        printf(",\"peer_ratio\":%.3f", spread_median(&test->ours) / spread_median(&test->peer));
    }
    if (test->dense.count) {
        printf(",\"density\":{");
        print_spread("tokens_per_s", &test->dense);
        printf(",\"ratio\":%.4f}", spread_median(&test->dense) / spread_median(&test->ours));
    }
    if (test->busy.count)
        print_busy(speed, test);
    putchar('}');
}

static double read_once_ms(const struct speed_cold *start)
{
    return (double)start->file_bytes / spread_median(&start->storage) * 1e3;
}

static void print_start(const struct speed_cold *start)
{
    printf("{\"model\":");
    print_string(start->model);
    printf(",\"threads\":%u,\"file_bytes\":%" PRIu64 ",", start->threads, start->file_bytes);
    print_spread("first_token_ms", &start->cold);
    putchar(',');
    print_spread("cached_first_token_ms", &start->warm);
    printf(",\"bound_ms\":%.3f,\"storage_mb_s\":%.1f}", read_once_ms(start),
           spread_median(&start->storage) / 1e6);
}

void speed_print_json(const struct speed *speed)
{
    printf("{\"runs\":[");
    for (size_t i = 0; i < speed->count; i++) {
        printf("%s\n ", i ? "," : "");
        print_test(speed, &speed->tests[i]);
    }
    printf("\n]");
    for (size_t i = 0; i < speed->start_count; i++) {
        printf("%s\n ", i ? "," : ",\"cold\":[");
        print_start(&speed->starts[i]);
    }
    puts(speed->start_count ? "\n]}" : "}");
}

/* ---- text ---- */

static void print_rate(const struct spread *spread)
{
    char range[32];
    snprintf(range, sizeof range, "%.1f..%.1f", least(spread), most(spread));
    printf(" %8.2f %15s", spread_median(spread), range);
}

static void print_percent(double share)
{
    if (share > 0)
        printf(" %5.0f%%", 100 * share);
    else
        printf(" %6s", "");
}

static void print_row(const struct speed_test *test)
{
    char kind[32], bound[24] = "";
    snprintf(kind, sizeof kind, "%s %" PRIu64, test->generate ? "generate" : "prompt", test->tokens);
    if (speed_bound(test) > 0)
        snprintf(bound, sizeof bound, "%.2f", speed_bound(test));
    printf("%-6s %-13s %6" PRIu64 " %7u", test->type, kind, test->depth, test->threads);
    print_rate(&test->ours);
    printf(" %8s", bound);
    print_percent(memory_share(test));
    if (test->dense.count) {
        print_rate(&test->dense);
        print_percent(spread_median(&test->dense) / spread_median(&test->ours));
    }
    if (test->peer.count) {
        print_rate(&test->peer);
        printf(" %5.2f", spread_median(&test->ours) / spread_median(&test->peer));
    }
    if (test->busy.count) {
        print_rate(&test->busy);
        print_percent(spread_median(&test->busy) / spread_median(&test->ours));
    }
    if (test->peer_busy.count) {
        print_rate(&test->peer_busy);
        print_percent(spread_median(&test->peer_busy) / spread_median(&test->peer));
    }
    putchar('\n');
}

static void print_heading(const struct speed *speed)
{
    printf("%-6s %-13s %6s %7s %8s %15s %8s %6s", "type", "tokens", "depth", "threads", "tokens/s", "range",
           "bound", "memory");
    if (speed->density)
        printf(" %8s %15s %6s", "density", "range", "kept");
    if (speed->peer)
        printf(" %8s %15s %5s", "peer", "range", "ratio");
    if (speed->busy)
        printf(" %8s %15s %6s", "busy", "range", "kept");
    if (speed->busy && speed->peer)
        printf(" %8s %15s %6s", "peer", "range", "kept");
    putchar('\n');
}

void speed_print_text(const struct speed *speed)
{
    const char *model = NULL;
    for (size_t i = 0; i < speed->count; i++) {
        if (speed->tests[i].model != model) {
            model = speed->tests[i].model;
            printf("%s, KV of %" PRIu64 " bits, %s, memory reads %.1f GB/s with %u threads\n", model,
                   speed->level, speed->tests[i].isa, spread_median(&speed->tests[i].memory) / 1e9,
                   speed->tests[i].threads);
            print_heading(speed);
        }
        print_row(&speed->tests[i]);
    }
    for (size_t i = 0; i < speed->start_count; i++) {
        const struct speed_cold *start = &speed->starts[i];
        printf("%s: first token after a cold start %.0f ms (%.0f .. %.0f) with %u threads; reading the file "
               "once: %.0f ms at %.0f MB/s; cached: %.0f ms\n",
               start->model, spread_median(&start->cold), least(&start->cold), most(&start->cold),
               start->threads, read_once_ms(start), spread_median(&start->storage) / 1e6,
               spread_median(&start->warm));
    }
}
