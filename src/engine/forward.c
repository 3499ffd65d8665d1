/* The forward pass: a batch of tokens, at any ascending positions, through all layers.
 *
 * A layer is a handful of parallel steps; each hands numbered pieces to the compute threads. Every token's
 * result depends only on the tokens before it, never on the batch it came in (docs/INVARIANTS.md, 9):
 *
 *   embed | for each layer: norm, pack | q k v | bias, norm, rotate, store | attend | pack | o |
 *         add, norm, pack | gate up swiglu, pack | down | (add) | norm, pack, logits
 *
 * In the last layer only the tokens whose logits are wanted go on after their K and V are stored. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "engine/engine_internal.h"

struct pass {
    struct engine *engine;
    const struct kv_sequence *sequence;
    const int32_t *tokens;
    uint32_t positions[ENGINE_BATCH];
    float *x, *rotation; /* of the part's first token */
    size_t count;        /* tokens in this part */
    size_t first;        /* tokens from here on go through the current step */
    size_t density_from; /* tokens from here on count for density */
    const struct layer *layer;
    uint32_t layer_index;
    const float *norm; /* the weights of the norm to come */
    bool add;          /* delta is still to be added to x */
    bool lone;         /* the only part: what a layer leaves in delta stays there until the next adds it */
    unsigned packs;    /* bits by enum pack: which packings of the row the next product needs */
    const float *rows; /* what pack_rows packs, row_width wide */
    size_t row_width;
};

struct product {
    const struct pass *pass;
    struct {
        const struct matrix *matrix;
        float *out; /* of the first token that goes through the step */
        size_t stride;
    } parts[3];
    size_t part_count;
    bool hidden; /* the activations are rows of packed_hidden */
};

static unsigned pieces_of(size_t count, size_t each)
{
    return (unsigned)((count + each - 1) / each);
}

/* Output rows a piece of a product with m. For one token a piece is measured in bytes to be read, so that the
 * last ones end together: 64 rows of a wide matrix would be a twentieth of it. */
static size_t piece_rows(const struct matrix *m, size_t tokens)
{
    size_t rows = TOKEN_PIECE_BYTES / dtype_row_bytes(m->type, m->columns) / ROWS_STEP * ROWS_STEP;
    return tokens > 1 || rows > MATMUL_ROWS ? MATMUL_ROWS : rows < ROWS_STEP ? ROWS_STEP : rows;
}

static unsigned char *packed_row(const struct engine *e, enum pack pack, size_t columns, size_t token)
{
    return e->packed[pack] + token * kernels_packed_bytes(pack, columns);
}

static unsigned char *packed_hidden_row(const struct engine *e, enum pack pack, size_t token)
{
    return e->packed_hidden[pack] + token * kernels_packed_bytes(pack, e->weights.hidden);
}

static void pack_row(const struct pass *p, const float *row, size_t width, size_t token)
{
    struct engine *e = p->engine;
    for (unsigned pack = 0; pack < PACK_COUNT; pack++)
        if (p->packs >> pack & 1)
            e->kernels->pack((enum pack)pack, row, width, packed_row(e, (enum pack)pack, width, token));
}

/* ---- products ---- */

static size_t product_rows(const struct product *p, size_t part)
{
    return piece_rows(p->parts[part].matrix, p->pass->count - p->pass->first);
}

static void product_piece(void *argument, unsigned piece, unsigned thread)
{
    (void)thread;
    const struct product *p = argument;
    const struct pass *pass = p->pass;
    const struct engine *e = pass->engine;
    for (size_t i = 0; i < p->part_count; i++) {
        const struct matrix *m = p->parts[i].matrix;
        size_t rows = product_rows(p, i);
        unsigned pieces = pieces_of(m->rows, rows);
        if (piece >= pieces) {
            piece -= pieces;
            continue;
        }
        size_t begin = (size_t)piece * rows;
        size_t end = begin + rows < m->rows ? begin + rows : m->rows;
        const struct matmul args = {
            .type = m->type,
            .weights = m->data,
            .columns = m->columns,
            .packed = p->hidden ? packed_hidden_row(e, m->pack, pass->first)
                                : packed_row(e, m->pack, m->columns, pass->first),
            .tokens = pass->count - pass->first,
            .out = p->parts[i].out,
            .out_stride = p->parts[i].stride,
        };
        e->kernels->matmul(&args, begin, end);
        return;
    }
}

