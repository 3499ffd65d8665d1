/* llmsd: the daemon.
 *
 * Listens first, then loads the model on a thread of its own while /health says so, then serves until
 * SIGTERM or SIGINT. Stopping: no new connections, the running call gets GRACE_MS, what is left is cancelled,
 * every open answer its end; a second signal ends the process at once. Exit status: 0, 1 for failure, 2 for
 * bad usage, each failure with one line.
 *
 * Threads: signals are blocked everywhere and read by the main thread alone. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "api/api.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/parse.h"
#include "daemon/options.h"
#include "daemon/systemd.h"
#include "os/aio.h"
#include "os/socket.h"
#include "service/service.h"

enum { GRACE_MS = 3000, DRAIN_MS = 1000, LOADING_WAIT_MS = 30000, EXIT_USAGE = 2 };

struct loader {
    const struct options *options;
    int done; /* eventfd: written when code and service are set */
    int code;
    struct service *service;
    struct error error;
};

/* ---- signals ---- */

static int open_signals(int *descriptor, struct error *error)
{
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (pthread_sigmask(SIG_BLOCK, &stops, NULL) != 0 ||
        (*descriptor = signalfd(-1, &stops, SFD_CLOEXEC)) < 0)
        return error_set(error, -errno, "signals: %s", strerror(errno));
    return 0;
}

/* From here on a signal ends the process, as if it had never been caught. */
static void restore_signals(void)
{
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &stops, NULL);
}

static const char *read_signal(int descriptor)
{
    struct signalfd_siginfo info;
    ssize_t n;
    do
        n = read(descriptor, &info, sizeof info);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof info && info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM";
}

/* Waits for a stop signal (true) or for `other` to become readable (false; -1: none). */
static bool wait_signal(int signals, int other)
{
    struct pollfd fds[] = {{.fd = signals, .events = POLLIN}, {.fd = other, .events = POLLIN}};
    while (poll(fds, 2, -1) <= 0)
        continue;
    return fds[0].revents != 0;
}

/* ---- listening ---- */

static int listen_one(struct api *api, const char *address, struct error *error)
{
    struct os_listener listener;
    int code = strncmp(address, "tcp:", 4) == 0
                   ? os_listen_tcp(address + 4, &listener, error)
                   : os_listen_unix(address + 5, options_socket_mode(), &listener, error);
    if (code < 0)
        return code;
    log_info("listening on %s", listener.name);
    return api_listen(api, &listener, error);
}

static int listen_all(struct api *api, const struct options *options, const struct systemd_sockets *passed,
                      struct error *error)
{
    struct os_listener listener;
    int code = 0;
    for (int i = 0; i < passed->count && code == 0; i++) {
        if ((code = os_listen_adopt(passed->first + i, &listener, error)) < 0)
            return code;
        log_info("listening on %s, passed by systemd", listener.name);
        code = api_listen(api, &listener, error);
    }
    for (size_t i = 0; i < options->listen_count && code == 0; i++)
        code = listen_one(api, options->listen[i], error);
    return code;
}

/* True if a caller can come over TCP, so that there must be a token. */
static bool needs_token(const struct options *options, const struct systemd_sockets *passed)
{
    struct os_listener listener;
    for (size_t i = 0; i < options->listen_count; i++)
        if (strncmp(options->listen[i], "tcp:", 4) == 0)
            return true;
    for (int i = 0; i < passed->count; i++)
        if (os_listen_adopt(passed->first + i, &listener, NULL) == 0 && listener.tcp)
            return true;
    return false;
}

static int open_api(const struct options *options, const struct systemd_sockets *passed, struct api **api,
                    struct error *error)
{
    struct api_options api_options = {.version = LLMS_VERSION};
    if (passed->count) /* it was a request that started us */
        api_options.loading_wait_ms = LOADING_WAIT_MS;
    int code = 0;
    if (needs_token(options, passed))
        code = api_token_load(options->state_directory, api_options.token, error);
    if (code == 0)
        code = api_create(&api_options, api, error);
    if (code == 0)
        code = listen_all(*api, options, passed, error);
    return code;
}

/* ---- the model ---- */

/* LLMS_EMULATE_STORAGE=BYTES: as on storage that moves so many a second, for benches. 0 or -EINVAL. */
static int emulate_storage(struct error *error)
{
    const char *text = getenv("LLMS_EMULATE_STORAGE");
    uint64_t bytes_per_s = 0;
    if (!text || !*text)
        return 0;
    if (parse_u64(text, 1 << 20, UINT64_MAX, &bytes_per_s) < 0)
        return error_set(error, -EINVAL, "LLMS_EMULATE_STORAGE=%.64s: not bytes a second, 1048576 or more",
                         text);
    aio_set_limit(bytes_per_s);
    log_warning("emulating storage of %.0f MB/s", (double)bytes_per_s / 1e6);
    return 0;
}

