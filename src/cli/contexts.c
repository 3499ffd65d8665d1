/* new, ls, show, rm, fork, prepare: the contexts of one app. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/utf8.h"
#include "cli/cli.h"

/* Prints the context object's id, unless --json has printed it all. */
static int print_id(struct cli *cli, json_t *context)
{
    if (!context)
        return CLI_FAILED;
    if (!cli->json)
        printf("%s\n", get_text(context, "id"));
    json_decref(context);
    return CLI_OK;
}

/* {"name"?, "system_prompt"?} from the options; false after printing why not. */
static bool context_body(struct cli *cli, json_t **body)
{
    *body = json_pack("{s:s*,s:s*}", "name", cli->name, "system_prompt", cli->system);
    if (!*body)
        cli_fail(cli, "--name or --system is not UTF-8");
    return *body != NULL;
}

int command_new(struct cli *cli)
{
    json_t *body;
    if (!context_body(cli, &body))
        return CLI_FAILED;
    return print_id(cli, cli_ask(cli, "POST", "/v1/contexts", body));
}

int command_fork(struct cli *cli)
{
    json_t *body, *context;
    if (!context_body(cli, &body))
        return CLI_FAILED;
    cli_ask_context(cli, "POST", cli->arguments[0], "/fork", body, &context);
    return print_id(cli, context);
}

enum { LS_COLUMNS = 9, LS_CELL_BYTES = 40 };

static void ls_row(const json_t *context, char cells[LS_COLUMNS][LS_CELL_BYTES])
{
    const json_t *chunks = json_object_get(context, "chunks");
    uint64_t resident = get_whole(chunks, "resident");
    const char *name = get_text(context, "name");
    snprintf(cells[0], LS_CELL_BYTES, "%s", get_text(context, "id"));
    size_t length = strlen(name), shown = length > 30 ? utf8_whole_prefix(name, 30) : length;
    snprintf(cells[1], LS_CELL_BYTES, "%.*s%s", (int)shown, name, shown < length ? "..." : length ? "" : "-");
    snprintf(cells[2], LS_CELL_BYTES, "%" PRIu64, get_whole(context, "turns"));
    snprintf(cells[3], LS_CELL_BYTES, "%" PRIu64, get_whole(context, "tokens"));
    uint64_t stored = get_whole(chunks, "stored");
    snprintf(cells[4], LS_CELL_BYTES, "%" PRIu64 "/%" PRIu64, resident,
             resident + stored + get_whole(chunks, "missing"));
    snprintf(cells[5], LS_CELL_BYTES, "%" PRIu64, stored);
    snprintf(cells[6], LS_CELL_BYTES, "%" PRIu64 "/%" PRIu64 "/%" PRIu64 "/%" PRIu64 "/%" PRIu64,
             get_whole(chunks, "level16"), get_whole(chunks, "level8"), get_whole(chunks, "level4"),
             get_whole(chunks, "level3"), get_whole(chunks, "level2"));
    format_mib(cells[7], LS_CELL_BYTES, get_whole(context, "bytes_resident"));
    if (json_is_true(json_object_get(context, "busy")))
        snprintf(cells[8], LS_CELL_BYTES, "now");
    else
        format_ago(cells[8], LS_CELL_BYTES, (int64_t)get_whole(context, "used_ms"));
}

int command_ls(struct cli *cli)
{
    static const char *const headers[LS_COLUMNS] = {"ID",      "NAME",        ">TURNS",  ">TOKENS", ">CHUNKS",
                                                    ">STORED", ">16/8/4/3/2", ">MEMORY", "USED"};
    json_t *list = cli_ask(cli, "GET", "/v1/contexts", NULL), *context;
    const json_t *data = json_object_get(list, "data");
    size_t rows = json_array_size(data), at;
    if (!list)
        return CLI_FAILED;
    char(*text)[LS_COLUMNS][LS_CELL_BYTES] = mem_calloc(rows + 1, sizeof *text);
    const char **cells = mem_calloc(rows + 1, LS_COLUMNS * sizeof *cells);
    int status = CLI_OK;
    if (!text || !cells) {
        status = cli_fail(cli, "out of memory");
    } else if (!cli->json) {
        json_array_foreach(data, at, context)
        {
            ls_row(context, text[at]);
            for (size_t c = 0; c < LS_COLUMNS; c++)
                cells[at * LS_COLUMNS + c] = text[at][c];
        }
        if (rows)
            table_print(headers, LS_COLUMNS, cells, rows);
        else
            fprintf(stderr, "app '%s' has no contexts yet; make one with 'llms new' or 'llms chat'\n",
                    cli->app);
    }
    mem_free(cells);
    mem_free(text);
    json_decref(list);
    return status;
}

