/* Calls: what an app waits on.
 *
 * A call is referred to by its caller and, until it is done, by the service. Text goes from the worker into
 * the call's buffer, which only the reply's length bounds: a slow reader never holds the worker up. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "service/service_internal.h"

int condition_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    int code = -pthread_condattr_init(&attributes);
    if (code < 0)
        return code;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    code = -pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return code;
}

struct timespec condition_deadline(unsigned timeout_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += timeout_ms / 1000;
    t.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

/* ---- life ---- */

static void destroy(struct call *call)
{
    for (size_t i = 0; i < call->stop_count; i++)
        mem_free(call->stops[i]);
    mem_free(call->stops);
    mem_free(call->prompt);
    mem_free(call->fork_name);
    journal_context_deinit(&call->forked);
    buffer_deinit(&call->text);
    pthread_cond_destroy(&call->changed);
    pthread_mutex_destroy(&call->lock);
    mem_free(call);
}

static int copy_request(struct call *call, const struct call_params *params)
{
    call->max_tokens = params->max_tokens;
    call->sampling = params->sampling;
    call->overflow = params->overflow;
    call->prompt_length = params->prompt_length;
    call->prompt = mem_alloc(params->prompt_length + 1);
    if (!call->prompt)
        return -ENOMEM;
    if (params->prompt_length)
        memcpy(call->prompt, params->prompt, params->prompt_length);
    call->prompt[params->prompt_length] = 0;
    call->stops = mem_calloc(params->stop_count, sizeof *call->stops);
    if (!call->stops)
        return -ENOMEM;
    for (; call->stop_count < params->stop_count; call->stop_count++) {
        call->stops[call->stop_count] = mem_strdup(params->stop[call->stop_count]);
        if (!call->stops[call->stop_count])
            return -ENOMEM;
    }
    return 0;
}

int call_create(struct service *service, enum call_kind kind, const struct call_params *params,
                struct call **out)
{
    struct call *call = mem_calloc(1, sizeof *call);
    if (!call)
        return -ENOMEM;
    int code = -pthread_mutex_init(&call->lock, NULL);
    if (code < 0)
        goto no_lock;
    code = condition_init(&call->changed);
    if (code < 0)
        goto no_condition;
    call->service = service;
    call->kind = kind;
    call->arrived_ns = clock_ns();
    atomic_store(&call->references, 1);
    code = params ? copy_request(call, params) : 0;
    if (code < 0) {
        destroy(call);
        return code;
    }
    *out = call;
    return 0;
no_condition:
    pthread_mutex_destroy(&call->lock);
no_lock:
    mem_free(call);
    return code;
}

void call_unref(struct call *call)
{
    if (atomic_fetch_sub(&call->references, 1) == 1)
        destroy(call);
}

/* ---- between the service and the caller ---- */

int call_enqueue(struct service *service, struct call *call, const char *owner, const char *id,
                 struct error *error)
{
    int code = 0;
    pthread_mutex_lock(&service->lock);
    struct context *context = NULL;
    if (service->stopping) {
        code = error_set(error, -ESHUTDOWN, "%s", call_cancel_words(-ESHUTDOWN));
    } else if (service->queue.count >= service->queue_limit) {
        code = error_set(error, -EAGAIN, "too many calls wait (%zu): try again later", service->queue.count);
    } else if (!(context = context_hold(service, owner, id))) {
        code = error_set(error, -ENOMEM, "out of memory");
    } else if (context->deleted) {
        code = error_set(error, -ENOENT, "no such context: %.64s", id);
    } else if (queue_push(&service->queue, owner, &call->item) < 0) {
        code = error_set(error, -ENOMEM, "out of memory");
    }
    if (code < 0) {
        if (context)
            context_release(service, context);
        goto unlock;
    }
    call->context = context;
    atomic_fetch_add(&call->references, 1);
    call->next = service->calls;
    call->previous = &service->calls;
    if (call->next)
        call->next->previous = &call->next;
    service->calls = call;
    pthread_cond_signal(&service->work);
unlock:
    pthread_mutex_unlock(&service->lock);
    return code;
}

int call_deliver(struct call *call, const char *text, size_t length)
{
    pthread_mutex_lock(&call->lock);
    int code = buffer_append(&call->text, text, length);
    if (code == 0)
        pthread_cond_signal(&call->changed);
    pthread_mutex_unlock(&call->lock);
    return code;
}

