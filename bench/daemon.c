/* See daemon.h. */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "llms.h"
#include "os/file.h"

enum { READY_S = 180, STOP_S = 20, ARGUMENTS = 32, LOG_LIMIT = 1 << 20, NUMBER_BYTES = 32 };

static void sleep_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* ---- the process ---- */

static int beside(char path[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 8);
    if (length <= 0)
        return length < 0 ? -errno : -ENOENT;
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, "llmsd");
    return access(path, X_OK) == 0 ? 0 : -errno;
}

/* In the child: only what a signal handler may do. */
static void become(char *const argv[], char *const environment[], const char *log)
{
    int null = open("/dev/null", O_RDWR), file = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0); /* Ctrl-C is for us, who then stop it */
    if (null >= 0 && file >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(file, STDOUT_FILENO);
        dup2(file, STDERR_FILENO);
        execve(argv[0], argv, environment);
    }
    _exit(127);
}

static bool decided(const char *variable)
{
    static const char *const names[] = {
        "LLMS_STRESS=", "LLMS_EMULATE_STORAGE=",  "NOTIFY_SOCKET=",  "LISTEN_FDS=",
        "LISTEN_PID=",  "MEMORY_PRESSURE_WATCH=", "JOURNAL_STREAM=", "MEMORY_PRESSURE_WRITE="};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strncmp(variable, names[i], strlen(names[i])) == 0)
            return true;
    return false;
}

/* This process's environment, but for what the bench itself decides. */
static char **make_environment(const char *limit)
{
    size_t count = 0, kept = 0;
    while (environ[count])
        count++;
    char **out = mem_calloc(count + 3, sizeof *out);
    for (size_t i = 0; i < count && out; i++)
        if (!decided(environ[i]))
            out[kept++] = environ[i];
    if (out) {
        out[kept++] = (char *)(uintptr_t) "MEMORY_PRESSURE_WATCH=/dev/null"; /* the budget stays what it is */
        out[kept] = (char *)(uintptr_t)limit;
    }
    return out;
}

static int spawn(const struct daemon_options *o, struct daemon *daemon, const char *listen, const char *state,
                 struct error *error)
{
    char program[PATH_MAX], budget[NUMBER_BYTES], length[NUMBER_BYTES], threads[NUMBER_BYTES];
    char ratio[NUMBER_BYTES], limit[64];
    int code = o->program ? 0 : beside(program);
    if (code < 0)
        return error_set(error, code, "no llmsd beside llms-bench: %s", strerror(-code));
    snprintf(budget, sizeof budget, "%" PRIu64, o->budget_bytes);
    snprintf(length, sizeof length, "%" PRIu64, o->context_length);
    snprintf(threads, sizeof threads, "%" PRIu64, o->threads);
    snprintf(ratio, sizeof ratio, "%.6f", o->kv_ratio);
    snprintf(limit, sizeof limit, "LLMS_EMULATE_STORAGE=%" PRIu64, o->storage_bytes_per_s);
    const char *argv[ARGUMENTS] = {o->program ? o->program : program,
                                   "--model",
                                   o->model,
                                   "--listen",
                                   listen,
                                   "--state-dir",
                                   state,
                                   "--kv-budget",
                                   budget,
                                   "--context-length",
                                   length,
                                   "--threads",
                                   threads,
                                   "--contexts-per-app",
                                   "0",
                                   "--policy",
                                   o->policy,
                                   "--log-level",
                                   "warning"};
    size_t n = 0;
    while (argv[n])
        n++;
    if (o->evict) {
        argv[n++] = "--evict";
        argv[n++] = o->evict;
    }
    if (o->kv_ratio > 0) {
        argv[n++] = "--kv-ratio";
        argv[n++] = ratio;
    }
    char **environment = make_environment(o->storage_bytes_per_s ? limit : NULL);
    if (!environment)
        return error_set(error, -ENOMEM, "out of memory");
    daemon->pid = fork();
    if (daemon->pid == 0)
        become((char *const *)(uintptr_t)argv, environment, daemon->log);
    code = daemon->pid < 0 ? error_set(error, -errno, "fork: %s", strerror(errno)) : 0;
    mem_free(environment);
    return code;
}

