/* Chat templates: how a model wants conversations written. Recognised from the template text a GGUF carries
 * (chatml, llama2, llama3, mistral and its later forms, phi3, zephyr, gemma); the text itself is not
 * executed.
 *
 * Written incrementally: a conversation grows message by message and what was written before never changes,
 * because KV chunks of it are kept. Pure functions; thread-safe. */
#ifndef LLMS_MODEL_TEMPLATE_H
#define LLMS_MODEL_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/array.h"
#include "model/tokenizer.h"

enum chat_template {
    CHAT_CHATML,
    CHAT_LLAMA2,
    CHAT_LLAMA3,
    CHAT_MISTRAL,
    CHAT_PHI3,
    CHAT_ZEPHYR,
    CHAT_GEMMA,
    CHAT_MISTRAL_V1, /* the forms of mistral differ in spaces and in what stands for the system */
    CHAT_MISTRAL_V3,
    CHAT_MISTRAL_V7,
};

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };

struct chat_message {
    enum chat_role role;
    const char *text; /* not NUL-terminated */
    size_t length;
};

/* Recognises a template, by its text or by its name here; returns 0 and the kind, or -ENOENT and CHAT_CHATML,
 * the stated default. */
int chat_template_detect(const char *text, size_t length, enum chat_template *kind);
const char *chat_template_name(enum chat_template kind);
int chat_role_parse(const char *name, enum chat_role *role); /* 0 or -EINVAL */

/* Text with its spans, ready for tokenizer_encode. Zeroed is empty; deinit releases. spans[i].text is only
 * valid after chat_text_spans, which points them into `bytes`. */
struct chat_text {
    struct buffer bytes;
    struct chat_piece {
        size_t offset, length;
        bool markup;
    } * pieces;
    size_t count, capacity;
};
int chat_text_spans(const struct chat_text *text,
                    struct text_span **out); /* caller mem_free()s; text->count of them */
void chat_text_deinit(struct chat_text *text);

/* Appends to out how messages[from..count) are written, given that messages[0..from) stand already written
 * before them and that the last of those, if it is an assistant's, was generated and so is not closed yet
 * (its closing text comes first here). With `reply` the opening of the assistant's next message follows,
 * ready to generate. Templates without a system role (gemma, mistral but V7, llama2) fold it into the first
 * user message; a system message alone (count 1, no reply) then writes nothing until its user message comes,
 * and becomes a user message where an answer follows it at once. An assistant's message that is the last one
 * stays open: its closing text comes with what follows. 0, -ENOMEM, or -EINVAL for an order the template
 * cannot express (system anywhere but first, where it has to be folded); out is then as it was. */
int chat_render(enum chat_template kind, const struct chat_message *messages, size_t count, size_t from,
                bool reply, struct chat_text *out);

#endif
