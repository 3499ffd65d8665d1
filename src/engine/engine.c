#include "engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/memory.h"
#include "engine/engine_internal.h"

static unsigned online_cpus(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 256 ? 256 : (unsigned)n;
}

/* Counted up when a canonical order or a packing changes (kernels.h): KV that an earlier build left on flash
 * is not what this one computes. */
enum { RESULTS = 3 };

/* Over every tensor's name, shape and beginning: two models that differ in training differ in all of them. */
static uint64_t fingerprint(const struct gguf *gguf)
{
    uint64_t hash = RESULTS;
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(gguf, i);
        uint64_t facts[] = {hash, (uint64_t)t->type, t->size[0], t->size[1]};
        hash = hash_bytes(t->name.data, t->name.length, hash_bytes(facts, sizeof facts, 0));
        hash = hash_bytes(t->data, t->bytes < 4096 ? t->bytes : 4096, hash);
    }
    return hash;
}

static void describe(struct engine *e, const char *path)
{
    struct engine_model *m = &e->model;
    const struct weights *w = &e->weights;
    struct gguf_string text;
    const char *slash = strrchr(path, '/');
    if (gguf_get_string(e->gguf, "general.name", &text) == 0 && text.length > 0)
        snprintf(m->name, sizeof m->name, "%.*s",
                 (int)(text.length < sizeof m->name ? text.length : sizeof m->name - 1), text.data);
    else
        snprintf(m->name, sizeof m->name, "%s", slash ? slash + 1 : path);
    snprintf(m->architecture, sizeof m->architecture, "%s", w->architecture);
    snprintf(m->type, sizeof m->type, "%s", dtype_info((uint32_t)weights_main_type(w))->name);
    m->parameters = w->parameters;
    m->weights_bytes = w->bytes_per_token;
    m->context_length = w->context_length;
    m->vocabulary = w->vocabulary;
    m->width = w->width;
    m->kv = (struct kv_geometry){w->layer_count, w->kv_heads, w->dim};
    m->fingerprint = fingerprint(e->gguf);
    m->chat = CHAT_CHATML;
    if (gguf_get_string(e->gguf, "tokenizer.chat_template", &text) == 0)
        m->chat_recognised = chat_template_detect(text.data, text.length, &m->chat) == 0;
}

static void need(size_t *widest, enum pack pack, size_t columns)
{
    if (columns > widest[pack])
        widest[pack] = columns;
}

static int reserve_packed(unsigned char **packed, const size_t *widest)
{
    for (size_t p = 0; p < PACK_COUNT; p++) {
        if (widest[p] == 0)
            continue;
        packed[p] = mem_large(ENGINE_BATCH * kernels_packed_bytes((enum pack)p, widest[p]));
        if (!packed[p])
            return -ENOMEM;
    }
    return 0;
}

/* Room for a batch. Rows are padded to whole vectors, so that kernels may read and write whole ones. */
static int reserve_batch(struct engine *e)
{
    const struct weights *w = &e->weights;
    size_t q = (size_t)w->heads * w->dim, kv = (size_t)w->kv_heads * w->dim;
    size_t packed[PACK_COUNT] = {0}, packed_hidden[PACK_COUNT] = {0}, hidden = 0;
    for (uint32_t i = 0; i < w->layer_count; i++) {
        const struct layer *l = &w->layers[i];
        const struct matrix *of_width[] = {&l->q, &l->k, &l->v, &l->gate, &l->up};
        for (size_t m = 0; m < sizeof of_width / sizeof *of_width; m++)
            need(packed, of_width[m]->pack, w->width);
        need(packed, l->o.pack, q);
        need(engine_packs_parts(l->down.pack) ? packed_hidden : packed, l->down.pack, w->hidden);
        hidden = engine_packs_parts(l->down.pack) ? hidden : w->hidden;
    }
    need(packed, w->output.pack, w->width);
    e->span = ENGINE_SPAN_BYTES / (w->width * sizeof(float)) / ENGINE_BATCH * ENGINE_BATCH;
    e->span = e->span > ENGINE_BATCH ? e->span : ENGINE_BATCH;
    const struct {
        float **at;
        size_t row, count;
    } rows[] = {{&e->x, w->width, e->span},
                {&e->rotation, w->rope_dims, e->span},
                {&e->normed, w->width, ENGINE_BATCH},
                {&e->q, q, ENGINE_BATCH},
                {&e->k, kv, ENGINE_BATCH},
                {&e->v, kv, ENGINE_BATCH},
                {&e->hidden, hidden, ENGINE_BATCH},
                {&e->delta, w->width, ENGINE_BATCH}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].row == 0)
            continue;
        *rows[i].at = mem_aligned(64, rows[i].count * rows[i].row * sizeof(float));
        if (!*rows[i].at)
            return -ENOMEM;
    }
    int code = reserve_packed(e->packed, packed);
    return code < 0 ? code : reserve_packed(e->packed_hidden, packed_hidden);
}

