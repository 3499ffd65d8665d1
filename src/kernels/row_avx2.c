/* See row_avx2.h; matmul_plain.c defines the canonical order.
 *
 * A row's codes are multiplied as they lie, 32 at a time, each pair's 16-bit sum (at most 2 x 63 x 127) then
 * by the scale of its 16 or 32 columns; only what a block comes to is transposed, so that 8 rows are the
 * lanes of the vector of sums. Integers, exact in any order. */
#include "kernels/row_avx2.h"

#include <string.h>

#include "kernels/row_shared_avx2.h"

enum {
    COLUMNS = 256,
    AHEAD_32 = 14000,
    AHEAD_256 = 6000,
    NEAR_BYTES = 300,
    Q4_0_PAIR = 36,
    Q4_BYTES = 144,
    Q6_BYTES = 210,
    Q6_SCALES = 192
};

/* Fetches so many lines from `at` on where v stands in the program. */
ALWAYS_INLINE __m256i fetch_lines(__m256i v, uintptr_t at, int lines)
{
    UNROLL_FOR (i, lines)
        __asm__ volatile("prefetcht0 %1" : "+x"(v) : "m"(*(const char *)(at + 64 * (uintptr_t)i)));
    return v;
}

/* Of a block of so many bytes row `row`'s share of what is fetched for all, and its own bytes once more:
 * those that fell from the first cache. */
ALWAYS_INLINE __m256i fetch(__m256i v, uintptr_t ahead, const unsigned char *own, int row, int bytes)
{
    const int lines = (ROWS * bytes + 63) / 64, first = lines * row / ROWS;
    v = fetch_lines(v, ahead + 64 * (uintptr_t)first, lines * (row + 1) / ROWS - first);
    return fetch_lines(v, (uintptr_t)own + NEAR_BYTES, (bytes + 63) / 64);
}

ALWAYS_INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256(p);
}

/* sum + pairs of 16-bit products. */
ALWAYS_INLINE __m256i add_pairs(__m256i sum, __m256i a, __m256i b)
{
#if HAVE_VNNI
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

/* In each half: the sums of its four numbers in v[0], v[1], v[2] and v[3]. */
ALWAYS_INLINE __m256i sum_lanes(const __m256i v[4])
{
    __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/* The sum of each of eight vectors, one a lane. */
ALWAYS_INLINE __m256i sum_rows(const __m256i v[ROWS])
{
    __m256i a = sum_lanes(v), b = sum_lanes(v + 4);
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* ---- Q4_0 ---- */

/* What the 32 bytes behind a pair's first 4 meet: 14 codes, nothing where the second scale lies, 16 codes. */
ALWAYS_INLINE __m256i nibbles_meet(const signed char *x)
{
    const __m256i gap = _mm256_set_epi64x(-1, -1, 0x0000ffffffffffff, -1);
    return _mm256_and_si256(_mm256_loadu2_m128i((const __m128i *)(x + 32), (const __m128i *)(x + 2)), gap);
}

/* x[0] and x[1] in every word. */
ALWAYS_INLINE __m256i two_codes(const signed char *x)
{
    short two;
    memcpy(&two, x, 2);
    return _mm256_set1_epi16(two);
}

/* Of each four bytes the products of low and high nibbles added up, those that mask leaves. */
ALWAYS_INLINE __m256i nibble_dots(__m256i v, __m256i mask, __m256i low, __m256i high)
{
    __m256i a = _mm256_and_si256(v, mask), b = _mm256_and_si256(_mm256_srli_epi32(v, 4), mask);
#if HAVE_VNNI
    return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), a, low), b, high);
#else
    __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(a, low), _mm256_maddubs_epi16(b, high));
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
#endif
}

/* In the low half: the fourth number of four rows from `i` on, each read from its fifth byte. */
ALWAYS_INLINE __m256i fourth_words(const struct rows *r, int i)
{
    __m256i ab = _mm256_unpackhi_epi32(load(row_at(r, i) + 4), load(row_at(r, i + 1) + 4));
    __m256i cd = _mm256_unpackhi_epi32(load(row_at(r, i + 2) + 4), load(row_at(r, i + 3) + 4));
    return _mm256_unpackhi_epi64(ab, cd);
}

