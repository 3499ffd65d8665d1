/* The policies: each is consistent in itself, and is what its name says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kv/policy.h"

static void rows_are_consistent(void **state)
{
    (void)state;
    size_t count;
    const struct kv_policy *all = kv_policy_list(&count);
    assert_true(count >= 9);
    for (size_t i = 0; i < count; i++) {
        const struct kv_policy *p = &all[i];
        assert_ptr_equal(kv_policy_find(p->name), p); /* so names differ */
        assert_true(strlen(p->description) > 10 && !strchr(p->description, '\n'));
        assert_true(p->write_level == 16 || p->write_level == 8); /* what can be written on */
        assert_true(p->stores || !p->ahead);
        assert_true(p->stores || p->plan == PLAN_RECOMPUTE_ONLY); /* nothing to read */
        assert_true(p->stores != (p->plan == PLAN_RECOMPUTE_ONLY));
        assert_true(p->levels.ratio > 0 && p->levels.ratio <= 2);
        if (p->levels.rule == LEVELS_FIXED)
            assert_true(kv_level_valid(p->levels.fixed) && p->levels.fixed < p->write_level);
        if (p->levels.rule == LEVELS_DAMAGE || p->levels.rule == LEVELS_PAPER)
            assert_true(p->levels.allowed && p->levels.allowed <= LEVELS_ALL);
        assert_false(p->levels.codec && p->levels.allowed & LEVELS_3); /* not in the paper's codec */
    }
    assert_string_equal(all[0].name, "llms");
}

static void names_that_are_not_there(void **state)
{
    (void)state;
    assert_null(kv_policy_find(""));
    assert_null(kv_policy_find("LLMS"));
    assert_null(kv_policy_find("llms "));
}

/* The level that a fresh chunk has in the end, with nothing known of it. */
static uint8_t settled(const char *name)
{
    const struct kv_policy *p = kv_policy_find(name);
    struct kv_geometry geometry = {4, 2, 64};
    struct levels_chunk chunk = {0.1, {-1, -1, -1, -1, -1}, p->write_level, 0};
    uint8_t level;
    levels_choose(&p->levels, &geometry, &chunk, 1, &level);
    assert_int_equal(level, levels_tag(&p->levels, kv_level_bits(level)));
    assert_int_equal(p->levels.codec, strcmp(name, "paper") == 0 ? KV_PAPER : 0);
    return (uint8_t)kv_level_bits(level);
}

static void baselines_are_the_papers(void **state)
{
    (void)state;
    static const char *const uncompressed[] = {"lmk", "swapping", "vllm-s"};
    for (int i = 0; i < 3; i++)
        assert_int_equal(settled(uncompressed[i]), 16);
    assert_int_equal(settled("vllm-sq"), 8);
    assert_int_equal(settled("no-compression"), 8);
    assert_int_equal(settled("int4"), 4);
    assert_true(settled("llms") < 8);
    assert_int_equal(kv_policy_find("lmk")->unit, KV_UNIT_CONTEXT);
    assert_false(kv_policy_find("lmk")->stores);
    assert_int_equal(kv_policy_find("swapping")->unit, KV_UNIT_CONTEXT);
    assert_int_equal(kv_policy_find("vllm-s")->unit, KV_UNIT_CHUNK);
    assert_int_equal(kv_policy_find("int4")->plan, PLAN_LOAD_ONLY);
}

/* An ablation is llms but for what it leaves out. */
static void ablations_differ_in_one_technique(void **state)
{
    (void)state;
    const struct kv_policy *llms = kv_policy_find("llms"), *p;
    static const char *const names[] = {"no-compression", "no-pipeline", "no-lifecycle"};
    for (int i = 0; i < 3; i++) {
        p = kv_policy_find(names[i]);
        assert_int_equal(p->write_level, llms->write_level);
        assert_int_equal(p->unit, llms->unit);
        assert_int_equal(p->stores, llms->stores);
        assert_int_equal(p->levels.rule != llms->levels.rule, i == 0);
        assert_int_equal(p->plan != llms->plan, i == 1);
        assert_int_equal(p->overlap != llms->overlap, i == 1);
        assert_int_equal(p->ahead != llms->ahead, i == 2);
        assert_int_equal(p->evict != llms->evict, i == 2);
    }
    assert_int_equal(kv_policy_find("no-lifecycle")->evict, EVICT_LRU);
    assert_true(llms->stores && llms->ahead && llms->overlap && llms->plan == PLAN_BEST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_consistent),
        cmocka_unit_test(names_that_are_not_there),
        cmocka_unit_test(baselines_are_the_papers),
        cmocka_unit_test(ablations_differ_in_one_technique),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
