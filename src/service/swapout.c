/* Ahead-of-time swap-out: when a call is over, what it changed is written to flash, pressure or not, so that
 * dropping it later does no I/O (the paper's chunk lifecycle; invariant 4).
 *
 * The worker gathers a context's chunks that are not clean and hands them to the writer, a thread of its own,
 * so that no call waits for the disk. Meanwhile the chunks are marked `writing`: they keep their data and
 * stay in memory. The last chunk, which the next call may write on, is copied instead. One swap-out at a
 * time. A failed one leaves its chunks as they are, to be tried again after the context's next call, or
 * recomputed. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "service/service_internal.h"

/* A context whose chunks lie in more segments than this is written anew as one, while all of it is in memory;
 * not what others share, whose files theirs are too. */
enum { SEGMENTS_MOST = 8 };

struct swapout {
    char context[JOURNAL_ID_BYTES];
    struct segment_chunk *chunks;
    struct kv_chunk **sources; /* a reference on each */
    size_t count;
    void *tail; /* the copy of the last, partly filled one */
    struct segment *written;
    bool abandoned; /* the context was deleted meanwhile */
    int code;
    struct error error;
};

static void destroy(struct service *service, struct swapout *out)
{
    for (size_t i = 0; out->sources && i < out->count; i++)
        kv_chunk_release(service->pool, out->sources[i]);
    mem_free(out->sources);
    mem_free(out->chunks);
    mem_free(out->tail);
    mem_free(out);
}

static size_t segments_of(const struct kv_sequence *sequence, bool *all_resident)
{
    size_t count = 0;
    *all_resident = true;
    for (size_t i = 0; i < sequence->chunk_count; i++) {
        bool seen = !sequence->chunks[i]->stored || sequence->chunks[i]->references > 1;
        for (size_t j = 0; j < i && !seen; j++)
            seen = sequence->chunks[j]->stored == sequence->chunks[i]->stored;
        count += !seen;
        *all_resident = *all_resident && sequence->chunks[i]->data;
    }
    return count;
}

static int add_chunk(struct service *service, struct swapout *out, struct kv_chunk *chunk,
                     const struct chunk_key *key)
{
    const void *data = chunk->data;
    if (chunk->tokens < KV_CHUNK_TOKENS) {
        size_t bytes = kv_chunk_bytes(kv_pool_geometry(service->pool), chunk->level);
        out->tail = mem_aligned(64, bytes);
        if (!out->tail)
            return -ENOMEM;
        data = memcpy(out->tail, chunk->data, bytes);
    }
    out->chunks[out->count] = (struct segment_chunk){.key = *key,
                                                     .level = chunk->level,
                                                     .tokens = chunk->tokens,
                                                     .received = chunk->received,
                                                     .rows = chunk->rows,
                                                     .data = data};
    out->sources[out->count++] = chunk;
    chunk->references++;
    chunk->writing = true;
    return 0;
}

/* What of the context is to be written; NULL: nothing, or no memory for it now. Not what the running call has
 * locked, through a fork: that may have memory already and no content yet. */
static struct swapout *gather(struct service *service, struct context *context)
{
    struct kv_sequence *sequence = &context->sequence;
    size_t chunks = kv_chunks_of(sequence->tokens);
    bool all_resident;
    bool anew = segments_of(sequence, &all_resident) > SEGMENTS_MOST && all_resident;
    struct swapout *out = mem_calloc(1, sizeof *out);
    struct chunk_key key;
    if (!out)
        return NULL;
    memcpy(out->context, context->id, sizeof out->context);
    out->chunks = mem_calloc(chunks, sizeof *out->chunks);
    out->sources = mem_calloc(chunks, sizeof(struct kv_chunk *));
    chunk_key_start(service->store, context->owner, &key);
    for (size_t i = 0; i < chunks && out->chunks && out->sources; i++) {
        struct kv_chunk *chunk = sequence->chunks[i];
        chunk_key_next(service->store, &key, context->tokens.ids + chunk->position, chunk->tokens);
        bool wanted = !kv_chunk_clean(chunk) || (anew && chunk->references == 1);
        if (wanted && chunk->data && !chunk->locked && !chunk->writing &&
            add_chunk(service, out, chunk, &key) < 0)
            break;
    }
    if (out->count == 0) {
        destroy(service, out);
        return NULL;
    }
    return out;
}

