/* libllms against a daemon that misbehaves: a thread that listens on a Unix socket, takes one request a
 * connection and answers with the bytes the test gives it, whole, one by one, or cut off. */
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/array.h"
#include "base/clock.h"
#include "llms.h"

static const char health[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
                             "{\"status\":\"ok\"}";
#define EVENTS                                                                                               \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"
#define CALL_OBJECT                                                                                          \
    "{\"object\":\"call\",\"context\":\"c1\",\"turn\":3,\"reply\":\"Hi "                                     \
    "there\",\"finish\":\"end\",\"usage\":{"                                                                 \
    "\"prompt_tokens\":5,\"completion_tokens\":2,\"cached_tokens\":40,\"context_tokens\":47,\"turns_"        \
    "dropped\":1},"                                                                                          \
    "\"timings\":{\"queue_ms\":0.5,\"switch_ms\":1.25,\"ttft_ms\":3.5,\"total_ms\":9,\"prompt_tokens_per_"   \
    "s\":900,"                                                                                               \
    "\"generate_tokens_per_s\":250.5,\"chunks_resident\":1,\"chunks_loaded\":2,\"chunks_recomputed\":3}}"

struct server {
    char directory[32], address[64];
    int listener;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows; the thread holds it while it serves */
    const char *health;   /* the answer to GET /health */
    const char *answer;   /* and to anything else */
    bool slowly;          /* byte by byte */
    bool hang;            /* after the answer, until the client leaves */
    struct buffer request;
};

static void take_request(struct server *server, int fd)
{
    char bytes[4096];
    size_t want = 0;
    buffer_clear(&server->request);
    for (;;) {
        ssize_t got = read(fd, bytes, sizeof bytes);
        if (got <= 0)
            return;
        buffer_append(&server->request, bytes, (size_t)got);
        char *end = strstr(server->request.data, "\r\n\r\n");
        if (!end)
            continue;
        const char *header = strstr(server->request.data, "Content-Length: ");
        want = (size_t)(end + 4 - server->request.data) +
               (header && header < end ? strtoul(header + 16, NULL, 10) : 0);
        if (server->request.length >= want)
            return;
    }
}

static void send_answer(const struct server *server, int fd, const char *answer)
{
    size_t length = strlen(answer), step = server->slowly ? 1 : length;
    for (size_t at = 0; at < length; at += step)
        if (send(fd, answer + at, step, MSG_NOSIGNAL) < 0)
            return;
}

static void *serve(void *user)
{
    struct server *server = user;
    for (;;) {
        int fd = accept(server->listener, NULL, NULL);
        if (fd < 0)
            return NULL;
        pthread_mutex_lock(&server->lock);
        take_request(server, fd);
        bool is_health = server->request.data && strncmp(server->request.data, "GET /health", 11) == 0;
        send_answer(server, fd, is_health ? server->health : server->answer);
        bool hang = server->hang && !is_health;
        pthread_mutex_unlock(&server->lock);
        if (hang) {
            struct pollfd gone = {.fd = fd, .events = POLLIN};
            poll(&gone, 1, 20000);
        }
        close(fd);
    }
}

static int start(void **state)
{
    static struct server server;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    server = (struct server){.lock = PTHREAD_MUTEX_INITIALIZER, .health = health, .answer = ""};
    strcpy(server.directory, "/tmp/llms-test-XXXXXX");
    if (!mkdtemp(server.directory))
        return -1;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/s", server.directory);
    snprintf(server.address, sizeof server.address, "unix:%s", address.sun_path);
    server.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server.listener < 0 || bind(server.listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(server.listener, 8) < 0 || pthread_create(&server.thread, NULL, serve, &server) != 0)
        return -1;
    *state = &server;
    return 0;
}

static void stop_server(struct server *server)
{
    if (server->listener < 0)
        return;
    shutdown(server->listener, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->listener);
    server->listener = -1;
}

static int stop(void **state)
{
    struct server *server = *state;
    stop_server(server);
    unlink(server->address + 5);
    rmdir(server->directory);
    buffer_deinit(&server->request);
    return 0;
}

/* What the daemon answers from now on. */
static void answer_with(struct server *server, const char *answer)
{
    pthread_mutex_lock(&server->lock);
    server->answer = answer;
    pthread_mutex_unlock(&server->lock);
}

/* The last request, once the daemon is done with it. */
static const char *request_of(struct server *server)
{
    pthread_mutex_lock(&server->lock);
    const char *text = server->request.data;
    pthread_mutex_unlock(&server->lock);
    return text;
}

static struct llms *bind_to(const struct server *server)
{
    struct llms *llms;
    assert_int_equal(llms_bind("test-app.1", server->address, &llms), 0);
    return llms;
}

/* Sums up what a call delivered. */
struct heard {
    struct buffer text;
    int pieces, stop_at; /* cancel at this piece; 0: never */
    bool stop_idle;      /* cancel when nothing comes */
};

static int hear(void *user, const char *text, size_t length)
{
    struct heard *heard = user;
    if (length == 0)
        return heard->stop_idle && heard->pieces;
    buffer_append(&heard->text, text, length);
    return ++heard->pieces == heard->stop_at;
}

static int call(struct server *server, const char *answer, struct heard *heard,
                struct llms_call_result *result, char *message, size_t bytes)
{
    struct llms *llms = bind_to(server);
    answer_with(server, answer);
    int code = llms_call(llms, "c1", "Hello", NULL, hear, heard, result);
    if (message)
        snprintf(message, bytes, "%s", llms_last_error(llms));
    llms_unbind(llms);
    request_of(server); /* done with the answer, which may be on a stack */
    return code;
}

static void test_a_call_streams(void **state)
{
    static const char answer[] =
        EVENTS ": waiting\r\n\r\nevent: later-invention\r\ndata: {\"object\":\"call.unknown\"}\r\n\r\n"
               "data: {\"object\":\"call.piece\",\"text\":\"Hi \"}\r\n\r\n"
               "data: {\"object\":\"call.piece\",\"text\":\"th\\u00e9re\\u0000\"}\n\ndata: " CALL_OBJECT
               "\n\ndata: [DONE]\n\n";
    struct server *server = *state;
    for (int slowly = 0; slowly < 2; slowly++) {
        struct heard heard = {0};
        struct llms_call_result result;
        pthread_mutex_lock(&server->lock);
        server->slowly = slowly;
        pthread_mutex_unlock(&server->lock);
        assert_int_equal(call(server, answer, &heard, &result, NULL, 0), 0);
        assert_int_equal(heard.pieces, 2);
        assert_int_equal(heard.text.length, 10);
        assert_memory_equal(heard.text.data, "Hi th\xc3\xa9re\0", 10);
        buffer_deinit(&heard.text);
        assert_string_equal(result.finish, "end");
        assert_int_equal(result.prompt_tokens, 5);
        assert_int_equal(result.reply_tokens, 2);
        assert_int_equal(result.cached_tokens, 40);
        assert_int_equal(result.context_tokens, 47);
        assert_int_equal(result.turns_dropped, 1);
        assert_int_equal(result.chunks_resident, 1);
        assert_int_equal(result.chunks_loaded, 2);
        assert_int_equal(result.chunks_recomputed, 3);
        assert_true(result.queue_ms == 0.5 && result.switch_ms == 1.25 && result.ttft_ms == 3.5);
        assert_true(result.total_ms == 9 && result.prompt_tokens_per_s == 900);
        assert_true(result.generate_tokens_per_s == 250.5);
    }
}

static void test_what_a_call_sends(void **state)
{
    struct server *server = *state;
    struct llms *llms = bind_to(server);
    const char *stops[] = {"\n", "END", NULL};
    struct llms_call_options options = LLMS_CALL_DEFAULTS;
    answer_with(server, EVENTS "data: " CALL_OBJECT "\n\n");
    assert_int_equal(llms_call(llms, "c1", "say \"h\xc3\xa4\"", &options, NULL, NULL, NULL), 0);
    assert_non_null(strstr(request_of(server), "POST /v1/contexts/c1/calls HTTP/1.1\r\n"));
    assert_non_null(strstr(request_of(server), "\r\nX-LLMS-App: test-app.1\r\n"));
    assert_non_null(
        strstr(request_of(server), "\r\n\r\n{\"prompt\":\"say \\\"h\xc3\xa4\\\"\",\"stream\":true}"));
    assert_null(strstr(request_of(server), "Expect"));
    options = (struct llms_call_options){.max_tokens = 7,
                                         .temperature = 0,
                                         .top_k = 0,
                                         .top_p = 0.5,
                                         .min_p = 0.25,
                                         .repeat_penalty = 1,
                                         .seed = 42,
                                         .stop = stops,
                                         .refuse_when_full = 1};
    assert_int_equal(llms_call(llms, "c1", "x", &options, NULL, NULL, NULL), 0);
    assert_non_null(
        strstr(request_of(server),
               "{\"prompt\":\"x\",\"stream\":true,\"max_tokens\":7,\"temperature\":0.0,\"top_k\":0,"
               "\"top_p\":0.5,\"min_p\":0.25,\"repeat_penalty\":1.0,\"seed\":42,"
               "\"stop\":[\"\\n\",\"END\"],\"when_full\":\"refuse\"}"));
    llms_unbind(llms);
}

static void test_a_daemon_that_dies(void **state)
{
    static const char *const answers[] = {
        "",
        "HTTP/1.1 200 OK\r\nContent-Type: text/ev",
        EVENTS,
        EVENTS "data: {\"object\":\"call.piece\",\"text\":\"Hi\"}\n\n",
        EVENTS "data: {\"object\":\"call.piece\",\"text\":\"Hi\"}\n\ndata: " CALL_OBJECT "\n",
        EVENTS "data: {\"object\":\"call.piece\",\"text\":\"Hi\"}\n\ndata: [DONE]\n\n",
        ("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
         "8\r\n: wait\n\n\r\n"),
    };
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        struct heard heard = {0};
        char message[128];
        int code = call(*state, answers[i], &heard, NULL, message, sizeof message);
        buffer_deinit(&heard.text);
        assert_int_equal(code, -ECONNRESET);
        assert_non_null(strstr(message, "the daemon"));
    }
    /* The turn was acknowledged before it died: that is a success. */
    struct heard heard = {0};
    assert_int_equal(call(*state,
                          "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n"
                          "data: " CALL_OBJECT "\n\n",
                          &heard, NULL, NULL, 0),
                     0);
}

