/* Who is asking: app names, Host headers, tokens. Pure checks of header texts (NULL: the header is missing).
 */
#ifndef LLMS_API_CALLER_H
#define LLMS_API_CALLER_H

#include <stdbool.h>

enum {
    CALLER_APP_BYTES = 65,   /* an app's name with its NUL */
    CALLER_OWNER_BYTES = 96, /* "<uid>/<app>" or "token/<app>" with its NUL */
};

/* 1 to 64 of [A-Za-z0-9._-]. */
bool caller_app_valid(const char *app);

/* localhost, 127.0.0.1 or [::1], with a port or without: what a browser that was led here by another site's
 * name does not send. */
bool caller_host_local(const char *host);

/* "Bearer TOKEN" with this token, compared in constant time. False if token is "". */
bool caller_token_right(const char *authorization, const char *token);

#endif
