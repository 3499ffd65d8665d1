/* llms-bench speed: tokens a second, of prompts and of generation, beside what the machine allows and a peer.
 *
 * The bound of a prompt is what arithmetic allows (our products with weights in caches) or what memory
 * allows (the weights and the KV once), whichever is lower; that of generation what memory allows. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "bench.h"
#include "kernels/kernels.h"
#include "peer.h"
#include "speed.h"

enum { RUNS = 3, RUNS_WITH_PEER = 5, BUSY_MAX = 64 };

/* Splits "A,B" in place. */
static int take_models(struct speed *speed, char *list)
{
    for (char *rest = NULL, *path = strtok_r(list, ",", &rest); path; path = strtok_r(NULL, ",", &rest)) {
        if (speed->model_count == SPEED_MODELS_MAX)
            return -EINVAL;
        speed->models[speed->model_count++] = path;
    }
    return speed->model_count ? 0 : -EINVAL;
}

static int run_all(struct speed *speed, bool json)
{
    struct error error = {0};
    int code = speed->prompts.count || speed->generate ? speed_measure(speed, &error) : 0;
    if (code == 0 && speed->start)
        code = speed_start(speed, &error);
    if (code == 0 && json)
        speed_print_json(speed);
    else if (code == 0)
        speed_print_text(speed);
    mem_free(speed->tests);
    mem_free(speed->starts);
    return code < 0 ? bench_fail("speed", &error) : 0;
}

/* What was not asked for, and what cannot be. */
static int settle(struct speed *speed)
{
    size_t count = 0;
    if (speed->level != 16 && speed->level != 8)
        return bench_misuse("speed", "--kv-level: 16 or 8");
    for (size_t i = 0; i < speed->prompts.count; i++)
        if (speed->prompts.values[i])
            speed->prompts.values[count++] = speed->prompts.values[i];
    speed->prompts.count = count;
    if (speed->isa && !kernels_named(speed->isa))
        return bench_misuse("speed", "--isa: '%s' is not an instruction set this machine has", speed->isa);
    if (count == 0 && speed->generate == 0 && !speed->start)
        return bench_misuse("speed", "--prompt 0 and --generate 0 leave nothing to measure");
    if (speed->isa) {
        setenv("LLMS_ISA", speed->isa, 1); /* for the engine */
        peer_limit(speed->isa);
    }
    if (speed->runs == 0)
        speed->runs = speed->peer ? RUNS_WITH_PEER : RUNS;
    speed->lenient = speed->depths.count == 0;
    if (speed->lenient)
        speed->depths = (struct bench_list){2, {0, 2048}};
    return BENCH_GO;
}

int bench_speed(int argc, char **argv)
{
    struct speed speed = {.prompts = {2, {16, 512}}, .threads = {1, {0}}, .generate = 64, .level = 8};
    const char *models = NULL;
    bool json = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &models, "F,F", "the GGUF, or several with commas between", .required = true},
        {"prompt", BENCH_NUMBERS, &speed.prompts, "N,N", "prompt sizes, tokens (default 16,512; 0: none)", 0,
         1 << 20},
        {"generate", BENCH_NUMBER, &speed.generate, "N", "tokens to generate (default 64; 0: none)", 0,
         1 << 20},
        {"depth", BENCH_NUMBERS, &speed.depths, "D,D", "tokens in the context before (default 0,2048)", 0,
         1 << 20},
        {"threads", BENCH_NUMBERS, &speed.threads, "T,T",
         "compute threads, kept on as many processors (default: one per CPU)", 1, 256},
        {"runs", BENCH_NUMBER, &speed.runs, "R",
         "of each, in turn; median and range are told (default 3, with a peer 5)", 1, SPEED_RUNS_MAX},
        {"kv-level", BENCH_NUMBER, &speed.level, "16|8",
         "KV in FP16 or INT8 (default 8, as the daemon's default policy)", 8, 16},
        {"busy", BENCH_NUMBER, &speed.busy, "N",
         "measure a second time beside N busy processes on the same processors", 0, BUSY_MAX},
        {"density", BENCH_FLAG, &speed.density, NULL,
         "measure a second time with density gathered, as the daemon's default policy does"},
        {"cold", BENCH_FLAG, &speed.start, NULL, "measure also from a cold start to the first token"},
        {"peer", BENCH_TEXT, &speed.peer, "PATH", "a peer-llama-cpp: its llama-bench runs in turn with us"},
        {"isa", BENCH_TEXT, &speed.isa, "NAME",
         "plain, avx2, avxvnni, avx512 or amx at most, here and at the peer"},
        {"json", BENCH_FLAG, &json, NULL, "one JSON document: {\"runs\": [...], \"cold\": [...]}"},
    };
    const struct bench_usage usage = {
        "speed", "Measures tokens a second.",
        "bound: what arithmetic (our products on weights in caches) and memory (weights and KV read once)\n"
        "allow; memory: the share of the memory's read rate, measured in the same runs; kept: of the rate\n"
        "without busy processes. --cold reads the file past the page cache first: that is its bound.\n",
        options, sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status == BENCH_GO)
        status = settle(&speed);
    if (status != BENCH_GO)
        return status;
    char *list = mem_strdup(models);
    struct error error = {0};
    if (!list) {
        error_set(&error, -ENOMEM, "out of memory");
        return bench_fail("speed", &error);
    }
    if (take_models(&speed, list) < 0)
        status = bench_misuse("speed", "--model: '%s' is not 1 to %d files", models, SPEED_MODELS_MAX);
    else
        status = run_all(&speed, json);
    mem_free(list);
    return status;
}
