/* See peer.h. The tool sees its working directory and the directories named in PEER_BIND: the model's. */
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/array.h"

enum { LIST_BYTES = 512, LIMIT_ARGUMENTS = 8 };

/* "16,512" of the tests' prompt sizes, or of what they generate; "0" if there are none. */
static void list(const struct peer_test *tests, size_t count, int generate, char out[LIST_BYTES])
{
    size_t used = 0;
    snprintf(out, LIST_BYTES, "0");
    for (size_t i = 0; i < count && used + 24 < LIST_BYTES; i++) {
        uint64_t tokens = generate ? tests[i].generate : tests[i].prompt;
        if (tokens)
            used += (size_t)snprintf(out + used, LIST_BYTES - used, "%s%" PRIu64, used ? "," : "", tokens);
    }
}

int peer_start(char *const argv[], int *output, pid_t *pid)
{
    int ends[2] = {-1, -1};
    posix_spawn_file_actions_t actions;
    if (output && pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    int code = -posix_spawn_file_actions_init(&actions);
    if (code == 0) {
        if (output)
            posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        else
            posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
        posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
        code = -posix_spawn(pid, argv[0], &actions, NULL, argv, environ);
        posix_spawn_file_actions_destroy(&actions);
    }
    if (!output)
        return code;
    close(ends[1]);
    if (code < 0)
        close(ends[0]);
    *output = ends[0];
    return code;
}

void peer_show(const char *directories)
{
    setenv("PEER_BIND", directories, 1);
}

static const char *limit;

void peer_limit(const char *isa)
{
    limit = isa;
}

/* A shell's pattern of the back ends that may stay; it picks the best of what is there. */
static const char *backends(const char *isa)
{
    static const char *const kept[][2] = {{"plain", "*-x64.so"},
                                          {"avx2", "*-haswell.so"},
                                          {"avxvnni", "*-haswell.so|*-alderlake.so"},
                                          {"avx512", "*-haswell.so|*-icelake.so|*-cascadelake.so|*-zen4.so"}};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (strcmp(isa, kept[i][0]) == 0)
            return kept[i][1];
    return "*";
}

/* Puts what hides back ends before a tool's name: at most LIMIT_ARGUMENTS; returns how many. */
static size_t put_limit(const char *path, const char **argv, char script[LIST_BYTES])
{
    size_t count = 0;
    if (limit) {
        snprintf(script, LIST_BYTES,
                 "for f in /usr/lib/*/ggml/backends*/libggml-cpu-*.so; do case $f in %s) ;; "
                 "*) mount --bind /dev/null \"$f\" || exit 1 ;; esac; done; exec \"$@\"",
                 backends(limit));
        argv[count++] = "/usr/bin/unshare";
        argv[count++] = "--mount";
    }
    argv[count++] = path;
    argv[count++] = "run";
    if (limit) {
        argv[count++] = "sh";
        argv[count++] = "-c";
        argv[count++] = script;
        argv[count++] = "sh";
    }
    return count;
}

static int read_all(int descriptor, struct buffer *out)
{
    char piece[4096];
    while (1) {
        ssize_t n = read(descriptor, piece, sizeof piece);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : 0;
        if (buffer_append(out, piece, (size_t)n) < 0)
            return -ENOMEM;
    }
}

static int run(char *const argv[], struct buffer *out, struct error *error)
{
    int output = -1, status = 0;
    pid_t pid;
    int code = peer_start(argv, &output, &pid);
    if (code < 0)
        return error_set(error, code, "%s: %s", argv[0], strerror(-code));
    code = read_all(output, out);
    close(output);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (code < 0)
        return error_set(error, code, "%s: %s", argv[0], strerror(-code));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return error_set(error, -EIO, "%s run llama-bench failed (status %d)", argv[0],
                         WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    return 0;
}

static int take_results(const struct buffer *text, struct peer_test *tests, size_t count)
{
    size_t found = 0;
    json_t *results = json_loadb(text->data ? text->data : "", text->length, 0, NULL), *result;
    size_t at;
    json_array_foreach(results, at, result)
    {
        uint64_t prompt = (uint64_t)json_integer_value(json_object_get(result, "n_prompt"));
        uint64_t generate = (uint64_t)json_integer_value(json_object_get(result, "n_gen"));
        double rate = json_number_value(json_object_get(result, "avg_ts"));
        for (size_t i = 0; i < count; i++)
            if (tests[i].prompt == prompt && tests[i].generate == generate && rate > 0) {
                tests[i].tokens_per_s = rate;
                found++;
            }
    }
    json_decref(results);
    return found >= count ? 0 : -EIO;
}

/* The directory of the model, so that the peer sees it. */
static void show_model(const char *model)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(model, '/');
    snprintf(directory, sizeof directory, "%.*s", (int)(slash - model), model);
    if (slash != model)
        peer_show(directory);
}

int peer_bench(const char *path, const char *model, uint64_t depth, unsigned threads, struct peer_test *tests,
               size_t count, struct error *error)
{
    char full[PATH_MAX], prompts[LIST_BYTES], generates[LIST_BYTES], script[LIST_BYTES], depth_text[24],
        threads_text[16];
    struct buffer out = {0};
    if (!realpath(model, full))
        return error_set(error, -errno, "%s: %s", model, strerror(errno));
    list(tests, count, 0, prompts);
    list(tests, count, 1, generates);
    snprintf(depth_text, sizeof depth_text, "%" PRIu64, depth);
    snprintf(threads_text, sizeof threads_text, "%u", threads);
    show_model(full);
    const char *tool[] = {"llama-bench", "-m", full,         "-p", prompts, "-n", generates, "-d",
                          depth_text,    "-t", threads_text, "-r", "1",     "-o", "json",    NULL};
    const char *argv[LIMIT_ARGUMENTS + sizeof tool / sizeof *tool];
    memcpy(argv + put_limit(path, argv, script), tool, sizeof tool);
    int code = run((char *const *)(uintptr_t)argv, &out, error);
    if (code == 0 && (code = take_results(&out, tests, count)) < 0)
        error_set(error, code, "%s: llama-bench did not report what it was asked for", path);
    buffer_deinit(&out);
    return code;
}
