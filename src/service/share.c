/* Which chunks a context begins with: those of others in memory, and those on flash.
 *
 * Contexts of one owner whose tokens begin alike hold the same chunks, full ones only, so that their system
 * prompt is computed, kept and written once: by reference where another has it in memory, under its key
 * (store/chunkfile.h) where it is on flash. What differs is never shared, and nothing is between owners
 * (invariant 7: not even how long a call takes). A fork shares its partly filled last chunk too, which is
 * copied before either writes on in it (kv/sequence.h). The worker's alone. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "service/service_internal.h"

static bool is_deleted(struct service *service, const struct context *context)
{
    pthread_mutex_lock(&service->lock);
    bool deleted = context->deleted;
    pthread_mutex_unlock(&service->lock);
    return deleted;
}

/* ---- on flash ---- */

static bool find_stored(struct service *service, struct kv_chunk *chunk, const struct chunk_key *key)
{
    struct segment *segment;
    uint32_t index;
    if (chunk_store_find(service->store, key, &segment, &index) < 0)
        return false;
    const struct segment_chunk *stored = segment_chunk(segment, index);
    const struct levels_rules *rules = &service->policy->levels;
    bool lowered = rules->rule != LEVELS_KEEP && kv_level_bits(stored->level) < service->kv_level &&
                   stored->level == levels_tag(rules, kv_level_bits(stored->level));
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

/* ---- in memory ---- */

/* Of two chunks of the same tokens: the one in memory, the one less lowered. */
static bool better(const struct kv_chunk *chunk, const struct kv_chunk *than)
{
    if (chunk->tokens < KV_CHUNK_TOKENS || (!chunk->data && chunk->stored_tokens < KV_CHUNK_TOKENS))
        return false;
    if (!than || !chunk->data != !than->data)
        return !than || chunk->data;
    return chunk->data ? kv_level_bits(chunk->level) > kv_level_bits(than->level)
                       : kv_level_bits(chunk->stored_level) > kv_level_bits(than->stored_level);
}

static bool may_share(struct service *service, const struct context *with, const struct context *context)
{
    if (with == context || !with->loaded || strcmp(with->owner, context->owner) != 0)
        return false;
    return !is_deleted(service, with);
}

/* found[i]: the best chunk that another context in memory has for chunk i of the context's tokens up to
 * `limit`; NULL: none. */
static void find_resident(struct service *service, const struct context *context, size_t limit,
                          struct kv_chunk **found)
{
    for (const struct context *with = service->resident; with; with = with->next_resident) {
        if (!may_share(service, with, context))
            continue;
        size_t common = tokens_common(&with->tokens, &context->tokens);
        common = common < limit ? common : limit;
        common = common < with->sequence.tokens ? common : with->sequence.tokens;
        for (size_t i = 0; i < common / KV_CHUNK_TOKENS; i++)
            if (better(with->sequence.chunks[i], found[i]))
                found[i] = with->sequence.chunks[i];
    }
}

/* ---- a context's beginning ---- */

/* Appends a chunk of the context's own over the next `tokens` tokens; *key goes on to its end. At the end of
 * what was computed, the last token may be taken off that (find_last). */
static int attach_own(struct service *service, struct context *context, size_t tokens, bool last,
                      struct chunk_key *key)
{
    struct kv_sequence *sequence = &context->sequence;
    struct kv_chunk *chunk = kv_chunk_create((uint32_t)sequence->tokens);
    int code = 0;
    if (!chunk)
        return -ENOMEM;
    chunk->tokens = (uint8_t)tokens;
    if (service->store && last) {
        find_last(service, context, chunk, key);
    } else if (service->store) {
        chunk_key_next(service->store, key, context->tokens.ids + sequence->tokens, tokens);
        find_stored(service, chunk, key);
    }
    if (last && tokens == 1 && service->store && !chunk->stored) /* most likely a reply's, never computed */
        context->computed--;
    else
        code = kv_sequence_attach(sequence, chunk);
    kv_chunk_release(service->pool, chunk);
    return code;
}

/* Appends the chunk that another holds. */
static int attach_shared(struct service *service, struct context *context, struct kv_chunk *chunk,
                         struct chunk_key *key)
{
    const int32_t *ids = context->tokens.ids + context->sequence.tokens;
    if (service->store)
        chunk_key_next(service->store, key, ids, KV_CHUNK_TOKENS);
    return kv_sequence_attach(&context->sequence, chunk);
}

int share_attach(struct service *service, struct context *context)
{
    struct kv_sequence *sequence = &context->sequence;
    struct kv_chunk **found = mem_calloc(context->computed / KV_CHUNK_TOKENS + 1, sizeof(struct kv_chunk *));
    struct chunk_key key;
    int code = 0;
    if (!found)
        return -ENOMEM;
    if (service->store)
        chunk_key_start(service->store, context->owner, &key);
    find_resident(service, context, context->computed, found);
    while (sequence->tokens < context->computed && code == 0) {
        size_t left = context->computed - sequence->tokens;
        struct kv_chunk *shared = found[sequence->tokens / KV_CHUNK_TOKENS];
        if (shared)
            code = attach_shared(service, context, shared, &key);
        else
            code = attach_own(service, context, left < KV_CHUNK_TOKENS ? left : KV_CHUNK_TOKENS,
                              left <= KV_CHUNK_TOKENS, &key);
    }
    mem_free(found);
    return code;
}

int share_extend(struct service *service, struct context *context, size_t limit)
{
    struct kv_sequence *sequence = &context->sequence;
    size_t first = sequence->tokens / KV_CHUNK_TOKENS, end = limit / KV_CHUNK_TOKENS;
    struct chunk_key key;
    int code = 0;
    if (sequence->tokens % KV_CHUNK_TOKENS || end <= first)
        return 0;
    struct kv_chunk **found = mem_calloc(end, sizeof(struct kv_chunk *));
    if (!found)
        return -ENOMEM;
    find_resident(service, context, limit, found);
    if (service->store)
        chunk_key_start(service->store, context->owner, &key);
    for (size_t i = 0; i < end && code == 0; i++) {
        struct kv_chunk *chunk = NULL;
        if (service->store)
            chunk_key_next(service->store, &key, context->tokens.ids + i * KV_CHUNK_TOKENS, KV_CHUNK_TOKENS);
        if (i < first)
            continue;
        if (!found[i] && service->store && (chunk = kv_chunk_create((uint32_t)sequence->tokens))) {
            chunk->tokens = KV_CHUNK_TOKENS;
            if (find_stored(service, chunk, &key))
                found[i] = chunk;
        }
        if (found[i])
            code = kv_sequence_attach(sequence, found[i]);
        kv_chunk_release(service->pool, chunk);
        if (!found[i])
            break;
    }
    mem_free(found);
    if (code == 0 && context->computed < sequence->tokens)
        context->computed = sequence->tokens;
    return code;
}

/* ---- forks ---- */

/* What the journal says of the copy, and the source's tokens. */
static bool copy_facts(struct context *copy, const struct context *source,
                       const struct journal_context *record)
{
    if (tokens_append_all(&copy->tokens, source->tokens.ids, source->tokens.count) < 0)
        return false;
    copy->base_count = source->base_count;
    copy->computed = source->computed;
    copy->record = *record;
    copy->record.owner = mem_strdup(record->owner);
    copy->record.name = mem_strdup(record->name);
    copy->record.system_prompt = mem_strdup(record->system_prompt);
    return copy->record.owner && copy->record.name && copy->record.system_prompt;
}

void share_fork(struct service *service, struct context *source, const struct journal_context *record)
{
    if (!source->loaded || source->sequence.tokens == 0)
        return;
    pthread_mutex_lock(&service->lock);
    struct context *copy = context_find(service, record->id) /* a call came before us: leave it to that */
                               ? NULL
                               : context_hold(service, record->owner, record->id);
    pthread_mutex_unlock(&service->lock);
    if (!copy)
        return;
    copy->loaded =
        copy_facts(copy, source, record) && kv_sequence_share(&copy->sequence, &source->sequence) == 0;
    if (!copy->loaded) { /* read from the journal when it is called */
        tokens_deinit(&copy->tokens);
        journal_context_deinit(&copy->record);
    }
    residency_enter(service, copy);
    residency_settle(service, copy);
    pthread_mutex_lock(&service->lock);
    context_release(service, copy);
    pthread_mutex_unlock(&service->lock);
}

/* ---- files ---- */

void share_files(struct service *service, struct context *context)
{
    const struct segment *last = NULL;
    if (is_deleted(service, context))
        return;
    for (size_t i = 0; service->store && i < context->sequence.chunk_count; i++) {
        struct kv_chunk *chunk = context->sequence.chunks[i];
        if (!chunk->stored || chunk->stored == last)
            continue;
        last = chunk->stored;
        int code = segment_link(service->store, chunk->stored, context->id);
        if (code < 0 && code != -ESTALE)
            log_debug("%s does not get a file it shares: %s", context->id, strerror(-code));
        if (!segment_alive(last) && chunk->data && !chunk->writing) {
            kv_chunk_forget_stored(service->pool, chunk); /* written anew, for this context */
            context->unsaved = true;
            last = NULL;
        }
    }
}

void share_rewritten(struct service *service, struct kv_chunk *const *chunks, size_t count)
{
    uint64_t mark = ++service->mark;
    for (size_t i = 0; i < count; i++)
        chunks[i]->mark = mark;
    for (struct context *context = service->resident; context; context = context->next_resident)
        for (size_t i = 0; i < context->sequence.chunk_count && !context->unsaved; i++)
            context->unsaved = context->sequence.chunks[i]->mark == mark;
}
