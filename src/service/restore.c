/* Bringing a context's missing chunks back, under the pass that its new prompt needs anyway.
 *
 * Every chunk the sequence has is resident, stored or lost (kv/chunk.h). What is missing is planned
 * (kv/plan.h): some chunks are read, layer after layer, some are recomputed from their tokens, together with
 * the prompt. The engine asks at each layer's gate; by then that layer of the read chunks has come in, has
 * matched its checksums and lies in the chunks. A read that fails or does not match makes its chunk lost, and
 * the pass starts over without it (invariant 6). How far one pass goes is for parts.c to say. The worker's
 * alone. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "service/service_internal.h"

enum {
    SLOTS = RESTORE_SLOTS,        /* layers being read at once */
    GAP_CHUNKS = 2,               /* chunks not wanted that a read may span, to be one read */
    SLICES_PIECE = 8,             /* put into their chunks by one thread at a time */
    KEEP_BUFFER_BYTES = 1u << 20, /* what a slot may keep for the next restore */
};

/* Neighbouring chunks of one segment, read together. */
struct run {
    struct segment *segment;
    uint32_t first, count;
    size_t offset; /* of its range in a slot's buffer */
};

struct slot {
    unsigned char *buffer;        /* the service's */
    struct aio_read *reads;       /* one a run */
    struct segment_range *ranges; /* one a run */
    size_t pending;
    int code; /* the first that went wrong with reading */
};

struct restore {
    struct turn *turn;
    struct kv_sequence *sequence;
    struct kv_chunk **missing; /* by position */
    struct plan_chunk *planned;
    bool *recompute;
    size_t count;
    struct kv_chunk **loads; /* by segment and index */
    size_t load_count;
    struct run *runs;
    size_t run_count;
    size_t *slice_at;             /* room for one run */
    const unsigned char **slices; /* of each load, the layer that is delivered; NULL: not read */
    struct slot slots[SLOTS];
    uint32_t layers, next_layer; /* to be read next */
    uint32_t delivered;          /* layers that are in the chunks */
    uint64_t stall_ns, bytes;
    uint64_t usable_ns;   /* when all that was missing had come back */
    struct tokens tokens; /* the pass */
    uint32_t *positions;
    size_t recomputed_tokens;
};

static int out_of_memory(struct restore *r)
{
    return error_set(&r->turn->result->error, -ENOMEM, "out of memory to bring the context back");
}

/* ---- what is missing, and the plan ---- */

/* The last chunk, where it is missing, the pass writes on in it, and others hold it too: this context gets
 * one of its own, with the same copy on flash. What comes back would else lie in theirs. */
static int own_tail(struct restore *r, size_t end)
{
    struct kv_sequence *sequence = r->sequence;
    if (sequence->tokens % KV_CHUNK_TOKENS == 0 || end <= sequence->tokens)
        return 0;
    struct kv_chunk **place = &sequence->chunks[sequence->tokens / KV_CHUNK_TOKENS], *shared = *place;
    if (shared->data || shared->references == 1)
        return 0;
    struct kv_chunk *own = kv_chunk_create(shared->position);
    if (!own)
        return out_of_memory(r);
    uint32_t references = own->references;
    *own = *shared;
    own->references = references;
    own->locked = false;
    own->mark = 0;
    if (own->stored)
        segment_ref(own->stored);
    shared->locked = false;
    kv_chunk_release(sequence->pool, shared);
    *place = own;
    return 0;
}

