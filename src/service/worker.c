/* The worker: the one thread that computes and that touches KV. Takes one job after the other off the queue.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "service/service_internal.h"

enum { SETTLE_MS = 3 }; /* what the next call may have to wait for the last one's settling */

/* Lets the copy begin with the source's chunks. It can always be computed from its tokens instead, so nothing
 * that goes wrong here matters. */
static void share(struct service *service, struct context *source, const struct journal_context *record)
{
    struct tokens tokens = {0};
    if (!source->loaded || source->sequence.tokens == 0 ||
        tokens_append_all(&tokens, source->tokens.ids, source->tokens.count) < 0)
        return;
    pthread_mutex_lock(&service->lock);
    struct context *copy = context_find(service, record->id) /* a call came before us: leave it to that */
                               ? NULL
                               : context_hold(service, record->owner, record->id);
    pthread_mutex_unlock(&service->lock);
    if (!copy) {
        tokens_deinit(&tokens);
        return;
    }
    if (kv_sequence_share(&copy->sequence, &source->sequence) == 0) {
        copy->tokens = tokens;
        copy->base_count = source->base_count;
        copy->computed = source->computed;
        copy->record = *record;
        copy->record.owner = mem_strdup(record->owner);
        copy->record.name = mem_strdup(record->name);
        copy->record.system_prompt = mem_strdup(record->system_prompt);
        copy->loaded = copy->record.owner && copy->record.name && copy->record.system_prompt;
    }
    if (!copy->loaded) { /* read from the journal when it is called */
        kv_sequence_truncate(&copy->sequence, 0);
        if (copy->tokens.ids)
            tokens_deinit(&copy->tokens);
        else
            tokens_deinit(&tokens);
        journal_context_deinit(&copy->record);
    }
    residency_enter(service, copy);
    residency_settle(service, copy);
    pthread_mutex_lock(&service->lock);
    context_release(service, copy);
    pthread_mutex_unlock(&service->lock);
}

static int run_fork(struct service *service, struct call *call, struct error *error)
{
    struct context *source = call->context;
    int code = journal_context_fork(service->journal, source->owner, source->id, call->fork_name,
                                    service->contexts_per_app, &call->forked, error);
    if (code < 0)
        return code;
    pthread_mutex_lock(&service->lock);
    service->status.contexts++;
    pthread_mutex_unlock(&service->lock);
    share(service, source, &call->forked);
    return 0;
}

/* Fills *result; called without the lock. */
static void run(struct service *service, struct call *call, struct call_result *result)
{
    struct turn turn = {.service = service,
                        .call = call,
                        .context = call->context,
                        .result = result,
                        .started_ns = clock_ns()};
    result->queue_ms = (double)(turn.started_ns - call->arrived_ns) / 1e6;
    switch (call->kind) {
    case CALL_KIND_TURN:
        result->code = turn_run(&turn);
        break;
    case CALL_KIND_PREPARE:
        result->code = turn_prepare(&turn);
        break;
    case CALL_KIND_FORK:
        result->code = run_fork(service, call, &result->error);
        break;
    }
    if (result->code < 0 && result->code != -ECANCELED && result->code != -ESHUTDOWN)
        log_warning("a call to %s failed: %s", call->context->id, result->error.text);
}

static struct call *call_of(struct queue_item *item)
{
    return (struct call *)(void *)((char *)item - offsetof(struct call, item));
}

/* Whether memory must be tended before the next job. Under the lock. */
static bool must_sweep(struct service *service)
{
    service->stretched = 0; /* it was the last call's */
    bool over = budget_apply(service), sweep = service->sweep || over;
    service->sweep = false;
    return sweep;
}

/* Whether something came in since the worker looked. Under the lock. */
static bool must_tend(const struct service *service)
{
    return service->sweep || service->swapped;
}

/* Until there is something to do. Under the lock. */
static void rest(struct service *service)
{
    unsigned due_ms = budget_due_ms(service);
    if (due_ms) {
        struct timespec deadline = condition_deadline(due_ms);
        pthread_cond_timedwait(&service->work, &service->lock, &deadline);
    } else {
        pthread_cond_wait(&service->work, &service->lock);
    }
}

void *worker_main(void *argument)
{
    struct service *service = argument;
    pthread_mutex_lock(&service->lock);
    for (;;) {
        if (must_sweep(service)) {
            pthread_mutex_unlock(&service->lock);
            residency_sweep(service);
            pthread_mutex_lock(&service->lock);
        }
        pthread_mutex_unlock(&service->lock);
        swapout_finish(service, false);
        bool more = settle_run(service, SETTLE_MS);
        pthread_mutex_lock(&service->lock);
        if (service->sweep) /* what was asked for before the next job goes before it */
            continue;
        struct queue_item *item = queue_pop(&service->queue);
        if (item) {
            struct call *call = service->running = call_of(item);
            struct call_result result = {0};
            pthread_mutex_unlock(&service->lock);
            run(service, call, &result);
            if (service->evict_all)
                residency_evict_all(service);
            if (service->evict_random.state)
                residency_evict_random(service);
            pthread_mutex_lock(&service->lock);
            service->running = NULL;
            call_finish(call, &result);
        } else if (service->quit) {
            break;
        } else if (!more && !must_tend(service)) {
            rest(service);
        }
    }
    pthread_mutex_unlock(&service->lock);
    swapout_finish(service, true);
    residency_sweep(service);
    residency_drop_all(service);
    return NULL;
}
