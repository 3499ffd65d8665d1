/* UTF-8: where whole characters end. */
#ifndef LLMS_BASE_UTF8_H
#define LLMS_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one character from text[0..length), length > 0. Returns its bytes (1-4) and sets *codepoint; for an
 * invalid sequence returns 1 and sets 0xfffd; for a valid sequence cut short by the end returns 0. */
size_t utf8_decode(const char *text, size_t length, uint32_t *codepoint);

/* Encodes codepoint into out[0..4); returns the bytes. */
size_t utf8_encode(uint32_t codepoint, char out[4]);

/* The longest prefix that does not end inside a (so far valid) character. */
size_t utf8_whole_prefix(const char *text, size_t length);

bool utf8_valid(const char *text, size_t length);

#endif
