/* Lowering KV from one level to a smaller one, a head's data of one chunk and layer at a time.
 *
 * A level says how many bits the codes of a value take, and by which codec. 16 and 8 hold K and V as computed
 * (attention.h). 4, 3 and 2 are ours. With CODEC_PAPER added, 4 and 2 are the paper's.
 *
 * Ours holds K and V rotated: every head vector x is replaced by R x, where R is a normalised Hadamard matrix
 * over blocks of the largest power of two that divides dim. Rotating spreads what sticks out over all
 * dimensions, so that few bits lose less (QuaRot 2404.00456; SAW-INT4 2604.19157), and R is its own inverse:
 * q.k = (R q).(R k), and the weighted sum of rotated V is rotated back once at the end.
 *
 *   4         by token: value = (code - 7.5) * scale, scale = max|x| / 7.5, one for a token's K and for its V
 *   2         by channel: value = code * step + low, for each dimension of the chunk's K, and of its V
 *   3         K as at level 4, V as at level 2: what attention picks by needs more bits than what it sums up
 *   paper's   by channel, not rotated: the same with step and low as two halves each
 *
 * By channel, a dimension's codes go from its least value of the chunk's tokens to its largest: step = (max -
 * min) / (2^bits - 1). Nothing is clipped, at level 4 neither: what sticks out is what attention looks for.
 * (Scales of less squared error that clip cost several times more of a far answer's probability.) The paper's
 * pays 2 bits a value for its halves; level 2 half a bit: a byte holds the codes of a dimension's centre and
 * step, of 4 bits each, in units that all dimensions share:
 *     step = (byte & 15) * step unit, low = ((byte >> 4) - 8) * centre unit - 1.5 * step (fused)
 * Codes are nearest. A K or V that has the code wanted already keeps it.
 *
 * The data of a head, with g = 8 / bits codes in a byte (level 3: 2 for K, 4 for V):
 *
 *   K codes   dim / g rows of 16 bytes: byte t of row i holds token t's dimensions i g .. i g + g - 1, the
 *             first in the lowest bits
 *   V codes   for each token dim / g bytes: its dimensions in groups of 16 g (the last may be smaller: n
 *             dimensions, n / g bytes): byte j of a group holds its dimensions j, j + n / g, j + 2 n / g ...,
 *             the first in the lowest bits
 *   scales    4: K scales [16], V scales [16], halves
 *             2: K centre unit, K step unit, V's two, halves; K bytes [dim], V bytes [dim]
 *             3: K scales [16], V centre unit, V step unit, halves; V bytes [dim]
 *             paper's: K steps [dim], K lows [dim], V steps [dim], V lows [dim], halves
 *
 * so that a chunk's 16 tokens (K), or 16 neighbouring dimensions (V), are 16 bytes shifted and masked alike.
 *
 * codec_core.h is the canonical order of every float operation; it is compiled once for each instruction set,
 * and all agree bit by bit. */
#ifndef LLMS_KERNELS_CODEC_H
#define LLMS_KERNELS_CODEC_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/half.h"

enum { CODEC_SLOTS = 16, CODEC_DIM = 256 }; /* tokens of a chunk; the widest head */
enum { CODEC_PAPER = 64 };                  /* added to 4 or 2: by the paper's codec */

struct codec_head {
    const void *from;
    void *to; /* does not overlap from */
    uint8_t from_level,
        to_level;   /* of fewer bits; or from_level 16 or 8 and to_level 16: widening, for tests */
    uint8_t tokens; /* slots 0 .. tokens - 1 hold something; the others come out as zero bytes */
    size_t dim;     /* a multiple of 8, at most CODEC_DIM */
};

struct codec_error {
    double keys, values;
};

/* In every kernel table:
 *     struct codec_error codec(const struct codec_head *head);
 * returns the squared error it added to K and to V relative to `from`'s values (sums over values), for
 * choosing levels by measured damage.
 *     void rotate(float *x, size_t dim);
 * rotates x[dim] in place by R: butterflies h = 1, 2, 4, ...: (a + b, a - b), then times
 * 2^(-log2(block) / 2). codec_rotate is its plain twin. */
