/* The sizes of a model's KV, from its file's metadata alone. */
#ifndef LLMS_BENCH_KV_SHAPE_H
#define LLMS_BENCH_KV_SHAPE_H

#include "base/error.h"
#include "kv/geometry.h"

/* -EINVAL where the file does not tell. */
int kv_shape_read(const char *model, struct kv_geometry *out, struct error *error);

#endif
