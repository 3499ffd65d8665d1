/* status, budget, models, tokenize, detokenize. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/parse.h"
#include "cli/cli.h"

/* The kv object of the status. */
static void print_kv(const json_t *kv)
{
    char resident[32], budget[32], allowed[32], stored[32];
    const json_t *level;
    size_t at;
    format_mib(resident, sizeof resident, get_whole(kv, "resident_bytes"));
    format_mib(budget, sizeof budget, get_whole(kv, "budget_bytes"));
    format_mib(allowed, sizeof allowed, get_whole(kv, "allowed_bytes"));
    format_mib(stored, sizeof stored, get_whole(kv, "stored_bytes"));
    printf("KV        %s of %s resident, %s stored", resident, budget, stored);
    if (json_is_true(json_object_get(kv, "pressure")))
        printf("; memory is short: %s allowed", allowed);
    printf("\npolicy    %s, evicts by %s; written at %" PRIu64 " bits", get_text(kv, "policy"),
           get_text(kv, "evict"), get_whole(kv, "level"));
    if (json_is_number(json_object_get(kv, "ratio"))) {
        printf(", lowered to ");
        json_array_foreach(json_object_get(kv, "levels"), at, level)
            printf("%s%" JSON_INTEGER_FORMAT, at ? "/" : "", json_integer_value(level));
        printf(" (ratio %g)", json_number_value(json_object_get(kv, "ratio")));
    }
    putchar('\n');
}

int command_budget(struct cli *cli)
{
    uint64_t bytes;
    if (parse_size(cli->arguments[0], &bytes) < 0) {
        cli_fail(cli, "'%s' is not a size such as 256M or 1.5G", cli->arguments[0]);
        return CLI_USAGE;
    }
    json_t *kv = cli_ask(cli, "POST", "/v1/budget", json_pack("{s:I}", "kv_budget", (json_int_t)bytes));
    if (!kv)
        return CLI_FAILED;
    if (!cli->json)
        print_kv(kv);
    json_decref(kv);
    return CLI_OK;
}

int command_status(struct cli *cli)
{
    json_t *status = cli_ask(cli, "GET", "/v1/status", NULL);
    if (!status || cli->json) {
        json_decref(status);
        return status ? CLI_OK : CLI_FAILED;
    }
    const json_t *model = json_object_get(status, "model"), *kv = json_object_get(status, "kv");
    const json_t *contexts = json_object_get(status, "contexts"), *calls = json_object_get(status, "calls");
    const json_t *tokens = json_object_get(status, "tokens");
    char up[32], weights[32];
    format_duration(up, sizeof up, get_whole(status, "uptime_ms"));
    format_mib(weights, sizeof weights, get_whole(model, "weights_bytes"));
    printf("daemon    llmsd %s, up %s\n", get_text(status, "version"), up);
    printf("model     %s (%s, %s), %.1f million parameters, %s of weights, context of %" PRIu64 " tokens\n",
           get_text(model, "name"), get_text(model, "architecture"), get_text(model, "type"),
           (double)get_whole(model, "parameters") / 1e6, weights, get_whole(model, "context_length"));
    printf("compute   %" PRIu64 " threads, %s\n", get_whole(status, "threads"), get_text(status, "isa"));
    print_kv(kv);
    printf("contexts  %" PRIu64 ", %" PRIu64 " of them in memory", get_whole(contexts, "total"),
           get_whole(contexts, "resident"));
    if (get_whole(contexts, "per_app_limit"))
        printf("; at most %" PRIu64 " an app", get_whole(contexts, "per_app_limit"));
    printf("\ncalls     %" PRIu64 " running, %" PRIu64 " waiting; %" PRIu64 " so far, %" PRIu64
           " failed, %" PRIu64 " cancelled\n",
           get_whole(calls, "running"), get_whole(calls, "waiting"), get_whole(calls, "total"),
           get_whole(calls, "failed"), get_whole(calls, "cancelled"));
    printf("tokens    %" PRIu64 " prompt, %" PRIu64 " reply, %" PRIu64 " recomputed\n",
           get_whole(tokens, "prompt"), get_whole(tokens, "reply"), get_whole(tokens, "recomputed"));
    json_decref(status);
    return CLI_OK;
}

int command_models(struct cli *cli)
{
    json_t *list = cli_ask(cli, "GET", "/v1/models", NULL), *model;
    size_t at;
    if (!list)
        return CLI_FAILED;
    if (!cli->json)
        json_array_foreach(json_object_get(list, "data"), at, model) printf("%s\n", get_text(model, "id"));
    json_decref(list);
    return CLI_OK;
}

int command_tokenize(struct cli *cli)
{
    char *text = cli_text(cli, cli->arguments[0]);
    if (!text)
        return CLI_FAILED;
    json_t *body = json_pack("{s:s,s:b}", "text", text, "special", cli->special);
    free(text);
    if (!body)
        return cli_fail(cli, "the text is not UTF-8");
    json_t *answer = cli_ask(cli, "POST", "/v1/tokenize", body), *id;
    size_t at;
    if (!answer)
        return CLI_FAILED;
    if (!cli->json) {
        json_array_foreach(json_object_get(answer, "tokens"), at, id)
            printf("%s%" JSON_INTEGER_FORMAT, at ? " " : "", json_integer_value(id));
        putchar('\n');
    }
    json_decref(answer);
    return CLI_OK;
}

/* Appends the ids in a text, apart by blanks or commas, as tokenize and its --json print them. */
static int add_ids(struct cli *cli, const char *text, json_t *ids)
{
    char word[24];
    uint64_t id;
    for (;;) {
        text += strspn(text, " \t\r\n,[]");
        size_t length = strcspn(text, " \t\r\n,[]");
        if (length == 0)
            return CLI_OK;
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word), text);
        if (parse_u64(word, 0, INT32_MAX, &id) < 0) {
            cli_fail(cli, "'%s' is not a token id", word);
            return CLI_USAGE;
        }
        json_array_append_new(ids, json_integer((json_int_t)id));
        text += length;
    }
}

int command_detokenize(struct cli *cli)
{
    json_t *ids = json_array();
    int status = ids ? CLI_OK : cli_fail(cli, "out of memory");
    for (int i = 0; status == CLI_OK && i < cli->count; i++) {
        char *text = cli_text(cli, cli->arguments[i]);
        status = text ? add_ids(cli, text, ids) : CLI_FAILED;
        free(text);
    }
    if (status != CLI_OK) {
        json_decref(ids);
        return status;
    }
    json_t *answer = cli_ask(cli, "POST", "/v1/detokenize", json_pack("{s:o}", "tokens", ids));
    const json_t *text = json_object_get(answer, "text");
    if (!answer)
        return CLI_FAILED;
    if (!cli->json) {
        fwrite(json_string_length(text) ? json_string_value(text) : "", 1, json_string_length(text), stdout);
        putchar('\n');
    }
    json_decref(answer);
    return CLI_OK;
}
