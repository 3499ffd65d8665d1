/* The fair queue against a plain model: order within an app, turns between apps, nothing lost. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "service/queue.h"

struct job {
    struct queue_item item; /* first */
    unsigned app;
    unsigned number; /* of arrival within its app */
};

static void test_one_app_in_order(void **state)
{
    (void)state;
    struct queue queue = {0};
    struct job jobs[5] = {0};
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(queue_push(&queue, "1/a", &jobs[i].item), 0);
    assert_int_equal(queue.count, 5);
    queue_remove(&queue, &jobs[2].item);
    queue_remove(&queue, &jobs[4].item);
    assert_null(jobs[2].item.app);
    assert_ptr_equal(queue_pop(&queue), &jobs[0].item);
    assert_ptr_equal(queue_pop(&queue), &jobs[1].item);
    assert_ptr_equal(queue_pop(&queue), &jobs[3].item);
    assert_null(queue_pop(&queue));
    queue_deinit(&queue);
}

static void test_apps_take_turns(void **state)
{
    (void)state;
    struct queue queue = {0};
    struct job a[4] = {0}, b[2] = {0}, c[1] = {0};
    for (unsigned i = 0; i < 4; i++)
        queue_push(&queue, "a", &a[i].item);
    for (unsigned i = 0; i < 2; i++)
        queue_push(&queue, "b", &b[i].item);
    queue_push(&queue, "c", &c[0].item);
    struct queue_item *order[] = {&a[0].item, &b[0].item, &c[0].item, &a[1].item,
                                  &b[1].item, &a[2].item, &a[3].item};
    for (unsigned i = 0; i < 7; i++)
        assert_ptr_equal(queue_pop(&queue), order[i]);
    /* an app that comes back is behind those that waited */
    queue_push(&queue, "a", &a[0].item);
    queue_push(&queue, "b", &b[0].item);
    assert_ptr_equal(queue_pop(&queue), &a[0].item);
    queue_push(&queue, "a", &a[1].item);
    assert_ptr_equal(queue_pop(&queue), &b[0].item);
    assert_ptr_equal(queue_pop(&queue), &a[1].item);
    queue_deinit(&queue);
}

enum { APPS = 7, JOBS = 64 };

/* Random pushes, removals and pops. After each pop of an app, none that has waited since its last pop is
 * passed over: `served` counts the pops since an app began to wait, by app. */
static void test_random(void **state)
{
    (void)state;
    struct random random = {42};
    for (int round = 0; round < 200; round++) {
        struct queue queue = {0};
        struct job jobs[JOBS] = {0};
        unsigned arrived[APPS] = {0}, left[APPS] = {0}, waiting[APPS] = {0};
        unsigned served[APPS][APPS] = {{0}}; /* [w][s]: pops of s while w has been waiting */
        size_t count = 0;
        for (int step = 0; step < 400; step++) {
            struct job *job = &jobs[random_below(&random, JOBS)];
            unsigned action = (unsigned)random_below(&random, 10);
            char name[8];
            if (action < 5 && !job->item.app) {
                job->app = (unsigned)random_below(&random, APPS);
                job->number = arrived[job->app]++;
                snprintf(name, sizeof name, "app%u", job->app);
                assert_int_equal(queue_push(&queue, name, &job->item), 0);
                count++;
                if (waiting[job->app]++ == 0)
                    memset(served[job->app], 0, sizeof served[job->app]);
            } else if (action == 5 && job->item.app) {
                queue_remove(&queue, &job->item);
                count--;
                waiting[job->app]--;
            } else if (action > 5) {
                struct job *popped = (struct job *)(void *)queue_pop(&queue);
                assert_int_equal(popped != NULL, count > 0);
                if (!popped)
                    continue;
                count--;
                waiting[popped->app]--;
                assert_true(popped->number >= left[popped->app]); /* in order, removed ones left out */
                left[popped->app] = popped->number + 1;
                for (unsigned w = 0; w < APPS; w++)
                    if (w != popped->app && waiting[w])
                        assert_true(++served[w][popped->app] <= 1); /* never twice before w */
                memset(served[popped->app], 0, sizeof served[popped->app]);
            }
            assert_int_equal(queue.count, count);
        }
        while (queue_pop(&queue))
            count--;
        assert_int_equal(count, 0);
        queue_deinit(&queue);
    }
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct queue queue = {0};
    struct job jobs[2] = {0};
    mem_fault_set(1, true);
    assert_int_equal(queue_push(&queue, "a", &jobs[0].item), -ENOMEM);
    mem_fault_set(0, false);
    assert_null(jobs[0].item.app);
    assert_null(queue_pop(&queue));
    assert_int_equal(queue_push(&queue, "a", &jobs[0].item), 0);
    assert_ptr_equal(queue_pop(&queue), &jobs[0].item);
    queue_deinit(&queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_app_in_order),
        cmocka_unit_test(test_apps_take_turns),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
