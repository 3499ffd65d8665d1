/* Asynchronous reads, every case with both backends: bytes, order, early ends, faults, short reads, an
 * emulated rate, and what happens where the kernel refuses io_uring. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/random.h"
#include "os/aio.h"
#include "os/file.h"

enum { FILE_BYTES = 3 << 20, READS = 200 };

static struct {
    char directory[64], path[80];
    unsigned char *bytes;
} file;

static int setup(void **state)
{
    (void)state;
    strcpy(file.directory, "/tmp/llms-aio-XXXXXX");
    assert_non_null(mkdtemp(file.directory));
    snprintf(file.path, sizeof file.path, "%s/file", file.directory);
    file.bytes = mem_aligned(4096, FILE_BYTES);
    struct random random = {7};
    for (size_t i = 0; i < FILE_BYTES; i += 8) {
        uint64_t word = random_next(&random);
        memcpy(file.bytes + i, &word, 8);
    }
    return os_write_file(file.path, file.bytes, FILE_BYTES, 0600);
}

static int teardown(void **state)
{
    (void)state;
    mem_free(file.bytes);
    return os_remove(file.path) || os_remove_directory(file.directory);
}

/* The backend a test runs with; skipped where this kernel refuses it. */
static struct aio *create(void **state, unsigned depth)
{
    enum aio_backend backend = *(enum aio_backend *)*state;
    struct aio *aio = NULL;
    int code = aio_create(backend, depth, &aio);
    if (code < 0 && backend == AIO_URING)
        skip();
    assert_int_equal(code, 0);
    assert_string_equal(aio_backend_name(aio), backend == AIO_URING ? "io_uring" : "threads");
    return aio;
}

struct batch {
    struct aio_read reads[READS];
    bool seen[READS];
};

static void batch_take(struct batch *batch, struct aio_read *read)
{
    size_t i = (size_t)(read - batch->reads);
    assert_true(i < READS && !batch->seen[i] && read->tag == &batch->seen[i]);
    batch->seen[i] = true;
}

static void reads_of_all_sizes(void **state)
{
    struct aio *aio = create(state, 8);
    struct batch *batch = mem_calloc(1, sizeof *batch);
    struct random random = {1};
    int descriptor = open(file.path, O_RDONLY);
    for (int i = 0; i < READS; i++) {
        struct aio_read *read = &batch->reads[i];
        size_t most = i < 8 ? (size_t)i : i % 3 ? 5000 : 300000; /* an empty one too */
        read->bytes = i < 8 ? most : 1 + random_below(&random, most);
        read->offset = random_below(&random, FILE_BYTES - read->bytes);
        read->descriptor = descriptor;
        read->data = mem_alloc(read->bytes);
        read->tag = &batch->seen[i];
        assert_int_equal(aio_submit(aio, read), 0);
        if (i % 7 == 0)
            while ((read = aio_wait(aio, false)))
                batch_take(batch, read);
    }
    for (struct aio_read *read; (read = aio_wait(aio, true));)
        batch_take(batch, read);
    assert_int_equal(aio_in_flight(aio), 0);
    for (int i = 0; i < READS; i++) {
        const struct aio_read *read = &batch->reads[i];
        assert_true(batch->seen[i]);
        assert_int_equal(read->code, 0);
        assert_memory_equal(read->data, file.bytes + read->offset, read->bytes);
        mem_free(read->data);
    }
    mem_free(batch);
    close(descriptor);
    aio_destroy(aio);
}

static void direct_reads(void **state)
{
    struct aio *aio = create(state, 4);
    int descriptor = os_open_direct(file.path);
    unsigned char *data = mem_aligned(4096, FILE_BYTES);
    struct aio_read reads[24] = {0};
    size_t piece = FILE_BYTES / 24;
    assert_true(descriptor >= 0 && piece % 4096 == 0);
    for (int shortened = 0; shortened < 2; shortened++) {
        os_fault_short_reads(shortened);
        memset(data, 0, FILE_BYTES);
        for (size_t i = 0; i < 24; i++) {
            reads[i] = (struct aio_read){descriptor, i * piece, data + i * piece, piece, NULL, 1};
            assert_int_equal(aio_submit(aio, &reads[i]), 0);
        }
        for (struct aio_read *read; (read = aio_wait(aio, true));)
            assert_int_equal(read->code, 0);
        assert_memory_equal(data, file.bytes, FILE_BYTES);
    }
    os_fault_short_reads(false);
    mem_free(data);
    assert_int_equal(os_close(descriptor), 0);
    aio_destroy(aio);
}