static int reserve_threads(struct engine *e)
{
    unsigned threads = workers_threads(e->workers);
    size_t rows = (size_t)ATTENTION_TOKENS * (e->weights.heads / e->weights.kv_heads);
    e->scratch = mem_calloc(threads, sizeof *e->scratch);
    if (!e->scratch)
        return -ENOMEM;
    for (unsigned i = 0; i < threads; i++) {
        struct thread_scratch *s = &e->scratch[i];
        s->gate = mem_aligned(64, ENGINE_BATCH * FFN_ROWS * sizeof(float));
        s->up = mem_aligned(64, ENGINE_BATCH * FFN_ROWS * sizeof(float));
        s->q = mem_alloc(rows * sizeof *s->q);
        s->out = mem_alloc(rows * sizeof *s->out);
        s->visible = mem_alloc(rows * sizeof *s->visible);
        if (!s->gate || !s->up || !s->q || !s->out || !s->visible)
            return -ENOMEM;
    }
    return 0;
}

void engine_run(struct engine *engine, workers_fn *run, void *argument, unsigned pieces)
{
    workers_run(engine->workers, run, argument, pieces);
}

int engine_scratch_reserve(struct engine *e, size_t positions)
{
    if (e->received_room < positions / CHUNK_TOKENS + 1) {
        size_t room = positions / CHUNK_TOKENS * 3 / 2 + 16;
        uint64_t *received = mem_realloc(e->received, room * sizeof *received);
        if (!received)
            return -ENOMEM;
        e->received = received;
        e->received_room = room;
    }
    for (unsigned i = 0; i < workers_threads(e->workers); i++) {
        struct thread_scratch *s = &e->scratch[i];
        if (s->positions >= positions)
            continue;
        size_t room = (positions + positions / 2 + 255) / 256 * 256;
        float *scores = mem_aligned(64, attention_scratch_floats(room) * sizeof *scores);
        struct attention_chunk *chunks = mem_alloc(room / CHUNK_TOKENS * sizeof *chunks);
        uint32_t *received = mem_aligned(64, room * sizeof *received);
        if (!scores || !chunks || !received) {
            mem_free(scores);
            mem_free(chunks);
            mem_free(received);
            return -ENOMEM;
        }
        mem_free(s->scores);
        mem_free(s->chunks);
        mem_free(s->received);
        s->scores = scores;
        s->chunks = chunks;
        s->received = received;
        memset(received, 0, room * sizeof *received);
        s->positions = room;
    }
    return 0;
}

int engine_open(const struct engine_options *options, struct engine **out, struct error *error)
{
    struct engine *e = mem_calloc(1, sizeof *e);
    if (!e)
        return error_set(error, -ENOMEM, "out of memory");
    int code = gguf_open(options->model_path, &e->gguf, error);
    if (code < 0)
        goto fail;
    gguf_read_ahead(e->gguf); /* while the tokenizer is made */
    if ((code = weights_init(&e->weights, e->gguf, error)) < 0 ||
        (code = tokenizer_create(e->gguf, &e->tokenizer, error)) < 0) {
        error_prefix(error, code, "%s", options->model_path);
        goto fail;
    }
    if (tokenizer_size(e->tokenizer) > e->weights.vocabulary) {
        code = error_set(error, -EINVAL, "%s: the tokenizer has %zu tokens but the model only %u",
                         options->model_path, tokenizer_size(e->tokenizer), e->weights.vocabulary);
        goto fail;
    }
    e->kernels = kernels_best();
    code = workers_create(options->threads ? options->threads : online_cpus(), &e->workers);
    if (code < 0) {
        error_set(error, code, "cannot start %u compute threads: %s", options->threads, strerror(-code));
        goto fail;
    }
    if ((code = reserve_batch(e)) < 0 || (code = reserve_threads(e)) < 0) {
        error_set(error, code, "out of memory for the model's working space");
        goto fail;
    }
    describe(e, options->model_path);
    *out = e;
    return 0;
fail:
    engine_close(e);
    return code;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    float *rows[] = {e->x, e->normed, e->q, e->k, e->v, e->hidden, e->delta, e->rotation};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        mem_free(rows[i]);
    for (size_t i = 0; i < PACK_COUNT; i++) {
        mem_free(e->packed[i]);
        mem_free(e->packed_hidden[i]);
    }
    for (unsigned i = 0; e->scratch && i < workers_threads(e->workers); i++) {
        struct thread_scratch *s = &e->scratch[i];
        mem_free(s->scores);
        mem_free(s->chunks);
        mem_free(s->received);
        mem_free(s->gate);
        mem_free(s->up);
        mem_free((void *)s->q);
        mem_free((void *)s->out);
        mem_free(s->visible);
    }
    mem_free(e->scratch);
    mem_free(e->received);
    workers_destroy(e->workers);
    tokenizer_destroy(e->tokenizer);
    weights_deinit(&e->weights);
    gguf_close(e->gguf);
    mem_free(e);
}

const struct engine_model *engine_model(const struct engine *e)
{
    return &e->model;
}

const struct tokenizer *engine_tokenizer(const struct engine *e)
{
    return e->tokenizer;
}

unsigned engine_threads(const struct engine *e)
{
    return workers_threads(e->workers);
}

const char *engine_isa(const struct engine *e)
{
    return e->kernels->name;
}
