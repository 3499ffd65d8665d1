/* Choosing the next token from logits.
 *
 * Order: repeat penalty over the last `repeat_last` tokens, then greedy if temperature is 0, else top-k,
 * softmax, top-p, min-p, temperature, draw. Same seed and logits, same choice. One sampler belongs to one
 * call. */
#ifndef LLMS_MODEL_SAMPLER_H
#define LLMS_MODEL_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

struct sampler_params {
    float temperature;    /* 0: greedy; else > 0, at most 10 */
    uint32_t top_k;       /* 0: off */
    float top_p;          /* (0, 1]; 1: off */
    float min_p;          /* [0, 1); 0: off */
    float repeat_penalty; /* [1, 10]; 1: off; logits of seen tokens are divided (or multiplied) by it */
    uint32_t repeat_last; /* how many recent tokens count as seen */
    uint64_t seed;        /* used as given */
};

extern const struct sampler_params sampler_defaults;

struct sampler;

const char *sampler_params_check(const struct sampler_params *params); /* NULL: fine; else what is wrong */
int sampler_create(const struct sampler_params *params, size_t vocabulary, struct sampler **out);
void sampler_destroy(struct sampler *sampler);
void sampler_accept(struct sampler *sampler,
                    int32_t token); /* a token of the prompt or the reply was added */
int32_t sampler_pick(struct sampler *sampler, const float *logits); /* does not accept it */

#endif
