/* One conversation under one setting of the KV, through what the service itself uses: the transcript's
 * tokens, the engine's passes, and the lowering that follows every turn. See quality.h.
 *
 * The turns are given, not generated. Of each the user's message and the assistant's words go through the
 * model as the service would have them do: computed at the level the policy writes, on chunks that were
 * lowered after the turns before. Every token's probability is taken from what stood before it, then the
 * turn settles. The questions come last, each on a fork of the whole. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "engine/lowering.h"
#include "quality.h"

/* Log-probabilities added up. */
struct score {
    double sum;
    uint64_t tokens;
};

/* A case being run. */
struct run {
    struct quality_runner *runner;
    const struct quality_setting *setting;
    const struct quality_case *one;
    struct quality_result *result;
    struct tokens tokens; /* of the conversation so far */
    struct kv_sequence sequence;
    struct score score;
    struct random random; /* what a round recomputes */
    struct error *error;
};

int quality_open(struct quality_runner *runner, const char *model, unsigned threads, struct error *error)
{
    int code = bench_run_open(&runner->run, model, threads, 16, error);
    if (code < 0)
        return code;
    const struct engine_model *described = engine_model(runner->run.engine);
    runner->rules = (struct transcript_rules){described->chat, engine_tokenizer(runner->run.engine)};
    runner->room = mem_aligned(64, kv_chunk_bytes(&described->kv, 8));
    runner->logits = mem_alloc(QUALITY_BATCH * (size_t)described->vocabulary * sizeof *runner->logits);
    if (runner->room && runner->logits)
        return 0;
    quality_close(runner);
    return error_set(error, -ENOMEM, "out of memory");
}

void quality_close(struct quality_runner *runner)
{
    mem_free(runner->room);
    mem_free(runner->logits);
    bench_run_close(&runner->run);
    *runner = (struct quality_runner){0};
}

static double log_probability(const float *logits, size_t vocabulary, int32_t token)
{
    float top = logits[0];
    double sum = 0;
    for (size_t i = 1; i < vocabulary; i++)
        top = logits[i] > top ? logits[i] : top;
    for (size_t i = 0; i < vocabulary; i++)
        sum += (double)expf(logits[i] - top);
    return (double)(logits[token] - top) - log(sum);
}

/* Computes what tokens have that the sequence does not. run.logits: after the last of them. Those from index
 * `from` on are scored, the first of them by the logits left from the pass before. */
static int compute(struct run *r, struct kv_sequence *sequence, const struct tokens *tokens, size_t from,
                   struct score *score)
{
    struct bench_run *run = &r->runner->run;
    size_t vocabulary = bench_run_vocabulary(run);
    while (sequence->tokens < tokens->count) {
        size_t left = tokens->count - sequence->tokens, first = sequence->tokens;
        size_t count = left < QUALITY_BATCH ? left : QUALITY_BATCH;
        size_t logits_from = from < first + count ? 0 : count - 1;
        const struct engine_batch batch = {
            .sequence = sequence,
            .tokens = tokens->ids + first,
            .count = count,
            .logits_from = logits_from,
            .logits = r->runner->logits,
            .density_tokens = r->setting->rules.rule == LEVELS_KEEP ? 0 : count,
        };
        int code = kv_sequence_reserve(sequence, first + count, r->setting->write_level);
        if (code < 0)
            return error_set(r->error, code, "no memory for the KV of %zu tokens", first + count);
        if ((code = engine_forward(run->engine, &batch, r->error)) < 0)
            return code;
        for (size_t i = from > first ? from - first : 0; i < count; i++) {
            const float *before = i ? r->runner->logits + (i - 1) * vocabulary : run->logits;
            score->sum += log_probability(before, vocabulary, tokens->ids[first + i]);
            score->tokens++;
        }
        memcpy(run->logits, r->runner->logits + (count - 1 - logits_from) * vocabulary,
               vocabulary * sizeof *run->logits);
        kv_sequence_advance(sequence, first + count);
    }
    return 0;
}