static int find_missing(struct restore *r, size_t end)
{
    size_t all = r->sequence->chunk_count;
    r->missing = mem_calloc(all, sizeof(struct kv_chunk *));
    r->planned = mem_calloc(all, sizeof *r->planned);
    r->recompute = mem_calloc(all, sizeof *r->recompute);
    r->loads = mem_calloc(all, sizeof(struct kv_chunk *));
    if (!r->missing || !r->planned || !r->recompute || !r->loads)
        return out_of_memory(r);
    const struct kv_geometry *geometry = kv_pool_geometry(r->sequence->pool);
    for (size_t i = 0; i < kv_chunks_of(r->sequence->tokens); i++) {
        struct kv_chunk *chunk = r->sequence->chunks[i];
        chunk->locked = true;
        if (chunk->data || chunk->position >= end)
            continue;
        if (chunk->stored_tokens < chunk->tokens) /* the copy is from before it grew */
            kv_chunk_forget_stored(r->sequence->pool, chunk);
        r->planned[r->count] = (struct plan_chunk){
            .position = chunk->position,
            .tokens = chunk->tokens,
            .bytes = chunk->stored ? kv_chunk_bytes(geometry, chunk->stored_level) : 0,
        };
        r->missing[r->count++] = chunk;
    }
    return 0;
}

/* What is recomputed comes back at the level it is computed at. Where that does not fit beside what is in
 * memory now, it would push out more than it brings back: what has a smaller copy is read. */
static void pin(struct restore *r)
{
    const struct kv_pool *pool = r->sequence->pool;
    const struct kv_geometry *geometry = kv_pool_geometry(pool);
    uint64_t whole = kv_chunk_bytes(geometry, r->turn->service->kv_level);
    uint64_t budget = kv_pool_budget(pool), resident = kv_pool_resident(pool);
    if (resident + r->count * whole <= budget)
        return;
    for (size_t i = 0; i < r->count; i++)
        r->planned[i].pinned = r->planned[i].bytes > 0 && r->planned[i].bytes < whole;
}

/* Those to be computed for the first time. */
static size_t fresh_tokens(const struct restore *r, size_t end)
{
    return end > r->sequence->tokens ? end - r->sequence->tokens : 0;
}

static void choose(struct restore *r, size_t end)
{
    struct service *service = r->turn->service;
    pin(r);
    const struct plan_request request = {
        .chunks = r->planned,
        .count = r->count,
        .prompt_tokens = (uint32_t)fresh_tokens(r, end),
        .prompt_position = (uint32_t)r->sequence->tokens,
        .layers = r->layers,
        .mode = r->turn->tight && service->plan_mode == PLAN_BEST ? PLAN_LOAD_ONLY : service->plan_mode,
        .serial = !service->policy->overlap,
        .forced_share = service->plan_share,
        .forced_seed = service->tick,
    };
    struct plan plan = {.recompute = r->recompute};
    plan_choose(&service->rates.now, &request, &plan);
    for (size_t i = 0; i < r->count; i++)
        if (!r->recompute[i])
            r->loads[r->load_count++] = r->missing[i];
    for (size_t i = 0; i < r->count; i++)
        if (r->recompute[i])
            log_debug("%s: chunk at token %u (%u tokens) is recomputed, %s", r->turn->context->id,
                      r->missing[i]->position, r->missing[i]->tokens,
                      r->missing[i]->stored ? "as planned" : "it is not on flash");
    r->turn->result->chunks_loaded = r->turn->reread + plan.loaded;
    r->turn->result->plan_ms = plan.total_s * 1e3;
    r->turn->result->chunks_recomputed += plan.recomputed;
}

static uint8_t level_back(const struct restore *r, size_t i)
{
    return r->recompute[i] ? r->turn->service->kv_level : r->missing[i]->stored_level;
}

/* What is read fills its chunk whole; what is recomputed, as many slots as it has tokens. */
static int claim(struct restore *r, size_t i)
{
    struct kv_pool *pool = r->sequence->pool;
    return r->recompute[i] ? kv_chunk_claim(pool, r->missing[i], level_back(r, i))
                           : kv_chunk_claim_unfilled(pool, r->missing[i], level_back(r, i));
}