/* Its log's last line is why it ended. */
static int tell_end(const struct daemon *daemon, int status, struct error *error)
{
    char *text = NULL;
    size_t bytes = 0;
    const char *last = "";
    if (os_read_file(daemon->log, LOG_LIMIT, &text, &bytes) == 0) {
        while (bytes && text[bytes - 1] == '\n')
            text[--bytes] = 0;
        last = strrchr(text, '\n');
        last = last ? last + 1 : text;
    }
    int code = error_set(error, -EIO, "llmsd ended with status %d: %.300s",
                         WIFEXITED(status) ? WEXITSTATUS(status) : -1, last);
    mem_free(text);
    return code;
}

static int await_ready(struct daemon *daemon, const char *listen, struct error *error)
{
    uint64_t start = clock_ns();
    while (clock_ms_since(start) < READY_S * 1e3) {
        int status = 0;
        char *answer = NULL;
        if (waitpid(daemon->pid, &status, WNOHANG) == daemon->pid) {
            daemon->pid = 0;
            return tell_end(daemon, status, error);
        }
        if (!daemon->llms && llms_bind("bench", listen, &daemon->llms) < 0)
            daemon->llms = NULL;
        int code = daemon->llms ? llms_request(daemon->llms, "GET", "/health", NULL, &answer) : -ENOTCONN;
        free(answer);
        if (code == 0)
            return 0;
        sleep_ms(5);
    }
    return error_set(error, -ETIMEDOUT, "llmsd was not ready after %d s", READY_S);
}

int daemon_start(const struct daemon_options *options, struct daemon *out, struct error *error)
{
    char listen[PATH_MAX + 16], state[PATH_MAX + 16];
    *out = (struct daemon){0};
    int n = snprintf(out->log, sizeof out->log, "%s/log", options->directory);
    snprintf(listen, sizeof listen, "unix:%s/s", options->directory);
    snprintf(state, sizeof state, "%s/state", options->directory);
    if (n < 0 || (size_t)n >= sizeof out->log)
        return error_set(error, -ENAMETOOLONG, "%s: too long a path", options->directory);
    int code = os_make_directories(options->directory, 0700);
    if (code < 0)
        return error_set(error, code, "%s: %s", options->directory, strerror(-code));
    code = spawn(options, out, listen, state, error);
    if (code == 0)
        code = await_ready(out, listen, error);
    if (code < 0)
        daemon_stop(out);
    return code;
}

void daemon_stop(struct daemon *daemon)
{
    uint64_t start = clock_ns();
    bool killed = false;
    llms_unbind(daemon->llms);
    if (daemon->pid > 0)
        kill(daemon->pid, SIGTERM);
    while (daemon->pid > 0) {
        pid_t ended = waitpid(daemon->pid, NULL, WNOHANG);
        if (ended == daemon->pid || (ended < 0 && errno != EINTR))
            break;
        if (!killed && clock_ms_since(start) > STOP_S * 1e3)
            killed = kill(daemon->pid, SIGKILL) == 0;
        sleep_ms(2);
    }
    daemon->pid = 0;
    daemon->llms = NULL;
}

/* ---- requests ---- */

static int ask(struct daemon *daemon, const char *method, const char *path, const char *body, json_t **answer,
               struct error *error)
{
    char *text = NULL;
    *answer = NULL;
    int code = llms_request(daemon->llms, method, path, body, &text);
    if (code < 0)
        error_set(error, code, "%s: %s", path, llms_last_error(daemon->llms));
    else if (!(*answer = json_loads(text ? text : "", 0, NULL)))
        code = error_set(error, -EBADMSG, "%s: llmsd's answer is not JSON", path);
    free(text);
    return code;
}

int daemon_post(struct daemon *daemon, const char *path, json_t *body, json_t **answer, struct error *error)
{
    if (!body)
        body = json_object();
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    *answer = NULL;
    if (!text)
        return error_set(error, -ENOMEM, "out of memory");
    int code = ask(daemon, "POST", path, text, answer, error);
    free(text);
    return code;
}

int daemon_get(struct daemon *daemon, const char *path, json_t **answer, struct error *error)
{
    return ask(daemon, "GET", path, NULL, answer, error);
}

double daemon_number(const json_t *answer, const char *object, const char *key)
{
    return json_number_value(json_object_get(object ? json_object_get(answer, object) : answer, key));
}
