/* See row_avx512.h; matmul_plain.c defines the canonical order.
 *
 * As in few_avx512.c 16 rows are the lanes of a vector. What differs is how little is loaded: the processor
 * issues two vector loads a cycle, and those, not the arithmetic, decided how fast blocks went by. A pair of
 * Q4_0 blocks is 36 bytes, nine words of four bytes, of which eight come in by one transposed read; words
 * that hold a scale beside codes are masked, and the activations are read from two bytes before to match. */
#include "kernels/row_avx512.h"

#include <stdint.h>
#include <string.h>

#include "kernels/pack.h"
#include "kernels/unpack_avx512.h"
#include "kernels/unroll.h"

enum { ROWS = UNPACK_ROWS, AHEAD_BYTES = 14000, PAIR_BYTES = 36 };

ALWAYS_INLINE __m512i four_codes(const signed char *x)
{
    int four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

/* The four bytes at `at` of every row. */
ALWAYS_INLINE __m512i load_word(const struct rows *r, size_t at)
{
    __m512i low = _mm512_setzero_si512(), high = low;
    UNROLL_FOR (i, 8) {
        low = _mm512_mask_broadcastd_epi32(low, (__mmask16)(1u << i), _mm_loadu_si32(row_at(r, i) + at));
        high =
            _mm512_mask_broadcastd_epi32(high, (__mmask16)(256u << i), _mm_loadu_si32(row_at(r, i + 8) + at));
    }
    return _mm512_or_si512(low, high);
}

ALWAYS_INLINE uintptr_t prefetch(uintptr_t ahead, int bytes)
{
    UNROLL_FOR (line, (bytes + 63) / 64)
        _mm_prefetch((const char *)(ahead + 64 * (uintptr_t)line), _MM_HINT_T0);
    return ahead + (uintptr_t)bytes;
}

struct token {
    const signed char *codes;
    const float *scales;
    const int *sums;
};

ALWAYS_INLINE __m512 add_block(__m512 sum, __m512i low, __m512i high, __m512 scale, float da)
{
    __m512i dot = _mm512_add_epi32(low, high);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale, _mm512_set1_ps(da)), sum);
}

ALWAYS_INLINE __m512 add_pair(__m512 sum, const struct rows *r, const struct token *t, size_t pair)
{
    const __m512i all = _mm512_set1_epi8(15), first = _mm512_set1_epi32(0x0f0f0000),
                  last = _mm512_set1_epi32(0x00000f0f);
    const signed char *x = t->codes + 64 * pair;
    uint16_t two;
    __m512i v[9];
    v[0] = load_word(r, 0);
    load_32(r, 4, v + 1);
    memcpy(&two, x, 2);
    __m512i low =
        _mm512_dpbusd_epi32(_mm512_set1_epi32(-8 * t->sums[2 * pair]), _mm512_and_si512(v[0], first),
                            _mm512_set1_epi32((int)((uint32_t)two << 16)));
    __m512i high = _mm512_dpbusd_epi32(
        _mm512_setzero_si512(), _mm512_and_si512(_mm512_srli_epi32(v[0], 4), first), four_codes(x + 14));
    UNROLL_FOR (i, 4) {
        __m512i mask = i == 3 ? last : all;
        low = _mm512_dpbusd_epi32(low, _mm512_and_si512(v[1 + i], mask), four_codes(x + 2 + 4 * i));
        high = _mm512_dpbusd_epi32(high, _mm512_and_si512(_mm512_srli_epi32(v[1 + i], 4), mask),
                                   four_codes(x + 18 + 4 * i));
    }
    sum = add_block(sum, low, high, low_halves(v[0]), t->scales[2 * pair]);
    low = _mm512_set1_epi32(-8 * t->sums[2 * pair + 1]);
    high = _mm512_setzero_si512();
    UNROLL_FOR (i, 4) {
        low = _mm512_dpbusd_epi32(low, _mm512_and_si512(v[5 + i], all), four_codes(x + 32 + 4 * i));
        high = _mm512_dpbusd_epi32(high, _mm512_and_si512(_mm512_srli_epi32(v[5 + i], 4), all),
                                   four_codes(x + 48 + 4 * i));
    }
    return add_block(sum, low, high, high_halves(v[4]), t->scales[2 * pair + 1]);
}

/* Up to ROWS rows of Q4_0, the columns a multiple of 64. */
static __m512 q4_0(const struct token *t, const unsigned char *rows, size_t stride, size_t pairs,
                   uintptr_t ahead)
{
    struct rows r = rows_at(rows, stride);
    __m512 sum = _mm512_setzero_ps();
    for (size_t p = 0; p < pairs; p++, rows_advance(&r, PAIR_BYTES)) {
        ahead = prefetch(ahead, ROWS * PAIR_BYTES);
        sum = add_pair(sum, &r, t, p);
    }
    return sum;
}

bool row_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end)
{
    if (m->type != DTYPE_Q4_0 || m->columns % 64 || row_end - row_begin < ROWS)
        return false;
    const unsigned char *weights = m->weights, *x = m->packed;
    const struct token t = {(const signed char *)x, (const float *)(x + pack_q32_scales_at(m->columns)),
                            (const int *)(x + pack_q32_sums_at(m->columns))};
    size_t stride = dtype_row_bytes(m->type, m->columns), distance = ROWS * stride;
    distance *= (AHEAD_BYTES + distance - 1) / distance;
    for (size_t row = row_begin; row < row_end; row += ROWS) {
        if (row + ROWS > row_end)
            row = row_end - ROWS; /* some once more, to the same values */
        const unsigned char *rows = weights + row * stride;
        _mm512_storeu_ps(m->out + row, q4_0(&t, rows, stride, m->columns / 64, (uintptr_t)rows + distance));
    }
    return true;
}
