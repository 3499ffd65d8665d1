#include "client/transport.h"

#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/memory.h"

struct transport {
    CURL *curl;
    struct curl_slist *headers;
    char *address;   /* as given, for messages */
    char *unix_path; /* NULL: TCP */
    char *base;      /* "http://HOST:PORT" */
};

/* One exchange while it runs. */
struct exchange {
    CURL *curl;
    const struct transport_request *request;
    struct transport_answer *answer;
    int code;       /* why a callback ended it */
    bool began;     /* the first bytes of the body are here */
    bool is_events; /* they go to on_bytes */
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_ready;

static void init_curl(void)
{
    curl_ready = curl_global_init(CURL_GLOBAL_DEFAULT);
}

static int add_header(struct transport *transport, const char *name, const char *value)
{
    struct buffer line = {0};
    int code = buffer_printf(&line, value ? "%s: %s" : "%s:", name, value);
    struct curl_slist *longer = code < 0 ? NULL : curl_slist_append(transport->headers, line.data);
    buffer_deinit(&line);
    if (!longer)
        return -ENOMEM;
    transport->headers = longer;
    return 0;
}

static int parse_unix(struct transport *transport, const char *path, struct error *error)
{
    struct sockaddr_un limits;
    if (!*path)
        return error_set(error, -EINVAL, "address '%s' has no path", transport->address);
    if (strlen(path) >= sizeof limits.sun_path)
        return error_set(error, -ENAMETOOLONG, "socket path '%s' is longer than %zu bytes", path,
                         sizeof limits.sun_path - 1);
    transport->unix_path = mem_strdup(path);
    transport->base = mem_strdup("http://llmsd");
    return transport->unix_path && transport->base ? 0 : error_set(error, -ENOMEM, "out of memory");
}

static bool is_host(const char *host, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)host[i]) && !strchr(".-_[]:", host[i]))
            return false;
    return length > 0;
}

static int parse_tcp(struct transport *transport, const char *rest, struct error *error)
{
    const char *colon = strrchr(rest, ':');
    const char *port = colon ? colon + 1 : "";
    char *end;
    unsigned long number = strtoul(port, &end, 10);
    if (!colon || !is_host(rest, (size_t)(colon - rest)) || !isdigit((unsigned char)*port) || *end ||
        number < 1 || number > 65535)
        return error_set(error, -EINVAL, "address '%s' is not tcp:HOST:PORT", transport->address);
    struct buffer base = {0};
    if (buffer_printf(&base, "http://%s", rest) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    transport->base = base.data;
    const char *token = getenv("LLMS_TOKEN");
    if (!token || !*token)
        return 0;
    struct buffer value = {0};
    int code = strpbrk(token, "\r\n") ? -EINVAL : buffer_printf(&value, "Bearer %s", token);
    if (code == -EINVAL)
        error_set(error, code, "the token in LLMS_TOKEN has a line break in it");
    if (code >= 0)
        code = add_header(transport, "Authorization", value.data);
    buffer_deinit(&value);
    return code < 0 ? code : 0;
}

static int parse_address(struct transport *transport, struct error *error)
{
    const char *address = transport->address;
    if (strncmp(address, "unix:", 5) == 0)
        return parse_unix(transport, address + 5, error);
    if (strncmp(address, "tcp:", 4) == 0)
        return parse_tcp(transport, address + 4, error);
    return error_set(error, -EINVAL, "address '%s' is neither unix:PATH nor tcp:HOST:PORT", address);
}

int transport_create(const char *app, const char *address, struct transport **out, struct error *error)
{
    int code = -ENOMEM;
    struct transport *transport = mem_calloc(1, sizeof *transport);
    if (!transport)
        return error_set(error, code, "out of memory");
    pthread_once(&curl_once, init_curl);
    transport->address = mem_strdup(address);
    transport->curl = curl_ready == CURLE_OK ? curl_easy_init() : NULL;
    if (!transport->address || !transport->curl) {
        error_set(error, code, "out of memory");
        goto fail;
    }
    code = parse_address(transport, error);
    if (code < 0)
        goto fail;
    /* Without an empty Expect curl would wait for leave before it sends a long body. */
    if (add_header(transport, "X-LLMS-App", app) < 0 ||
        add_header(transport, "Content-Type", "application/json") < 0 ||
        add_header(transport, "Expect", NULL) < 0) {
        code = error_set(error, -ENOMEM, "out of memory");
        goto fail;
    }
    *out = transport;
    return 0;
fail:
    transport_destroy(transport);
    return code;
}

void transport_destroy(struct transport *transport)
{
    if (!transport)
        return;
    if (transport->curl)
        curl_easy_cleanup(transport->curl);
    curl_slist_free_all(transport->headers);
    mem_free(transport->base);
    mem_free(transport->unix_path);
    mem_free(transport->address);
    mem_free(transport);
}

static size_t on_write(char *bytes, size_t size, size_t count, void *user)
{
    struct exchange *exchange = user;
    const struct transport_request *request = exchange->request;
    size_t length = size * count;
    if (!exchange->began) {
        const char *type = NULL;
        long status = 0;
        curl_easy_getinfo(exchange->curl, CURLINFO_RESPONSE_CODE, &status);
        curl_easy_getinfo(exchange->curl, CURLINFO_CONTENT_TYPE, &type);
        exchange->is_events = request->on_bytes && status >= 200 && status < 300 && type &&
                              strncasecmp(type, "text/event-stream", 17) == 0;
        exchange->began = true;
    }
    struct buffer *body = &exchange->answer->body;
    if (exchange->is_events)
        exchange->code = request->on_bytes(request->user, bytes, length);
    else if (length > TRANSPORT_ANSWER_LIMIT_BYTES - body->length)
        exchange->code = -EMSGSIZE;
    else
        exchange->code = buffer_append(body, bytes, length);
    return exchange->code ? 0 : length; /* less than length: curl ends the transfer */
}

static int on_progress(void *user, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
    struct exchange *exchange = user;
    (void)down_total, (void)down, (void)up_total, (void)up;
    if (!exchange->code && exchange->request->on_idle)
        exchange->code = exchange->request->on_idle(exchange->request->user);
    return exchange->code != 0;
}

static int code_of(CURL *curl, CURLcode result)
{
    long number = 0;
    switch (result) {
    case CURLE_COULDNT_CONNECT:
        curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &number);
        return number > 0 ? (int)-number : -ECONNREFUSED;
    case CURLE_COULDNT_RESOLVE_HOST:
        return -EHOSTUNREACH;
    case CURLE_OPERATION_TIMEDOUT:
        return -ETIMEDOUT;
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
        return -ECONNRESET;
    case CURLE_OUT_OF_MEMORY:
        return -ENOMEM;
    default:
        return -EPROTO;
    }
}