static int read_one(struct aio *aio, int descriptor, uint64_t offset, size_t bytes, void *data)
{
    struct aio_read read = {descriptor, offset, data, bytes, NULL, 1};
    assert_int_equal(aio_submit(aio, &read), 0);
    assert_int_equal(aio_in_flight(aio), 1);
    assert_ptr_equal(aio_wait(aio, true), &read);
    assert_null(aio_wait(aio, true));
    return read.code;
}

static void early_end(void **state)
{
    struct aio *aio = create(state, 2);
    unsigned char *data = mem_aligned(4096, 16384);
    char path[96];
    snprintf(path, sizeof path, "%s/odd", file.directory);
    assert_int_equal(os_write_file(path, file.bytes, 5000, 0600), 0);
    for (int direct = 0; direct < 2; direct++) {
        int descriptor = direct ? os_open_direct(path) : open(path, O_RDONLY);
        assert_int_equal(read_one(aio, descriptor, 0, 8192, data), -EIO); /* begins inside, ends outside */
        assert_int_equal(read_one(aio, descriptor, 8192, 4096, data), -EIO);
        assert_int_equal(read_one(aio, descriptor, 0, 4096, data), 0);
        assert_memory_equal(data, file.bytes, 4096);
        close(descriptor);
    }
    assert_int_equal(read_one(aio, -1, 0, 4096, data), -EBADF);
    assert_int_equal(os_remove(path), 0);
    mem_free(data);
    aio_destroy(aio);
}

/* With one read under way at a time the order of completion is that of submission. */
static void order(void **state)
{
    struct aio *aio = create(state, 1);
    struct aio_read reads[50];
    unsigned char data[50][64];
    int descriptor = open(file.path, O_RDONLY);
    for (size_t i = 0; i < 50; i++) {
        reads[i] = (struct aio_read){descriptor, i * 1000, data[i], 64, NULL, 1};
        assert_int_equal(aio_submit(aio, &reads[i]), 0);
    }
    assert_int_equal(aio_in_flight(aio), 50);
    for (size_t i = 0; i < 50; i++) {
        assert_ptr_equal(aio_wait(aio, true), &reads[i]);
        assert_memory_equal(data[i], file.bytes + i * 1000, 64);
    }
    close(descriptor);
    aio_destroy(aio);
}

/* The nth read submitted is the one that fails, whatever runs at once. */
static void faults(void **state)
{
    struct aio *aio = create(state, 4);
    struct aio_read reads[12];
    unsigned char data[12][512];
    int descriptor = open(file.path, O_RDONLY);
    for (int persistent = 0; persistent < 2; persistent++)
        for (int nth = 1; nth <= 12; nth++) {
            os_fault_set(OS_FAULT_READ, nth, persistent, ENXIO);
            for (size_t i = 0; i < 12; i++) {
                reads[i] = (struct aio_read){descriptor, i * 512, data[i], 512, NULL, 1};
                assert_int_equal(aio_submit(aio, &reads[i]), 0);
            }
            for (int i = 0; i < 12; i++)
                assert_non_null(aio_wait(aio, true));
            assert_null(aio_wait(aio, true));
            for (int i = 0; i < 12; i++) {
                bool fails = persistent ? i >= nth - 1 : i == nth - 1;
                assert_int_equal(reads[i].code, fails ? -ENXIO : 0);
                if (!fails)
                    assert_memory_equal(data[i], file.bytes + i * 512, 512);
            }
            assert_int_equal(os_fault_hits(), persistent ? 13 - nth : 1);
        }
    os_fault_set(0, 0, false, 0);
    close(descriptor);
    aio_destroy(aio);
}

/* A read continued after a short one counts as another: a fault can hit its middle. */
static void short_reads(void **state)
{
    struct aio *aio = create(state, 2);
    unsigned char *data = mem_alloc(100001);
    int descriptor = open(file.path, O_RDONLY);
    os_fault_short_reads(true);
    assert_int_equal(read_one(aio, descriptor, 3, 100001, data), 0);
    assert_memory_equal(data, file.bytes + 3, 100001);
    os_fault_set(OS_FAULT_READ, 3, false, EIO);
    assert_int_equal(read_one(aio, descriptor, 3, 100001, data), -EIO);
    assert_int_equal(os_fault_hits(), 1);
    os_fault_set(0, 0, false, 0);
    os_fault_short_reads(false);
    close(descriptor);
    mem_free(data);
    aio_destroy(aio);
}

