/* Unpacking weights into panels (panel_amx.h). */
#include "kernels/panel_amx.h"

#include "kernels/unpack_avx512.h"
#include "kernels/unroll.h"

ALWAYS_INLINE void panel_32(enum dtype type, int offset, size_t bytes, const unsigned char *rows,
                            size_t stride, size_t blocks, struct panel *panel)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++) {
        __m512i code[8];
        unpack_32(type, &r, b * bytes, code, panel->scale + b, panel->minimum + b);
        UNROLL_FOR (c, 8)
            panel->low[8 * b + (size_t)c] = _mm512_sub_epi8(code[c], _mm512_set1_epi8((char)offset));
    }
}

/* Four signed codes a lane times a factor a lane, in two bytes each. */
ALWAYS_INLINE void fold(__m512i code, __m512i factor, __m512i *low, __m512i *high)
{
    const __m512i seven = _mm512_set1_epi16(127), byte = _mm512_set1_epi16(255);
    __m512i both =
        _mm512_or_si512(_mm512_and_si512(factor, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(factor, 16));
    __m512i even = _mm512_mullo_epi16(_mm512_srai_epi16(_mm512_slli_epi16(code, 8), 8), both);
    __m512i odd = _mm512_mullo_epi16(_mm512_srai_epi16(code, 8), both);
    *low = _mm512_or_si512(_mm512_and_si512(even, seven), _mm512_slli_epi16(_mm512_and_si512(odd, seven), 8));
    *high = _mm512_or_si512(_mm512_and_si512(_mm512_srai_epi16(even, 7), byte),
                            _mm512_slli_epi16(_mm512_srai_epi16(odd, 7), 8));
}

ALWAYS_INLINE void panel_q45(bool five, const unsigned char *rows, size_t stride, size_t blocks,
                             struct panel *panel)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, five ? 176 : 144)) {
        __m512i head[4], fifths[8], code[16];
        load_16(&r, 0, head);
        panel->scale[b] = low_halves(head[0]);
        panel->minimum[b] = high_halves(head[0]);
        struct pairs p = unpack_pairs(head);
        UNROLL_FOR (i, 4)
            panel->minimums[4 * b + (size_t)i] = mins_pair(&p, i / 2, i % 2);
        if (five)
            load_32(&r, 16, fifths);
        UNROLL_FOR (g, 4) {
            size_t to = 64 * b + 16 * (size_t)g;
            unpack_q45(&r, (five ? 48 : 16) + 32 * (size_t)g, five ? fifths : NULL, code, code + 8);
            UNROLL_FOR (c, 16) {
                __m512i factor = byte_of(p.factor[g / 2], g % 2 * 2 + c / 8);
                fold(code[c], factor, panel->low + to + c, panel->high + to + c);
            }
            if (five)
                UNROLL_FOR (c, 8)
                    fifths[c] = _mm512_srli_epi32(fifths[c], 2);
        }
    }
}

/* 32 columns of Q6_K with scales j and j + 1 of four. */
ALWAYS_INLINE void fold_q6(const __m512i code[8], __m512i scales, int j, __m512i *low, __m512i *high)
{
    UNROLL_FOR (c, 8) {
        __m512i centred = _mm512_sub_epi8(code[c], _mm512_set1_epi8(32));
        fold(centred, signed_byte_of(scales, j + c / 4), low + c, high + c);
    }
}

static void panel_q6(const unsigned char *rows, size_t stride, size_t blocks, struct panel *panel)
{
    struct rows r = rows_at(rows, stride);
    for (size_t b = 0; b < blocks; b++, rows_advance(&r, 210)) {
        __m512i scales[4], upper[8], first[8], second[8];
        load_16(&r, 192, scales);
        panel->scale[b] = q6_scale(&r, 0);
        UNROLL_FOR (i, 4) {
            int half = i / 2, pair = i % 2;
            size_t to = 64 * b + 32 * (size_t)half + 8 * (size_t)pair;
            if (pair == 0)
                load_32(&r, 128 + 32 * (size_t)half, upper);
            unpack_q6(&r, 0, half, pair, upper, first, second);
            fold_q6(first, scales[2 * half], 2 * pair, panel->low + to, panel->high + to);
            fold_q6(second, scales[2 * half + 1], 2 * pair, panel->low + to + 16, panel->high + to + 16);
        }
    }
}

void panel_unpack(enum dtype type, const unsigned char *rows, size_t stride, size_t blocks,
                  struct panel *panel)
{
    switch (type) {
    case DTYPE_Q8_0:
        panel_32(DTYPE_Q8_0, 128, 34, rows, stride, blocks, panel);
        break;
    case DTYPE_Q4_0:
        panel_32(DTYPE_Q4_0, 8, 18, rows, stride, blocks, panel);
        break;
    case DTYPE_Q4_1:
        panel_32(DTYPE_Q4_1, 0, 20, rows, stride, blocks, panel);
        break;
    case DTYPE_Q5_0:
        panel_32(DTYPE_Q5_0, 16, 22, rows, stride, blocks, panel);
        break;
    case DTYPE_Q5_1:
        panel_32(DTYPE_Q5_1, 0, 24, rows, stride, blocks, panel);
        break;
    case DTYPE_Q4_K:
        panel_q45(false, rows, stride, blocks, panel);
        break;
    case DTYPE_Q5_K:
        panel_q45(true, rows, stride, blocks, panel);
        break;
    default: /* Q6_K */
        panel_q6(rows, stride, blocks, panel);
    }
}
