/* Packing of activation rows, AVX2 (pack.h has the layout and the definition). */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/unroll.h"

ALWAYS_INLINE __m256 magnitude(__m256 x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

ALWAYS_INLINE float largest(__m256 v)
{
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

ALWAYS_INLINE __m256i rounded(const float *x, __m256 inverse, float most)
{
    __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
    scaled = _mm256_min_ps(scaled, _mm256_set1_ps(most)); /* NaN takes the second operand */
    scaled = _mm256_max_ps(scaled, _mm256_set1_ps(-most));
    return _mm256_cvtps_epi32(scaled);
}

ALWAYS_INLINE int sum_of(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* Writes the codes of 16 values; returns their sum. */
ALWAYS_INLINE int pack_16(const float *x, float inverse, float most, unsigned char *out)
{
    __m256 factor = _mm256_set1_ps(inverse);
    __m256i a = rounded(x, factor, most), b = rounded(x + 8, factor, most);
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_store_si128((__m128i *)out, _mm_packs_epi16(low, high));
    return sum_of(_mm256_add_epi32(a, b));
}

/* Of a block's codes. */
ALWAYS_INLINE int pairs_start(const unsigned char *codes)
{
    const __m256i apart = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    __m256i v = _mm256_permutevar8x32_epi32(_mm256_load_si256((const __m256i *)codes), apart);
    __m256i x = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v));
    __m256i y = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1));
    return -sum_of(_mm256_madd_epi16(_mm256_add_epi16(x, _mm256_set1_epi16(PACK_PAIR)), y));
}

/* The largest magnitude among n values, NaN left out (0 if none); *nan tells whether there is one. */
ALWAYS_INLINE float extent(const float *x, int n, bool *nan)
{
    __m256 top = _mm256_setzero_ps(), unordered = top;
    for (int i = 0; i < n; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        top = _mm256_max_ps(magnitude(v), top); /* NaN takes the second operand */
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    *nan = _mm256_movemask_ps(unordered) != 0;
    return largest(top);
}

ALWAYS_INLINE void pack_block(enum pack pack, const float *x, const struct pack_block *to)
{
    const float most = pack_q32_most(pack);
    bool nan;
    float top = extent(x, 32, &nan);
    unsigned char *codes = (unsigned char *)to->codes;
    *to->scale = nan ? NAN : half_to_float(float_to_half(top / most));
    if (top != 0) {
        int sum = pack_16(x, most / top, most, codes);
        *to->start = -PACK_START * (sum + pack_16(x + 16, most / top, most, codes + 16));
    } else {
        memset(codes, 0, 32);
        *to->start = 0;
    }
    if (to->pairs)
        *to->pairs = pairs_start(codes);
}

static void pack_q32(enum pack pack, const float *x, size_t columns, unsigned char *out)
{
    for (size_t b = 0; b < columns / 32; b++) {
        const struct pack_block to = pack_block_at(pack, out, columns, b);
        pack_block(pack, x + 32 * b, &to);
    }
}

/* The first value of that magnitude. */
static float first_of(const float *x, float top)
{
    for (int i = 0;; i += 8) {
        __m256 same = _mm256_cmp_ps(magnitude(_mm256_loadu_ps(x + i)), _mm256_set1_ps(top), _CMP_EQ_OQ);
        int mask = _mm256_movemask_ps(same);
        if (mask)
            return x[i + __builtin_ctz((unsigned)mask)];
    }
}

static void pack_q256(const float *x, size_t columns, unsigned char *out)
{
    float *scales = (float *)(out + pack_q256_scales_at(columns));
    int16_t *sums = (int16_t *)(out + pack_q256_sums_at(columns));
    for (size_t b = 0; b < columns / 256; b++, x += 256, out += 256, sums += 16) {
        bool nan;
        float top = extent(x, 256, &nan);
        if (top != 0) {
            float inverse = -127.0f / first_of(x, top);
            scales[b] = nan ? NAN : 1.0f / inverse;
            for (int s = 0; s < 16; s++)
                sums[s] = (int16_t)pack_16(x + 16 * s, inverse, 127, out + 16 * s);
        } else {
            scales[b] = nan ? NAN : 0;
            memset(out, 0, 256);
            memset(sums, 0, 32);
        }
    }
}

void pack_avx2(enum pack pack, const float *x, size_t columns, void *out)
{
    if (pack == PACK_F32) {
        pack_plain(pack, x, columns, out);
        return;
    }
    memset((char *)out + columns, 0, kernels_packed_bytes(pack, columns) - columns);
    if (pack == PACK_Q256)
        pack_q256(x, columns, out);
    else
        pack_q32(pack, x, columns, out);
}

void pack_part_avx2(const struct pack_part *p)
{
    const size_t bytes = kernels_packed_bytes(p->pack, p->columns), blocks = p->count / 32;
    const float *x = p->x;
    for (size_t t = 0; t < p->tokens; t++)
        for (size_t b = 0; b < blocks; b++, x += 32) {
            void *row = (char *)p->out + t * bytes;
            const struct pack_block to = pack_block_at(p->pack, row, p->columns, p->begin / 32 + b);
            pack_block(p->pack, x, &to);
        }
    pack_part_end(p);
}