static void settle(struct run *r)
{
    const struct lowering lowering = {
        .engine = r->runner->run.engine,
        .pool = r->runner->run.pool,
        .rules = &r->setting->rules,
        .write_level = r->setting->write_level,
        .room = r->runner->room,
    };
    while (lowering_step(&lowering, &r->sequence))
        ;
}

/* Everything leaves memory; a random half comes back from flash, as it was written, the rest is computed
 * from its tokens in one pass, as a restore does. */
static int round_trip(struct run *r)
{
    struct kv_sequence *s = &r->sequence;
    uint32_t *positions = mem_alloc(s->tokens * sizeof *positions);
    struct tokens tokens = {0};
    int code = positions ? tokens_reserve(&tokens, s->tokens) : -ENOMEM;
    size_t count = 0;
    for (size_t c = 0; c < kv_chunks_of(s->tokens) && code == 0; c++) {
        if (random_below(&r->random, 2))
            continue;
        kv_chunk_drop(s->pool, s->chunks[c]);
        code = kv_chunk_claim(s->pool, s->chunks[c], r->setting->write_level);
        for (size_t i = c * KV_CHUNK_TOKENS; i < s->tokens && i < (c + 1) * KV_CHUNK_TOKENS && code == 0;
             i++) {
            positions[count++] = (uint32_t)i;
            code = tokens_append(&tokens, r->tokens.ids[i]);
        }
    }
    if (code < 0)
        error_set(r->error, code, "out of memory");
    const struct engine_batch batch = {
        .sequence = s, .tokens = tokens.ids, .positions = positions, .count = count, .logits_from = count};
    if (code == 0)
        code = engine_forward(r->runner->run.engine, &batch, r->error);
    if (code == 0)
        settle(r);
    tokens_deinit(&tokens);
    mem_free(positions);
    return code;
}

static int run_turn(struct run *r, size_t index, size_t base)
{
    const struct quality_case *one = r->one;
    const struct quality_turn *turn = &one->turns[index];
    const struct text_span reply = {turn->assistant, strlen(turn->assistant), false};
    size_t before = r->tokens.count ? r->tokens.count : 1;
    int code = transcript_prompt(&r->runner->rules, one->system, base, index == 0, turn->user,
                                 strlen(turn->user), &r->tokens, r->error);
    if (code == 0)
        code = tokenizer_encode(r->runner->rules.tokenizer, &reply, 1, false, &r->tokens, r->error);
    if (code == 0)
        code = compute(r, &r->sequence, &r->tokens, before, &r->score);
    if (code < 0)
        return code;
    settle(r);
    size_t rounds = r->setting->rounds, done = rounds * index / one->turn_count;
    for (; done < rounds * (index + 1) / one->turn_count && code == 0; done++)
        code = round_trip(r);
    return code;
}

static int32_t best(const struct bench_run *run)
{
    size_t at = 0;
    for (size_t i = 1; i < bench_run_vocabulary(run); i++)
        if (run->logits[i] > run->logits[at])
            at = i;
    return (int32_t)at;
}

/* The model's own reply to the prompt that tokens end with: whether the answer is in it. */
static int reply_greedily(struct run *r, struct kv_sequence *fork, struct tokens *tokens, const char *answer,
                          uint8_t *found)
{
    const struct tokenizer *tokenizer = r->runner->rules.tokenizer;
    size_t prompt_end = tokens->count, limit = engine_model(r->runner->run.engine)->context_length;
    struct buffer reply = {0};
    int code = 0;
    while (code == 0 && tokens->count < limit && tokens->count - prompt_end < QUALITY_REPLY) {
        code = compute(r, fork, tokens, SIZE_MAX, NULL);
        int32_t id = best(&r->runner->run);
        if (code < 0 || tokenizer_is_end(tokenizer, id))
            break;
        if ((code = tokens_append(tokens, id)) < 0)
            error_set(r->error, code, "out of memory");
    }
    if (code == 0 && (code = tokenizer_decode(tokenizer, tokens->ids + prompt_end, tokens->count - prompt_end,
                                              false, &reply)) < 0)
        error_set(r->error, code, "out of memory");
    if (code == 0)
        *found = reply.data && strstr(reply.data, answer);
    buffer_deinit(&reply);
    tokens->count = prompt_end;
    return code;
}

