#include "os/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/parse.h"
#include "os/file.h"

enum { BACKLOG = 128, LOCK_TRIES = 100, LOCK_PAUSE_MS = 10 };

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
};

static int open_socket(int family, int *descriptor)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    *descriptor = fd;
    return fd < 0 ? -errno : 0;
}

/* ---- Unix sockets ---- */

/* Opens the directory that will hold path, making it if need be. */
static int open_directory(const char *path, unsigned mode, int *descriptor)
{
    char directory[OS_SOCKET_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(directory, sizeof directory, ".");
    else if (slash == path)
        snprintf(directory, sizeof directory, "/");
    else
        snprintf(directory, sizeof directory, "%.*s", (int)(slash - path), path);
    struct stat st;
    if (stat(directory, &st) < 0) {
        int code = os_make_directories(directory, mode & 077 ? 0755 : 0700);
        if (code < 0)
            return code;
    }
    *descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *descriptor < 0 ? -errno : 0;
}

/* Two daemons that start at once must not both take the same dead socket for theirs: the directory's lock
 * orders them. It is held for a moment only. */
static int lock_directory(int descriptor)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_MS * 1000000L};
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(descriptor, LOCK_EX | LOCK_NB) == 0)
            return 0;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return -errno;
        nanosleep(&pause, NULL);
    }
    return -EBUSY;
}

/* 0 where path is free now: nothing there, or a socket nobody listens on, which is removed. */
static int clear_path(const struct sockaddr_un *local, struct error *error)
{
    struct stat st;
    if (lstat(local->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : error_set(error, -errno, "%s: %s", local->sun_path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return error_set(error, -EEXIST, "%s exists and is not a socket", local->sun_path);
    int fd, code = open_socket(AF_UNIX, &fd);
    if (code < 0)
        return error_set(error, code, "no socket: %s", strerror(-code));
    int failed = connect(fd, (const struct sockaddr *)local, sizeof *local) < 0 ? errno : 0;
    close(fd);
    if (failed == 0 || failed == EAGAIN) /* EAGAIN: someone listens and is very busy */
        return error_set(error, -EADDRINUSE, "%s: another daemon is listening there", local->sun_path);
    if (failed != ECONNREFUSED && failed != ENOENT)
        return error_set(error, -failed, "%s: %s", local->sun_path, strerror(failed));
    if (unlink(local->sun_path) < 0 && errno != ENOENT)
        return error_set(error, -errno, "cannot remove the dead socket %s: %s", local->sun_path,
                         strerror(errno));
    return 0;
}

static int bind_unix(int fd, const struct sockaddr_un *local, unsigned mode)
{
    mode_t old = umask((mode_t)(~mode & 0777));
    int code = bind(fd, (const struct sockaddr *)local, sizeof *local) < 0 ? -errno : 0;
    umask(old);
    return code;
}

int os_listen_unix(const char *path, unsigned mode, struct os_listener *out, struct error *error)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct stat st;
    int fd = -1, directory = -1, code;
    *out = (struct os_listener){.descriptor = -1};
    if (!*path || strlen(path) >= sizeof local.sun_path)
        return error_set(error, -EINVAL, "a socket's path has 1 to %zu bytes: \"%s\"",
                         sizeof local.sun_path - 1, path);
    memcpy(local.sun_path, path, strlen(path) + 1);
    if ((code = open_directory(path, mode, &directory)) < 0 || (code = lock_directory(directory)) < 0) {
        error_set(error, code, "the directory of %s: %s", path, strerror(-code));
        goto failed;
    }
    if ((code = clear_path(&local, error)) < 0)
        goto failed;
    if ((code = open_socket(AF_UNIX, &fd)) < 0 || (code = bind_unix(fd, &local, mode)) < 0) {
        error_set(error, code, "cannot bind %s: %s", path, strerror(-code));
        goto failed;
    }
    if (listen(fd, BACKLOG) < 0 || lstat(local.sun_path, &st) < 0) {
        code = error_set(error, -errno, "cannot listen on %s: %s", path, strerror(errno));
        unlink(path);
        goto failed;
    }
    close(directory);
    *out = (struct os_listener){.descriptor = fd, .device = st.st_dev, .inode = st.st_ino};
    snprintf(out->name, sizeof out->name, "unix:%s", path);
    memcpy(out->path, local.sun_path, sizeof out->path);
    return 0;
failed:
    if (fd >= 0)
        close(fd);
    if (directory >= 0)
        close(directory);
    return code;
}

/* ---- TCP ---- */

static bool loopback(const union address *address)
{
    if (address->any.sa_family == AF_INET)
        return ntohl(address->v4.sin_addr.s_addr) >> 24 == 127;
    return address->any.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr);
}

static int parse_tcp(const char *text, union address *out, socklen_t *bytes, struct error *error)
{
    char host[64];
    const char *colon = strrchr(text, ':');
    uint64_t port;
    size_t length = colon ? (size_t)(colon - text) : 0;
    bool v6 = *text == '[';
    if (!colon || length < 3 || length >= sizeof host || parse_u64(colon + 1, 0, 65535, &port) < 0 ||
        (v6 && text[length - 1] != ']'))
        return error_set(error, -EINVAL, "\"tcp:%s\" is not tcp:127.0.0.1:PORT or tcp:[::1]:PORT", text);
    snprintf(host, sizeof host, "%.*s", (int)(v6 ? length - 2 : length), v6 ? text + 1 : text);
    *out = (union address){0};
    int good;
    if (v6) {
        out->v6.sin6_family = AF_INET6;
        out->v6.sin6_port = htons((uint16_t)port);
        good = inet_pton(AF_INET6, host, &out->v6.sin6_addr);
        *bytes = sizeof out->v6;
    } else {
        out->v4.sin_family = AF_INET;
        out->v4.sin_port = htons((uint16_t)port);
        good = inet_pton(AF_INET, host, &out->v4.sin_addr);
        *bytes = sizeof out->v4;
    }
    if (good != 1 || !loopback(out))
        return error_set(error, -EINVAL,
                         "\"tcp:%s\": only the loopback addresses 127.0.0.1 and [::1] are served", text);
    return 0;
}

static void name_tcp(const union address *address, char *name, size_t bytes)
{
    char host[INET6_ADDRSTRLEN] = "";
    if (address->any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &address->v6.sin6_addr, host, sizeof host);
        snprintf(name, bytes, "tcp:[%s]:%u", host, ntohs(address->v6.sin6_port));
    } else {
        inet_ntop(AF_INET, &address->v4.sin_addr, host, sizeof host);
        snprintf(name, bytes, "tcp:%s:%u", host, ntohs(address->v4.sin_port));
    }
}

