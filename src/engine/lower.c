/* Lowering a chunk: every layer's and head's data to fewer bits. */
#include "engine/engine_internal.h"
#include "kernels/codec.h"

struct engine_damage engine_lower(const struct engine *e, const void *from, uint8_t from_level,
                                  uint8_t tokens, void *to, uint8_t to_level)
{
    const struct kv_geometry *g = &e->model.kv;
    struct engine_damage damage = {0, 0};
    for (uint32_t layer = 0; layer < g->layers; layer++)
        for (uint32_t head = 0; head < g->kv_heads; head++) {
            const struct codec_head args = {
                .from = (const unsigned char *)from + layer * kv_layer_bytes(g, from_level) +
                        head * kv_head_bytes(g, from_level),
                .to = (unsigned char *)to + layer * kv_layer_bytes(g, to_level) +
                      head * kv_head_bytes(g, to_level),
                .from_level = from_level,
                .to_level = to_level,
                .tokens = tokens,
                .dim = g->dim,
            };
            struct codec_error error = e->kernels->codec(&args);
            damage.keys += error.keys;
            damage.values += error.values;
        }
    return damage;
}
