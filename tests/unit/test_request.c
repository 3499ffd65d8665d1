/* What the api room makes of requests: bodies, routes, callers; and the sockets below it. No daemon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/answer.h"
#include "api/api.h"
#include "api/body.h"
#include "api/caller.h"
#include "api/route.h"
#include "base/memory.h"
#include "os/socket.h"

/* ---- bodies ---- */

static json_t *parse(const char *text)
{
    json_t *json = NULL;
    struct error error = {0};
    if (body_parse(text, strlen(text), &json, &error) < 0)
        fail_msg("%s: %s", text, error.text);
    return json;
}

static void refuse_parse(const char *text, size_t bytes, const char *expected)
{
    json_t *json = NULL;
    struct error error = {0};
    assert_int_equal(body_parse(text, bytes, &json, &error), -EINVAL);
    assert_null(json);
    if (!strstr(error.text, expected))
        fail_msg("%.*s: \"%s\" does not say \"%s\"", (int)bytes, text, error.text, expected);
    assert_null(strchr(error.text, '\n'));
}

static void test_parse(void **state)
{
    (void)state;
    json_decref(parse(""));
    json_decref(parse("{}"));
    json_decref(parse(" {\"a\": [[[1]]]}\n"));
    const char *const bad[][2] = {
        {"{", "not valid JSON"},
        {"{\"a\":1,}", "not valid JSON"},
        {"{\"a\":1} x", "not valid JSON"},
        {"[]", "must be a JSON object"},
        {"1", "not valid JSON"},
        {"{\"a\":1,\"a\":2}", "duplicate"},
        {"{\"a\":99999999999999999999}", "too big"},
        {"{\"a\":\"\\u0000\"}", "not valid JSON"},
        {"{\"a\":\"\xff\"}", "not valid JSON"},
        {"{\"a\":\"\xed\xa0\x80\"}", "not valid JSON"},
        {"{\"a\":\"\\ud800\"}", "not valid JSON"},
        {"{\"a\":\"\xc3", "not valid JSON"},
        {"{'a':1}", "not valid JSON"},
        {"{\"a\":NaN}", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse_parse(bad[i][0], strlen(bad[i][0]), bad[i][1]);
    refuse_parse("{\"a\":1}\0{}", 10, "not valid JSON");
}

static void test_nesting(void **state)
{
    (void)state;
    char text[4096];
    for (unsigned depth = BODY_DEPTH - 1; depth <= 2000; depth = depth == BODY_DEPTH ? 2000 : depth + 1) {
        size_t n = (size_t)sprintf(text, "{\"a\":");
        memset(text + n, '[', depth - 1);
        n += depth - 1;
        memset(text + n, ']', depth - 1);
        n += depth - 1;
        text[n++] = '}';
        text[n] = 0;
        if (depth <= BODY_DEPTH)
            json_decref(parse(text));
        else
            refuse_parse(text, n, "nests deeper");
    }
    /* brackets inside strings do not nest */
    size_t n = (size_t)sprintf(text, "{\"a\":\"\\\"");
    memset(text + n, '[', 1000);
    sprintf(text + n + 1000, "\\\\\"}");
    json_decref(parse(text));
}

static void test_call_defaults(void **state)
{
    (void)state;
    struct body_call call;
    struct error error = {0};
    json_t *json = parse("{\"prompt\":\"hi\"}");
    assert_int_equal(body_read_call(json, &call, &error), 0);
    assert_string_equal(call.params.prompt, "hi");
    assert_int_equal(call.params.prompt_length, 2);
    assert_int_equal(call.params.max_tokens, 0);
    assert_false(call.stream);
    assert_false(call.seed_given);
    assert_int_equal(call.params.stop_count, 0);
    assert_int_equal(call.params.overflow, CALL_SLIDE);
    assert_false(call.params.prepare);
    assert_memory_equal(&call.params.sampling, &sampler_defaults, sizeof sampler_defaults);
    json_decref(json);
}

static void test_call_all(void **state)
{
    (void)state;
    struct body_call call;
    struct error error = {0};
    json_t *json =
        parse("{\"prompt\":\"h\xc3\xa9\",\"max_tokens\":7,\"stream\":true,\"temperature\":0.5,\"top_k\":3,"
              "\"top_p\":1,\"min_p\":0,\"repeat_penalty\":1.25,\"repeat_last\":9,"
              "\"seed\":9223372036854775807,\"stop\":[\"a\",\"\xe2\x82\xac\"],\"when_full\":\"refuse\"}");
    assert_int_equal(body_read_call(json, &call, &error), 0);
    assert_int_equal(call.params.prompt_length, 3);
    assert_int_equal(call.params.max_tokens, 7);
    assert_true(call.stream);
    assert_true(call.params.sampling.temperature == 0.5f);
    assert_int_equal(call.params.sampling.top_k, 3);
    assert_true(call.params.sampling.top_p == 1.0f);
    assert_true(call.params.sampling.min_p == 0.0f);
    assert_true(call.params.sampling.repeat_penalty == 1.25f);
    assert_int_equal(call.params.sampling.repeat_last, 9);
    assert_true(call.seed_given);
    assert_true(call.params.sampling.seed == INT64_MAX);
    assert_int_equal(call.params.stop_count, 2);
    assert_string_equal(call.params.stop[0], "a");
    assert_string_equal(call.params.stop[1], "\xe2\x82\xac");
    assert_int_equal(call.params.overflow, CALL_REFUSE);
    json_decref(json);
    json = parse("{\"prompt\":\"p\",\"stop\":\"one\",\"temperature\":null,\"seed\":0}");
    assert_int_equal(body_read_call(json, &call, &error), 0);
    assert_int_equal(call.params.stop_count, 1);
    assert_string_equal(call.params.stop[0], "one");
    assert_true(call.params.sampling.temperature == sampler_defaults.temperature);
    assert_true(call.seed_given && call.params.sampling.seed == 0);
    json_decref(json);
}

/* Every bad field is refused by name. */
static void test_call_refused(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"{}", "\"prompt\" is required"},
        {"{\"prompt\":null}", "\"prompt\" is required"},
        {"{\"prompt\":\"\"}", "\"prompt\" must not be empty"},
        {"{\"prompt\":{}}", "\"prompt\" must be a string"},
        {"{\"prompt\":[\"a\"]}", "\"prompt\" must be a string"},
        {"{\"prompt\":\"p\",\"promt\":1}", "unknown field \"promt\""},
        {"{\"prompt\":\"p\",\"max_tokens\":-1}", "\"max_tokens\" must be a whole number from 0 to 16777216"},
        {"{\"prompt\":\"p\",\"max_tokens\":16777217}", "\"max_tokens\""},
        {"{\"prompt\":\"p\",\"max_tokens\":1.0}", "\"max_tokens\""},
        {"{\"prompt\":\"p\",\"max_tokens\":\"5\"}", "\"max_tokens\""},
        {"{\"prompt\":\"p\",\"max_tokens\":true}", "\"max_tokens\""},
        {"{\"prompt\":\"p\",\"stream\":1}", "\"stream\" must be true or false"},
        {"{\"prompt\":\"p\",\"temperature\":-0.1}", "\"temperature\" must be a number from 0 to 10"},
        {"{\"prompt\":\"p\",\"temperature\":10.1}", "\"temperature\""},
        {"{\"prompt\":\"p\",\"temperature\":\"hot\"}", "\"temperature\""},
        {"{\"prompt\":\"p\",\"top_k\":-1}", "\"top_k\""},
        {"{\"prompt\":\"p\",\"top_p\":0}", "\"top_p\" must be a number above 0 to 1"},
        {"{\"prompt\":\"p\",\"top_p\":1e-60}", "\"top_p\""},
        {"{\"prompt\":\"p\",\"top_p\":1.01}", "\"top_p\""},
        {"{\"prompt\":\"p\",\"min_p\":1}", "\"min_p\" must be a number from 0 to below 1"},
        {"{\"prompt\":\"p\",\"min_p\":0.99999999999}", "\"min_p\""},
        {"{\"prompt\":\"p\",\"repeat_penalty\":0.9}", "\"repeat_penalty\" must be a number from 1 to 10"},
        {"{\"prompt\":\"p\",\"repeat_last\":-2}", "\"repeat_last\""},
        {"{\"prompt\":\"p\",\"seed\":-1}", "\"seed\""},
        {"{\"prompt\":\"p\",\"seed\":0.5}", "\"seed\""},
        {"{\"prompt\":\"p\",\"stop\":1}", "\"stop\""},
        {"{\"prompt\":\"p\",\"stop\":\"\"}", "\"stop\""},
        {"{\"prompt\":\"p\",\"stop\":[\"a\",2]}", "\"stop\""},
        {"{\"prompt\":\"p\",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\","
         "\"12\","
         "\"13\",\"14\",\"15\",\"16\",\"17\"]}",
         "\"stop\" must have at most 16"},
        {"{\"prompt\":\"p\",\"when_full\":\"explode\"}", "\"when_full\" must be \"slide\" or \"refuse\""},
        {"{\"prompt\":\"p\",\"when_full\":1}", "\"when_full\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct body_call call;
        struct error error = {0};
        json_t *json = parse(bad[i][0]);
        if (body_read_call(json, &call, &error) != -EINVAL || !strstr(error.text, bad[i][1]))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i][0], error.text, bad[i][1]);
        json_decref(json);
    }
}

