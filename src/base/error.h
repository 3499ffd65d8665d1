/* Errors: a negative errno value and one line for a person.
 *
 * Functions that can fail return 0 (or a count) or a negative errno value. Those whose failure needs words
 * take a `struct error *` last, which may be NULL; the text is one line without a trailing full stop. */
#ifndef LLMS_BASE_ERROR_H
#define LLMS_BASE_ERROR_H

struct error {
    int code; /* negative errno value */
    char text[480];
};

/* Fills *error (if any) and returns code, so that `return error_set(error, -EINVAL, "...")` reads well. */
int error_set(struct error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "PREFIX: " before the text already there; returns error's code (or code where error is NULL). */
int error_prefix(struct error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
