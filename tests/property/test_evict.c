/* Which context goes next: never a locked or empty one, the least recently used of those that free memory,
 * and one after the other everything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/random.h"
#include "kv/evict.h"

static void test_examples(void **state)
{
    (void)state;
    struct evict_candidate c[] = {
        {.last_used = 5, .chunks = 1, .private_bytes = 10},
        {.last_used = 1, .chunks = 1, .private_bytes = 10, .locked = true},
        {.last_used = 2, .chunks = 0},
        {.last_used = 3, .chunks = 4}, /* all shared */
        {.last_used = 4, .chunks = 1, .private_bytes = 1},
    };
    assert_int_equal(evict_choose(c, 0), EVICT_NONE);
    assert_int_equal(evict_choose(c, 5), 4);
    assert_int_equal(evict_choose(c, 4), 0); /* frees, though 3 is older */
    c[0].chunks = c[0].private_bytes = c[4].chunks = c[4].private_bytes = 0;
    assert_int_equal(evict_choose(c, 5), 3);
    c[3].chunks = 0;
    assert_int_equal(evict_choose(c, 5), EVICT_NONE);
    struct evict_candidate tie[] = {{.last_used = 1, .chunks = 1}, {.last_used = 1, .chunks = 1}};
    assert_int_equal(evict_choose(tie, 2), 0);
}

static void test_random(void **state)
{
    (void)state;
    struct random random = {7};
    enum { MOST = 20 };
    for (int round = 0; round < 20000; round++) {
        struct evict_candidate c[MOST];
        size_t count = random_below(&random, MOST + 1), left = 0;
        for (size_t i = 0; i < count; i++) {
            c[i].last_used = random_below(&random, 30);
            c[i].chunks = random_below(&random, 3);
            c[i].private_bytes = c[i].chunks ? random_below(&random, 2) * 1000 : 0;
            c[i].locked = random_below(&random, 4) == 0;
            left += c[i].chunks && !c[i].locked;
        }
        for (size_t evicted = 0;; evicted++) {
            size_t choice = evict_choose(c, count);
            if (choice == EVICT_NONE) {
                assert_int_equal(evicted, left);
                break;
            }
            assert_true(choice < count);
            assert_false(c[choice].locked); /* invariant 3 */
            assert_true(c[choice].chunks > 0);
            for (size_t i = 0; i < count; i++) {
                if (c[i].locked || !c[i].chunks)
                    continue;
                if (c[i].private_bytes)
                    assert_true(c[choice].private_bytes > 0);
                if (!c[i].private_bytes == !c[choice].private_bytes)
                    assert_true(c[choice].last_used <= c[i].last_used);
            }
            c[choice].chunks = c[choice].private_bytes = 0;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests_name("evict", tests, NULL, NULL);
}
