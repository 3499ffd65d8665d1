/* The service's public face: opening, stopping, contexts, the whole. Calls: call.c. */
#include "service/service.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/parse.h"
#include "base/utf8.h"
#include "service/service_internal.h"

enum { QUEUE_LIMIT = 256, CONTEXT_LEAST = 64, READS_AT_ONCE = 16 };

/* ---- opening and closing ---- */

static int check_options(struct service *service, const struct service_options *options, struct error *error)
{
    const struct engine_model *model = engine_model(service->engine);
    service->context_length = options->context_length ? options->context_length : model->context_length;
    if (service->context_length > model->context_length)
        return error_set(error, -EINVAL, "a context of %u tokens is more than the model's %u",
                         service->context_length, model->context_length);
    if (service->context_length < CONTEXT_LEAST)
        return error_set(error, -EINVAL, "a context of %u tokens is too short: %d at least",
                         service->context_length, CONTEXT_LEAST);
    uint64_t chunk = kv_chunk_bytes(&model->kv, service->chosen.write_level);
    if (options->kv_budget_bytes < chunk)
        return error_set(error, -EINVAL,
                         "a KV budget of %" PRIu64 " bytes holds nothing: a chunk is %" PRIu64,
                         options->kv_budget_bytes, chunk);
    if (options->kv_budget_bytes / chunk < kv_chunks_of(service->context_length))
        log_warning("the KV budget holds %" PRIu64 " tokens, less than one full context of %u",
                    options->kv_budget_bytes / chunk * KV_CHUNK_TOKENS, service->context_length);
    service->kv_level = service->chosen.write_level;
    service->contexts_per_app = options->contexts_per_app;
    service->queue_limit = options->queue_limit ? options->queue_limit : QUEUE_LIMIT;
    return 0;
}

/* LLMS_STRESS=evict, or evict,SHARE: everything leaves memory after each call, and that share (0 to 1) of
 * what could be read back is recomputed instead. LLMS_STRESS=random,SEED: as service_options.evict_random.
 * For running the tests under it. */
static void stress_from_environment(struct service *service)
{
    const char *stress = getenv("LLMS_STRESS");
    if (stress && strncmp(stress, "random,", 7) == 0)
        (void)parse_u64(stress + 7, 0, UINT64_MAX, &service->evict_random.state);
    if (!stress || strncmp(stress, "evict", 5) != 0)
        return;
    service->evict_all = true;
    if (stress[5] == ',' && parse_double(stress + 6, 0, 1, &service->plan_share) == 0)
        service->plan_mode = PLAN_FORCED;
}

static int choose_policy(struct service *service, const struct service_options *options, struct error *error)
{
    size_t count;
    const struct kv_policy *row = options->policy ? kv_policy_find(options->policy) : kv_policy_list(&count);
    if (!row)
        return error_set(error, -EINVAL, "there is no policy \"%s\"", options->policy);
    service->chosen = *row;
    service->policy = &service->chosen;
    struct kv_policy *p = &service->chosen;
    if (options->kv_levels) {
        p->write_level = options->kv_levels & LEVELS_16 ? 16 : 8;
        p->levels.allowed = options->kv_levels;
        if (options->kv_levels & LEVELS_3 && p->levels.codec)
            return error_set(error, -EINVAL, "policy \"%s\" has no level of 3 bits", p->name);
        if (!(options->kv_levels & (LEVELS_4 | LEVELS_3 | LEVELS_2)))
            p->levels.rule = LEVELS_KEEP;
    }
    if (options->kv_ratio > 0)
        p->levels.ratio = options->kv_ratio;
    if (options->evict && evict_order_find(options->evict, &p->evict) < 0)
        return error_set(error, -EINVAL, "there is no eviction order \"%s\" (lctru, lru and cost are)",
                         options->evict);
    service->plan_mode = options->force_split ? PLAN_FORCED : p->plan;
    service->plan_share = options->recompute_share;
    service->evict_all = options->evict_all;
    service->evict_random.state = options->evict_random;
    stress_from_environment(service);
    rates_init(&service->rates, NULL);
    return 0;
}

static int open_journal(struct service *service, const char *directory, struct error *error)
{
    struct buffer vocabulary = {0};
    struct journal_context *contexts = NULL;
    size_t count = 0;
    int code = transcript_vocabulary(service->rules.tokenizer, &vocabulary);
    if (code < 0)
        error_set(error, code, "out of memory");
    if (code == 0)
        code = journal_open(directory, vocabulary.data, &service->journal, error);
    buffer_deinit(&vocabulary);
    if (code == 0)
        code = journal_context_list(service->journal, NULL, &contexts, &count, error);
    if (code == 0) {
        service->status.contexts = count;
        journal_contexts_free(contexts, count);
    }
    return code;
}

