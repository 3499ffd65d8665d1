/* llms-bench kernels: how fast matrix products run, beside the memory's read speed and the plain twin.
 *
 * A measurement is repeated for a fifth of a second and at least three times. Matrices are larger than caches
 * by default, so one token measures reading memory as generation does, and many tokens measure arithmetic as
 * prompts do. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/workers.h"
#include "bench.h"
#include "blocks.h"
#include "kernels/kernels.h"

enum { PIECE_ROWS = 128, REPEATS_MAX = 1000, REPEATS_MIN = 3 };
static const uint64_t REPEAT_NS = 200000000;
static const double MACS_MAX = 4e9; /* a repeat takes fewer rows when there are many tokens */

struct setup {
    const struct kernels *kernels;
    struct workers *workers;
    uint64_t rows, columns;
    bool json;
    double read_bytes_s; /* measured, with all threads */
    size_t printed;
};

struct timing {
    double median_s, best_s;
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct timing repeat(struct workers *workers, workers_fn *run, void *argument, unsigned pieces)
{
    double seconds[REPEATS_MAX];
    size_t count = 0;
    uint64_t start = clock_ns();
    workers_run(workers, run, argument, pieces); /* warm up */
    while (count < REPEATS_MAX && (count < REPEATS_MIN || clock_ns() - start < REPEAT_NS)) {
        uint64_t begin = clock_ns();
        workers_run(workers, run, argument, pieces);
        seconds[count++] = (double)(clock_ns() - begin) * 1e-9;
    }
    qsort(seconds, count, sizeof *seconds, compare);
    return (struct timing){seconds[count / 2], seconds[0]};
}

/* ---- the memory's read speed ---- */

struct reading {
    const uint64_t *words;
    size_t count;
    unsigned pieces;
    uint64_t seen[64]; /* so that the reading is not optimised away */
};

static void read_piece(void *argument, unsigned piece, unsigned thread)
{
    struct reading *r = argument;
    const uint64_t *at = r->words + r->count / r->pieces * piece, *end = at + r->count / r->pieces / 16 * 16;
    uint64_t sum[16] = {0};
    for (; at < end; at += 16) {
        __builtin_prefetch(at + 512);
        __builtin_prefetch(at + 520);
        for (int i = 0; i < 16; i++)
            sum[i] ^= at[i];
    }
    for (int i = 1; i < 16; i++)
        sum[0] ^= sum[i];
    r->seen[thread % 64] ^= sum[0];
}

static double measure_reading(struct workers *workers, const void *data, size_t bytes)
{
    struct reading r = {.words = data, .count = bytes / 8, .pieces = 4 * workers_threads(workers)};
    return (double)bytes / repeat(workers, read_piece, &r, r.pieces).best_s;
}

/* ---- products ---- */

struct product {
    const struct kernels *kernels;
    struct matmul m;
    size_t rows;
};

static void product_piece(void *argument, unsigned piece, unsigned thread)
{
    struct product *p = argument;
    size_t begin = (size_t)piece * PIECE_ROWS, end = begin + PIECE_ROWS;
    (void)thread;
    p->kernels->matmul(&p->m, begin, end < p->rows ? end : p->rows);
}

static struct timing measure_product(struct workers *workers, struct product *p)
{
    return repeat(workers, product_piece, p, (unsigned)((p->rows + PIECE_ROWS - 1) / PIECE_ROWS));
}

static void print_run(struct setup *s, const struct product *p, struct timing t, double times_plain)
{
    double macs = (double)p->rows * (double)p->m.columns * (double)p->m.tokens;
    double bytes = (double)p->rows * (double)dtype_row_bytes(p->m.type, p->m.columns);
    const char *type = dtype_info((uint32_t)p->m.type)->name;
    unsigned threads = workers_threads(s->workers);
    if (s->json) {
        printf("%s{\"type\":\"%s\",\"isa\":\"%s\",\"rows\":%zu,\"columns\":%zu,\"tokens\":%zu,\"threads\":%u,"
               "\"gmac_s\":{\"median\":%.2f,\"max\":%.2f},\"weights_gb_s\":%.2f,\"read_share\":%.3f,"
               "\"times_plain\":%.2f}",
               s->printed++ ? "," : "", type, p->kernels->name, p->rows, p->m.columns, p->m.tokens, threads,
               macs / t.median_s / 1e9, macs / t.best_s / 1e9, bytes / t.best_s / 1e9,
               bytes / t.best_s / s->read_bytes_s, times_plain);
        return;
    }
    if (!s->printed++)
        printf("%-5s %-7s %7s %7s %7s %9s %9s %8s %7s %7s\n", "type", "isa", "rows", "columns", "tokens",
               "GMAC/s", "at best", "GB/s", "of read", "x plain");
    printf("%-5s %-7s %7zu %7zu %7zu %9.1f %9.1f %8.2f %6.1f%% %7.1f\n", type, p->kernels->name, p->rows,
           p->m.columns, p->m.tokens, macs / t.median_s / 1e9, macs / t.best_s / 1e9, bytes / t.best_s / 1e9,
           100 * bytes / t.best_s / s->read_bytes_s, times_plain);
    fflush(stdout);
}

/* Weights, packed activations and results of one type for the largest batch. */
struct memory {
    unsigned char *weights;
    float *x, *out;
    unsigned char *packed;
};

static void memory_deinit(struct memory *m)
{
    mem_free(m->weights);
    mem_free(m->x);
    mem_free(m->out);
    mem_free(m->packed);
}

static int memory_init(struct memory *m, const struct setup *s, enum dtype type, uint64_t tokens)
{
    struct random random = {1};
    struct blocks blocks;
    enum pack pack = kernels_pack_of(type);
    size_t row_bytes = dtype_row_bytes(type, s->columns),
           packed_bytes = kernels_packed_bytes(pack, s->columns);
    m->weights = mem_aligned(64, s->rows * row_bytes);
    m->x = mem_alloc(s->columns * sizeof *m->x);
    m->out = mem_aligned(64, tokens * s->rows * sizeof *m->out);
    m->packed = mem_aligned(64, tokens * packed_bytes);
    if (!m->weights || !m->x || !m->out || !m->packed) {
        memory_deinit(m);
        return -1;
    }
    blocks_init(&blocks, type, 0, 0.02f);
    for (uint64_t r = 0; r < s->rows; r++) /* drawing them all would take longer than measuring */
        if (r < 256)
            blocks_row(&blocks, &random, m->weights + r * row_bytes, s->columns);
        else
            memcpy(m->weights + r * row_bytes, m->weights + r % 256 * row_bytes, row_bytes);
    for (uint64_t t = 0; t < tokens; t++) {
        for (uint64_t i = 0; i < s->columns; i++)
            m->x[i] = (float)(random_unit(&random) - random_unit(&random));
        s->kernels->pack(pack, m->x, s->columns, m->packed + t * packed_bytes);
    }
    return 0;
}

static size_t limit_rows(uint64_t rows, uint64_t columns, uint64_t tokens, double macs)
{
    double most = macs / (double)columns / (double)tokens;
    if ((double)rows <= most)
        return rows;
    return most < 4 * PIECE_ROWS ? rows < 4 * PIECE_ROWS ? rows : 4 * PIECE_ROWS : (size_t)most;
}

static int run_type(struct setup *s, enum dtype type, const struct bench_list *tokens)
{
    struct memory memory = {0};
    uint64_t most = 0;
    for (size_t i = 0; i < tokens->count; i++)
        most = tokens->values[i] > most ? tokens->values[i] : most;
    if (memory_init(&memory, s, type, most) < 0) {
        struct error error;
        error_set(&error, -ENOMEM, "not enough memory for %" PRIu64 " rows", s->rows);
        return bench_fail("kernels", &error);
    }
    s->read_bytes_s =
        measure_reading(s->workers, memory.weights, s->rows * dtype_row_bytes(type, s->columns));
    for (size_t i = 0; i < tokens->count; i++) {
        size_t n = tokens->values[i];
        struct product fast = {
            s->kernels, {type, memory.weights, s->columns, memory.packed, n, memory.out, s->rows}, 0};
        struct product plain = fast;
        fast.rows = limit_rows(s->rows, s->columns, n, MACS_MAX);
        plain.kernels = kernels_get(ISA_PLAIN);
        plain.rows = limit_rows(s->rows, s->columns, n, MACS_MAX / 64);
        struct timing t = measure_product(s->workers, &fast);
        double plain_s = measure_product(s->workers, &plain).best_s / (double)plain.rows;
        print_run(s, &fast, t, plain_s / (t.best_s / (double)fast.rows));
    }
    memory_deinit(&memory);
    return 0;
}

static int run_types(struct setup *s, const char *name, const struct bench_list *tokens)
{
    size_t count;
    int status = 0;
    const struct dtype_info *types = dtype_list(&count);
    for (size_t i = 0; i < count && status == 0; i++) {
        if (name && types[i].type != dtype_by_name(name)->type)
            continue;
        if (s->columns % types[i].block_values != 0)
            return bench_misuse("kernels", "--columns: %s needs a multiple of %" PRIu32, types[i].name,
                                types[i].block_values);
        status = run_type(s, types[i].type, tokens);
    }
    return status;
}

int bench_kernels(int argc, char **argv)
{
    const char *type = NULL, *isa = NULL;
    uint64_t threads = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    struct bench_list tokens = {3, {1, 16, 512}};
    struct setup s = {.rows = 65536, .columns = 2048};
    const struct bench_option options[] = {
        {"type", BENCH_TEXT, &type, "NAME", "of the weights, as Q4_0 (default: every type)"},
        {"rows", BENCH_NUMBER, &s.rows, "N", "of the matrix (65536)", 1, 1 << 24},
        {"columns", BENCH_NUMBER, &s.columns, "N", "of the matrix (2048)", 1, 1 << 20},
        {"tokens", BENCH_NUMBERS, &tokens, "N,N", "multiplied at once (1,16,512)", 1, 8192},
        {"isa", BENCH_TEXT, &isa, "NAME", "plain, avx2, avxvnni, avx512 or amx (default: the best here)"},
        {"threads", BENCH_NUMBER, &threads, "N", "that compute (default: the machine's)", 1, 64},
        {"json", BENCH_FLAG, &s.json, NULL, "one JSON document"},
    };
    const struct bench_usage usage = {
        "kernels", "Measures matrix products by weight type, beside reading memory and the plain kernels.",
        "GB/s and its share of the read speed count the weights once.\n", options,
        sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status != BENCH_GO)
        return status;
    if (type && !dtype_by_name(type))
        return bench_misuse("kernels", "--type: '%s' is not a type", type);
    s.kernels = isa ? kernels_named(isa) : kernels_best();
    if (!s.kernels)
        return bench_misuse("kernels", "--isa: '%s' is not an instruction set this machine has", isa);
    if (workers_create((unsigned)threads, &s.workers) < 0) {
        struct error error;
        error_set(&error, -EAGAIN, "cannot start %" PRIu64 " threads", threads);
        return bench_fail("kernels", &error);
    }
    if (s.json)
        printf("{\"runs\":[");
    status = run_types(&s, type, &tokens);
    if (s.json)
        printf("]}\n");
    workers_destroy(s.workers);
    return status;
}