/* Adds a block. dots: of the codes as they are stored, PACK_START above theirs. */
ALWAYS_INLINE __m256 add_block(__m256 sum, __m256i dots, __m256 scale, const struct token *t, size_t block)
{
    __m256i start = _mm256_set1_epi32(((const int *)t->sums)[block]);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(dots, start)),
                           _mm256_mul_ps(scale, _mm256_set1_ps(t->scales[block])), sum);
}

/* A pair of blocks: 36 bytes, of which the last 32 are multiplied as they lie, with a scale between. */
ALWAYS_INLINE __m256 add_q4_0(__m256 sum, struct rows *r, const struct token *t, size_t pair, uintptr_t ahead)
{
    const __m256i all = _mm256_set1_epi8(15), last = _mm256_set1_epi32(0x0f0f0000);
    const signed char *x = t->codes + 64 * pair;
    const __m256i low = nibbles_meet(x), high = nibbles_meet(x + 16);
    const int lines = (ROWS * Q4_0_PAIR + 63) / 64;
    __m256i dot[ROWS], head[4];
    hide_rows(r);
    UNROLL_FOR (i, ROWS) {
        dot[i] = nibble_dots(load(row_at(r, i) + 4), all, low, high);
        dot[i] = fetch_lines(dot[i], ahead + 64 * (uintptr_t)(lines * i / ROWS),
                             lines * (i + 1) / ROWS - lines * i / ROWS);
    }
    __m256i a = sum_lanes(dot), b = sum_lanes(dot + 4);
    hide_rows(r);
    load_16(r, 0, head);
    __m256i second = _mm256_permute2x128_si256(fourth_words(r, 0), fourth_words(r, 4), 0x20);
    __m256i first = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                                     nibble_dots(head[0], last, two_codes(x), two_codes(x + 16)));
    sum = add_block(sum, first, low_halves(head[0]), t, 2 * pair);
    return add_block(sum, _mm256_permute2x128_si256(a, b, 0x31), high_halves(second), t, 2 * pair + 1);
}

static __m256 q4_0(const struct token *t, const unsigned char *rows, size_t stride, size_t pairs,
                   uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t p = 0; p < pairs; p++, rows_advance(&r, Q4_0_PAIR), ahead += ROWS * Q4_0_PAIR)
        sum = add_q4_0(sum, &r, t, p, ahead);
    return sum;
}

/* ---- Q4_K ---- */

/* 64 columns of a row: 32 bytes of nibbles. scales: the block's eight bytes, again and again, of which this
 * takes numbers 2 g and 2 g + 1. */
ALWAYS_INLINE __m256i add_nibbles(__m256i sum, const unsigned char *nibbles, const signed char *x,
                                  __m256i scales, int g)
{
    const int clear = 0x8000;
    __m256i v = load(nibbles);
    UNROLL_FOR (j, 2) {
        __m256i dots = _mm256_maddubs_epi16(j ? high_nibbles(v) : low_nibbles(v), load(x + 32 * j));
        sum = add_pairs(sum, dots,
                        _mm256_shuffle_epi8(scales, _mm256_set1_epi16((short)(clear | (2 * g + j)))));
    }
    return sum;
}

ALWAYS_INLINE __m256 add_q4_k(__m256 sum, struct rows *r, const struct token *t, size_t b, uintptr_t ahead)
{
    const signed char *x = t->codes + COLUMNS * b;
    _Alignas(32) long long scales[ROWS]; /* of rows 0, 1, 4, 5, 2, 3, 6, 7 */
    __m256i head[4], dot[ROWS], mins = _mm256_setzero_si256();
    load_16(r, 0, head);
    struct pairs p = unpack_pairs(head);
    _mm256_store_si256((__m256i *)scales, _mm256_unpacklo_epi32(p.factor[0], p.factor[1]));
    _mm256_store_si256((__m256i *)(scales + 4), _mm256_unpackhi_epi32(p.factor[0], p.factor[1]));
    UNROLL_FOR (i, ROWS) {
        if (i % 4 == 0)
            hide_rows(r);
        const unsigned char *row = row_at(r, i);
        __m256i own = _mm256_set1_epi64x(scales[i / 4 * 2 + i % 2 + i % 4 / 2 * 4]);
        dot[i] = _mm256_setzero_si256();
        UNROLL_FOR (g, 4)
            dot[i] = add_nibbles(dot[i], row + 16 + 32 * g, x + 64 * g, own, g);
        dot[i] = fetch(dot[i], ahead, row, i, Q4_BYTES);
    }
    UNROLL_FOR (i, 4)
        mins = add_pairs(mins, mins_pair(&p, i / 2, i % 2), sums_pair((const short *)t->sums + 16 * b, i));
    __m256 da = _mm256_set1_ps(t->scales[b]);
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_rows(dot)), _mm256_mul_ps(low_halves(head[0]), da), sum);
    return _mm256_fnmadd_ps(_mm256_cvtepi32_ps(mins), _mm256_mul_ps(high_halves(head[0]), da), sum);
}

