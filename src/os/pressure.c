/* The pressure watch's thread and what it can watch. */
#include "os/pressure.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

static const char KERNEL_FILE[] = "/proc/pressure/memory";
static const char KERNEL_TRIGGER[] = "some 150000 2000000";
enum { LONGEST_TRIGGER = 256 };

enum kind { KIND_TRIGGER, KIND_STREAM, KIND_POLL };

struct pressure {
    enum kind kind;
    int descriptor; /* -1 once broken */
    int stop;       /* an eventfd */
    pthread_t thread;
    bool active;      /* between BEGIN and END */
    uint64_t last_ns; /* when pressure was last seen */
    int quiet_ms, poll_ms;
    double begin_avg10, end_avg10;
    void (*call)(void *argument, enum pressure_event event);
    void *argument;
};

/* ---- The thread ---- */

static void set_active(struct pressure *p, bool active)
{
    if (p->active == active)
        return;
    p->active = active;
    p->call(p->argument, active ? PRESSURE_BEGIN : PRESSURE_END);
}

static void seen(struct pressure *p)
{
    p->last_ns = clock_ns();
    set_active(p, true);
}

static void give_up(struct pressure *p, const char *why)
{
    log_warning("memory pressure is not watched any more: %s", why);
    close(p->descriptor);
    p->descriptor = -1;
    set_active(p, false);
}

/* "some avg10=1.23 ...", in percent; negative where it cannot be read. */
static double read_avg10(int descriptor)
{
    char text[256];
    static const char before[] = "some avg10=";
    ssize_t n = pread(descriptor, text, sizeof text - 1, 0);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    if (strncmp(text, before, sizeof before - 1) != 0)
        return -1;
    char *end;
    double percent = strtod(text + sizeof before - 1, &end);
    return end != text + sizeof before - 1 && percent >= 0 ? percent : -1;
}

static void look(struct pressure *p)
{
    double percent = read_avg10(p->descriptor);
    if (percent < 0)
        give_up(p, "its file cannot be read");
    else if (percent >= p->begin_avg10)
        set_active(p, true);
    else if (percent < p->end_avg10)
        set_active(p, false);
}

/* Discards what came. */
static void drain(struct pressure *p)
{
    char bytes[512];
    bool any = false;
    ssize_t n;
    while ((n = read(p->descriptor, bytes, sizeof bytes)) > 0 || (n < 0 && errno == EINTR))
        any = any || n > 0;
    bool ended = n == 0 || errno != EAGAIN;
    if (any)
        seen(p);
    if (ended)
        give_up(p, "its other end is closed");
}

static int timeout_of(const struct pressure *p)
{
    if (p->descriptor < 0)
        return -1;
    if (p->kind == KIND_POLL)
        return p->poll_ms;
    if (!p->active)
        return -1;
    double left = p->quiet_ms - clock_ms_since(p->last_ns);
    return left > 0 ? (int)left + 1 : 0;
}

static void handle(struct pressure *p, short events)
{
    if (p->kind == KIND_POLL)
        look(p);
    else if (p->kind == KIND_STREAM && events)
        drain(p);
    else if (events & (POLLERR | POLLNVAL)) /* the control group is gone */
        give_up(p, "the kernel ended it");
    else if (events & POLLPRI)
        seen(p);
    else if (p->active && clock_ms_since(p->last_ns) >= p->quiet_ms)
        set_active(p, false);
}

static void *watch(void *argument)
{
    struct pressure *p = argument;
    for (;;) {
        struct pollfd on[2] = {{.fd = p->stop, .events = POLLIN},
                               {.fd = p->kind == KIND_POLL ? -1 : p->descriptor,
                                .events = p->kind == KIND_TRIGGER ? POLLPRI : POLLIN}};
        int n = poll(on, 2, timeout_of(p));
        if (n > 0 && on[0].revents)
            return NULL;
        if (n >= 0 && p->descriptor >= 0)
            handle(p, n > 0 ? on[1].revents : 0);
    }
}

/* ---- Opening ---- */

static int base64_value(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Returns the bytes written to out, or -EINVAL. */
static int decode_base64(const char *text, char *out, size_t room)
{
    size_t length = strlen(text), bytes = 0;
    if (length % 4 || length / 4 * 3 > room)
        return -EINVAL;
    for (size_t i = 0; i < length; i += 4) {
        uint32_t group = 0;
        unsigned padding =
            i + 4 == length ? (text[i + 3] == '=') + (text[i + 2] == '=' && text[i + 3] == '=') : 0;
        for (unsigned j = 0; j < 4; j++) {
            int value = j >= 4 - padding ? 0 : base64_value(text[i + j]);
            if (value < 0)
                return -EINVAL;
            group = group << 6 | (uint32_t)value;
        }
        for (unsigned j = 0; j < 3 - padding; j++)
            out[bytes++] = (char)(group >> (16 - 8 * j) & 255);
    }
    return (int)bytes;
}

static int connect_to(const char *path, int *descriptor)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        int code = -errno;
        close(fd);
        return code;
    }
    *descriptor = fd;
    return 0;
}