static void test_errors_have_their_codes(void **state)
{
    static const struct {
        const char *answer;
        int code;
    } cases[] = {
        {"400 Bad Request\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":\"context_length_exceeded\"}}",
         -E2BIG},
        {"400 Bad Request\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":null}}", -EINVAL},
        {"401 Unauthorized\r\n\r\n{\"error\":{\"message\":\"why\"}}", -EACCES},
        {"404 Not Found\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":\"anything\"}}", -ENOENT},
        {"409 Conflict\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":\"cancelled\"}}", -ECANCELED},
        {"429 Too Many Requests\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":\"context_quota_exceeded\"}}",
         -EDQUOT},
        {"503 Service Unavailable\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":\"queue_full\"}}", -EAGAIN},
        {"503 Service Unavailable\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":\"loading\"}}", -EAGAIN},
        {"503 Service Unavailable\r\n\r\n{\"error\":{\"message\":\"why\",\"code\":\"shutting_down\"}}",
         -ESHUTDOWN},
        {"507 Insufficient Storage\r\n\r\n{\"error\":{\"message\":\"why\"}}", -ENOSPC},
        {"500 Internal Server Error\r\n\r\n{\"error\":{\"message\":\"why\"}}", -EIO},
        {"502 Bad Gateway\r\n\r\n<html>why</html>", -EIO},
        {"200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
         "data: {\"error\":{\"message\":\"why\",\"code\":\"shutting_down\"}}\n\n",
         -ESHUTDOWN},
        {"200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
         "data: {\"error\":{\"message\":\"why\",\"code\":\"context_length_exceeded\"}}\n\ndata: [DONE]\n\n",
         -E2BIG},
        {"200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {why\n\n", -EPROTO},
        {"200 OK\r\nContent-Type: application/json\r\n\r\n{\"why\":1}", -EPROTO},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct heard heard = {0};
        char answer[512], message[128];
        snprintf(answer, sizeof answer, "HTTP/1.1 %s", cases[i].answer);
        assert_int_equal(call(*state, answer, &heard, NULL, message, sizeof message), cases[i].code);
        assert_int_equal(heard.pieces, 0);
        if (cases[i].code != -EPROTO && i != 11)
            assert_string_equal(message, "why");
        else
            assert_true(strlen(message) > 10);
    }
}

