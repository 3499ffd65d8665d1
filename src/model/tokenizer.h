/* Tokenizers of GGUF files: byte-level BPE ("gpt2" with the pre-tokenizers gpt-2, llama-bpe, qwen2, smollm,
 * deepseek-llm and their aliases) and SentencePiece BPE with byte fallback ("llama").
 *
 * Ids equal llama.cpp's. Immutable after creation; safe from many threads. Borrows the gguf's strings: the
 * gguf must outlive it. Unknown models or pre-tokenizers are refused by name. */
#ifndef LLMS_MODEL_TOKENIZER_H
#define LLMS_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/array.h"
#include "base/error.h"
#include "model/gguf.h"

struct tokenizer;

/* A piece of input. In a markup span (a chat template's own text) the names of special tokens become those
 * tokens; in any other span (what a user or an app wrote) they are ordinary text, so that a prompt cannot
 * forge turns. Neighbouring plain text is joined across spans before it is split into words. */
struct text_span {
    const char *text;
    size_t length;
    bool markup;
};

int tokenizer_create(const struct gguf *gguf, struct tokenizer **out, struct error *error);
void tokenizer_destroy(struct tokenizer *tokenizer);

/* Appends the ids of the spans' text to out. begin: put the BOS token first where the vocabulary asks for one
 * (and none is there already), and EOS last where it asks for one. Any bytes are accepted, valid UTF-8 or
 * not. 0, -ENOMEM or -EINVAL (with text). */
int tokenizer_encode(const struct tokenizer *tokenizer, const struct text_span *spans, size_t count,
                     bool begin, struct tokens *out, struct error *error);

/* The bytes of one token as it stands in running text. Special (control) tokens give their name if `special`,
 * else nothing. An id outside the vocabulary gives nothing. 0 or -ENOMEM. */
int tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, bool special, struct buffer *out);

/* Text of a whole sequence. SentencePiece vocabularies put a space before the first word when encoding; it is
 * taken off again here where the sequence starts a text. */
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, bool special,
                     struct buffer *out);

size_t tokenizer_size(const struct tokenizer *tokenizer);
int32_t tokenizer_bos(const struct tokenizer *tokenizer);             /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *tokenizer);             /* -1: none */
bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id); /* EOS, EOT, EOM: ends a reply */
bool tokenizer_is_control(const struct tokenizer *tokenizer, int32_t id);
int32_t tokenizer_find(const struct tokenizer *tokenizer,
                       const char *text); /* the token written so; -1: none */

/* Turns ids into text a piece at a time and never lets out part of a UTF-8 character. Zeroed is ready; deinit
 * releases. push: appends what has become whole to out. flush: what is left at the end, incomplete bytes as
 * U+FFFD. Both 0 or -ENOMEM. Invalid bytes come out as U+FFFD so that out is always valid UTF-8. */
struct detokenizer {
    struct buffer pending;
};
int detokenizer_push(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, int32_t id,
                     struct buffer *out);
int detokenizer_flush(struct detokenizer *detokenizer, struct buffer *out);
void detokenizer_deinit(struct detokenizer *detokenizer);

#endif
