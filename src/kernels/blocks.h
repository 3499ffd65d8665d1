/* Reading one block of quantised weights, value by value (base/dtype.h has the layouts). */
#ifndef LLMS_KERNELS_BLOCKS_H
#define LLMS_KERNELS_BLOCKS_H

#include <stdint.h>
#include <string.h>

#include "base/dtype.h"
#include "base/half.h"

/* 32 values: value i = scale * code[i] + minimum. */
struct block32 {
    float scale, minimum;
    int8_t code[32];
};

/* 256 values: value i = scale * scales[i / 16] * code[i] - minimum * minimums[i / 16]. */
struct block256 {
    float scale, minimum;
    int16_t scales[16], minimums[16];
    int8_t code[256];
};

static inline uint16_t block_u16(const unsigned char *p)
{
    uint16_t u;
    memcpy(&u, p, 2);
    return u;
}

void block32_read(enum dtype type, const unsigned char *block, struct block32 *out);
void block256_read(enum dtype type, const unsigned char *block, struct block256 *out);

#endif
