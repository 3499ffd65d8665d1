#include "daemon/options.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/parse.h"
#include "kv/policy.h"
#include "os/file.h"
#include "os/socket.h"

enum { CONFIG_LIMIT_BYTES = 1 << 20, WORDS_BYTES = 24 };

struct option {
    const char *name;     /* --name, and in the configuration file (where in_file) */
    const char *argument; /* as the help shows it; NULL: none */
    const char *help;
    int (*set)(const struct option *option, const char *value, void *place); /* 0, or -EINVAL */
    size_t offset;
    uint64_t low, high;
    const char *allowed; /* what the value must be, in words */
    bool in_file;
};

/* ---- setters ---- */

static int set_path(const struct option *option, const char *value, void *place)
{
    (void)option;
    if (!*value || strlen(value) >= PATH_MAX)
        return -EINVAL;
    memcpy(place, value, strlen(value) + 1);
    return 0;
}

static int set_flag(const struct option *option, const char *value, void *place)
{
    (void)option;
    (void)value;
    *(bool *)place = true;
    return 0;
}

static int set_listen(const struct option *option, const char *value, void *place)
{
    struct options *options = place;
    if (!os_listen_address_valid(value) || options->listen_count == OPTIONS_LISTENERS)
        return -EINVAL;
    int code = set_path(option, value, options->listen[options->listen_count]);
    if (code == 0)
        options->listen_count++;
    return code;
}

static int set_size(const struct option *option, const char *value, void *place)
{
    uint64_t bytes;
    if (parse_size(value, &bytes) < 0 || bytes < option->low)
        return -EINVAL;
    *(uint64_t *)place = bytes;
    return 0;
}

static int set_number(const struct option *option, const char *value, void *place)
{
    return parse_u64(value, option->low, option->high, place);
}

/* "16", or "8" and what it may be lowered to, falling: "8,4", "8,4,3,2". As bits (LEVELS_*). */
static int set_levels(const struct option *option, const char *value, void *place)
{
    static const struct {
        char digit;
        uint64_t bit;
    } lower[] = {{'4', LEVELS_4}, {'3', LEVELS_3}, {'2', LEVELS_2}};
    uint64_t bits = LEVELS_8;
    (void)option;
    if (strcmp(value, "16") == 0) {
        *(uint64_t *)place = LEVELS_16;
        return 0;
    }
    if (*value++ != '8')
        return -EINVAL;
    for (size_t i = 0; i < sizeof lower / sizeof *lower; i++)
        if (value[0] == ',' && value[1] == lower[i].digit) {
            bits |= lower[i].bit;
            value += 2;
        }
    *(uint64_t *)place = bits;
    return *value ? -EINVAL : 0;
}

static int set_ratio(const struct option *option, const char *value, void *place)
{
    (void)option;
    return parse_double(value, 0.25, 2, place);
}

static int set_policy(const struct option *option, const char *value, void *place)
{
    return kv_policy_find(value) ? set_path(option, value, place) : -EINVAL;
}

static int set_evict(const struct option *option, const char *value, void *place)
{
    enum evict_order order;
    return evict_order_find(value, &order) == 0 ? set_path(option, value, place) : -EINVAL;
}

static int set_log_level(const struct option *option, const char *value, void *place)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    (void)option;
    for (int i = 0; i < 4; i++)
        if (strcmp(value, names[i]) == 0) {
            *(enum log_level *)place = (enum log_level)i;
            return 0;
        }
    return -EINVAL;
}