/* Scores the ideal reply to the same prompt. */
static int score_reply(struct run *r, struct kv_sequence *fork, struct tokens *tokens, const char *reply,
                       struct score *score)
{
    const struct text_span span = {reply, strlen(reply), false};
    size_t prompt_end = tokens->count;
    int code = tokenizer_encode(r->runner->rules.tokenizer, &span, 1, false, tokens, r->error);
    if (code < 0 || tokens->count >= engine_model(r->runner->run.engine)->context_length)
        return code;
    kv_sequence_truncate(fork, prompt_end - 1); /* for the logits after it */
    return compute(r, fork, tokens, prompt_end, score);
}

/* Asks one question on a fork of the conversation. */
static int ask(struct run *r, size_t base, const struct quality_query *query, uint8_t *found)
{
    struct kv_sequence fork;
    struct tokens tokens = {0};
    struct score score = {0};
    kv_sequence_init(&fork, r->runner->run.pool);
    int code = kv_sequence_share(&fork, &r->sequence);
    if (code == 0)
        code = tokens_append_all(&tokens, r->tokens.ids, r->tokens.count);
    if (code < 0)
        error_set(r->error, code, "out of memory");
    if (code == 0)
        code = transcript_prompt(&r->runner->rules, r->one->system, base, false, query->question,
                                 strlen(query->question), &tokens, r->error);
    if (code == 0)
        code = reply_greedily(r, &fork, &tokens, query->answer, found);
    if (code == 0 && query->reply)
        code = score_reply(r, &fork, &tokens, query->reply, &score);
    r->result->reply_log_probability += score.sum;
    r->result->reply_tokens += score.tokens;
    kv_sequence_deinit(&fork);
    tokens_deinit(&tokens);
    return code;
}

static void count_bytes(struct run *r)
{
    const struct kv_geometry *g = kv_pool_geometry(r->sequence.pool);
    for (size_t c = 0; c < kv_chunks_of(r->sequence.tokens); c++) {
        r->result->bytes += kv_chunk_bytes(g, r->sequence.chunks[c]->level);
        r->result->values += (uint64_t)g->layers * g->kv_heads * 2 * KV_CHUNK_TOKENS * g->dim;
    }
}

int quality_run(struct quality_runner *runner, const struct quality_setting *setting,
                const struct quality_case *one, struct quality_result *result, struct error *error)
{
    struct run r = {
        .runner = runner, .setting = setting, .one = one, .result = result, .random = {1}, .error = error};
    uint32_t limit = engine_model(runner->run.engine)->context_length;
    kv_sequence_init(&r.sequence, runner->run.pool);
    int code = transcript_base(&runner->rules, one->system, &r.tokens, error);
    size_t base = r.tokens.count;
    if (code == 0)
        code = compute(&r, &r.sequence, &r.tokens, 1, &r.score);
    for (size_t i = 0; i < one->turn_count && code == 0; i++) {
        code = run_turn(&r, i, base);
        if (code == 0 && r.tokens.count >= limit)
            code =
                error_set(error, -E2BIG, "%s: longer than the model's context of %u tokens", one->id, limit);
    }
    result->log_probability = r.score.sum;
    result->tokens = r.score.tokens;
    if (code == 0)
        count_bytes(&r);
    for (size_t i = 0; i < one->query_count && code == 0; i++)
        code = ask(&r, base, &one->queries[i], &result->found[i]);
    kv_sequence_deinit(&r.sequence);
    tokens_deinit(&r.tokens);
    return code;
}
