/* call: one prompt, one reply. It streams to standard output; --json waits for the whole call object. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

struct reply {
    bool begun, ends_line;
};

static int print_piece(void *user, const char *text, size_t length)
{
    struct reply *reply = user;
    if (length == 0)
        return 0;
    reply->begun = true;
    reply->ends_line = text[length - 1] == '\n';
    fwrite(text, 1, length, stdout);
    return fflush(stdout) != 0; /* nobody reads any more: no need to go on */
}

static void set(json_t *body, const char *key, bool given, json_t *value)
{
    if (given)
        json_object_set(body, key, value);
    json_decref(value);
}

/* The call's options as the daemon takes them. */
static json_t *call_body(const struct llms_call_options *options, const char *prompt)
{
    json_t *body = json_pack("{s:s}", "prompt", prompt), *stop = json_array();
    set(body, "max_tokens", options->max_tokens > 0, json_integer(options->max_tokens));
    set(body, "temperature", options->temperature >= 0, json_real(options->temperature));
    set(body, "top_k", options->top_k >= 0, json_integer(options->top_k));
    set(body, "top_p", options->top_p >= 0, json_real(options->top_p));
    set(body, "min_p", options->min_p >= 0, json_real(options->min_p));
    set(body, "repeat_penalty", options->repeat_penalty >= 0, json_real(options->repeat_penalty));
    set(body, "seed", options->seed >= 0, json_integer(options->seed));
    set(body, "when_full", options->refuse_when_full, json_string("refuse"));
    for (size_t i = 0; options->stop && options->stop[i]; i++)
        json_array_append_new(stop, json_string(options->stop[i]));
    set(body, "stop", options->stop != NULL, stop);
    return body;
}

static int call_json(struct cli *cli, const char *id, const char *prompt)
{
    char path[96];
    snprintf(path, sizeof path, "/v1/contexts/%s/calls", id);
    json_t *body = call_body(&cli->call, prompt);
    if (!body)
        return cli_fail(cli, "the prompt is not UTF-8");
    json_t *answer = cli_ask(cli, "POST", path, body);
    json_decref(answer);
    return answer ? CLI_OK : CLI_FAILED;
}

static int call_streaming(struct cli *cli, const char *id, const char *prompt)
{
    struct reply reply = {false, false};
    struct llms_call_result result;
    int code = llms_call(cli->llms, id, prompt, &cli->call, print_piece, &reply, &result);
    if (reply.begun && !reply.ends_line)
        putchar('\n');
    if (code == -ECANCELED && ferror(stdout))
        return cli_fail(cli, "cannot write to standard output");
    if (code < 0)
        return cli_fail_code(cli, code);
    if (cli->stats)
        print_stats(&result);
    return CLI_OK;
}

int command_call(struct cli *cli)
{
    char id[LLMS_ID_BYTES];
    char *prompt = cli_text(cli, cli->arguments[1]);
    int status = CLI_FAILED;
    if (prompt && cli_find(cli, cli->arguments[0], id))
        status = cli->json ? call_json(cli, id, prompt) : call_streaming(cli, id, prompt);
    free(prompt);
    return status;
}