#define AT(member) offsetof(struct options, member)
static const struct option table[] = {
    {"model", "FILE.gguf", "the model; else $LLMS_MODEL, else the one that came with LLMS", set_path,
     AT(model), .allowed = "a file", .in_file = true},
    {"listen", "ADDRESS", "unix:PATH, tcp:127.0.0.1:PORT or tcp:[::1]:PORT; may be given again", set_listen,
     0,
     .allowed = "unix:PATH (at most 107 bytes), tcp:127.0.0.1:PORT or tcp:[::1]:PORT, given at most 8 times",
     .in_file = true},
    {"state-dir", "DIRECTORY", "where conversations are kept", set_path, AT(state_directory),
     .allowed = "a directory", .in_file = true},
    {"kv-budget", "SIZE", "memory for the KV cache, all apps together (256M)", set_size, AT(kv_budget_bytes),
     .low = 1 << 16, .allowed = "a size such as 256M or 1.5G, at least 64K", .in_file = true},
    {"kv-levels", "LEVELS",
     "bits a KV value is kept in: 16, or 8 and what it may be lowered to (the policy's)", set_levels,
     AT(kv_levels), .allowed = "16, or 8 and some of 4, 3 and 2, falling, such as 8,4,3,2", .in_file = true},
    {"kv-ratio", "R", "KV bytes on average, of INT8 (0.5: 4 bits a value; the policy's)", set_ratio,
     AT(kv_ratio), .allowed = "a number from 0.25 to 2", .in_file = true},
    {"policy", "NAME", "how KV memory is managed: llms, paper, lmk, swapping, vllm-s, ... (llms)", set_policy,
     AT(policy),
     .allowed =
         "llms, paper, lmk, swapping, vllm-s, vllm-sq, int4, no-compression, no-pipeline or no-lifecycle",
     .in_file = true},
    {"evict", "ORDER", "what leaves memory first: cost, lctru or lru (the policy's)", set_evict, AT(evict),
     .allowed = "cost, lctru or lru", .in_file = true},
    {"context-length", "N", "tokens of a context; 0: the model's own (0)", set_number, AT(context_length),
     .high = 1 << 24, .allowed = "a whole number from 0 to 16777216", .in_file = true},
    {"contexts-per-app", "N", "contexts an app may have; 0: no limit (64)", set_number, AT(contexts_per_app),
     .high = 1 << 24, .allowed = "a whole number from 0 to 16777216", .in_file = true},
    {"threads", "N", "compute threads; 0: one per CPU (0)", set_number, AT(threads), .high = 1024,
     .allowed = "a whole number from 0 to 1024", .in_file = true},
    {"queue-limit", "N", "calls that may wait, all apps together (256)", set_number, AT(queue_limit),
     .low = 1, .high = 1 << 20, .allowed = "a whole number from 1 to 1048576", .in_file = true},
    {"log-level", "LEVEL", "error, warning, info or debug (info)", set_log_level, AT(log_level),
     .allowed = "error, warning, info or debug", .in_file = true},
    {"config", "FILE", "read options from FILE, lines of NAME = VALUE", set_path, AT(config),
     .allowed = "a file"},
    {"version", NULL, "print the version", set_flag, AT(version)},
    {"help", NULL, "print this", set_flag, AT(help)},
};
enum { OPTION_COUNT = sizeof table / sizeof *table };

static const struct option *find(const char *name, size_t length)
{
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (strlen(table[i].name) == length && memcmp(table[i].name, name, length) == 0)
            return &table[i];
    return NULL;
}

/* ---- the command line ---- */

static int parse_arguments(int argc, char **argv, struct options *out, struct error *error)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "-h") == 0)
            word = "--help";
        if (strncmp(word, "--", 2) != 0)
            return error_set(error, -EINVAL, "unexpected argument \"%s\" (see --help)", word);
        const char *name = word + 2, *equals = strchr(name, '='), *value = NULL;
        const struct option *option = find(name, equals ? (size_t)(equals - name) : strlen(name));
        if (!option)
            return error_set(error, -EINVAL, "unknown option \"%s\" (see --help)", word);
        if (!option->argument && equals)
            return error_set(error, -EINVAL, "--%s takes no value", option->name);
        if (option->argument && !(value = equals ? equals + 1 : argv[++i]))
            return error_set(error, -EINVAL, "--%s needs a value: %s", option->name, option->allowed);
        if (option->set(option, value, (char *)out + option->offset) < 0)
            return error_set(error, -EINVAL, "--%s \"%s\": must be %s", option->name, value, option->allowed);
    }
    return 0;
}

/* ---- the configuration file ---- */

static char *trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    for (size_t n = strlen(text); n && isspace((unsigned char)text[n - 1]); n--)
        text[n - 1] = 0;
    return text;
}

/* A # starts a comment at the line's beginning or after a space: a path may contain one. */
static void cut_comment(char *line)
{
    for (char *c = line; *c; c++)
        if (*c == '#' && (c == line || isspace((unsigned char)c[-1]))) {
            *c = 0;
            return;
        }
}

static int parse_line(char *line, const char *path, unsigned number, struct options *out, struct error *error)
{
    cut_comment(line);
    line = trim(line);
    if (!*line)
        return 0;
    char *equals = strchr(line, '=');
    if (!equals)
        return error_set(error, -EINVAL, "%s:%u: expected NAME = VALUE", path, number);
    *equals = 0;
    char *name = trim(line), *value = trim(equals + 1);
    const struct option *option = find(name, strlen(name));
    if (!option || !option->in_file)
        return error_set(error, -EINVAL, "%s:%u: unknown option \"%.64s\"", path, number, name);
    if (option->set(option, value, (char *)out + option->offset) < 0)
        return error_set(error, -EINVAL, "%s:%u: %s = \"%.128s\": must be %s", path, number, name, value,
                         option->allowed);
    return 0;
}

static int parse_config(const char *path, struct options *out, struct error *error)
{
    char *text;
    size_t bytes;
    int code = os_read_file(path, CONFIG_LIMIT_BYTES, &text, &bytes);
    if (code < 0)
        return error_set(error, code, "cannot read %s: %s", path, strerror(-code));
    if (strlen(text) != bytes)
        code = error_set(error, -EINVAL, "%s is not a text file", path);
    char *line = text;
    for (unsigned number = 1; line && code == 0; number++) {
        char *end = strchr(line, '\n');
        if (end)
            *end++ = 0;
        code = parse_line(line, path, number, out, error);
        line = end;
    }
    mem_free(text);
    return code;
}

