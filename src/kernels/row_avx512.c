/* See row_avx512.h; matmul_plain.c defines the canonical order. Here: types in blocks of 32, two at a time.
 *
 * A row's codes are multiplied as they lie, two blocks in the halves of a vector (of Q4_0: two rows of them);
 * only the sums are transposed, so that 8 rows are the lanes: integers, exact in any order. Words with a
 * scale in one half and two codes in the other are read apart, for all rows at once.
 *
 * Eight rows and not more: what is fetched ahead, the next 8, must still lie in the first cache when it is
 * used; from the second, more rows side by side were read a tenth slower. */
#include "kernels/row_avx512.h"

#include "kernels/row_shared_avx512.h"

enum { NEAR_BYTES = 192, AHEAD_32 = 14000, AHEAD_256 = 6000, PAIR = 64, Q4_PAIR = 36, Q8_PAIR = 68 };

/* x[0] and x[1] in every word. */
ALWAYS_INLINE __m512i two_codes(const signed char *x)
{
    short two;
    memcpy(&two, x, 2);
    return _mm512_set1_epi16(two);
}

/* Of two numbers of four bytes, the first in the lanes of one half, the second in those of the other. */
ALWAYS_INLINE __m512i halves_of(const void *two)
{
    long long both;
    memcpy(&both, two, 8);
    const __m512i lanes = join(_mm256_setzero_si256(), _mm256_set1_epi32(1));
    return _mm512_permutexvar_epi32(lanes, _mm512_set1_epi64(both));
}

/* Adds a pair of blocks. dots: of the codes as they are stored, above theirs by PACK_START << shift. words:
 * the first block's scale is in its half's low 16 bits, the second's in its high ones. */
ALWAYS_INLINE __m256 add_pair(__m256 sum, __m512i dots, __m512i words, const struct token *t, size_t pair,
                              unsigned shift)
{
    const __m512i scales = _mm512_set_epi64(0, 0, 0, 0, 0x001f001d001b0019, 0x0017001500130011,
                                            0x000e000c000a0008, 0x0006000400020000);
    __m512i start = _mm512_slli_epi32(halves_of((const int *)t->sums + 2 * pair), shift);
    __m512 da = _mm512_castsi512_ps(halves_of(t->scales + 2 * pair));
    __m512 scale = _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(scales, words)));
    __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dots, start));
    scale = _mm512_mul_ps(scale, da);
    sum = _mm256_fmadd_ps(_mm512_castps512_ps256(dot), _mm512_castps512_ps256(scale), sum);
    return _mm256_fmadd_ps(_mm512_extractf32x8_ps(dot, 1), _mm512_extractf32x8_ps(scale, 1), sum);
}

/* ---- Q4_0 ---- */

/* What the 32 bytes behind a pair's first 4 meet: 14 codes, nothing where the second scale lies, 16 codes. */
ALWAYS_INLINE __m512i nibbles_meet(const signed char *x)
{
    const __m256i gap = _mm256_set_epi64x(-1, -1, 0x0000ffffffffffff, -1);
    __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(x + 2)));
    v = _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)(x + 32)), 1);
    return _mm512_broadcast_i64x4(_mm256_and_si256(v, gap));
}

/* In each lane of 16 bytes: the fourth number of a, b, c and d. */
ALWAYS_INLINE __m512i fourth_words(__m512i a, __m512i b, __m512i c, __m512i d)
{
    return _mm512_unpackhi_epi64(_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
}

ALWAYS_INLINE __m256 add_q4_pair(__m256 sum, struct rows *r, const struct token *t, size_t pair,
                                 uintptr_t ahead)
{
    const __m512i four = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    const __m512i two = _mm512_zextsi256_si512(_mm256_set1_epi32(0x0f0f0000));
    const __m512i behind = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 24, 25, 26, 27);
    const signed char *x = t->codes + PAIR * pair;
    const __m512i low = nibbles_meet(x), high = nibbles_meet(x + 16);
    __m512i v[4], dot[4];
    hide_rows(r);
    UNROLL_FOR (i, 4) {
        v[i] = load_two(row_at(r, i) + 4, row_at(r, i + 4) + 4);
        dot[i] = _mm512_dpbusd_epi32(zero, _mm512_and_si512(v[i], four), low);
        dot[i] = _mm512_dpbusd_epi32(dot[i], _mm512_and_si512(_mm512_srli_epi32(v[i], 4), four), high);
        dot[i] = fetch_after(dot[i], ahead, (ROWS * Q4_PAIR + 63) / 64, i, 4);
    }
    __m512i dots = even_first(sum_lanes(dot[0], dot[1], dot[2], dot[3]));
    __m512i words = _mm512_permutex2var_epi32(_mm512_castsi256_si512(load_word(r, 0)), behind,
                                              fourth_words(v[0], v[1], v[2], v[3]));
    dots = _mm512_dpbusd_epi32(dots, _mm512_and_si512(words, two), two_codes(x));
    dots = _mm512_dpbusd_epi32(dots, _mm512_and_si512(_mm512_srli_epi32(words, 4), two), two_codes(x + 16));
    return add_pair(sum, dots, words, t, pair, 0);
}

