/* See block_avx512.h; matmul_plain.c defines the canonical order.
 *
 * A block of 32 columns of 32 rows, one row a lane, is unpacked into 16 registers and stays there while all
 * tokens go by; their sums wait in the first cache. Nothing else is stored: stores would take the place of
 * dot products. Every row takes its blocks in ascending order, so the canonical order holds. */
#include "kernels/block_avx512.h"

#include <stdint.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/pack.h"
#include "kernels/unpack_avx512.h"
#include "kernels/unroll.h"

/* Two tokens at once, so that their sums of dot products, of four steps each, wait for nothing. */
enum {
    HALF = UNPACK_ROWS,
    ROWS = 2 * HALF,
    TOKENS = 128,
    TOKENS_AT_ONCE = 2,
    NEXT_TOKENS = 8,
    NEAR_BYTES = 64,
    PAIRS_TOKENS = 24 /* with fewer, preparing the weights takes what pairs gain */
};
enum { COPY_COLUMNS = 512, COPY_BYTES = 34 };

/* ROWS rows by some blocks, and the tokens they are multiplied with. */
struct run {
    const unsigned char *rows;
    size_t stride, blocks;
    const unsigned char *x; /* the first token's codes, at the first of these blocks */
    size_t x_stride, tokens;
    size_t scales, starts; /* from x to the first block's */
    float *sums;           /* [tokens][ROWS], added to */
    uintptr_t ahead;       /* fetched from memory meanwhile; only an address: it may lie behind the weights,
                              where that does nothing */
    bool fetches;          /* whether it is */
};

/* How a block's dot product comes about: of codes above theirs by PACK_START << shift, which the token's
 * start takes off; of codes as they are, where the type has minimums; or in pairs (pack.h). */
enum way { ABOVE, MINIMUMS, PAIRS };

/* One block. */
struct block {
    __m512i code[2][8];
    __m512 scale[2], minimum[2];
    __m512i above[2]; /* PAIRS: what the rows alone add to the dot products */
};

ALWAYS_INLINE __m512i four_bytes(const unsigned char *at)
{
    int32_t four;
    memcpy(&four, at, 4);
    return _mm512_set1_epi32(four);
}

/* Of codes PACK_START above theirs makes what pairs are taken with: w, and v + PACK_PAIR. */
ALWAYS_INLINE void pair_up(struct block *b)
{
    UNROLL_FOR (h, 2) {
        b->above[h] = _mm512_setzero_si512();
        UNROLL_FOR (i, 4) {
            __m512i *w = &b->code[h][2 * i], *v = w + 1;
            *w = _mm512_sub_epi8(*w, _mm512_set1_epi8(PACK_START));
            *v = _mm512_add_epi8(*v, _mm512_set1_epi8(PACK_PAIR - PACK_START));
            b->above[h] = _mm512_dpbusd_epi32(b->above[h], *v, *w);
        }
    }
}

/* Tokens at work together: codes of the first, and from there to its scale and start. */
struct tokens {
    const unsigned char *x;
    size_t stride, scale, start;
};

ALWAYS_INLINE __m512i start_of(const struct tokens *x, int token)
{
    return four_bytes(x->x + (size_t)token * x->stride + x->start);
}

ALWAYS_INLINE __m512i codes_of(const struct tokens *x, int token, int four)
{
    return four_bytes(x->x + (size_t)token * x->stride + 4 * (size_t)four);
}

ALWAYS_INLINE void dots(bool minimums, unsigned shift, int tokens, const struct block *b,
                        const struct tokens *x, __m512i dot[TOKENS_AT_ONCE][2])
{
    __m512i other[TOKENS_AT_ONCE][2]; /* so that a sum has four steps and not eight to wait for */
    UNROLL_FOR (t, tokens) {
        __m512i start = minimums ? _mm512_setzero_si512() : start_of(x, t);
        UNROLL_FOR (h, 2) {
            dot[t][h] = shift ? _mm512_slli_epi32(start, shift) : start;
            other[t][h] = _mm512_setzero_si512();
        }
    }
    UNROLL_FOR (i, 4)
        UNROLL_FOR (t, tokens) {
            __m512i first = codes_of(x, t, 2 * i), second = codes_of(x, t, 2 * i + 1);
            UNROLL_FOR (h, 2)
                dot[t][h] = _mm512_dpbusd_epi32(dot[t][h], b->code[h][2 * i], first);
            UNROLL_FOR (h, 2)
                other[t][h] = _mm512_dpbusd_epi32(other[t][h], b->code[h][2 * i + 1], second);
        }
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (h, 2)
            dot[t][h] = _mm512_add_epi32(dot[t][h], other[t][h]);
}

