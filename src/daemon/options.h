/* What llmsd was asked to do: defaults, then the configuration file, then the command line. */
#ifndef LLMS_DAEMON_OPTIONS_H
#define LLMS_DAEMON_OPTIONS_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/log.h"

enum { OPTIONS_LISTENERS = 8, OPTIONS_SOCKET_MODE_ALL = 0666, OPTIONS_SOCKET_MODE_OWN = 0600 };

struct options {
    bool help, version;
    char config[PATH_MAX]; /* "" if none */
    char model[PATH_MAX];
    char state_directory[PATH_MAX];
    char listen[OPTIONS_LISTENERS][PATH_MAX]; /* "unix:PATH" or "tcp:HOST:PORT" */
    size_t listen_count;                      /* 0: none was named */
    uint64_t kv_budget_bytes;
    uint64_t kv_levels;        /* 0: the policy's; else bits LEVELS_* (kv/levels.h) */
    double kv_ratio;           /* 0: the policy's */
    char policy[PATH_MAX];     /* "": the default */
    char evict[PATH_MAX];      /* "": the policy's */
    uint64_t context_length;   /* 0: the model's */
    uint64_t contexts_per_app; /* 0: no limit */
    uint64_t threads;          /* 0: one per CPU */
    uint64_t queue_limit;
    enum log_level log_level;
};

/* Reads the command line and the configuration file it names. Model, state directory and listeners are as
 * given, "" or 0 where they were not: see options_resolve. -EINVAL with one line for bad usage; another code
 * where the configuration file cannot be read. */
int options_parse(int argc, char **argv, struct options *out, struct error *error);

/* Puts the defaults of this machine where nothing was given; listeners stay as they are where
 * `have_listeners` says that others (systemd's) are there. -EINVAL with text where there is no default. */
int options_resolve(struct options *options, bool have_listeners, struct error *error);

/* The mode of Unix sockets: open to all for the machine's daemon, else the owner's alone. */
unsigned options_socket_mode(void);

void options_print_help(void);

#endif
