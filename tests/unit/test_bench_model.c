/* llms-bench model: what it writes loads, runs, is the same for a seed, and has the spread it promises. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "../bench/bench.h"
#include "../bench/blocks.h"
#include "engine/engine.h"
#include "kernels/kernels.h"
#include "os/file.h"

static char directory[] = "/tmp/test-bench-model-XXXXXX";

static int make_directory(void **state)
{
    (void)state;
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
    (void)state;
    return rmdir(directory); /* fails if a test left anything behind */
}

static int make(const char *shape, const char *type, const char *seed, const char *path)
{
    const char *arguments[] = {"model",  "--shape", shape,   "--type", type,
                               "--seed", seed,      "--out", path,     NULL};
    return bench_model(sizeof arguments / sizeof *arguments - 1, (char **)(uintptr_t)arguments);
}

static void same_seed_same_file(void **state)
{
    (void)state;
    char a[64], b[64], *data_a, *data_b;
    size_t bytes_a, bytes_b;
    snprintf(a, sizeof a, "%s/a", directory);
    snprintf(b, sizeof b, "%s/b", directory);
    assert_int_equal(make("tiny-qwen3", "Q4_K_M", "5", a), 0);
    assert_int_equal(make("tiny-qwen3", "Q4_K_M", "5", b), 0);
    assert_int_equal(os_read_file(a, 64u << 20, &data_a, &bytes_a), 0);
    assert_int_equal(os_read_file(b, 64u << 20, &data_b, &bytes_b), 0);
    assert_int_equal(bytes_a, bytes_b);
    assert_memory_equal(data_a, data_b, bytes_a);
    free(data_b);
    assert_int_equal(make("tiny-qwen3", "Q4_K_M", "6", b), 0);
    assert_int_equal(os_read_file(b, 64u << 20, &data_b, &bytes_b), 0);
    assert_int_equal(bytes_a, bytes_b);
    assert_true(memcmp(data_a, data_b, bytes_a) != 0);
    free(data_a);
    free(data_b);
    unlink(a);
    unlink(b);
}

/* Runs three tokens through a model; its logits must be finite and spread. */
static void run_model(const char *path)
{
    struct error error = {0};
    struct engine *engine = NULL;
    struct kv_pool *pool = NULL;
    struct kv_sequence sequence;
    struct engine_options options = {.model_path = path, .threads = 1};
    if (engine_open(&options, &engine, &error) < 0)
        fail_msg("%s", error.text);
    const struct engine_model *model = engine_model(engine);
    float *logits = malloc(model->vocabulary * sizeof *logits);
    assert_non_null(logits);
    assert_int_equal(kv_pool_create(&model->kv, 64u << 20, &pool), 0);
    kv_sequence_init(&sequence, pool);
    assert_int_equal(kv_sequence_reserve(&sequence, 3, 16), 0);
    struct engine_batch batch = {.sequence = &sequence,
                                 .tokens = (int32_t[]){5, 100, 7},
                                 .count = 3,
                                 .logits_from = 2,
                                 .logits = logits};
    assert_int_equal(engine_forward(engine, &batch, &error), 0);
    double squares = 0;
    for (uint32_t i = 0; i < model->vocabulary; i++)
        squares += (double)logits[i] * (double)logits[i] / model->vocabulary;
    assert_true(sqrt(squares) > 1 && sqrt(squares) < 3); /* LOGIT is 1.5 */
    kv_sequence_deinit(&sequence);
    kv_pool_destroy(pool);
    engine_close(engine);
    free(logits);
}

static void every_type_of_every_small_shape_runs(void **state)
{
    static const char *const shapes[] = {"tiny-llama", "tiny-qwen2", "tiny-qwen3"};
    static const char *const types[] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0",   "Q4_1",  "Q5_0",
                                        "Q5_1", "Q4_K", "Q5_K", "Q6_K", "q4_k_m", "Q5_K_M"};
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/m.gguf", directory);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            assert_int_equal(make(shapes[s], types[t], "3", path), 0);
            run_model(path);
            unlink(path);
        }
}

/* Blocks of every type have the mean and deviation asked for. */
static void weights_are_spread_as_asked(void **state)
{
    enum { VALUES = 64 * 1024 };
    (void)state;
    size_t types;
    const struct dtype_info *infos = dtype_list(&types);
    float *values = malloc(VALUES * sizeof *values);
    char *row = malloc(VALUES * sizeof(float));
    assert_true(values && row);
    for (size_t t = 0; t < types; t++)
        for (float deviation = 0.004f; deviation < 1; deviation *= 5) {
            struct blocks blocks;
            struct random random = {9};
            double mean = 0, squares = 0;
            blocks_init(&blocks, infos[t].type, 0, deviation);
            blocks_row(&blocks, &random, row, VALUES);
            kernels_get(ISA_PLAIN)->dequantize(infos[t].type, row, values, VALUES);
            for (size_t i = 0; i < VALUES; i++) {
                mean += (double)values[i] / VALUES;
                squares += (double)values[i] * (double)values[i] / VALUES;
            }
            assert_true(fabs(mean) < 0.02 * (double)deviation);
            assert_true(fabs(sqrt(squares) / (double)deviation - 1) < 0.03);
        }
    free(values);
    free(row);
}

static void bad_usage_is_told(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/x", directory);
    assert_int_equal(make("gpt-5", "F16", "1", path), 2);
    assert_int_equal(make("tiny-llama", "Q3_K", "1", path), 2);
    assert_int_equal(make("tiny-llama", "F16", "-1", path), 2);
    assert_int_equal(make("tiny-llama", "F16", "1", "/nonexistent/x"), 1);
    assert_int_equal(access(path, F_OK), -1);
}

/* A write that fails in the middle, as on a full disk: status 1, and nothing is left (remove_directory sees
 * to it). */
static void failed_write_leaves_nothing(void **state)
{
    (void)state;
    char path[64];
    struct rlimit old, small;
    snprintf(path, sizeof path, "%s/x", directory);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 300000;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int status = make("tiny-llama", "Q8_0", "1", path);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_seed_same_file),         cmocka_unit_test(every_type_of_every_small_shape_runs),
        cmocka_unit_test(weights_are_spread_as_asked), cmocka_unit_test(bad_usage_is_told),
        cmocka_unit_test(failed_write_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
