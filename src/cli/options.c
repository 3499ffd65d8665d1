/* The command line: one table of options, each with the commands that take it. Options may stand before or
 * after the command; "--" ends them. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/parse.h"
#include "cli/cli.h"

enum { GLOBAL = 0 };

static const struct spec {
    const char *name;
    const char *value; /* what it takes; NULL: nothing */
    const char *help;
    unsigned group; /* GLOBAL or of enum cli_group */
} specs[] = {
    {"app", "NAME", "the app to act as (cli)", GLOBAL},
    {"address", "ADDRESS", "unix:PATH or tcp:HOST:PORT of the daemon", GLOBAL},
    {"json", NULL, "print the daemon's JSON document and nothing else", GLOBAL},
    {"help", NULL, "print this; also -h", GLOBAL},
    {"version", NULL, "print the version; also -V", GLOBAL},
    {"ctx", "ID", "go on in this context", CLI_TAKES_CONTEXT},
    {"name", "NAME", "a name for the context", CLI_TAKES_NAME},
    {"system", "TEXT", "the context's system prompt", CLI_TAKES_SYSTEM},
    {"turns", NULL, "all that was said", CLI_TAKES_TURNS},
    {"special", NULL, "read special tokens such as <|im_start|> as such", CLI_TAKES_SPECIAL},
    {"stats", NULL, "after a reply, what it cost, on standard error", CLI_TAKES_CALL},
    {"max-tokens", "N", "end the reply after N tokens", CLI_TAKES_CALL},
    {"temperature", "T", "0: always the likeliest token", CLI_TAKES_CALL},
    {"top-k", "K", "choose among the K likeliest; 0: off", CLI_TAKES_CALL},
    {"top-p", "P", "choose among the likeliest that sum to P; 1: off", CLI_TAKES_CALL},
    {"min-p", "P", "drop what is less likely than P times the likeliest; 0: off", CLI_TAKES_CALL},
    {"repeat-penalty", "R", "make what was said lately less likely; 1: off", CLI_TAKES_CALL},
    {"seed", "N", "the same seed gives the same reply", CLI_TAKES_CALL},
    {"stop", "TEXT", "end the reply before TEXT (may be repeated)", CLI_TAKES_CALL},
    {"when-full", "slide|refuse", "a full context drops its oldest turns, or fails", CLI_TAKES_CALL},
};
enum { SPECS = sizeof specs / sizeof *specs };

static int usage_error(const struct cli *cli, const char *what, const char *which)
{
    fprintf(stderr, "llms%s%s: %s%s%s%s (see llms --help)\n", *cli->command ? " " : "", cli->command, what,
            *which ? " '" : "", which, *which ? "'" : "");
    return CLI_USAGE;
}

static void print_options(unsigned groups, bool global)
{
    for (size_t i = 0; i < SPECS; i++) {
        char left[40];
        if (specs[i].group == GLOBAL ? !global : !(specs[i].group & groups))
            continue;
        snprintf(left, sizeof left, "--%s%s%s", specs[i].name, specs[i].value ? " " : "",
                 specs[i].value ? specs[i].value : "");
        printf("  %-26s  %s\n", left, specs[i].help);
    }
}

static void print_help(const struct cli_command *command)
{
    if (command) {
        printf("usage: llms %s %s\n%s\n\n", command->name, command->synopsis, command->summary);
        print_options(command->groups, true);
        return;
    }
    printf("usage: llms [OPTION]... COMMAND ...\n"
           "Talk to llmsd, the language model service of this machine.\n\ncommands:\n");
    for (command = cli_commands; command->name; command++) {
        char left[56];
        snprintf(left, sizeof left, "%s %s", command->name, command->synopsis);
        printf("  %-36s  %s\n", left, command->summary);
    }
    printf("\nCTX is a context's id or the start of one. Options, for all commands:\n");
    print_options(0, true);
    printf("for chat and call:\n");
    print_options(CLI_TAKES_CALL, false);
    printf("\nExit status: 0, 1 for failure, 2 for bad usage.\n");
}

static int set_real(const char *text, double high, double *value)
{
    return parse_double(text, 0, high, value);
}

