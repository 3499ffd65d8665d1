/* The codec in portable C, and the rotation's definition. */
#include "kernels/codec.h"

#include "base/half.h"
#include "kernels/kernels_internal.h"

static void widen8(const uint16_t *half, float *out)
{
    for (int i = 0; i < 8; i++)
        out[i] = half_to_float(half[i]);
}

static void narrow16(const float *x, uint16_t *half)
{
    for (int i = 0; i < 16; i++)
        half[i] = float_to_half(x[i]);
}

#include "kernels/codec_core.h"

struct codec_error codec_plain(const struct codec_head *head)
{
    return convert(head);
}

void codec_rotate(float *x, size_t dim)
{
    size_t block = codec_block(dim);
    for (size_t step = 1; step < block; step *= 2)
        for (size_t base = 0; base < dim; base += 2 * step)
            for (size_t d = base; d < base + step; d++) {
                float a = x[d], b = x[d + step];
                x[d] = a + b;
                x[d + step] = a - b;
            }
    float norm = codec_norm(block);
    for (size_t d = 0; d < dim; d++)
        x[d] *= norm;
}