int options_parse(int argc, char **argv, struct options *out, struct error *error)
{
    static const struct options defaults = {
        .kv_budget_bytes = 256u << 20,
        .contexts_per_app = 64,
        .queue_limit = 256,
        .log_level = LOG_LEVEL_INFO,
    };
    char config[PATH_MAX];
    *out = defaults;
    int code = parse_arguments(argc, argv, out, error);
    if (code < 0 || !*out->config || out->help || out->version)
        return code;
    memcpy(config, out->config, sizeof config);
    *out = defaults;
    if ((code = parse_config(config, out, error)) < 0)
        return code;
    /* The command line wins; its listeners stand instead of the file's, not beside them. */
    size_t file_count = out->listen_count;
    out->listen_count = 0;
    code = parse_arguments(argc, argv, out, error);
    if (out->listen_count == 0)
        out->listen_count = file_count;
    return code;
}

/* ---- defaults of this machine ---- */

static const char *environment(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* out = prefix, the first bytes of directory, rest; -EINVAL if they do not fit. */
static int set_text(char out[PATH_MAX], const char *prefix, const char *directory, size_t bytes,
                    const char *rest, struct error *error)
{
    int n = snprintf(out, PATH_MAX, "%s%.*s%s", prefix, (int)bytes, directory, rest);
    return n < 0 || n >= PATH_MAX ? error_set(error, -EINVAL, "path too long: %s", directory) : 0;
}

/* systemd's directory variables may hold several, separated by colons: the first. */
static size_t first_bytes(const char *list)
{
    return strcspn(list, ":");
}

static int resolve_model(struct options *options, struct error *error)
{
    char program[PATH_MAX];
    const char *named = environment("LLMS_MODEL");
    if (named)
        return set_text(options->model, "", named, strlen(named), "", error);
    memcpy(options->model, LLMS_DEFAULT_MODEL, sizeof LLMS_DEFAULT_MODEL);
    if (access(options->model, R_OK) == 0)
        return 0;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n < 0 ? 0 : n] = 0;
    char *slash = strrchr(program, '/');
    if (slash) { /* run from the build's directory: the model beside it */
        int code = set_text(options->model, "", program, (size_t)(slash - program),
                            "/../models/pocket-q8_0.gguf", error);
        if (code < 0 || access(options->model, R_OK) == 0)
            return code;
    }
    return error_set(error, -EINVAL, "no model: give --model FILE.gguf (there is none at %s)",
                     LLMS_DEFAULT_MODEL);
}

static int resolve_state(struct options *options, struct error *error)
{
    const char *directory = environment("STATE_DIRECTORY");
    if (directory)
        return set_text(options->state_directory, "", directory, first_bytes(directory), "", error);
    if ((directory = environment("XDG_STATE_HOME")))
        return set_text(options->state_directory, "", directory, strlen(directory), "/llms", error);
    if (geteuid() == 0)
        return set_text(options->state_directory, "", "/var/lib/llms", 13, "", error);
    if ((directory = environment("HOME")))
        return set_text(options->state_directory, "", directory, strlen(directory), "/.local/state/llms",
                        error);
    return error_set(error, -EINVAL, "no state directory: give --state-dir DIRECTORY");
}

static int resolve_listen(struct options *options, struct error *error)
{
    const char *directory = environment("RUNTIME_DIRECTORY");
    char *place = options->listen[0];
    options->listen_count = 1;
    if (directory)
        return set_text(place, "unix:", directory, first_bytes(directory), "/llmsd.sock", error);
    if (geteuid() == 0)
        return set_text(place, "unix:", "/run/llms", 9, "/llmsd.sock", error);
    if ((directory = environment("XDG_RUNTIME_DIR")))
        return set_text(place, "unix:", directory, strlen(directory), "/llms/llmsd.sock", error);
    return error_set(error, -EINVAL, "no place for the socket: give --listen unix:PATH");
}

int options_resolve(struct options *options, bool have_listeners, struct error *error)
{
    int code = 0;
    if (!*options->model)
        code = resolve_model(options, error);
    if (code == 0 && !*options->state_directory)
        code = resolve_state(options, error);
    if (code == 0 && !options->listen_count && !have_listeners)
        code = resolve_listen(options, error);
    return code;
}

unsigned options_socket_mode(void)
{
    return geteuid() == 0 || environment("RUNTIME_DIRECTORY") ? OPTIONS_SOCKET_MODE_ALL
                                                              : OPTIONS_SOCKET_MODE_OWN;
}

void options_print_help(void)
{
    printf("Usage: llmsd [OPTION]...\n"
           "Serves a language model and each app's conversations over HTTP on a local socket.\n\n");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        char words[64];
        snprintf(words, sizeof words, "--%s %s", table[i].name, table[i].argument ? table[i].argument : "");
        printf("  %-*s  %s\n", WORDS_BYTES, words, table[i].help);
    }
    printf("\nSizes take K, M, G. More: man llmsd.\n");
}
