/* See shapes.h. Sources: the config.json each model was published with. */
#include "shapes.h"

#include <string.h>

static const struct shape shapes[] = {
    {"smollm2-135m", "llama", "smollm", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000, 1e-5f, .tied = true},
    {"qwen2.5-0.5b", "qwen2", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1000000, 1e-6f, .tied = true,
     .biases = true},
    {"llama-3.2-1b", "llama", "llama-bpe", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000, 1e-5f,
     .tied = true, .rope_freqs = true},
    {"tinyllama-1.1b", "llama", "gpt-2", 22, 2048, 32, 4, 64, 5632, 32000, 2048, 10000, 1e-5f},
    {"llama-2-7b", "llama", "gpt-2", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 10000, 1e-5f},
    {"tiny-llama", "llama", "llama-bpe", 4, 256, 4, 2, 64, 768, 512, 2048, 10000, 1e-5f, .rope_freqs = true,
     .chain = true},
    {"tiny-qwen2", "qwen2", "qwen2", 4, 256, 4, 2, 64, 512, 512, 2048, 1000000, 1e-6f, .biases = true,
     .chain = true},
    {"tiny-qwen3", "qwen3", "qwen2", 4, 256, 8, 2, 64, 512, 512, 2048, 1000000, 1e-6f, .qk_norm = true,
     .chain = true},
};

const struct shape *shapes_list(size_t *count)
{
    *count = sizeof shapes / sizeof *shapes;
    return shapes;
}

const struct shape *shapes_find(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}
