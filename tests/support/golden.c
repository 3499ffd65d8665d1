/* See golden.h. */
#include "support/golden.h"

#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *where)
{
    fprintf(stderr, "golden fixture: %s: %s\n", what, where);
    abort();
}

void golden_open(struct golden *golden, const char *path)
{
    *golden = (struct golden){.file = fopen(path, "r")};
    if (!golden->file)
        fail("cannot open", path);
}

void golden_close(struct golden *golden)
{
    fclose(golden->file);
    free(golden->line);
}

char *golden_line(struct golden *golden)
{
    ssize_t n;
    do {
        n = getline(&golden->line, &golden->capacity, golden->file);
        if (n < 0)
            return NULL;
    } while (golden->line[0] == '#');
    if (n && golden->line[n - 1] == '\n')
        golden->line[n - 1] = 0;
    return golden->line;
}

size_t golden_parse(const char *text, double *out, size_t room)
{
    size_t count = 0;
    while (text[strspn(text, " ")]) {
        char *end;
        if (count == room)
            fail("too many numbers", text);
        out[count++] = strtod(text, &end);
        if (end == text)
            fail("not a number", text);
        text = end;
    }
    return count;
}

size_t golden_numbers(struct golden *golden, const char *word, double *out, size_t room)
{
    const char *line = golden_line(golden);
    size_t length = strlen(word);
    if (!line || strncmp(line, word, length) != 0 || line[length] != ' ')
        fail("missing line", word);
    return golden_parse(line + length, out, room);
}