static void test_sampling_agrees(void **state)
{
    (void)state;
    /* what the api lets through, the sampler takes: the ends of every range */
    static const char *const good[] = {
        "{\"prompt\":\"p\",\"temperature\":0}",    "{\"prompt\":\"p\",\"temperature\":10}",
        "{\"prompt\":\"p\",\"top_k\":0}",          "{\"prompt\":\"p\",\"top_k\":16777216}",
        "{\"prompt\":\"p\",\"top_p\":1}",          "{\"prompt\":\"p\",\"top_p\":0.000001}",
        "{\"prompt\":\"p\",\"min_p\":0}",          "{\"prompt\":\"p\",\"min_p\":0.999}",
        "{\"prompt\":\"p\",\"repeat_penalty\":1}", "{\"prompt\":\"p\",\"repeat_penalty\":10}",
        "{\"prompt\":\"p\",\"repeat_last\":0}",    "{\"prompt\":\"p\",\"repeat_last\":1048576}",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct body_call call;
        struct error error = {0};
        json_t *json = parse(good[i]);
        assert_int_equal(body_read_call(json, &call, &error), 0);
        const char *wrong = sampler_params_check(&call.params.sampling);
        if (wrong)
            fail_msg("%s: %s", good[i], wrong);
        json_decref(json);
    }
}

