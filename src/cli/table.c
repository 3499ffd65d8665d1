/* Output for people: aligned columns, sizes, times, what a call cost. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "cli/cli.h"

/* Characters, near enough to the columns a terminal gives them. */
static size_t width_of(const char *text)
{
    size_t width = 0, length = strlen(text), at = 0;
    uint32_t codepoint;
    while (at < length) {
        size_t bytes = utf8_decode(text + at, length - at, &codepoint);
        at += bytes ? bytes : length - at;
        width++;
    }
    return width;
}

static void print_cell(const char *text, size_t width, bool right, bool last)
{
    size_t own = width_of(text), padding = width > own ? width - own : 0;
    if (right)
        printf("%*s", (int)padding, "");
    for (; *text; text++)
        putchar((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
    if (!last)
        printf("%*s", right ? 2 : (int)padding + 2, "");
}

void table_print(const char *const *headers, size_t columns, const char *const *cells, size_t rows)
{
    enum { COLUMNS = 16 };
    size_t widths[COLUMNS] = {0};
    columns = columns < COLUMNS ? columns : COLUMNS;
    for (size_t c = 0; c < columns; c++) {
        widths[c] = width_of(headers[c] + (*headers[c] == '>'));
        for (size_t r = 0; r < rows; r++) {
            size_t width = width_of(cells[r * columns + c]);
            widths[c] = width > widths[c] ? width : widths[c];
        }
    }
    for (size_t r = 0; r <= rows; r++) {
        for (size_t c = 0; c < columns; c++) {
            bool right = *headers[c] == '>';
            const char *text = r == 0 ? headers[c] + right : cells[(r - 1) * columns + c];
            print_cell(text, widths[c], right, c + 1 == columns);
        }
        putchar('\n');
    }
}

void format_mib(char *text, size_t bytes, uint64_t size)
{
    snprintf(text, bytes, "%.1f MiB", (double)size / (1 << 20));
}

void format_duration(char *text, size_t bytes, uint64_t milliseconds)
{
    uint64_t s = milliseconds / 1000;
    if (s < 120)
        snprintf(text, bytes, "%" PRIu64 " s", s);
    else if (s < 120 * 60)
        snprintf(text, bytes, "%" PRIu64 " min", s / 60);
    else if (s < 48 * 3600)
        snprintf(text, bytes, "%" PRIu64 " h", s / 3600);
    else
        snprintf(text, bytes, "%" PRIu64 " days", s / 86400);
}

void format_ago(char *text, size_t bytes, int64_t then_ms)
{
    char duration[32];
    int64_t ago = clock_wall_ms() - then_ms;
    format_duration(duration, sizeof duration, ago > 0 ? (uint64_t)ago : 0);
    snprintf(text, bytes, "%s ago", duration);
}

void print_stats(const struct llms_call_result *r)
{
    fprintf(stderr,
            "[%" PRIu64 " prompt + %" PRIu64 " reply tokens (%s), context %" PRIu64
            "; waited %.1f ms, switch %.1f ms, "
            "first token %.1f ms, %.1f tokens/s; chunks: %" PRIu64 " resident, %" PRIu64 " loaded, %" PRIu64
            " recomputed",
            r->prompt_tokens, r->reply_tokens, *r->finish ? r->finish : "?", r->context_tokens, r->queue_ms,
            r->switch_ms, r->ttft_ms, r->generate_tokens_per_s, r->chunks_resident, r->chunks_loaded,
            r->chunks_recomputed);
    if (r->turns_dropped)
        fprintf(stderr, "; %" PRIu64 " oldest turns dropped", r->turns_dropped);
    fputs("]\n", stderr);
}
