/* systemd, where there is one: its listening sockets and what it wants to know. Built without libsystemd,
 * all of these do nothing. */
#ifndef LLMS_DAEMON_SYSTEMD_H
#define LLMS_DAEMON_SYSTEMD_H

#include "base/error.h"

/* Listening sockets passed to this process: descriptors first, first + 1, ... */
struct systemd_sockets {
    int first, count;
};

/* To be called once: takes the variables that name the sockets out of the environment. */
int systemd_take_sockets(struct systemd_sockets *out, struct error *error);

/* Tells the manager, in sd_notify's format ("READY=1\nSTATUS=..."). */
void systemd_notify(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
