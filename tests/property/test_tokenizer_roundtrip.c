/* On every vocabulary at hand and random text: what is encoded decodes to the same bytes, cutting the text
 * into spans changes nothing, pieces put together by the detokenizer are valid UTF-8 and the same text, and
 * merging through a heap gives what merging the plain way gives.
 *
 * Vocabularies: two made here; pocket's in models/; llama.cpp's in $LLMS_SHARED/vocab (default ../shared). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/random.h"
#include "base/utf8.h"
#include "support/vocabulary.h"

enum { VOCABULARIES_MAX = 8, BYTES_MAX = 600 };

static struct entry {
    char name[400];
    struct gguf_build build;
    struct vocabulary vocabulary;
    bool spm;       /* U+2581 is a space there */
    bool byte_gaps; /* lacks tokens for bytes that never occur in UTF-8 */
} entries[VOCABULARIES_MAX];
static size_t entry_count;

static void add_file(const char *path, bool spm, bool byte_gaps)
{
    if (access(path, R_OK) != 0) {
        print_message("skipped, not there: %s\n", path);
        return;
    }
    struct entry *entry = &entries[entry_count++];
    snprintf(entry->name, sizeof entry->name, "%s", path);
    entry->vocabulary = vocabulary_open_file(path);
    entry->spm = spm;
    entry->byte_gaps = byte_gaps;
}

static int open_all(void **state)
{
    (void)state;
    static const struct vocabulary_token pieces[] = {
        {"\xe2\x96\x81", TYPE_NORMAL, -5},
        {"a", TYPE_NORMAL, -4},
        {"e", TYPE_NORMAL, -4},
        {"\xe2\x96\x81"
         "a",
         TYPE_NORMAL, -1},
        {"ae", TYPE_NORMAL, -2},
        {"\xc3\xa9", TYPE_NORMAL, -3},
        {"a\xe2\x96\x81", TYPE_NORMAL, -3},
        {"<tool>", TYPE_USER_DEFINED, 0},
    };
    struct entry *entry = &entries[entry_count++];
    strcpy(entry->name, "every pair of bytes");
    vocabulary_pairs(&entry->build, "qwen2");
    entry->vocabulary = vocabulary_open(&entry->build);
    entry = &entries[entry_count++];
    strcpy(entry->name, "a few pieces");
    entry->spm = true;
    vocabulary_spm(&entry->build, pieces, sizeof pieces / sizeof *pieces);
    entry->vocabulary = vocabulary_open(&entry->build);
    add_file("models/pocket-q8_0.gguf", false, false);
    const char *shared = getenv("LLMS_SHARED");
    static const char *const names[] = {"gpt-2", "deepseek-llm", "llama-spm", "phi-3"};
    for (size_t i = 0; i < 4; i++) {
        char path[400];
        snprintf(path, sizeof path, "%s/vocab/ggml-vocab-%s.gguf", shared ? shared : "../shared", names[i]);
        add_file(path, i >= 2, i == 1);
    }
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    for (size_t i = 0; i < entry_count; i++) {
        vocabulary_close(&entries[i].vocabulary);
        gguf_build_deinit(&entries[i].build);
    }
    return 0;
}

/* --- random text -----------------------------------------------------------------------------------------
 */

static size_t random_character(struct random *random, char *out)
{
    static const char *const common[] = {
        " ",           " ",          "  ",   "\n",   "\t",     "\r\n",         "a",        "e",
        "the",         " of",        "ing",  "It's", "1",      "23",           "\xc2\xa0", ".",
        "\"",          "<|im_end|>", "</s>", "<s>",  "<tool>", "\xe3\x80\x80", "\xcc\x81", "\xe2\x80\x8d",
        "\xef\xbb\xbf"};
    uint64_t kind = random_below(random, 10);
    if (kind < 5) {
        const char *text = common[random_below(random, sizeof common / sizeof *common)];
        memcpy(out, text, strlen(text));
        return strlen(text);
    }
    static const uint32_t limits[] = {0x80, 0x100, 0x800, 0x10000, 0x110000};
    uint32_t c;
    do
        c = (uint32_t)random_below(random, limits[kind - 5]);
    while (c >= 0xd800 && c < 0xe000);
    return utf8_encode(c, out);
}

/* Fills text with up to BYTES_MAX bytes: whole characters, or any bytes. */
static size_t random_text(struct random *random, bool valid, char *text)
{
    size_t length = 0, limit = random_below(random, BYTES_MAX - 16);
    while (length < limit) {
        if (valid || random_below(random, 2))
            length += random_character(random, text + length);
        else
            text[length++] = (char)random_next(random);
    }
    return length;
}

/* Bytes that are no UTF-8 may have no token there. */
static bool has_byte_gap(const char *text, size_t length)
{
    return !utf8_valid(text, length);
}

