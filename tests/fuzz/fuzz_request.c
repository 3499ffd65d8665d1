/* Requests: the first byte chooses the reader, the rest is a body (or a path, or a header). */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api/body.h"
#include "api/caller.h"
#include "api/routes.h"
#include "base/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good)
{
    if (!good)
        abort();
}

static void read_call(const json_t *json)
{
    struct body_call call;
    if (body_read_call(json, &call, NULL) < 0)
        return;
    check(call.params.prompt && call.params.prompt_length);
    check(strlen(call.params.prompt) == call.params.prompt_length);
    check(utf8_valid(call.params.prompt, call.params.prompt_length));
    check(call.params.stop == call.stops && call.params.stop_count <= BODY_STOPS);
    for (size_t i = 0; i < call.params.stop_count; i++)
        check(*call.params.stop[i] && strlen(call.params.stop[i]) <= BODY_STOP_BYTES);
    check(!sampler_params_check(&call.params.sampling));
}

static void read_body(uint8_t kind, const char *text, size_t size)
{
    json_t *json;
    struct body_context context;
    struct body_tokenize tokenize;
    struct tokens tokens = {0};
    struct error error;
    if (body_parse(text, size, &json, &error) < 0) {
        check(!strchr(error.text, '\n') || error.code == -EINVAL);
        return;
    }
    switch (kind) {
    case 0:
        read_call(json);
        break;
    case 1:
        if (body_read_context(json, &context, &error) == 0 && context.name.data)
            check(strlen(context.name.data) == context.name.length && context.name.length <= BODY_NAME_BYTES);
        break;
    case 2:
        body_read_fork(json, &context, &error);
        body_read_nothing(json, &error);
        break;
    case 3:
        body_read_tokenize(json, &tokenize, &error);
        break;
    default:
        if (body_read_detokenize(json, 1000, &tokens, &error) == 0)
            for (size_t i = 0; i < tokens.count; i++)
                check(tokens.ids[i] >= 0 && tokens.ids[i] < 1000);
        tokens_deinit(&tokens);
        break;
    }
    json_decref(json);
}

static void read_text(uint8_t kind, const char *text)
{
    struct route_match match;
    switch (kind) {
    case 5:
        route_find(api_routes, api_route_count, "GET", text, &match);
        check(!match.route || *match.allow);
        check(strlen(match.argument) < ROUTE_ARGUMENT_BYTES);
        break;
    case 6:
        if (caller_host_local(text))
            check(strlen(text) <= strlen("localhost:65535"));
        break;
    default:
        if (caller_app_valid(text))
            check(*text && strlen(text) < CALLER_APP_BYTES && !strpbrk(text, "/ \r\n"));
        check(!caller_token_right(text, ""));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    body_init();
    uint8_t kind = data[0] % 8;
    bool body = kind < 5;
    char *text = malloc(body ? size - 1 : size); /* a body has no NUL: reading past its end is seen */
    if (!text)
        return 0;
    memcpy(text, data + 1, size - 1);
    if (!body)
        text[size - 1] = 0;
    if (body)
        read_body(kind, text, size - 1);
    else
        read_text(kind, text);
    free(text);
    return 0;
}
