#include "engine/weights.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

enum {
    MAX_LAYERS = 1024,
    MAX_WIDTH = 1 << 20,
    MAX_VOCABULARY = 1 << 22,
    MAX_CONTEXT = 1 << 24,
    MAX_DIM = 256
};

/* ---- metadata: "<architecture>.<key>" ---- */

static int read_u32(const struct weights *w, const struct gguf *gguf, const char *key, uint32_t low,
                    uint32_t high, uint32_t *value, struct error *error)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", w->architecture, key);
    int code = gguf_get_u32(gguf, name, value);
    if (code == -ENOENT)
        return code;
    if (code < 0)
        return error_set(error, -EINVAL, "metadata %s is not one unsigned number, which this engine needs",
                         name);
    if (*value < low || *value > high)
        return error_set(error, -EINVAL, "metadata %s is %u, outside %u..%u", name, *value, low, high);
    return 0;
}

static int need_u32(const struct weights *w, const struct gguf *gguf, const char *key, uint32_t low,
                    uint32_t high, uint32_t *value, struct error *error)
{
    int code = read_u32(w, gguf, key, low, high, value, error);
    if (code == -ENOENT)
        return error_set(error, -EINVAL, "metadata %s.%s is missing", w->architecture, key);
    return code;
}

static int optional_u32(const struct weights *w, const struct gguf *gguf, const char *key, uint32_t low,
                        uint32_t high, uint32_t fallback, uint32_t *value, struct error *error)
{
    int code = read_u32(w, gguf, key, low, high, value, error);
    if (code == -ENOENT) {
        *value = fallback;
        return 0;
    }
    return code;
}

static int read_float(const struct weights *w, const struct gguf *gguf, const char *key, float fallback,
                      float *value, struct error *error)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", w->architecture, key);
    int code = gguf_get_f32(gguf, name, value);
    if (code == -ENOENT) {
        *value = fallback;
        return 0;
    }
    if (code < 0 || !isfinite(*value) || *value < 0)
        return error_set(error, -EINVAL, "metadata %s is not a finite, positive number", name);
    return 0;
}

static int read_architecture(struct weights *w, const struct gguf *gguf, struct error *error)
{
    static const char *const known[] = {"llama", "qwen2", "qwen3"};
    struct gguf_string name;
    if (gguf_get_string(gguf, "general.architecture", &name) < 0)
        return error_set(error, -EINVAL, "metadata general.architecture is missing");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i]) == name.length && memcmp(known[i], name.data, name.length) == 0) {
            snprintf(w->architecture, sizeof w->architecture, "%s", known[i]);
            w->rope_halves = i > 0;
            return 0;
        }
    return error_set(error, -ENOTSUP, "architecture \"%.*s\" is not supported (llama, qwen2 and qwen3 are)",
                     (int)(name.length < 40 ? name.length : 40), name.data);
}

