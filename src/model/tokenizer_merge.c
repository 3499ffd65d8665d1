/* Merging neighbouring symbols: the core of byte-level BPE and of SentencePiece BPE.
 *
 * Every pair of neighbours that can merge stands in a heap; the best is taken, merged, and the pairs with its
 * new neighbours are added. A pair of which one side has meanwhile changed is dropped when it is taken. Each
 * merge removes a symbol and adds two pairs at most, so a text of n symbols costs O(n log n) however long a
 * word is. */
#include <errno.h>

#include "base/memory.h"
#include "model/tokenizer_internal.h"

static int grow(void **array, size_t *capacity, size_t size)
{
    size_t next = *capacity ? *capacity + *capacity / 2 : 64;
    if (next > SIZE_MAX / size)
        return -ENOMEM;
    void *memory = mem_realloc(*array, next * size);
    if (!memory)
        return -ENOMEM;
    *array = memory;
    *capacity = next;
    return 0;
}

int merger_add(struct merger *merger, uint32_t start, uint32_t length, int32_t number)
{
    if (merger->count == merger->capacity) {
        void *symbols = merger->symbols;
        if (grow(&symbols, &merger->capacity, sizeof *merger->symbols) < 0)
            return -ENOMEM;
        merger->symbols = symbols;
    }
    int32_t i = (int32_t)merger->count++;
    merger->symbols[i] =
        (struct symbol){.start = start, .length = length, .previous = i - 1, .next = -1, .number = number};
    if (i > 0)
        merger->symbols[i - 1].next = i;
    return 0;
}

static bool before(const struct bigram *a, const struct bigram *b)
{
    return a->order != b->order ? a->order < b->order : a->left < b->left;
}

static int push(struct merger *merger, const struct bigram *bigram)
{
    if (merger->heap_count == merger->heap_capacity) {
        void *heap = merger->heap;
        if (grow(&heap, &merger->heap_capacity, sizeof *merger->heap) < 0)
            return -ENOMEM;
        merger->heap = heap;
    }
    size_t i = merger->heap_count++;
    for (; i > 0 && before(bigram, &merger->heap[(i - 1) / 2]); i = (i - 1) / 2)
        merger->heap[i] = merger->heap[(i - 1) / 2];
    merger->heap[i] = *bigram;
    return 0;
}

static struct bigram pop(struct merger *merger)
{
    struct bigram *heap = merger->heap, top = heap[0], last = heap[--merger->heap_count];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < merger->heap_count; i = child) {
        if (child + 1 < merger->heap_count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &last))
            break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Puts the pair (left, right) into the heap if it can merge. */
static int try_pair(struct merger *merger, const struct tokenizer *tokenizer, const char *text,
                    merge_fn *merge, int32_t left, int32_t right)
{
    if (left < 0 || right < 0)
        return 0;
    const struct symbol *symbols = merger->symbols;
    struct bigram bigram = {
        .left = left, .right = right, .length = symbols[left].length + symbols[right].length};
    if (!merge(tokenizer, text, &symbols[left], &symbols[right], &bigram))
        return 0;
    return push(merger, &bigram);
}

int merger_run(struct merger *merger, const struct tokenizer *tokenizer, const char *text, merge_fn *merge)
{
    struct symbol *symbols = merger->symbols;
    int status = 0;
    merger->heap_count = 0;
    for (size_t i = 1; status == 0 && i < merger->count; i++)
        status = try_pair(merger, tokenizer, text, merge, (int32_t)i - 1, (int32_t)i);
    while (status == 0 && merger->heap_count > 0) {
        struct bigram best = pop(merger);
        struct symbol *left = &symbols[best.left], *right = &symbols[best.right];
        /* Symbols only grow until they are swallowed, so a changed pair has another length. */
        if (left->length == 0 || right->length == 0 || left->length + right->length != best.length)
            continue;
        left->length = best.length;
        left->number = best.number;
        left->next = right->next;
        right->length = 0;
        if (left->next >= 0)
            symbols[left->next].previous = best.left;
        status = try_pair(merger, tokenizer, text, merge, left->previous, best.left);
        if (status == 0)
            status = try_pair(merger, tokenizer, text, merge, best.left, left->next);
    }
    return status;
}

void merger_deinit(struct merger *merger)
{
    mem_free(merger->symbols);
    mem_free(merger->heap);
    *merger = (struct merger){0};
}
