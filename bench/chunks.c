/* llms-bench chunks: what another size of chunk would do. The kernels' chunk is 16 tokens, fixed when they
 * are compiled, so this is half a measurement and half a model: measured   how fast the storage gives slices
 * (one layer of one chunk) that lie scattered, direct reads of whole pages, so that a slice smaller than a
 * page, or not a multiple of one, wastes the rest modelled   what a trace reads and writes when contexts
 * leave memory chunk by chunk, least recently used first, under a budget: each restore reads whole chunks,
 * each call writes the chunks it changed A switch's reads are then the modelled bytes over the measured rate.
 * What it leaves out: slices that follow each other are read as one here, levels differ, and reads hide under
 * the prompt. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/parse.h"
#include "base/random.h"
#include "bench.h"
#include "kv_shape.h"
#include "os/aio.h"
#include "os/file.h"
#include "storage.h"
#include "trace.h"

enum { PAGE = 4096, REQUESTS = 16, PIECE = 1 << 20, SIZES_MAX = 16 };

struct row {
    uint64_t chunk; /* tokens */
    double slice_bytes, useful_mb_s,
        read_mb_s;                  /* useful: what was asked for; read: with the rest of its pages */
    double loaded, written, needed; /* tokens a call: read and written in whole chunks; and what a chunk of
                                       one token would read */
};

struct bench {
    const char *model, *directory, *pattern, *share;
    uint64_t contexts, length, seed, level, layers, layer_bytes, file_bytes, limit_mb_s, milliseconds;
    double worth; /* the budget in full contexts */
    struct bench_list sizes;
    struct kv_geometry shape;
    struct trace trace;
    struct row rows[BENCH_LIST_MAX];
};

/* ---- measured: slices ---- */

static int write_file(const char *path, uint64_t bytes)
{
    struct random random = {3};
    uint64_t *data = mem_aligned(PAGE, PIECE);
    int file = data ? os_create_direct(path, 0600) : -ENOMEM, code = file < 0 ? file : 0;
    for (uint64_t at = 0; at < bytes && code == 0; at += PIECE) {
        for (size_t i = 0; i < PIECE / sizeof *data; i++)
            data[i] = random_next(&random);
        code = os_pwrite(file, at, data, PIECE);
    }
    if (code == 0)
        code = os_sync(file);
    if (code == 0)
        (void)posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    os_close(file);
    mem_free(data);
    return code;
}

struct slices {
    int file;
    uint64_t file_bytes, slice_bytes;
    struct random random;
    uint64_t useful, read;
};

static void place(struct slices *s, struct aio_read *read)
{
    uint64_t at = random_below(&s->random, s->file_bytes - s->slice_bytes);
    read->offset = at / PAGE * PAGE;
    read->bytes = (at + s->slice_bytes + PAGE - 1) / PAGE * PAGE - read->offset;
    s->useful += s->slice_bytes;
    s->read += read->bytes;
}

/* Reads slices at random places, REQUESTS at once, for so many milliseconds. */
static int read_slices(struct slices *s, struct aio *aio, char *buffers, size_t room, uint64_t ms)
{
    struct aio_read reads[REQUESTS];
    uint64_t start = clock_ns();
    int code = 0;
    for (size_t i = 0; i < REQUESTS && code == 0; i++) {
        reads[i] = (struct aio_read){s->file, 0, buffers + i * room, 0, &reads[i], 0};
        place(s, &reads[i]);
        code = aio_submit(aio, &reads[i]);
    }
    for (struct aio_read *done; (done = aio_wait(aio, true)) != NULL;) {
        if (code == 0)
            code = done->code;
        if (code < 0 || clock_ms_since(start) >= (double)ms)
            continue;
        place(s, done);
        code = aio_submit(aio, done);
    }
    return code;
}

