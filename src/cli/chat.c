/* chat: a conversation line by line. Ctrl-C cancels the reply that runs (the turn is as if never asked),
 * Ctrl-D leaves. On a pipe it takes one prompt a line, prints replies only, and stops at the first failure.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

struct chat {
    struct cli *cli;
    char id[LLMS_ID_BYTES];
    bool interactive;
    bool fresh;            /* made here, and nothing said in it yet */
    bool begun, ends_line; /* of the running reply */
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static int print_piece(void *user, const char *text, size_t length)
{
    struct chat *chat = user;
    if (length) {
        chat->begun = true;
        chat->ends_line = text[length - 1] == '\n';
        fwrite(text, 1, length, stdout);
    }
    return interrupted || fflush(stdout) != 0;
}

static int say(struct chat *chat, const char *prompt)
{
    struct cli *cli = chat->cli;
    struct llms_call_result result;
    interrupted = 0;
    chat->begun = chat->ends_line = false;
    int code = llms_call(cli->llms, chat->id, prompt, &cli->call, print_piece, chat, &result);
    if (chat->interactive ? !chat->ends_line && (chat->begun || code == -ECANCELED)
                          : chat->begun && !chat->ends_line)
        putchar('\n');
    if (code == -ECANCELED && interrupted) {
        fprintf(stderr, "[cancelled; the context is as it was before]\n");
        return chat->interactive ? CLI_OK : CLI_FAILED;
    }
    if (code < 0)
        return cli_fail_code(cli, code);
    chat->fresh = false;
    if (cli->stats)
        print_stats(&result);
    return CLI_OK;
}

static int show(struct chat *chat, bool turns)
{
    struct cli sub = *chat->cli;
    char *arguments[] = {chat->id};
    sub.arguments = arguments;
    sub.count = 1;
    sub.turns = turns;
    return command_show(&sub);
}

/* A line that starts with '/'. False: leave. */
static bool obey(struct chat *chat, const char *line)
{
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0)
        return false;
    if (strcmp(line, "/show") == 0) {
        show(chat, false);
    } else if (strcmp(line, "/turns") == 0) {
        show(chat, true);
    } else if (strcmp(line, "/stats") == 0) {
        chat->cli->stats = !chat->cli->stats;
        fprintf(stderr, "[what a reply cost is %s]\n", chat->cli->stats ? "shown" : "not shown");
    } else {
        fprintf(stderr,
                "%s/show   the context: tokens, chunks, memory\n"
                "/turns  all that was said\n"
                "/stats  show what each reply cost, or stop showing it\n"
                "/quit   leave (as Ctrl-D does)\n"
                "Ctrl-C cancels the reply that runs. A line that starts with '//' is sent as '/...'.\n",
                strcmp(line, "/help") == 0 ? "" : "[there is no such command]\n");
    }
    return true;
}

/* Asks for a line and waits until there is one; false if Ctrl-C came first. The signal is taken nowhere but
 * in the wait: just before it, it would be lost. */
static bool await_line(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    sigset_t interrupt, before;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    interrupted = 0;
    fputs("> ", stdout);
    fflush(stdout);
    ppoll(&input, 1, NULL, &before);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return !interrupted;
}

/* Reads a line without its end; false at the end of input. Ctrl-C drops the line begun. */
static bool read_line(struct chat *chat, char **line, size_t *capacity)
{
    for (;;) {
        bool dropped = chat->interactive && !await_line();
        errno = 0;
        ssize_t length = dropped ? -1 : getline(line, capacity, stdin);
        if (length >= 0) {
            while (length && ((*line)[length - 1] == '\n' || (*line)[length - 1] == '\r'))
                (*line)[--length] = 0;
            return true;
        }
        dropped = dropped || (chat->interactive && interrupted && errno == EINTR);
        if (!dropped)
            return false;
        clearerr(stdin);
        fputs("\n(Ctrl-D leaves)\n", stdout);
    }
}

static int converse(struct chat *chat)
{
    char *line = NULL;
    size_t capacity = 0;
    int status = CLI_OK;
    while (read_line(chat, &line, &capacity)) {
        const char *text = line + strspn(line, " \t");
        if (!*text)
            continue;
        if (chat->interactive && text[0] == '/' && text[1] != '/') {
            if (!obey(chat, text))
                break;
            continue;
        }
        status = say(chat, chat->interactive && text[0] == '/' ? text + 1 : text);
        if (status != CLI_OK && !chat->interactive)
            break;
        if (ferror(stdout))
            break;
    }
    free(line);
    return chat->interactive ? CLI_OK : status;
}

static int open_context(struct chat *chat)
{
    struct cli *cli = chat->cli;
    if (cli->context && (cli->system || cli->name)) {
        cli_fail(cli, "--system and --name are for a new context, not with --ctx");
        return CLI_USAGE;
    }
    if (cli->context)
        return cli_find(cli, cli->context, chat->id) ? CLI_OK : CLI_FAILED;
    int code = llms_context_new(cli->llms, cli->name, cli->system, chat->id);
    chat->fresh = code == 0;
    return code < 0 ? cli_fail_code(cli, code) : CLI_OK;
}

int command_chat(struct cli *cli)
{
    struct chat chat = {.cli = cli, .interactive = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    struct sigaction action = {.sa_handler = on_interrupt}; /* no SA_RESTART: reading a line ends too */
    if (cli->json) {
        cli_fail(cli, "--json is not for a conversation; use llms call --json");
        return CLI_USAGE;
    }
    int status = open_context(&chat);
    if (status != CLI_OK)
        return status;
    sigaction(SIGINT, &action, NULL);
    if (chat.interactive) /* what stands in a buffer would not wake the wait for a line */
        setvbuf(stdin, NULL, _IONBF, 0);
    if (chat.interactive)
        fprintf(stderr, "[context %s; /help, or Ctrl-D to leave]\n", chat.id);
    status = converse(&chat);
    if (chat.fresh)
        llms_context_delete(cli->llms, chat.id); /* nothing was said: nothing to come back to */
    else
        fprintf(stderr, "%s[to go on: llms%s%s chat --ctx %s]\n", chat.interactive ? "\n" : "",
                strcmp(cli->app, "cli") ? " --app " : "", strcmp(cli->app, "cli") ? cli->app : "", chat.id);
    return status;
}