static void *load(void *argument)
{
    struct loader *loader = argument;
    const struct options *options = loader->options;
    const struct service_options service_options = {
        .model_path = options->model,
        .state_directory = options->state_directory,
        .kv_budget_bytes = options->kv_budget_bytes,
        .kv_levels = (uint8_t)options->kv_levels,
        .kv_ratio = options->kv_ratio,
        .policy = *options->policy ? options->policy : NULL,
        .evict = *options->evict ? options->evict : NULL,
        .context_length = (uint32_t)options->context_length,
        .contexts_per_app = (uint32_t)options->contexts_per_app,
        .queue_limit = (uint32_t)options->queue_limit,
        .threads = (unsigned)options->threads,
        .watch_pressure = true,
    };
    const uint64_t one = 1;
    loader->code = service_open(&service_options, &loader->service, &loader->error);
    if (write(loader->done, &one, sizeof one) < 0)
        abort(); /* an eventfd takes a 1 */
    return NULL;
}

static void report_ready(struct service *service, const struct options *options, double ms)
{
    const struct engine_model *model = service_model(service);
    struct service_status status;
    service_status(service, &status);
    log_info("ready in %.0f ms: %s (%s, %s, %.1f million parameters), contexts of %u tokens, KV budget "
             "%.1f MiB under policy %s, %u threads (%s), state in %s",
             ms, model->name, model->architecture, model->type, (double)model->parameters / 1e6,
             status.context_length, (double)status.kv_budget_bytes / (1 << 20), status.policy, status.threads,
             status.isa, options->state_directory);
    if (!model->chat_recognised)
        log_warning("%s has no chat template that is known here: its conversations are written as %s",
                    model->name, chat_template_name(model->chat));
    systemd_notify("READY=1\nSTATUS=Serving %s (%s)", model->name, model->type);
}

/* ---- the whole ---- */

static void stop(struct api *api, struct service *service)
{
    uint64_t start_ns = clock_ns();
    restore_signals();
    systemd_notify("STOPPING=1\nSTATUS=Finishing the running call");
    api_quiesce(api);
    service_stop(service, GRACE_MS);
    if (!api_drain(api, DRAIN_MS))
        log_info("closing connections that do not take their answer");
    api_destroy(api);
    service_close(service);
    log_info("stopped in %.0f ms", clock_ms_since(start_ns));
}

static int fail(const struct error *error)
{
    log_error("%s", error->text);
    systemd_notify("STATUS=%s\nERRNO=%d", error->text, -error->code);
    return EXIT_FAILURE;
}

static int serve(const struct options *options, const struct systemd_sockets *passed)
{
    struct loader loader = {.options = options};
    struct api *api = NULL;
    pthread_t thread;
    int signals = -1;
    uint64_t start_ns = clock_ns();
    if (emulate_storage(&loader.error) < 0 || open_signals(&signals, &loader.error) < 0 ||
        open_api(options, passed, &api, &loader.error) < 0) {
        api_destroy(api);
        return fail(&loader.error);
    }
    log_info("llmsd %s: loading %s", LLMS_VERSION, options->model);
    systemd_notify("STATUS=Loading %s", options->model);
    loader.done = eventfd(0, EFD_CLOEXEC);
    if (loader.done < 0 || pthread_create(&thread, NULL, load, &loader) != 0) {
        api_destroy(api);
        error_set(&loader.error, -EAGAIN, "cannot start a thread");
        return fail(&loader.error);
    }
    if (wait_signal(signals, loader.done)) { /* loading cannot be stopped, but changes nothing that matters */
        log_info("%s while loading", read_signal(signals));
        systemd_notify("STOPPING=1");
        api_destroy(api);
        _exit(EXIT_SUCCESS);
    }
    pthread_join(thread, NULL);
    if (loader.code < 0) {
        api_destroy(api);
        return fail(&loader.error);
    }
    api_serve(api, loader.service);
    report_ready(loader.service, options, clock_ms_since(start_ns));
    wait_signal(signals, -1);
    log_info("%s: stopping", read_signal(signals));
    stop(api, loader.service);
    close(signals);
    close(loader.done);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    static struct options options; /* large */
    struct error error = {0};
    struct systemd_sockets passed = {0};
    int code = options_parse(argc, argv, &options, &error);
    if (code == 0 && options.help) {
        options_print_help();
        return EXIT_SUCCESS;
    }
    if (code == 0 && options.version) {
        printf("llmsd %s\n", LLMS_VERSION);
        return EXIT_SUCCESS;
    }
    if (code == 0)
        code = systemd_take_sockets(&passed, &error);
    if (code == 0)
        code = options_resolve(&options, passed.count > 0, &error);
    if (code < 0) {
        fprintf(stderr, "llmsd: %s\n", error.text);
        return code == -EINVAL ? EXIT_USAGE : EXIT_FAILURE;
    }
    log_set_level(options.log_level);
    return serve(&options, &passed);
}
