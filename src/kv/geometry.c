#include "kv/geometry.h"

bool kv_level_valid(unsigned level)
{
    unsigned bits = level & ~(unsigned)KV_PAPER;
    return bits == 4 || bits == 2 || level == 16 || level == 8;
}

size_t kv_head_bytes(const struct kv_geometry *g, uint8_t level)
{
    size_t codes = 2 * (size_t)KV_CHUNK_TOKENS * g->dim * kv_level_bits(level) / 8; /* K and V */
    if (level == 16)
        return codes;
    if (level & KV_PAPER)
        return codes + 4 * sizeof(uint16_t) * g->dim;
    return codes +
           (level == 2 ? 2 * (size_t)g->dim + 4 * sizeof(uint16_t) : 2 * KV_CHUNK_TOKENS * sizeof(uint16_t));
}

size_t kv_layer_bytes(const struct kv_geometry *g, uint8_t level)
{
    return (g->kv_heads * kv_head_bytes(g, level) + 15) / 16 * 16;
}

size_t kv_chunk_bytes(const struct kv_geometry *g, uint8_t level)
{
    return g->layers * kv_layer_bytes(g, level);
}
