/* Packing of activation rows, AVX-512 (pack.h has the layout and the definition). */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/unroll.h"

/* The codes of 16 values. */
ALWAYS_INLINE __m128i codes_of(__m512 x, __m512 inverse)
{
    __m512 scaled = _mm512_mul_ps(x, inverse);
    scaled = _mm512_min_ps(scaled, _mm512_set1_ps(127.0f)); /* NaN takes the second operand */
    scaled = _mm512_max_ps(scaled, _mm512_set1_ps(-127.0f));
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled));
}

ALWAYS_INLINE int sum_of(__m128i codes)
{
    return _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(codes));
}

static void pack_q32(const float *x, size_t columns, unsigned char *out)
{
    float *scales = (float *)(out + pack_q32_scales_at(columns));
    int32_t *starts = (int32_t *)(out + pack_q32_starts_at(columns));
    for (size_t b = 0; b < columns / 32; b++, x += 32, out += 32) {
        __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16), zero = _mm512_setzero_ps();
        __m512 top_16 = _mm512_max_ps(_mm512_abs_ps(low), zero);
        float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(high), top_16));
        bool nan = _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) != 0;
        scales[b] = nan ? NAN : half_to_float(float_to_half(top / 127.0f));
        __m128i a = _mm_setzero_si128(), c = a;
        if (top != 0) {
            __m512 inverse = _mm512_set1_ps(127.0f / top);
            a = codes_of(low, inverse);
            c = codes_of(high, inverse);
        }
        _mm_store_si128((__m128i *)out, a);
        _mm_store_si128((__m128i *)(out + 16), c);
        starts[b] = -PACK_START * (sum_of(a) + sum_of(c));
    }
}

/* The first value of the largest magnitude among 256 (0 if none); *nan tells whether any is NaN. */
static float extreme(const float *x, bool *nan)
{
    __m512 top = _mm512_setzero_ps();
    __mmask16 unordered = 0;
    for (int i = 0; i < 256; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        top = _mm512_max_ps(_mm512_abs_ps(v), top);
        unordered |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    }
    *nan = unordered != 0;
    __m512 all = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (int i = 0; i < 256; i += 16) {
        __mmask16 at = _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(x + i)), all, _CMP_EQ_OQ);
        if (at)
            return x[i + __builtin_ctz(at)];
    }
    return 0;
}

static void pack_q256(const float *x, size_t columns, unsigned char *out)
{
    float *scales = (float *)(out + pack_q256_scales_at(columns));
    int16_t *sums = (int16_t *)(out + pack_q256_sums_at(columns));
    for (size_t b = 0; b < columns / 256; b++, x += 256, out += 256, sums += 16) {
        bool nan;
        float max = extreme(x, &nan), inverse = max != 0 ? -127.0f / max : 0;
        scales[b] = nan ? NAN : max != 0 ? 1.0f / inverse : 0;
        for (int s = 0; s < 16; s++) {
            __m128i codes = _mm_setzero_si128();
            if (max != 0)
                codes = codes_of(_mm512_loadu_ps(x + 16 * s), _mm512_set1_ps(inverse));
            _mm_store_si128((__m128i *)(out + 16 * s), codes);
            sums[s] = (int16_t)sum_of(codes);
        }
    }
}

void pack_avx512(enum pack pack, const float *x, size_t columns, void *out)
{
    if (pack == PACK_F32) {
        pack_plain(pack, x, columns, out);
        return;
    }
    memset((char *)out + columns, 0, kernels_packed_bytes(pack, columns) - columns);
    if (pack == PACK_Q32)
        pack_q32(x, columns, out);
    else
        pack_q256(x, columns, out);
}