static void test_cancelling(void **state)
{
    struct server *server = *state;
    struct heard at_piece = {.stop_at = 2}, at_rest = {.stop_idle = true};
    char message[128];
    assert_int_equal(call(server,
                          EVENTS "data: {\"object\":\"call.piece\",\"text\":\"a\"}\n\n"
                                 "data: {\"object\":\"call.piece\",\"text\":\"b\"}\n\n"
                                 "data: {\"object\":\"call.piece\",\"text\":\"c\"}\n\n",
                          &at_piece, NULL, message, sizeof message),
                     -ECANCELED);
    assert_string_equal(at_piece.text.data, "ab");
    assert_string_equal(message, "cancelled by the caller");
    buffer_deinit(&at_piece.text);
    /* Nothing comes any more, and still it can be cancelled. */
    pthread_mutex_lock(&server->lock);
    server->hang = true;
    pthread_mutex_unlock(&server->lock);
    uint64_t began = clock_ns();
    assert_int_equal(call(server, EVENTS "data: {\"object\":\"call.piece\",\"text\":\"a\"}\n\n", &at_rest,
                          NULL, message, sizeof message),
                     -ECANCELED);
    assert_true(clock_ms_since(began) < 5000);
    buffer_deinit(&at_rest.text);
}

static int reenter(void *user, const char *text, size_t length)
{
    (void)text;
    struct llms *llms = user;
    if (length) {
        assert_int_equal(llms_request(llms, "GET", "/v1/status", NULL, NULL), -EBUSY);
        assert_int_equal(llms_call(llms, "c1", "x", NULL, NULL, NULL, NULL), -EBUSY);
    }
    return 0;
}