static void allocation_fails(void **state)
{
    enum aio_backend backend = *(enum aio_backend *)*state;
    aio_destroy(create(state, 4));
    int code = -ENOMEM;
    for (long nth = 1; code < 0; nth++) {
        struct aio *aio = NULL;
        mem_fault_set(nth, true);
        code = aio_create(backend, 4, &aio);
        mem_fault_set(0, false);
        assert_true(code == 0 ? nth > 1 : code == -ENOMEM && !aio);
        if (code < 0)
            continue;
        unsigned char byte;
        struct aio_read read = {-1, 0, &byte, 1, NULL, 1};
        mem_fault_set(1, false);
        assert_int_equal(aio_submit(aio, &read), -ENOMEM);
        mem_fault_set(0, false);
        assert_int_equal(aio_in_flight(aio), 0);
        aio_destroy(aio);
    }
    struct aio *none = NULL;
    assert_int_equal(aio_create(backend, 0, &none), -EINVAL);
}

static void destroy_waits(void **state)
{
    struct aio *aio = create(state, 2);
    static unsigned char data[64][4096];
    static struct aio_read reads[64];
    int descriptor = open(file.path, O_RDONLY);
    for (size_t i = 0; i < 64; i++) {
        reads[i] = (struct aio_read){descriptor, i * 4096, data[i], 4096, NULL, 1};
        assert_int_equal(aio_submit(aio, &reads[i]), 0);
    }
    aio_destroy(aio);
    for (size_t i = 0; i < 64; i++) {
        assert_int_equal(reads[i].code, 0);
        assert_memory_equal(data[i], file.bytes + i * 4096, 4096);
    }
    close(descriptor);
}

/* Bytes a second reached while reading `bytes` in pieces. */
static double read_rate(struct aio *aio, size_t bytes, size_t piece)
{
    static struct aio_read reads[2048];
    unsigned char *data = mem_alloc(bytes);
    int descriptor = open(file.path, O_RDONLY);
    size_t count = bytes / piece, done = 0;
    assert_true(count <= 2048);
    uint64_t start = clock_ns();
    for (size_t i = 0; i < count; i++) {
        reads[i] = (struct aio_read){descriptor, i * piece % FILE_BYTES, data + i * piece, piece, NULL, 1};
        assert_int_equal(aio_submit(aio, &reads[i]), 0);
    }
    for (struct aio_read *read; (read = aio_wait(aio, true)); done++) {
        assert_int_equal(read->code, 0);
    }
    assert_int_equal(done, count);
    double rate = (double)bytes / ((double)(clock_ns() - start) / 1e9);
    close(descriptor);
    mem_free(data);
    return rate;
}

static double write_rate(struct aio *aio, size_t bytes, size_t piece)
{
    (void)aio;
    (void)piece;
    uint64_t start = clock_ns();
    aio_pace(bytes);
    return (double)bytes / ((double)(clock_ns() - start) / 1e9);
}

/* Never above the rate asked for; within 20 % of it as soon as the machine lets us run in time. */
static void assert_rate(double (*measure)(struct aio *, size_t, size_t), struct aio *aio, double asked,
                        size_t piece)
{
    double rate = 0;
    size_t bytes = (size_t)(asked / 6) / piece * piece;
    aio_set_limit((uint64_t)asked);
    for (int tries = 0; tries < 20 && rate < asked * 0.8; tries++) {
        rate = measure(aio, bytes, piece);
        assert_true(rate < asked * 1.01);
    }
    assert_true(rate > asked * 0.8);
}

