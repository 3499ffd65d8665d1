/* Options of the commands, from tables. See bench.h. */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/parse.h"
#include "bench.h"

enum { OPTIONS_MAX = 32, FIRST_CODE = 256 };

int bench_fail(const char *command, const struct error *error)
{
    bench_progress(NULL);
    fprintf(stderr, "llms-bench %s: %s\n", command, error->text);
    return 1;
}

int bench_misuse(const char *command, const char *format, ...)
{
    va_list args;
    bench_progress(NULL);
    fprintf(stderr, "llms-bench %s: ", command);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return 2;
}

void bench_progress(const char *format, ...)
{
    static bool shown;
    if (!isatty(STDERR_FILENO) || (!format && !shown))
        return;
    fputs("\r\033[K", stderr);
    shown = format != NULL;
    if (format) {
        va_list args;
        va_start(args, format);
        vfprintf(stderr, format, args);
        va_end(args);
    }
    fflush(stderr);
}

static void print_help(const struct bench_usage *usage)
{
    printf("usage: llms-bench %s [OPTION]...\n%s\n\n", usage->command, usage->summary);
    for (size_t i = 0; i < usage->count; i++) {
        const struct bench_option *option = &usage->options[i];
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", option->name, option->argument ? " " : "",
                 option->argument ? option->argument : "");
        printf("  %-22s %s\n", left, option->help);
    }
    printf("  %-22s %s\n", "--help", "this text");
    if (usage->more)
        printf("\n%s", usage->more);
}

static int parse_number(const struct bench_option *option, const char *text, uint64_t *value)
{
    bool any = option->low == 0 && option->high == 0;
    return parse_u64(text, option->low, any ? UINT64_MAX : option->high, value);
}

static int parse_list(const struct bench_option *option, const char *text, struct bench_list *list)
{
    struct bench_list read = {0};
    while (true) {
        char item[32];
        size_t length = strcspn(text, ",");
        if (length >= sizeof item || read.count == BENCH_LIST_MAX)
            return -1;
        memcpy(item, text, length);
        item[length] = 0;
        if (parse_number(option, item, &read.values[read.count++]) < 0)
            return -1;
        if (text[length] == 0)
            break;
        text += length + 1;
    }
    *list = read;
    return 0;
}

static int take_value(const struct bench_usage *usage, const struct bench_option *option, const char *text)
{
    int code = 0;
    switch (option->kind) {
    case BENCH_FLAG:
        *(bool *)option->target = true;
        break;
    case BENCH_TEXT:
        *(const char **)option->target = text;
        break;
    case BENCH_NUMBER:
        code = parse_number(option, text, option->target);
        break;
    case BENCH_SIZE:
        code = parse_size(text, option->target);
        break;
    case BENCH_NUMBERS:
        code = parse_list(option, text, option->target);
        break;
    }
    if (code == 0)
        return BENCH_GO;
    if (option->kind == BENCH_SIZE)
        return bench_misuse(usage->command, "--%s: '%s' is not a size (like 4096, 40M, 1.5G)", option->name,
                            text);
    if (option->low || option->high)
        return bench_misuse(usage->command, "--%s: '%s' is not %s from %llu to %llu", option->name, text,
                            option->kind == BENCH_NUMBERS ? "a list (at most 16, commas between) of numbers"
                                                          : "a number",
                            (unsigned long long)option->low, (unsigned long long)option->high);
    return bench_misuse(usage->command, "--%s: '%s' is not a number", option->name, text);
}

static int check_required(const struct bench_usage *usage)
{
    for (size_t i = 0; i < usage->count; i++)
        if (usage->options[i].required && !*(const char *const *)usage->options[i].target)
            return bench_misuse(usage->command, "--%s %s is missing (see llms-bench %s --help)",
                                usage->options[i].name, usage->options[i].argument, usage->command);
    return BENCH_GO;
}

int bench_options(const struct bench_usage *usage, int argc, char **argv)
{
    struct option table[OPTIONS_MAX + 2] = {{"help", no_argument, NULL, 'h'}};
    if (usage->count > OPTIONS_MAX)
        abort();
    for (size_t i = 0; i < usage->count; i++)
        table[i + 1] = (struct option){usage->options[i].name,
                                       usage->options[i].kind == BENCH_FLAG ? no_argument : required_argument,
                                       NULL, FIRST_CODE + (int)i};
    opterr = 0;
    optind = 1;
    while (true) {
        int at = optind, choice = getopt_long(argc, argv, ":h", table, NULL);
        if (choice == -1)
            break;
        if (choice == 'h') {
            print_help(usage);
            return 0;
        }
        if (choice == ':')
            return bench_misuse(usage->command, "option '%s' needs a value", argv[at]);
        if (choice == '?')
            return bench_misuse(usage->command, "unknown option '%s' (see llms-bench %s --help)", argv[at],
                                usage->command);
        int status = take_value(usage, &usage->options[choice - FIRST_CODE], optarg);
        if (status != BENCH_GO)
            return status;
    }
    if (optind < argc)
        return bench_misuse(usage->command, "unexpected argument '%s'", argv[optind]);
    return check_required(usage);
}
