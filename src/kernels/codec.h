/* Lowering KV from one level to a smaller one, a head's data of one chunk and layer at a time.
 *
 * Levels 16 and 8 hold K and V as computed; levels 4 and 2 hold them rotated: every head vector x is replaced
 * by R x, where R is a normalised Hadamard matrix over blocks of the largest power of two that divides dim.
 * Rotating spreads what sticks out over all dimensions, so that few bits lose less (QuaRot 2404.00456;
 * SAW-INT4 2604.19157), and R is its own inverse: q.k = (R q).(R k), and the weighted sum of rotated V is
 * rotated back once at the end.
 *
 * Level 4 and 2 data of a head: value = (code - mid) * scale, mid = 7.5 or 1.5, one scale (half) for a
 * token's K and one for its V. With g = 8 / level codes in a byte:
 *
 *   K codes   dim / g rows of 16 bytes: byte t of row i holds token t's dimensions i g .. i g + g - 1, the
 *             first in the lowest bits
 *   V codes   for each token dim / g bytes: its dimensions in groups of 16 g (the last may be smaller: n
 *             dimensions, n / g bytes): byte j of a group holds its dimensions j, j + n / g, j + 2 n / g ...,
 *             the first in the lowest bits
 *   scales    K scales [16], then V scales [16]
 *
 * so that a chunk's 16 tokens (K), or 16 neighbouring dimensions (V), are 16 bytes shifted and masked alike.
 *
 * The scale of a vector is the one, of a stated small set around max|x| / mid (codec_core.h), with the least
 * squared error (ties: the smallest); codes are nearest. codec_core.h is the canonical order of every float
 * operation; it is compiled once for each instruction set, and all agree bit by bit. */
#ifndef LLMS_KERNELS_CODEC_H
#define LLMS_KERNELS_CODEC_H

#include <stddef.h>
#include <stdint.h>

enum { CODEC_SLOTS = 16, CODEC_DIM = 256 }; /* tokens of a chunk; the widest head */

struct codec_head {
    const void *from;
    void *to; /* does not overlap from */
    uint8_t from_level,
        to_level;   /* to_level < from_level; or from_level 16 or 8 and to_level 16: widening, for tests */
    uint8_t tokens; /* slots 0 .. tokens - 1 hold something; the others come out as zero bytes */
    size_t dim;     /* a multiple of 8, at most CODEC_DIM */
};

/* In every kernel table:
 *     double codec(const struct codec_head *head);
 * returns the squared error it added over both K and V relative to `from`'s values (sum over values), for
 * choosing levels by measured damage.
 *     void rotate(float *x, size_t dim);
 * rotates x[dim] in place by R: butterflies h = 1, 2, 4, ...: (a + b, a - b), then times
 * 2^(-log2(block) / 2). codec_rotate is its plain twin. */
void codec_rotate(float *x, size_t dim);

static inline size_t codec_block(size_t dim) /* of the rotation */
{
    return dim & (~dim + 1);
}

static inline float codec_mid(uint8_t level) /* 4 or 2 */
{
    return level == 4 ? 7.5f : 1.5f;
}

/* Where the scales begin at levels 8, 4 and 2: K's 16, then V's. */
static inline const uint16_t *codec_scales(const void *data, uint8_t level, size_t dim)
{
    return (const uint16_t *)(const void *)((const char *)data + 2 * CODEC_SLOTS * dim * level / 8);
}

/* One code of levels 4 and 2. */
static inline unsigned codec_key(const void *data, uint8_t level, size_t d, size_t t)
{
    size_t in_byte = 8u / level;
    unsigned byte = ((const uint8_t *)data)[d / in_byte * CODEC_SLOTS + t];
    return byte >> d % in_byte * level & ((1u << level) - 1);
}

static inline unsigned codec_value(const void *data, uint8_t level, size_t dim, size_t t, size_t d)
{
    size_t in_byte = 8u / level, group = 16 * in_byte, base = d / group * group;
    size_t bytes = (dim - base < group ? dim - base : group) / in_byte;
    const uint8_t *row = (const uint8_t *)data + (CODEC_SLOTS + t) * (dim / in_byte) + base / in_byte;
    return (unsigned)row[(d - base) % bytes] >> (d - base) / bytes * level & ((1u << level) - 1);
}

#endif
