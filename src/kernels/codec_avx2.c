/* The codec compiled for AVX2, and the rotation on vectors of 8. */
#include <immintrin.h>

#include "kernels/codec.h"
#include "kernels/kernels_internal.h"

static void widen8(const uint16_t *half, float *out)
{
    _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)half)));
}

static void narrow16(const float *x, uint16_t *half)
{
    for (int i = 0; i < 16; i += 8)
        _mm_storeu_si128((__m128i *)(half + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
}

#include "kernels/codec_core.h"

struct codec_error codec_avx2(const struct codec_head *head)
{
    return convert(head);
}

/* The three steps inside 8 lanes: a lane's partner, plus or minus the lane itself. */
static inline __m256 rotate8(__m256 x)
{
    const __m256 odd = _mm256_setr_ps(0, -0.0f, 0, -0.0f, 0, -0.0f, 0, -0.0f);
    const __m256 pairs = _mm256_setr_ps(0, 0, -0.0f, -0.0f, 0, 0, -0.0f, -0.0f);
    const __m256 halves = _mm256_setr_ps(0, 0, 0, 0, -0.0f, -0.0f, -0.0f, -0.0f);
    x = _mm256_add_ps(_mm256_permute_ps(x, 0xb1), _mm256_xor_ps(x, odd));
    x = _mm256_add_ps(_mm256_permute_ps(x, 0x4e), _mm256_xor_ps(x, pairs));
    return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 1), _mm256_xor_ps(x, halves));
}

void rotate_avx2(float *x, size_t dim)
{
    size_t block = codec_block(dim);
    __m256 norm = _mm256_set1_ps(codec_norm(block));
    for (size_t d = 0; d < dim; d += 8)
        _mm256_storeu_ps(x + d, rotate8(_mm256_loadu_ps(x + d)));
    for (size_t step = 8; step < block; step *= 2)
        for (size_t base = 0; base < dim; base += 2 * step)
            for (size_t d = base; d < base + step; d += 8) {
                __m256 a = _mm256_loadu_ps(x + d), b = _mm256_loadu_ps(x + d + step);
                _mm256_storeu_ps(x + d, _mm256_add_ps(a, b));
                _mm256_storeu_ps(x + d + step, _mm256_sub_ps(a, b));
            }
    for (size_t d = 0; d < dim; d += 8)
        _mm256_storeu_ps(x + d, _mm256_mul_ps(_mm256_loadu_ps(x + d), norm));
}
