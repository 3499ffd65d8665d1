/* Lowering KV from one level to a smaller one, a head's data of one chunk and layer at a time.
 *
 * Levels 16 and 8 hold K and V as computed; levels 4 and 2 hold them rotated: every head vector x is replaced
 * by R x, where R is a normalised Hadamard matrix over blocks of the largest power of two that divides dim.
 * Rotating spreads what sticks out over all dimensions, so that few bits lose less (QuaRot 2404.00456;
 * SAW-INT4 2604.19157), and R is its own inverse: q.k = (R q).(R k), and the weighted sum of rotated V is
 * rotated back once at the end.
 *
 * Level 4 and 2 data of a head, mid = 7.5 or 1.5, value = (code - mid) * scale, one scale (half) for a
 * token's K and one for its V: K codes: for each group of 8 / level dimensions, 16 bytes: byte t holds token
 * t's codes of the group's dimensions, the first in the lowest bits V codes: for each token, dim * level / 8
 * bytes: its dimensions in groups of 16 * 8 / level (the last group may be smaller, n dimensions): byte j of
 * a group holds dimensions j, j + n/g, ... (g = 8 / level of them, n the group's size), the first in the
 * lowest bits then K scales [16] and V scales [16] The scale of a vector is the one, of a stated small set
 * around amax / mid, with the least squared error (ties: the smallest). Codes are nearest; the canonical
 * order of every float operation is in codec_plain.c, and all twins agree bit by bit. */
#ifndef LLMS_KERNELS_CODEC_H
#define LLMS_KERNELS_CODEC_H

#include <stddef.h>
#include <stdint.h>

struct codec_head {
    const void *from;
    void *to; /* does not overlap from */
    uint8_t from_level,
        to_level;   /* to_level < from_level; or from_level 16 or 8 and to_level 16: widening, for tests */
    uint8_t tokens; /* slots 0 .. tokens - 1 hold something; the others come out as zero bytes */
    size_t dim;
};

/* In every kernel table:
 *     double codec(const struct codec_head *head);
 * returns the squared error it added over both K and V relative to `from`'s values (sum over values), for
 * choosing levels by measured damage. */

/* Rotates x[dim] in place by R: butterflies h = 1, 2, 4, ...: (a + b, a - b), then times 2^(-log2(block)/2).
 */
void codec_rotate(float *x, size_t dim);

#endif