static int read_dimensions(struct weights *w, const struct gguf *gguf, struct error *error)
{
    int code;
    uint32_t value_dim;
    if ((code = need_u32(w, gguf, "block_count", 1, MAX_LAYERS, &w->layer_count, error)) < 0 ||
        (code = need_u32(w, gguf, "embedding_length", 1, MAX_WIDTH, &w->width, error)) < 0 ||
        (code = need_u32(w, gguf, "feed_forward_length", 1, MAX_WIDTH, &w->hidden, error)) < 0 ||
        (code = need_u32(w, gguf, "attention.head_count", 1, 4096, &w->heads, error)) < 0 ||
        (code = need_u32(w, gguf, "context_length", 1, MAX_CONTEXT, &w->context_length, error)) < 0 ||
        (code = optional_u32(w, gguf, "attention.head_count_kv", 1, 4096, w->heads, &w->kv_heads, error)) <
            0 ||
        (code = optional_u32(w, gguf, "attention.key_length", 1, MAX_DIM, w->width / w->heads, &w->dim,
                             error)) < 0 ||
        (code = optional_u32(w, gguf, "attention.value_length", 1, MAX_DIM, w->dim, &value_dim, error)) < 0 ||
        (code = optional_u32(w, gguf, "rope.dimension_count", 2, MAX_DIM, w->dim, &w->rope_dims, error)) <
            0 ||
        (code = read_float(w, gguf, "attention.layer_norm_rms_epsilon", 1e-5f, &w->epsilon, error)) < 0)
        return code;
    if (w->heads % w->kv_heads)
        return error_set(error, -EINVAL, "%u attention heads cannot be grouped over %u key/value heads",
                         w->heads, w->kv_heads);
    if (value_dim != w->dim)
        return error_set(error, -ENOTSUP, "key length %u and value length %u differ, which is not supported",
                         w->dim, value_dim);
    if (w->dim % 8 || w->dim > MAX_DIM || w->dim == 0)
        return error_set(error, -ENOTSUP,
                         "a head of %u dimensions is not supported (a multiple of 8 up to %d is)", w->dim,
                         MAX_DIM);
    if (w->rope_dims % 2 || w->rope_dims > w->dim)
        return error_set(error, -EINVAL, "%u rotated dimensions do not fit a head of %u", w->rope_dims,
                         w->dim);
    return 0;
}

/* ---- tensors ---- */

static const struct gguf_tensor *find(const struct gguf *gguf, const char *format, va_list args,
                                      char name[96])
{
    vsnprintf(name, 96, format, args);
    return gguf_tensor_find(gguf, name);
}

/* A matrix of rows x columns; layer < 0 for those outside the layers. -ENOENT (no text) if optional and
 * missing. */
static int matrix(const struct gguf *gguf, bool optional, size_t rows, size_t columns, struct matrix *out,
                  struct error *error, const char *format, ...)
{
    char name[96];
    va_list args;
    va_start(args, format);
    const struct gguf_tensor *t = find(gguf, format, args, name);
    va_end(args);
    if (!t)
        return optional ? -ENOENT : error_set(error, -EINVAL, "tensor %s is missing", name);
    if (t->size[0] != columns || t->size[1] != rows || t->size[2] != 1 || t->size[3] != 1)
        return error_set(error, -EINVAL, "tensor %s has shape %llu x %llu where %zu x %zu is expected", name,
                         (unsigned long long)t->size[1], (unsigned long long)t->size[0], rows, columns);
    if ((t->type == DTYPE_F32 && (uintptr_t)t->data % 4) || (uintptr_t)t->data % 2)
        return error_set(error, -EINVAL, "tensor %s is not aligned", name);
    *out = (struct matrix){t->data, rows, columns, t->type, kernels_pack_of(t->type)};
    return 0;
}

/* A vector of n F32 numbers. */
static int vector(const struct gguf *gguf, bool optional, size_t n, const float **out, struct error *error,
                  const char *format, ...)
{
    char name[96];
    va_list args;
    va_start(args, format);
    const struct gguf_tensor *t = find(gguf, format, args, name);
    va_end(args);
    *out = NULL;
    if (!t)
        return optional ? 0 : error_set(error, -EINVAL, "tensor %s is missing", name);
    if (t->type != DTYPE_F32)
        return error_set(error, -ENOTSUP, "tensor %s is of type %s where F32 is expected", name,
                         dtype_info((uint32_t)t->type)->name);
    if (t->size[0] != n || t->size[1] != 1 || t->size[2] != 1 || t->size[3] != 1)
        return error_set(error, -EINVAL, "tensor %s has %llu x %llu values where %zu are expected", name,
                         (unsigned long long)t->size[0], (unsigned long long)t->size[1], n);
    if ((uintptr_t)t->data % 4)
        return error_set(error, -EINVAL, "tensor %s is not aligned", name);
    *out = t->data;
    return 0;
}

