/* Stop strings: how much of a reply may be shown, and where it ends. Pure. */
#ifndef LLMS_SERVICE_STOP_H
#define LLMS_SERVICE_STOP_H

#include <stdbool.h>
#include <stddef.h>

/* Looks for the stop strings (none is empty) in text[from..length); text before `from` was already shown and
 * contains no beginning of one. True: *end is where the first of them begins, the reply's end. False: *end is
 * how far the text may be shown: what follows could still become a stop string. All are valid UTF-8, and so
 * *end never parts a character. */
bool stop_scan(const char *const *stops, size_t count, const char *text, size_t length, size_t from,
               size_t *end);

#endif
