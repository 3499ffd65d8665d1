/* AMX tile operations, twice: as the instructions, and in plain C (AMX_SOFTWARE) for tests on processors
 * without them. What the tests then hold to is the blocking, the packing and the order; the instructions
 * themselves are checked where they exist before they are used (kernels.c).
 *
 * Tile numbers must be constants. Each thread configures its tiles before use and releases them after. */
#ifndef LLMS_KERNELS_TILES_AMX_H
#define LLMS_KERNELS_TILES_AMX_H

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* As the processor reads it: rows and bytes a row of each tile. */
struct amx_config {
    uint8_t palette; /* 1 */
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16]; /* at most 64 */
    uint8_t rows[16];       /* at most 16 */
};
_Static_assert(sizeof(struct amx_config) == 64, "the processor's layout");

#ifdef AMX_SOFTWARE

struct amx_state {
    struct amx_config config;
    unsigned char data[8][16][64];
};

static _Thread_local struct amx_state amx;

static inline void amx_configure(const struct amx_config *config)
{
    memset(&amx, 0, sizeof amx);
    amx.config = *config;
}

static inline void amx_release(void)
{
    memset(&amx, 0, sizeof amx);
}

static inline void amx_zero(int tile)
{
    memset(amx.data[tile], 0, sizeof amx.data[tile]);
}

static inline void amx_load(int tile, const void *from, size_t stride)
{
    amx_zero(tile);
    for (int i = 0; i < amx.config.rows[tile]; i++)
        memcpy(amx.data[tile][i], (const char *)from + (size_t)i * stride, amx.config.row_bytes[tile]);
}

static inline void amx_store(int tile, void *to, size_t stride)
{
    for (int i = 0; i < amx.config.rows[tile]; i++)
        memcpy((char *)to + (size_t)i * stride, amx.data[tile][i], amx.config.row_bytes[tile]);
}

/* sum[m][n] += the four products of a[m][4 k ..] and b[k][4 n ..] for all k; shapes that do not fit are a
 * bug, for which the processor raises an exception. */
static inline void amx_dot_signed(int sum, int a, int b)
{
    const struct amx_config *c = &amx.config;
    if (c->rows[sum] != c->rows[a] || c->row_bytes[sum] != c->row_bytes[b] ||
        c->row_bytes[a] != 4 * c->rows[b])
        abort();
    for (int m = 0; m < c->rows[sum]; m++)
        for (int k = 0; k < c->rows[b]; k++)
            for (int n = 0; n < c->row_bytes[sum] / 4; n++) {
                const signed char *x = (const signed char *)amx.data[a][m] + 4 * k;
                const signed char *y = (const signed char *)amx.data[b][k] + 4 * n;
                int32_t *to = (int32_t *)(void *)amx.data[sum][m] + n;
                *to += x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
            }
}

#else

/* Loads say nothing of memory to the compiler: what was written must be there. */
#define amx_configure(config)                                                                                \
    do {                                                                                                     \
        __asm__ volatile("" ::: "memory");                                                                   \
        _tile_loadconfig(config);                                                                            \
    } while (0)
#define amx_release() _tile_release()
#define amx_zero(tile) _tile_zero(tile)
#define amx_load(tile, from, stride)                                                                         \
    do {                                                                                                     \
        __asm__ volatile("" ::: "memory");                                                                   \
        _tile_loadd(tile, from, stride);                                                                     \
    } while (0)
#define amx_store(tile, to, stride)                                                                          \
    do {                                                                                                     \
        _tile_stored(tile, to, stride);                                                                      \
        __asm__ volatile("" ::: "memory");                                                                   \
    } while (0)
#define amx_dot_signed(sum, a, b) _tile_dpbssd(sum, a, b)

#endif

#endif
