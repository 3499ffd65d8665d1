/* Texts by number and numbers by text: open addressing with linear probing, at most half full. Texts are
 * borrowed. Written by one thread, then read by any. */
#include <errno.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "model/tokenizer_internal.h"

static uint32_t slot_of(const struct token_map *map, const char *data, size_t length)
{
    uint32_t slot = (uint32_t)hash_bytes(data, length, 0) & map->slot_mask;
    for (; map->slots[slot]; slot = (slot + 1) & map->slot_mask) {
        const struct token_text *text = &map->texts[map->slots[slot] - 1];
        if (text->length == length && memcmp(text->data, data, length) == 0)
            break;
    }
    return slot;
}

static int resize(struct token_map *map, uint32_t capacity)
{
    uint32_t slots = 16;
    while (slots / 2 < capacity)
        slots *= 2;
    struct token_text *texts = mem_realloc(map->texts, capacity * sizeof *texts);
    if (!texts)
        return -ENOMEM;
    map->texts = texts;
    uint32_t *table = mem_calloc(slots, sizeof *table);
    if (!table)
        return -ENOMEM;
    mem_free(map->slots);
    map->slots = table;
    map->slot_mask = slots - 1;
    map->capacity = capacity;
    for (uint32_t i = 0; i < map->count; i++)
        map->slots[slot_of(map, texts[i].data, texts[i].length)] = i + 1;
    return 0;
}

int token_map_init(struct token_map *map, uint32_t capacity)
{
    *map = (struct token_map){0};
    return resize(map, capacity);
}

void token_map_deinit(struct token_map *map)
{
    mem_free(map->texts);
    mem_free(map->slots);
    *map = (struct token_map){0};
}

int32_t token_map_find(const struct token_map *map, const char *data, size_t length)
{
    return (int32_t)map->slots[slot_of(map, data, length)] - 1;
}

int32_t token_map_add(struct token_map *map, const char *data, size_t length)
{
    if (map->count == map->capacity) {
        if (map->capacity > INT32_MAX / 8 || resize(map, map->capacity + map->capacity / 2 + 1) < 0)
            return -ENOMEM;
    }
    map->texts[map->count] = (struct token_text){.data = data, .length = (uint32_t)length};
    map->slots[slot_of(map, data, length)] = map->count + 1;
    return (int32_t)map->count++;
}
