/* Any bytes as a GGUF file: refused with a line, or everything it offers lies inside it. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static volatile uint64_t sink;

static void walk(const struct gguf *gguf)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        const uint8_t *p = tensor->data;
        sum += p[0] + p[tensor->bytes - 1];
    }
    for (size_t i = 0; i < gguf_entry_count(gguf); i++) {
        struct gguf_entry entry = gguf_entry_at(gguf, i);
        for (size_t k = 0; k < entry.bytes; k++)
            sum += ((const uint8_t *)entry.data)[k];
    }
    struct gguf_array array;
    if (gguf_get_array(gguf, "a", &array) == 0)
        for (size_t i = 0; i < array.count; i++)
            sum += array.type == GGUF_STRING ? array.strings[i].length
                                             : (uint64_t)(gguf_array_number(&array, i) > 0);
    float f;
    if (gguf_get_f32(gguf, "a", &f) == 0)
        sum += f > 0;
    sink = sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct gguf *gguf = NULL;
    struct error error = {0};
    int code = gguf_parse(data, bytes, &gguf, &error);
    if (code == 0)
        walk(gguf);
    else if (error.text[0] == 0 || gguf)
        abort();
    gguf_close(gguf);
    return 0;
}