static bool set_options(struct transport *transport, struct exchange *exchange, const char *url,
                        char *message)
{
    CURL *c = transport->curl;
    const struct transport_request *request = exchange->request;
    CURLcode r = CURLE_OK;
    curl_easy_reset(c);
#define SET(option, value) r = r == CURLE_OK ? curl_easy_setopt(c, option, value) : r
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, "http");
    SET(CURLOPT_NOPROXY, "*");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)TRANSPORT_CONNECT_TIMEOUT_MS);
    SET(CURLOPT_FRESH_CONNECT, 1L);
    SET(CURLOPT_FORBID_REUSE, 1L);
    SET(CURLOPT_HTTPHEADER, transport->headers);
    SET(CURLOPT_ERRORBUFFER, message);
    SET(CURLOPT_WRITEFUNCTION, on_write);
    SET(CURLOPT_WRITEDATA, exchange);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_XFERINFODATA, exchange);
    if (transport->unix_path)
        SET(CURLOPT_UNIX_SOCKET_PATH, transport->unix_path);
    else
        SET(CURLOPT_TCP_KEEPALIVE, 1L);
    if (request->body || strcmp(request->method, "POST") == 0) {
        const char *body = request->body ? request->body : "";
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
        SET(CURLOPT_POSTFIELDS, body);
    }
    if (strcmp(request->method, "HEAD") == 0)
        SET(CURLOPT_NOBODY, 1L);
    SET(CURLOPT_CUSTOMREQUEST, request->method);
#undef SET
    return r == CURLE_OK;
}

int transport_exchange(struct transport *transport, const struct transport_request *request,
                       struct transport_answer *answer, struct error *error)
{
    struct exchange exchange = {transport->curl, request, answer, 0, false, false};
    struct buffer url = {0};
    char message[CURL_ERROR_SIZE] = "";
    int code = 0;
    *answer = (struct transport_answer){0};
    if (buffer_printf(&url, "%s%s", transport->base, request->path) < 0 ||
        !set_options(transport, &exchange, url.data, message)) {
        code = error_set(error, -ENOMEM, "out of memory");
        goto out;
    }
    CURLcode result = curl_easy_perform(transport->curl);
    curl_easy_getinfo(transport->curl, CURLINFO_RESPONSE_CODE, &answer->status);
    if (result == CURLE_OK)
        goto out;
    code = exchange.code ? exchange.code : code_of(transport->curl, result);
    if (exchange.code)
        error_set(error, code, "%s", strerror(code < 0 ? -code : code));
    else if (result == CURLE_COULDNT_CONNECT)
        error_set(error, code, "no daemon answers at %s: %s", transport->address, strerror(-code));
    else if (code == -ECONNRESET)
        error_set(error, code, "the daemon at %s went away in the middle", transport->address);
    else
        error_set(error, code, "%s: %s", transport->address, *message ? message : curl_easy_strerror(result));
out:
    buffer_deinit(&url);
    return code;
}