void codec_rotate(float *x, size_t dim);

static inline size_t codec_block(size_t dim) /* of the rotation */
{
    return dim & (~dim + 1);
}

static inline unsigned codec_bits(uint8_t level) /* of a code; at level 3 half of K's and V's together */
{
    return level & (CODEC_PAPER - 1);
}

/* The level whose code K has, or V: level 3 is made of two. */
static inline uint8_t codec_part(uint8_t level, bool values)
{
    return level != 3 ? level : values ? 2 : 4;
}

static inline bool codec_rotated(uint8_t level)
{
    return level < 8;
}

static inline bool codec_by_channel(uint8_t level, bool values)
{
    return codec_part(level, values) == 2 || level & CODEC_PAPER;
}

#define CODEC_MID 7.5f /* of level 4 */

/* Where V begins, and the scales of levels below 16. */
static inline const void *codec_values(const void *data, uint8_t level, size_t dim)
{
    return (const char *)data + CODEC_SLOTS * dim * codec_bits(codec_part(level, false)) / 8;
}

static inline const uint16_t *codec_scales(const void *data, uint8_t level, size_t dim)
{
    return (const uint16_t *)(const void *)((const char *)data +
                                            2 * CODEC_SLOTS * dim * codec_bits(level) / 8);
}

/* One code of levels 4, 3 and 2. */
static inline unsigned codec_key(const void *data, uint8_t level, size_t d, size_t t)
{
    unsigned bits = codec_bits(codec_part(level, false));
    size_t in_byte = 8u / bits;
    unsigned byte = ((const uint8_t *)data)[d / in_byte * CODEC_SLOTS + t];
    return byte >> d % in_byte * bits & ((1u << bits) - 1);
}

static inline unsigned codec_value(const void *data, uint8_t level, size_t dim, size_t t, size_t d)
{
    unsigned bits = codec_bits(codec_part(level, true));
    size_t in_byte = 8u / bits, group = 16 * in_byte, base = d / group * group;
    size_t bytes = (dim - base < group ? dim - base : group) / in_byte;
    const uint8_t *row =
        (const uint8_t *)codec_values(data, level, dim) + t * (dim / in_byte) + base / in_byte;
    return (unsigned)row[(d - base) % bytes] >> (d - base) / bytes * bits & ((1u << bits) - 1);
}

/* Ours by channel: the centre unit and the step unit of K, or of V; *bytes: where its bytes are. */
static inline const uint16_t *codec_units(const void *data, uint8_t level, size_t dim, bool values,
                                          const uint8_t **bytes)
{
    const uint16_t *scales = codec_scales(data, level, dim);
    const uint16_t *units = level == 3 ? scales + CODEC_SLOTS : scales + (values ? 2 : 0);
    *bytes = level == 3 ? (const uint8_t *)(units + 2) : (const uint8_t *)(scales + 4) + (values ? dim : 0);
    return units;
}

/* By channel: step and low of dimensions from .. from + count - 1 of K, or of V. */
static inline void codec_channels(const void *data, uint8_t level, size_t dim, bool values, size_t from,
                                  size_t count, float *restrict step, float *restrict low)
{
    if (!(level & CODEC_PAPER)) {
        const uint8_t *bytes;
        const uint16_t *units = codec_units(data, level, dim, values, &bytes);
        float centre_unit = half_to_float(units[0]), step_unit = half_to_float(units[1]);
        for (size_t i = 0; i < count; i++) {
            step[i] = (float)(bytes[from + i] & 15) * step_unit;
            low[i] = fmaf(-1.5f, step[i], (float)((bytes[from + i] >> 4) - 8) * centre_unit);
        }
        return;
    }
    const uint16_t *halves = codec_scales(data, level, dim);
    halves += (values ? 2 * dim : 0) + from;
    for (size_t i = 0; i < count; i++) {
        step[i] = half_to_float(halves[i]);
        low[i] = half_to_float(halves[dim + i]);
    }
}

#endif