static void run_product(struct product p)
{
    unsigned pieces = 0;
    for (size_t i = 0; i < p.part_count; i++)
        pieces += pieces_of(p.parts[i].matrix->rows, product_rows(&p, i));
    workers_run(p.pass->engine->workers, product_piece, &p, pieces);
}

/* ---- row operations ---- */

static void token_range(const struct pass *p, unsigned piece, size_t *begin, size_t *end)
{
    *begin = p->first + (size_t)piece * TOKENS_PIECE;
    *end = *begin + TOKENS_PIECE < p->count ? *begin + TOKENS_PIECE : p->count;
}

static void run_rows(struct pass *p, workers_fn *run)
{
    workers_run(p->engine->workers, run, p, pieces_of(p->count - p->first, TOKENS_PIECE));
}

static void embed_piece(void *argument, unsigned piece, unsigned thread)
{
    (void)thread;
    const struct pass *p = argument;
    const struct weights *w = &p->engine->weights;
    const struct matrix *m = &w->embedding;
    size_t begin, end, row_bytes = dtype_row_bytes(m->type, m->columns);
    token_range(p, piece, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const unsigned char *row = (const unsigned char *)m->data + (size_t)p->tokens[t] * row_bytes;
        p->engine->kernels->dequantize(m->type, row, p->x + t * w->width, w->width);
        float *rotation = p->rotation + t * w->rope_dims;
        for (uint32_t i = 0; i < w->rope_dims / 2; i++) {
            double angle = p->positions[t] * w->rope_rates[i];
            rotation[2 * i] = (float)cos(angle);
            rotation[2 * i + 1] = (float)sin(angle);
        }
    }
}

/* Adds what the last block left in delta, normalises, packs for the next product. */
static void norm_piece(void *argument, unsigned piece, unsigned thread)
{
    (void)thread;
    const struct pass *p = argument;
    struct engine *e = p->engine;
    size_t begin, end, width = e->weights.width;
    token_range(p, piece, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *x = p->x + t * width, *normed = e->normed + t * width;
        if (p->add)
            e->kernels->add(x, e->delta + t * width, width);
        e->kernels->rms_norm(x, p->norm, e->weights.epsilon, width, normed);
        pack_row(p, normed, width, t);
    }
}

/* Adds what the last block left in delta. */
static void add_piece(void *argument, unsigned piece, unsigned thread)
{
    (void)thread;
    const struct pass *p = argument;
    const struct engine *e = p->engine;
    size_t begin, end, width = e->weights.width;
    token_range(p, piece, &begin, &end);
    e->kernels->add(p->x + begin * width, e->delta + begin * width, (end - begin) * width);
}

static void pack_piece(void *argument, unsigned piece, unsigned thread)
{
    (void)thread;
    const struct pass *p = argument;
    size_t begin, end;
    token_range(p, piece, &begin, &end);
    for (size_t t = begin; t < end; t++)
        pack_row(p, p->rows + t * p->row_width, p->row_width, t);
}

static void pack_rows(struct pass *p, const float *rows, size_t width, const struct matrix *next)
{
    p->rows = rows;
    p->row_width = width;
    p->packs = 1u << next->pack;
    run_rows(p, pack_piece);
}

/* ---- attention ---- */

/* Turns pairs of numbers, `apart` from each other and `step` from the next pair's. Inlined with both known,
 * the compiler makes vectors of it. */
static inline void rotate_pairs(float *head, size_t pairs, size_t step, size_t apart, const float *rotation)
{
    for (size_t i = 0; i < pairs; i++) {
        float *a = head + i * step, *b = a + apart;
        float c = rotation[2 * i], s = rotation[2 * i + 1], x = *a, y = *b;
        *a = x * c - y * s;
        *b = x * s + y * c;
    }
}

