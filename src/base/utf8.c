#include "base/utf8.h"

size_t utf8_decode(const char *text, size_t length, uint32_t *codepoint)
{
    const unsigned char *s = (const unsigned char *)text;
    uint32_t c = s[0];
    *codepoint = c;
    if (c < 0x80)
        return 1;
    *codepoint = 0xfffd;
    if (c < 0xc2 || c > 0xf4)
        return 1;
    size_t bytes = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    /* The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF. */
    unsigned low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    unsigned high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    c &= 0xffu >> (bytes + 1);
    for (size_t i = 1; i < bytes; i++) {
        if (i == length)
            return 0;
        if (s[i] < low || s[i] > high)
            return 1;
        low = 0x80;
        high = 0xbf;
        c = c << 6 | (s[i] & 0x3fu);
    }
    *codepoint = c;
    return bytes;
}

size_t utf8_encode(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

size_t utf8_whole_prefix(const char *text, size_t length)
{
    uint32_t c;
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        unsigned char lead = (unsigned char)text[length - back];
        if (lead < 0x80)
            return length;
        if (lead >= 0xc0)
            return utf8_decode(text + length - back, back, &c) == 0 ? length - back : length;
    }
    return length;
}

bool utf8_valid(const char *text, size_t length)
{
    for (size_t i = 0, n; i < length; i += n) {
        uint32_t c;
        n = utf8_decode(text + i, length - i, &c);
        if (n == 0 || (n == 1 && (unsigned char)text[i] >= 0x80))
            return false;
    }
    return true;
}
