#include "kv/geometry.h"

bool kv_level_valid(unsigned level)
{
    return level == 16 || level == 8 || level == 4 || level == 2;
}

size_t kv_head_bytes(const struct kv_geometry *g, uint8_t level)
{
    size_t values = 2 * (size_t)KV_CHUNK_TOKENS * g->dim; /* K and V */
    return values * level / 8 + (level < 16 ? 2 * KV_CHUNK_TOKENS * sizeof(uint16_t) : 0);
}

size_t kv_layer_bytes(const struct kv_geometry *g, uint8_t level)
{
    return (g->kv_heads * kv_head_bytes(g, level) + 63) / 64 * 64;
}

size_t kv_chunk_bytes(const struct kv_geometry *g, uint8_t level)
{
    return g->layers * kv_layer_bytes(g, level);
}