/* Takes one of the ways to generate. -EINVAL: not a value for it. */
static int set_call_option(struct cli *cli, const char *name, const char *value)
{
    uint64_t whole = 0;
    int code = 0;
    if (strcmp(name, "max-tokens") == 0) {
        code = parse_u64(value, 1, UINT32_MAX, &whole);
        cli->call.max_tokens = (uint32_t)whole;
    } else if (strcmp(name, "temperature") == 0) {
        code = set_real(value, 100, &cli->call.temperature);
    } else if (strcmp(name, "top-k") == 0) {
        code = parse_u64(value, 0, INT32_MAX, &whole);
        cli->call.top_k = (int)whole;
    } else if (strcmp(name, "top-p") == 0) {
        code = set_real(value, 1, &cli->call.top_p);
    } else if (strcmp(name, "min-p") == 0) {
        code = set_real(value, 1, &cli->call.min_p);
    } else if (strcmp(name, "repeat-penalty") == 0) {
        code = set_real(value, 100, &cli->call.repeat_penalty);
    } else if (strcmp(name, "seed") == 0) {
        code = parse_u64(value, 0, INT64_MAX, &whole);
        cli->call.seed = (int64_t)whole;
    } else if (strcmp(name, "stop") == 0) {
        size_t count = 0;
        while (cli->stops[count])
            count++;
        if (count == CLI_STOPS || !*value)
            return -EINVAL;
        cli->stops[count] = value;
        cli->call.stop = cli->stops;
    } else if (strcmp(name, "when-full") == 0) {
        cli->call.refuse_when_full = strcmp(value, "refuse") == 0;
        code = cli->call.refuse_when_full || strcmp(value, "slide") == 0 ? 0 : -EINVAL;
    }
    return code;
}

static int set_option(struct cli *cli, const char *name, const char *value)
{
    static const struct {
        const char *name;
        size_t offset;
        bool flag;
    } plain[] = {
        {"app", offsetof(struct cli, app), false},       {"address", offsetof(struct cli, address), false},
        {"ctx", offsetof(struct cli, context), false},   {"name", offsetof(struct cli, name), false},
        {"system", offsetof(struct cli, system), false}, {"json", offsetof(struct cli, json), true},
        {"turns", offsetof(struct cli, turns), true},    {"special", offsetof(struct cli, special), true},
        {"stats", offsetof(struct cli, stats), true},
    };
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (strcmp(plain[i].name, name) != 0)
            continue;
        if (plain[i].flag)
            *(bool *)((char *)cli + plain[i].offset) = true;
        else
            *(const char **)((char *)cli + plain[i].offset) = value;
        return 0;
    }
    return set_call_option(cli, name, value);
}

static const struct cli_command *find_command(const char *name)
{
    for (const struct cli_command *command = cli_commands; command->name; command++)
        if (strcmp(command->name, name) == 0)
            return command;
    return NULL;
}

/* Goes through argv; marks the options that were given and sets them. -1, or an exit status. */
static int take_options(struct cli *cli, int argc, char **argv, bool given[SPECS])
{
    struct option long_options[SPECS + 1] = {{0}};
    for (size_t i = 0; i < SPECS; i++)
        long_options[i] = (struct option){specs[i].name, specs[i].value ? required_argument : no_argument,
                                          NULL, 256 + (int)i};
    opterr = 0;
    for (;;) {
        int at = optind, option = getopt_long(argc, argv, ":hV", long_options, NULL);
        if (option == -1)
            return -1;
        const char *word = at < argc ? argv[optind - 1] : "";
        if (option == ':')
            return usage_error(cli, "a value is missing after", word);
        if (option == '?')
            return usage_error(cli, "there is no option", word);
        size_t i = option == 'h' ? 3 : option == 'V' ? 4 : (size_t)option - 256;
        given[i] = true;
        if (set_option(cli, specs[i].name, optarg) < 0) {
            char what[64];
            snprintf(what, sizeof what, "--%s wants %s, not", specs[i].name, specs[i].value);
            return usage_error(cli, what, optarg);
        }
    }
}

int options_parse(struct cli *cli, int argc, char **argv, const struct cli_command **out)
{
    bool given[SPECS] = {false};
    int status = take_options(cli, argc, argv, given);
    if (status >= 0)
        return status;
    const struct cli_command *command = optind < argc ? find_command(argv[optind]) : NULL;
    if (given[4]) {
        printf("llms %s\n", LLMS_VERSION);
        return CLI_OK;
    }
    if (given[3]) {
        print_help(command);
        return CLI_OK;
    }
    if (optind == argc)
        return usage_error(cli, "a command is missing", "");
    if (!command)
        return usage_error(cli, "there is no command", argv[optind]);
    cli->command = command->name;
    cli->arguments = argv + optind + 1;
    cli->count = argc - optind - 1;
    for (size_t i = 0; i < SPECS; i++)
        if (given[i] && specs[i].group != GLOBAL && !(specs[i].group & command->groups)) {
            char name[40];
            snprintf(name, sizeof name, "--%s", specs[i].name);
            return usage_error(cli, "takes no option", name);
        }
    if (cli->count < command->least || (command->most >= 0 && cli->count > command->most)) {
        fprintf(stderr, "usage: llms %s %s\n", command->name, command->synopsis);
        return CLI_USAGE;
    }
    *out = command;
    return -1;
}
