#include "base/parse.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* strtod also reads hexadecimal, "inf" and "nan"; people do not mean those. */
static bool decimal(const char *text, const char *characters)
{
    return strspn(text, characters) > 0 && !strpbrk(text, "xXpP");
}

int parse_double(const char *text, double low, double high, double *value)
{
    char *end;
    if (!decimal(text, "0123456789.-"))
        return -EINVAL;
    errno = 0;
    double x = strtod(text, &end);
    if (errno || end == text || *end || !isfinite(x) || x < low || x > high)
        return -EINVAL;
    *value = x;
    return 0;
}

int parse_u64(const char *text, uint64_t low, uint64_t high, uint64_t *value)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    errno = 0;
    unsigned long long x = strtoull(text, &end, 10);
    if (errno || *end || x < low || x > high)
        return -EINVAL;
    *value = x;
    return 0;
}

int parse_size(const char *text, uint64_t *bytes)
{
    char *end;
    if (!decimal(text, "0123456789."))
        return -EINVAL;
    errno = 0;
    double x = strtod(text, &end);
    if (errno || end == text)
        return -EINVAL;
    switch (toupper((unsigned char)*end)) {
    case 'K':
        x *= 1024.0;
        end++;
        break;
    case 'M':
        x *= 1024.0 * 1024.0;
        end++;
        break;
    case 'G':
        x *= 1024.0 * 1024.0 * 1024.0;
        end++;
        break;
    default:
        break;
    }
    if (*end == 'i' && end[1] == 'B')
        end++;
    if (*end == 'B' || *end == 'b')
        end++;
    if (*end || !(x >= 0) || x > 0x1p62)
        return -EINVAL;
    *bytes = (uint64_t)x;
    return 0;
}
