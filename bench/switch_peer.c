/* llama-server with the calls of llms-bench switch: the same token sequences in the same order, the time to
 * the first token measured here, at its client. See switch.h. */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench.h"
#include "peer.h"
#include "switch.h"

enum { START_S = 180, STOP_S = 10, ANSWER_S = 900, ARGUMENTS = 24, MARGIN_TOKENS = 64 };
/* What --cache-ram calls no limit (-1) leaves another in force: as many tokens as one context has. */
static const uint64_t NO_LIMIT_MB = 1 << 20;

static const char *const mode_names[SWITCH_PEER_MODES] = {"cache of the budget", "cache without limit",
                                                          "slot save and restore"};

struct server {
    const struct switch_options *options;
    const struct switch_run *run;
    struct switch_peer *out;
    bool slots; /* the mode of saving and restoring by hand */
    pid_t pid;
    unsigned port;
    CURL *curl;
    struct buffer answer, request;
    uint64_t started_ns; /* of the request under way */
    double first_ms;     /* when the first event came; 0: none yet */
};

static void sleep_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* ---- requests ---- */

static size_t receive(char *data, size_t size, size_t count, void *argument)
{
    struct server *server = argument;
    if (buffer_append(&server->answer, data, size * count) < 0)
        return 0;
    if (server->first_ms == 0 && strstr(server->answer.data, "data:"))
        server->first_ms = clock_ms_since(server->started_ns);
    return count;
}

static int look(void *argument, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)argument, (void)a, (void)b, (void)c, (void)d;
    return switch_interrupted != 0;
}

