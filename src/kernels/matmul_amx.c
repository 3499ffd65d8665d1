/* Matrix product, AMX-INT8; matmul_plain.c defines the canonical order.
 *
 * Two panels of 16 rows by PANEL_COLUMNS columns are unpacked (panel_amx.h). For each group of up to 16
 * tokens the tile unit then makes the exact integer dot products of every block, and AVX-512 multiplies them
 * with their scales and adds them to the sums, row a lane, blocks ascending: the canonical order. The tokens'
 * codes are read where they lie.
 *
 * What it can gain. A tile product takes 16 cycles. For a K type a block of 256 takes four for each byte of
 * code times scale: 512 products a cycle, and the rest hides behind it. Types of blocks of 32 use half a
 * tile's depth, 512 a cycle too, but every 32 columns cost a conversion, a multiplication and an addition a
 * lane: 340 a cycle at best. AVX-512 VNNI's ceiling is 128. None of this was measured. */
#include <string.h>

#include "kernels/kernels_internal.h"
#include "kernels/pack.h"
#include "kernels/panel_amx.h"
#include "kernels/tiles_amx.h"
#include "kernels/unroll.h"

enum { GROUP = 16, GROUPS = 16, PAIR = 2 * PANEL_ROWS, STEP_BLOCKS = 8, TOKENS_MIN = 7 };

#ifdef AMX_SOFTWARE
#define MATMUL_AMX matmul_amx_software
#else
#define MATMUL_AMX matmul_amx
#endif

/* Tiles: 0 .. 3 are sums, 4 is a group's codes, 5 and 6 a panel's. */
static void configure(int tokens, size_t depth)
{
    _Alignas(64) struct amx_config config = {.palette = 1};
    for (int i = 0; i < 4; i++) {
        config.rows[i] = (uint8_t)tokens;
        config.row_bytes[i] = 64;
    }
    config.rows[4] = (uint8_t)tokens;
    config.row_bytes[4] = (uint16_t)depth;
    for (int i = 5; i < 7; i++) {
        config.rows[i] = (uint8_t)(depth / 4);
        config.row_bytes[i] = 64;
    }
    amx_configure(&config);
}

/* What a call works with. */
struct plan {
    const struct matmul *m;
    size_t block, block_bytes, row_bytes, packed_bytes, scales_at, sums_at;
    bool minimums;
    size_t first,
        tokens; /* the tokens of this round, in groups of `group`: the last one may start in the one before */
    int group;
};

/* A stretch of columns of a group. */
struct group {
    const unsigned char *packed; /* of the first token */
    size_t column, blocks;
    float *sums; /* [group][PAIR], of the first token */
    int skip;    /* tokens that the group before has done */
    _Alignas(64) int32_t dots[STEP_BLOCKS * 2 * GROUP * PANEL_ROWS];
};

static const int8_t *codes_at(const struct group *g, size_t column)
{
    return (const int8_t *)g->packed + g->column + column;
}

/* ---- blocks of 32 ---- */

/* Dot products of `count` blocks from block b on, [count][2][GROUP][PANEL_ROWS]. */
static void dots_32(const struct plan *p, const struct panel *panels, struct group *g, size_t b, size_t count)
{
    const size_t one = GROUP * PANEL_ROWS;
    for (size_t i = 0; i < count; i++) {
        int32_t *to = g->dots + i * 2 * one;
        amx_zero(0);
        amx_zero(1);
        amx_load(4, codes_at(g, 32 * (b + i)), p->packed_bytes);
        amx_load(5, &panels[0].low[8 * (b + i)], 64);
        amx_load(6, &panels[1].low[8 * (b + i)], 64);
        amx_dot_signed(0, 4, 5);
        amx_dot_signed(1, 4, 6);
        amx_store(0, to, 64);
        amx_store(1, to + one, 64);
    }
}

static void add_32(const struct plan *p, const struct panel *panel, struct group *g, int half, size_t b,
                   size_t count)
{
    for (int t = g->skip; t < p->group; t++) {
        const unsigned char *x = g->packed + (size_t)t * p->packed_bytes;
        const float *scales = (const float *)(const void *)(x + p->scales_at) + g->column / 32 + b;
        const int32_t *starts = (const int32_t *)(const void *)(x + p->sums_at) + g->column / 32 + b;
        const int32_t *dots = g->dots + (half * GROUP + t) * PANEL_ROWS;
        float *at = g->sums + t * PAIR + half * PANEL_ROWS;
        __m512 sum = _mm512_load_ps(at);
        for (size_t i = 0; i < count; i++, dots += PAIR * GROUP) {
            __m512 both = _mm512_mul_ps(panel->scale[b + i], _mm512_set1_ps(scales[i]));
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots)), both, sum);
            if (p->minimums)
                sum = _mm512_fmadd_ps(panel->minimum[b + i],
                                      _mm512_set1_ps(scales[i] * (float)pack_q32_sum(starts[i])), sum);
        }
        _mm512_store_ps(at, sum);
    }
}

