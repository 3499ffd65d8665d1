/* Numbers and sizes as people write them. All return 0 or -EINVAL (not a number, out of range, trailing
 * text). */
#ifndef LLMS_BASE_PARSE_H
#define LLMS_BASE_PARSE_H

#include <stdint.h>

int parse_size(const char *text, uint64_t *bytes); /* 4096, 40M, 1.5G; K, M, G are powers of 1024 */
int parse_u64(const char *text, uint64_t low, uint64_t high, uint64_t *value);
int parse_double(const char *text, double low, double high, double *value);

#endif