static int claim_missing(struct restore *r)
{
    struct service *service = r->turn->service;
    const struct kv_geometry *geometry = kv_pool_geometry(r->sequence->pool);
    size_t claimed = 0;
    int code;
    do { /* again where the budget was lowered in between */
        uint64_t need = 0;
        for (size_t i = claimed; i < r->count; i++)
            need += kv_chunk_bytes(geometry, level_back(r, i));
        code = residency_make_room(service, need, &r->turn->result->error);
        if (code < 0)
            return code;
        while (claimed < r->count && (code = claim(r, claimed)) == 0)
            claimed++;
    } while (code == -ENOSPC);
    return code < 0 ? error_set(&r->turn->result->error, code, "out of memory for KV") : 0;
}

/* ---- reading ---- */

static int by_place(const void *a, const void *b)
{
    const struct kv_chunk *x = *(struct kv_chunk *const *)a, *y = *(struct kv_chunk *const *)b;
    if (x->stored != y->stored)
        return (uintptr_t)x->stored < (uintptr_t)y->stored ? -1 : 1;
    return x->stored_index < y->stored_index ? -1 : x->stored_index > y->stored_index;
}

static int make_runs(struct restore *r)
{
    uint32_t longest = 0;
    if (r->load_count == 0)
        return 0;
    qsort(r->loads, r->load_count, sizeof(struct kv_chunk *), by_place);
    r->runs = mem_calloc(r->load_count, sizeof *r->runs);
    if (!r->runs)
        return out_of_memory(r);
    struct run *run = NULL;
    for (size_t i = 0; i < r->load_count; i++) {
        const struct kv_chunk *chunk = r->loads[i];
        if (!run || run->segment != chunk->stored ||
            chunk->stored_index > run->first + run->count + GAP_CHUNKS) {
            run = &r->runs[r->run_count++];
            *run = (struct run){.segment = chunk->stored, .first = chunk->stored_index};
        }
        run->count = chunk->stored_index - run->first + 1;
        longest = run->count > longest ? run->count : longest;
    }
    r->slice_at = mem_calloc(longest, sizeof *r->slice_at);
    r->slices = mem_calloc(r->load_count, sizeof *r->slices);
    return r->slice_at && r->slices ? 0 : out_of_memory(r);
}

/* A chunk that cannot be read: forgotten when no run needs its place any more. */
static void give_up(struct restore *r, struct kv_chunk *chunk)
{
    r->turn->bad[r->turn->bad_count++] = chunk;
}

static void give_up_run(struct restore *r, const struct run *run)
{
    for (size_t i = 0; i < r->load_count; i++)
        if (r->loads[i]->stored == run->segment && r->loads[i]->stored_index >= run->first &&
            r->loads[i]->stored_index < run->first + run->count)
            give_up(r, r->loads[i]);
}

/* Where layer's ranges lie; returns the bytes of a slot's buffer, or -EBADMSG: a file cannot be opened, and
 * the chunks in it are lost. */
static int64_t lay_out(struct restore *r, struct slot *slot, uint32_t layer)
{
    size_t offset = 0;
    bool good = true;
    for (size_t i = 0; i < r->run_count; i++) {
        struct run *run = &r->runs[i];
        if (segment_layer_range(run->segment, layer, run->first, run->count, &slot->ranges[i], r->slice_at) <
            0) {
            give_up_run(r, run);
            good = false;
            continue;
        }
        run->offset = offset;
        offset += slot->ranges[i].bytes;
    }
    return good ? (int64_t)offset : -EBADMSG;
}

/* Pages that were touched before cost nothing to read into: a restore's buffers are the next one's too. */
static unsigned char *room_for(struct read_buffer *kept, size_t bytes)
{
    if (kept->bytes < bytes) {
        mem_free(kept->data);
        kept->data = mem_aligned(4096, bytes);
        kept->bytes = kept->data ? bytes : 0;
    }
    return kept->data;
}

static void read_buffer_deinit(struct read_buffer *kept)
{
    mem_free(kept->data);
    *kept = (struct read_buffer){0};
}

void restore_release(struct service *service)
{
    for (size_t s = 0; s < SLOTS; s++)
        read_buffer_deinit(&service->read_buffers[s]);
}

