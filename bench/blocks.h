/* Random weights, written straight as valid rows of any type: no quantiser in between, so that a big file
 * takes seconds. Integer arithmetic apart from the scales, so the same seed gives the same bytes on every
 * machine. */
#ifndef LLMS_BENCH_BLOCKS_H
#define LLMS_BENCH_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/random.h"

enum { BLOCKS_SCALES = 64 };

struct blocks {
    enum dtype type;
    float mean;                      /* F32 only; the other types are centred on 0 */
    float step;                      /* F32, F16, BF16: of the integer draw */
    uint16_t scale[BLOCKS_SCALES];   /* half: a block's d is one of these */
    uint16_t minimum[BLOCKS_SCALES]; /* half: what goes with it, for types that have a minimum */
};

/* deviation: standard deviation of the weights as dequantised. */
void blocks_init(struct blocks *blocks, enum dtype type, float mean, float deviation);

/* One row; values: a multiple of the type's block. */
void blocks_row(const struct blocks *blocks, struct random *random, void *row, size_t values);

#endif
