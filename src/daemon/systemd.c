#include "daemon/systemd.h"

#ifdef LLMS_SYSTEMD

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <systemd/sd-daemon.h>

int systemd_take_sockets(struct systemd_sockets *out, struct error *error)
{
    int count = sd_listen_fds(1);
    *out = (struct systemd_sockets){SD_LISTEN_FDS_START, count < 0 ? 0 : count};
    return count < 0 ? error_set(error, count, "the sockets passed by systemd: %s", strerror(-count)) : 0;
}

void systemd_notify(const char *format, ...)
{
    char state[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(state, sizeof state, format, args);
    va_end(args);
    sd_notify(0, state);
}

#else

int systemd_take_sockets(struct systemd_sockets *out, struct error *error)
{
    (void)error;
    *out = (struct systemd_sockets){0};
    return 0;
}

void systemd_notify(const char *format, ...)
{
    (void)format;
}

#endif
