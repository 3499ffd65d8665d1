/* Attention on chunks, plain twin: the definition in code. */
#include "kernels/attention.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/attention_shared.h"
#include "kernels/codec.h"
#include "kernels/kernels_internal.h"
#include "kernels/math_plain.h"

size_t attention_scratch_floats(size_t max_visible)
{
    size_t chunks = (max_visible + CHUNK_TOKENS - 1) / CHUNK_TOKENS;
    size_t groups = (chunks + ATTENTION_GROUP - 1) / ATTENTION_GROUP;
    return ATTENTION_ROOM + ATTENTION_QUERIES * (chunks * CHUNK_TOKENS * 5 / 4 + groups);
}

/* What a code by channel stands for. */
static float by_channel(const struct attention_chunk *c, size_t dim, bool values, size_t d, unsigned code)
{
    float step, low;
    codec_channels(c->data, c->level, dim, values, d, 1, &step, &low);
    return fmaf((float)code, step, low);
}

static float key_at(const struct attention_chunk *c, size_t dim, size_t d, size_t t)
{
    size_t i = d * CHUNK_TOKENS + t;
    if (c->level == 16)
        return half_to_float(((const uint16_t *)c->data)[i]);
    unsigned code = codec_key(c->data, c->level, d, t);
    return codec_by_channel(c->level, false) ? by_channel(c, dim, false, d, code) : (float)code - CODEC_MID;
}

static float value_at(const struct attention_chunk *c, size_t dim, size_t t, size_t d)
{
    size_t i = CHUNK_TOKENS * dim + t * dim + d;
    if (c->level == 16)
        return half_to_float(((const uint16_t *)c->data)[i]);
    unsigned code = codec_value(c->data, c->level, dim, t, d);
    return codec_by_channel(c->level, true) ? by_channel(c, dim, true, d, code) : (float)code - CODEC_MID;
}

static float scale_at(const struct attention *a, size_t t, size_t values)
{
    const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
    return half_to_float(codec_scales(c->data, c->level, a->dim)[values + t % CHUNK_TOKENS]);
}

/* n of `count` values (attention.h) and what to multiply their sums by. */
static float to_integers(const float *x, size_t count, float limit, int32_t *n)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = float_bits(x[i]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float step, factor = attention_integers(largest, limit, &step);
    for (size_t i = 0; i < count; i++)
        n[i] = factor > 0 ? (int32_t)rintf(x[i] * factor) : 0;
    return step;
}

/* A of level 8: a[dim]. */
static void weigh_codes(const struct attention *a, const float *p, uint32_t visible, float *sum)
{
    enum { POSITIONS = ATTENTION_GROUP * CHUNK_TOKENS };
    for (size_t first = 0; first < visible; first += POSITIONS) {
        float w[POSITIONS] = {0}; /* 0 at other levels: adds nothing */
        int32_t n[POSITIONS];
        size_t count = visible - first < POSITIONS ? visible - first : POSITIONS;
        for (size_t i = 0; i < count; i++)
            if (a->chunks[(first + i) / CHUNK_TOKENS].level == 8)
                w[i] = p[first + i] * scale_at(a, first + i, CHUNK_TOKENS);
        float step = to_integers(w, count, ATTENTION_WEIGHT, n);
        for (size_t d = 0; d < a->dim; d++) {
            int32_t s = 0;
            for (size_t i = 0; i < count; i++) {
                const struct attention_chunk *c = &a->chunks[(first + i) / CHUNK_TOKENS];
                if (c->level == 8)
                    s += n[i] *
                         ((const int8_t *)c->data)[(CHUNK_TOKENS + (first + i) % CHUNK_TOKENS) * a->dim + d];
            }
            sum[d] = fmaf((float)s, step, sum[d]);
        }
    }
}

/* `sum` and w[t] * V[t][d] over the chunks that are rotated, or the others but level 8's. */
static float weigh(const struct attention *a, const float *w, uint32_t visible, size_t d, bool rotated,
                   float sum)
{
    for (size_t t = 0; t < visible; t++) {
        const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
        if (c->level != 8 && attention_rotated(c) == rotated)
            sum = fmaf(w[t], value_at(c, a->dim, t % CHUNK_TOKENS, d), sum);
    }
    return sum;
}

/* A score of level 8; unit: what one of n stands for, times the scale of attention. */
static float score_codes(const struct attention *a, const int32_t *n, float unit, size_t t)
{
    const int8_t *codes = (const int8_t *)a->chunks[t / CHUNK_TOKENS].data + t % CHUNK_TOKENS;
    int32_t s = 0;
    for (size_t d = 0; d < a->dim; d++)
        s += n[d] * codes[d * CHUNK_TOKENS];
    return (float)s * scale_at(a, t, 0) * unit;
}

/* p becomes the scores; returns their maximum. */
static float score(const struct attention *a, const float *q, const float *q_rotated, uint32_t visible,
                   float *p)
{
    int32_t n[ATTENTION_DIM];
    float top = -INFINITY, unit = to_integers(q, a->dim, ATTENTION_QUERY, n) * a->scale;
    for (size_t t = 0; t < visible; t++) {
        const struct attention_chunk *c = &a->chunks[t / CHUNK_TOKENS];
        const float *x = attention_rotated(c) ? q_rotated : q;
        float s = 0;
        for (size_t d = 0; c->level != 8 && d < a->dim; d++)
            s = fmaf(x[d], key_at(c, a->dim, d, t % CHUNK_TOKENS), s);
        if (attention_scaled(c, false))
            s *= scale_at(a, t, 0);
        p[t] = c->level == 8 ? score_codes(a, n, unit, t) : s * a->scale;
        top = p[t] > top ? p[t] : top;
    }
    return top;
}

static void attend_one(const struct attention *a, const float *q, uint32_t visible, float *out)
{
    float *q_rotated = a->scratch, *b = q_rotated + ATTENTION_DIM, *sum = b + ATTENTION_DIM;
    float *p = a->scratch + ATTENTION_ROOM, lane[16] = {0};
    bool rotated = attention_first_rotated(a, visible) < visible;
    if (rotated) {
        memcpy(q_rotated, q, a->dim * sizeof *q);
        codec_rotate(q_rotated, a->dim);
    }
    float top = score(a, q, q_rotated, visible, p);
    for (size_t t = 0; t < visible; t++) {
        p[t] = plain_exp(p[t] - top);
        lane[t % 16] += p[t];
    }
    float total = plain_sum16(lane), unit = attention_unit(total);
    for (size_t t = 0; t < visible; t++) {
        if (a->received && unit > 0)
            a->received[t] += attention_units(p[t], unit);
        if (attention_scaled(&a->chunks[t / CHUNK_TOKENS], true))
            p[t] *= scale_at(a, t, CHUNK_TOKENS);
    }
    memset(sum, 0, a->dim * sizeof *sum);
    weigh_codes(a, p, visible, sum);
    for (size_t d = 0; rotated && d < a->dim; d++)
        b[d] = weigh(a, p, visible, d, true, 0);
    if (rotated)
        codec_rotate(b, a->dim);
    for (size_t d = 0; d < a->dim; d++) {
        sum[d] = weigh(a, p, visible, d, false, sum[d]);
        out[d] = (rotated ? sum[d] + b[d] : sum[d]) / total;
    }
}

void attention_plain(const struct attention *a)
{
    for (size_t i = 0; i < a->queries; i++)
        attend_one(a, a->q[i], a->visible[i], a->out[i]);
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
