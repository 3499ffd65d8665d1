/* See kv_shape.h. */
#include "kv_shape.h"

#include <errno.h>
#include <stdio.h>

#include "model/gguf.h"

static uint32_t number(const struct gguf *gguf, const struct gguf_string *architecture, const char *key)
{
    char name[128];
    uint32_t value = 0;
    snprintf(name, sizeof name, "%.*s.%s", (int)architecture->length, architecture->data, key);
    return gguf_get_u32(gguf, name, &value) == 0 ? value : 0;
}

int kv_shape_read(const char *model, struct kv_geometry *out, struct error *error)
{
    struct gguf *gguf = NULL;
    struct gguf_string architecture;
    int code = gguf_open(model, &gguf, error);
    if (code < 0)
        return code;
    if (gguf_get_string(gguf, "general.architecture", &architecture) == 0) {
        uint32_t heads = number(gguf, &architecture, "attention.head_count");
        out->layers = number(gguf, &architecture, "block_count");
        out->kv_heads = number(gguf, &architecture, "attention.head_count_kv");
        out->dim = number(gguf, &architecture, "attention.key_length");
        if (!out->kv_heads)
            out->kv_heads = heads;
        if (!out->dim && heads)
            out->dim = number(gguf, &architecture, "embedding_length") / heads;
    }
    gguf_close(gguf);
    return out->layers && out->kv_heads && out->dim
               ? 0
               : error_set(error, -EINVAL, "%s: does not tell its layers, heads and their size", model);
}
