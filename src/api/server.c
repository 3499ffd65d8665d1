/* Between libmicrohttpd and the routes: connections, who is at the other end, bodies, answers.
 *
 * Every connection has its own thread, which may wait in a handler. The lock guards `callers`; listeners are
 * added and quiesced by one thread (the daemon's main one). */
#include <errno.h>
#include <microhttpd.h>
#include <pthread.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "api/api.h"
#include "api/body.h"
#include "api/calls.h"
#include "api/routes.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/parse.h"

enum {
    LISTENERS = 16,
    CONNECTIONS = 256,
    IDLE_TIMEOUT_S = 60,
    BODY_LIMIT_BYTES = 1 << 20,
    DRAIN_FACTOR = 16,       /* a body up to so many times the limit is read and dropped, to be answered */
    STACK_BYTES = 512 << 10, /* of a connection's thread */
    STREAM_BLOCK_BYTES = 16 << 10,
};

struct listener {
    struct api *api;
    struct os_listener socket;
    struct MHD_Daemon *daemon;
    bool quiesced;
};

/* How many connections one uid has open. */
struct caller {
    uid_t uid;
    unsigned connections;
};

/* What is known about a connection from its start. */
struct peer {
    bool tcp;
    bool counted; /* in callers */
    bool crowded; /* its uid has too many connections; this one is refused */
    uid_t uid;    /* Unix sockets only */
};

struct api {
    struct api_options options;
    int64_t started_s;
    _Atomic(struct service *) service; /* NULL while the model loads */
    atomic_bool stopping;
    atomic_uint exchanges; /* requests under way */
    struct listener listeners[LISTENERS];
    size_t listener_count;
    pthread_mutex_t lock;
    struct caller *callers; /* those with connections */
    size_t caller_count, caller_capacity;
};

/* ---- connections ---- */

/* Counts a new connection of uid; false where it has too many, or memory is short. */
static bool caller_enter(struct api *api, uid_t uid)
{
    bool entered = false;
    size_t i = 0;
    pthread_mutex_lock(&api->lock);
    while (i < api->caller_count && api->callers[i].uid != uid)
        i++;
    if (i == api->caller_capacity) {
        size_t capacity = api->caller_capacity ? 2 * api->caller_capacity : 8;
        struct caller *more = mem_realloc(api->callers, capacity * sizeof *more);
        if (!more)
            goto done;
        api->callers = more;
        api->caller_capacity = capacity;
    }
    if (i == api->caller_count)
        api->callers[api->caller_count++] = (struct caller){.uid = uid};
    if (api->callers[i].connections < (api->options.connection_limit + 1) / 2) {
        api->callers[i].connections++;
        entered = true;
    }
done:
    pthread_mutex_unlock(&api->lock);
    return entered;
}

static void caller_leave(struct api *api, uid_t uid)
{
    pthread_mutex_lock(&api->lock);
    for (size_t i = 0; i < api->caller_count; i++)
        if (api->callers[i].uid == uid && --api->callers[i].connections == 0) {
            api->callers[i] = api->callers[--api->caller_count];
            break;
        }
    pthread_mutex_unlock(&api->lock);
}

static int connection_socket(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

static void connection_changed(void *user, struct MHD_Connection *connection, void **context,
                               enum MHD_ConnectionNotificationCode what)
{
    struct listener *listener = user;
    struct peer *peer = *context;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (peer && peer->counted)
            caller_leave(listener->api, peer->uid);
        mem_free(peer);
        *context = NULL;
        return;
    }
    if (!(peer = mem_calloc(1, sizeof *peer)))
        return; /* its requests are refused: nobody knows who it is */
    peer->tcp = listener->socket.tcp;
    if (!peer->tcp && os_socket_peer_uid(connection_socket(connection), &peer->uid) < 0) {
        mem_free(peer);
        return;
    }
    if (!peer->tcp) {
        peer->counted = caller_enter(listener->api, peer->uid);
        peer->crowded = !peer->counted;
    }
    *context = peer;
}

/* ---- a request's head ---- */

