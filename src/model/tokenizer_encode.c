/* From spans to ids: special tokens are cut out of the text whole, the rest goes to the model word by word.
 *
 * The spans' texts are joined first. Special tokens are then taken as llama.cpp takes them: longer names
 * before shorter ones, each from left to right, in what is still free. Control and unknown tokens count only
 * where markup wrote them from the first byte to the last; user-defined tokens count everywhere. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/tokenizer_internal.h"

struct occurrence {
    uint32_t start;
    uint32_t end;  /* of the name */
    uint32_t next; /* where text goes on: behind white space that the token swallows */
    int32_t id;
};

struct occurrences {
    struct occurrence *items;
    size_t count, capacity;
};

/* --- finding names -------------------------------------------------------------------------------------- */

static int compare_texts(const void *a, const void *b, void *context)
{
    const struct token_text *texts = context;
    const struct token_text *x = &texts[*(const int32_t *)a], *y = &texts[*(const int32_t *)b];
    int order = memcmp(x->data, y->data, x->length < y->length ? x->length : y->length);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

int special_init(struct tokenizer *tokenizer)
{
    uint32_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        count = 0;
        for (uint32_t i = 0; i < tokenizer->size; i++) {
            enum token_type type = tokenizer_type(tokenizer, (int32_t)i);
            if (type != TOKEN_CONTROL && type != TOKEN_USER_DEFINED && type != TOKEN_UNKNOWN)
                continue;
            if (pass)
                tokenizer->special[count] = (int32_t)i;
            count++;
        }
        if (!pass && !(tokenizer->special = mem_calloc(count, sizeof *tokenizer->special)))
            return -ENOMEM;
    }
    tokenizer->special_count = count;
    qsort_r(tokenizer->special, count, sizeof *tokenizer->special, compare_texts, tokenizer->map.texts);
    for (uint32_t i = 0; i < count; i++)
        tokenizer->special_first[(unsigned char)tokenizer->map.texts[tokenizer->special[i]].data[0]] = true;
    return 0;
}

/* Among special[low, high), which agree in their first `depth` bytes and are all longer: those whose next
 * byte is not below (or, with past, is above) `byte` begin here. */
static uint32_t bound(const struct tokenizer *tokenizer, uint32_t low, uint32_t high, uint32_t depth,
                      unsigned byte, bool past)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        unsigned there = (unsigned char)tokenizer->map.texts[tokenizer->special[middle]].data[depth];
        if (there < byte || (past && there == byte))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int add_occurrence(struct occurrences *found, struct occurrence item)
{
    if (found->count == found->capacity) {
        size_t capacity = found->capacity ? 2 * found->capacity : 16;
        struct occurrence *items = mem_realloc(found->items, capacity * sizeof *items);
        if (!items)
            return -ENOMEM;
        found->items = items;
        found->capacity = capacity;
    }
    found->items[found->count++] = item;
    return 0;
}

