/* Sizes and offsets of KV chunks. Pure arithmetic.
 *
 * A chunk = 16 tokens x all layers at one level, one contiguous piece of memory, layer after layer, so that a
 * layer can be read or recomputed by itself. A level is the bits of a value's code, 16, 8, 4, 3 (4 for K, 2
 * for V) or 2, and with KV_PAPER added (4 and 2 only) that the paper's codec made it (kernels/codec.h):
 *   chunk bytes = layers x layer_bytes(level)
 *   layer bytes = kv_heads x head_bytes(level), rounded up to 16
 *   head bytes  = 2 x 16 x dim x bits / 8 of codes, and the scales:
 *                 8, 4: two halves a token; 2: two bytes a dimension and four halves; 3: half of 4's and
 *                 half of 2's; the paper's: four halves a dimension */
#ifndef LLMS_KV_GEOMETRY_H
#define LLMS_KV_GEOMETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_CHUNK_TOKENS = 16, KV_PAPER = 64, KV_LEVELS = 5 };

struct kv_geometry {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t dim; /* of a head */
};

bool kv_level_valid(unsigned level);
static inline unsigned kv_level_bits(uint8_t level)
{
    return level & (KV_PAPER - 1);
}
/* The KV_LEVELS numbers of bits by index, 16, 8, 4, 3, 2; and the index of a level, whatever its codec. */
static inline uint8_t kv_level_at(unsigned index)
{
    return index < 3 ? (uint8_t)(16 >> index) : (uint8_t)(6 - index);
}
static inline unsigned kv_level_index(uint8_t level)
{
    unsigned bits = kv_level_bits(level);
    return bits == 16 ? 0 : bits == 8 ? 1 : 6 - bits;
}
size_t kv_head_bytes(const struct kv_geometry *geometry, uint8_t level);
size_t kv_layer_bytes(const struct kv_geometry *geometry, uint8_t level);
size_t kv_chunk_bytes(const struct kv_geometry *geometry, uint8_t level);
static inline size_t kv_chunks_of(size_t tokens)
{
    return (tokens + KV_CHUNK_TOKENS - 1) / KV_CHUNK_TOKENS;
}

#endif
