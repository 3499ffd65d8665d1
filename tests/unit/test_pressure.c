/* The pressure watch on FIFOs, sockets and files that stand in for the kernel's. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "os/pressure.h"

struct events {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int count;
    enum pressure_event event[64];
};

static struct events heard = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
static char directory[] = "/tmp/llms-pressure-XXXXXX";
static char path[64];

static void hear(void *argument, enum pressure_event event)
{
    struct events *e = argument;
    pthread_mutex_lock(&e->lock);
    if (e->count < 64)
        e->event[e->count++] = event;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

/* Waits for the nth event and checks that they alternate, BEGIN first. */
static void expect_events(int n)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    pthread_mutex_lock(&heard.lock);
    while (heard.count < n)
        if (pthread_cond_timedwait(&heard.changed, &heard.lock, &until))
            break;
    int count = heard.count;
    for (int i = 0; i < count; i++)
        if (heard.event[i] != (i % 2 ? PRESSURE_END : PRESSURE_BEGIN))
            count = -1;
    pthread_mutex_unlock(&heard.lock);
    assert_int_equal(count, n);
}

static void write_file(const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, text, strlen(text), 0),
                     strlen(text)); /* in one piece: never seen half done */
    close(fd);
}

static int begin(void **state)
{
    (void)state;
    heard.count = 0;
    snprintf(path, sizeof path, "%s/watched", directory);
    unlink(path);
    unsetenv("MEMORY_PRESSURE_WATCH");
    unsetenv("MEMORY_PRESSURE_WRITE");
    return 0;
}

static struct pressure_options options(void)
{
    return (struct pressure_options){
        .path = path, .quiet_ms = 60, .poll_ms = 5, .call = hear, .argument = &heard};
}

static struct pressure *open_or_fail(const struct pressure_options *o, const char *source)
{
    struct pressure *p = NULL;
    struct error error = {0};
    if (pressure_open(o, &p, &error) < 0)
        fail_msg("%s", error.text);
    assert_string_equal(pressure_source(p), source);
    return p;
}

static void fifo_begins_and_quiet_ends(void **state)
{
    (void)state;
    struct pressure_options o = options();
    o.quiet_ms = 400; /* long beside what a busy machine may keep us waiting between two writes */
    assert_int_equal(mkfifo(path, 0600), 0);
    struct pressure *p = open_or_fail(&o, "stream");
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    assert_true(fd >= 0);
    usleep(20000);
    expect_events(0);
    uint64_t start = clock_ns();
    for (int i = 0; i < 20; i++) { /* goes on: one BEGIN */
        assert_int_equal(write(fd, "xyz", 3), 3);
        usleep(5000);
    }
    expect_events(2);
    assert_true(clock_ms_since(start) >= 20 * 5 + 390); /* quiet counts from the last */
    assert_int_equal(write(fd, "x", 1), 1);
    expect_events(4);
    close(fd); /* a writer that leaves is not the end of the watch */
    fd = open(path, O_WRONLY | O_NONBLOCK);
    assert_int_equal(write(fd, "x", 1), 1);
    expect_events(5);
    pressure_close(p);
    close(fd);
    usleep(20000);
    expect_events(5); /* nothing after close */
}

static void environment_is_systemds(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    setenv("MEMORY_PRESSURE_WATCH", path, 1);
    setenv("MEMORY_PRESSURE_WRITE", "c29tZSAyMDAwMDAgMjAwMDAwMAA=", 1); /* with its NUL */
    struct pressure_options o = options();
    o.path = NULL;
    struct pressure *p = open_or_fail(&o, "stream");
    int fd = accept(listener, NULL, NULL);
    char asked[64] = {0};
    assert_int_equal(read(fd, asked, sizeof asked), 20);
    assert_memory_equal(asked, "some 200000 2000000", 20);
    assert_int_equal(write(fd, "x", 1), 1);
    expect_events(2);
    assert_int_equal(write(fd, "x", 1), 1);
    expect_events(3);
    close(fd); /* the manager is gone: what there was is over, at once or by quiet */
    expect_events(4);
    usleep(20000);
    pressure_close(p);
    close(listener);
    setenv("MEMORY_PRESSURE_WATCH", "/dev/null", 1);
    assert_int_equal(pressure_open(&o, &p, NULL), -ENODATA);
}