static void test_context(void **state)
{
    (void)state;
    struct body_context context;
    struct error error = {0};
    json_t *json = parse("{\"name\":\"n\",\"system_prompt\":\"s\"}");
    assert_int_equal(body_read_context(json, &context, &error), 0);
    assert_string_equal(context.name.data, "n");
    assert_string_equal(context.system_prompt.data, "s");
    assert_int_equal(body_read_fork(json, &context, &error), -EINVAL); /* a fork keeps its system prompt */
    assert_non_null(strstr(error.text, "system_prompt"));
    assert_int_equal(body_read_nothing(json, &error), -EINVAL);
    json_decref(json);
    json = parse("");
    assert_int_equal(body_read_context(json, &context, &error), 0);
    assert_null(context.name.data);
    assert_null(context.system_prompt.data);
    assert_int_equal(body_read_nothing(json, &error), 0);
    json_decref(json);
    for (unsigned length = BODY_NAME_BYTES; length <= BODY_NAME_BYTES + 1; length++) {
        char text[BODY_NAME_BYTES + 64];
        sprintf(text, "{\"name\":\"%0*d\"}", (int)length, 0);
        json = parse(text);
        assert_int_equal(body_read_fork(json, &context, &error), length <= BODY_NAME_BYTES ? 0 : -EINVAL);
        json_decref(json);
    }
}