static void print_context(const json_t *context)
{
    const json_t *chunks = json_object_get(context, "chunks");
    char made[48], used[48], memory[32];
    format_ago(made, sizeof made, (int64_t)get_whole(context, "created_ms"));
    format_ago(used, sizeof used, (int64_t)get_whole(context, "used_ms"));
    format_mib(memory, sizeof memory, get_whole(context, "bytes_resident"));
    printf("id      %s\n", get_text(context, "id"));
    printf("name    %s\n", get_text(context, "name"));
    printf("app     %s\n", get_text(context, "app"));
    printf("system  %s\n", get_text(context, "system_prompt"));
    printf("made    %s, used %s%s\n", made, used,
           json_is_true(json_object_get(context, "busy")) ? " (busy)" : "");
    printf("turns   %" PRIu64, get_whole(context, "turns"));
    if (get_whole(context, "window_turn"))
        printf(" (the window starts at %" PRIu64 ")", get_whole(context, "window_turn"));
    printf("\ntokens  %" PRIu64 ", %" PRIu64 " resident\n", get_whole(context, "tokens"),
           get_whole(context, "tokens_resident"));
    printf("chunks  %" PRIu64 " resident (%" PRIu64 " at 16 bits, %" PRIu64 " at 8, %" PRIu64
           " at 4, %" PRIu64 " at 3, %" PRIu64 " at 2), %" PRIu64 " stored, %" PRIu64 " missing\n",
           get_whole(chunks, "resident"), get_whole(chunks, "level16"), get_whole(chunks, "level8"),
           get_whole(chunks, "level4"), get_whole(chunks, "level3"), get_whole(chunks, "level2"),
           get_whole(chunks, "stored"), get_whole(chunks, "missing"));
    printf("memory  %s\n", memory);
}

int command_show(struct cli *cli)
{
    json_t *answer, *turn;
    size_t at;
    if (!cli_ask_context(cli, "GET", cli->arguments[0], cli->turns ? "/turns" : "", NULL, &answer))
        return CLI_FAILED;
    if (!cli->json && !cli->turns)
        print_context(answer);
    if (!cli->json && cli->turns)
        json_array_foreach(json_object_get(answer, "data"), at, turn)
            printf("%s> %s\n%s\n", at ? "\n" : "", get_text(turn, "prompt"), get_text(turn, "reply"));
    json_decref(answer);
    return CLI_OK;
}

int command_rm(struct cli *cli)
{
    int status = CLI_OK;
    for (int i = 0; i < cli->count; i++) {
        json_t *answer;
        if (!cli_ask_context(cli, "DELETE", cli->arguments[i], "", NULL, &answer))
            status = CLI_FAILED;
        json_decref(answer);
    }
    return status;
}

int command_prepare(struct cli *cli)
{
    json_t *answer;
    if (!cli_ask_context(cli, "POST", cli->arguments[0], "/prepare", NULL, &answer))
        return CLI_FAILED;
    const json_t *timings = json_object_get(answer, "timings");
    if (!cli->json)
        printf(
            "ready after %.1f ms; chunks: %" PRIu64 " resident, %" PRIu64 " loaded, %" PRIu64 " recomputed\n",
            json_number_value(json_object_get(timings, "switch_ms")), get_whole(timings, "chunks_resident"),
            get_whole(timings, "chunks_loaded"), get_whole(timings, "chunks_recomputed"));
    json_decref(answer);
    return CLI_OK;
}