ALWAYS_INLINE void dots_of_pairs(int tokens, const struct block *b, const struct tokens *x,
                                 __m512i dot[TOKENS_AT_ONCE][2])
{
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (h, 2)
            dot[t][h] = start_of(x, t);
    UNROLL_FOR (i, 4)
        UNROLL_FOR (t, tokens) {
            __m512i first = codes_of(x, t, 2 * i), second = codes_of(x, t, 2 * i + 1);
            UNROLL_FOR (h, 2)
                dot[t][h] = _mm512_dpbusd_epi32(dot[t][h], _mm512_add_epi8(b->code[h][2 * i + 1], first),
                                                _mm512_add_epi8(b->code[h][2 * i], second));
        }
    UNROLL_FOR (t, tokens)
        UNROLL_FOR (h, 2)
            dot[t][h] = _mm512_sub_epi32(dot[t][h], b->above[h]);
}

/* Adds one block's products with `tokens` tokens. */
ALWAYS_INLINE void add_products(enum way way, unsigned shift, int tokens, const struct block *b,
                                const struct tokens *x, float *sums)
{
    __m512i dot[TOKENS_AT_ONCE][2];
    UNROLL_FOR (t, tokens)
        _mm_prefetch((const char *)((uintptr_t)x->x + (NEXT_TOKENS + (size_t)t) * x->stride), _MM_HINT_T0);
    if (way == PAIRS)
        dots_of_pairs(tokens, b, x, dot);
    else
        dots(way == MINIMUMS, shift, tokens, b, x, dot);
    UNROLL_FOR (t, tokens) {
        const unsigned char *at = x->x + (size_t)t * x->stride;
        __m512 scale = _mm512_castsi512_ps(four_bytes(at + x->scale)), of_minimum = scale;
        if (way == MINIMUMS) {
            int32_t start;
            memcpy(&start, at + x->start, 4);
            of_minimum = _mm512_mul_ps(scale, _mm512_set1_ps((float)pack_q32_sum(start)));
        }
        UNROLL_FOR (h, 2) {
            float *to = sums + t * ROWS + h * HALF;
            __m512 both = _mm512_mul_ps(b->scale[h], scale);
            __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][h]), both, _mm512_load_ps(to));
            if (way == MINIMUMS)
                sum = _mm512_fmadd_ps(b->minimum[h], of_minimum, sum);
            _mm512_store_ps(to, sum);
        }
    }
}

/* What the loop needs of r lies in variables: the compiler would load it anew after each store. */
ALWAYS_INLINE void multiply(enum way way, unsigned shift, const struct block *b, const struct run *r,
                            size_t number)
{
    struct tokens x = {r->x + 32 * number, r->x_stride, r->scales - 28 * number, r->starts - 28 * number};
    const size_t together = r->tokens / TOKENS_AT_ONCE * TOKENS_AT_ONCE;
    float *sums = r->sums, *end = sums + together * ROWS;
    for (; sums != end; sums += TOKENS_AT_ONCE * ROWS, x.x += TOKENS_AT_ONCE * x.stride)
        add_products(way, shift, TOKENS_AT_ONCE, b, &x, sums);
    if (together < r->tokens)
        add_products(way, shift, 1, b, &x, sums);
}

/* Fetches `bytes` of what lies ahead, if r wants it, into the second cache, as the first holds what is at
 * work; and from there what `rows` will need soon. */
ALWAYS_INLINE uintptr_t fetch(const struct run *r, uintptr_t ahead, size_t bytes, const struct rows *rows)
{
    UNROLL_FOR (i, HALF)
        _mm_prefetch((const char *)((uintptr_t)row_at(rows, i) + NEAR_BYTES), _MM_HINT_T0);
    if (r->fetches)
        UNROLL_FOR (line, (int)bytes / 64)
            _mm_prefetch((const char *)(ahead + 64 * (uintptr_t)line), _MM_HINT_T1);
    return ahead + bytes;
}

ALWAYS_INLINE void run_32(enum dtype type, size_t bytes, enum way way, unsigned shift, const struct run *r)
{
    struct rows low = rows_at(r->rows, r->stride), high = rows_at(r->rows + HALF * r->stride, r->stride);
    uintptr_t ahead = r->ahead;
    for (size_t i = 0; i < r->blocks; i++, rows_advance(&low, bytes), rows_advance(&high, bytes)) {
        struct block b;
        unpack_32(type, &low, 0, b.code[0], &b.scale[0], &b.minimum[0]);
        unpack_32(type, &high, 0, b.code[1], &b.scale[1], &b.minimum[1]);
        ahead = fetch(r, ahead, ROWS * bytes, i % 2 ? &high : &low);
        multiply(way, shift, &b, r, i);
    }
}