static int measure_slices(const struct bench *bench, const char *path, struct row *row)
{
    size_t room = ((size_t)row->slice_bytes + 2 * PAGE) / PAGE * PAGE;
    struct slices slices = {
        .file_bytes = bench->file_bytes, .slice_bytes = (uint64_t)row->slice_bytes, .random = {bench->seed}};
    struct aio *aio = NULL;
    char *buffers = mem_aligned(PAGE, REQUESTS * room);
    slices.file = os_open_direct(path);
    int code = !buffers ? -ENOMEM : slices.file < 0 ? slices.file : aio_create(AIO_BEST, REQUESTS, &aio);
    if (code == 0) {
        uint64_t start = clock_ns();
        code = read_slices(&slices, aio, buffers, room, bench->milliseconds);
        double seconds = clock_ms_since(start) / 1e3;
        row->useful_mb_s = (double)slices.useful / seconds / 1e6;
        row->read_mb_s = (double)slices.read / seconds / 1e6;
    }
    aio_destroy(aio);
    os_close(slices.file);
    mem_free(buffers);
    return code;
}

/* ---- modelled: what a trace moves ---- */

struct context {
    uint64_t tokens, used; /* used: number of the call */
    uint64_t first;        /* chunks before this one are out of memory: the oldest leave first */
};

struct model {
    struct context *contexts;
    uint32_t count;
    uint64_t chunk, budget; /* tokens */
    uint64_t held;          /* chunks in memory */
};

static uint64_t chunks_of(const struct model *m, uint64_t tokens)
{
    return (tokens + m->chunk - 1) / m->chunk;
}

/* Chunks of others, least recently used first, leave until all fits. */
static void make_room(struct model *m, uint32_t running)
{
    while (m->held * m->chunk > m->budget) {
        struct context *oldest = NULL;
        for (uint32_t i = 0; i < m->count; i++) {
            struct context *c = &m->contexts[i];
            if (i != running && c->first < chunks_of(m, c->tokens) && (!oldest || c->used < oldest->used))
                oldest = c;
        }
        if (!oldest)
            return; /* the running one alone is over it */
        oldest->first++;
        m->held--;
    }
}

static void call(struct model *m, const struct bench *bench, uint32_t index, uint64_t growth, uint64_t number,
                 struct row *row)
{
    struct context *c = &m->contexts[index];
    uint64_t before = chunks_of(m, c->tokens), changed = c->tokens / m->chunk;
    row->loaded += (double)(c->first * m->chunk);
    m->held += c->first;
    c->first = 0;
    c->used = number;
    c->tokens += growth;
    if (c->tokens > bench->length) { /* slides: what stays moves and is all written anew */
        c->tokens = bench->length / 8 * 5;
        changed = 0;
    }
    m->held = m->held + chunks_of(m, c->tokens) - before;
    row->written += (double)((chunks_of(m, c->tokens) - changed) * m->chunk);
    make_room(m, index);
}

static int run_model(const struct bench *bench, struct row *row)
{
    struct model m = {.count = bench->trace.rules.contexts,
                      .chunk = row->chunk,
                      .budget = (uint64_t)(bench->worth * (double)bench->length)};
    m.contexts = mem_calloc(m.count, sizeof *m.contexts);
    if (!m.contexts)
        return -ENOMEM;
    for (uint32_t i = 0; i < m.count; i++) {
        m.contexts[i] = (struct context){.tokens = bench->trace.fill[i], .used = i};
        m.held += chunks_of(&m, bench->trace.fill[i]);
        make_room(&m, i);
    }
    for (size_t i = 0; i < bench->trace.count; i++) {
        const struct trace_call *c = &bench->trace.calls[i];
        call(&m, bench, c->context, c->prompt + c->reply, m.count + i, row);
    }
    mem_free(m.contexts);
    row->loaded /= (double)bench->trace.count;
    row->written /= (double)bench->trace.count;
    return 0;
}

/* ---- telling ---- */

static double switch_ms(const struct bench *bench, const struct row *row)
{
    double bytes = row->loaded * (double)bench->layer_bytes * bench->shape.layers;
    return bytes / row->useful_mb_s / 1e3;
}

