/* llms-bench model: a GGUF with random weights in the shape of a known model.
 *
 * Weights are scaled so that a run through the layers stays in the range a trained model has, and so that the
 * logits have a clear winner nearly always: greedy continuations can then be compared between engines whose
 * last bits differ. With sizes as in `gains`, and v tokens: embedding rows       variance LOGIT^2 / width: a
 * logit of an unrelated token is drawn with deviation LOGIT all layers together  add LOGIT / signal to the
 * residual stream (rms), signal = sqrt(2 ln v) + MARGIN so the token whose output row is the last token's
 * embedding gets signal deviations, a little more than the largest of v random ones. With tied output that is
 * the last token itself: real shapes repeat themselves, which is as good as anything for measuring speed. In
 * the tiny shapes the output rows are the embedding's in another order: continuations walk that permutation,
 * with departures that depend on the whole context.
 *
 * Same seed, same bytes, on every machine. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/hash.h"
#include "base/memory.h"
#include "bench.h"
#include "blocks.h"
#include "gguf_write.h"
#include "shapes.h"
#include "vocabulary.h"

static const float LOGIT = 1.5f;
static const float MARGIN = 3;
static const float ATTENTION_GAIN = 1.5f; /* of q and k: attention neither flat nor on one token only */

/* What a --type means: the type of most weights, and whether some get more bits. */
struct mixture {
    const char *name;
    enum dtype type;
    bool more; /* Q6_K for attn_v and ffn_down of half the layers, as llama.cpp's _M mixtures */
    uint32_t file_type;
};

static const struct mixture mixtures[] = {
    {"F32", DTYPE_F32, false, 0},     {"F16", DTYPE_F16, false, 1},    {"BF16", DTYPE_BF16, false, 32},
    {"Q8_0", DTYPE_Q8_0, false, 7},   {"Q4_0", DTYPE_Q4_0, false, 2},  {"Q4_1", DTYPE_Q4_1, false, 3},
    {"Q5_0", DTYPE_Q5_0, false, 8},   {"Q5_1", DTYPE_Q5_1, false, 9},  {"Q4_K", DTYPE_Q4_K, false, 14},
    {"Q5_K", DTYPE_Q5_K, false, 16},  {"Q6_K", DTYPE_Q6_K, false, 18}, {"Q4_K_M", DTYPE_Q4_K, true, 15},
    {"Q5_K_M", DTYPE_Q5_K, true, 17},
};

/* One tensor's content. */
struct weight {
    struct blocks blocks;
    uint64_t seed;
    uint64_t permuted; /* 0, or the number of rows: row r is number (r x STRIDE + 1) mod rows of the seed's */
    const float *values; /* given, not drawn; F32 */
};

enum { WEIGHTS_A_LAYER = 14, WEIGHTS_BESIDE = 4, HEAD_MAX = 256 };
static const uint64_t STRIDE =
    2654435761u; /* a prime above any vocabulary: r x STRIDE mod rows is one to one */

struct maker {
    const struct shape *shape;
    const struct mixture *mixture;
    uint32_t vocabulary;
    uint64_t seed;
    struct gguf_write write;
    struct weight *weights;
    size_t weight_count;
    float rope_freqs[HEAD_MAX / 2];
};

/* The type for rows of `columns` values: where blocks do not fit, the one llama.cpp falls back to. */
static enum dtype fit(enum dtype type, uint64_t columns)
{
    if (columns % 256)
        type = type == DTYPE_Q4_K   ? DTYPE_Q5_0
               : type == DTYPE_Q5_K ? DTYPE_Q5_1
               : type == DTYPE_Q6_K ? DTYPE_Q8_0
                                    : type;
    return columns % dtype_info(type)->block_values ? DTYPE_F16 : type;
}

