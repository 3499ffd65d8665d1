/* Prompts of random words, as long in tokens as wanted. */
#ifndef LLMS_BENCH_PROMPT_H
#define LLMS_BENCH_PROMPT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/array.h"
#include "base/error.h"
#include "base/random.h"
#include "service/transcript.h"

/* Replaces text by a prompt that adds `want` tokens to a context without a system prompt, the template's
 * markup among them, or as near to it from below as can be found; where the markup alone is more, by the
 * shortest. first: of the context. *tokens: how many they are. */
int prompt_compose(const struct transcript_rules *rules, bool first, size_t want, struct random *random,
                   struct buffer *text, size_t *tokens, struct error *error);

#endif
