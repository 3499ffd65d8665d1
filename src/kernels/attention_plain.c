/* Attention on chunks, plain twin: the definition in code. */
#include "kernels/attention.h"

#include <math.h>

#include "kernels/kernels_internal.h"
#include "kernels/math_plain.h"

size_t attention_scratch_floats(size_t max_visible)
{
    return ATTENTION_QUERIES * ((max_visible + CHUNK_TOKENS - 1) / CHUNK_TOKENS * CHUNK_TOKENS);
}

static float key_at(const struct attention_chunk *c, size_t d, size_t t)
{
    size_t i = d * CHUNK_TOKENS + t;
    return c->level == 16 ? half_to_float(((const uint16_t *)c->data)[i])
                          : (float)((const int8_t *)c->data)[i];
}

static float value_at(const struct attention_chunk *c, size_t dim, size_t t, size_t d)
{
    size_t i = CHUNK_TOKENS * dim + t * dim + d;
    return c->level == 16 ? half_to_float(((const uint16_t *)c->data)[i])
                          : (float)((const int8_t *)c->data)[i];
}

static void attend_one(const struct attention *a, const float *q, uint32_t visible, float *p, float *out)
{
    float top = -INFINITY, lane[16] = {0};
    for (size_t t = 0; t < visible; t++) {
        const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
        float s = 0;
        for (size_t d = 0; d < a->dim; d++)
            s = fmaf(q[d], key_at(c, d, t % CHUNK_TOKENS), s);
        if (c->level == 8)
            s *= half_to_float(attention_scales(c->data, a->dim)[t % CHUNK_TOKENS]);
        p[t] = s * a->scale;
        top = p[t] > top ? p[t] : top;
    }
    for (size_t t = 0; t < visible; t++) {
        p[t] = plain_exp(p[t] - top);
        lane[t % 16] += p[t];
    }
    for (size_t t = 0; t < visible; t++) {
        const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
        if (c->level == 8)
            p[t] *= half_to_float(attention_scales(c->data, a->dim)[CHUNK_TOKENS + t % CHUNK_TOKENS]);
    }
    float total = plain_sum16(lane);
    for (size_t d = 0; d < a->dim; d++) {
        float sum = 0;
        for (size_t t = 0; t < visible; t++)
            sum = fmaf(p[t], value_at(&a->chunks[t / CHUNK_TOKENS], a->dim, t % CHUNK_TOKENS, d), sum);
        out[d] = sum / total;
    }
}

void attention_plain(const struct attention *a)
{
    for (size_t i = 0; i < a->queries; i++)
        attend_one(a, a->q[i], a->visible[i], a->scratch, a->out[i]);
}

/* Codes of one vector; returns its scale as a half. */
static uint16_t quantise(const float *x, size_t dim, int8_t *out, size_t stride)
{
    float top = 0;
    for (size_t d = 0; d < dim; d++)
        top = fmaxf(top, fabsf(x[d]));
    uint16_t scale = float_to_half(top / 127.0f > 65504.0f ? 65504.0f : top / 127.0f);
    float step = half_to_float(scale);
    for (size_t d = 0; d < dim; d++) {
        float q = step > 0 ? rintf(x[d] / step) : 0;
        out[d * stride] = (int8_t)(q > 127 ? 127 : q > -127 ? q : -127);
    }
    return scale;
}

void store_plain(void *data, uint8_t level, size_t dim, unsigned slot, const float *k, const float *v)
{
    if (level == 16) {
        uint16_t *keys = (uint16_t *)data + slot,
                 *values = (uint16_t *)data + CHUNK_TOKENS * dim + slot * dim;
        for (size_t d = 0; d < dim; d++) {
            keys[d * CHUNK_TOKENS] = float_to_half(k[d]);
            values[d] = float_to_half(v[d]);
        }
        return;
    }
    int8_t *keys = (int8_t *)data + slot, *values = (int8_t *)data + CHUNK_TOKENS * dim + slot * dim;
    uint16_t *scales = (uint16_t *)data + CHUNK_TOKENS * dim; /* behind 2 x 16 x dim bytes of codes */
    scales[slot] = quantise(k, dim, keys, CHUNK_TOKENS);
    scales[CHUNK_TOKENS + slot] = quantise(v, dim, values, 1);
}