static void rotate(const struct weights *w, float *restrict head, const float *restrict rotation)
{
    size_t half = w->rope_dims / 2;
    if (w->rope_halves)
        rotate_pairs(head, half, 1, half, rotation);
    else
        rotate_pairs(head, half, 2, 1, rotation);
}

static void prepare_heads(const struct pass *p, float *row, uint32_t heads, const float *bias,
                          const float *norm, const float *rotation)
{
    const struct weights *w = &p->engine->weights;
    if (bias)
        p->engine->kernels->add(row, bias, (size_t)heads * w->dim);
    for (uint32_t h = 0; h < heads; h++) {
        float *head = row + (size_t)h * w->dim;
        if (norm)
            p->engine->kernels->rms_norm(head, norm, w->epsilon, w->dim, head);
        if (rotation)
            rotate(w, head, rotation);
    }
}

static void *head_data(const struct pass *p, size_t chunk, uint32_t head, uint8_t *level)
{
    const struct kv_chunk *c = p->sequence->chunks[chunk];
    const struct kv_geometry *g = &p->engine->model.kv;
    *level = c->level;
    return (unsigned char *)c->data + p->layer_index * kv_layer_bytes(g, c->level) +
           head * kv_head_bytes(g, c->level);
}

static void store_piece(void *argument, unsigned piece, unsigned thread)
{
    (void)thread;
    const struct pass *p = argument;
    const struct engine *e = p->engine;
    const struct weights *w = &e->weights;
    size_t begin, end, q = (size_t)w->heads * w->dim, kv = (size_t)w->kv_heads * w->dim;
    token_range(p, piece, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *rotation = p->rotation + t * w->rope_dims;
        float *k = e->k + t * kv, *v = e->v + t * kv;
        prepare_heads(p, e->q + t * q, w->heads, p->layer->q_bias, p->layer->q_norm, rotation);
        prepare_heads(p, k, w->kv_heads, p->layer->k_bias, p->layer->k_norm, rotation);
        prepare_heads(p, v, w->kv_heads, p->layer->v_bias, NULL, NULL);
        for (uint32_t h = 0; h < w->kv_heads; h++) {
            uint8_t level;
            void *data = head_data(p, p->positions[t] / CHUNK_TOKENS, h, &level);
            e->kernels->store(data, level, w->dim, p->positions[t] % CHUNK_TOKENS, k + h * w->dim,
                              v + h * w->dim);
        }
    }
}

static void attention_piece(void *argument, unsigned piece, unsigned thread)
{
    const struct pass *p = argument;
    const struct engine *e = p->engine;
    const struct weights *w = &e->weights;
    struct thread_scratch *s = &e->scratch[thread];
    /* A head's blocks follow one another, which share its chunks in a cache. Later tokens see more, so they
     * go first and the short ones even out the end. */
    uint32_t blocks = pieces_of(p->count - p->first, ATTENTION_TOKENS);
    uint32_t head = piece / blocks, group = w->heads / w->kv_heads;
    size_t begin = p->first + (size_t)(blocks - 1 - piece % blocks) * ATTENTION_TOKENS;
    size_t end = begin + ATTENTION_TOKENS < p->count ? begin + ATTENTION_TOKENS : p->count;
    size_t rows = 0, chunks = p->positions[end - 1] / CHUNK_TOKENS + 1;
    for (size_t c = 0; c < chunks; c++)
        s->chunks[c].data = head_data(p, c, head, &s->chunks[c].level);
    /* A piece's tokens count for density all or not at all, but for the one piece that density_from cuts. */
    size_t cut = p->density_from < begin ? begin : p->density_from < end ? p->density_from : end;
    for (size_t t = begin; t < end; t++)
        for (uint32_t g = 0; g < group; g++, rows++) {
            s->out[rows] = e->q + (t * w->heads + (size_t)head * group + g) * w->dim;
            s->q[rows] = s->out[rows];
            s->visible[rows] = p->positions[t] + 1;
        }
    struct attention args = {
        .chunks = s->chunks,
        .dim = w->dim,
        .scale = 1.0f / sqrtf((float)w->dim),
        .queries = (cut - begin) * group,
        .q = s->q,
        .out = s->out,
        .visible = s->visible,
        .scratch = s->scores,
    };
    if (args.queries)
        e->kernels->attention(&args);
    if (args.queries == rows)
        return;
    args.q += args.queries;
    args.out += args.queries;
    args.visible += args.queries;
    args.queries = rows - args.queries;
    args.received = s->received;
    e->kernels->attention(&args);
}