static __m256 q4_0(const struct token *t, const unsigned char *rows, size_t stride, size_t pairs,
                   uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t p = 0; p < pairs; p++, rows_advance(&r, Q4_PAIR), ahead += ROWS * Q4_PAIR)
        sum = add_q4_pair(sum, &r, t, p, ahead);
    return sum;
}

/* ---- Q8_0 ---- */

ALWAYS_INLINE __m256 add_q8_pair(__m256 sum, struct rows *r, const struct token *t, size_t pair,
                                 uintptr_t ahead)
{
    const __m512i sign = _mm512_set1_epi8((char)0x80), zero = _mm512_setzero_si512();
    const __m512i gap = _mm512_set_epi64(-1, -1, -1, -1, 0x0000ffffffffffff, -1, -1, -1);
    const __m512i two = _mm512_zextsi256_si512(_mm256_set1_epi32((int)0xffff0000)),
                  signs = _mm512_zextsi256_si512(_mm256_set1_epi32((int)0x80800000));
    const signed char *x = t->codes + PAIR * pair;
    const __m512i meet = _mm512_and_si512(load_two(x + 2, x + 32), gap);
    __m512i part[2];
    hide_rows(r);
    UNROLL_FOR (q, 2) {
        __m512i dot[4];
        UNROLL_FOR (i, 4) {
            const unsigned char *row = row_at(r, 4 * q + i);
            dot[i] = _mm512_dpbusd_epi32(zero, _mm512_xor_si512(_mm512_loadu_si512(row + 4), sign), meet);
            dot[i] = fetch_after(dot[i], ahead, (ROWS * Q8_PAIR + 63) / 64, 4 * q + i, ROWS);
            dot[i] = fetch_own(dot[i], row, NEAR_BYTES, 64);
        }
        part[q] = sum_lanes(dot[0], dot[1], dot[2], dot[3]);
    }
    __m512i dots = even_first(sum_halves(part[0], part[1]));
    __m512i words = join(load_word(r, 0), load_word(r, 32));
    dots = _mm512_dpbusd_epi32(dots, _mm512_xor_si512(_mm512_and_si512(words, two), signs), two_codes(x));
    return add_pair(sum, dots, words, t, pair, 4);
}

static __m256 q8_0(const struct token *t, const unsigned char *rows, size_t stride, size_t pairs,
                   uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t p = 0; p < pairs; p++, rows_advance(&r, Q8_PAIR), ahead += ROWS * Q8_PAIR)
        sum = add_q8_pair(sum, &r, t, p, ahead);
    return sum;
}

static row_fn *row_of(enum dtype type)
{
    switch (type) {
    case DTYPE_Q4_0:
        return q4_0;
    case DTYPE_Q8_0:
        return q8_0;
    case DTYPE_Q4_K:
        return row_q4_k_avx512;
    case DTYPE_Q5_K:
        return row_q5_k_avx512;
    case DTYPE_Q6_K:
        return row_q6_k_avx512;
    default:
        return NULL;
    }
}

bool row_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end)
{
    row_fn *run = row_of(m->type);
    bool q32 = kernels_pack_of(m->type) != PACK_Q256;
    size_t step = q32 ? PAIR : 256;
    if (!run || m->columns % step || row_end - row_begin < ROWS)
        return false;
    run_rows(m, run, step, q32 ? AHEAD_32 : AHEAD_256, row_begin, row_end);
    return true;
}
