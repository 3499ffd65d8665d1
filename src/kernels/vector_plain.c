/* Row operations of a layer, plain twins. */
#include "kernels/kernels_internal.h"
#include "kernels/math_plain.h"

/* Canonical: squares summed in 16 lanes by k mod 16, fused; lanes added in a tree; y = (x * r) * weight. */
void rms_norm_plain(const float *x, const float *weight, float epsilon, size_t n, float *out)
{
    float lane[16] = {0};
    for (size_t i = 0; i < n; i++)
        lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    float r = 1.0f / sqrtf(plain_sum16(lane) / (float)n + epsilon);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * r * weight[i];
}

void swiglu_plain(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + plain_exp(-gate[i])) * up[i];
}

void add_plain(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}
