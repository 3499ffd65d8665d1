/* The table of contexts in use, and how one of them is rebuilt from the journal. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "service/service_internal.h"

struct context *context_find(struct service *service, const char *id)
{
    for (struct context *context = service->table; context; context = context->next)
        if (strcmp(context->id, id) == 0)
            return context;
    return NULL;
}

struct context *context_hold(struct service *service, const char *owner, const char *id)
{
    struct context *context = context_find(service, id);
    if (context) {
        context->jobs++;
        return context;
    }
    context = mem_calloc(1, sizeof *context);
    if (!context)
        return NULL;
    context->owner = mem_strdup(owner);
    if (!context->owner) {
        mem_free(context);
        return NULL;
    }
    snprintf(context->id, sizeof context->id, "%s", id);
    kv_sequence_init(&context->sequence, service->pool);
    context->jobs = 1;
    context->next = service->table;
    service->table = context;
    return context;
}

static bool find_stored(struct service *service, struct kv_chunk *chunk, const struct chunk_key *key)
{
    struct segment *segment;
    uint32_t index;
    if (chunk_store_find(service->store, key, &segment, &index) < 0)
        return false;
    const struct segment_chunk *stored = segment_chunk(segment, index);
    bool lowered = service->policy->levels.rule != LEVELS_KEEP && stored->level < service->kv_level;
    if ((stored->level != service->kv_level && !lowered) || stored->tokens != chunk->tokens) {
        segment_unref(service->store, segment); /* written under another policy */
        return false;
    }
    chunk->stored = segment;
    chunk->stored_index = index;
    chunk->stored_level = stored->level;
    chunk->stored_tokens = stored->tokens;
    chunk->received = stored->received;
    chunk->rows = stored->rows;
    return true;
}

/* The last chunk may have been stored with fewer tokens than the transcript has: the last token of a reply
 * has no KV until the next call. The longest beginning that is stored is taken; the rest counts as not
 * computed yet. */
static void find_last(struct service *service, struct context *context, struct kv_chunk *chunk,
                      const struct chunk_key *before)
{
    uint8_t all = chunk->tokens;
    for (; chunk->tokens > 0; chunk->tokens--) {
        struct chunk_key key = *before;
        chunk_key_next(service->store, &key, context->tokens.ids + chunk->position, chunk->tokens);
        if (find_stored(service, chunk, &key)) {
            context->computed = chunk->position + chunk->tokens;
            return;
        }
    }
    chunk->tokens = all;
}

/* Nobody has it any more: it holds no chunks, the worker does not know it, and no job is on it. */
static void destroy(struct service *service, struct context *context)
{
    struct context **link = &service->table;
    while (*link != context)
        link = &(*link)->next;
    *link = context->next;
    kv_sequence_deinit(&context->sequence);
    tokens_deinit(&context->tokens);
    journal_context_deinit(&context->record);
    mem_free(context->owner);
    mem_free(context);
}

void context_release(struct service *service, struct context *context)
{
    if (--context->jobs == 0 && !context->resident)
        destroy(service, context);
}

void context_forget(struct service *service, struct context *context)
{
    context->resident = false;
    context->shown = (struct context_shown){0};
    if (context->jobs == 0)
        destroy(service, context);
}

/* Gives the sequence its chunks: those on flash under their keys (this context's own, or another's of the
 * same owner that begins alike), all others lost. */
static int attach_stored(struct service *service, struct context *context)
{
    struct kv_sequence *sequence = &context->sequence;
    struct chunk_key key;
    int code = 0;
    if (service->store)
        chunk_key_start(service->store, context->owner, &key);
    while (sequence->tokens < context->computed && code == 0) {
        size_t left = context->computed - sequence->tokens;
        struct kv_chunk *chunk = kv_chunk_create((uint32_t)sequence->tokens);
        if (!chunk)
            return -ENOMEM;
        chunk->tokens = (uint8_t)(left < KV_CHUNK_TOKENS ? left : KV_CHUNK_TOKENS);
        if (service->store && left <= KV_CHUNK_TOKENS) {
            find_last(service, context, chunk, &key);
        } else if (service->store) {
            chunk_key_next(service->store, &key, context->tokens.ids + sequence->tokens, chunk->tokens);
            find_stored(service, chunk, &key);
        }
        if (left == 1 && service->store && !chunk->stored) /* most likely a reply's last, never computed */
            context->computed--;
        else
            code = kv_sequence_attach(sequence, chunk);
        kv_chunk_release(service->pool, chunk);
    }
    return code;
}

int context_load(struct service *service, struct context *context, struct error *error)
{
    struct journal_context record = {0};
    struct journal_turn *turns = NULL;
    struct tokens tokens = {0};
    size_t count = 0, base_count = 0;
    if (context->loaded)
        return 0;
    int code = journal_context_get(service->journal, context->owner, context->id, &record, error);
    if (code == 0)
        code = journal_turns(service->journal, context->id, record.window_turn, &turns, &count, error);
    if (code == 0)
        code = transcript_rebuild(&service->rules, record.system_prompt, turns, count, &tokens, &base_count,
                                  error);
    journal_turns_free(turns, count);
    if (code < 0) {
        journal_context_deinit(&record);
        tokens_deinit(&tokens);
        return code;
    }
    context->record = record;
    context->tokens = tokens;
    context->base_count = base_count;
    context->computed = record.turn_count ? tokens.count : 0;
    code = attach_stored(service, context);
    if (code < 0) {
        kv_sequence_truncate(&context->sequence, 0);
        tokens_deinit(&context->tokens);
        journal_context_deinit(&context->record);
        return error_set(error, code, "out of memory");
    }
    context->loaded = true;
    return 0;
}

void context_publish(struct service *service, struct context *context)
{
    const struct kv_sequence *sequence = &context->sequence;
    struct context_shown shown = {0};
    for (size_t i = 0; i < sequence->chunk_count; i++) {
        uint8_t level = sequence->chunks[i]->level;
        if (!level) { /* not in memory */
            shown.stored += sequence->chunks[i]->stored &&
                            sequence->chunks[i]->stored_tokens >= sequence->chunks[i]->tokens;
            continue;
        }
        shown.tokens_resident += sequence->chunks[i]->tokens;
        shown.bytes += kv_chunk_bytes(kv_pool_geometry(service->pool), level);
        shown.levels[level == 16 ? 0 : level == 8 ? 1 : level == 4 ? 2 : 3]++;
    }
    pthread_mutex_lock(&service->lock);
    context->shown = shown;
    pthread_mutex_unlock(&service->lock);
}
