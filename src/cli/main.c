/* llms: the command line of the language model service. Finds the command, binds to the daemon, runs it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

const struct cli_command cli_commands[] = {
    {"chat", "[--ctx ID] [--system TEXT]", "talk, line by line", command_chat,
     CLI_TAKES_CALL | CLI_TAKES_CONTEXT | CLI_TAKES_SYSTEM | CLI_TAKES_NAME, 0, 0},
    {"call", "CTX PROMPT|-", "one prompt to a context; the reply streams out", command_call, CLI_TAKES_CALL,
     2, 2},
    {"new", "[--name NAME] [--system TEXT]", "make a context, print its id", command_new,
     CLI_TAKES_NAME | CLI_TAKES_SYSTEM, 0, 0},
    {"ls", "", "list the app's contexts", command_ls, 0, 0, 0},
    {"show", "CTX [--turns]", "one context, or all that was said in it", command_show, CLI_TAKES_TURNS, 1, 1},
    {"rm", "CTX...", "delete contexts for good", command_rm, 0, 1, -1},
    {"fork", "CTX [--name NAME]", "copy a context, print the copy's id", command_fork, CLI_TAKES_NAME, 1, 1},
    {"prepare", "CTX", "bring a context into memory now", command_prepare, 0, 1, 1},
    {"status", "", "what the daemon is doing", command_status, 0, 0, 0},
    {"budget", "SIZE", "change how much memory KV may take", command_budget, 0, 1, 1},
    {"models", "", "the models it serves", command_models, 0, 0, 0},
    {"tokenize", "TEXT|-", "the model's token ids of a text", command_tokenize, CLI_TAKES_SPECIAL, 1, 1},
    {"detokenize", "ID...|-", "the text of token ids", command_detokenize, 0, 1, -1},
    {NULL, NULL, NULL, NULL, 0, 0, 0},
};

static int bind_daemon(struct cli *cli)
{
    int code = llms_bind(cli->app, cli->address, &cli->llms);
    const char *where = cli->address ? cli->address : getenv("LLMS_ADDRESS");
    if (!where || !*where)
        where = "the usual sockets";
    if (code == -ENOENT || code == -ECONNREFUSED)
        return cli_fail(cli,
                        "no daemon answers at %s; start one with 'llmsd --model FILE.gguf' "
                        "or 'systemctl start llmsd'",
                        where);
    if (code == -EINVAL) {
        cli_fail(cli,
                 "app '%s' wants to be 1 to 64 of A-Z a-z 0-9 . _ -, address '%s' unix:PATH or tcp:HOST:PORT",
                 cli->app, where);
        return CLI_USAGE;
    }
    return code < 0 ? cli_fail(cli, "%s: %s", where, llms_strerror(code)) : CLI_OK;
}

int main(int argc, char **argv)
{
    struct cli cli = {.command = "", .app = "cli", .call = LLMS_CALL_DEFAULTS};
    const struct cli_command *command;
    int status = options_parse(&cli, argc, argv, &command);
    if (status < 0)
        status = bind_daemon(&cli);
    if (status == CLI_OK && cli.llms)
        status = command->run(&cli);
    llms_unbind(cli.llms);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == CLI_OK)
        status = cli_fail(&cli, "cannot write to standard output");
    return status;
}