static void base64_is_checked(void **state)
{
    (void)state;
    static const char *const bad[] = {"c29", "c2=t", "====", "c29t!A==", "\xff\xff\xff\xff", "AA==AAAA"};
    struct pressure_options o = options();
    struct pressure *p = NULL;
    struct error error;
    o.path = NULL;
    assert_int_equal(mkfifo(path, 0600), 0);
    setenv("MEMORY_PRESSURE_WATCH", path, 1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("MEMORY_PRESSURE_WRITE", bad[i], 1);
        assert_int_equal(pressure_open(&o, &p, &error), -EINVAL);
        assert_non_null(strstr(error.text, "MEMORY_PRESSURE_WRITE"));
    }
    char longer[1001];
    memset(longer, 'A', 1000);
    longer[1000] = '\0';
    setenv("MEMORY_PRESSURE_WRITE", longer, 1);
    assert_int_equal(pressure_open(&o, &p, &error), -EINVAL);
}

static void polling_has_hysteresis(void **state)
{
    (void)state;
    struct pressure_options o = options();
    write_file("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=99.00\n");
    struct pressure *p = open_or_fail(&o, "poll");
    static const struct {
        const char *avg10;
        int events; /* heard by then */
    } steps[] = {{"09.99", 0}, {"10.00", 1}, {"05.00", 1}, {"02.00", 1}, {"01.99", 2},
                 {"05.00", 2}, {"80.00", 3}, {"11.00", 3}, {"00.00", 4}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        char text[80];
        snprintf(text, sizeof text, "some avg10=%s avg60=0.00", steps[i].avg10);
        write_file(text);
        usleep(40000);
        expect_events(steps[i].events);
    }
    write_file("some avg10=80.00 ");
    expect_events(5);
    assert_int_equal(truncate(path, 0), 0); /* the file breaks: what there was is over */
    expect_events(6);
    pressure_close(p);
}

static void a_file_that_takes_a_trigger_is_not_polled(void **state)
{
    (void)state;
    struct pressure_options o = options();
    write_file("some avg10=90.00 avg60=0.00");
    o.trigger = "some 1 2";
    struct pressure *p = open_or_fail(&o, "trigger");
    char text[16] = {0};
    int fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, text, 9), 9);
    close(fd);
    assert_memory_equal(text, "some 1 2", 9); /* its NUL included */
    usleep(50000);
    expect_events(0);
    pressure_close(p);
}

static void what_cannot_be_watched(void **state)
{
    (void)state;
    struct pressure_options o = options();
    struct pressure *p = NULL;
    struct error error;
    assert_int_equal(pressure_open(&o, &p, &error), -ENOENT);
    assert_non_null(strstr(error.text, path));
    write_file("nonsense");
    assert_int_equal(pressure_open(&o, &p, &error), -EINVAL);
    write_file("some avg10=1.00 ");
    mem_fault_set(1, false);
    assert_int_equal(pressure_open(&o, &p, &error), -ENOMEM);
    mem_fault_set(0, false);
    assert_null(p);
    pressure_close(NULL);
}

/* As on a real machine; that it opens and closes is all that can be asked. */
static void the_kernels_own(void **state)
{
    (void)state;
    struct pressure_options o = options();
    struct pressure *p = NULL;
    o.path = NULL;
    int code = pressure_open(&o, &p, NULL);
    if (access("/proc/pressure/memory", R_OK) == 0 && code == 0)
        assert_true(strcmp(pressure_source(p), "trigger") == 0 || strcmp(pressure_source(p), "poll") == 0);
    else
        assert_true(code < 0);
    pressure_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(fifo_begins_and_quiet_ends, begin),
        cmocka_unit_test_setup(environment_is_systemds, begin),
        cmocka_unit_test_setup(base64_is_checked, begin),
        cmocka_unit_test_setup(polling_has_hysteresis, begin),
        cmocka_unit_test_setup(a_file_that_takes_a_trigger_is_not_polled, begin),
        cmocka_unit_test_setup(what_cannot_be_watched, begin),
        cmocka_unit_test_setup(the_kernels_own, begin),
    };
    log_set_level(LOG_LEVEL_ERROR);
    if (!mkdtemp(directory))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(directory);
    return failed;
}