/* Adds up what the threads gathered in this layer. Integers, so that their order does not matter. */
static void collect_density(const struct pass *p)
{
    const struct engine *e = p->engine;
    size_t chunks = p->positions[p->count - 1] / CHUNK_TOKENS + 1;
    for (unsigned i = 0; i < workers_threads(e->workers); i++) {
        uint32_t *received = e->scratch[i].received;
        for (size_t c = 0; c < chunks; c++) {
            uint64_t sum = 0;
            for (size_t t = 0; t < CHUNK_TOKENS; t++)
                sum += received[c * CHUNK_TOKENS + t];
            e->received[c] += sum;
        }
        memset(received, 0, chunks * CHUNK_TOKENS * sizeof *received);
    }
}

/* The part is done: how many (token, row, head, layer) could have seen each chunk (Eq. 1 divides by the rows
 * that see). */
static void count_rows(const struct pass *p)
{
    const struct weights *w = &p->engine->weights;
    size_t chunks = p->positions[p->count - 1] / CHUNK_TOKENS + 1;
    for (size_t c = 0; c < chunks; c++) {
        uint64_t pairs = 0;
        for (size_t t = p->density_from; t < p->count; t++) {
            size_t seen = p->positions[t] + 1, begin = c * CHUNK_TOKENS;
            pairs += seen <= begin ? 0 : seen - begin < CHUNK_TOKENS ? seen - begin : CHUNK_TOKENS;
        }
        p->sequence->chunks[c]->rows += pairs * w->heads * w->layer_count;
    }
}

/* ---- feed-forward ---- */

static const void *matrix_row(const struct matrix *m, size_t row)
{
    return (const unsigned char *)m->data + row * dtype_row_bytes(m->type, m->columns);
}

/* Hidden rows a piece. */
static size_t ffn_rows(const struct pass *p)
{
    size_t rows = piece_rows(&p->layer->gate, p->count - p->first);
    if (engine_packs_parts(p->layer->down.pack))
        rows = rows < 32 ? 32 : rows / 32 * 32;
    return rows < FFN_ROWS ? rows : FFN_ROWS;
}

/* SwiGLU of a piece's rows, and their packing. */
static void finish_hidden(const struct pass *p, const struct thread_scratch *s, size_t begin, size_t count)
{
    enum { TOKENS = 8 };
    _Alignas(64) float rows[TOKENS * FFN_ROWS];
    const struct engine *e = p->engine;
    const bool parts = engine_packs_parts(p->layer->down.pack);
    size_t hidden = e->weights.hidden, now;
    for (size_t t = p->first; t < p->count; t += now) {
        now = p->count - t < TOKENS ? p->count - t : TOKENS;
        for (size_t i = 0; i < now; i++) {
            size_t row = (t - p->first + i) * FFN_ROWS;
            float *out = parts ? rows + i * count : e->hidden + (t + i) * hidden + begin;
            e->kernels->swiglu(s->gate + row, s->up + row, count, out);
        }
        if (parts)
            e->kernels->pack_part(&(struct pack_part){p->layer->down.pack, rows, begin, count, hidden, now,
                                                      packed_hidden_row(e, p->layer->down.pack, t)});
    }
}