static int read_layer(struct weights *w, const struct gguf *gguf, uint32_t i, struct error *error)
{
    struct layer *l = &w->layers[i];
    size_t q = (size_t)w->heads * w->dim, kv = (size_t)w->kv_heads * w->dim;
    bool biased = strcmp(w->architecture, "qwen2") == 0, normed = strcmp(w->architecture, "qwen3") == 0;
    char experts[64];
    snprintf(experts, sizeof experts, "blk.%u.ffn_gate_inp.weight", i);
    if (gguf_tensor_find(gguf, experts))
        return error_set(error, -ENOTSUP, "mixture-of-experts models are not supported (tensor %s)", experts);
    int code;
    if ((code = vector(gguf, false, w->width, &l->attention_norm, error, "blk.%u.attn_norm.weight", i)) < 0 ||
        (code = vector(gguf, false, w->width, &l->ffn_norm, error, "blk.%u.ffn_norm.weight", i)) < 0 ||
        (code = matrix(gguf, false, q, w->width, &l->q, error, "blk.%u.attn_q.weight", i)) < 0 ||
        (code = matrix(gguf, false, kv, w->width, &l->k, error, "blk.%u.attn_k.weight", i)) < 0 ||
        (code = matrix(gguf, false, kv, w->width, &l->v, error, "blk.%u.attn_v.weight", i)) < 0 ||
        (code = vector(gguf, !biased, q, &l->q_bias, error, "blk.%u.attn_q.bias", i)) < 0 ||
        (code = vector(gguf, !biased, kv, &l->k_bias, error, "blk.%u.attn_k.bias", i)) < 0 ||
        (code = vector(gguf, !biased, kv, &l->v_bias, error, "blk.%u.attn_v.bias", i)) < 0 ||
        (code = vector(gguf, !normed, w->dim, &l->q_norm, error, "blk.%u.attn_q_norm.weight", i)) < 0 ||
        (code = vector(gguf, !normed, w->dim, &l->k_norm, error, "blk.%u.attn_k_norm.weight", i)) < 0 ||
        (code = matrix(gguf, false, w->width, q, &l->o, error, "blk.%u.attn_output.weight", i)) < 0 ||
        (code = matrix(gguf, false, w->hidden, w->width, &l->gate, error, "blk.%u.ffn_gate.weight", i)) < 0 ||
        (code = matrix(gguf, false, w->hidden, w->width, &l->up, error, "blk.%u.ffn_up.weight", i)) < 0 ||
        (code = matrix(gguf, false, w->width, w->hidden, &l->down, error, "blk.%u.ffn_down.weight", i)) < 0)
        return code;
    static const char *const unknown[] = {"attn_output.bias", "ffn_gate.bias", "ffn_up.bias",
                                          "ffn_down.bias"};
    for (size_t k = 0; k < sizeof unknown / sizeof *unknown; k++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s", i, unknown[k]);
        if (gguf_tensor_find(gguf, name))
            return error_set(error, -ENOTSUP, "tensor %s is not supported", name);
    }
    return 0;
}

/* Radians a position for each rotated pair: base^(-2 i / dims), divided by the file's factor for that pair
 * (rope_freqs.weight: Llama 3's long-context correction) and by a linear scaling factor. */
