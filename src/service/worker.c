/* The worker: the one thread that computes and that touches KV. Takes one job after the other off the queue.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "service/service_internal.h"

enum { SETTLE_MS = 3 }; /* what the next call may have to wait for the last one's settling */

static int run_fork(struct service *service, struct call *call, struct error *error)
{
    struct context *source = call->context;
    int code = atomic_load(&call->cancelled);
    if (code < 0)
        return error_set(error, code, "%s", call_cancel_words(code));
    code = journal_context_fork(service->journal, source->owner, source->id, call->fork_name,
                                service->contexts_per_app, &call->forked, error);
    if (code < 0)
        return code;
    pthread_mutex_lock(&service->lock);
    service->status.contexts++;
    pthread_mutex_unlock(&service->lock);
    share_fork(service, source, &call->forked);
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

/* Chunks of all levels come and go between small things that stay: what is free between those is the
 * system's. Under the lock. */
static void trim(struct service *service)
{
    pthread_mutex_unlock(&service->lock);
    mem_trim();
    pthread_mutex_lock(&service->lock);
}

void *worker_main(void *argument)
{
    struct service *service = argument;
    bool trimmed = true; /* since the last job */
    pthread_mutex_lock(&service->lock);
    for (;;) {
        if (must_sweep(service)) {
            pthread_mutex_unlock(&service->lock);
            residency_sweep(service);
            pthread_mutex_lock(&service->lock);
        }
        pthread_mutex_unlock(&service->lock);
        swapout_finish(service, false);
        if (service->store)
            chunk_store_trim(service->store);
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
            trimmed = false;
            call_finish(call, &result);
        } else if (service->quit) {
            break;
        } else if (!more && !must_tend(service)) {
            if (trimmed)
                rest(service);
            else
                trim(service);
            trimmed = true;
        }
    }
    pthread_mutex_unlock(&service->lock);
    swapout_finish(service, true);
    residency_sweep(service);
    residency_drop_all(service);
    return NULL;
}
