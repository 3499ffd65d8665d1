/* See row_avx512.h; matmul_plain.c defines the canonical order. Here: types in blocks of 256.
 *
 * A row's codes are multiplied as they lie, 64 at a time, each pair's 16-bit sum (at most 2 x 63 x 127) then
 * by the scale of its 16 or 32 columns; only what a block comes to is transposed, so that 8 rows are the
 * lanes of the vector of sums. Integers, exact in any order. */
#include "kernels/row_avx512.h"

#include "kernels/row_shared_avx512.h"

enum { NEAR_BYTES = 300, COLUMNS = 256, Q4_BYTES = 144, Q5_BYTES = 176, Q6_SCALES = 192, Q6_BYTES = 210 };

/* The quarters of a added up, then b's. */
ALWAYS_INLINE __m256i sum_quarters(__m512i a, __m512i b)
{
    __m512i v = even_first(sum_halves(a, b));
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

/* ---- Q4_K, Q5_K ---- */

/* For a shuffle: byte `first` in the words of one half, byte `second` in those of the other. */
ALWAYS_INLINE __m512i words_of(int first, int second)
{
    const int clear = 0x8000;
    return join(_mm256_set1_epi16((short)(clear | first)), _mm256_set1_epi16((short)(clear | second)));
}

/* Rotations that bring bit `first` of each byte of one half, `second` of the other, to bit `to`. */
ALWAYS_INLINE __m512i turns(int first, int second, int to)
{
    return join(_mm256_set1_epi32((to - first) & 31), _mm256_set1_epi32((to - second) & 31));
}

/* The activations and the scales' places for the four vectors of 64 codes: low and high nibbles of the first
 * 64 bytes, then of the last. */
struct q45 {
    __m512i x[4], words[4], turns[4];
};

ALWAYS_INLINE struct q45 q45_of(const signed char *x)
{
    struct q45 q;
    UNROLL_FOR (i, 4) {
        int sub = i / 2 * 4 + i % 2; /* and sub + 2 */
        q.x[i] = load_two(x + 32 * sub, x + 32 * sub + 64);
        q.words[i] = words_of(sub, sub + 2);
        q.turns[i] = turns(sub, sub + 2, 4);
    }
    return q;
}

/* 128 columns of a row: 64 bytes of nibbles. scales: the block's eight bytes, again and again. */
ALWAYS_INLINE __m512i add_q45(__m512i sum, __m512i nibbles, __m512i scales, const __m512i *fifths,
                              const struct q45 *q, int i)
{
    const __m512i four = _mm512_set1_epi8(15), sixteen = _mm512_set1_epi8(16);
    UNROLL_FOR (j, 2) {
        __m512i codes = _mm512_and_si512(j ? _mm512_srli_epi32(nibbles, 4) : nibbles, four);
        if (fifths)
            codes = _mm512_or_si512(codes,
                                    _mm512_and_si512(_mm512_rolv_epi32(*fifths, q->turns[i + j]), sixteen));
        sum = _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(codes, q->x[i + j]),
                                  _mm512_shuffle_epi8(scales, q->words[i + j]));
    }
    return sum;
}

/* A block of each row. */
ALWAYS_INLINE __m256 add_block(__m256 sum, bool five, struct rows *r, const struct token *t, size_t b,
                               uintptr_t ahead)
{
    const int bytes = five ? Q5_BYTES : Q4_BYTES, at = five ? 48 : 16, lines = ROWS * bytes / 64;
    const struct q45 q45 = q45_of(t->codes + COLUMNS * b);
    _Alignas(32) long long scales[ROWS]; /* of rows 0, 1, 4, 5, 2, 3, 6, 7 */
    __m256i head[4];
    __m512i part[2];
    load_16(r, 0, head);
    struct pairs p = unpack_pairs(head);
    _mm256_store_si256((__m256i *)scales, _mm256_unpacklo_epi32(p.factor[0], p.factor[1]));
    _mm256_store_si256((__m256i *)(scales + 4), _mm256_unpackhi_epi32(p.factor[0], p.factor[1]));
    UNROLL_FOR (q, 2) {
        __m512i dot[4], fifths;
        hide_rows(r);
        UNROLL_FOR (i, 4) {
            const unsigned char *row = row_at(r, 4 * q + i);
            __m512i own = _mm512_set1_epi64(scales[2 * q + i % 2 + i / 2 * 4]);
            if (five)
                fifths = load_twice(row + 16);
            dot[i] = add_q45(_mm512_setzero_si512(), _mm512_loadu_si512(row + at), own, five ? &fifths : NULL,
                             &q45, 0);
            dot[i] = fetch_after(dot[i], ahead, lines, 4 * q + i, ROWS);
            dot[i] = fetch_own(dot[i], row, NEAR_BYTES, bytes);
            dot[i] = add_q45(dot[i], _mm512_loadu_si512(row + at + 64), own, five ? &fifths : NULL, &q45, 2);
        }
        part[q] = sum_lanes(dot[0], dot[1], dot[2], dot[3]);
    }
    __m256i total = sum_quarters(part[0], part[1]);
    __m256i mins = _mm256_setzero_si256();
    UNROLL_FOR (i, 4)
        mins = _mm256_dpwssd_epi32(mins, mins_pair(&p, i / 2, i % 2),
                                   sums_pair((const short *)t->sums + 16 * b, i));
    __m256 da = _mm256_set1_ps(t->scales[b]);
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(low_halves(head[0]), da), sum);
    return _mm256_fnmadd_ps(_mm256_cvtepi32_ps(mins), _mm256_mul_ps(high_halves(head[0]), da), sum);
}

