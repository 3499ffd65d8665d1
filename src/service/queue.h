/* Whose turn it is: a fair queue of jobs, one line per app.
 *
 * Apps take turns: after an app's job was taken, every other app that waits is served before it is served
 * again. Within an app, and so within a context, jobs leave in the order they came. Items are embedded in
 * what waits; the queue owns none of them. Not thread-safe: the service's lock is around it. */
#ifndef LLMS_SERVICE_QUEUE_H
#define LLMS_SERVICE_QUEUE_H

#include <stddef.h>

struct queue_app;

struct queue_item {
    struct queue_item *next, *previous; /* in its app's line */
    struct queue_app *app;              /* NULL: not queued */
};

struct queue {
    struct queue_app *next_app; /* served next; a ring; NULL: empty */
    size_t count;               /* items in all lines */
};

/* A zeroed queue is ready. deinit: it must be empty. */
void queue_deinit(struct queue *queue);

/* Puts item last in app's line. 0 or -ENOMEM. */
int queue_push(struct queue *queue, const char *app, struct queue_item *item);
struct queue_item *queue_pop(struct queue *queue); /* NULL: empty */
void queue_remove(struct queue *queue, struct queue_item *item);

#endif
