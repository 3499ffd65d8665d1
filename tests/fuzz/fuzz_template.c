/* Any text as a template: recognised or not. And as a conversation, in every template: cut in two it is
 * written as in one go, what messages say is never markup, and refusals leave no trace. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { MESSAGES = 12 };

/* Each message begins with a byte below 4 (its role) and goes on to the next such byte. */
static size_t split(const char *text, size_t length, struct chat_message *messages)
{
    size_t count = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 4 && count < MESSAGES)
            messages[count++] = (struct chat_message){(enum chat_role)(c % 3), text + i + 1, 0};
        else if (count)
            messages[count - 1].length++;
    }
    return count;
}

static void check(enum chat_template kind, const struct chat_message *messages, size_t count, size_t at,
                  bool reply)
{
    struct chat_text whole = {0}, parts = {0};
    struct text_span *spans = NULL;
    int status = chat_render(kind, messages, count, 0, reply, &whole);
    int first = chat_render(kind, messages, at, 0, false, &parts);
    int second = first < 0 ? first : chat_render(kind, messages, count, at, reply, &parts);
    if ((status < 0) != (second < 0) || (status < 0 && whole.bytes.length + whole.count))
        abort();
    if (status == 0) {
        if (whole.bytes.length != parts.bytes.length || whole.count != parts.count ||
            (whole.bytes.length && memcmp(whole.bytes.data, parts.bytes.data, whole.bytes.length) != 0) ||
            chat_text_spans(&whole, &spans) < 0)
            abort();
        size_t said = 0, content = 0;
        for (size_t i = 0; i < count; i++)
            said += messages[i].length;
        for (size_t i = 0; i < whole.count; i++)
            content += spans[i].markup ? 0 : spans[i].length;
        if (content > said)
            abort();
    }
    mem_free(spans);
    chat_text_deinit(&whole);
    chat_text_deinit(&parts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct chat_message messages[MESSAGES];
    enum chat_template kind;
    const char *text = (const char *)data;
    chat_template_detect(text, bytes, &kind);
    if (chat_template_name(kind)[0] == 0)
        abort();
    size_t count = split(text, bytes, messages);
    for (int k = CHAT_CHATML; k <= CHAT_MISTRAL_V7; k++)
        check((enum chat_template)k, messages, count, count ? bytes % (count + 1) : 0, bytes / 16 % 2);
    return 0;
}