/* Two blocks of Q4_0, 36 bytes, with fewer loads than one by one: 32 bytes reach to the second one's scale,
 * 16 hold its codes. Returns that scale. */
ALWAYS_INLINE __m512 first_q4_0(const struct rows *r, __m512i code[8], __m512 *scale)
{
    __m512i v[8];
    load_32(r, 0, v);
    *scale = low_halves(v[0]);
    UNROLL_FOR (j, 4) {
        /* The first block's codes start in the middle of a lane's four bytes. */
        __m512i codes = _mm512_rol_epi32(_mm512_mask_blend_epi16(0x55555555, v[j], v[j + 1]), 16);
        code[j] = low_nibbles(codes);
        code[4 + j] = high_nibbles(codes);
    }
    return high_halves(v[4]);
}

ALWAYS_INLINE void multiply_q4_0(enum way way, struct block *b, const struct run *r, size_t number)
{
    if (way == PAIRS)
        pair_up(b);
    multiply(way, 0, b, r, number);
}

ALWAYS_INLINE void run_4(enum way way, const struct run *r)
{
    struct rows low = rows_at(r->rows, r->stride), high = rows_at(r->rows + HALF * r->stride, r->stride);
    uintptr_t ahead = r->ahead;
    size_t i = 0;
    struct block b;
    for (; i + 2 <= r->blocks; i += 2, rows_advance(&low, 36), rows_advance(&high, 36)) {
        __m512 next[2];
        next[0] = first_q4_0(&low, b.code[0], &b.scale[0]);
        next[1] = first_q4_0(&high, b.code[1], &b.scale[1]);
        ahead = fetch(r, ahead, ROWS * 18, &low);
        multiply_q4_0(way, &b, r, i);
        nibbles(&low, 20, b.code[0]);
        nibbles(&high, 20, b.code[1]);
        b.scale[0] = next[0];
        b.scale[1] = next[1];
        ahead = fetch(r, ahead, ROWS * 18, &high);
        multiply_q4_0(way, &b, r, i + 1);
    }
    if (i < r->blocks) {
        unpack_32(DTYPE_Q4_0, &low, 0, b.code[0], &b.scale[0], &b.minimum[0]);
        unpack_32(DTYPE_Q4_0, &high, 0, b.code[1], &b.scale[1], &b.minimum[1]);
        multiply_q4_0(way, &b, r, i);
    }
}

static void run_q4_0(const struct run *r)
{
    run_4(ABOVE, r);
}

static void run_q4_0_pairs(const struct run *r)
{
    run_4(PAIRS, r);
}

static void run_q8_0(const struct run *r)
{
    run_32(DTYPE_Q8_0, 34, ABOVE, 4, r);
}

static void run_q4_1(const struct run *r)
{
    run_32(DTYPE_Q4_1, 20, MINIMUMS, 0, r);
}

static void run_q5_0(const struct run *r)
{
    run_32(DTYPE_Q5_0, 22, ABOVE, 1, r);
}

static void run_q5_1(const struct run *r)
{
    run_32(DTYPE_Q5_1, 24, MINIMUMS, 0, r);
}

typedef void run_fn(const struct run *r);

static run_fn *run_of(enum dtype type, bool pairs)
{
    switch (type) {
    case DTYPE_Q8_0:
        return run_q8_0;
    case DTYPE_Q4_0:
        return pairs ? run_q4_0_pairs : run_q4_0;
    case DTYPE_Q4_1:
        return run_q4_1;
    case DTYPE_Q5_0:
        return run_q5_0;
    default:
        return run_q5_1;
    }
}

/* The last rows, fewer than ROWS: copied by stretches of columns, the missing ones as the first. */
static void run_last(run_fn *run, struct run *r, size_t rows, size_t block_bytes)
{
    unsigned char copy[ROWS * COPY_COLUMNS / 32 * COPY_BYTES];
    const unsigned char *from = r->rows;
    size_t stride = r->stride;
    r->rows = copy;
    r->fetches = false;
    for (size_t left = r->blocks; left; left -= r->blocks) {
        r->blocks = left < COPY_COLUMNS / 32 ? left : COPY_COLUMNS / 32;
        r->stride = r->blocks * block_bytes;
        for (size_t i = 0; i < ROWS; i++)
            memcpy(copy + i * r->stride, from + (i < rows ? i : 0) * stride, r->stride);
        run(r);
        from += r->stride;
        r->x += 32 * r->blocks;
        r->scales -= 28 * r->blocks;
        r->starts -= 28 * r->blocks;
    }
    r->rows = NULL; /* copy ends here */
}