/* Sends body (NULL: GET); the answer is in server->answer. */
static int request(struct server *server, const char *path, const char *body, struct error *error)
{
    char url[128];
    long status = 0;
    snprintf(url, sizeof url, "http://127.0.0.1:%u%s", server->port, path);
    buffer_clear(&server->answer);
    server->first_ms = 0;
    curl_easy_setopt(server->curl, CURLOPT_URL, url);
    curl_easy_setopt(server->curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(server->curl, body ? CURLOPT_POST : CURLOPT_HTTPGET, 1L);
    server->started_ns = clock_ns();
    CURLcode code = curl_easy_perform(server->curl);
    if (switch_interrupted)
        return error_set(error, -EINTR, "interrupted");
    if (code != CURLE_OK)
        return error_set(error, -EIO, "llama-server: %s: %s", path, curl_easy_strerror(code));
    curl_easy_getinfo(server->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        return error_set(error, -EIO, "llama-server: %s: status %ld: %.200s", path, status,
                         server->answer.data ? server->answer.data : "");
    return 0;
}

/* The prompt tokens that were computed, from the event that tells them; -1: none does. */
static double computed_tokens(const struct server *server)
{
    double tokens = -1;
    for (const char *at = server->answer.data; at && (at = strstr(at, "data:")) != NULL; at += 5) {
        const char *end = strchr(at, '\n');
        size_t length = end ? (size_t)(end - at) : strlen(at);
        json_t *event = json_loadb(at + 5, length - 5, 0, NULL);
        json_t *count = json_object_get(json_object_get(event, "timings"), "prompt_n");
        if (json_is_number(count))
            tokens = json_number_value(count);
        json_decref(event);
    }
    return tokens;
}

/* Lets it answer the first `count` of the tokens with one token. */
static int complete(struct server *server, const struct tokens *tokens, size_t count, struct error *error)
{
    struct buffer *body = &server->request;
    buffer_clear(body);
    int code =
        buffer_append_text(body, "{\"n_predict\":1,\"stream\":true,\"cache_prompt\":true,\"id_slot\":0,"
                                 "\"temperature\":0,\"prompt\":[");
    for (size_t i = 0; i < count && code == 0; i++)
        code = buffer_printf(body, "%s%" PRId32, i ? "," : "", tokens->ids[i]);
    if (code == 0)
        code = buffer_append_text(body, "]}");
    if (code < 0)
        return error_set(error, code, "out of memory");
    code = request(server, "/completion", body->data, error);
    if (code == 0 && server->first_ms == 0)
        return error_set(error, -EIO, "llama-server answered without a token: %.200s",
                         server->answer.data ? server->answer.data : "");
    return code;
}

static int slot(struct server *server, const char *action, uint32_t context, struct error *error)
{
    char path[64], body[64];
    snprintf(path, sizeof path, "/slots/0?action=%s", action);
    snprintf(body, sizeof body, "{\"filename\":\"context-%u.bin\"}", context);
    return request(server, path, body, error);
}

static int save(struct server *server, uint32_t context, bool counts, struct error *error)
{
    uint64_t start = clock_ns();
    int code = server->slots ? slot(server, "save", context, error) : 0;
    if (code == 0 && server->slots && counts)
        server->out->save_ms[server->out->save_count++] = clock_ms_since(start);
    return code;
}

static int repeat_call(struct server *server, const struct switch_call *call, struct error *error)
{
    struct switch_peer *out = server->out;
    uint64_t start = clock_ns();
    double before = 0;
    int code = 0;
    if (server->slots && call->kind == SWITCH_AWAY) {
        code = slot(server, "restore", call->context, error);
        before = clock_ms_since(start);
    }
    const struct tokens *tokens = call->whole.count ? &call->whole : &server->run->sequences[call->context];
    if (code == 0)
        code = complete(server, tokens, call->sent, error);
    if (code == 0 && !call->warmup) {
        out->ms[call->kind][out->count[call->kind]] = before + server->first_ms;
        out->computed[call->kind][out->count[call->kind]++] = computed_tokens(server);
    }
    if (code == 0)
        code = save(server, call->context, !call->warmup, error);
    if (code == 0)
        sleep_ms((long)server->options->pause_ms);
    return code;
}

static int repeat_all(struct server *server, struct error *error)
{
    const struct switch_run *run = server->run;
    int code = 0;
    for (uint32_t i = 0; i < run->context_count && code == 0; i++) {
        bench_progress("llama-server, %s: filling context %u of %zu", server->out->mode, i + 1,
                       run->context_count);
        code = complete(server, &run->sequences[i], run->filled[i], error);
        if (code == 0)
            code = save(server, i, false, error);
    }
    for (size_t i = 0; i < run->call_count && code == 0; i++) {
        bench_progress("llama-server, %s: call %zu of %zu", server->out->mode, i + 1, run->call_count);
        if (run->calls[i].kind != SWITCH_RESTORE)
            code = repeat_call(server, &run->calls[i], error);
    }
    return code;
}

/* ---- the process ---- */

static int free_port(unsigned *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), code = 0;
    if (descriptor < 0 || bind(descriptor, (struct sockaddr *)&address, length) < 0 ||
        getsockname(descriptor, (struct sockaddr *)&address, &length) < 0)
        code = -errno;
    if (descriptor >= 0)
        close(descriptor);
    *port = ntohs(address.sin_port);
    return code;
}

/* The directories of the model and of the slots' files, for the peer to see. */
static int show_directories(const char *model, const char *directory)
{
    struct buffer list = {0};
    int code = buffer_printf(&list, "%.*s %.*s", (int)(strrchr(model, '/') - model), model,
                             (int)(strrchr(directory, '/') - directory), directory);
    if (code == 0)
        peer_show(list.data);
    buffer_deinit(&list);
    return code;
}

static int spawn(struct server *server, const char *path, const char *model, unsigned mode)
{
    char context[24], threads[16], port[16], cache[24];
    size_t longest = 0, n = 0;
    for (size_t i = 0; i < server->run->context_count; i++)
        if (server->run->sequences[i].count > longest)
            longest = server->run->sequences[i].count;
    for (size_t i = 0; i < server->run->call_count; i++)
        if (server->run->calls[i].sent > longest)
            longest = server->run->calls[i].sent;
    uint64_t budget_mb = (server->options->budget_bytes + (1 << 20) - 1) >> 20;
    snprintf(context, sizeof context, "%zu", longest + MARGIN_TOKENS);
    snprintf(threads, sizeof threads, "%u", server->run->threads);
    snprintf(port, sizeof port, "%u", server->port);
    uint64_t cache_mb = mode == 0 ? budget_mb : mode == 1 ? NO_LIMIT_MB : 0;
    snprintf(cache, sizeof cache, "%" PRIu64, cache_mb);
    const char *argv[ARGUMENTS] = {
        path, "run",   "llama-server", "-m",        model,    "-c", context,       "-np", "1",
        "-t", threads, "--host",       "127.0.0.1", "--port", port, "--cache-ram", cache};
    while (argv[n])
        n++;
    if (server->slots) {
        argv[n++] = "--slot-save-path";
        argv[n++] = server->options->directory;
    }
    int code = show_directories(model, server->options->directory);
    return code < 0 ? code : peer_start((char *const *)(uintptr_t)argv, NULL, &server->pid);
}

static int await_ready(struct server *server, const char *path, struct error *error)
{
    uint64_t start = clock_ns();
    while (clock_ms_since(start) < START_S * 1000.0) {
        int status = 0;
        if (request(server, "/health", NULL, NULL) == 0)
            return 0;
        if (switch_interrupted)
            return error_set(error, -EINTR, "interrupted");
        if (waitpid(server->pid, &status, WNOHANG) == server->pid) {
            server->pid = 0;
            return error_set(error, -ENOENT,
                             "llama-server did not start (status %d): is it installed? %s setup",
                             WIFEXITED(status) ? WEXITSTATUS(status) : -1, path);
        }
        sleep_ms(100);
    }
    return error_set(error, -ETIMEDOUT, "llama-server was not ready after %d s", START_S);
}

static void stop(struct server *server)
{
    uint64_t start = clock_ns();
    if (server->pid <= 0)
        return;
    kill(server->pid, SIGTERM);
    while (clock_ms_since(start) < STOP_S * 1000.0) {
        if (waitpid(server->pid, NULL, WNOHANG) != 0)
            return;
        sleep_ms(20);
    }
    kill(server->pid, SIGKILL);
    while (waitpid(server->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static int allocate(struct switch_peer *out, size_t calls)
{
    for (int kind = 0; kind < 2; kind++) {
        out->ms[kind] = mem_calloc(calls, sizeof(double));
        out->computed[kind] = mem_calloc(calls, sizeof(double));
        if (!out->ms[kind] || !out->computed[kind])
            return -ENOMEM;
    }
    out->save_ms = mem_calloc(calls, sizeof(double));
    return out->save_ms ? 0 : -ENOMEM;
}

static int open_curl(struct server *server)
{
    server->curl = curl_easy_init();
    if (!server->curl)
        return -ENOMEM;
    curl_easy_setopt(server->curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(server->curl, CURLOPT_WRITEDATA, server);
    curl_easy_setopt(server->curl, CURLOPT_XFERINFOFUNCTION, look);
    curl_easy_setopt(server->curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(server->curl, CURLOPT_TIMEOUT, (long)ANSWER_S);
    curl_easy_setopt(server->curl, CURLOPT_NOSIGNAL, 1L);
    /* after a stream the server closes, which a request that follows at once would not notice */
    curl_easy_setopt(server->curl, CURLOPT_FORBID_REUSE, 1L);
    curl_easy_setopt(server->curl, CURLOPT_PROXY, ""); /* whatever the environment says */
    return 0;
}

int switch_peer(const struct switch_options *options, const struct switch_run *run, const char *path,
                unsigned mode, struct switch_peer *out, struct error *error)
{
    struct server server = {.options = options, .run = run, .out = out, .slots = mode == 2};
    char model[PATH_MAX];
    *out = (struct switch_peer){.mode = mode_names[mode]};
    if (!realpath(options->model, model))
        return error_set(error, -errno, "%s: %s", options->model, strerror(errno));
    int code = allocate(out, run->call_count);
    if (code == 0)
        code = open_curl(&server);
    if (code == 0)
        code = free_port(&server.port);
    if (code == 0)
        code = spawn(&server, path, model, mode);
    if (code < 0)
        error_set(error, code, "%s: %s", path, strerror(-code));
    if (code == 0)
        code = await_ready(&server, path, error);
    if (code == 0)
        code = repeat_all(&server, error);
    stop(&server);
    if (server.curl)
        curl_easy_cleanup(server.curl);
    buffer_deinit(&server.answer);
    buffer_deinit(&server.request);
    bench_progress(NULL);
    return code;
}

void switch_peer_deinit(struct switch_peer *peer)
{
    for (int kind = 0; kind < 2; kind++) {
        mem_free(peer->ms[kind]);
        mem_free(peer->computed[kind]);
    }
    mem_free(peer->save_ms);
    *peer = (struct switch_peer){0};
}