static void rates(void **state)
{
    struct aio *aio = create(state, 8);
    static const double asked[] = {10e6, 25e6};
    for (int i = 0; i < 2; i++) {
        assert_rate(read_rate, aio, asked[i], 64 << 10);
        assert_rate(read_rate, aio, asked[i], 512 << 10);
        assert_rate(write_rate, aio, asked[i], 512 << 10);
    }
    unsigned char byte;
    int descriptor = open(file.path, O_RDONLY);
    aio_set_limit(20);
    struct aio_read read = {descriptor, 0, &byte, 1, NULL, 1};
    uint64_t start = clock_ns();
    assert_int_equal(aio_submit(aio, &read), 0);
    assert_null(aio_wait(aio, false)); /* not due */
    assert_int_equal(aio_in_flight(aio), 1);
    assert_ptr_equal(aio_wait(aio, true), &read);
    assert_true(clock_ms_since(start) >= 50);
    close(descriptor);
    /* at 0 nothing is slowed down */
    aio_set_limit(0);
    aio_pace((uint64_t)1 << 60);
    double rate = 0;
    for (int tries = 0; tries < 20 && rate < 30e6; tries++)
        rate = read_rate(aio, 12 << 20, 1 << 20);
    assert_true(rate > 30e6); /* faster than any limit above let it be, under any sanitizer */
    aio_destroy(aio);
}

/* ---- where io_uring is refused ---- */

/* What must hold in a process of its own, for what it does to itself is not undone. */
static void in_child(void (*body)(void))
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        body();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void check(bool holds, int line)
{
    if (holds)
        return;
    fprintf(stderr, "test_aio.c:%d does not hold\n", line);
    _exit(1);
}

static void refuse(int call, int code)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, __LINE__);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(0); /* a kernel without filters cannot refuse either */
}

static void check_reads(struct aio *aio, int count)
{
    static struct aio_read reads[READS];
    static unsigned char data[READS][4096];
    int descriptor = open(file.path, O_RDONLY);
    for (int i = 0; i < count; i++) {
        reads[i] = (struct aio_read){descriptor, (uint64_t)i * 4096, data[i], 4096, NULL, 1};
        check(aio_submit(aio, &reads[i]) == 0, __LINE__);
    }
    for (int i = 0; i < count; i++)
        check(aio_wait(aio, true) != NULL, __LINE__);
    check(aio_wait(aio, true) == NULL, __LINE__);
    for (int i = 0; i < count; i++)
        check(reads[i].code == 0 && !memcmp(data[i], file.bytes + (size_t)i * 4096, 4096), __LINE__);
    close(descriptor);
}

static void check_fallback(int refused)
{
    struct aio *aio = NULL;
    check(aio_create(AIO_URING, 4, &aio) == refused || refused == 0, __LINE__);
    check(aio_create(AIO_BEST, 4, &aio) == 0, __LINE__);
    check(!strcmp(aio_backend_name(aio), "threads"), __LINE__);
    check_reads(aio, 40);
    aio_destroy(aio);
}

static void without_setup(void)
{
    refuse(SYS_io_uring_setup, EPERM);
    check_fallback(0);
}

static void without_descriptors(void)
{
    struct rlimit limit;
    check(getrlimit(RLIMIT_NOFILE, &limit) == 0, __LINE__);
    int next = dup(0);
    check(next >= 0 && close(next) == 0, __LINE__);
    limit.rlim_cur = (rlim_t)next;
    check(setrlimit(RLIMIT_NOFILE, &limit) == 0, __LINE__);
    struct aio *aio = NULL;
    check(aio_create(AIO_BEST, 4, &aio) == 0 && !strcmp(aio_backend_name(aio), "threads"), __LINE__);
    aio_destroy(aio);
}

static void forbidden_later(void)
{
    struct aio *aio = NULL;
    check(aio_create(AIO_BEST, 4, &aio) == 0, __LINE__);
    check_reads(aio, 10);
    refuse(SYS_io_uring_enter, EPERM);
    check_reads(aio, 40);
    aio_destroy(aio);
}

static void refused(void **state)
{
    (void)state;
    in_child(without_setup);
    in_child(without_descriptors);
    in_child(forbidden_later);
}

int main(void)
{
    static enum aio_backend backends[] = {AIO_URING, AIO_THREADS};
#define BOTH(test)                                                                                           \
    {#test, test, NULL, NULL, &backends[0]},                                                                 \
    {                                                                                                        \
#test " (threads)", test, NULL, NULL, &backends[1]                                                   \
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused), /* first: it forks, and the others make threads */
        BOTH(reads_of_all_sizes),  BOTH(direct_reads),     BOTH(early_end),     BOTH(order), BOTH(faults),
        BOTH(short_reads),         BOTH(allocation_fails), BOTH(destroy_waits), BOTH(rates),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
