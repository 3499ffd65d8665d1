/* What the files of the tokenizer share. Private to src/model/tokenizer*.c.
 *
 *   tokenizer.c          reading the vocabulary out of a GGUF, and what it says about single tokens
 *   tokenizer_map.c      texts by number and numbers by text
 *   tokenizer_encode.c   from spans to fragments: special tokens cut out of the text
 *   tokenizer_merge.c    merging neighbouring symbols in order of rank, the core of both models
 *   tokenizer_bpe.c      byte-level BPE: words by pattern, bytes, merge ranks
 *   tokenizer_spm.c      SentencePiece BPE: characters, scores, byte fallback
 *   tokenizer_decode.c   from ids back to text */
#ifndef LLMS_MODEL_TOKENIZER_INTERNAL_H
#define LLMS_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

/* GGUF's token types. */
enum token_type {
    TOKEN_UNDEFINED = 0,
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

enum token_flag {
    TOKEN_FLAG_TYPE = 7, /* mask: the type */
    TOKEN_FLAG_STRIP = 8 /* as a special token it swallows the white space after it */,
    TOKEN_FLAG_END = 16 /* ends a reply */,
};

enum tokenizer_model { TOKENIZER_BPE, TOKENIZER_SPM };

struct token_text {
    const char *data; /* borrowed from the gguf or from tokenizer.own */
    uint32_t length;  /* bytes */
};

/* Texts by number, and back through an open-addressing table of numbers. `count` texts, of which the first
 * are the vocabulary's tokens (so that number and id are the same); behind them come texts that only occur in
 * merges. */
struct token_map {
    struct token_text *texts;
    uint32_t *slots; /* number + 1; 0: free */
    uint32_t count, capacity;
    uint32_t slot_mask; /* number of slots, a power of two and at least 2 * capacity, less 1 */
};

int token_map_init(struct token_map *map, uint32_t capacity); /* capacity: a first guess, > 0 */
void token_map_deinit(struct token_map *map);
int32_t token_map_find(const struct token_map *map, const char *data, size_t length); /* -1: none */
/* Adds a text that is not there, which must live as long as the map. Its number or -ENOMEM. */
int32_t token_map_add(struct token_map *map, const char *data, size_t length);

/* A rank for a pair of neighbours: open addressing, key 0 is free. */
struct merge_rule {
    uint64_t key; /* (left + 1) << 32 | right */
    int32_t rank, result;
};

struct pre_tokenizer; /* tokenizer_bpe.c */

struct tokenizer {
    enum tokenizer_model model;
    uint32_t size;    /* tokens; map.count >= size */
    uint32_t longest; /* bytes of the longest token */
    struct token_map map;
    uint8_t *flags;   /* per token: enum token_type and enum token_flag */
    float *scores;    /* per token; SPM only */
    char *own;        /* texts that stand nowhere in the gguf: names of empty tokens */
    int32_t *special; /* ids that are cut out of text whole, sorted by text */
    uint32_t special_count;
    bool special_first[256]; /* some special token starts with this byte */
    int32_t byte_id[256]; /* BPE: the text number of each byte's letter; SPM: the token for the byte or -1 */
    int32_t bos, eos, unknown;
    bool add_bos, add_eos;
    bool space_prefix;  /* SPM: a space before text that follows a special token or nothing */
    bool words_part;    /* SPM: no token reaches over the space between two words */
    bool ignore_merges; /* BPE: a word that is a token is not merged */
    struct merge_rule *rules;
    uint32_t rule_mask;
    char *rule_texts;     /* results of merges that are no tokens */
    char letters[256][2]; /* BPE: how each byte is written in the vocabulary, in UTF-8 */
    struct pre_tokenizer *pre;
};

static inline enum token_type tokenizer_type(const struct tokenizer *tokenizer, int32_t id)
{
    return tokenizer->flags[id] & TOKEN_FLAG_TYPE;
}

/* May plain text become this token? Control, unknown and byte tokens come only from markup and fallback, so
 * that a text can never forge them. */
static inline bool tokenizer_is_text(const struct tokenizer *tokenizer, int32_t id)
{
    enum token_type type = tokenizer_type(tokenizer, id);
    return type != TOKEN_CONTROL && type != TOKEN_UNKNOWN && type != TOKEN_BYTE;
}

/* --- tokenizer_merge.c ------------------------------------------------------------------------------ */

struct symbol {
    uint32_t start, length; /* bytes of the text; length 0: merged into its left neighbour */
    int32_t previous, next; /* -1: none */
    int32_t number;         /* of the text in the map, or -1 */
};

struct bigram {
    int32_t order; /* lower is merged first; equal ones from the left */
    int32_t left, right, number;
    uint32_t length;
};

/* Working memory of one encode call; zeroed is ready. */
struct merger {
    struct symbol *symbols;
    size_t count, capacity;
    struct bigram *heap;
    size_t heap_count, heap_capacity;
};

/* What two neighbours become: fills in order and number and returns true, or false where they stay apart. */
typedef bool merge_fn(const struct tokenizer *tokenizer, const char *text, const struct symbol *left,
                      const struct symbol *right, struct bigram *bigram);

int merger_add(struct merger *merger, uint32_t start, uint32_t length, int32_t number);
/* Merges until nothing is left to merge: O(n log n). The survivors are linked from symbols[0]. */
int merger_run(struct merger *merger, const struct tokenizer *tokenizer, const char *text, merge_fn *merge);
void merger_deinit(struct merger *merger);

/* --- the two models --------------------------------------------------------------------------------- */

int bpe_init(struct tokenizer *tokenizer, const struct gguf *gguf, struct error *error);
void bpe_deinit(struct tokenizer *tokenizer);
int bpe_encode(const struct tokenizer *tokenizer, struct merger *merger, const char *text, size_t length,
               struct tokens *out, struct error *error);
/* The byte a letter of the byte-level alphabet stands for, or -1. */
int bpe_letter_byte(uint32_t codepoint);

void spm_init(struct tokenizer *tokenizer);
int spm_encode(const struct tokenizer *tokenizer, struct merger *merger, const char *text, size_t length,
               bool after_special, struct tokens *out);

/* The special tokens, sorted for tokenizer_encode's search. */
int special_init(struct tokenizer *tokenizer);

#endif