static size_t replace_marks(char *text, size_t length)
{
    for (char *mark; (mark = memmem(text, length, "\xe2\x96\x81", 3));) {
        *mark = '_';
        memmove(mark + 1, mark + 3, length - (size_t)(mark - text) - 3);
        length -= 2;
    }
    return length;
}

static void encode(const struct entry *entry, const struct text_span *spans, size_t count, struct tokens *ids)
{
    struct error error = {0};
    if (tokenizer_encode(entry->vocabulary.tokenizer, spans, count, false, ids, &error) < 0)
        fail_msg("%s: %s", entry->name, error.text);
    for (size_t i = 0; i < ids->count; i++)
        assert_in_range(ids->ids[i], 0, tokenizer_size(entry->vocabulary.tokenizer) - 1);
}

static void assert_same(const struct entry *entry, const char *what, const char *a, size_t a_length,
                        const char *b, size_t b_length)
{
    if (a_length != b_length || (a_length && memcmp(a, b, a_length) != 0))
        fail_msg("%s: %s: '%.*s' is not '%.*s'", entry->name, what, (int)a_length, a, (int)b_length, b);
}

/* --- the properties --------------------------------------------------------------------------------------
 */

/* Encoded and decoded again; the special tokens' names that plain text holds must stay text. */
static void round_trip(const struct entry *entry, const char *text, size_t length)
{
    struct tokens ids = {0};
    struct buffer back = {0};
    encode(entry, &(struct text_span){text, length, false}, 1, &ids);
    assert_int_equal(tokenizer_decode(entry->vocabulary.tokenizer, ids.ids, ids.count, false, &back), 0);
    assert_same(entry, "round trip", back.data, back.length, text, length);
    for (size_t i = 0; i < ids.count; i++)
        assert_false(tokenizer_is_control(entry->vocabulary.tokenizer, ids.ids[i]));
    tokens_deinit(&ids);
    buffer_deinit(&back);
}

/* The same bytes with all that is no character replaced, byte by byte. */
static void sanitize(const struct buffer *from, struct buffer *to)
{
    for (size_t i = 0, n; i < from->length; i += n) {
        uint32_t c;
        n = utf8_decode(from->data + i, from->length - i, &c);
        bool bad = n == 0 || (n == 1 && (unsigned char)from->data[i] >= 0x80);
        n = bad ? 1 : n;
        assert_int_equal(buffer_append(to, bad ? "\xef\xbf\xbd" : from->data + i, bad ? 3 : n), 0);
    }
}

/* Piece by piece: each valid by itself, all together the pieces' text. */
static void detokenize(const struct entry *entry, const char *text, size_t length)
{
    struct tokens ids = {0};
    struct buffer whole = {0}, wanted = {0}, out = {0};
    struct detokenizer detokenizer = {0};
    encode(entry, &(struct text_span){text, length, true}, 1, &ids);
    for (size_t i = 0; i < ids.count; i++) {
        size_t before = out.length;
        assert_int_equal(tokenizer_piece(entry->vocabulary.tokenizer, ids.ids[i], false, &whole), 0);
        assert_int_equal(detokenizer_push(&detokenizer, entry->vocabulary.tokenizer, ids.ids[i], &out), 0);
        assert_true(out.length == before || utf8_valid(out.data + before, out.length - before));
    }
    assert_int_equal(detokenizer_flush(&detokenizer, &out), 0);
    sanitize(&whole, &wanted);
    assert_same(entry, "detokenizer", out.data, out.length, wanted.data, wanted.length);
    if (!entry->spm) {
        buffer_clear(&whole);
        assert_int_equal(tokenizer_decode(entry->vocabulary.tokenizer, ids.ids, ids.count, false, &whole), 0);
        buffer_clear(&wanted);
        sanitize(&whole, &wanted);
        assert_same(entry, "decode", out.data, out.length, wanted.data, wanted.length);
    }
    detokenizer_deinit(&detokenizer);
    tokens_deinit(&ids);
    buffer_deinit(&whole);
    buffer_deinit(&wanted);
    buffer_deinit(&out);
}

/* Cut anywhere into spans of the same sort: the same ids. */
static void cut(const struct entry *entry, struct random *random, const char *text, size_t length)
{
    for (int markup = 0; markup < 2; markup++) {
        struct text_span spans[8];
        struct tokens whole = {0}, parts = {0};
        size_t at = 0, count = 1 + random_below(random, 7);
        for (size_t i = 0; i < count; i++) {
            size_t n = i + 1 == count ? length - at : random_below(random, length - at + 1);
            spans[i] = (struct text_span){text + at, n, markup};
            at += n;
        }
        encode(entry, &(struct text_span){text, length, markup}, 1, &whole);
        encode(entry, spans, count, &parts);
        assert_int_equal(whole.count, parts.count);
        if (whole.count)
            assert_memory_equal(whole.ids, parts.ids, whole.count * sizeof *whole.ids);
        tokens_deinit(&whole);
        tokens_deinit(&parts);
    }
}

