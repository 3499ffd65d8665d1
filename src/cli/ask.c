/* Asking the daemon: requests with their failures told, context ids from their beginnings, texts from
 * anywhere. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/array.h"
#include "cli/cli.h"

int cli_fail(const struct cli *cli, const char *format, ...)
{
    va_list arguments;
    fflush(stdout);
    fprintf(stderr, "llms%s%s: ", *cli->command ? " " : "", cli->command);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return CLI_FAILED;
}

int cli_fail_code(const struct cli *cli, int code)
{
    const char *text = llms_last_error(cli->llms);
    return cli_fail(cli, "%s", *text ? text : llms_strerror(code));
}

const char *get_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

uint64_t get_whole(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));
    return value > 0 ? (uint64_t)value : 0;
}

/* cli_ask without the printing of --json. */
static json_t *ask(struct cli *cli, const char *method, const char *path, json_t *body, char **answer)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    bool short_of_memory = body && !text;
    json_decref(body);
    *answer = NULL;
    if (short_of_memory) {
        cli_fail(cli, "out of memory");
        return NULL;
    }
    int code = llms_request(cli->llms, method, path, text, answer);
    free(text);
    if (code < 0) {
        cli_fail_code(cli, code);
        return NULL;
    }
    json_t *document = **answer ? json_loads(*answer, JSON_ALLOW_NUL, NULL) : json_object();
    if (!document)
        cli_fail(cli, "the daemon's answer is not JSON");
    return document;
}

json_t *cli_ask(struct cli *cli, const char *method, const char *path, json_t *body)
{
    char *answer;
    json_t *document = ask(cli, method, path, body, &answer);
    if (document && cli->json && *answer)
        printf("%s%s", answer, answer[strlen(answer) - 1] == '\n' ? "" : "\n");
    free(answer);
    return document;
}

/* Every id begins with "ctx_": nobody needs to type that, and a "c" means what comes after it. */
static bool starts(const char *id, const char *given)
{
    const char *own = strchr(given, '_') ? NULL : strchr(id, '_');
    own = own ? own + 1 : id;
    return strncmp(own, given, strlen(given)) == 0;
}

bool cli_find(struct cli *cli, const char *given, char id[LLMS_ID_BYTES])
{
    char *answer;
    json_t *list = ask(cli, "GET", "/v1/contexts", NULL, &answer), *context;
    size_t at, matches = 0;
    free(answer);
    if (!list)
        return false;
    json_array_foreach(json_object_get(list, "data"), at, context)
    {
        const char *found = get_text(context, "id");
        if (!starts(found, given) || strlen(found) >= LLMS_ID_BYTES)
            continue;
        strcpy(id, found);
        matches++;
        if (strcmp(found, given) == 0) {
            matches = 1;
            break;
        }
    }
    json_decref(list);
    if (!*given || matches == 0)
        cli_fail(cli, "app '%s' has no context '%s' (llms ls lists them)", cli->app, given);
    else if (matches > 1)
        cli_fail(cli, "%zu contexts start with '%s'; give more of the id", matches, given);
    return *given && matches == 1;
}

bool cli_ask_context(struct cli *cli, const char *method, const char *given, const char *suffix, json_t *body,
                     json_t **answer)
{
    char id[LLMS_ID_BYTES], path[96];
    *answer = NULL;
    if (!cli_find(cli, given, id)) {
        json_decref(body);
        return false;
    }
    snprintf(path, sizeof path, "/v1/contexts/%s%s", id, suffix);
    *answer = cli_ask(cli, method, path, body);
    return *answer != NULL;
}

char *cli_text(struct cli *cli, const char *argument)
{
    struct buffer text = {0};
    char bytes[65536];
    ssize_t got = 0;
    int code = buffer_append_text(&text, strcmp(argument, "-") == 0 ? "" : argument);
    if (strcmp(argument, "-") == 0)
        while (code == 0 &&
               ((got = read(STDIN_FILENO, bytes, sizeof bytes)) > 0 || (got < 0 && errno == EINTR)))
            code = got > 0 ? buffer_append(&text, bytes, (size_t)got) : 0;
    if (code == 0 && got == 0 && !(text.length && memchr(text.data, 0, text.length)))
        return text.data;
    if (code < 0)
        cli_fail(cli, "out of memory");
    else if (got < 0)
        cli_fail(cli, "cannot read standard input: %s", strerror(errno));
    else
        cli_fail(cli, "standard input holds a NUL byte: not a text");
    buffer_deinit(&text);
    return NULL;
}
