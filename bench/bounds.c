/* See bounds.h. */
#include "bounds.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "blocks.h"

enum { PIECE_BYTES = 1 << 20, AHEAD_BYTES = 4096, ROUNDS = 3, ROWS = 32, COLUMNS = 2048, PIECES = 64 };
static const size_t PROBE_BYTES = (size_t)640 << 20, LARGE_PAGE = (size_t)2 << 20;
static const uint64_t PRODUCTS_NS = 200000000; /* a round of many tokens takes 14 ms without AVX-512 */

typedef uint64_t line __attribute__((vector_size(16)));

struct reading {
    const unsigned char *data;
    size_t bytes;
    _Atomic uint64_t seen; /* so that the reading is not optimised away */
};

static void read_piece(void *argument, unsigned piece, unsigned thread)
{
    struct reading *r = argument;
    size_t begin = (size_t)piece * PIECE_BYTES;
    size_t end = begin + PIECE_BYTES < r->bytes ? begin + PIECE_BYTES : r->bytes;
    line sum[4] = {{0}};
    uint64_t all = 0;
    (void)thread;
    for (size_t at = begin; at + 2 * sizeof sum <= end; at += 2 * sizeof sum) {
        __builtin_prefetch(r->data + at + AHEAD_BYTES);
        __builtin_prefetch(r->data + at + AHEAD_BYTES + sizeof sum);
        for (size_t i = 0; i < 8; i++) {
            line next;
            memcpy(&next, r->data + at + i * sizeof next, sizeof next);
            sum[i % 4] ^= next;
        }
    }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    all = sum[0][0] ^ sum[0][1];
    atomic_fetch_xor(&r->seen, all);
}

void bounds_read(struct workers *workers, const void *data, size_t bytes)
{
    struct reading r = {.data = data, .bytes = bytes};
    workers_run(workers, read_piece, &r, (unsigned)((bytes + PIECE_BYTES - 1) / PIECE_BYTES));
}

int memory_probe_init(struct memory_probe *probe)
{
    size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = machine / 8 < PROBE_BYTES ? machine / 8 / LARGE_PAGE * LARGE_PAGE : PROBE_BYTES;
    *probe = (struct memory_probe){mem_aligned(LARGE_PAGE, bytes), bytes};
    if (!probe->data)
        return -ENOMEM;
    (void)madvise(probe->data, probe->bytes, MADV_HUGEPAGE); /* a hint: small pages are slower by little */
    memset(probe->data, 1, probe->bytes);
    return 0;
}

void memory_probe_deinit(struct memory_probe *probe)
{
    mem_free(probe->data);
    *probe = (struct memory_probe){0};
}

double memory_probe_read(const struct memory_probe *probe, struct workers *workers)
{
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t start = clock_ns();
        bounds_read(workers, probe->data, probe->bytes);
        double rate = (double)probe->bytes / (double)(clock_ns() - start) * 1e9;
        best = rate > best ? rate : best;
    }
    return best;
}

struct products {
    const struct kernels *kernels;
    struct matmul m;
};

static void product_piece(void *argument, unsigned piece, unsigned thread)
{
    const struct products *p = argument;
    struct matmul m = p->m;
    (void)piece;
    m.out += (size_t)thread * m.tokens * m.out_stride;
    p->kernels->matmul(&m, 0, ROWS);
}

/* The activations lie in a large page, as the engine's: in small ones what the bound is depends on where the
 * system puts them. */
enum { LARGE = 2 << 20 };

double bounds_products(struct workers *workers, const struct kernels *kernels, enum dtype type, size_t tokens)
{
    size_t row_bytes = dtype_row_bytes(type, COLUMNS);
    enum pack pack = kernels_pack_of(type);
    size_t packed_bytes = kernels_packed_bytes(pack, COLUMNS);
    /* The rows behind are fetched ahead, which takes long where there is no memory. */
    unsigned char *weights = mem_calloc(2 * ROWS, row_bytes),
                  *packed = mem_large(tokens * packed_bytes < LARGE ? LARGE : tokens * packed_bytes);
    float *x = mem_calloc(COLUMNS, sizeof *x);
    float *out = mem_aligned(64, workers_threads(workers) * tokens * ROWS * sizeof *out);
    double rate = 0;
    if (weights && packed && x && out) {
        struct random random = {42};
        struct blocks blocks;
        blocks_init(&blocks, type, 0, 0.02f);
        for (size_t r = 0; r < ROWS; r++)
            blocks_row(&blocks, &random, weights + r * row_bytes, COLUMNS);
        for (size_t i = 0; i < COLUMNS; i++)
            x[i] = (float)(random_unit(&random) - random_unit(&random));
        for (size_t t = 0; t < tokens; t++)
            kernels->pack(pack, x, COLUMNS, packed + t * packed_bytes);
        struct products p = {kernels, {type, weights, COLUMNS, packed, tokens, out, ROWS}};
        double macs = (double)PIECES * ROWS * COLUMNS * (double)tokens;
        for (uint64_t begin = clock_ns(); clock_ns() - begin < PRODUCTS_NS || rate == 0;) {
            uint64_t start = clock_ns();
            workers_run(workers, product_piece, &p, PIECES);
            double now = macs / (double)(clock_ns() - start) * 1e9;
            rate = now > rate ? now : rate;
        }
    }
    mem_free(weights);
    mem_free(packed);
    mem_free(x);
    mem_free(out);
    return rate;
}