static void multiply_32(const struct plan *p, const struct panel *panels, struct group *g)
{
    for (size_t b = 0; b < g->blocks; b += STEP_BLOCKS) {
        size_t count = g->blocks - b < STEP_BLOCKS ? g->blocks - b : STEP_BLOCKS;
        dots_32(p, panels, g, b, count);
        add_32(p, &panels[0], g, 0, b, count);
        add_32(p, &panels[1], g, 1, b, count);
    }
}

/* ---- blocks of 256 ---- */

/* The two sums of block b for both panels, [2 panels][2: low, high][GROUP][PANEL_ROWS]. */
static void dots_256(const struct plan *p, const struct panel *panels, struct group *g, size_t b)
{
    const size_t one = GROUP * PANEL_ROWS;
    amx_zero(0);
    amx_zero(1);
    amx_zero(2);
    amx_zero(3);
    for (size_t c = 64 * b; c < 64 * (b + 1); c += 16) {
        amx_load(4, codes_at(g, 4 * c), p->packed_bytes);
        amx_load(5, &panels[0].low[c], 64);
        amx_load(6, &panels[0].high[c], 64);
        amx_dot_signed(0, 4, 5);
        amx_dot_signed(1, 4, 6);
        amx_load(5, &panels[1].low[c], 64);
        amx_load(6, &panels[1].high[c], 64);
        amx_dot_signed(2, 4, 5);
        amx_dot_signed(3, 4, 6);
    }
    amx_store(0, g->dots, 64);
    amx_store(1, g->dots + one, 64);
    amx_store(2, g->dots + 2 * one, 64);
    amx_store(3, g->dots + 3 * one, 64);
}

/* Sums of 32 codes as a panel's minimums pair them: 0 with 2 and 1 with 3 of each four. */
ALWAYS_INLINE void sums_pairs(const int16_t *sums, int32_t pairs[4])
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m256i of_32 =
        _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)(const void *)sums), _mm256_set1_epi16(1));
    _mm_storeu_si128((__m128i *)(void *)pairs, _mm_shuffle_epi8(_mm256_cvtepi32_epi16(of_32), order));
}

static void add_256(const struct plan *p, const struct panel *panel, struct group *g, int half, size_t b)
{
    for (int t = g->skip; t < p->group; t++) {
        const unsigned char *x = g->packed + (size_t)t * p->packed_bytes;
        size_t at_block = g->column / 256 + b;
        __m512 scale = _mm512_set1_ps(((const float *)(const void *)(x + p->scales_at))[at_block]);
        const int32_t *dots = g->dots + (2 * half * GROUP + t) * PANEL_ROWS;
        float *at = g->sums + t * PAIR + half * PANEL_ROWS;
        __m512i high = _mm512_slli_epi32(_mm512_load_si512(dots + GROUP * PANEL_ROWS), 7);
        __m512i total = _mm512_add_epi32(_mm512_load_si512(dots), high);
        __m512 both = _mm512_mul_ps(panel->scale[b], scale);
        __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), both, _mm512_load_ps(at));
        if (p->minimums) {
            int32_t pairs[4];
            __m512i mins = _mm512_setzero_si512();
            sums_pairs((const int16_t *)(const void *)(x + p->sums_at) + 16 * at_block, pairs);
            UNROLL_FOR (i, 4)
                mins = _mm512_dpwssd_epi32(mins, panel->minimums[4 * b + (size_t)i],
                                           _mm512_set1_epi32(pairs[i]));
            both = _mm512_mul_ps(panel->minimum[b], scale);
            sum = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(mins), both, sum);
        }
        _mm512_store_ps(at, sum);
    }
}

static void multiply_256(const struct plan *p, const struct panel *panels, struct group *g)
{
    for (size_t b = 0; b < g->blocks; b++) {
        dots_256(p, panels, g, b);
        add_256(p, &panels[0], g, 0, b);
        add_256(p, &panels[1], g, 1, b);
    }
}

/* ---- all of it ---- */

