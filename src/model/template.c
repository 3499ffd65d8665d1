/* Chat templates as data: what stands before and after a message of each role.
 *
 * The formats are those of llama.cpp's llama_chat_apply_template: chatml, llama2 (its llama2-sys-bos),
 * llama3, phi3, gemma, mistral (its plain llama2: Mistral 7B Instruct 0.1 and 0.2), mistral-v1, -v3 and -v7.
 * Zephyr differs on purpose: messages end in </s>, as Zephyr's and TinyLlama's own templates have it, and not
 * in StableLM's <|endoftext|>. Where llama.cpp trims a message (llama3, gemma, mistral-v3's answers), so does
 * this. A system prompt that a template's text would add by itself (Qwen2, SmolLM2) is not added: what an app
 * did not write is not in its context. The BOS token at the start is the tokenizer's.
 *
 * What a template writes is markup, what a message says is not, so no message can forge a turn. */
#include "model/template.h"

#include <errno.h>
#include <string.h>

#include "base/memory.h"

struct wrap {
    const char *before, *after;
};

static const struct style {
    const char *name;
    struct wrap system, user, assistant;
    const char *again; /* before a user's message that follows an answer; NULL: user.before */
    const char *reply; /* opens the assistant's message that is to be generated */
    bool folded;       /* the system's message stands inside the first user's */
    bool bracketed;    /* user.before only at the start and after an answer */
    bool trim_assistant, trim_others;
} styles[] = {
    [CHAT_CHATML] = {"chatml",
                     {"<|im_start|>system\n", "<|im_end|>\n"},
                     {"<|im_start|>user\n", "<|im_end|>\n"},
                     {"<|im_start|>assistant\n", "<|im_end|>\n"},
                     .reply = "<|im_start|>assistant\n"},
    [CHAT_LLAMA2] = {"llama2",
                     {"<<SYS>>\n", "\n<</SYS>>\n\n"},
                     {"[INST] ", " [/INST]"},
                     {"", "</s>"},
                     .again = "<s>[INST] ",
                     .reply = "",
                     .folded = true,
                     .bracketed = true},
    [CHAT_LLAMA3] = {"llama3",
                     {"<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"},
                     {"<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"},
                     {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"},
                     .reply = "<|start_header_id|>assistant<|end_header_id|>\n\n",
                     .trim_assistant = true,
                     .trim_others = true},
    [CHAT_MISTRAL] = {"mistral",
                      {"", "\n"},
                      {"[INST] ", " [/INST]"},
                      {"", "</s>"},
                      .reply = "",
                      .folded = true,
                      .bracketed = true},
    [CHAT_PHI3] = {"phi3",
                   {"<|system|>\n", "<|end|>\n"},
                   {"<|user|>\n", "<|end|>\n"},
                   {"<|assistant|>\n", "<|end|>\n"},
                   .reply = "<|assistant|>\n"},
    [CHAT_ZEPHYR] = {"zephyr",
                     {"<|system|>\n", "</s>\n"},
                     {"<|user|>\n", "</s>\n"},
                     {"<|assistant|>\n", "</s>\n"},
                     .reply = "<|assistant|>\n"},
    [CHAT_GEMMA] = {"gemma",
                    {"", "\n\n"},
                    {"<start_of_turn>user\n", "<end_of_turn>\n"},
                    {"<start_of_turn>model\n", "<end_of_turn>\n"},
                    .reply = "<start_of_turn>model\n",
                    .folded = true,
                    .trim_assistant = true,
                    .trim_others = true},
    [CHAT_MISTRAL_V1] = {"mistral-v1",
                         {"", "\n\n"},
                         {" [INST] ", " [/INST]"},
                         {" ", "</s>"},
                         .reply = "",
                         .folded = true,
                         .bracketed = true},
    [CHAT_MISTRAL_V3] = {"mistral-v3",
                         {"", "\n\n"},
                         {"[INST] ", "[/INST]"},
                         {" ", "</s>"},
                         .reply = "",
                         .folded = true,
                         .bracketed = true,
                         .trim_assistant = true},
    [CHAT_MISTRAL_V7] = {"mistral-v7",
                         {"[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"},
                         {"[INST] ", "[/INST]"},
                         {" ", "</s>"},
                         .reply = ""},
};

enum { STYLES = sizeof styles / sizeof *styles };

/* --- recognising ---------------------------------------------------------------------------------------- */

struct text {
    const char *data;
    size_t length;
};

static const char *find(struct text text, const char *marker)
{
    return memmem(text.data, text.length, marker, strlen(marker));
}

static bool has(struct text text, const char *marker)
{
    return find(text, marker) != NULL;
}

/* Mistral's and Llama 2's templates all write [INST]; the rest tells them apart. */
static enum chat_template detect_inst(struct text text)
{
    if (has(text, "[SYSTEM_PROMPT]"))
        return CHAT_MISTRAL_V7;
    if (has(text, "' [INST] ' + system_message") || has(text, "[AVAILABLE_TOOLS]"))
        return has(text, " [INST]") ? CHAT_MISTRAL_V1 : CHAT_MISTRAL_V3;
    return has(text, "<<SYS>>") ? CHAT_LLAMA2 : CHAT_MISTRAL;
}

/* Zephyr's kin end the user's message with the EOS token, in words or by name; others that write <|user|>
 * (Falcon 3, GLM) do not. Looks from each <|user|> to where the template's next statement begins. */
static bool is_zephyr(struct text text)
{
    const char *user;
    while ((user = find(text, "<|user|>"))) {
        size_t rest = text.length - (size_t)(user - text.data);
        const char *statement = memmem(user, rest, "{%", 2);
        struct text message = {user, statement ? (size_t)(statement - user) : rest};
        if (has(message, "</s>") || has(message, "eos_token"))
            return true;
        text = (struct text){user + 1, rest - 1};
    }
    return false;
}

int chat_template_detect(const char *data, size_t length, enum chat_template *kind)
{
    struct text text = {data, length};
    *kind = CHAT_CHATML;
    for (int i = 0; i < STYLES; i++) {
        if (strlen(styles[i].name) == length && memcmp(styles[i].name, data, length) == 0) {
            *kind = (enum chat_template)i;
            return 0;
        }
    }
    if (has(text, "<|im_start|>")) /* Phi-4 and SmolVLM write it too, but otherwise */
        return has(text, "<|im_sep|>") || has(text, "<end_of_utterance>") ? -ENOENT : 0;
    if (has(text, "[INST]"))
        *kind = detect_inst(text);
    else if (has(text, "<|assistant|>") && has(text, "<|end|>"))
        *kind = CHAT_PHI3;
    else if (is_zephyr(text))
        *kind = CHAT_ZEPHYR;
    else if (has(text, "<start_of_turn>"))
        *kind = CHAT_GEMMA;
    else if (has(text, "<|start_header_id|>") && has(text, "<|end_header_id|>"))
        *kind = CHAT_LLAMA3;
    else
        return -ENOENT;
    return 0;
}

const char *chat_template_name(enum chat_template kind)
{
    return styles[kind].name;
}

int chat_role_parse(const char *name, enum chat_role *role)
{
    static const char *const names[] = {
        [CHAT_SYSTEM] = "system", [CHAT_USER] = "user", [CHAT_ASSISTANT] = "assistant"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *role = (enum chat_role)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* --- text in pieces ------------------------------------------------------------------------------------- */

int chat_text_spans(const struct chat_text *text, struct text_span **out)
{
    struct text_span *spans = mem_calloc(text->count, sizeof *spans);
    if (!spans)
        return -ENOMEM;
    for (size_t i = 0; i < text->count; i++)
        spans[i] = (struct text_span){.text = text->bytes.data + text->pieces[i].offset,
                                      .length = text->pieces[i].length,
                                      .markup = text->pieces[i].markup};
    *out = spans;
    return 0;
}

void chat_text_deinit(struct chat_text *text)
{
    buffer_deinit(&text->bytes);
    mem_free(text->pieces);
    *text = (struct chat_text){0};
}

/* Appends bytes, to the last piece where that is of the same sort. */
static int append(struct chat_text *text, const char *data, size_t length, bool markup)
{
    if (length == 0)
        return 0;
    bool extend = text->count > 0 && text->pieces[text->count - 1].markup == markup;
    if (!extend && text->count == text->capacity) {
        size_t capacity = text->capacity ? 2 * text->capacity : 8;
        struct chat_piece *pieces = mem_realloc(text->pieces, capacity * sizeof *pieces);
        if (!pieces)
            return -ENOMEM;
        text->pieces = pieces;
        text->capacity = capacity;
    }
    size_t offset = text->bytes.length;
    if (buffer_append(&text->bytes, data, length) < 0)
        return -ENOMEM;
    if (extend)
        text->pieces[text->count - 1].length += length;
    else
        text->pieces[text->count++] = (struct chat_piece){offset, length, markup};
    return 0;
}

static int append_markup(struct chat_text *text, const char *markup)
{
    return append(text, markup, strlen(markup), true);
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int append_message(struct chat_text *text, const struct chat_message *message, bool trim)
{
    const char *data = message->text;
    size_t length = message->length;
    while (trim && length > 0 && is_space(data[0])) {
        data++;
        length--;
    }
    while (trim && length > 0 && is_space(data[length - 1]))
        length--;
    return append(text, data, length, false);
}

/* --- rendering ------------------------------------------------------------------------------------------ */

struct render {
    const struct style *style;
    const struct chat_message *messages;
    struct chat_text *out;
};

/* Is message 0 a system's that is still to be written when message i (or the reply in its place) comes? */
static bool pending_system(const struct render *render, size_t i)
{
    return render->style->folded && i == 1 && render->messages[0].role == CHAT_SYSTEM;
}

static const char *user_opening(const struct render *render, size_t i)
{
    const struct style *style = render->style;
    bool start = i == 0 || pending_system(render, i),
         after_answer = !start && render->messages[i - 1].role == CHAT_ASSISTANT;
    if (style->bracketed && !start && !after_answer)
        return "";
    return after_answer && style->again ? style->again : style->user.before;
}

static int render_user(const struct render *render, size_t i)
{
    const struct style *style = render->style;
    struct chat_text *out = render->out;
    int status = append_markup(out, user_opening(render, i));
    if (status == 0 && pending_system(render, i)) {
        status = append_markup(out, style->system.before);
        if (status == 0)
            status = append_message(out, &render->messages[0], style->trim_others);
        if (status == 0)
            status = append_markup(out, style->system.after);
    }
    if (status == 0)
        status = append_message(out, &render->messages[i], style->trim_others);
    return status < 0 ? status : append_markup(out, style->user.after);
}

/* An answer right after a folded system message: that one is what it answers. */
static int render_lone_system(const struct render *render)
{
    int status = append_markup(render->out, render->style->user.before);
    if (status == 0)
        status = append_message(render->out, &render->messages[0], render->style->trim_others);
    return status < 0 ? status : append_markup(render->out, render->style->user.after);
}

/* What stands before message i (or before the reply in its place) if that is an assistant's. */
static int render_assistant(const struct render *render, size_t i, const char *opening)
{
    int status = pending_system(render, i) ? render_lone_system(render) : 0;
    return status < 0 ? status : append_markup(render->out, opening);
}

static int render_message(const struct render *render, size_t i)
{
    const struct style *style = render->style;
    const struct chat_message *message = &render->messages[i];
    int status = 0;
    switch (message->role) {
    case CHAT_USER:
        return render_user(render, i);
    case CHAT_ASSISTANT:
        status = render_assistant(render, i, style->assistant.before);
        return status < 0 ? status : append_message(render->out, message, style->trim_assistant);
    case CHAT_SYSTEM:
        break;
    }
    if (style->folded)
        return i == 0 ? 0 : -EINVAL;
    status = append_markup(render->out, style->system.before);
    if (status == 0)
        status = append_message(render->out, message, style->trim_others);
    return status < 0 ? status : append_markup(render->out, style->system.after);
}

/* The closing text of message i - 1 where that is an assistant's. */
static int close_previous(const struct render *render, size_t i)
{
    if (i == 0 || render->messages[i - 1].role != CHAT_ASSISTANT)
        return 0;
    return append_markup(render->out, render->style->assistant.after);
}

int chat_render(enum chat_template kind, const struct chat_message *messages, size_t count, size_t from,
                bool reply, struct chat_text *out)
{
    if (from > count)
        return -EINVAL;
    const struct render render = {&styles[kind], messages, out};
    size_t bytes = out->bytes.length, pieces = out->count;
    size_t last_length = pieces ? out->pieces[pieces - 1].length : 0;
    int status = 0;
    for (size_t i = from; status == 0 && i < count; i++) {
        status = close_previous(&render, i);
        if (status == 0)
            status = render_message(&render, i);
    }
    if (status == 0 && reply) {
        status = close_previous(&render, count);
        if (status == 0)
            status = render_assistant(&render, count, render.style->reply);
    }
    if (status < 0) {
        out->bytes.length = bytes;
        if (out->bytes.data)
            out->bytes.data[bytes] = 0;
        out->count = pieces;
        if (pieces)
            out->pieces[pieces - 1].length = last_length;
    }
    return status;
}
