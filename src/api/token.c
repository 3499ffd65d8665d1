/* The token that TCP callers show: 64 hexadecimal digits in the state directory, readable by its owner only.
 * Whoever can read it may use the daemon over TCP. */
#include <errno.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "api/api.h"
#include "base/memory.h"
#include "os/file.h"

static int token_create(const char *directory, const char *path, char token[API_TOKEN_BYTES],
                        struct error *error)
{
    unsigned char secret[(API_TOKEN_BYTES - 1) / 2];
    char line[API_TOKEN_BYTES + 1];
    randombytes_buf(secret, sizeof secret);
    sodium_bin2hex(token, API_TOKEN_BYTES, secret, sizeof secret);
    snprintf(line, sizeof line, "%s\n", token);
    int code = os_make_directories(directory, 0700);
    if (code == 0)
        code = os_write_file(path, line, strlen(line), 0600);
    sodium_memzero(secret, sizeof secret);
    sodium_memzero(line, sizeof line);
    return code < 0 ? error_set(error, code, "cannot write %s: %s", path, strerror(-code)) : 0;
}

int api_token_load(const char *directory, char token[API_TOKEN_BYTES], struct error *error)
{
    char path[PATH_MAX];
    char *text = NULL;
    size_t bytes;
    if (sodium_init() < 0)
        return error_set(error, -EIO, "libsodium does not start");
    int n = snprintf(path, sizeof path, "%s/token", directory);
    if (n < 0 || (size_t)n >= sizeof path)
        return error_set(error, -ENAMETOOLONG, "the state directory's path is too long");
    int code = os_read_file(path, 4096, &text, &bytes);
    if (code == -ENOENT)
        return token_create(directory, path, token, error);
    if (code < 0)
        return error_set(error, code, "cannot read %s: %s", path, strerror(-code));
    size_t digits = strspn(text, "0123456789abcdef");
    if (digits == API_TOKEN_BYTES - 1 && (!text[digits] || strcmp(text + digits, "\n") == 0)) {
        memcpy(token, text, digits);
        token[digits] = 0;
    } else {
        code = error_set(error, -EINVAL, "%s does not hold 64 hexadecimal digits", path);
    }
    sodium_memzero(text, bytes);
    mem_free(text);
    return code;
}