static struct plan plan_of(const struct matmul *m)
{
    const struct dtype_info *info = dtype_info((uint32_t)m->type);
    struct plan p = {.m = m,
                     .block = info->block_values,
                     .block_bytes = info->block_bytes,
                     .row_bytes = dtype_row_bytes(m->type, m->columns),
                     .packed_bytes = kernels_packed_bytes(kernels_pack_of(m->type), m->columns)};
    p.scales_at = p.block == 32 ? pack_q32_scales_at(m->columns) : pack_q256_scales_at(m->columns);
    p.sums_at = p.block == 32 ? pack_q32_starts_at(m->columns) : pack_q256_sums_at(m->columns);
    p.minimums =
        m->type == DTYPE_Q4_1 || m->type == DTYPE_Q5_1 || m->type == DTYPE_Q4_K || m->type == DTYPE_Q5_K;
    return p;
}

/* Unpacks up to 32 rows; where fewer than 16 are left of a panel they are copied, since 16 are always read,
 * and the first stands for the missing ones. */
static void fill_panels(const struct plan *p, size_t row, size_t row_end, size_t column, size_t blocks,
                        struct panel panels[2])
{
    unsigned char copy[PANEL_ROWS * PANEL_COLUMNS / 32 * 34];
    size_t bytes = blocks * p->block_bytes, at = column / p->block * p->block_bytes;
    const unsigned char *from = (const unsigned char *)p->m->weights + row * p->row_bytes + at;
    for (size_t half = 0; half < PAIR / PANEL_ROWS; half++) {
        size_t first = half * PANEL_ROWS, rows = row_end - row;
        if (rows >= first + PANEL_ROWS) {
            panel_unpack(p->m->type, from + first * p->row_bytes, p->row_bytes, blocks, &panels[half]);
            continue;
        }
        for (size_t i = 0; i < PANEL_ROWS; i++)
            memcpy(copy + i * bytes, from + (first + i < rows ? first + i : 0) * p->row_bytes, bytes);
        panel_unpack(p->m->type, copy, bytes, blocks, &panels[half]);
    }
}

static void multiply(const struct plan *p, const struct panel *panels, size_t column, size_t blocks,
                     float *sums)
{
    struct group g;
    g.column = column;
    g.blocks = blocks;
    for (size_t done = 0; done < p->tokens; done += (size_t)p->group) {
        size_t group = (size_t)p->group, from = p->tokens - done < group ? p->tokens - group : done;
        g.packed = (const unsigned char *)p->m->packed + (p->first + from) * p->packed_bytes;
        g.sums = sums + from * PAIR;
        g.skip = (int)(done - from);
        if (p->block == 32)
            multiply_32(p, panels, &g);
        else
            multiply_256(p, panels, &g);
    }
}

static void store_sums(const struct plan *p, size_t row, size_t rows, const float *sums)
{
    for (size_t t = 0; t < p->tokens; t++)
        memcpy(p->m->out + (p->first + t) * p->m->out_stride + row, sums + t * PAIR, rows * sizeof *sums);
}

static void multiply_rows(const struct plan *p, size_t row_begin, size_t row_end)
{
    _Alignas(64) float sums[GROUPS * GROUP * PAIR];
    struct panel panels[2];
    configure(p->group, p->block == 32 ? 32 : 64);
    for (size_t row = row_begin; row < row_end; row += PAIR) {
        memset(sums, 0, p->tokens * PAIR * sizeof *sums);
        for (size_t column = 0; column < p->m->columns; column += PANEL_COLUMNS) {
            size_t left = p->m->columns - column, columns = left < PANEL_COLUMNS ? left : PANEL_COLUMNS;
            fill_panels(p, row, row_end, column, columns / p->block, panels);
            multiply(p, panels, column, columns / p->block, sums);
        }
        store_sums(p, row, row_end - row < PAIR ? row_end - row : PAIR, sums);
    }
    amx_release();
}

void MATMUL_AMX(const struct matmul *m, size_t row_begin, size_t row_end)
{
    if (m->tokens < TOKENS_MIN || kernels_pack_of(m->type) == PACK_F32) {
        matmul_avx512(m, row_begin, row_end);
        return;
    }
    struct plan p = plan_of(m);
    for (; p.first < m->tokens; p.first += p.tokens) {
        const size_t most = (size_t)GROUPS * GROUP;
        p.tokens = m->tokens - p.first < most ? m->tokens - p.first : most;
        size_t groups = (p.tokens + GROUP - 1) / GROUP;
        p.group =
            (int)((p.tokens + groups - 1) / groups); /* as even as can be: a product's time is its tokens */
        multiply_rows(&p, row_begin, row_end);
    }
}