static void test_tokens(void **state)
{
    (void)state;
    struct body_tokenize tokenize;
    struct error error = {0};
    json_t *json = parse("{\"text\":\"\",\"special\":true}");
    assert_int_equal(body_read_tokenize(json, &tokenize, &error), 0);
    assert_int_equal(tokenize.text.length, 0);
    assert_true(tokenize.special);
    json_decref(json);
    static const struct {
        const char *text;
        int code;
        size_t count;
    } cases[] = {
        {"{\"tokens\":[]}", 0, 0},
        {"{\"tokens\":[0,9,3]}", 0, 3},
        {"{\"tokens\":[10]}", -EINVAL, 0},
        {"{\"tokens\":[-1]}", -EINVAL, 0},
        {"{\"tokens\":[1.0]}", -EINVAL, 0},
        {"{\"tokens\":3}", -EINVAL, 0},
        {"{}", -EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokens tokens = {0};
        json = parse(cases[i].text);
        assert_int_equal(body_read_detokenize(json, 10, &tokens, &error), cases[i].code);
        if (cases[i].code == 0)
            assert_int_equal(tokens.count, cases[i].count);
        tokens_deinit(&tokens);
        json_decref(json);
    }
}

/* Short of memory at any point, a body is -ENOMEM, never half read or called invalid. */
static void test_memory_faults(void **state)
{
    (void)state;
    const char *text = "{\"prompt\":\"hello there\",\"stop\":[\"a\",\"b\"],\"temperature\":0.5,\"seed\":4}";
    bool done = false;
    for (long nth = 1; !done; nth++) {
        json_t *json = NULL;
        struct body_call call;
        struct error error = {0};
        mem_fault_set(nth, false);
        int code = body_parse(text, strlen(text), &json, &error);
        if (code == 0)
            code = body_read_call(json, &call, &error);
        done = mem_fault_hits() == 0;
        mem_fault_set(0, false);
        assert_int_equal(code, done ? 0 : -ENOMEM);
        json_decref(json);
        assert_true(nth < 200);
    }
    done = false;
    for (long nth = 1; !done; nth++) {
        struct answer answer = {0};
        mem_fault_set(nth, false);
        answer_error(&answer, 404, "not_found_error", "context_not_found", "no \xff such");
        done = mem_fault_hits() == 0;
        mem_fault_set(0, false);
        assert_int_equal(answer.status, done ? 404 : 500);
        assert_true(done == (answer.text != NULL));
        answer_deinit(&answer);
        assert_true(nth < 200);
    }
}

/* ---- answers ---- */

static void check_failure(int code, unsigned status, const char *name, bool retry)
{
    struct answer answer = {0};
    struct error error;
    error_set(&error, code, "why \xc3");
    answer_failure(&answer, &error);
    assert_int_equal(answer.status, status);
    assert_true(answer.retry == retry);
    json_t *json = json_loadb(answer.text, answer.text_bytes, 0, NULL);
    assert_non_null(json);
    const char *message, *type, *found;
    assert_int_equal(
        json_unpack(json, "{s:{s:s,s:s,s:s}}", "error", "message", &message, "type", &type, "code", &found),
        0);
    assert_string_equal(message, "why ?");
    assert_string_equal(found, name);
    assert_non_null(strstr(type, "_error"));
    json_decref(json);
    answer_deinit(&answer);
}

static void test_failures(void **state)
{
    (void)state;
    check_failure(-ENOENT, 404, "context_not_found", false);
    check_failure(-EINVAL, 400, "invalid_value", false);
    check_failure(-E2BIG, 400, "context_length_exceeded", false);
    check_failure(-EDQUOT, 429, "context_quota_exceeded", false);
    check_failure(-EAGAIN, 503, "queue_full", true);
    check_failure(-ESHUTDOWN, 503, "shutting_down", false);
    check_failure(-ECANCELED, 409, "cancelled", false);
    check_failure(-ENOSPC, 507, "insufficient_storage", false);
    check_failure(-EROFS, 500, "read_only_storage", false);
    check_failure(-EIO, 500, "storage_error", false);
    check_failure(-ENOMEM, 500, "out_of_memory", false);
    check_failure(-EPERM, 500, "internal_error", false);
}

static void test_numbers(void **state)
{
    (void)state;
    static const double in[] = {0, 1.23456, 1e300, 0.0 / 0.0, -1.0 / 0.0}, out[] = {0, 1.235, 0, 0, 0};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++) {
        json_t *number = answer_number(in[i]);
        assert_true(json_is_real(number) && json_real_value(number) == out[i]);
        json_decref(number);
    }
}