static void ffn_piece(void *argument, unsigned piece, unsigned thread)
{
    const struct pass *p = argument;
    const struct engine *e = p->engine;
    const struct thread_scratch *s = &e->scratch[thread];
    size_t hidden = e->weights.hidden, rows = ffn_rows(p), begin = (size_t)piece * rows;
    size_t end = begin + rows < hidden ? begin + rows : hidden;
    const struct matrix *parts[] = {&p->layer->gate, &p->layer->up};
    float *outs[] = {s->gate, s->up};
    for (size_t i = 0; i < 2; i++) {
        const struct matrix *other = parts[1 - i]; /* as large */
        const struct matmul args = {
            .type = parts[i]->type,
            .weights = matrix_row(parts[i], begin),
            .columns = parts[i]->columns,
            .packed = packed_row(e, parts[i]->pack, parts[i]->columns, p->first),
            .tokens = p->count - p->first,
            .out = outs[i],
            .out_stride = FFN_ROWS,
            .next = matrix_row(other, i == 0 ? begin : end),
        };
        e->kernels->matmul(&args, 0, end - begin);
    }
    finish_hidden(p, s, begin, end - begin);
}

/* ---- layers ---- */

static void norm_rows(struct pass *p, const float *norm, bool add, unsigned packs)
{
    p->norm = norm;
    p->add = add;
    p->packs = packs;
    run_rows(p, norm_piece);
}

/* wanted: from which token on this layer's result is needed; K and V of all tokens are stored anyway. */
static void run_layer(struct pass *p, size_t wanted)
{
    struct engine *e = p->engine;
    const struct weights *w = &e->weights;
    const struct layer *l = p->layer;
    size_t q = (size_t)w->heads * w->dim, kv = (size_t)w->kv_heads * w->dim;
    norm_rows(p, l->attention_norm, p->lone && p->layer_index > 0,
              1u << l->q.pack | 1u << l->k.pack | 1u << l->v.pack);
    run_product((struct product){p, {{&l->q, e->q, q}, {&l->k, e->k, kv}, {&l->v, e->v, kv}}, 3, false});
    run_rows(p, store_piece);
    p->first =
        wanted < p->density_from ? wanted : p->density_from; /* density wants all of its rows' attention */
    if (p->first < p->count)
        workers_run(e->workers, attention_piece, p,
                    pieces_of(p->count - p->first, ATTENTION_TOKENS) * w->kv_heads);
    if (p->density_from < p->count)
        collect_density(p);
    p->first = wanted;
    if (p->first == p->count)
        return;
    float *delta = e->delta + p->first * w->width;
    pack_rows(p, e->q, q, &l->o);
    run_product((struct product){p, {{&l->o, delta, w->width}}, 1, false});
    norm_rows(p, l->ffn_norm, true, 1u << l->gate.pack | 1u << l->up.pack);
    workers_run(e->workers, ffn_piece, p, pieces_of(w->hidden, ffn_rows(p)));
    if (!engine_packs_parts(l->down.pack))
        pack_rows(p, e->hidden, w->hidden, &l->down);
    run_product((struct product){p, {{&l->down, delta, w->width}}, 1, engine_packs_parts(l->down.pack)});
    if (!p->lone)
        run_rows(p, add_piece);
}

static int check(const struct engine *e, const struct engine_batch *b, struct error *error)
{
    const struct kv_sequence *s = b->sequence;
    if (b->density_tokens > b->count || b->logits_from > b->count ||
        (b->logits_from < b->count && !b->logits))
        return error_set(error, -EINVAL, "logits or density wanted of tokens that are not in the batch");
    size_t last = 0;
    for (size_t i = 0; i < b->count; i++) {
        if (b->tokens[i] < 0 || (uint32_t)b->tokens[i] >= e->weights.vocabulary)
            return error_set(error, -EINVAL, "token %d is not in the vocabulary of %u", b->tokens[i],
                             e->weights.vocabulary);
        size_t position = b->positions ? b->positions[i] : s->tokens + i;
        if ((i && position <= last) || position > UINT32_MAX)
            return error_set(error, -EINVAL, "positions do not ascend");
        last = position;
    }
    if (b->count && kv_chunks_of(last + 1) > s->chunk_count)
        return error_set(error, -EINVAL, "position %zu has no chunk", last);
    for (size_t c = 0; b->count && c < kv_chunks_of(last + 1); c++)
        if (!s->chunks[c]->data)
            return error_set(error, -EINVAL, "chunk %zu is not in memory", c);
    return 0;
}

/* ---- the batch, in spans of parts ---- */