static int make_slots(struct restore *r)
{
    for (size_t s = 0; s < SLOTS && r->run_count; s++) {
        struct slot *slot = &r->slots[s];
        slot->reads = mem_calloc(r->run_count, sizeof *slot->reads);
        slot->ranges = mem_calloc(r->run_count, sizeof *slot->ranges);
        if (!slot->reads || !slot->ranges)
            return out_of_memory(r);
        int64_t most = 0; /* layers differ by their alignment only */
        for (uint32_t layer = 0; layer < r->layers; layer++) {
            int64_t bytes = lay_out(r, slot, layer);
            if (bytes < 0)
                return (int)bytes;
            most = bytes > most ? bytes : most;
        }
        slot->buffer = room_for(&r->turn->service->read_buffers[s], (size_t)most);
        if (!slot->buffer)
            return out_of_memory(r);
    }
    return 0;
}

/* Starts reading the next layer into its slot, which is free. */
static int start_layer(struct restore *r)
{
    uint32_t layer = r->next_layer++;
    struct slot *slot = &r->slots[layer % SLOTS];
    int64_t code = lay_out(r, slot, layer);
    if (code < 0)
        return (int)code;
    slot->code = 0;
    for (size_t i = 0; i < r->run_count; i++) {
        slot->reads[i] = (struct aio_read){
            .descriptor = slot->ranges[i].descriptor,
            .offset = slot->ranges[i].offset,
            .data = slot->buffer + r->runs[i].offset,
            .bytes = slot->ranges[i].bytes,
            .tag = slot,
        };
        int submitted = aio_submit(r->turn->service->aio, &slot->reads[i]);
        if (submitted < 0)
            return error_set(&r->turn->result->error, submitted, "cannot read the context back: %s",
                             strerror(-submitted));
        slot->pending++;
        r->bytes += slot->ranges[i].bytes;
    }
    return 0;
}

static void await(struct restore *r, struct slot *slot)
{
    uint64_t start = clock_ns();
    while (slot->pending) {
        struct aio_read *read = aio_wait(r->turn->service->aio, true);
        if (!read)
            break;
        struct slot *done = read->tag;
        done->pending--;
        if (read->code < 0 && done->code == 0)
            done->code = read->code;
    }
    r->stall_ns += clock_ns() - start;
}

static void lose(struct restore *r, struct kv_chunk *chunk, const char *why)
{
    if (!chunk->stored) /* given up twice */
        return;
    log_warning("chunk at token %u of %s is recomputed: %s", chunk->position, r->turn->context->id, why);
    kv_chunk_forget_stored(r->sequence->pool, chunk);
}

/* Where in the slot the layer's slice of each load lies. */
static int find_slices(struct restore *r, struct slot *slot, uint32_t layer)
{
    size_t load = 0;
    for (size_t i = 0; i < r->run_count; i++) {
        const struct run *run = &r->runs[i];
        if (segment_layer_range(run->segment, layer, run->first, run->count, &slot->ranges[i], r->slice_at) <
            0) {
            give_up_run(r, run);
            return -EBADMSG;
        }
        for (; load < r->load_count && r->loads[load]->stored == run->segment &&
               r->loads[load]->stored_index < run->first + run->count;
             load++)
            r->slices[load] =
                slot->reads[i].code < 0
                    ? NULL
                    : slot->buffer + run->offset + r->slice_at[r->loads[load]->stored_index - run->first];
    }
    return 0;
}

struct delivery {
    struct restore *r;
    uint32_t layer;
};

/* Checks some of the slices and copies them; those that are bad become NULL. */
static void deliver_piece(void *argument, unsigned piece, unsigned thread)
{
    (void)thread;
    const struct delivery *d = argument;
    struct restore *r = d->r;
    const struct kv_geometry *geometry = kv_pool_geometry(r->sequence->pool);
    size_t begin = (size_t)piece * SLICES_PIECE, end = begin + SLICES_PIECE;
    for (size_t i = begin; i < end && i < r->load_count; i++) {
        const struct kv_chunk *chunk = r->loads[i];
        size_t bytes = kv_layer_bytes(geometry, chunk->level);
        if (r->slices[i] && segment_slice_valid(chunk->stored, d->layer, chunk->stored_index, r->slices[i]))
            memcpy((unsigned char *)chunk->data + d->layer * bytes, r->slices[i], bytes);
        else
            r->slices[i] = NULL;
    }
}