static void count_result(struct service_status *status, const struct call *call,
                         const struct call_result *result)
{
    if (call->kind == CALL_KIND_FORK)
        return;
    status->calls_total++;
    status->calls_cancelled += result->code == -ECANCELED || result->code == -ESHUTDOWN;
    status->calls_failed += result->code < 0 && result->code != -ECANCELED && result->code != -ESHUTDOWN;
    status->chunks_resident_total += result->chunks_resident;
    status->chunks_loaded_total += result->chunks_loaded;
    status->chunks_recomputed_total += result->chunks_recomputed;
    status->switch_ms_total += result->switch_ms;
    status->stall_ms_total += result->stall_ms;
    if (result->code < 0)
        return;
    status->prompt_tokens_total += result->prompt_tokens;
    status->reply_tokens_total += result->reply_tokens;
    status->ttft_ms_total += result->ttft_ms;
    status->generate_ms_total += result->generate_ms;
}

void call_finish(struct call *call, const struct call_result *result)
{
    struct service *service = call->service;
    *call->previous = call->next;
    if (call->next)
        call->next->previous = call->previous;
    count_result(&service->status, call, result);
    context_release(service, call->context);
    pthread_cond_broadcast(&service->idle);
    pthread_mutex_lock(&call->lock);
    call->result = *result;
    call->done = true;
    pthread_cond_signal(&call->changed);
    pthread_mutex_unlock(&call->lock);
    call_unref(call);
}

const char *call_cancel_words(int code)
{
    return code == -ESHUTDOWN ? "the service is shutting down" : "the call was cancelled";
}

void call_cancel_locked(struct call *call, int code)
{
    int none = 0;
    if (!call->item.app && call != call->service->running)
        return; /* done */
    atomic_compare_exchange_strong(&call->cancelled, &none, code);
    atomic_store(&call->cancel, true);
    if (!call->item.app)
        return; /* running: the worker sees it */
    struct call_result result = {.code = atomic_load(&call->cancelled)};
    error_set(&result.error, result.code, "%s", call_cancel_words(result.code));
    result.queue_ms = result.total_ms = clock_ms_since(call->arrived_ns);
    queue_remove(&call->service->queue, &call->item);
    call_finish(call, &result);
}

void call_await(struct call *call)
{
    pthread_mutex_lock(&call->lock);
    while (!call->done)
        pthread_cond_wait(&call->changed, &call->lock);
    pthread_mutex_unlock(&call->lock);
}

/* ---- public ---- */

static const char *check_params(const struct call_params *params)
{
    if (params->prompt_length == 0)
        return "the prompt is empty";
    if (memchr(params->prompt, 0, params->prompt_length))
        return "the prompt contains a NUL character";
    if (!utf8_valid(params->prompt, params->prompt_length))
        return "the prompt is not valid UTF-8";
    for (size_t i = 0; i < params->stop_count; i++) {
        if (params->stop[i][0] == 0)
            return "a stop string is empty";
        if (!utf8_valid(params->stop[i], strlen(params->stop[i])))
            return "a stop string is not valid UTF-8";
    }
    return sampler_params_check(&params->sampling);
}

int service_call_start(struct service *service, const char *owner, const char *id,
                       const struct call_params *params, struct call **out, struct error *error)
{
    struct journal_context record = {0};
    struct call *call = NULL;
    const char *wrong = params->prepare ? NULL : check_params(params);
    if (wrong)
        return error_set(error, -EINVAL, "%s", wrong);
    int code = journal_context_get(service->journal, owner, id, &record, error); /* invariant 7 */
    if (code < 0)
        return code;
    journal_context_deinit(&record);
    code = params->prepare ? call_create(service, CALL_KIND_PREPARE, NULL, &call)
                           : call_create(service, CALL_KIND_TURN, params, &call);
    if (code < 0)
        return error_set(error, code, "out of memory");
    code = call_enqueue(service, call, owner, id, error);
    if (code < 0) {
        call_unref(call);
        return code;
    }
    *out = call;
    return 0;
}

enum call_event call_wait(struct call *call, unsigned timeout_ms, struct buffer *text)
{
    enum call_event event = CALL_WAITING;
    struct timespec deadline = condition_deadline(timeout_ms);
    pthread_mutex_lock(&call->lock);
    while (!call->done && call->text.length == 0)
        if (pthread_cond_timedwait(&call->changed, &call->lock, &deadline) != 0)
            break;
    if (call->text.length) {
        /* where memory is short the text stays here, and the next wait tries again */
        if (buffer_append(text, call->text.data, call->text.length) == 0) {
            buffer_clear(&call->text);
            event = CALL_TEXT;
        }
    } else if (call->done) {
        event = CALL_DONE;
    }
    pthread_mutex_unlock(&call->lock);
    return event;
}

const struct call_result *call_result(const struct call *call)
{
    return &call->result;
}

void call_cancel(struct call *call)
{
    pthread_mutex_lock(&call->service->lock);
    call_cancel_locked(call, -ECANCELED);
    pthread_mutex_unlock(&call->service->lock);
}

void call_release(struct call *call)
{
    if (!call)
        return;
    call_cancel(call);
    call_unref(call);
}