static int tell(const struct bench *bench, bool json)
{
    json_t *rows = json_array();
    if (!json)
        printf("%" PRIu64 " bytes a token and layer, %" PRIu32
               " layers; budget %.2f contexts\n\n%6s %10s %12s %10s "
               "%14s %14s %10s %10s\n",
               bench->layer_bytes, bench->shape.layers, bench->worth, "chunk", "slice KB", "useful MB/s",
               "MB/s", "loaded tokens", "written tokens", "excess", "read ms");
    for (size_t i = 0; i < bench->sizes.count; i++) {
        const struct row *row = &bench->rows[i];
        double excess = row->needed > 0 ? row->loaded / row->needed : 1;
        if (!json) {
            printf("%6" PRIu64 " %10.1f %12.0f %10.0f %14.1f %14.1f %10.3f %10.2f\n", row->chunk,
                   row->slice_bytes / 1e3, row->useful_mb_s, row->read_mb_s, row->loaded, row->written,
                   excess, switch_ms(bench, row));
            continue;
        }
        json_array_append_new(rows, json_pack("{s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "chunk_tokens",
                                              (json_int_t)row->chunk, "slice_bytes", row->slice_bytes,
                                              "useful_mb_s", row->useful_mb_s, "read_mb_s", row->read_mb_s,
                                              "loaded_tokens", row->loaded, "written_tokens", row->written,
                                              "excess", excess, "read_ms", switch_ms(bench, row)));
    }
    int code = 0;
    if (json) {
        json_t *root =
            json_pack("{s:I,s:I,s:f,s:f,s:I,s:I,s:I,s:O}", "layer_bytes_per_token",
                      (json_int_t)bench->layer_bytes, "layers", (json_int_t)bench->shape.layers,
                      "budget_contexts", bench->worth, "storage_emulated_mb_s", (double)bench->limit_mb_s,
                      "contexts", (json_int_t)bench->contexts, "context_length", (json_int_t)bench->length,
                      "calls", (json_int_t)bench->trace.count, "rows", rows);
        code = json_dumpf(root, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        putchar('\n');
        json_decref(root);
    }
    json_decref(rows);
    return code;
}

/* ---- the command ---- */

static int run_rows(struct bench *bench, const char *path)
{
    struct row one = {.chunk = 1};
    int code = run_model(bench, &one);
    for (size_t i = 0; i < bench->sizes.count && code == 0; i++) {
        struct row *row = &bench->rows[i];
        *row = (struct row){.chunk = bench->sizes.values[i], .needed = one.loaded};
        row->slice_bytes = (double)(row->chunk * bench->layer_bytes);
        bench_progress("slices of %.1f KB", row->slice_bytes / 1e3);
        code = measure_slices(bench, path, row);
        if (code == 0)
            code = run_model(bench, row);
    }
    bench_progress(NULL);
    return code;
}

static int measure_in(void *argument, const char *directory, struct error *error)
{
    struct bench *bench = argument;
    struct buffer path = {0};
    int code = buffer_printf(&path, "%s/slices", directory);
    if (code == 0)
        code = write_file(path.data, bench->file_bytes);
    aio_set_limit(bench->limit_mb_s * 1000000);
    if (code == 0)
        code = run_rows(bench, path.data);
    aio_set_limit(0);
    if (code < 0)
        error_set(error, code, "%s: %s", directory, strerror(-code));
    buffer_deinit(&path);
    return code;
}

static int take_trace(struct bench *bench, struct error *error)
{
    struct trace_rules rules = {.contexts = (uint32_t)bench->contexts,
                                .hours = 72,
                                .interval_s = 300,
                                .scale = 1.0 / 16,
                                .context_length = (uint32_t)bench->length,
                                .seed = bench->seed};
    if (trace_pattern_find(bench->pattern, &rules.pattern) < 0)
        return error_set(error, -EINVAL, "--pattern: '%s' is not random, markov or gaussian", bench->pattern);
    return trace_generate(&rules, &bench->trace, error);
}

static int run_command(struct bench *bench, bool json)
{
    struct error error = {0};
    int code = kv_shape_read(bench->model, &bench->shape, &error);
    if (bench->layers)
        bench->shape.layers = (uint32_t)bench->layers;
    if (code == 0 && !bench->layer_bytes)
        bench->layer_bytes = kv_layer_bytes(&bench->shape, (uint8_t)bench->level) / KV_CHUNK_TOKENS;
    for (size_t i = 0; i < bench->sizes.count && code == 0; i++)
        if (bench->sizes.values[i] * bench->layer_bytes * 4 > bench->file_bytes)
            code = error_set(&error, -EINVAL, "slices of %" PRIu64 " tokens are too large for the file",
                             bench->sizes.values[i]);
    if (code == 0)
        code = take_trace(bench, &error);
    if (code == 0)
        code = storage_within(bench->directory ? bench->directory : ".", measure_in, bench, &error);
    if (code == 0 && tell(bench, json) < 0)
        code = error_set(&error, -EIO, "the results cannot be written");
    trace_deinit(&bench->trace);
    return code < 0 ? bench_fail("chunks", &error) : 0;
}

int bench_chunks(int argc, char **argv)
{
    struct bench bench = {.contexts = 8,
                          .length = 2048,
                          .seed = 1,
                          .level = 8,
                          .file_bytes = 256 << 20,
                          .milliseconds = 300,
                          .pattern = "markov",
                          .share = "2.5",
                          .sizes = {6, {4, 8, 16, 32, 64, 128}}};
    bool json = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &bench.model, "F", "the GGUF, for its sizes", .required = true},
        {"sizes", BENCH_NUMBERS, &bench.sizes, "N,N", "tokens a chunk (default 4,8,16,32,64,128)", 1, 4096},
        {"level", BENCH_NUMBER, &bench.level, "BITS", "of all chunks: 16, 8 (default), 4, 3 or 2", 2, 16},
        {"layer-bytes", BENCH_NUMBER, &bench.layer_bytes, "N",
         "that a token takes in a layer (default: the model's)", 1, 1 << 20},
        {"layers", BENCH_NUMBER, &bench.layers, "N", "(default: the model's)", 1, 1024},
        {"contexts", BENCH_NUMBER, &bench.contexts, "N", "of the trace (default 8)", 2, TRACE_CONTEXTS_MAX},
        {"context-length", BENCH_NUMBER, &bench.length, "T", "(default 2048)", 64, TRACE_TOKENS_MAX},
        {"pattern", BENCH_TEXT, &bench.pattern, "P", "random, markov (default) or gaussian"},
        {"budget-contexts", BENCH_TEXT, &bench.share, "X", "memory for so many full contexts (default 2.5)"},
        {"storage", BENCH_NUMBER, &bench.limit_mb_s, "MB/s", "emulate storage that is so fast", 2, 1000000},
        {"state-dir", BENCH_TEXT, &bench.directory, "DIR",
         "where a directory is made and removed (default: .)"},
        {"ms", BENCH_NUMBER, &bench.milliseconds, "MS", "of reading for each size (default 300)", 1, 60000},
        {"seed", BENCH_NUMBER, &bench.seed, "N", "(default 1)"},
        {"json", BENCH_FLAG, &json, NULL, "one JSON document"},
    };
    const struct bench_usage usage = {
        "chunks", "Tells what chunks of other sizes would read: their reads measured, how many modelled.",
        "The service's own chunk is 16 tokens, fixed when it is compiled. No model is run here.\n", options,
        sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status != BENCH_GO)
        return status;
    if (!kv_level_valid((unsigned)bench.level))
        return bench_misuse("chunks", "--level: %" PRIu64 " is not 16, 8, 4, 3 or 2", bench.level);
    if (parse_double(bench.share, 0, 1e6, &bench.worth) < 0 || bench.worth < 1)
        return bench_misuse("chunks", "--budget-contexts: '%s' is not a number from 1", bench.share);
    return run_command(&bench, json);
}