/* Puts a layer's slices into their chunks. -EBADMSG where one was bad; its chunk is lost then. */
static int deliver(struct restore *r, struct slot *slot, uint32_t layer)
{
    struct delivery delivery = {r, layer};
    int code = find_slices(r, slot, layer);
    if (code < 0)
        return code;
    engine_run(r->turn->service->engine, deliver_piece, &delivery,
               (unsigned)((r->load_count + SLICES_PIECE - 1) / SLICES_PIECE));
    for (size_t i = 0; i < r->load_count; i++)
        if (!r->slices[i]) {
            give_up(r, r->loads[i]);
            code = -EBADMSG;
        }
    return code;
}

/* Between two layers what shall hold of the budget is met, from what other contexts have: a long prompt does
 * not keep it waiting. */
static int tend(void *argument, uint32_t layer)
{
    const struct restore *r = argument;
    (void)layer;
    budget_tend(r->turn->service);
    return 0;
}

static int gate(void *argument, uint32_t layer)
{
    struct restore *r = argument;
    tend(r, layer);
    if (r->run_count == 0 || layer < r->delivered) /* nothing is read, or a later part of the pass */
        return 0;
    struct slot *slot = &r->slots[layer % SLOTS];
    await(r, slot);
    int code = deliver(r, slot, layer);
    r->delivered = layer + 1;
    if (r->delivered == r->layers)
        r->usable_ns = clock_ns();
    if (code == 0 && r->next_layer < r->layers)
        code = start_layer(r);
    return code;
}

/* ---- the pass ---- */

static int make_pass(struct restore *r, size_t end)
{
    const struct tokens *all = &r->turn->context->tokens;
    r->positions = mem_calloc(r->count * KV_CHUNK_TOKENS + fresh_tokens(r, end), sizeof *r->positions);
    if (!r->positions)
        return out_of_memory(r);
    for (size_t i = 0; i < r->count; i++)
        for (uint32_t t = 0; r->recompute[i] && t < r->missing[i]->tokens; t++) {
            uint32_t position = r->missing[i]->position + t;
            r->positions[r->tokens.count] = position;
            if (tokens_append(&r->tokens, all->ids[position]) < 0)
                return out_of_memory(r);
        }
    r->recomputed_tokens = r->tokens.count;
    for (size_t position = r->sequence->tokens; position < end; position++) {
        r->positions[r->tokens.count] = (uint32_t)position;
        if (tokens_append(&r->tokens, all->ids[position]) < 0)
            return out_of_memory(r);
    }
    return 0;
}

static int run_pass(struct restore *r, bool logits)
{
    struct turn *turn = r->turn;
    int code = 0;
    while (r->run_count && code == 0 && r->next_layer < SLOTS && r->next_layer < r->layers)
        code = start_layer(r);
    bool ahead = !turn->service->policy->overlap || r->tokens.count == 0;
    for (uint32_t layer = 0; ahead && layer < r->layers && code == 0; layer++)
        code = gate(r, layer);
    if (code < 0)
        return code;
    if (r->tokens.count == 0)
        return 0;
    const struct engine_batch batch = {
        .sequence = r->sequence,
        .tokens = r->tokens.ids,
        .positions = r->positions,
        .count = r->tokens.count,
        .logits_from = logits ? r->tokens.count - 1 : r->tokens.count,
        .logits = logits ? turn->service->logits : NULL,
        .cancel = &turn->call->cancel,
        .gate = ahead ? tend : gate,
        .gate_argument = r,
        .density_tokens =
            turn->service->policy->levels.rule == LEVELS_KEEP ? 0 : r->tokens.count - r->recomputed_tokens,
    };
    return engine_forward(turn->service->engine, &batch, &turn->result->error);
}