static void test_a_handle_in_use_is_refused(void **state)
{
    struct server *server = *state;
    struct llms *llms = bind_to(server);
    answer_with(server,
                EVENTS "data: {\"object\":\"call.piece\",\"text\":\"a\"}\n\ndata: " CALL_OBJECT "\n\n");
    assert_int_equal(llms_call(llms, "c1", "x", NULL, reenter, llms, NULL), 0);
    llms_unbind(llms);
}

static void test_contexts(void **state)
{
    struct server *server = *state;
    struct llms *llms = bind_to(server);
    char id[LLMS_ID_BYTES] = "", *answer;
    answer_with(server, "HTTP/1.1 201 Created\r\n\r\n{\"id\":\"0123456789abcd\"}");
    assert_int_equal(llms_context_new(llms, "n", NULL, id), 0);
    assert_string_equal(id, "0123456789abcd");
    assert_non_null(strstr(request_of(server), "POST /v1/contexts HTTP/1.1\r\n"));
    assert_non_null(strstr(request_of(server), "\r\n\r\n{\"name\":\"n\"}"));
    assert_int_equal(llms_context_fork(llms, "abc", NULL, id), 0);
    assert_non_null(strstr(request_of(server), "POST /v1/contexts/abc/fork HTTP/1.1\r\n"));
    assert_int_equal(llms_context_prepare(llms, "abc"), 0);
    assert_non_null(strstr(request_of(server), "POST /v1/contexts/abc/prepare HTTP/1.1\r\n"));
    answer_with(server, "HTTP/1.1 204 No Content\r\n\r\n");
    assert_int_equal(llms_context_delete(llms, "abc"), 0);
    assert_non_null(strstr(request_of(server), "DELETE /v1/contexts/abc HTTP/1.1\r\n"));
    assert_int_equal(llms_request(llms, "GET", "/v1/status", NULL, &answer), 0);
    assert_string_equal(answer, "");
    free(answer);
    answer_with(server, "HTTP/1.1 404 Not Found\r\n\r\n{\"error\":{\"message\":\"gone\"}}");
    assert_int_equal(llms_request(llms, "GET", "/v1/contexts/abc", NULL, &answer), -ENOENT);
    assert_non_null(strstr(answer, "\"gone\""));
    assert_string_equal(llms_last_error(llms), "gone");
    free(answer);
    answer_with(server,
                "HTTP/1.1 201 Created\r\n\r\n{\"id\":\"an id that is far too long to be one of ours\"}");
    assert_int_equal(llms_context_new(llms, NULL, NULL, id), -EPROTO);
    llms_unbind(llms);
}

static void test_bad_arguments_reach_no_daemon(void **state)
{
    struct server *server = *state;
    struct llms *llms = bind_to(server), *none;
    struct llms_call_options options = LLMS_CALL_DEFAULTS;
    static const char *const ids[] = {
        "", "../status", "a/b", "a?b", "a b", "01234567890123456789012345678901", NULL};
    char id[LLMS_ID_BYTES];
    answer_with(server, "unseen");
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        assert_int_equal(llms_call(llms, ids[i], "x", NULL, NULL, NULL, NULL), -EINVAL);
        assert_int_equal(llms_context_delete(llms, ids[i]), -EINVAL);
    }
    assert_int_equal(llms_call(llms, "c", "\xff", NULL, NULL, NULL, NULL), -EILSEQ);
    assert_int_equal(llms_context_new(llms, "\xc3", NULL, id), -EILSEQ);
    assert_int_equal(llms_context_new(llms, NULL, "\xc3", id), -EILSEQ);
    options.temperature = NAN;
    assert_int_equal(llms_call(llms, "c", "x", &options, NULL, NULL, NULL), -EINVAL);
    assert_int_equal(llms_request(llms, "get", "/", NULL, NULL), -EINVAL);
    assert_int_equal(llms_request(llms, "GET", "status", NULL, NULL), -EINVAL);
    assert_int_equal(llms_request(llms, "GET", "/a\r\nX: y", NULL, NULL), -EINVAL);
    assert_memory_equal(request_of(server), "GET /health", 11);
    llms_unbind(llms);
    static const char *const apps[] = {
        "",          "a b",      "a/b",
        "a\r\nX: y", "\xc3\xa4", "01234567890123456789012345678901234567890123456789012345678901234"};
    for (size_t i = 0; i < sizeof apps / sizeof *apps; i++)
        assert_int_equal(llms_bind(apps[i], server->address, &none), -EINVAL);
    static const char *const addresses[] = {"http://x",
                                            "unix:",
                                            "tcp:",
                                            "tcp:localhost",
                                            "tcp:localhost:",
                                            "tcp::80",
                                            "tcp:localhost:0",
                                            "tcp:localhost:65536",
                                            "tcp:a/b:80",
                                            "tcp:a@b:80"};
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++)
        assert_int_equal(llms_bind("a", addresses[i], &none), -EINVAL);
}