static void release_stored(void *argument, void *stored)
{
    segment_unref(((struct service *)argument)->store, stored);
}

static int open_memory(struct service *service, uint64_t budget_bytes, struct error *error)
{
    const struct engine_model *model = engine_model(service->engine);
    service->logits = mem_calloc(model->vocabulary, sizeof *service->logits);
    service->lowered = mem_aligned(64, kv_chunk_bytes(&model->kv, 8));
    if (!service->logits || !service->lowered || kv_pool_create(&model->kv, budget_bytes, &service->pool) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    service->budget = service->target = budget_bytes;
    kv_pool_on_release(service->pool, release_stored, service);
    int code = aio_create(AIO_BEST, READS_AT_ONCE, &service->aio);
    return code < 0 ? error_set(error, code, "cannot start asynchronous reads: %s", strerror(-code)) : 0;
}

struct known {
    struct journal_context *contexts;
    size_t count;
};

static bool known_context(void *argument, const char *id)
{
    const struct known *known = argument;
    for (size_t i = 0; i < known->count; i++)
        if (strcmp(known->contexts[i].id, id) == 0)
            return true;
    return false;
}

/* Chunk files beside the journal. They are a cache: a daemon whose disk refuses them serves without. */
static int open_store(struct service *service, const char *state_directory, struct error *error)
{
    const struct engine_model *model = engine_model(service->engine);
    struct chunk_geometry geometry = {.layers = model->kv.layers};
    struct buffer path = {0};
    if (!service->policy->stores)
        return 0;
    for (int i = 0; i < CHUNK_LEVELS; i++)
        geometry.layer_bytes[i] = (uint32_t)kv_layer_bytes(&model->kv, chunk_levels[i]);
    struct known known = {0};
    int code = journal_context_list(service->journal, NULL, &known.contexts, &known.count, error);
    if (code == 0 && (code = buffer_printf(&path, "%s/chunks", state_directory)) < 0)
        error_set(error, code, "out of memory");
    if (code == 0) {
        code = chunk_store_open(path.data, model->fingerprint, &geometry, known_context, &known,
                                &service->store, error);
        if (code < 0 && code != -ENOMEM) {
            log_warning("%s; what leaves memory will be computed again",
                        error ? error->text : strerror(-code));
            service->chosen.stores = false;
            code = 0;
        }
    }
    journal_contexts_free(known.contexts, known.count);
    buffer_deinit(&path);
    return code;
}

static int start(struct service *service, struct error *error)
{
    int code = -pthread_mutex_init(&service->lock, NULL);
    if (code < 0)
        goto no_lock;
    code = condition_init(&service->work);
    if (code < 0)
        goto no_work;
    code = condition_init(&service->idle);
    if (code < 0)
        goto no_idle;
    code = condition_init(&service->write);
    if (code < 0)
        goto no_write;
    code = -pthread_create(&service->writer, NULL, swapout_main, service);
    if (code < 0)
        goto no_writer;
    code = -pthread_create(&service->worker, NULL, worker_main, service);
    if (code == 0)
        return 0;
    pthread_mutex_lock(&service->lock);
    service->writer_quit = true;
    pthread_cond_signal(&service->write);
    pthread_mutex_unlock(&service->lock);
    pthread_join(service->writer, NULL);
no_writer:
    pthread_cond_destroy(&service->write);
no_write:
    pthread_cond_destroy(&service->idle);
no_idle:
    pthread_cond_destroy(&service->work);
no_work:
    pthread_mutex_destroy(&service->lock);
no_lock:
    return error_set(error, code, "cannot start the worker: %s", strerror(-code));
}

static void release(struct service *service)
{
    aio_destroy(service->aio);
    restore_release(service);
    kv_pool_destroy(service->pool);
    chunk_store_close(service->store);
    journal_close(service->journal);
    mem_free(service->logits);
    mem_free(service->lowered);
    engine_close(service->engine);
    mem_free(service);
}

int service_open(const struct service_options *options, struct service **out, struct error *error)
{
    struct service *service = mem_calloc(1, sizeof *service);
    if (!service)
        return error_set(error, -ENOMEM, "out of memory");
    struct engine_options engine = {.model_path = options->model_path, .threads = options->threads};
    service->opened_ns = clock_ns();
    mem_set_large_apart(); /* chunks */
    int code = engine_open(&engine, &service->engine, error);
    if (code < 0)
        goto failed;
    service->rules.chat = engine_model(service->engine)->chat;
    service->rules.tokenizer = engine_tokenizer(service->engine);
    code = choose_policy(service, options, error);
    if (code == 0)
        code = check_options(service, options, error);
    if (code == 0)
        code = open_memory(service, options->kv_budget_bytes, error);
    if (code == 0)
        code = open_journal(service, options->state_directory, error);
    if (code == 0)
        code = open_store(service, options->state_directory, error);
    if (code == 0)
        code = start(service, error);
    if (code < 0)
        goto failed;
    budget_watch(service, options);
    *out = service;
    return 0;
failed:
    release(service);
    return code;
}

/* Under the lock: waits until no call runs, at most until the deadline (NULL: as long as it takes). */
static void await_idle(struct service *service, const struct timespec *deadline)
{
    while (service->running)
        if (!deadline)
            pthread_cond_wait(&service->idle, &service->lock);
        else if (pthread_cond_timedwait(&service->idle, &service->lock, deadline) != 0)
            return;
}

void service_stop(struct service *service, unsigned grace_ms)
{
    struct timespec deadline = condition_deadline(grace_ms);
    pthread_mutex_lock(&service->lock);
    service->stopping = true;
    for (struct call *call = service->calls, *next; call; call = next) {
        next = call->next;
        if (call != service->running)
            call_cancel_locked(call, -ESHUTDOWN);
    }
    await_idle(service, &deadline);
    if (service->running)
        call_cancel_locked(service->running, -ESHUTDOWN);
    await_idle(service, NULL);
    pthread_mutex_unlock(&service->lock);
}

void service_close(struct service *service)
{
    if (!service)
        return;
    service_stop(service, 0);
    pressure_close(service->pressure);
    pthread_mutex_lock(&service->lock);
    service->quit = true;
    pthread_cond_signal(&service->work);
    pthread_mutex_unlock(&service->lock);
    pthread_join(service->worker, NULL);
    pthread_mutex_lock(&service->lock);
    service->writer_quit = true;
    pthread_cond_signal(&service->write);
    pthread_mutex_unlock(&service->lock);
    pthread_join(service->writer, NULL);
    queue_deinit(&service->queue);
    buffer_deinit(&service->deleted);
    pthread_cond_destroy(&service->write);
    pthread_cond_destroy(&service->idle);
    pthread_cond_destroy(&service->work);
    pthread_mutex_destroy(&service->lock);
    release(service);
}

const struct engine_model *service_model(const struct service *service)
{
    return engine_model(service->engine);
}

const struct tokenizer *service_tokenizer(const struct service *service)
{
    return service->rules.tokenizer;
}

/* ---- contexts ---- */

void context_info_deinit(struct context_info *info)
{
    journal_context_deinit(&info->record);
    *info = (struct context_info){0};
}

void context_infos_free(struct context_info *infos, size_t count)
{
    for (size_t i = 0; i < count; i++)
        context_info_deinit(&infos[i]);
    mem_free(infos);
}

/* Chunks in the context's files. The store locks for itself, and may hold that while it removes a file, so
 * this is asked before the service's lock is taken. */
static uint64_t filed_chunks(struct service *service, const char *id)
{
    return service->store ? chunk_store_count(service->store, id) : 0;
}

/* Under the lock: where the KV of the context of info->record is. filed: filed_chunks. */
static void describe(struct service *service, struct context_info *info, uint64_t filed)
{
    const struct context *context = context_find(service, info->record.id);
    info->tokens = info->record.tokens;
    if (context) {
        const struct context_shown *shown = &context->shown;
        /* a turn that is journalled just now is not in what the worker published last */
        info->tokens_resident = shown->tokens_resident < info->tokens ? shown->tokens_resident : info->tokens;
        info->chunks_level16 = shown->levels[0];
        info->chunks_level8 = shown->levels[1];
        info->chunks_level4 = shown->levels[2];
        info->chunks_level3 = shown->levels[3];
        info->chunks_level2 = shown->levels[4];
        for (int i = 0; i < KV_LEVELS; i++)
            info->chunks_resident += shown->levels[i];
        info->bytes_resident = shown->bytes;
        info->busy = context->jobs > 0;
    }
    uint64_t stored = context && context->shown.bytes ? context->shown.stored : filed;
    uint64_t chunks = kv_chunks_of(info->tokens);
    uint64_t absent = chunks > info->chunks_resident ? chunks - info->chunks_resident : 0;
    info->chunks_stored = stored < absent ? stored : absent;
    info->chunks_missing = absent - info->chunks_stored;
}

/* The system prompt's tokens; -E2BIG where no prompt would fit behind them. */
static int measure_system_prompt(struct service *service, const char *system_prompt, uint64_t *base_count,
                                 struct error *error)
{
    struct tokens tokens = {0};
    int code = transcript_base(&service->rules, system_prompt, &tokens, error);
    *base_count = tokens.count;
    if (code == 0) /* with the shortest prompt, which holds it if the base does not, and a token of reply */
        code = transcript_prompt(&service->rules, system_prompt, tokens.count, true, "?", 1, &tokens, error);
    if (code == 0 && tokens.count >= service->context_length)
        code = error_set(error, -E2BIG, "a system prompt of %zu tokens leaves no room in a context of %u",
                         tokens.count, service->context_length);
    tokens_deinit(&tokens);
    return code;
}

int service_context_new(struct service *service, const char *owner, const char *name,
                        const char *system_prompt, struct context_info *out, struct error *error)
{
    const char *texts[3] = {owner, name ? name : "", system_prompt ? system_prompt : ""};
    struct journal_context record = {0};
    for (int i = 0; i < 3; i++)
        if (!utf8_valid(texts[i], strlen(texts[i])))
            return error_set(error, -EINVAL, "a context's %s is not valid UTF-8",
                             i == 0 ? "owner" : (i == 1 ? "name" : "system prompt"));
    int code = measure_system_prompt(service, texts[2], &record.tokens, error);
    if (code < 0)
        return code;
    record.owner = mem_strdup(texts[0]);
    record.name = mem_strdup(texts[1]);
    record.system_prompt = mem_strdup(texts[2]);
    if (!record.owner || !record.name || !record.system_prompt)
        code = error_set(error, -ENOMEM, "out of memory");
    pthread_mutex_lock(&service->lock);
    bool stopping = service->stopping;
    pthread_mutex_unlock(&service->lock);
    if (code == 0 && stopping)
        code = error_set(error, -ESHUTDOWN, "%s", call_cancel_words(-ESHUTDOWN));
    if (code == 0)
        code = journal_context_create(service->journal, &record, service->contexts_per_app, error);
    if (code < 0) {
        journal_context_deinit(&record);
        return code;
    }
    *out = (struct context_info){.record = record};
    pthread_mutex_lock(&service->lock);
    service->status.contexts++;
    describe(service, out, 0);
    pthread_mutex_unlock(&service->lock);
    return 0;
}

int service_context_get(struct service *service, const char *owner, const char *id, struct context_info *out,
                        struct error *error)
{
    struct context_info info = {0};
    int code = journal_context_get(service->journal, owner, id, &info.record, error);
    if (code < 0)
        return code;
    uint64_t filed = filed_chunks(service, id);
    pthread_mutex_lock(&service->lock);
    describe(service, &info, filed);
    pthread_mutex_unlock(&service->lock);
    *out = info;
    return 0;
}

int service_context_list(struct service *service, const char *owner, struct context_info **out, size_t *count,
                         struct error *error)
{
    struct journal_context *records = NULL;
    size_t n = 0;
    int code = journal_context_list(service->journal, owner, &records, &n, error);
    if (code < 0)
        return code;
    struct context_info *infos = mem_calloc(n, sizeof *infos);
    if (!infos) {
        journal_contexts_free(records, n);
        return error_set(error, -ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < n; i++) {
        infos[i].record = records[i]; /* taken over */
        infos[i].chunks_stored = filed_chunks(service, records[i].id);
    }
    pthread_mutex_lock(&service->lock);
    for (size_t i = 0; i < n; i++)
        describe(service, &infos[i], infos[i].chunks_stored);
    pthread_mutex_unlock(&service->lock);
    mem_free(records);
    *out = infos;
    *count = n;
    return 0;
}

int service_context_turns(struct service *service, const char *owner, const char *id,
                          struct journal_turn **out, size_t *count, struct error *error)
{
    struct journal_context record = {0};
    int code = journal_context_get(service->journal, owner, id, &record, error); /* invariant 7 */
    if (code < 0)
        return code;
    journal_context_deinit(&record);
    return journal_turns(service->journal, id, 0, out, count, error);
}

int service_fork_start(struct service *service, const char *owner, const char *id, const char *name,
                       struct call **out, struct error *error)
{
    struct journal_context record = {0};
    struct call *call = NULL;
    if (name && !utf8_valid(name, strlen(name)))
        return error_set(error, -EINVAL, "a context's name is not valid UTF-8");
    int code = journal_context_get(service->journal, owner, id, &record, error); /* invariant 7 */
    if (code < 0)
        return code;
    journal_context_deinit(&record);
    code = call_create(service, CALL_KIND_FORK, NULL, &call);
    if (code < 0)
        return error_set(error, code, "out of memory");
    if (name && !(call->fork_name = mem_strdup(name)))
        code = error_set(error, -ENOMEM, "out of memory");
    if (code == 0)
        code = call_enqueue(service, call, owner, id, error);
    if (code < 0)
        call_unref(call);
    else
        *out = call;
    return code;
}

void service_forked(struct service *service, struct call *call, struct context_info *out)
{
    struct context_info info = {.record = call->forked}; /* taken over */
    call->forked = (struct journal_context){0};
    pthread_mutex_lock(&service->lock);
    describe(service, &info, 0);
    pthread_mutex_unlock(&service->lock);
    *out = info;
}

int service_context_fork(struct service *service, const char *owner, const char *id, const char *name,
                         struct context_info *out, struct error *error)
{
    struct call *call = NULL;
    int code = service_fork_start(service, owner, id, name, &call, error);
    if (code < 0)
        return code;
    call_await(call);
    code = call->result.code;
    if (code < 0)
        error_set(error, code, "%s", call->result.error.text);
    else
        service_forked(service, call, out);
    call_unref(call);
    return code;
}

/* Under the lock: ends the context's calls and waits until none of them runs. */
static void cancel_calls(struct service *service, const struct context *context)
{
    for (struct call *call = service->calls, *next; call; call = next) {
        next = call->next;
        if (call->context == context)
            call_cancel_locked(call, -ECANCELED);
    }
    while (service->running && service->running->context == context)
        pthread_cond_wait(&service->idle, &service->lock);
}

int service_context_delete(struct service *service, const char *owner, const char *id, struct error *error)
{
    struct journal_context record = {0};
    int code = journal_context_get(service->journal, owner, id, &record, error); /* invariant 7 */
    if (code < 0)
        return code;
    journal_context_deinit(&record);
    pthread_mutex_lock(&service->lock);
    struct context *context = context_hold(service, owner, id);
    if (!context) {
        code = error_set(error, -ENOMEM, "out of memory");
        goto unlock;
    }
    if (context->deleted) { /* another deletes it just now */
        code = error_set(error, -ENOENT, "no such context: %.64s", id);
        goto release;
    }
    context->deleted = true; /* no new calls from here on */
    cancel_calls(service, context);
    pthread_mutex_unlock(&service->lock);
    code = journal_context_delete(service->journal, owner, id, error);
    pthread_mutex_lock(&service->lock);
    if (code == 0) {
        service->status.contexts--;
        service->sweep =
            true; /* its KV is the worker's to drop; its files, if memory is short, the next start's */
        (void)buffer_append(&service->deleted, context->id, JOURNAL_ID_BYTES);
        pthread_cond_signal(&service->work);
    } else {
        context->deleted = false;
    }
release:
    context_release(service, context);
unlock:
    pthread_mutex_unlock(&service->lock);
    return code;
}

/* ---- the whole ---- */

void service_status(struct service *service, struct service_status *out)
{
    pthread_mutex_lock(&service->lock);
    *out = service->status;
    out->contexts_resident = 0;
    for (const struct context *context = service->table; context; context = context->next)
        out->contexts_resident += context->shown.bytes > 0;
    out->calls_running = service->running != NULL;
    out->calls_waiting = service->queue.count;
    out->stored_bytes = service->store ? chunk_store_bytes(service->store) : 0;
    out->kv_budget_bytes = service->budget;
    out->kv_allowed_bytes = service->target;
    out->pressure = service->pressed;
    pthread_mutex_unlock(&service->lock);
    out->uptime_ms = (uint64_t)clock_ms_since(service->opened_ns);
    out->kv_resident_bytes = kv_pool_resident(service->pool);
    out->kv_level = service->kv_level;
    if (service->policy->levels.rule == LEVELS_KEEP) {
        out->kv_levels = service->kv_level == 16 ? LEVELS_16 : LEVELS_8;
        out->kv_ratio = 0;
    } else {
        out->kv_levels = service->policy->levels.allowed;
        out->kv_ratio = service->policy->levels.ratio;
    }
    out->policy = service->policy->name;
    out->evict = evict_order_name(service->policy->evict);
    out->context_length = service->context_length;
    out->contexts_per_app = service->contexts_per_app;
    out->threads = engine_threads(service->engine);
    out->isa = engine_isa(service->engine);
}
