/* How a conversation becomes the token sequence the model reads, and how it slides. Pure functions of their
 * inputs; thread-safe. The sequence is specified in docs/FORMATS.md, Journal. */
#ifndef LLMS_SERVICE_TRANSCRIPT_H
#define LLMS_SERVICE_TRANSCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/array.h"
#include "base/error.h"
#include "model/template.h"
#include "model/tokenizer.h"
#include "store/journal.h"

struct transcript_rules {
    enum chat_template chat;
    const struct tokenizer *tokenizer;
};

/* All append to out and return 0, -ENOMEM or -EINVAL; on failure out's count is as it was. */

/* The sequence before the first turn: empty where there is no system prompt or the template folds it in. */
int transcript_base(const struct transcript_rules *rules, const char *system_prompt, struct tokens *out,
                    struct error *error);

/* A user's message after what stands already: base_count tokens of the base and, unless `first`, turns. Ends
 * where the model's reply begins. */
int transcript_prompt(const struct transcript_rules *rules, const char *system_prompt, size_t base_count,
                      bool first, const char *prompt, size_t length, struct tokens *out, struct error *error);

/* The whole sequence of a context whose window begins at turns[0]. *base_count: how much of it is the base.
 */
int transcript_rebuild(const struct transcript_rules *rules, const char *system_prompt,
                       const struct journal_turn *turns, size_t count, struct tokens *out, size_t *base_count,
                       struct error *error);

/* Ids that spell text exactly, the longest piece first each time (for the rest of a token that a stop string
 * cut). Stops at what no piece spells. */
int transcript_spell(const struct tokenizer *tokenizer, const char *text, size_t length, struct tokens *out);

/* How many of the oldest turns must go so that `prompt` tokens and `reserve` for the reply fit in `limit`
 * with the base and what is kept. If any must, more go until the sequence is down to 5/8 of the limit, so
 * that sliding, which makes all kept turns be computed again, is rare; but not the last one for that. count:
 * all must go, and it may still not fit. */
size_t transcript_slide(const size_t *turn_tokens, size_t count, size_t base, size_t prompt, size_t reserve,
                        size_t limit);

/* Tokens to keep free for a reply when deciding whether to slide. max_tokens 0: open. */
size_t transcript_reserve(uint32_t max_tokens, size_t base, size_t prompt, size_t limit);

/* The vocabulary's name in the journal: its size and a hash over its pieces. 0 or -ENOMEM. */
int transcript_vocabulary(const struct tokenizer *tokenizer, struct buffer *out);

#endif
