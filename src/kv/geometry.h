/* Sizes and offsets of KV chunks. Pure arithmetic.
 *
 * A chunk = CHUNK tokens x all layers at one level, one contiguous piece of memory, layer after layer, so
 * that a layer can be read or recomputed by itself: chunk bytes = layers x layer_bytes(level) layer bytes =
 * kv_heads x head_bytes(level), rounded up to 64 head bytes  = level 16: 2 x 16 x dim x 2      level 8: 2 x
 * 16 x dim + 2 x 16 x 4 */
#ifndef LLMS_KV_GEOMETRY_H
#define LLMS_KV_GEOMETRY_H

#include <stddef.h>
#include <stdint.h>

enum { KV_CHUNK_TOKENS = 16 };

struct kv_geometry {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t dim; /* of a head */
};

size_t kv_head_bytes(const struct kv_geometry *geometry, uint8_t level);
size_t kv_layer_bytes(const struct kv_geometry *geometry, uint8_t level);
size_t kv_chunk_bytes(const struct kv_geometry *geometry, uint8_t level);
static inline size_t kv_chunks_of(size_t tokens)
{
    return (tokens + KV_CHUNK_TOKENS - 1) / KV_CHUNK_TOKENS;
}

#endif