static void test_properties(void **state)
{
    (void)state;
    struct random random = {42};
    char text[BYTES_MAX];
    for (size_t i = 0; i < entry_count; i++) {
        const struct entry *entry = &entries[i];
        for (size_t round = 0; round < 400; round++) {
            size_t length = random_text(&random, round % 2, text);
            if (entry->spm)
                length = replace_marks(text, length);
            if (!entry->byte_gaps || !has_byte_gap(text, length))
                round_trip(entry, text, length);
            detokenize(entry, text, length);
            cut(entry, &random, text, length);
        }
    }
}

/* Every byte by itself and every pair of bytes. */
static void test_all_bytes(void **state)
{
    (void)state;
    for (size_t i = 0; i < entry_count; i++) {
        for (unsigned pair = 0; pair < 65536; pair += i < 2 ? 1 : 7) {
            char text[2] = {(char)(pair >> 8), (char)pair};
            if (entries[i].byte_gaps && has_byte_gap(text, 2))
                continue;
            round_trip(&entries[i], text, 2);
            round_trip(&entries[i], text + 1, entries[i].byte_gaps && (pair & 0x80) ? 0 : 1);
        }
    }
}

/* --- the plain twin of merging ----------------------------------------------------------------------------
 */

/* Merge ranks of a byte-level vocabulary by the texts themselves. */
struct rank {
    const char *text; /* "left right" */
    size_t length;
    size_t rank;
};

static int compare_ranks(const void *a, const void *b)
{
    const struct rank *x = a, *y = b;
    size_t n = x->length < y->length ? x->length : y->length;
    int order = memcmp(x->text, y->text, n);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

struct twin {
    struct rank *ranks;
    size_t count;
};

static size_t twin_rank(const struct twin *twin, const char *left, const char *right)
{
    char text[2 * BYTES_MAX];
    int length = snprintf(text, sizeof text, "%s %s", left, right);
    struct rank key = {text, (size_t)length, 0};
    const struct rank *found = bsearch(&key, twin->ranks, twin->count, sizeof key, compare_ranks);
    return found ? found->rank : SIZE_MAX;
}

/* Encodes one word: the best pair of all is merged, and all are looked at again. */
static void twin_encode(const struct twin *twin, const struct tokenizer *tokenizer, const char *word,
                        size_t length, struct tokens *ids)
{
    static char symbols[BYTES_MAX][2 * BYTES_MAX];
    size_t count = length;
    for (size_t i = 0; i < length; i++)
        vocabulary_letter((unsigned char)word[i], symbols[i]);
    for (;;) {
        size_t best = SIZE_MAX, at = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            size_t rank = twin_rank(twin, symbols[i], symbols[i + 1]);
            if (rank < best) {
                best = rank;
                at = i;
            }
        }
        if (best == SIZE_MAX)
            break;
        memmove(symbols[at] + strlen(symbols[at]), symbols[at + 1], strlen(symbols[at + 1]) + 1);
        memmove(symbols[at + 1], symbols[at + 2], (count - at - 2) * sizeof *symbols);
        count--;
    }
    for (size_t i = 0; i < count; i++)
        assert_int_equal(tokens_append(ids, tokenizer_find(tokenizer, symbols[i])), 0);
}

static void test_twin(void **state)
{
    (void)state;
    struct random random = {9};
    for (size_t k = 0; k < entry_count; k++) {
        struct gguf_array merges;
        if (gguf_get_array(entries[k].vocabulary.gguf, "tokenizer.ggml.merges", &merges) < 0)
            continue;
        struct twin twin = {calloc(merges.count, sizeof *twin.ranks), merges.count};
        assert_non_null(twin.ranks);
        for (size_t i = 0; i < merges.count; i++)
            twin.ranks[i] = (struct rank){merges.strings[i].data, merges.strings[i].length, i};
        qsort(twin.ranks, twin.count, sizeof *twin.ranks, compare_ranks);
        for (size_t round = 0; round < 300; round++) {
            /* Lower-case letters, often repeated, are one word to every pre-tokenizer. */
            char word[64];
            size_t length = 1 + random_below(&random, sizeof word - 1),
                   letters = 1 + random_below(&random, 26);
            for (size_t i = 0; i < length; i++)
                word[i] = (char)('a' + random_below(&random, letters));
            struct tokens wanted = {0}, ids = {0};
            twin_encode(&twin, entries[k].vocabulary.tokenizer, word, length, &wanted);
            encode(&entries[k], &(struct text_span){word, length, false}, 1, &ids);
            assert_int_equal(ids.count, wanted.count);
            assert_memory_equal(ids.ids, wanted.ids, ids.count * sizeof *ids.ids);
            tokens_deinit(&wanted);
            tokens_deinit(&ids);
        }
        free(twin.ranks);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_all_bytes),
        cmocka_unit_test(test_twin),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