static __m256 q4_k(const struct token *t, const unsigned char *rows, size_t stride, size_t blocks,
                   uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, Q4_BYTES), ahead += ROWS * Q4_BYTES)
        sum = add_q4_k(sum, &r, t, b, ahead);
    return sum;
}

/* ---- Q6_K ---- */

/* Half h of a row's block: 64 bytes of nibbles, 32 of high pairs. scales: its eight, as words, in both
 * halves of the vector. */
ALWAYS_INLINE __m256i add_q6(__m256i sum, const unsigned char *row, int h, __m256i scales,
                             const signed char *x)
{
    const __m256i two = _mm256_set1_epi8(0x30);
    __m256i pairs = load(row + 128 + 32 * h);
    UNROLL_FOR (k, 4) {
        __m256i v = load(row + 64 * h + 32 * (k % 2));
        __m256i high = k < 2 ? _mm256_slli_epi16(pairs, 4 - 2 * k) : _mm256_srli_epi16(pairs, 2 * k - 4);
        __m256i code = _mm256_or_si256(k < 2 ? low_nibbles(v) : high_nibbles(v), _mm256_and_si256(high, two));
        /* Word 2 k of the scales in one half, 2 k + 1 in the other. */
        const __m256i words = _mm256_set_m128i(_mm_set1_epi16((short)((4 * k + 3) << 8 | (4 * k + 2))),
                                               _mm_set1_epi16((short)((4 * k + 1) << 8 | 4 * k)));
        sum =
            add_pairs(sum, _mm256_maddubs_epi16(code, load(x + 32 * k)), _mm256_shuffle_epi8(scales, words));
    }
    return sum;
}

ALWAYS_INLINE __m256 add_q6_k(__m256 sum, struct rows *r, const struct token *t, size_t b, uintptr_t ahead)
{
    const signed char *x = t->codes + COLUMNS * b;
    /* The offset of 32, in two halves that fit 16 bits: a sum is at most 16 x 127. */
    const __m256i offset =
        _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(load((const short *)t->sums + 16 * b), 4));
    __m256i dot[ROWS];
    UNROLL_FOR (i, ROWS) {
        if (i % 4 == 0)
            hide_rows(r);
        const unsigned char *row = row_at(r, i);
        __m256i scales = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + Q6_SCALES)));
        dot[i] = _mm256_slli_epi32(_mm256_madd_epi16(scales, offset), 1);
        dot[i] = add_q6(dot[i], row, 0, _mm256_permute2x128_si256(scales, scales, 0x00), x);
        dot[i] = fetch(dot[i], ahead, row, i, Q6_BYTES);
        dot[i] = add_q6(dot[i], row, 1, _mm256_permute2x128_si256(scales, scales, 0x11), x + 128);
    }
    hide_rows(r);
    __m256 both = _mm256_mul_ps(q6_scale(r), _mm256_set1_ps(t->scales[b]));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_rows(dot)), both, sum);
}

static __m256 q6_k(const struct token *t, const unsigned char *rows, size_t stride, size_t blocks,
                   uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, Q6_BYTES), ahead += ROWS * Q6_BYTES)
        sum = add_q6_k(sum, &r, t, b, ahead);
    return sum;
}

bool VARIANT(row_matmul)(const struct matmul *m, size_t row_begin, size_t row_end)
{
    row_fn *run = m->type == DTYPE_Q4_0   ? q4_0
                  : m->type == DTYPE_Q4_K ? q4_k
                  : m->type == DTYPE_Q6_K ? q6_k
                                          : NULL;
    size_t step = m->type == DTYPE_Q4_0 ? 64 : COLUMNS;
    if (!run || m->columns % step || row_end - row_begin < ROWS)
        return false;
    run_rows(m, run, step, m->type == DTYPE_Q4_0 ? AHEAD_32 : AHEAD_256, row_begin, row_end);
    return true;
}
