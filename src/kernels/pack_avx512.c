/* Packing of activation rows, AVX-512 (pack.h has the layout and the definition). */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/unroll.h"

/* The codes of 16 values. */
ALWAYS_INLINE __m512i codes_of(__m512 x, __m512 inverse, float most)
{
    __m512 scaled = _mm512_mul_ps(x, inverse);
    scaled = _mm512_min_ps(scaled, _mm512_set1_ps(most)); /* NaN takes the second operand */
    scaled = _mm512_max_ps(scaled, _mm512_set1_ps(-most));
    return _mm512_cvtps_epi32(scaled);
}

/* The largest lane, or the sum of the lanes, of 16 vectors, each in a lane of its own. */
enum fold { LARGEST, SUM };

ALWAYS_INLINE __m512i fold_two(enum fold fold, __m512i a, __m512i b)
{
    if (fold == SUM)
        return _mm512_add_epi32(a, b);
    return _mm512_castps_si512(_mm512_max_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}

ALWAYS_INLINE __m512i fold_lanes(enum fold fold, const __m512i v[16])
{
    __m512i part[4];
    UNROLL_FOR (i, 4) { /* each lane of 16 bytes has what it found in four vectors */
        const __m512i *u = v + 4 * i;
        __m512i ab = fold_two(fold, _mm512_unpacklo_epi32(u[0], u[1]), _mm512_unpackhi_epi32(u[0], u[1]));
        __m512i cd = fold_two(fold, _mm512_unpacklo_epi32(u[2], u[3]), _mm512_unpackhi_epi32(u[2], u[3]));
        part[i] = fold_two(fold, _mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    UNROLL_FOR (i, 2)
        part[i] = fold_two(fold, _mm512_shuffle_i32x4(part[2 * i], part[2 * i + 1], 0x88),
                           _mm512_shuffle_i32x4(part[2 * i], part[2 * i + 1], 0xdd));
    return fold_two(fold, _mm512_shuffle_i32x4(part[0], part[1], 0x88),
                    _mm512_shuffle_i32x4(part[0], part[1], 0xdd));
}

/* `blocks` blocks, at most BLOCKS, which are lanes where each has one number. */
enum { BLOCKS = 16 };

ALWAYS_INLINE void pack_blocks(float most, const float *x, int blocks, unsigned char *out, float *scales,
                               int32_t *starts)
{
    const __mmask16 exist = (__mmask16)(0xffff >> (BLOCKS - blocks));
    __m512i each[BLOCKS];
    __mmask16 nan = 0;
    float inverse[BLOCKS];
    for (int b = 0; b < blocks; b++) {
        __m512 low = _mm512_loadu_ps(x + 32 * b), high = _mm512_loadu_ps(x + 32 * b + 16);
        __m512 top = _mm512_max_ps(_mm512_abs_ps(low), _mm512_setzero_ps());
        each[b] = _mm512_castps_si512(_mm512_max_ps(_mm512_abs_ps(high), top));
        nan = (__mmask16)(nan | (_mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) != 0) << b);
    }
    for (int b = blocks; b < BLOCKS; b++)
        each[b] = _mm512_setzero_si512();
    __m512 top = _mm512_castsi512_ps(fold_lanes(LARGEST, each)), mosts = _mm512_set1_ps(most);
    __mmask16 some = _mm512_cmp_ps_mask(top, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    __m512 scale = _mm512_cvtph_ps(_mm512_cvtps_ph(_mm512_div_ps(top, mosts), _MM_FROUND_TO_NEAREST_INT));
    _mm512_mask_storeu_ps(scales, exist, _mm512_mask_mov_ps(scale, nan, _mm512_set1_ps(NAN)));
    _mm512_storeu_ps(inverse, _mm512_div_ps(mosts, top));
    for (int b = 0; b < blocks; b++) {
        __m512 by = _mm512_set1_ps(inverse[b]);
        _mm_prefetch((const char *)((uintptr_t)(x + 32 * b) + 128 * BLOCKS), _MM_HINT_T0); /* the next ones */
        _mm_prefetch((const char *)((uintptr_t)(x + 32 * b) + 128 * BLOCKS + 64), _MM_HINT_T0);
        __m512i low = codes_of(_mm512_loadu_ps(x + 32 * b), by, most);
        __m512i high = codes_of(_mm512_loadu_ps(x + 32 * b + 16), by, most);
        __mmask16 keep = some >> b & 1 ? 0xffff : 0;
        low = _mm512_maskz_mov_epi32(keep, low);
        high = _mm512_maskz_mov_epi32(keep, high);
        _mm_store_si128((__m128i *)(out + 32 * b), _mm512_cvtepi32_epi8(low));
        _mm_store_si128((__m128i *)(out + 32 * b + 16), _mm512_cvtepi32_epi8(high));
        each[b] = _mm512_add_epi32(low, high);
    }
    __m512i sums = _mm512_mullo_epi32(fold_lanes(SUM, each), _mm512_set1_epi32(-PACK_START));
    _mm512_mask_storeu_epi32(starts, exist, sums);
}

/* A block's sum of (x + PACK_PAIR) y is in every other one of 8 lanes, and nothing in those between. */
ALWAYS_INLINE void pairs_starts(const unsigned char *codes, int blocks, int32_t *starts)
{
    __m512i each[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) {
        __m256i v =
            b < blocks ? _mm256_load_si256((const __m256i *)(codes + 32 * b)) : _mm256_setzero_si256();
        __m256i x = _mm256_xor_si256(v, _mm256_set1_epi8((char)PACK_PAIR)), y = _mm256_srli_epi64(v, 32);
        each[b] = _mm512_zextsi256_si512(_mm256_dpbusd_epi32(_mm256_setzero_si256(), x, y));
    }
    __m512i sums = _mm512_sub_epi32(_mm512_setzero_si512(), fold_lanes(SUM, each));
    _mm512_mask_storeu_epi32(starts, (__mmask16)(0xffff >> (BLOCKS - blocks)), sums);
}

static void pack_q32(enum pack pack, const float *x, size_t columns, unsigned char *out)
{
    float *scales = (float *)(out + pack_q32_scales_at(columns));
    int32_t *starts = (int32_t *)(out + pack_q32_starts_at(columns));
    int32_t *pairs = (int32_t *)(out + pack_pairs_at(columns));
    const size_t blocks = columns / 32;
    for (size_t b = 0; b < blocks; b += BLOCKS) {
        int now = blocks - b < BLOCKS ? (int)(blocks - b) : BLOCKS;
        if (now == BLOCKS)
            pack_blocks(pack_q32_most(pack), x + 32 * b, BLOCKS, out + 32 * b, scales + b, starts + b);
        else
            pack_blocks(pack_q32_most(pack), x + 32 * b, now, out + 32 * b, scales + b, starts + b);
        if (pack == PACK_PAIRS)
            pairs_starts(out + 32 * b, now, pairs + b);
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
        __m512i each[16];
        for (int s = 0; s < 16; s++) {
            each[s] = _mm512_setzero_si512();
            if (max != 0)
                each[s] = codes_of(_mm512_loadu_ps(x + 16 * s), _mm512_set1_ps(inverse), 127);
            _mm_store_si128((__m128i *)(out + 16 * s), _mm512_cvtepi32_epi8(each[s]));
        }
        _mm256_storeu_si256((__m256i *)sums, _mm512_cvtepi32_epi16(fold_lanes(SUM, each)));
    }
}

void pack_avx512(enum pack pack, const float *x, size_t columns, void *out)
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

/* Packed together as blocks of one row would be, and then put where they belong. */
void pack_part_avx512(const struct pack_part *p)
{
    const size_t bytes = kernels_packed_bytes(p->pack, p->columns), each = p->count / 32;
    const size_t blocks = p->tokens * each;
    size_t token = 0, block = 0;
    for (size_t b = 0; b < blocks; b += BLOCKS) {
        _Alignas(64) unsigned char codes[BLOCKS * 32];
        float scales[BLOCKS];
        int32_t starts[BLOCKS], pairs[BLOCKS];
        int now = blocks - b < BLOCKS ? (int)(blocks - b) : BLOCKS;
        if (now == BLOCKS)
            pack_blocks(pack_q32_most(p->pack), p->x + 32 * b, BLOCKS, codes, scales, starts);
        else
            pack_blocks(pack_q32_most(p->pack), p->x + 32 * b, now, codes, scales, starts);
        if (p->pack == PACK_PAIRS)
            pairs_starts(codes, now, pairs);
        for (int i = 0; i < now; i++) {
            void *row = (char *)p->out + token * bytes;
            const struct pack_block to = pack_block_at(p->pack, row, p->columns, p->begin / 32 + block);
            memcpy(to.codes, codes + 32 * i, 32);
            *to.scale = scales[i];
            *to.start = starts[i];
            if (to.pairs)
                *to.pairs = pairs[i];
            block = block + 1 < each ? block + 1 : 0;
            token += block == 0;
        }
    }
    pack_part_end(p);
}