static void test_no_daemon(void **state)
{
    struct server *server = *state;
    struct llms *llms = bind_to(server), *none;
    char path[200], saved[256];
    stop_server(server);
    assert_int_equal(llms_bind("a", server->address, &none),
                     -ECONNREFUSED); /* a socket that nobody listens on */
    assert_null(none);
    assert_int_equal(llms_call(llms, "c1", "x", NULL, NULL, NULL, NULL), -ECONNREFUSED);
    unlink(server->address + 5);
    assert_int_equal(llms_bind("a", server->address, &none), -ENOENT);
    assert_int_equal(llms_call(llms, "c1", "x", NULL, NULL, NULL, NULL), -ECONNREFUSED);
    assert_non_null(strstr(llms_last_error(llms), server->address));
    llms_unbind(llms);
    memset(path, 'x', sizeof path);
    memcpy(path, "unix:/", 6);
    path[sizeof path - 1] = 0;
    assert_int_equal(llms_bind("a", path, &none), -ENAMETOOLONG);
    const char *old = getenv("LLMS_ADDRESS");
    snprintf(saved, sizeof saved, "%s", old ? old : "");
    setenv("LLMS_ADDRESS", server->address, 1);
    assert_int_equal(llms_bind("a", NULL, &none), -ENOENT);
    setenv("LLMS_ADDRESS", saved, 1);
}

static void test_something_else_answers(void **state)
{
    static const struct {
        const char *health;
        int code;
    } cases[] = {
        {"HTTP/1.1 200 OK\r\n\r\n<html>hello</html>", -EPROTO},
        {"HTTP/1.1 404 Not Found\r\n\r\n{\"error\":{}}", -EPROTO},
        {"HTTP/1.1 401 Unauthorized\r\n\r\n{\"error\":{}}", -EACCES},
        {"SSH-2.0-OpenSSH_9.2\r\n", -EPROTO},
        {"", -ECONNRESET},
        {"HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"loading\"}", 0},
    };
    struct server *server = *state;
    struct llms *llms;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pthread_mutex_lock(&server->lock);
        server->health = cases[i].health;
        pthread_mutex_unlock(&server->lock);
        assert_int_equal(llms_bind("a", server->address, &llms), cases[i].code);
        llms_unbind(llms);
    }
}

static void test_small_things(void **state)
{
    (void)state;
    struct llms *none;
    llms_unbind(NULL);
    assert_string_equal(llms_last_error(NULL), "");
    assert_string_equal(llms_strerror(0), "success");
    assert_string_equal(llms_strerror(-ENOTDIR), strerror(ENOTDIR));
    assert_int_equal(llms_bind(NULL, NULL, &none), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_call_streams, start, stop),
        cmocka_unit_test_setup_teardown(test_what_a_call_sends, start, stop),
        cmocka_unit_test_setup_teardown(test_a_daemon_that_dies, start, stop),
        cmocka_unit_test_setup_teardown(test_errors_have_their_codes, start, stop),
        cmocka_unit_test_setup_teardown(test_cancelling, start, stop),
        cmocka_unit_test_setup_teardown(test_a_handle_in_use_is_refused, start, stop),
        cmocka_unit_test_setup_teardown(test_contexts, start, stop),
        cmocka_unit_test_setup_teardown(test_bad_arguments_reach_no_daemon, start, stop),
        cmocka_unit_test_setup_teardown(test_no_daemon, start, stop),
        cmocka_unit_test_setup_teardown(test_something_else_answers, start, stop),
        cmocka_unit_test(test_small_things),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
