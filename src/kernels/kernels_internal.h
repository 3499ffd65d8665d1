/* What each instruction set brings; kernels.c puts them into tables. Contracts are in kernels.h,
 * attention.h and codec.h. */
#ifndef LLMS_KERNELS_INTERNAL_H
#define LLMS_KERNELS_INTERNAL_H

#include "kernels/attention.h"
#include "kernels/codec.h"
#include "kernels/kernels.h"

void pack_plain(enum pack pack, const float *x, size_t columns, void *out);
void pack_part_plain(const struct pack_part *p);
void matmul_plain(const struct matmul *m, size_t row_begin, size_t row_end);
void dequantize_plain(enum dtype type, const void *row, float *out, size_t values);
void attention_plain(const struct attention *a);
void store_plain(void *data, uint8_t level, size_t dim, unsigned slot, const float *k, const float *v);
struct codec_error codec_plain(const struct codec_head *head);
void rms_norm_plain(const float *x, const float *weight, float epsilon, size_t n, float *out);
void swiglu_plain(const float *gate, const float *up, size_t n, float *out);
void add_plain(float *x, const float *y, size_t n);

void pack_avx2(enum pack pack, const float *x, size_t columns, void *out);
void pack_part_avx2(const struct pack_part *p);
void matmul_avx2(const struct matmul *m, size_t row_begin, size_t row_end);
void matmul_avxvnni(const struct matmul *m, size_t row_begin, size_t row_end);
void attention_avx2(const struct attention *a);
void store_avx2(void *data, uint8_t level, size_t dim, unsigned slot, const float *k, const float *v);
struct codec_error codec_avx2(const struct codec_head *head);
void rotate_avx2(float *x, size_t dim);
void rms_norm_avx2(const float *x, const float *weight, float epsilon, size_t n, float *out);
void swiglu_avx2(const float *gate, const float *up, size_t n, float *out);
void add_avx2(float *x, const float *y, size_t n);

void pack_avx512(enum pack pack, const float *x, size_t columns, void *out);
void pack_part_avx512(const struct pack_part *p);
void matmul_avx512(const struct matmul *m, size_t row_begin, size_t row_end);
/* For tests: what matmul_avx512 chooses from (block_avx512.h). */
void matmul_avx512_alone(const struct matmul *m, size_t row_begin, size_t row_end);
void matmul_avx512_pairs(const struct matmul *m, size_t row_begin, size_t row_end);
void matmul_amx(const struct matmul *m, size_t row_begin, size_t row_end);
void matmul_amx_software(const struct matmul *m, size_t row_begin,
                         size_t row_end); /* for tests: tiles_amx.h */
void attention_avx512(const struct attention *a);
struct codec_error codec_avx512(const struct codec_head *head);
void rms_norm_avx512(const float *x, const float *weight, float epsilon, size_t n, float *out);
void swiglu_avx512(const float *gate, const float *up, size_t n, float *out);
void add_avx512(float *x, const float *y, size_t n);

#endif
