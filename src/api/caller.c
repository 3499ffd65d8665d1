#include "api/caller.h"

#include <sodium.h>
#include <string.h>
#include <strings.h>

bool caller_app_valid(const char *app)
{
    if (!app)
        return false;
    size_t length = strspn(app, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return length > 0 && length < CALLER_APP_BYTES && !app[length];
}

bool caller_host_local(const char *host)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    if (!host)
        return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t length = strlen(names[i]);
        if (strncasecmp(host, names[i], length) != 0)
            continue;
        const char *rest = host + length;
        if (!*rest)
            return true;
        size_t digits = *rest == ':' ? strspn(rest + 1, "0123456789") : 0;
        return digits >= 1 && digits <= 5 && !rest[1 + digits];
    }
    return false;
}

bool caller_token_right(const char *authorization, const char *token)
{
    size_t length = strlen(token);
    if (!authorization || !length || strncasecmp(authorization, "Bearer ", 7) != 0)
        return false;
    const char *shown = authorization + 7 + strspn(authorization + 7, " ");
    return strlen(shown) == length && sodium_memcmp(shown, token, length) == 0;
}
