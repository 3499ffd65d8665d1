/* Listening sockets and who is at the other end of a connection.
 *
 * Listens on Unix sockets and on loopback TCP, nothing else: the daemon is a service of this machine. A Unix
 * socket that a dead process left behind is replaced, that of a live one is not. Functions that can fail
 * return 0 or a negative errno value with one line of text. Listening is for the start of a process, while it
 * has one thread: a socket's mode is set through the process's umask, so that it is never more open than
 * asked. */
#ifndef LLMS_OS_SOCKET_H
#define LLMS_OS_SOCKET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

enum { OS_SOCKET_PATH_BYTES = 108 }; /* a Unix socket's path with its NUL (sun_path) */

struct os_listener {
    int descriptor; /* non-blocking, close-on-exec; -1 once handed over or closed */
    bool tcp;
    char name[OS_SOCKET_PATH_BYTES + 8]; /* "unix:PATH" or "tcp:HOST:PORT", with the port really taken */
    char path[OS_SOCKET_PATH_BYTES];     /* the socket file to remove at the end; "" if it is not ours */
    dev_t device;                        /* of the socket file we made */
    ino_t inode;
};

/* "unix:PATH" or "tcp:127.0.0.1:PORT" or "tcp:[::1]:PORT". */
bool os_listen_address_valid(const char *address);

/* Makes PATH's directory if it is missing (0755 for a socket others may use, else 0700). mode: of the socket
 * file. -EADDRINUSE: a live process listens there. -EEXIST: the path is something else than a socket. */
int os_listen_unix(const char *path, unsigned mode, struct os_listener *out, struct error *error);

/* address: "127.0.0.1:PORT" or "[::1]:PORT"; port 0 takes a free one. -EINVAL: not loopback, or malformed. */
int os_listen_tcp(const char *address, struct os_listener *out, struct error *error);

/* Takes over a listening stream socket made by someone else (systemd); it must be Unix or loopback TCP. On
 * failure the descriptor stays the caller's. */
int os_listen_adopt(int descriptor, struct os_listener *out, struct error *error);

/* Removes the socket file we made, if it is still that one, and closes the descriptor. Nothing if it is -1.
 */
void os_listen_close(struct os_listener *listener);

/* The uid at the other end of a Unix socket's connection. */
int os_socket_peer_uid(int descriptor, uid_t *uid);

/* True once the peer is gone. A Unix socket tells a closed peer from one that only ended its sending side
 * (`nc -N`), which still reads; TCP does not, and there both count as gone, as in other HTTP servers. */
bool os_socket_peer_gone(int descriptor);

#endif