static void store_sums(const struct matmul *m, size_t row, size_t rows, size_t first, size_t tokens,
                       const float *sums)
{
    __mmask16 low = rows >= HALF ? 0xffff : (__mmask16)((1u << rows) - 1);
    __mmask16 high = rows >= ROWS ? 0xffff : rows > HALF ? (__mmask16)((1u << (rows - HALF)) - 1) : 0;
    for (size_t t = 0; t < tokens; t++, sums += ROWS) {
        float *out = m->out + (first + t) * m->out_stride + row;
        _mm512_mask_storeu_ps(out, low, _mm512_load_ps(sums));
        if (high)
            _mm512_mask_storeu_ps(out + HALF, high, _mm512_load_ps(sums + HALF));
    }
}

static void multiply_rows(const struct matmul *m, size_t row_begin, size_t row_end, bool pairs)
{
    const struct dtype_info *info = dtype_info((uint32_t)m->type);
    _Alignas(64) float sums[TOKENS * ROWS];
    run_fn *run = run_of(m->type, pairs);
    size_t row_bytes = dtype_row_bytes(m->type, m->columns);
    size_t packed_bytes = kernels_packed_bytes(kernels_pack_of(m->type), m->columns);
    for (size_t row = row_begin; row < row_end; row += ROWS) {
        size_t rows = row_end - row < ROWS ? row_end - row : ROWS;
        for (size_t first = 0; first < m->tokens; first += TOKENS) {
            struct run r = {.rows = (const unsigned char *)m->weights + row * row_bytes,
                            .stride = row_bytes,
                            .blocks = m->columns / 32,
                            .x = (const unsigned char *)m->packed + first * packed_bytes,
                            .x_stride = packed_bytes,
                            .tokens = m->tokens - first < TOKENS ? m->tokens - first : TOKENS,
                            .scales = pack_q32_scales_at(m->columns),
                            .starts = (pairs ? pack_pairs_at : pack_q32_starts_at)(m->columns),
                            .sums = sums,
                            .fetches = first == 0};
            r.ahead = (uintptr_t)r.rows + ROWS * row_bytes;
            memset(sums, 0, r.tokens * ROWS * sizeof *sums);
            if (rows == ROWS)
                run(&r);
            else
                run_last(run, &r, rows, info->block_bytes);
            store_sums(m, row, rows, first, r.tokens, sums);
        }
    }
}

/* ---- which way ---- */

/* Of PERIOD calls the first TRIALS take both ways, each as often first as second (gate and up take turns);
 * the rest the one whose best trial was faster. */
enum { PERIOD = 128, TRIALS = 8 };

struct trials {
    unsigned calls;
    bool pairs; /* were faster */
    double best[2];
};

static bool next_way(const struct trials *t)
{
    return t->calls < TRIALS ? (t->calls + 1) / 2 % 2 : t->pairs;
}

static void count_call(struct trials *t, bool pairs, double ns)
{
    if (t->calls < 2 || ns < t->best[pairs])
        t->best[pairs] = ns;
    if (++t->calls == TRIALS)
        t->pairs = t->best[true] < t->best[false];
    if (t->calls == PERIOD)
        t->calls = 0;
}

static void multiply_faster(const struct matmul *m, size_t row_begin, size_t row_end)
{
    static _Thread_local struct trials trials;
    bool pairs = next_way(&trials);
    uint64_t start = clock_ns();
    multiply_rows(m, row_begin, row_end, pairs);
    double work = (double)(row_end - row_begin) * (double)m->columns * (double)m->tokens;
    count_call(&trials, pairs, (double)(clock_ns() - start) / work);
}

bool block_matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end, enum block_way way)
{
    if (dtype_info((uint32_t)m->type)->block_values != 32)
        return false;
    if (m->type != DTYPE_Q4_0 || row_begin == row_end)
        way = BLOCK_ALONE;
    if (way == BLOCK_FASTER && m->tokens >= PAIRS_TOKENS)
        multiply_faster(m, row_begin, row_end);
    else
        multiply_rows(m, row_begin, row_end, way == BLOCK_PAIRS);
    return true;
}
