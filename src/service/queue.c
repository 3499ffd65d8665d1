/* The ring holds exactly the apps that have items: an app enters it last with its first item, moves last when
 * it was served, and leaves with its last item. */
#include "service/queue.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/memory.h"

struct queue_app {
    struct queue_app *next, *previous; /* the ring */
    struct queue_item *first, *last;
    char name[];
};

void queue_deinit(struct queue *queue)
{
    assert(queue->count == 0 && !queue->next_app);
    *queue = (struct queue){0};
}

static struct queue_app *find(const struct queue *queue, const char *name)
{
    struct queue_app *app = queue->next_app;
    if (app)
        do {
            if (strcmp(app->name, name) == 0)
                return app;
            app = app->next;
        } while (app != queue->next_app);
    return NULL;
}

/* A new app at the ring's end, which is just before its beginning. */
static struct queue_app *enter(struct queue *queue, const char *name)
{
    size_t bytes = strlen(name) + 1;
    struct queue_app *app = mem_alloc(sizeof *app + bytes);
    if (!app)
        return NULL;
    memcpy(app->name, name, bytes);
    app->first = app->last = NULL;
    app->next = app->previous = app;
    if (queue->next_app) {
        app->next = queue->next_app;
        app->previous = queue->next_app->previous;
        app->previous->next = app->next->previous = app;
    } else {
        queue->next_app = app;
    }
    return app;
}

static void leave(struct queue *queue, struct queue_app *app)
{
    if (queue->next_app == app)
        queue->next_app = app->next == app ? NULL : app->next;
    app->previous->next = app->next;
    app->next->previous = app->previous;
    mem_free(app);
}

int queue_push(struct queue *queue, const char *name, struct queue_item *item)
{
    assert(!item->app);
    struct queue_app *app = find(queue, name);
    if (!app)
        app = enter(queue, name);
    if (!app)
        return -ENOMEM;
    *item = (struct queue_item){.previous = app->last, .app = app};
    if (app->last)
        app->last->next = item;
    else
        app->first = item;
    app->last = item;
    queue->count++;
    return 0;
}

void queue_remove(struct queue *queue, struct queue_item *item)
{
    struct queue_app *app = item->app;
    if (item->previous)
        item->previous->next = item->next;
    else
        app->first = item->next;
    if (item->next)
        item->next->previous = item->previous;
    else
        app->last = item->previous;
    *item = (struct queue_item){0};
    queue->count--;
    if (!app->first)
        leave(queue, app);
}

struct queue_item *queue_pop(struct queue *queue)
{
    struct queue_app *app = queue->next_app;
    if (!app)
        return NULL;
    struct queue_item *item = app->first;
    queue->next_app = app->next; /* its turn is over, whether it stays in the ring or leaves it */
    queue_remove(queue, item);
    return item;
}