/* The writer: takes the one job there may be. */
void *swapout_main(void *argument)
{
    struct service *service = argument;
    pthread_mutex_lock(&service->lock);
    for (;;) {
        struct swapout *out = service->swapping;
        if (out && !service->swapped) {
            pthread_mutex_unlock(&service->lock);
            out->code = segment_write(service->store, out->context, out->chunks, out->count, &out->written,
                                      &out->error);
            pthread_mutex_lock(&service->lock);
            service->swapped = true;
            pthread_cond_broadcast(&service->work);
        } else if (service->writer_quit) {
            break;
        } else {
            pthread_cond_wait(&service->write, &service->lock);
        }
    }
    pthread_mutex_unlock(&service->lock);
    return NULL;
}

bool swapout_start(struct service *service, struct context *context)
{
    if (!service->policy->stores || service->swapping)
        return false;
    pthread_mutex_lock(&service->lock);
    bool deleted = context->deleted;
    pthread_mutex_unlock(&service->lock);
    if (deleted)
        return false;
    struct swapout *out = gather(service, context);
    if (!out)
        return false;
    pthread_mutex_lock(&service->lock);
    service->swapping = out;
    service->swapped = false;
    pthread_cond_signal(&service->write);
    pthread_mutex_unlock(&service->lock);
    return true;
}

void swapout_abandon(struct service *service, const char *id)
{
    if (service->swapping && strcmp(service->swapping->context, id) == 0)
        service->swapping->abandoned = true;
}

/* The segment takes the place of where the chunk was stored before. */
static void place(struct service *service, struct swapout *out, size_t i)
{
    struct kv_chunk *chunk = out->sources[i];
    if (chunk->tokens < out->chunks[i].tokens || (chunk->data && chunk->level != out->chunks[i].level))
        return; /* it was cut or lowered meanwhile */
    kv_chunk_forget_stored(service->pool, chunk);
    chunk->stored = segment_ref(out->written);
    chunk->stored_index = (uint32_t)i;
    chunk->stored_level = out->chunks[i].level;
    chunk->stored_tokens = out->chunks[i].tokens;
}

/* Takes in a segment that was written: the context's others that no chunk in use refers to have been
 * replaced, as long as all of the context's chunks are known, and are removed. */
static void take_in(struct service *service, struct swapout *out)
{
    for (size_t i = 0; i < out->count && !out->abandoned; i++)
        place(service, out, i);
    share_rewritten(service, out->sources, out->count);
    if (out->abandoned) /* forks that share the chunks write their own */
        segment_kill(service->store, out->written);
    segment_unref(service->store, out->written);
    pthread_mutex_lock(&service->lock);
    struct context *context = context_find(service, out->context);
    bool resident = context && context->resident; /* then it is the worker's to destroy */
    pthread_mutex_unlock(&service->lock);
    if (resident && context->loaded && context->sequence.tokens >= context->computed)
        chunk_store_sweep(service->store, out->context);
}

bool swapout_finish(struct service *service, bool wait)
{
    pthread_mutex_lock(&service->lock);
    while (wait && service->swapping && !service->swapped)
        pthread_cond_wait(&service->work, &service->lock);
    struct swapout *out = service->swapped ? service->swapping : NULL;
    if (out) {
        service->swapping = NULL;
        service->swapped = false;
    }
    pthread_mutex_unlock(&service->lock);
    if (!out)
        return false;
    for (size_t i = 0; i < out->count; i++)
        out->sources[i]->writing = false;
    if (out->code < 0)
        log_warning("%zu chunks of %s were not written: %s", out->count, out->context, out->error.text);
    else
        take_in(service, out);
    for (struct context *context = service->resident; context; context = context->next_resident)
        if (strcmp(context->id, out->context) == 0)
            context_publish(service, context);
    bool written = out->code == 0;
    destroy(service, out);
    return written;
}