__m256 row_q4_k_avx512(const struct token *t, const unsigned char *rows, size_t stride, size_t blocks,
                       uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, Q4_BYTES), ahead += ROWS * Q4_BYTES)
        sum = add_block(sum, false, &r, t, b, ahead);
    return sum;
}

__m256 row_q5_k_avx512(const struct token *t, const unsigned char *rows, size_t stride, size_t blocks,
                       uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, Q5_BYTES), ahead += ROWS * Q5_BYTES)
        sum = add_block(sum, true, &r, t, b, ahead);
    return sum;
}

/* ---- Q6_K ---- */

/* Half h of a row's block: 64 bytes of nibbles, 32 of high pairs, half of the 16 scales, all in words. words:
 * which scale each word of the four vectors of 64 codes wants. */
ALWAYS_INLINE __m512i add_q6(__m512i sum, const unsigned char *row, int h, __m512i scales, const __m512i x[4],
                             const __m512i words[4])
{
    const __m512i four = _mm512_set1_epi8(15), two = _mm512_set1_epi8(0x30);
    __m512i nibbles = _mm512_loadu_si512(row + 64 * h);
    __m512i pairs = load_twice(row + 128 + 32 * h);
    UNROLL_FOR (j, 2) {
        __m512i low = _mm512_and_si512(j ? _mm512_srli_epi32(nibbles, 4) : nibbles, four);
        __m512i high = _mm512_and_si512(_mm512_rolv_epi32(pairs, turns(4 * j, 4 * j + 2, 4)), two);
        __m512i dots = _mm512_maddubs_epi16(_mm512_or_si512(low, high), x[2 * h + j]);
        sum = _mm512_dpwssd_epi32(sum, dots, _mm512_permutexvar_epi16(words[2 * h + j], scales));
    }
    return sum;
}

/* A block of each row. */
ALWAYS_INLINE __m256 add_q6_block(__m256 sum, struct rows *r, const struct token *t, size_t b,
                                  uintptr_t ahead)
{
    const __m512i part_number =
        _mm512_set_epi64(0x0003000300030003, 0x0003000300030003, 0x0002000200020002, 0x0002000200020002,
                         0x0001000100010001, 0x0001000100010001, 0, 0);
    const signed char *codes = t->codes + COLUMNS * b;
    const __m256i sums = _mm256_loadu_si256((const __m256i *)((const short *)t->sums + 16 * b));
    /* The offset of 32, in two halves that fit 16 bits: a sum is at most 16 x 127. */
    const __m512i offset =
        _mm512_zextsi256_si512(_mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sums, 4)));
    __m512i x[4], words[4], part[2];
    UNROLL_FOR (i, 4) {
        x[i] = _mm512_loadu_si512(codes + 64 * i);
        words[i] = _mm512_add_epi16(part_number, _mm512_set1_epi16((short)(4 * i)));
    }
    UNROLL_FOR (q, 2) {
        __m512i dot[4];
        hide_rows(r);
        UNROLL_FOR (i, 4) {
            const unsigned char *row = row_at(r, 4 * q + i);
            __m512i scales = _mm512_zextsi256_si512(
                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + Q6_SCALES))));
            dot[i] = _mm512_dpwssd_epi32(_mm512_setzero_si512(), scales, offset);
            dot[i] = _mm512_dpwssd_epi32(dot[i], scales, offset);
            dot[i] = add_q6(dot[i], row, 0, scales, x, words);
            dot[i] = fetch_after(dot[i], ahead, (ROWS * Q6_BYTES + 63) / 64, 4 * q + i, ROWS);
            dot[i] = fetch_own(dot[i], row, NEAR_BYTES, Q6_BYTES);
            dot[i] = add_q6(dot[i], row, 1, scales, x, words);
        }
        part[q] = sum_lanes(dot[0], dot[1], dot[2], dot[3]);
    }
    __m256i total = sum_quarters(part[0], part[1]);
    __m256 scale = high_halves(load_word(r, Q6_BYTES - 4));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(scale, _mm256_set1_ps(t->scales[b])),
                           sum);
}

__m256 row_q6_k_avx512(const struct token *t, const unsigned char *rows, size_t stride, size_t blocks,
                       uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m256 sum = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, Q6_BYTES), ahead += ROWS * Q6_BYTES)
        sum = add_q6_block(sum, &r, t, b, ahead);
    return sum;
}
