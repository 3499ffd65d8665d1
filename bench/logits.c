/* llms-bench logits: the engine's own numbers after some tokens, without a daemon. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/parse.h"
#include "bench.h"
#include "run.h"

struct candidate {
    int32_t id;
    float logit;
};

struct answer {
    struct tokens tokens;
    struct candidate *top; /* sorted, the likeliest first */
    size_t top_count;
    double log_sum; /* a log-probability is logit - log_sum */
    struct tokens greedy;
};

static int parse_tokens(const char *text, struct tokens *out)
{
    while (true) {
        char item[16];
        uint64_t id;
        size_t length = strcspn(text, ",");
        if (length >= sizeof item)
            return -EINVAL;
        memcpy(item, text, length);
        item[length] = 0;
        if (parse_u64(item, 0, INT32_MAX, &id) < 0)
            return -EINVAL;
        if (tokens_append(out, (int32_t)id) < 0)
            return -ENOMEM;
        if (text[length] == 0)
            return 0;
        text += length + 1;
    }
}

/* The likelier first; of equals the lower id, as greedy picks. */
static int compare(const void *left, const void *right)
{
    const struct candidate *a = left, *b = right;
    if (a->logit != b->logit)
        return a->logit < b->logit ? 1 : -1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static int rank(const struct bench_run *run, struct answer *answer, size_t top)
{
    double sum = 0;
    size_t vocabulary = bench_run_vocabulary(run);
    answer->top = mem_alloc(vocabulary * sizeof *answer->top);
    if (!answer->top)
        return -ENOMEM;
    for (size_t i = 0; i < vocabulary; i++)
        answer->top[i] = (struct candidate){(int32_t)i, run->logits[i]};
    qsort(answer->top, vocabulary, sizeof *answer->top, compare);
    for (size_t i = 0; i < vocabulary; i++)
        sum += exp((double)answer->top[i].logit - (double)answer->top[0].logit);
    answer->log_sum = (double)answer->top[0].logit + log(sum);
    answer->top_count = top < vocabulary ? top : vocabulary;
    return 0;
}

static int32_t best(const struct bench_run *run)
{
    size_t at = 0;
    for (size_t i = 1; i < bench_run_vocabulary(run); i++)
        if (run->logits[i] > run->logits[at])
            at = i;
    return (int32_t)at;
}

static int check_tokens(const struct bench_run *run, const struct tokens *tokens, uint64_t greedy,
                        struct error *error)
{
    uint32_t context = engine_model(run->engine)->context_length;
    for (size_t i = 0; i < tokens->count; i++)
        if ((size_t)tokens->ids[i] >= bench_run_vocabulary(run))
            return error_set(error, -EINVAL, "token %" PRId32 " is outside the vocabulary of %zu",
                             tokens->ids[i], bench_run_vocabulary(run));
    if (tokens->count + greedy > context)
        return error_set(error, -EINVAL,
                         "%zu tokens and %" PRIu64 " more are above the model's context of %" PRIu32,
                         tokens->count, greedy, context);
    return 0;
}

static int compute(struct bench_run *run, struct answer *answer, size_t top, uint64_t greedy,
                   struct error *error)
{
    int code = check_tokens(run, &answer->tokens, greedy, error);
    if (code == 0)
        code = bench_run_tokens(run, answer->tokens.ids, answer->tokens.count, error);
    if (code == 0 && rank(run, answer, top) < 0)
        code = error_set(error, -ENOMEM, "out of memory");
    for (uint64_t i = 0; i < greedy && code == 0; i++) {
        int32_t token = best(run);
        if (tokens_append(&answer->greedy, token) < 0)
            code = error_set(error, -ENOMEM, "out of memory");
        else if (i + 1 < greedy)
            code = bench_run_tokens(run, &token, 1, error);
    }
    return code;
}

static void print_ids(const struct tokens *tokens)
{
    for (size_t i = 0; i < tokens->count; i++)
        printf("%s%" PRId32, i ? "," : "", tokens->ids[i]);
}

static void print_json(const struct answer *answer)
{
    printf("{\"tokens\":[");
    print_ids(&answer->tokens);
    printf("],\"top\":[");
    for (size_t i = 0; i < answer->top_count; i++)
        printf("%s[%" PRId32 ",%.6f]", i ? "," : "", answer->top[i].id,
               (double)answer->top[i].logit - answer->log_sum);
    printf("],\"greedy\":[");
    print_ids(&answer->greedy);
    printf("]}\n");
}

static void print_text(const struct bench_run *run, const struct answer *answer)
{
    struct buffer piece = {0};
    printf("%8s  %15s  text\n", "token", "log-probability");
    for (size_t i = 0; i < answer->top_count; i++) {
        buffer_clear(&piece);
        if (tokenizer_piece(engine_tokenizer(run->engine), answer->top[i].id, true, &piece) < 0)
            break;
        printf("%8" PRId32 "  %15.6f  ", answer->top[i].id, (double)answer->top[i].logit - answer->log_sum);
        for (size_t k = 0; k < piece.length; k++)
            putchar((unsigned char)piece.data[k] < 0x20 ? '?' : piece.data[k]);
        putchar('\n');
    }
    if (answer->greedy.count) {
        printf("greedy ");
        print_ids(&answer->greedy);
        putchar('\n');
    }
    buffer_deinit(&piece);
}

int bench_logits(int argc, char **argv)
{
    const char *model = NULL, *tokens = NULL;
    uint64_t top = 10, greedy = 0, threads = 0, level = 16;
    bool json = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &model, "F", "the GGUF", .required = true},
        {"tokens", BENCH_TEXT, &tokens, "1,2,3", "the prompt's token ids, used as they are",
         .required = true},
        {"top", BENCH_NUMBER, &top, "N", "how many of the likeliest next tokens to tell (default 10)", 0,
         1000000},
        {"greedy", BENCH_NUMBER, &greedy, "N", "go on N tokens, end tokens included (default 0)", 0, 1000000},
        {"threads", BENCH_NUMBER, &threads, "N", "compute threads (default: one per CPU)", 1, 1024},
        {"kv-level", BENCH_NUMBER, &level, "16|8", "KV in FP16 or INT8 (default 16)", 8, 16},
        {"json", BENCH_FLAG, &json, NULL,
         "one JSON document: {\"tokens\", \"top\": [[id, log-probability]], \"greedy\"}"},
    };
    const struct bench_usage usage = {"logits", "Tells what the engine expects after some tokens.", NULL,
                                      options, sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status != BENCH_GO)
        return status;
    if (level != 16 && level != 8)
        return bench_misuse("logits", "--kv-level: 16 or 8");
    struct error error = {0};
    struct bench_run run = {0};
    struct answer answer = {0};
    int code = parse_tokens(tokens, &answer.tokens);
    if (code < 0) {
        tokens_deinit(&answer.tokens);
        return bench_misuse("logits", "--tokens: '%s' is not a list of token ids", tokens);
    }
    code = bench_run_open(&run, model, (unsigned)threads, (uint8_t)level, &error);
    if (code == 0)
        code = compute(&run, &answer, (size_t)top, greedy, &error);
    if (code == 0 && json)
        print_json(&answer);
    else if (code == 0)
        print_text(&run, &answer);
    bench_run_close(&run);
    tokens_deinit(&answer.tokens);
    tokens_deinit(&answer.greedy);
    mem_free(answer.top);
    return code < 0 ? bench_fail("logits", &error) : 0;
}