static const char *header(const struct exchange *exchange, const char *name)
{
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

/* Who asks, and may they. False: the answer says why not. */
static bool admit(struct exchange *exchange, const struct peer *peer)
{
    struct answer *answer = &exchange->answer;
    const struct route *route = exchange->match.route;
    const char *app = header(exchange, "X-LLMS-App");
    if (!peer) {
        answer_json(answer, 500, NULL);
        answer->close = true;
        return false;
    }
    if (peer->crowded) {
        answer_error(answer, 429, "rate_limit_error", "too_many_connections",
                     "this user has too many connections open");
        answer->close = answer->retry = true;
        return false;
    }
    if (peer->tcp && !caller_host_local(header(exchange, "Host"))) {
        answer_error(answer, 403, "invalid_request_error", "foreign_host",
                     "the Host header must be localhost, 127.0.0.1 or [::1]");
        return false;
    }
    if (peer->tcp && !(route && route->open) &&
        !caller_token_right(header(exchange, "Authorization"), exchange->api->options.token)) {
        answer_error(answer, 401, "authentication_error", "invalid_token",
                     "over TCP the daemon's token is needed: Authorization: Bearer TOKEN");
        answer->challenge = true;
        return false;
    }
    if (app && !caller_app_valid(app)) {
        answer_error(answer, 400, "invalid_request_error", "invalid_app",
                     "X-LLMS-App must be 1 to 64 of A-Z a-z 0-9 . _ -");
        return false;
    }
    exchange->administrator = peer->tcp || peer->uid == 0 || peer->uid == geteuid();
    if (peer->tcp)
        snprintf(exchange->owner, sizeof exchange->owner, "token/%s", app ? app : "default");
    else
        snprintf(exchange->owner, sizeof exchange->owner, "%lu/%s", (unsigned long)peer->uid,
                 app ? app : "default");
    return true;
}

/* The service, once there is one: a daemon that was started for this very request is still loading. */
static struct service *await_service(const struct exchange *exchange)
{
    const struct timespec pause = {.tv_nsec = 10000000};
    struct api *api = exchange->api;
    for (unsigned waited = 0; waited < api->options.loading_wait_ms; waited += 10) {
        if (atomic_load(&api->service) || atomic_load(&api->stopping) ||
            os_socket_peer_gone(exchange->socket))
            break;
        nanosleep(&pause, NULL);
    }
    return atomic_load(&api->service);
}

/* There is such a route, and it can be taken now. False: the answer says why not. */
static bool route_ready(struct exchange *exchange, const char *method, const char *path)
{
    struct answer *answer = &exchange->answer;
    const struct route_match *match = &exchange->match;
    if (!match->route && *match->allow) {
        answer_error(answer, 405, "invalid_request_error", "method_not_allowed",
                     "%.16s is not allowed here: %s", method, match->allow);
        answer->allow = match->allow;
    } else if (!match->route) {
        answer_error(answer, 404, "not_found_error", "route_not_found", "there is no route %.16s %.128s",
                     method, path);
    } else if (MHD_get_connection_values(exchange->connection, MHD_GET_ARGUMENT_KIND, NULL, NULL) > 0) {
        answer_error(answer, 400, "invalid_request_error", "unknown_parameter",
                     "%s takes no query parameters", match->route->pattern);
    } else if (!match->route->open && !(exchange->service = await_service(exchange))) {
        answer_error(answer, 503, "server_error", "loading", "the model is still loading");
        answer->retry = true;
    } else if (strchr(match->route->pattern, '{') && !*match->argument) {
        answer_error(answer, 404, "not_found_error", "context_not_found", "there is no such context");
    } else {
        return true;
    }
    return false;
}

static void refuse_body(struct exchange *exchange)
{
    answer_error(&exchange->answer, 413, "invalid_request_error", "body_too_large",
                 "the body may have at most %zu bytes", exchange->api->options.body_limit_bytes);
}

/* What the head alone decides. An answer made here is sent once the body was read and dropped, since closing
 * on a client that is still sending may destroy the answer; but at once to a client that asks before it sends
 * (Expect), or whose body is too much to read for nothing. */
static void begin(struct exchange *exchange, const char *method, const char *path)
{
    struct api *api = exchange->api;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    uint64_t length = 0;
    const char *length_text = header(exchange, "Content-Length");
    exchange->socket = connection_socket(exchange->connection);
    exchange->service = atomic_load(&api->service);
    route_find(api_routes, api_route_count, method, path, &exchange->match);
    if (length_text && parse_u64(length_text, 0, UINT64_MAX, &length) < 0)
        length = UINT64_MAX;
    if (admit(exchange, info ? info->socket_context : NULL) && route_ready(exchange, method, path) &&
        length > api->options.body_limit_bytes)
        refuse_body(exchange);
    exchange->immediate =
        exchange->answer.status &&
        (header(exchange, "Expect") || length > (uint64_t)api->options.body_limit_bytes * DRAIN_FACTOR);
}

/* ---- a request's body and its answer ---- */

json_t *exchange_json(struct exchange *exchange)
{
    json_t *json = NULL;
    struct error error = {0};
    const char *text = exchange->body.data ? exchange->body.data : "";
    if (body_parse(text, exchange->body.length, &json, &error) < 0)
        answer_invalid(&exchange->answer, &error);
    return json;
}

/* False: more than anyone needs to send; the connection is closed. */
static bool take_body(struct exchange *exchange, const char *data, size_t bytes)
{
    size_t limit = exchange->api->options.body_limit_bytes;
    exchange->body_bytes += bytes;
    if (exchange->body_bytes > (uint64_t)limit * DRAIN_FACTOR)
        return false;
    if (exchange->answer.status)
        return true;
    if (exchange->body_bytes > limit)
        refuse_body(exchange);
    else if (buffer_append(&exchange->body, data, bytes) < 0)
        answer_json(&exchange->answer, 500, NULL);
    return true;
}

/* Runs the route. The connection's idle clock stands still meanwhile: a call may take minutes. */
static void run_route(struct exchange *exchange)
{
    MHD_set_connection_option(exchange->connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
    exchange->match.route->handler(exchange);
    MHD_set_connection_option(exchange->connection, MHD_CONNECTION_OPTION_TIMEOUT,
                              exchange->api->options.idle_timeout_s);
}

static struct MHD_Response *make_response(struct answer *answer)
{
    struct MHD_Response *response;
    if (answer->stream) {
        response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, call_stream_read,
                                                     answer->stream, call_stream_destroy);
        if (response)
            answer->stream = NULL;
    } else if (answer->text) {
        response = MHD_create_response_from_buffer(answer->text_bytes, answer->text, MHD_RESPMEM_MUST_FREE);
        if (response)
            answer->text = NULL;
    } else {
        response = MHD_create_response_from_buffer(
            strlen(answer_out_of_memory), (void *)(uintptr_t)answer_out_of_memory, MHD_RESPMEM_PERSISTENT);
    }
    return response;
}

static enum MHD_Result send_answer(struct exchange *exchange)
{
    struct answer *answer = &exchange->answer;
    if (answer->status >= 500 && answer->status != 503)
        log_error("%s for %s: %s", exchange->match.route ? exchange->match.route->pattern : "request",
                  exchange->owner, answer->text ? answer->text : "out of memory");
    struct MHD_Response *response = make_response(answer);
    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", answer->content_type);
    MHD_add_response_header(response, "Cache-Control", "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (answer->allow)
        MHD_add_response_header(response, "Allow", answer->allow);
    if (answer->retry)
        MHD_add_response_header(response, "Retry-After", "1");
    if (answer->challenge)
        MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    if (answer->close || atomic_load(&exchange->api->stopping))
        MHD_add_response_header(response, "Connection", "close");
    enum MHD_Result result = MHD_queue_response(exchange->connection, answer->status, response);
    MHD_destroy_response(response);
    return result;
}

static struct exchange *exchange_create(struct api *api, struct MHD_Connection *connection)
{
    struct exchange *exchange = mem_calloc(1, sizeof *exchange);
    if (!exchange)
        return NULL;
    exchange->api = api;
    exchange->connection = connection;
    exchange->version = api->options.version;
    exchange->started_s = api->started_s;
    atomic_fetch_add(&api->exchanges, 1);
    return exchange;
}

static void exchange_completed(void *user, struct MHD_Connection *connection, void **context,
                               enum MHD_RequestTerminationCode why)
{
    struct exchange *exchange = *context;
    (void)user;
    (void)connection;
    (void)why;
    if (!exchange)
        return;
    atomic_fetch_sub(&exchange->api->exchanges, 1);
    answer_deinit(&exchange->answer);
    buffer_deinit(&exchange->body);
    mem_free(exchange);
    *context = NULL;
}

/* Called with the head, then with pieces of the body, then once more. */
static enum MHD_Result take_request(void *user, struct MHD_Connection *connection, const char *path,
                                    const char *method, const char *version, const char *data, size_t *bytes,
                                    void **context)
{
    struct listener *listener = user;
    struct exchange *exchange = *context;
    (void)version;
    if (!exchange) {
        if (!(*context = exchange = exchange_create(listener->api, connection)))
            return MHD_NO;
        begin(exchange, method, path);
        return exchange->immediate ? send_answer(exchange) : MHD_YES;
    }
    if (*bytes) {
        if (!take_body(exchange, data, *bytes))
            return MHD_NO;
        *bytes = 0;
        return MHD_YES;
    }
    if (!exchange->answer.status)
        run_route(exchange);
    return send_answer(exchange);
}

/* Paths are matched as they were sent. */
static size_t unescape_nothing(void *user, struct MHD_Connection *connection, char *text)
{
    (void)user;
    (void)connection;
    return strlen(text);
}

static void log_http(void *user, const char *format, va_list args) __attribute__((format(printf, 2, 0)));
static void log_http(void *user, const char *format, va_list args)
{
    char line[512];
    (void)user;
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = 0;
    log_debug("http: %s", line);
}

/* ---- the whole ---- */

int api_create(const struct api_options *options, struct api **out, struct error *error)
{
    body_init();
    if (sodium_init() < 0)
        return error_set(error, -EIO, "libsodium does not start");
    struct api *api = mem_calloc(1, sizeof *api);
    if (!api)
        return error_set(error, -ENOMEM, "out of memory");
    api->options = *options;
    if (!api->options.connection_limit)
        api->options.connection_limit = CONNECTIONS;
    if (!api->options.idle_timeout_s)
        api->options.idle_timeout_s = IDLE_TIMEOUT_S;
    if (!api->options.body_limit_bytes)
        api->options.body_limit_bytes = BODY_LIMIT_BYTES;
    api->started_s = (int64_t)time(NULL);
    pthread_mutex_init(&api->lock, NULL);
    *out = api;
    return 0;
}

int api_listen(struct api *api, struct os_listener *socket, struct error *error)
{
    struct listener *listener = &api->listeners[api->listener_count];
    if (api->listener_count == LISTENERS) {
        os_listen_close(socket);
        return error_set(error, -EINVAL, "more than %d listeners", LISTENERS);
    }
    *listener = (struct listener){.api = api, .socket = *socket};
    *socket = (struct os_listener){.descriptor = -1};
    listener->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL | MHD_USE_ITC |
            MHD_USE_ERROR_LOG,
        0, NULL, NULL, take_request, listener, MHD_OPTION_EXTERNAL_LOGGER, log_http, NULL,
        MHD_OPTION_LISTEN_SOCKET, listener->socket.descriptor, MHD_OPTION_CONNECTION_LIMIT,
        api->options.connection_limit, MHD_OPTION_CONNECTION_TIMEOUT, api->options.idle_timeout_s,
        MHD_OPTION_THREAD_STACK_SIZE, (size_t)STACK_BYTES, MHD_OPTION_NOTIFY_CONNECTION, connection_changed,
        listener, MHD_OPTION_NOTIFY_COMPLETED, exchange_completed, NULL, MHD_OPTION_UNESCAPE_CALLBACK,
        unescape_nothing, NULL, MHD_OPTION_END);
    if (!listener->daemon) {
        error_set(error, -EIO, "cannot serve HTTP on %s", listener->socket.name);
        os_listen_close(&listener->socket);
        return -EIO;
    }
    api->listener_count++;
    return 0;
}

void api_serve(struct api *api, struct service *service)
{
    atomic_store(&api->service, service);
}

void api_quiesce(struct api *api)
{
    atomic_store(&api->stopping, true);
    for (size_t i = 0; i < api->listener_count; i++) {
        struct listener *listener = &api->listeners[i];
        if (listener->quiesced)
            continue;
        MHD_quiesce_daemon(listener->daemon);
        os_listen_close(&listener->socket);
        listener->quiesced = true;
    }
}

bool api_drain(struct api *api, unsigned timeout_ms)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    for (unsigned waited = 0; atomic_load(&api->exchanges); waited += 5) {
        if (waited >= timeout_ms)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

void api_destroy(struct api *api)
{
    if (!api)
        return;
    api_quiesce(api);
    for (size_t i = 0; i < api->listener_count; i++)
        MHD_stop_daemon(api->listeners[i].daemon);
    pthread_mutex_destroy(&api->lock);
    mem_free(api->callers);
    sodium_memzero(api->options.token, sizeof api->options.token);
    mem_free(api);
}