/* Keeps the rates current: reading where the pass waited for it, computing where it did not. */
static void observe(struct restore *r, double seconds)
{
    struct rates *rates = &r->turn->service->rates;
    double stall = (double)r->stall_ns / 1e9;
    double depth = 0;
    for (size_t i = 0; i < r->tokens.count; i++)
        depth += plan_depth(r->positions[i], 1);
    if (r->bytes && stall > seconds / 4)
        rates_observe_read(rates, r->bytes, r->run_count * r->layers, seconds);
    if (r->tokens.count && stall < seconds / 20)
        rates_observe_compute(rates, r->tokens.count, depth, seconds);
}

static void finish(struct restore *r, int code)
{
    for (size_t s = 0; s < SLOTS; s++) {
        await(r, &r->slots[s]);
        if (r->turn->service->read_buffers[s].bytes > KEEP_BUFFER_BYTES)
            read_buffer_deinit(&r->turn->service->read_buffers[s]);
        mem_free(r->slots[s].reads);
        mem_free(r->slots[s].ranges);
    }
    r->turn->result->bytes_read += r->bytes;
    for (size_t i = 0; i < r->count && code < 0; i++)
        if (r->missing[i]->data) { /* claimed here and not whole */
            r->missing[i]->locked = false;
            kv_chunk_drop(r->sequence->pool, r->missing[i]);
        }
    for (size_t i = 0; i < r->turn->bad_count; i++)
        lose(r, r->turn->bad[i], "its copy on flash is unreadable or does not match its checksum");
    r->turn->bad_count = 0;
    mem_free(r->missing);
    mem_free(r->planned);
    mem_free(r->recompute);
    mem_free(r->loads);
    mem_free(r->runs);
    mem_free(r->slice_at);
    mem_free(r->slices);
    mem_free(r->positions);
    tokens_deinit(&r->tokens);
}

int restore_pass(struct turn *turn, size_t end, bool logits)
{
    struct restore r = {.turn = turn,
                        .sequence = &turn->context->sequence,
                        .layers = engine_model(turn->service->engine)->kv.layers};
    uint64_t start = clock_ns();
    int code = own_tail(&r, end);
    if (code == 0)
        code = find_missing(&r, end);
    turn->result->chunks_recomputed = turn->recount;
    if (code == 0) {
        choose(&r, end);
        turn->bad = mem_calloc(r.count * r.layers + 1, sizeof(struct kv_chunk *));
        code = turn->bad ? claim_missing(&r) : out_of_memory(&r);
    }
    if (code == 0 && end > r.sequence->tokens)
        code = residency_reserve(turn->service, turn->context, end, &turn->result->error);
    if (code == 0)
        code = make_runs(&r);
    if (code == 0)
        code = make_slots(&r);
    if (code == 0)
        code = make_pass(&r, end);
    r.usable_ns = clock_ns();
    if (code == 0)
        code = run_pass(&r, logits);
    if (code == 0) {
        observe(&r, clock_ms_since(start) / 1e3);
        turn->result->stall_ms += (double)r.stall_ns / 1e6;
        if (r.recomputed_tokens ||
            r.sequence->tokens < turn->context->computed) /* came back with the pass itself */
            r.usable_ns = clock_ns();
        turn->result->switch_ms = (double)(r.usable_ns - turn->started_ns) / 1e6;
        turn->recomputed_tokens += r.recomputed_tokens;
        turn->recount = turn->result->chunks_recomputed; /* a next part counts on */
        turn->reread = turn->result->chunks_loaded;
        kv_sequence_advance(r.sequence, end > r.sequence->tokens ? end : r.sequence->tokens);
    }
    finish(&r, code);
    mem_free(turn->bad);
    turn->bad = NULL;
    return code;
}
