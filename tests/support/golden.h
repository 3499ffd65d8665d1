/* Reads the fixtures of tests/golden (their formats: make-golden). What does not open or parse fails the
 * test. */
#ifndef LLMS_TESTS_GOLDEN_H
#define LLMS_TESTS_GOLDEN_H

#include <stddef.h>
#include <stdio.h>

struct golden {
    FILE *file;
    char *line;
    size_t capacity;
};

void golden_open(struct golden *golden, const char *path);
void golden_close(struct golden *golden);

/* The next line that is no comment, without its end, until the next call; NULL at the end. */
char *golden_line(struct golden *golden);

/* The next line must begin with `word`: puts the numbers behind it into out, at most `room`; returns how
 * many. */
size_t golden_numbers(struct golden *golden, const char *word, double *out, size_t room);

/* Numbers of a text into out, at most `room`; returns how many. */
size_t golden_parse(const char *text, double *out, size_t room);

#endif