static int write_trigger(const struct pressure *p, const char *trigger, size_t bytes)
{
    ssize_t n = p->kind == KIND_STREAM ? send(p->descriptor, trigger, bytes, MSG_NOSIGNAL) : -1;
    if (p->kind != KIND_STREAM || (n < 0 && errno == ENOTSOCK))
        n = write(p->descriptor, trigger, bytes);
    return n < 0 ? -errno : (size_t)n < bytes ? -EIO : 0;
}

/* A file of the kernel's (or one that looks so), with a trigger or without. */
static int open_file(struct pressure *p, const char *path, const char *trigger, size_t bytes)
{
    p->kind = KIND_TRIGGER;
    p->descriptor = bytes ? open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC) : -1;
    if (p->descriptor >= 0 && write_trigger(p, trigger, bytes) == 0)
        return 0;
    if (p->descriptor >= 0)
        close(p->descriptor);
    p->kind = KIND_POLL;
    p->descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (p->descriptor < 0)
        return -errno;
    if (read_avg10(p->descriptor) < 0) {
        close(p->descriptor);
        p->descriptor = -1;
        return -EINVAL;
    }
    return 0;
}

static int open_path(struct pressure *p, const char *path, const char *trigger, size_t bytes)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return -errno;
    if (!S_ISFIFO(st.st_mode) && !S_ISSOCK(st.st_mode))
        return open_file(p, path, trigger, bytes);
    int code = 0;
    p->kind = KIND_STREAM;
    if (S_ISSOCK(st.st_mode))
        code = connect_to(path, &p->descriptor);
    else if ((p->descriptor = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC)) <
             0) /* ours to write: no end of file */
        code = -errno;
    if (code == 0 && bytes && (code = write_trigger(p, trigger, bytes)) < 0) {
        close(p->descriptor);
        p->descriptor = -1;
    }
    return code;
}

/* What to watch, by the options or else by the environment. */
static int open_source(struct pressure *p, const struct pressure_options *options, struct error *error)
{
    char decoded[LONGEST_TRIGGER];
    const char *path = options->path, *trigger = options->trigger ? options->trigger : "", *asked;
    size_t bytes = *trigger ? strlen(trigger) + 1 : 0; /* the kernel wants its NUL too */
    if (!path && (path = getenv("MEMORY_PRESSURE_WATCH")) && *path) {
        asked = getenv("MEMORY_PRESSURE_WRITE");
        int n = asked ? decode_base64(asked, decoded, sizeof decoded) : 0;
        if (n < 0)
            return error_set(error, n, "MEMORY_PRESSURE_WRITE is not base64, or too long");
        trigger = decoded;
        bytes = (size_t)n;
    } else if (!path || !*path) {
        path = KERNEL_FILE;
        trigger = KERNEL_TRIGGER;
        bytes = sizeof KERNEL_TRIGGER;
    }
    if (strcmp(path, "/dev/null") == 0)
        return error_set(error, -ENODATA, "memory pressure is not to be watched");
    int code = open_path(p, path, trigger, bytes);
    return code < 0 ? error_set(error, code, "cannot watch %s: %s", path, strerror(-code)) : 0;
}

static int start(struct pressure *p)
{
    sigset_t all, before;
    sigfillset(&all); /* signals are for the other threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = -pthread_create(&p->thread, NULL, watch, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

int pressure_open(const struct pressure_options *options, struct pressure **out, struct error *error)
{
    int code;
    struct pressure *p = mem_calloc(1, sizeof *p);
    if (!p)
        return error_set(error, -ENOMEM, "out of memory");
    p->quiet_ms = options->quiet_ms ? options->quiet_ms : 5000;
    p->poll_ms = options->poll_ms ? options->poll_ms : 1000;
    p->begin_avg10 = options->begin_avg10 > 0 ? options->begin_avg10 : 10;
    p->end_avg10 = options->end_avg10 > 0 ? options->end_avg10 : 2;
    p->call = options->call;
    p->argument = options->argument;
    p->descriptor = -1;
    p->stop = eventfd(0, EFD_CLOEXEC);
    if (p->stop < 0) {
        code = error_set(error, -errno, "cannot make an event: %s", strerror(errno));
        goto out;
    }
    if ((code = open_source(p, options, error)) < 0)
        goto out;
    if ((code = start(p)) < 0) {
        error_set(error, code, "cannot start a thread: %s", strerror(-code));
        goto out;
    }
    *out = p;
    return 0;
out:
    if (p->descriptor >= 0)
        close(p->descriptor);
    if (p->stop >= 0)
        close(p->stop);
    mem_free(p);
    return code;
}

void pressure_close(struct pressure *p)
{
    uint64_t one = 1;
    if (!p)
        return;
    while (write(p->stop, &one, sizeof one) < 0 && errno == EINTR)
        continue;
    pthread_join(p->thread, NULL);
    if (p->descriptor >= 0)
        close(p->descriptor);
    close(p->stop);
    mem_free(p);
}

const char *pressure_source(const struct pressure *p)
{
    static const char *const names[] = {"trigger", "stream", "poll"};
    return names[p->kind];
}