/* Adds every special token whose name stands at text[at]; markup_end: how far markup reaches from there. */
static int find_at(const struct tokenizer *tokenizer, const char *text, size_t length, size_t at,
                   size_t markup_end, struct occurrences *found)
{
    uint32_t low = 0, high = tokenizer->special_count;
    for (uint32_t depth = 0; low < high && at + depth < length; depth++) {
        unsigned byte = (unsigned char)text[at + depth];
        low = bound(tokenizer, low, high, depth, byte, false);
        high = bound(tokenizer, low, high, depth, byte, true);
        if (low == high)
            break;
        int32_t id = tokenizer->special[low];
        size_t end = at + depth + 1;
        if (tokenizer->map.texts[id].length != depth + 1)
            continue;
        low++;
        if (tokenizer_type(tokenizer, id) != TOKEN_USER_DEFINED && end > markup_end)
            continue;
        struct occurrence item = {
            .start = (uint32_t)at, .end = (uint32_t)end, .next = (uint32_t)end, .id = id};
        if (add_occurrence(found, item) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int find_all(const struct tokenizer *tokenizer, const char *text, size_t length,
                    const struct text_span *spans, size_t count, struct occurrences *found)
{
    size_t span = 0, span_end = 0, markup_end = 0; /* span: the first that begins past `at` */
    for (size_t at = 0; at < length; at++) {
        while (span < count && at >= span_end) {
            span_end += spans[span].length;
            if (spans[span++].markup && at >= markup_end && at < span_end) {
                markup_end = span_end;
                for (size_t next = span; next < count && (spans[next].markup || !spans[next].length); next++)
                    markup_end += spans[next].length;
            }
        }
        if (tokenizer->special_first[(unsigned char)text[at]] &&
            find_at(tokenizer, text, length, at, markup_end, found) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* --- choosing among them -------------------------------------------------------------------------------- */

static int by_length(const void *a, const void *b)
{
    const struct occurrence *x = a, *y = b;
    uint32_t x_length = x->end - x->start, y_length = y->end - y->start;
    if (x_length != y_length)
        return x_length > y_length ? -1 : 1;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return (x->start > y->start) - (x->start < y->start);
}

static int by_start(const void *a, const void *b)
{
    const struct occurrence *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Keeps those that are taken, in the order of the text. */
static int choose(const struct tokenizer *tokenizer, const char *text, size_t length,
                  struct occurrences *found)
{
    if (found->count == 0)
        return 0;
    bool *taken = mem_calloc(length, sizeof *taken);
    if (!taken)
        return -ENOMEM;
    qsort(found->items, found->count, sizeof *found->items, by_length);
    size_t kept = 0;
    for (size_t i = 0; i < found->count; i++) {
        struct occurrence item = found->items[i];
        if (memchr(taken + item.start, true, item.end - item.start))
            continue;
        if (tokenizer->flags[item.id] & TOKEN_FLAG_STRIP)
            while (item.next < length && !taken[item.next] && is_space(text[item.next]))
                item.next++;
        memset(taken + item.start, true, item.next - item.start);
        found->items[kept++] = item;
    }
    found->count = kept;
    qsort(found->items, kept, sizeof *found->items, by_start);
    mem_free(taken);
    return 0;
}

/* --- encoding ------------------------------------------------------------------------------------------- */

static int encode_plain(const struct tokenizer *tokenizer, struct merger *merger, const char *text,
                        size_t length, bool after_special, struct tokens *out, struct error *error)
{
    if (length == 0)
        return 0;
    if (tokenizer->model == TOKENIZER_SPM)
        return spm_encode(tokenizer, merger, text, length, after_special, out);
    return bpe_encode(tokenizer, merger, text, length, out, error);
}

static int encode_text(const struct tokenizer *tokenizer, const char *text, size_t length,
                       const struct text_span *spans, size_t count, struct tokens *out, struct error *error)
{
    struct occurrences found = {0};
    struct merger merger = {0};
    size_t at = 0;
    int status = find_all(tokenizer, text, length, spans, count, &found);
    if (status == 0)
        status = choose(tokenizer, text, length, &found);
    for (size_t i = 0; status == 0 && i < found.count; i++) {
        const struct occurrence *item = &found.items[i];
        status = encode_plain(tokenizer, &merger, text + at, item->start - at, true, out, error);
        if (status == 0)
            status = tokens_append(out, item->id);
        at = item->next;
    }
    if (status == 0)
        status = encode_plain(tokenizer, &merger, text + at, length - at, true, out, error);
    mem_free(found.items);
    merger_deinit(&merger);
    return status;
}

/* BOS and EOS around out->ids[start...), unless they stand there already. */
static int enclose(const struct tokenizer *tokenizer, size_t start, struct tokens *out)
{
    if (tokens_reserve(out, 2) < 0)
        return -ENOMEM;
    int32_t *ids = out->ids + start;
    size_t count = out->count - start;
    if (tokenizer->add_bos && (count == 0 || ids[0] != tokenizer->bos)) {
        memmove(ids + 1, ids, count * sizeof *ids);
        ids[0] = tokenizer->bos;
        count++;
    }
    if (tokenizer->add_eos && (count == 0 || ids[count - 1] != tokenizer->eos))
        ids[count++] = tokenizer->eos;
    out->count = start + count;
    return 0;
}

int tokenizer_encode(const struct tokenizer *tokenizer, const struct text_span *spans, size_t count,
                     bool begin, struct tokens *out, struct error *error)
{
    struct buffer joined = {0};
    size_t start = out->count, length = 0;
    int status = 0;
    for (size_t i = 0; i < count; i++) {
        /* Positions are 32 bits wide, and a space grows to three bytes. */
        if (spans[i].length > INT32_MAX / 4 - length)
            return error_set(error, -EINVAL, "the text is too long to encode");
        length += spans[i].length;
    }
    for (size_t i = 0; count > 1 && status == 0 && i < count; i++)
        status = buffer_append(&joined, spans[i].text, spans[i].length);
    const char *text = count == 1 ? spans[0].text : joined.data;
    if (status == 0)
        status = encode_text(tokenizer, text, length, spans, count, out, error);
    if (status == 0 && begin)
        status = enclose(tokenizer, start, out);
    buffer_deinit(&joined);
    if (status < 0)
        out->count = start;
    return status == -ENOMEM ? error_set(error, status, "out of memory") : status;
}