static void add(struct maker *maker, const char *name, enum dtype type, uint64_t columns, uint64_t rows,
                float mean, float deviation)
{
    struct weight *weight = &maker->weights[maker->weight_count++];
    struct gguf_write_tensor tensor = {.type = type, .columns = columns, .rows = rows, .user = weight};
    snprintf(tensor.name, sizeof tensor.name, "%s", name);
    *weight = (struct weight){.seed = hash_bytes(name, strlen(name), maker->seed)};
    blocks_init(&weight->blocks, type, mean, deviation);
    gguf_write_tensor(&maker->write, &tensor);
}

static void add_layer(struct maker *maker, uint32_t layer, const char *suffix, enum dtype type,
                      uint64_t columns, uint64_t rows, float mean, float deviation)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s", layer, suffix);
    add(maker, name, type, columns, rows, mean, deviation);
}

static void add_matrix(struct maker *maker, uint32_t layer, const char *suffix, enum dtype type,
                       uint64_t columns, uint64_t rows, float gain)
{
    add_layer(maker, layer, suffix, fit(type, columns), columns, rows, 0, gain / sqrtf((float)columns));
}

static void add_norm(struct maker *maker, uint32_t layer, const char *suffix, uint64_t values, float mean)
{
    add_layer(maker, layer, suffix, DTYPE_F32, values, 0, mean, 0.1f * mean);
}

static void add_bias(struct maker *maker, uint32_t layer, const char *suffix, uint64_t values)
{
    add_layer(maker, layer, suffix, DTYPE_F32, values, 0, 0, 0.3f);
}