/* A span's tokens go through a layer, part by part, before any goes on to the next: a restore has all of that
 * time to bring in the next layer. */
struct span {
    struct engine *engine;
    const struct engine_batch *batch;
    size_t at, count; /* of the batch's tokens */
};

static size_t position_of(const struct engine_batch *b, size_t i)
{
    return b->positions ? b->positions[i] : b->sequence->tokens + i;
}

/* Where index i of the whole batch lies in the part [at, at + count): 0 before it, count behind it. */
static size_t within(size_t i, size_t at, size_t count)
{
    return i <= at ? 0 : i - at < count ? i - at : count;
}

/* The part that begins at token `at` of the batch. */
static void open_part(const struct span *s, size_t at, struct pass *p)
{
    struct engine *e = s->engine;
    const struct engine_batch *b = s->batch;
    size_t left = s->at + s->count - at;
    p->engine = e;
    p->sequence = b->sequence;
    p->tokens = b->tokens + at;
    p->x = e->x + (at - s->at) * e->weights.width;
    p->rotation = e->rotation + (at - s->at) * e->weights.rope_dims;
    p->count = left < ENGINE_BATCH ? left : ENGINE_BATCH;
    p->first = 0;
    p->density_from = within(b->count - b->density_tokens, at, p->count);
    p->lone = s->count <= ENGINE_BATCH;
    for (size_t i = 0; i < p->count; i++)
        p->positions[i] = (uint32_t)position_of(b, at + i);
}

static int run_parts(const struct span *s, uint32_t layer)
{
    const struct engine_batch *b = s->batch;
    const struct weights *w = &s->engine->weights;
    struct pass p;
    for (size_t at = s->at; at < s->at + s->count; at += p.count) {
        int code = b->cancel && atomic_load(b->cancel) ? -ECANCELED
                   : b->gate                           ? b->gate(b->gate_argument, layer)
                                                       : 0;
        if (code < 0)
            return code;
        open_part(s, at, &p);
        p.layer = &w->layers[layer];
        p.layer_index = layer;
        if (layer == 0)
            run_rows(&p, embed_piece);
        run_layer(&p, layer + 1 == w->layer_count ? within(b->logits_from, at, p.count) : 0);
    }
    return 0;
}

/* All layers are done: the chunks' density and the logits wanted. */
static void finish_span(const struct span *s)
{
    struct engine *e = s->engine;
    const struct engine_batch *b = s->batch;
    const struct weights *w = &e->weights;
    size_t chunks = position_of(b, s->at + s->count - 1) / CHUNK_TOKENS + 1;
    struct pass p;
    for (size_t c = 0; c < chunks; c++)
        b->sequence->chunks[c]->received += e->received[c];
    for (size_t at = s->at; at < s->at + s->count; at += p.count) {
        open_part(s, at, &p);
        if (p.density_from < p.count)
            count_rows(&p);
        size_t from = within(b->logits_from, at, p.count);
        if (from == p.count)
            continue;
        float *logits = b->logits + (at + from - b->logits_from) * w->vocabulary;
        p.first = from;
        norm_rows(&p, w->output_norm, p.lone, 1u << w->output.pack);
        run_product((struct product){&p, {{&w->output, logits, w->vocabulary}}, 1, false});
    }
}

int engine_forward(struct engine *e, const struct engine_batch *b, struct error *error)
{
    int code = check(e, b, error);
    if (code < 0 || b->count == 0)
        return code;
    size_t last = position_of(b, b->count - 1);
    if ((code = engine_scratch_reserve(e, last + 1)) < 0)
        return error_set(error, code, "out of memory for attention over %zu positions", last + 1);
    for (size_t at = 0; at < b->count; at += e->span) {
        const struct span span = {e, b, at, b->count - at < e->span ? b->count - at : e->span};
        memset(e->received, 0, (last / CHUNK_TOKENS + 1) * sizeof *e->received);
        for (uint32_t layer = 0; layer < e->weights.layer_count; layer++)
            if ((code = run_parts(&span, layer)) < 0)
                return error_set(error, code, "the pass was stopped: %s", strerror(-code));
        finish_span(&span);
    }
    return 0;
}
