/* Fast 64-bit hashes (not cryptographic), seeded.
 *
 * hash_bytes: FNV-1a over 8-byte words with a final mix, for short data. hash_bulk: four such chains side by
 * side, for large data. Either changes with any change that stays within 8 aligned bytes. Both are part of
 * formats on disk (docs/FORMATS.md). */
#ifndef LLMS_BASE_HASH_H
#define LLMS_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t hash_mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    return x;
}

static inline uint64_t hash_bytes(const void *data, size_t bytes, uint64_t seed)
{
    const unsigned char *p = data;
    uint64_t h = hash_mix(seed ^ 0x9e3779b97f4a7c15u ^ bytes), word;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        memcpy(&word, p, 8);
        h = (h ^ word) * 0x9fb21c651e98df25u;
        h ^= h >> 29;
    }
    for (word = 0; bytes; bytes--)
        word = word << 8 | p[bytes - 1];
    return hash_mix(h ^ word);
}

static inline uint64_t hash_bulk(const void *data, size_t bytes, uint64_t seed)
{
    const unsigned char *p = data;
    uint64_t lanes[4], words[4];
    for (unsigned i = 0; i < 4; i++)
        lanes[i] = hash_mix(seed + i + 1);
    for (size_t n = bytes / 32; n; n--, p += 32) {
        memcpy(words, p, 32);
        for (unsigned i = 0; i < 4; i++) {
            lanes[i] = (lanes[i] ^ words[i]) * 0x9fb21c651e98df25u;
            lanes[i] ^= lanes[i] >> 29;
        }
    }
    return hash_bytes(p, bytes % 32, hash_bytes(lanes, sizeof lanes, seed ^ bytes));
}

#endif