/* ---- routes ---- */

static void handler_a(struct exchange *exchange)
{
    (void)exchange;
}

static void test_routes(void **state)
{
    (void)state;
    static const struct route routes[] = {
        {"GET", "/v1/things", handler_a},           {"POST", "/v1/things", handler_a},
        {"GET", "/v1/things/{id}", handler_a},      {"DELETE", "/v1/things/{id}", handler_a},
        {"POST", "/v1/things/{id}/run", handler_a},
    };
    static const struct {
        const char *method, *path;
        int row; /* -1: none */
        const char *argument, *allow;
    } cases[] = {
        {"GET", "/v1/things", 0, "", "GET, HEAD, POST"},
        {"HEAD", "/v1/things", 0, "", "GET, HEAD, POST"},
        {"POST", "/v1/things", 1, "", "GET, HEAD, POST"},
        {"PUT", "/v1/things", -1, "", "GET, HEAD, POST"},
        {"get", "/v1/things", -1, "", "GET, HEAD, POST"},
        {"GET", "/v1/things/", -1, "", ""},
        {"GET", "/v1/things/a-1", 2, "a-1", "GET, HEAD, DELETE"},
        {"DELETE", "/v1/things/a%2fb", 3, "a%2fb", "GET, HEAD, DELETE"},
        {"POST", "/v1/things/x/run", 4, "x", "POST"},
        {"GET", "/v1/things/x/run", -1, "", "POST"},
        {"POST", "/v1/things//run", -1, "", ""},
        {"POST", "/v1/things/x/run/", -1, "", ""},
        {"POST", "/v1/things/x/y/run", -1, "", ""},
        {"GET", "/v1/thing", -1, "", ""},
        {"GET", "/v1/thingss", -1, "", ""},
        {"GET", "", -1, "", ""},
        {"GET",
         "/v1/things/"
         "0123456789012345678901234567890123456789012345678901234567890123456789",
         2, "", "GET, HEAD, DELETE"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct route_match match;
        route_find(routes, sizeof routes / sizeof *routes, cases[i].method, cases[i].path, &match);
        assert_ptr_equal(match.route, cases[i].row < 0 ? NULL : &routes[cases[i].row]);
        assert_string_equal(match.argument, cases[i].argument);
        assert_string_equal(match.allow, cases[i].allow);
    }
}

/* ---- callers ---- */

static void test_callers(void **state)
{
    (void)state;
    assert_true(caller_app_valid("a"));
    assert_true(caller_app_valid("Mail-2.0_x"));
    assert_true(caller_app_valid("0123456789012345678901234567890123456789012345678901234567890123"));
    assert_false(caller_app_valid("01234567890123456789012345678901234567890123456789012345678901234"));
    static const char *const bad_apps[] = {NULL, "", " ", "a b", "a/b", "\xc3\xa9", "a\n", "a,b"};
    for (size_t i = 0; i < sizeof bad_apps / sizeof *bad_apps; i++)
        assert_false(caller_app_valid(bad_apps[i]));

    static const char *const good_hosts[] = {"localhost",       "LocalHost:80", "127.0.0.1",
                                             "127.0.0.1:65535", "[::1]",        "[::1]:8080"};
    for (size_t i = 0; i < sizeof good_hosts / sizeof *good_hosts; i++)
        assert_true(caller_host_local(good_hosts[i]));
    static const char *const bad_hosts[] = {NULL,
                                            "",
                                            "localhost.evil.org",
                                            "evil.org",
                                            "127.0.0.1.nip.io",
                                            "localhost:",
                                            "localhost:80x",
                                            "localhost:123456",
                                            "127.0.0.2",
                                            "::1",
                                            "[::1",
                                            "localhost@evil.org",
                                            " localhost"};
    for (size_t i = 0; i < sizeof bad_hosts / sizeof *bad_hosts; i++)
        assert_false(caller_host_local(bad_hosts[i]));

    assert_true(caller_token_right("Bearer abc", "abc"));
    assert_true(caller_token_right("bearer  abc", "abc"));
    static const char *const bad_tokens[] = {
        NULL, "", "abc", "Bearer", "Bearer ", "Bearer ab", "Bearer abcd", "Bearer abd", "Basic abc"};
    for (size_t i = 0; i < sizeof bad_tokens / sizeof *bad_tokens; i++)
        assert_false(caller_token_right(bad_tokens[i], "abc"));
    assert_false(caller_token_right("Bearer ", ""));
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void test_token_file(void **state)
{
    char directory[200], path[256], token[API_TOKEN_BYTES], again[API_TOKEN_BYTES];
    struct error error = {0};
    struct stat st;
    snprintf(directory, sizeof directory, "%s/state/deep", (const char *)*state);
    snprintf(path, sizeof path, "%s/token", directory);
    assert_int_equal(api_token_load(directory, token, &error), 0);
    assert_int_equal(strspn(token, "0123456789abcdef"), 64);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(directory, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(api_token_load(directory, again, &error), 0);
    assert_string_equal(token, again);
    static const char *const damaged[] = {
        "",
        "\n",
        "short\n",
        "g123456789012345678901234567890123456789012345678901234567890123\n",
        "00123456789012345678901234567890123456789012345678901234567890123\n",
        "0123456789012345678901234567890123456789012345678901234567890123\nx"};
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        write_text(path, damaged[i]);
        assert_int_equal(api_token_load(directory, again, &error), -EINVAL);
    }
    unlink(path);
    assert_int_equal(api_token_load(directory, again, &error), 0);
    assert_string_not_equal(token, again);
}

/* ---- sockets ---- */

static int connect_to(const char *path)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    snprintf(local.sun_path, sizeof local.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&local, sizeof local) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void test_unix_socket(void **state)
{
    char path[100];
    struct os_listener listener, second;
    struct error error = {0};
    struct stat st;
    snprintf(path, sizeof path, "%s/run/x.sock", (const char *)*state);
    assert_int_equal(os_listen_unix(path, 0600, &listener, &error), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(os_listen_unix(path, 0600, &second, &error), -EADDRINUSE);
    int fd = connect_to(path);
    assert_true(fd >= 0); /* the first was not disturbed */
    close(fd);
    close(listener.descriptor); /* it dies without cleaning up */
    assert_int_equal(os_listen_unix(path, 0666, &second, &error), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666);
    listener = second;
    unlink(path); /* someone takes the file away and another takes its place */
    assert_int_equal(os_listen_unix(path, 0666, &second, &error), 0);
    os_listen_close(&listener); /* which stays */
    os_listen_close(&listener);
    fd = connect_to(path);
    assert_true(fd >= 0);
    close(fd);
    os_listen_close(&second);
    assert_int_equal(access(path, F_OK), -1);
    write_text(path, "a file");
    assert_int_equal(os_listen_unix(path, 0600, &second, &error), -EEXIST);
    assert_int_equal(access(path, F_OK), 0);
    char longer[200];
    memset(longer, 'a', sizeof longer);
    longer[OS_SOCKET_PATH_BYTES] = 0;
    assert_int_equal(os_listen_unix(longer, 0600, &second, &error), -EINVAL);
    assert_int_equal(os_listen_unix("", 0600, &second, &error), -EINVAL);
}

static void test_peers(void **state)
{
    char path[100];
    struct os_listener listener;
    uid_t uid = (uid_t)-1;
    snprintf(path, sizeof path, "%s/peer.sock", (const char *)*state);
    assert_int_equal(os_listen_unix(path, 0600, &listener, NULL), 0);
    int client = connect_to(path), server = accept(listener.descriptor, NULL, NULL);
    assert_true(client >= 0 && server >= 0);
    assert_int_equal(os_socket_peer_uid(server, &uid), 0);
    assert_int_equal(uid, geteuid());
    assert_false(os_socket_peer_gone(server));
    shutdown(client, SHUT_WR); /* done with sending, still reading */
    assert_false(os_socket_peer_gone(server));
    close(client);
    assert_true(os_socket_peer_gone(server));
    close(server);
    assert_true(os_socket_peer_gone(server));
    os_listen_close(&listener);
}

static void test_tcp_addresses(void **state)
{
    (void)state;
    struct os_listener listener, adopted;
    struct error error = {0};
    static const char *const bad[] = {
        "0.0.0.0:80", "192.168.1.1:80", "[::]:80",         "localhost:80", "127.0.0.1",
        "127.0.0.1:", "127.0.0.1:x",    "127.0.0.1:65536", ":80",          "",
        "[::1:80",    "::1:80",         "127.0.0.1:-1",    "[]:80",        "[::ffff:127.0.0.1]:80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char address[64];
        assert_int_equal(os_listen_tcp(bad[i], &listener, &error), -EINVAL);
        snprintf(address, sizeof address, "tcp:%s", bad[i]);
        assert_false(os_listen_address_valid(address));
    }
    assert_true(os_listen_address_valid("tcp:[::1]:80"));
    assert_true(os_listen_address_valid("unix:/x"));
    assert_false(os_listen_address_valid("unix:"));
    assert_false(os_listen_address_valid("http:/x"));
    assert_int_equal(os_listen_tcp("127.0.0.1:0", &listener, &error), 0);
    assert_true(listener.tcp);
    assert_int_equal(strncmp(listener.name, "tcp:127.0.0.1:", 14), 0);
    assert_true(atoi(listener.name + 14) > 0);
    struct os_listener taken;
    assert_int_equal(os_listen_tcp(listener.name + 4, &taken, &error), -EADDRINUSE);
    assert_int_equal(os_listen_adopt(listener.descriptor, &adopted, &error), 0);
    assert_string_equal(adopted.name, listener.name);
    assert_int_equal(os_listen_adopt(0, &adopted, &error) < 0, 1);
    os_listen_close(&listener);
}

static int make_directory(void **state)
{
    static char directory[] = "/tmp/llms-request-XXXXXX";
    body_init();
    *state = mkdtemp(directory);
    return *state ? 0 : -1;
}

static int remove_directory(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", (const char *)*state);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),         cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_call_defaults), cmocka_unit_test(test_call_all),
        cmocka_unit_test(test_call_refused),  cmocka_unit_test(test_sampling_agrees),
        cmocka_unit_test(test_context),       cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_memory_faults), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_numbers),       cmocka_unit_test(test_routes),
        cmocka_unit_test(test_callers),       cmocka_unit_test(test_token_file),
        cmocka_unit_test(test_unix_socket),   cmocka_unit_test(test_peers),
        cmocka_unit_test(test_tcp_addresses),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
