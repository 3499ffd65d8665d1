#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static atomic_int level_limit = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
    atomic_store(&level_limit, (int)level);
}

void log_write(enum log_level level, const char *format, ...)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    static const int priorities[] = {3, 4, 6, 7}; /* syslog's, as systemd reads them */
    if ((int)level > atomic_load(&level_limit))
        return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    for (char *c = line; *c; c++) /* one event stays one line, whatever a file or a client put into it */
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = ' ';
    if (getenv("JOURNAL_STREAM")) {
        fprintf(stderr, "<%d>%s\n", priorities[level], line);
        return;
    }
    struct timespec now;
    struct tm local;
    char stamp[32] = "";
    clock_gettime(CLOCK_REALTIME, &now);
    if (localtime_r(&now.tv_sec, &local))
        strftime(stamp, sizeof stamp, "%H:%M:%S", &local);
    fprintf(stderr, "%s.%03ld %-7s %s\n", stamp, now.tv_nsec / 1000000, names[level], line);
}
