/* Cold starts: from a process's start to its first token, with the model's file out of the page cache.
 *
 * The process is `llms-bench logits` with one token: it opens the model, computes, and prints. In every run
 * the file is first read once past the page cache, several large requests at once: that is the bound. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "neighbours.h"
#include "os/file.h"
#include "peer.h"
#include "speed.h"
#include "storage.h"

static const char SELF[] = "/proc/self/exe";

static int drop_cached(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -errno;
    int code = os_sync(file); /* what is not yet written cannot be dropped */
    if (code == 0)
        code = -posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
    return code;
}

/* Milliseconds until the first byte of what the process prints, which it does after its first token. */
static int first_token(const char *path, unsigned threads, double *ms, struct error *error)
{
    char count[16], byte;
    int output = -1, status = 0;
    pid_t pid;
    snprintf(count, sizeof count, "%u", threads);
    const char *argv[] = {SELF, "logits",    "--model", path,     "--tokens",
                          "1",  "--threads", count,     "--json", NULL};
    uint64_t start = clock_ns();
    int code = peer_start((char *const *)(uintptr_t)argv, &output, &pid);
    if (code < 0)
        return error_set(error, code, "%s: %s", SELF, strerror(-code));
    ssize_t got = read(output, &byte, 1);
    *ms = clock_ms_since(start);
    while (got > 0) {
        char rest[4096];
        got = read(output, rest, sizeof rest);
    }
    close(output);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return error_set(error, -EIO, "%s: the process that was to start on it failed", path);
    return 0;
}

static int run_once(struct speed_cold *start, struct error *error)
{
    struct storage storage = {0};
    double ms = 0;
    int code = storage_measure_file(start->model, &storage);
    if (code == 0)
        code = drop_cached(start->model);
    if (code < 0)
        return error_set(error, code, "%s: %s", start->model, strerror(-code));
    spread_add(&start->storage, storage.bytes_per_s);
    code = first_token(start->model, start->threads, &ms, error);
    spread_add(&start->cold, ms);
    if (code == 0)
        code = first_token(start->model, start->threads, &ms, error);
    spread_add(&start->warm, ms);
    return code;
}

static int measure_start(const struct speed *speed, struct speed_cold *start, struct error *error)
{
    int file = open(start->model, O_RDONLY | O_CLOEXEC), code = file < 0 ? -errno : 0;
    if (code == 0)
        code = os_descriptor_bytes(file, &start->file_bytes);
    os_close(file);
    if (code == 0)
        code = processors_keep(start->threads);
    if (code < 0)
        return error_set(error, code, "%s: %s", start->model, strerror(-code));
    if (start->threads == 0)
        start->threads = processors_allowed();
    for (uint64_t run = 0; run < speed->runs && code == 0; run++) {
        bench_progress("%s, %u threads: cold start %" PRIu64 " of %" PRIu64, start->model, start->threads,
                       run + 1, speed->runs);
        code = run_once(start, error);
    }
    spread_sort(&start->cold);
    spread_sort(&start->warm);
    spread_sort(&start->storage);
    return code;
}

int speed_start(struct speed *speed, struct error *error)
{
    int code = 0;
    speed->starts = mem_calloc(speed->model_count * speed->threads.count, sizeof *speed->starts);
    if (!speed->starts)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t m = 0; m < speed->model_count && code == 0; m++)
        for (size_t t = 0; t < speed->threads.count && code == 0; t++) {
            struct speed_cold *start = &speed->starts[speed->start_count++];
            start->model = speed->models[m];
            start->threads = (unsigned)speed->threads.values[t];
            code = measure_start(speed, start, error);
        }
    (void)processors_keep(0);
    bench_progress(NULL);
    return code;
}