static int read_rope(struct weights *w, const struct gguf *gguf, struct error *error)
{
    char key[64];
    float base, factor = 0;
    const float *factors;
    struct gguf_string scaling;
    int code = read_float(w, gguf, "rope.freq_base", 10000.0f, &base, error);
    if (code < 0)
        return code;
    if (!(base > 0))
        return error_set(error, -EINVAL, "metadata %s.rope.freq_base is not positive", w->architecture);
    snprintf(key, sizeof key, "%s.rope.scaling.type", w->architecture);
    bool linear = true;
    if (gguf_get_string(gguf, key, &scaling) == 0) {
        linear = scaling.length == 6 && memcmp(scaling.data, "linear", 6) == 0;
        if (!linear && !(scaling.length == 4 && memcmp(scaling.data, "none", 4) == 0))
            return error_set(error, -ENOTSUP,
                             "rotary scaling \"%.*s\" is not supported (none and linear are)",
                             (int)(scaling.length < 32 ? scaling.length : 32), scaling.data);
    }
    if ((code = read_float(w, gguf, "rope.scale_linear", 1.0f, &factor, error)) < 0 ||
        (code = read_float(w, gguf, "rope.scaling.factor", factor, &factor, error)) < 0 ||
        (code = vector(gguf, true, w->rope_dims / 2, &factors, error, "rope_freqs.weight")) < 0)
        return code;
    if (!linear || factor <= 0)
        factor = 1.0f;
    w->rope_rates = mem_alloc(w->rope_dims / 2 * sizeof *w->rope_rates);
    if (!w->rope_rates)
        return error_set(error, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < w->rope_dims / 2; i++) {
        double divide = factors ? (double)factors[i] : 1.0;
        if (!(divide > 0) || !isfinite(divide))
            return error_set(error, -EINVAL, "tensor rope_freqs.weight holds a factor that is not positive");
        w->rope_rates[i] = pow(base, -2.0 * i / w->rope_dims) / divide / factor;
    }
    return 0;
}

static void count(struct weights *w, const struct gguf *gguf)
{
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(gguf, i);
        w->parameters += t->size[0] * t->size[1] * t->size[2] * t->size[3];
        if (t->data != w->embedding.data || w->embedding.data == w->output.data)
            w->bytes_per_token += t->bytes;
    }
}

int weights_init(struct weights *w, const struct gguf *gguf, struct error *error)
{
    *w = (struct weights){0};
    int code = read_architecture(w, gguf, error);
    if (code < 0 || (code = read_dimensions(w, gguf, error)) < 0 || (code = read_rope(w, gguf, error)) < 0)
        goto fail;
    const struct gguf_tensor *embedding = gguf_tensor_find(gguf, "token_embd.weight");
    if (!embedding || embedding->size[1] > MAX_VOCABULARY) {
        code = error_set(error, -EINVAL,
                         embedding ? "the vocabulary is too large" : "tensor token_embd.weight is missing");
        goto fail;
    }
    w->vocabulary = (uint32_t)embedding->size[1];
    if ((code = matrix(gguf, false, w->vocabulary, w->width, &w->embedding, error, "token_embd.weight")) <
            0 ||
        (code = vector(gguf, false, w->width, &w->output_norm, error, "output_norm.weight")) < 0)
        goto fail;
    code = matrix(gguf, true, w->vocabulary, w->width, &w->output, error, "output.weight");
    if (code == -ENOENT)
        w->output = w->embedding;
    else if (code < 0)
        goto fail;
    w->layers = mem_calloc(w->layer_count, sizeof *w->layers);
    if (!w->layers) {
        code = error_set(error, -ENOMEM, "out of memory");
        goto fail;
    }
    for (uint32_t i = 0; i < w->layer_count; i++)
        if ((code = read_layer(w, gguf, i, error)) < 0)
            goto fail;
    count(w, gguf);
    return 0;
fail:
    weights_deinit(w);
    return code;
}

void weights_deinit(struct weights *w)
{
    mem_free(w->layers);
    mem_free(w->rope_rates);
    *w = (struct weights){0};
}

enum dtype weights_main_type(const struct weights *w)
{
    uint64_t bytes[64] = {0};
    enum dtype best = w->output.type;
    for (uint32_t i = 0; i < w->layer_count; i++) {
        const struct layer *l = &w->layers[i];
        const struct matrix *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t k = 0; k < 7; k++) {
            enum dtype t = all[k]->type;
            bytes[t % 64] += dtype_row_bytes(t, all[k]->columns) * all[k]->rows;
            if (bytes[t % 64] > bytes[best % 64])
                best = t;
        }
    }
    return best;
}
