/* What the kernels of one token share: eight rows at once, whose codes are multiplied as they lie. */
#ifndef LLMS_KERNELS_ROW_SHARED_AVX2_H
#define LLMS_KERNELS_ROW_SHARED_AVX2_H

#include "kernels/kernels.h"
#include "kernels/pack.h"
#include "kernels/unpack_avx2.h"
#include "kernels/unroll.h"

enum { ROWS = UNPACK_ROWS };

/* The packed activations (pack.h). */
struct token {
    const signed char *codes;
    const float *scales;
    const void *sums; /* starts where a scale is for 32 values */
};

/* The dot products of ROWS rows, stride bytes apart, by so many steps; fetches as many bytes from `ahead` on
 * meanwhile: only an address, it may lie behind the weights, where fetching does nothing. */
typedef __m256 row_fn(const struct token *t, const unsigned char *rows, size_t stride, size_t steps,
                      uintptr_t ahead);

/* Makes the compiler work out rows' addresses anew instead of keeping them all, for which there are too few
 * registers. */
ALWAYS_INLINE void hide_rows(struct rows *r)
{
    __asm__("" : "+r"(r->low), "+r"(r->high), "+r"(r->one), "+r"(r->three));
}

/* The sums of 32 codes from those of 16: pair k (0..3) as mins_pair(k / 2, k % 2) pairs the minimums. */
ALWAYS_INLINE __m256i sums_pair(const short *sums, int k)
{
    const __m128i paired = _mm_set_epi8(15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0);
    __m256i s = _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)sums), _mm256_set1_epi16(1));
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    words = _mm_shuffle_epi8(words, paired);
    return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(words), _mm256_set1_epi32(k));
}

/* What is fetched from memory while rows are multiplied. */
struct lead {
    uintptr_t rows, next; /* only addresses */
    size_t stride, end;   /* rows from `end` on are those at next */
    size_t distance;      /* rows between what is multiplied and what is fetched */
};

static inline struct lead lead_of(const struct matmul *m, size_t row_end, size_t least_bytes)
{
    struct lead l = {
        .rows = (uintptr_t)m->weights, .stride = dtype_row_bytes(m->type, m->columns), .end = row_end};
    l.next = m->next ? (uintptr_t)m->next : l.rows + row_end * l.stride;
    l.distance = (least_bytes + ROWS * l.stride - 1) / (ROWS * l.stride) * ROWS;
    return l;
}

static inline uintptr_t lead_at(const struct lead *l, size_t row)
{
    size_t to = row + l->distance;
    return to < l->end ? l->rows + to * l->stride : l->next + (to - l->end) * l->stride;
}

/* Rows row_begin to row_end, at least ROWS, in so many columns a step; fetches rows that lie at least so many
 * bytes ahead. */
static inline void run_rows(const struct matmul *m, row_fn *run, size_t step, size_t least_bytes,
                            size_t row_begin, size_t row_end)
{
    const unsigned char *weights = m->weights, *x = m->packed;
    const bool q32 = kernels_pack_of(m->type) != PACK_Q256;
    const size_t columns = m->columns;
    const struct token t = {(const signed char *)x,
                            (const float *)(x + (q32 ? pack_q32_scales_at : pack_q256_scales_at)(columns)),
                            x + (q32 ? pack_q32_starts_at : pack_q256_sums_at)(columns)};
    const struct lead lead = lead_of(m, row_end, least_bytes);
    for (size_t row = row_begin; row < row_end; row += ROWS) {
        if (row + ROWS > row_end)
            row = row_end - ROWS; /* some once more, to the same values */
        _mm256_storeu_ps(m->out + row, run(&t, weights + row * lead.stride, lead.stride, columns / step,
                                           lead_at(&lead, row)));
    }
}

#endif
