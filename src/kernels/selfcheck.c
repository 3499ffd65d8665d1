/* See selfcheck.h. */
#include "kernels/selfcheck.h"

#include <string.h>

#include "base/half.h"
#include "base/random.h"
#include "kernels/kernels_internal.h"

enum { ROWS = 37, COLUMNS = 768, TOKENS = 33, PACKED_MOST = 2 * COLUMNS };

struct room {
    _Alignas(64) unsigned char weights[ROWS * COLUMNS / 32 * 34];
    _Alignas(64) unsigned char packed[TOKENS * PACKED_MOST];
    float want[TOKENS * ROWS], got[TOKENS * ROWS];
};

static void put_half(unsigned char *at, double value)
{
    uint16_t bits = float_to_half((float)value);
    memcpy(at, &bits, 2);
}

/* Codes and integer scales of any bits; the floats of a block are drawn from -1..1. */
static void draw_weights(struct random *random, const struct dtype_info *info, unsigned char *data)
{
    for (size_t b = 0; b < (size_t)ROWS * COLUMNS / info->block_values; b++, data += info->block_bytes) {
        for (size_t i = 0; i < info->block_bytes; i++)
            data[i] = (unsigned char)random_next(random);
        put_half(data + (info->type == DTYPE_Q6_K ? 208 : 0), 2 * random_unit(random) - 1);
        if (info->type == DTYPE_Q4_1 || info->type == DTYPE_Q5_1 || info->type == DTYPE_Q4_K ||
            info->type == DTYPE_Q5_K)
            put_half(data + 2, 2 * random_unit(random) - 1);
    }
}

bool selfcheck_matmul(void (*matmul)(const struct matmul *m, size_t row_begin, size_t row_end),
                      enum dtype *type)
{
    struct room room;
    struct random random = {2};
    size_t count;
    const struct dtype_info *types = dtype_list(&count);
    for (size_t i = 0; i < count; i++) {
        if (types[i].block_values == 1)
            continue;
        enum pack pack = kernels_pack_of(types[i].type);
        size_t packed_bytes = kernels_packed_bytes(pack, COLUMNS);
        draw_weights(&random, &types[i], room.weights);
        for (size_t t = 0; t < TOKENS; t++) {
            float x[COLUMNS];
            for (size_t c = 0; c < COLUMNS; c++)
                x[c] = (float)(random_unit(&random) - random_unit(&random));
            pack_plain(pack, x, COLUMNS, room.packed + t * packed_bytes);
        }
        struct matmul m = {types[i].type, room.weights, COLUMNS, room.packed, TOKENS, room.want, ROWS};
        matmul_plain(&m, 0, ROWS);
        memset(room.got, 0, sizeof room.got);
        m.out = room.got;
        matmul(&m, 0, ROWS);
        *type = types[i].type;
        const void *want = room.want, *got = room.got; /* bits, not values */
        if (memcmp(want, got, sizeof room.want) != 0)
            return false;
    }
    return true;
}
