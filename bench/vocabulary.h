/* The vocabulary of a made-up model: another file's, or a synthetic one that any loader of GGUF accepts. */
#ifndef LLMS_BENCH_VOCABULARY_H
#define LLMS_BENCH_VOCABULARY_H

#include <stdint.h>

#include "base/error.h"
#include "gguf_write.h"

/* The fewest tokens that the synthetic one has: bytes, merges, special tokens. */
enum { VOCABULARY_MIN = 288 };

/* A byte-level BPE vocabulary of `size` tokens: the 256 bytes, a few merges, filler, and chatml's special
 * tokens last; chatml template. bos: prompts begin with <|endoftext|>. */
void vocabulary_synthetic(struct gguf_write *write, const char *pre, uint32_t size, bool bos);

/* Copies all tokenizer.* entries of `from`; *size: its tokens. */
int vocabulary_copy(struct gguf_write *write, const struct gguf *from, uint32_t *size, struct error *error);

#endif
