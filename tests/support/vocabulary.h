/* Small vocabularies for tests, as GGUF entries. A test may add entries of its own before it opens them. */
#ifndef LLMS_TESTS_VOCABULARY_H
#define LLMS_TESTS_VOCABULARY_H

#include "model/tokenizer.h"
#include "support/gguf_build.h"

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

struct vocabulary_token {
    const char *text;
    uint32_t type;
    float score; /* SentencePiece */
};

/* Byte-level: ids 0 to 255 are the bytes, then what each merge makes (but not where the merge is written with
 * a '-' before it: its result is no token), then the others. pre: NULL writes none. */
void vocabulary_bpe(struct gguf_build *build, const char *pre, const char *const *merges, size_t merge_count,
                    const struct vocabulary_token *others, size_t other_count);

/* Byte-level with every pair of bytes as a token: x, y has id 256 + 256 x + y and rank pair_rank(x, y). */
void vocabulary_pairs(struct gguf_build *build, const char *pre);
uint32_t vocabulary_pair_rank(unsigned x, unsigned y);

/* SentencePiece: <unk>, <s>, </s>, byte tokens 3 to 258, then the others. */
enum { SPM_BYTES = 3, SPM_OTHERS = 259 };
void vocabulary_spm(struct gguf_build *build, const struct vocabulary_token *others, size_t other_count);

/* The letter of the byte-level alphabet for a byte, NUL-terminated. */
void vocabulary_letter(unsigned byte, char out[3]);

struct vocabulary {
    struct gguf *gguf;
    struct tokenizer *tokenizer;
};

/* From what was built, or from a file. Both abort where that fails. */
struct vocabulary vocabulary_open(struct gguf_build *build);
struct vocabulary vocabulary_open_file(const char *path);
void vocabulary_close(struct vocabulary *vocabulary);

#endif