/* Whether a layer is one of those whose attn_v and ffn_down get more bits in an _M mixture. */
static bool gets_more(uint32_t layer, uint32_t layers)
{
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

static void add_attention(struct maker *maker, uint32_t layer, enum dtype base, enum dtype more, float out)
{
    const struct shape *s = maker->shape;
    uint64_t q = (uint64_t)s->heads * s->head, kv = (uint64_t)s->kv_heads * s->head;
    float gain = s->qk_norm ? 1 : ATTENTION_GAIN;
    add_norm(maker, layer, "attn_norm.weight", s->width, 1);
    add_matrix(maker, layer, "attn_q.weight", base, s->width, q, gain);
    add_matrix(maker, layer, "attn_k.weight", base, s->width, kv, gain);
    add_matrix(maker, layer, "attn_v.weight", more, s->width, kv, 1);
    if (s->biases) {
        add_bias(maker, layer, "attn_q.bias", q);
        add_bias(maker, layer, "attn_k.bias", kv);
        add_bias(maker, layer, "attn_v.bias", kv);
    }
    if (s->qk_norm) {
        add_norm(maker, layer, "attn_q_norm.weight", s->head, ATTENTION_GAIN);
        add_norm(maker, layer, "attn_k_norm.weight", s->head, ATTENTION_GAIN);
    }
    add_matrix(maker, layer, "attn_output.weight", base, q, s->width, out);
}

static void add_layers(struct maker *maker)
{
    const struct shape *s = maker->shape;
    float signal = sqrtf(2 * logf((float)maker->vocabulary)) + MARGIN;
    /* Each of the 2 x layers branches adds its part; attention's average and silu(gate) * up are about 0.6.
     */
    float out = LOGIT / signal / sqrtf(2 * (float)s->layers) / 0.6f;
    enum dtype base = maker->mixture->type;
    for (uint32_t layer = 0; layer < s->layers; layer++) {
        enum dtype more = maker->mixture->more && gets_more(layer, s->layers) ? DTYPE_Q6_K : base;
        add_attention(maker, layer, base, more, out);
        add_norm(maker, layer, "ffn_norm.weight", s->width, 1);
        add_matrix(maker, layer, "ffn_gate.weight", base, s->width, s->ff, 1);
        add_matrix(maker, layer, "ffn_up.weight", base, s->width, s->ff, 1);
        add_matrix(maker, layer, "ffn_down.weight", more, s->ff, s->width, out);
    }
}

/* Llama 3's scaling of rotary frequencies, as the divisors llama.cpp stores: long waves 32 times longer. */
static void add_rope_freqs(struct maker *maker)
{
    const double factor = 32, low = 1, high = 4, original = 8192, pi = 3.14159265358979323846;
    uint32_t head = maker->shape->head;
    for (uint32_t i = 0; i < head / 2; i++) {
        double wave = 2 * pi * pow(maker->shape->rope_base, 2.0 * i / head);
        double smooth = (original / wave - low) / (high - low);
        maker->rope_freqs[i] = wave < original / high  ? 1
                               : wave > original / low ? (float)factor
                                                       : (float)(1 / ((1 - smooth) / factor + smooth));
    }
    add(maker, "rope_freqs.weight", DTYPE_F32, head / 2, 0, 0, 0);
    maker->weights[maker->weight_count - 1].values = maker->rope_freqs;
}

static void add_tensors(struct maker *maker)
{
    const struct shape *s = maker->shape;
    enum dtype base = maker->mixture->type;
    bool floats = base == DTYPE_F32 || base == DTYPE_F16 || base == DTYPE_BF16 || base == DTYPE_Q8_0;
    enum dtype output = fit(floats ? base : DTYPE_Q6_K, s->width);
    enum dtype embedding = s->tied || s->chain ? output : fit(base, s->width);
    float deviation = LOGIT / sqrtf((float)s->width);
    add(maker, "token_embd.weight", embedding, s->width, maker->vocabulary, 0, deviation);
    uint64_t embedding_seed = maker->weights[0].seed;
    add(maker, "output_norm.weight", DTYPE_F32, s->width, 0, 1, 0.1f);
    if (!s->tied)
        add(maker, "output.weight", output, s->width, maker->vocabulary, 0, deviation);
    if (s->chain) {
        maker->weights[maker->weight_count - 1].seed = embedding_seed;
        maker->weights[maker->weight_count - 1].permuted = maker->vocabulary;
    }
    if (s->rope_freqs)
        add_rope_freqs(maker);
    add_layers(maker);
}

static void arch_u32(struct maker *maker, const char *suffix, uint32_t value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", maker->shape->architecture, suffix);
    gguf_write_u32(&maker->write, key, value);
}

static void arch_f32(struct maker *maker, const char *suffix, float value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", maker->shape->architecture, suffix);
    gguf_write_f32(&maker->write, key, value);
}

static void add_metadata(struct maker *maker)
{
    const struct shape *s = maker->shape;
    char name[64];
    snprintf(name, sizeof name, "%s (random weights)", s->name);
    gguf_write_text(&maker->write, "general.architecture", s->architecture);
    gguf_write_text(&maker->write, "general.name", name);
    gguf_write_u32(&maker->write, "general.file_type", maker->mixture->file_type);
    gguf_write_u32(&maker->write, "general.quantization_version", 2);
    arch_u32(maker, "vocab_size", maker->vocabulary);
    arch_u32(maker, "context_length", s->context);
    arch_u32(maker, "embedding_length", s->width);
    arch_u32(maker, "block_count", s->layers);
    arch_u32(maker, "feed_forward_length", s->ff);
    arch_u32(maker, "attention.head_count", s->heads);
    arch_u32(maker, "attention.head_count_kv", s->kv_heads);
    if (s->head * s->heads != s->width) {
        arch_u32(maker, "attention.key_length", s->head);
        arch_u32(maker, "attention.value_length", s->head);
    }
    arch_u32(maker, "rope.dimension_count", s->head);
    arch_f32(maker, "rope.freq_base", s->rope_base);
    arch_f32(maker, "attention.layer_norm_rms_epsilon", s->epsilon);
}

static int add_vocabulary(struct maker *maker, const char *path, struct error *error)
{
    struct gguf *gguf = NULL;
    maker->vocabulary = maker->shape->vocabulary;
    if (!path) {
        bool bos =
            strcmp(maker->shape->architecture, "llama") == 0 && strcmp(maker->shape->pre, "smollm") != 0;
        vocabulary_synthetic(&maker->write, maker->shape->pre, maker->vocabulary, bos);
        return 0;
    }
    int code = gguf_open(path, &gguf, error);
    if (code < 0)
        return code;
    code = vocabulary_copy(&maker->write, gguf, &maker->vocabulary, error);
    if (code < 0)
        error_prefix(error, code, "%s", path);
    gguf_close(gguf);
    return code;
}

static void fill_row(void *context, const struct gguf_write_tensor *tensor, uint64_t row, void *out)
{
    const struct weight *weight = tensor->user;
    (void)context;
    if (weight->values) {
        memcpy(out, weight->values, tensor->columns * sizeof(float));
        return;
    }
    if (weight->permuted)
        row = (row * STRIDE + 1) % weight->permuted;
    struct random random = {hash_mix(weight->seed ^ (row + 1) * 0x9e3779b97f4a7c15u)};
    blocks_row(&weight->blocks, &random, out, tensor->columns);
}

static int make(struct maker *maker, const char *vocabulary, const char *path, struct error *error)
{
    size_t weights = (size_t)maker->shape->layers * WEIGHTS_A_LAYER + WEIGHTS_BESIDE;
    maker->weights = mem_calloc(weights, sizeof *maker->weights);
    if (!maker->weights)
        return error_set(error, -ENOMEM, "out of memory");
    int code = add_vocabulary(maker, vocabulary, error);
    if (code == 0) {
        add_metadata(maker);
        add_tensors(maker);
        code = gguf_write_publish(&maker->write, path, fill_row, maker, error);
    }
    gguf_write_deinit(&maker->write);
    mem_free(maker->weights);
    return code;
}

static void list_names(struct buffer *text)
{
    size_t count;
    const struct shape *shapes = shapes_list(&count);
    int code = buffer_append_text(text, "Shapes:");
    for (size_t i = 0; i < count && code == 0; i++)
        code = buffer_printf(text, "%s %s", i ? "," : "", shapes[i].name);
    if (code == 0)
        code = buffer_append_text(text, ".\nTypes:");
    for (size_t i = 0; i < sizeof mixtures / sizeof *mixtures && code == 0; i++)
        code = buffer_printf(text, "%s %s", i ? "," : "", mixtures[i].name);
    if (code == 0)
        buffer_append_text(text,
                           ".\nOf a quantised type, the output is Q6_K as in llama.cpp's files; rows that a "
                           "type's block does not divide\nget the type llama.cpp falls back to.\n");
}

static const struct mixture *find_mixture(const char *name)
{
    for (size_t i = 0; i < sizeof mixtures / sizeof *mixtures; i++)
        if (strcasecmp(mixtures[i].name, name) == 0)
            return &mixtures[i];
    return NULL;
}

int bench_model(int argc, char **argv)
{
    const char *shape = NULL, *type = NULL, *vocabulary = NULL, *out = NULL;
    struct maker maker = {.seed = 1};
    struct buffer names = {0};
    const struct bench_option options[] = {
        {"shape", BENCH_TEXT, &shape, "NAME", "whose sizes (below)", .required = true},
        {"type", BENCH_TEXT, &type, "TYPE", "of the weights (below)", .required = true},
        {"vocab", BENCH_TEXT, &vocabulary, "F.gguf",
         "copy this file's vocabulary (default: a synthetic one)"},
        {"seed", BENCH_NUMBER, &maker.seed, "N", "same seed, same file (default 1)"},
        {"out", BENCH_TEXT, &out, "F", "the file to write", .required = true},
    };
    list_names(&names);
    const struct bench_usage usage = {"model",
                                      "Writes a GGUF with random weights in the shape of a known model.",
                                      names.data, options, sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    buffer_deinit(&names);
    if (status != BENCH_GO)
        return status;
    maker.shape = shapes_find(shape);
    maker.mixture = find_mixture(type);
    if (!maker.shape)
        return bench_misuse("model", "--shape: unknown shape '%s' (see llms-bench model --help)", shape);
    if (!maker.mixture)
        return bench_misuse("model", "--type: unknown type '%s' (see llms-bench model --help)", type);
    struct error error = {0};
    return make(&maker, vocabulary, out, &error) < 0 ? bench_fail("model", &error) : 0;
}
