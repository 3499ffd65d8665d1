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
    code = share_attach(service, context);
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
        shown.levels[kv_level_index(level)]++;
    }
    pthread_mutex_lock(&service->lock);
    context->shown = shown;
    pthread_mutex_unlock(&service->lock);
}
