/* The codec compiled for AVX-512. */
#include <immintrin.h>

#include "kernels/codec.h"
#include "kernels/kernels_internal.h"

static void widen8(const uint16_t *half, float *out)
{
    _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)half)));
}

static void narrow16(const float *x, uint16_t *half)
{
    _mm256_storeu_si256((__m256i *)half, _mm512_cvtps_ph(_mm512_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT));
}

#include "kernels/codec_core.h"

struct codec_error codec_avx512(const struct codec_head *head)
{
    return convert(head);
}
