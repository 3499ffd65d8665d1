#include "kv/geometry.h"

bool kv_level_valid(unsigned level)
{
    unsigned bits = level & ~(unsigned)KV_PAPER;
    return bits == 4 || bits == 2 || level == 16 || level == 8 || level == 3;
}

size_t kv_head_bytes(const struct kv_geometry *g, uint8_t level)
{
    size_t codes = 2 * (size_t)KV_CHUNK_TOKENS * g->dim * kv_level_bits(level) / 8; /* K and V */
    if (level == 16)
        return codes;
    if (level & KV_PAPER)
        return codes + 4 * sizeof(uint16_t) * g->dim;
    size_t by_token = KV_CHUNK_TOKENS * sizeof(uint16_t), by_channel = g->dim + 2 * sizeof(uint16_t);
    return codes + (level == 2 ? 2 * by_channel : level == 3 ? by_token + by_channel : 2 * by_token);
}

size_t kv_layer_bytes(const struct kv_geometry *g, uint8_t level)
{
    return (g->kv_heads * kv_head_bytes(g, level) + 15) / 16 * 16;
}

size_t kv_chunk_bytes(const struct kv_geometry *g, uint8_t level)
{
    return g->layers * kv_layer_bytes(g, level);
}
