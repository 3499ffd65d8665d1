/* llms-bench tokens: the token ids of a text. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "bench.h"
#include "model/tokenizer.h"
#include "os/file.h"

static int encode(const char *model, const struct text_span *span, bool begin, struct tokens *ids,
                  struct error *error)
{
    struct gguf *gguf = NULL;
    struct tokenizer *tokenizer = NULL;
    int code = gguf_open(model, &gguf, error);
    if (code == 0 && (code = tokenizer_create(gguf, &tokenizer, error)) < 0)
        error_prefix(error, code, "%s", model);
    if (code == 0)
        code = tokenizer_encode(tokenizer, span, 1, begin, ids, error);
    tokenizer_destroy(tokenizer);
    gguf_close(gguf);
    return code;
}

static void print_ids(const struct tokens *ids, bool json)
{
    if (json)
        printf("{\"ids\":[");
    for (size_t i = 0; i < ids->count; i++)
        printf("%s%" PRId32, i == 0 ? "" : json ? "," : " ", ids->ids[i]);
    puts(json ? "]}" : "");
}

int bench_tokens(int argc, char **argv)
{
    const char *model = NULL, *path = NULL, *text = NULL;
    bool json = false, plain = false, bare = false;
    const struct bench_option options[] = {
        {"model", BENCH_TEXT, &model, "F", "the GGUF; one with a vocabulary only will do", .required = true},
        {"file", BENCH_TEXT, &path, "F", "the text (default: standard input)"},
        {"text", BENCH_TEXT, &text, "T", "the text itself"},
        {"plain", BENCH_FLAG, &plain, NULL, "take names of special tokens as text, as in what a user writes"},
        {"bare", BENCH_FLAG, &bare, NULL, "no begin-of-text token in front, no end token behind"},
        {"json", BENCH_FLAG, &json, NULL, "one JSON document: {\"ids\"}"},
    };
    const struct bench_usage usage = {"tokens", "Tells the token ids of a text.", NULL, options,
                                      sizeof options / sizeof *options};
    int status = bench_options(&usage, argc, argv);
    if (status != BENCH_GO)
        return status;
    if (path && text)
        return bench_misuse("tokens", "--file and --text exclude each other");
    struct error error = {0};
    struct tokens ids = {0};
    char *data = NULL;
    struct text_span span = {text, text ? strlen(text) : 0, !plain};
    int code = 0;
    if (!text) {
        if (!path)
            path = "/dev/stdin";
        code = os_read_file(path, (size_t)1 << 30, &data, &span.length);
        span.text = data;
        if (code < 0)
            error_set(&error, code, "%s: %s", path, strerror(-code));
    }
    if (code == 0)
        code = encode(model, &span, !bare, &ids, &error);
    if (code == 0)
        print_ids(&ids, json);
    mem_free(data);
    tokens_deinit(&ids);
    return code < 0 ? bench_fail("tokens", &error) : 0;
}