int os_listen_tcp(const char *text, struct os_listener *out, struct error *error)
{
    union address address;
    socklen_t bytes;
    const int on = 1;
    int fd;
    *out = (struct os_listener){.descriptor = -1};
    int code = parse_tcp(text, &address, &bytes, error);
    if (code < 0)
        return code;
    if ((code = open_socket(address.any.sa_family, &fd)) < 0)
        return error_set(error, code, "tcp:%s: %s", text, strerror(-code));
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 || bind(fd, &address.any, bytes) < 0 ||
        listen(fd, BACKLOG) < 0 || getsockname(fd, &address.any, &bytes) < 0) {
        code = error_set(error, -errno, "cannot listen on tcp:%s: %s", text, strerror(errno));
        close(fd);
        return code;
    }
    *out = (struct os_listener){.descriptor = fd, .tcp = true};
    name_tcp(&address, out->name, sizeof out->name);
    return 0;
}

/* ---- both ---- */

bool os_listen_address_valid(const char *text)
{
    union address address;
    socklen_t bytes;
    if (strncmp(text, "tcp:", 4) == 0)
        return parse_tcp(text + 4, &address, &bytes, NULL) == 0;
    return strncmp(text, "unix:", 5) == 0 && text[5] && strlen(text + 5) < OS_SOCKET_PATH_BYTES;
}

int os_listen_adopt(int fd, struct os_listener *out, struct error *error)
{
    union address address = {0};
    socklen_t bytes = sizeof address;
    int type = 0, listening = 0;
    socklen_t size = sizeof type;
    *out = (struct os_listener){.descriptor = -1};
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 ||
        getsockname(fd, &address.any, &bytes) < 0)
        return error_set(error, -errno, "descriptor %d: %s", fd, strerror(errno));
    if (type != SOCK_STREAM || !listening)
        return error_set(error, -EINVAL, "descriptor %d is not a listening stream socket", fd);
    bool local = address.any.sa_family == AF_UNIX;
    if (!local && !loopback(&address))
        return error_set(error, -EINVAL, "descriptor %d: only Unix sockets and loopback TCP are served", fd);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return error_set(error, -errno, "descriptor %d: %s", fd, strerror(errno));
    out->descriptor = fd;
    out->tcp = !local;
    if (local)
        snprintf(out->name, sizeof out->name, "unix:%.107s", address.local.sun_path);
    else
        name_tcp(&address, out->name, sizeof out->name);
    return 0;
}

void os_listen_close(struct os_listener *listener)
{
    struct stat st;
    if (listener->descriptor < 0)
        return;
    /* While the socket is open its file's inode number is not given to another, so this names our file. */
    if (*listener->path && lstat(listener->path, &st) == 0 && st.st_dev == listener->device &&
        st.st_ino == listener->inode)
        unlink(listener->path);
    listener->path[0] = 0;
    close(listener->descriptor);
    listener->descriptor = -1;
}

int os_socket_peer_uid(int descriptor, uid_t *uid)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    if (getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
        return -errno;
    *uid = peer.uid;
    return peer.pid == 0 && peer.uid == (uid_t)-1 ? -EOPNOTSUPP : 0;
}

bool os_socket_peer_gone(int descriptor)
{
    int family = AF_UNIX;
    socklen_t bytes = sizeof family;
    if (getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &family, &bytes) < 0)
        return true;
    short events = family == AF_UNIX ? 0 : POLLRDHUP;
    struct pollfd poll_fd = {.fd = descriptor, .events = events};
    if (poll(&poll_fd, 1, 0) <= 0)
        return false;
    return poll_fd.revents & (POLLHUP | POLLERR | POLLNVAL | events);
}
