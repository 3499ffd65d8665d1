/* The chunk store: segments, who refers to them, and when their files go (store/chunkfile.h is the contract).
 *
 * Every segment is in the store's list from its publication until its file is removed; the live ones are in
 * the index too. One mutex guards both. Descriptors are opened when a range is first asked for. */
#include "store/chunkfile.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <sodium.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "os/file.h"
#include "store/chunkfile_internal.h"

enum { KEPT_DESCRIPTORS = 256 };

/* ---- paths ---- */

int chunk_store_context_path(const struct chunk_store *store, const char *context, char *path)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", store->directory, context);
    return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

int chunk_store_segment_path(const struct chunk_store *store, const char *context, uint64_t number,
                             const char *suffix, char *path)
{
    int n = snprintf(path, PATH_MAX, "%s/%s/%" PRIu64 "%s", store->directory, context, number, suffix);
    return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

/* ---- opening ---- */

int chunk_store_open(const char *directory, uint64_t model_fingerprint, const struct chunk_geometry *geometry,
                     bool (*known)(void *argument, const char *context), void *argument,
                     struct chunk_store **out, struct error *error)
{
    if (!chunk_geometry_valid(geometry))
        return error_set(error, -EINVAL, "the chunk store cannot hold chunks of this model's size");
    if (sodium_init() < 0)
        return error_set(error, -ENOSYS, "libsodium cannot be used on this machine");
    struct chunk_store *store = mem_calloc(1, sizeof *store);
    if (!store)
        return error_set(error, -ENOMEM, "opening the chunk store: out of memory");
    store->geometry = *geometry;
    store->fingerprint = model_fingerprint;
    store->next_number = 1;
    pthread_mutex_init(&store->mutex, NULL);
    int code = chunk_index_init(&store->index);
    store->directory = mem_strdup(directory);
    if (code < 0 || !store->directory) {
        code = error_set(error, -ENOMEM, "opening the chunk store: out of memory");
        goto failed;
    }
    code = os_make_directories(directory, 0700);
    if (code < 0) {
        error_set(error, code, "cannot create the chunk directory %s: %s", directory, strerror(-code));
        goto failed;
    }
    code = chunk_store_load(store, known, argument, error);
    if (code < 0)
        goto failed;
    *out = store;
    return 0;
failed:
    chunk_store_close(store);
    return code;
}

void chunk_store_close(struct chunk_store *store)
{
    if (!store)
        return;
    for (struct segment *next, *segment = store->segments; segment; segment = next) {
        next = segment->next;
        segment_destroy(segment);
    }
    chunk_index_deinit(&store->index);
    pthread_mutex_destroy(&store->mutex);
    sodium_memzero(store->salt, sizeof store->salt);
    mem_free(store->directory);
    mem_free(store);
}

/* Where the context stands among the holders; NULL in there: it is none. */
static struct segment_holder **holder_of(struct segment *segment, const char *context)
{
    struct segment_holder **at = &segment->holders;
    while (*at && strcmp((*at)->context, context) != 0)
        at = &(*at)->next;
    return at;
}

uint64_t chunk_store_count(struct chunk_store *store, const char *context)
{
    uint64_t count = 0;
    pthread_mutex_lock(&store->mutex);
    for (struct segment *segment = store->segments; segment; segment = segment->next)
        if (!segment->dead && *holder_of(segment, context))
            count += segment->table->count;
    pthread_mutex_unlock(&store->mutex);
    return count;
}

uint64_t chunk_store_bytes(const struct chunk_store *store)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)&store->mutex;
    pthread_mutex_lock(mutex);
    uint64_t bytes = store->bytes;
    pthread_mutex_unlock(mutex);
    return bytes;
}

/* ---- keys ---- */

void chunk_key_start(const struct chunk_store *store, const char *owner, struct chunk_key *state)
{
    crypto_generichash_state hash;
    crypto_generichash_init(&hash, store->salt, sizeof store->salt, sizeof state->bytes);
    crypto_generichash_update(&hash, (const unsigned char *)"owner", sizeof "owner");
    crypto_generichash_update(&hash, (const unsigned char *)&store->fingerprint, sizeof store->fingerprint);
    crypto_generichash_update(&hash, (const unsigned char *)owner, strlen(owner));
    crypto_generichash_final(&hash, state->bytes, sizeof state->bytes);
}

void chunk_key_next(const struct chunk_store *store, struct chunk_key *state, const int32_t *tokens,
                    size_t count)
{
    crypto_generichash_state hash;
    crypto_generichash_init(&hash, store->salt, sizeof store->salt, sizeof state->bytes);
    crypto_generichash_update(&hash, (const unsigned char *)"chunk", sizeof "chunk");
    crypto_generichash_update(&hash, state->bytes, sizeof state->bytes);
    crypto_generichash_update(&hash, (const unsigned char *)tokens, count * sizeof *tokens);
    crypto_generichash_final(&hash, state->bytes, sizeof state->bytes);
}

int chunk_store_find(struct chunk_store *store, const struct chunk_key *key, struct segment **segment,
                     uint32_t *index)
{
    pthread_mutex_lock(&store->mutex);
    struct segment_entry *entry = chunk_index_find(&store->index, key);
    if (entry) {
        *segment = entry->segment;
        *index = (uint32_t)(entry - entry->segment->table->entries);
        entry->segment->references++;
    }
    pthread_mutex_unlock(&store->mutex);
    return entry ? 0 : -ENOENT;
}

/* ---- segments ---- */

struct segment *segment_create(const char *context, uint64_t number, struct segment_table *table)
{
    struct segment *segment = mem_calloc(1, sizeof *segment);
    if (!segment || segment_hold(segment, context) < 0) {
        mem_free(segment);
        return NULL;
    }
    segment->number = number;
    segment->table = table;
    segment->references = 1;
    segment->descriptor = -1;
    return segment;
}

void segment_destroy(struct segment *segment)
{
    if (!segment)
        return;
    os_close(segment->descriptor);
    for (struct segment_holder *next, *holder = segment->holders; holder; holder = next) {
        next = holder->next;
        mem_free(holder);
    }
    mem_free(segment->table);
    mem_free(segment);
}

int segment_hold(struct segment *segment, const char *context)
{
    size_t name = strlen(context) + 1;
    struct segment_holder *holder = mem_alloc(sizeof *holder + name);
    if (!holder)
        return -ENOMEM;
    memcpy(holder->context, context, name);
    holder->next = segment->holders;
    segment->holders = holder;
    return 0;
}

struct segment *chunk_store_by_number(const struct chunk_store *store, uint64_t number)
{
    struct segment *segment = store->segments;
    while (segment && segment->number != number)
        segment = segment->next;
    return segment;
}

void chunk_store_publish(struct chunk_store *store, struct segment *segment)
{
    segment->store = store;
    segment->next = store->segments;
    if (segment->next)
        segment->next->previous = segment;
    store->segments = segment;
    store->bytes += segment->table->file_bytes;
    chunk_index_add(&store->index, segment);
}

/* Removes a holder, its name of the file, and its directory if that was the last there. */
static void let_go(struct chunk_store *store, struct segment *segment, struct segment_holder **at)
{
    struct segment_holder *holder = *at;
    char path[PATH_MAX];
    int code = chunk_store_segment_path(store, holder->context, segment->number, SEGMENT_SUFFIX, path);
    if (code == 0)
        code = os_remove(path);
    if (code < 0 && code != -ENOENT)
        log_warning("cannot remove the chunk file %s: %s", path, strerror(-code));
    if (chunk_store_context_path(store, holder->context, path) == 0)
        os_remove_directory(path); /* not while there are others */
    *at = holder->next;
    mem_free(holder);
}

/* Removes a dead segment nobody refers to, and its file. */
static void discard(struct chunk_store *store, struct segment *segment)
{
    *(segment->previous ? &segment->previous->next : &store->segments) = segment->next;
    if (segment->next)
        segment->next->previous = segment->previous;
    store->bytes -= segment->table->file_bytes;
    store->open_descriptors -= segment->descriptor >= 0;
    while (segment->holders)
        let_go(store, segment, &segment->holders);
    segment_destroy(segment);
}

static void kill_locked(struct chunk_store *store, struct segment *segment)
{
    if (!segment->dead) {
        segment->dead = true;
        chunk_index_remove(&store->index, segment);
    }
    if (segment->references == 0)
        discard(store, segment);
}

void segment_kill(struct chunk_store *store, struct segment *segment)
{
    pthread_mutex_lock(&store->mutex);
    kill_locked(store, segment);
    pthread_mutex_unlock(&store->mutex);
}

static void kill_all(struct chunk_store *store, const char *context, bool referred_too)
{
    pthread_mutex_lock(&store->mutex);
    for (struct segment *next, *segment = store->segments; segment; segment = next) {
        next = segment->next;
        struct segment_holder **at = holder_of(segment, context);
        if (!*at || !(referred_too || segment->references == 0))
            continue;
        if (segment->holders->next)
            let_go(store, segment, at);
        else
            kill_locked(store, segment);
    }
    pthread_mutex_unlock(&store->mutex);
}

int segment_link(struct chunk_store *store, struct segment *segment, const char *context)
{
    char directory[PATH_MAX], path[PATH_MAX], mine[PATH_MAX];
    int code = 0;
    pthread_mutex_lock(&store->mutex);
    if (segment->dead)
        code = -ESTALE;
    if (code < 0 || *holder_of(segment, context))
        goto unlock;
    code = chunk_store_segment_path(store, segment->holders->context, segment->number, SEGMENT_SUFFIX, path);
    if (code == 0)
        code = chunk_store_segment_path(store, context, segment->number, SEGMENT_SUFFIX, mine);
    if (code == 0)
        code = chunk_store_context_path(store, context, directory);
    if (code < 0)
        goto unlock;
    code = os_make_directories(directory, 0700);
    if (code == 0)
        code = os_link(path, mine);
    if (code == 0 && (code = segment_hold(segment, context)) < 0)
        os_remove(mine);
    if (code < 0)
        os_remove_directory(directory);
unlock:
    pthread_mutex_unlock(&store->mutex);
    return code;
}

bool segment_alive(const struct segment *segment)
{
    return !segment->dead;
}

void segment_withdraw(struct chunk_store *store, struct segment *segment, uint32_t index)
{
    struct segment_entry *entry = &segment->table->entries[index];
    pthread_mutex_lock(&store->mutex);
    if (entry->segment)
        chunk_index_remove_entry(&store->index, entry);
    pthread_mutex_unlock(&store->mutex);
}

void chunk_store_delete_context(struct chunk_store *store, const char *context)
{
    kill_all(store, context, true);
}

void chunk_store_sweep(struct chunk_store *store, const char *context)
{
    kill_all(store, context, false);
}

struct segment *segment_ref(struct segment *segment)
{
    pthread_mutex_lock(&segment->store->mutex);
    segment->references++;
    pthread_mutex_unlock(&segment->store->mutex);
    return segment;
}

void segment_unref(struct chunk_store *store, struct segment *segment)
{
    if (!segment)
        return;
    pthread_mutex_lock(&store->mutex);
    if (--segment->references == 0 && segment->dead)
        discard(store, segment);
    pthread_mutex_unlock(&store->mutex);
}

const struct segment_chunk *segment_chunk(const struct segment *segment, uint32_t index)
{
    return &segment->table->entries[index].chunk;
}

uint32_t segment_chunk_count(const struct segment *segment)
{
    return segment->table->count;
}

uint64_t segment_bytes(const struct segment *segment)
{
    return segment->table->file_bytes;
}

/* ---- reading ---- */

static int segment_open(struct segment *segment)
{
    char path[PATH_MAX];
    struct chunk_store *store = segment->store;
    segment->round = store->round;
    if (segment->descriptor >= 0)
        return 0;
    pthread_mutex_lock(&store->mutex);
    int code =
        chunk_store_segment_path(store, segment->holders->context, segment->number, SEGMENT_SUFFIX, path);
    pthread_mutex_unlock(&store->mutex);
    if (code < 0)
        return code;
    int descriptor = os_open_direct(path);
    if (descriptor < 0)
        return descriptor;
    segment->descriptor = descriptor;
    store->open_descriptors++;
    return 0;
}

void chunk_store_trim(struct chunk_store *store)
{
    if (store->open_descriptors > KEPT_DESCRIPTORS) {
        pthread_mutex_lock(&store->mutex);
        for (struct segment *segment = store->segments; segment; segment = segment->next) {
            if (segment->descriptor < 0 ||
                (segment->round == store->round && store->open_descriptors <= KEPT_DESCRIPTORS))
                continue;
            os_close(segment->descriptor);
            segment->descriptor = -1;
            store->open_descriptors--;
        }
        pthread_mutex_unlock(&store->mutex);
    }
    store->round++;
}

int segment_layer_range(struct segment *segment, uint32_t layer, uint32_t first, uint32_t count,
                        struct segment_range *range, size_t *slice_at)
{
    const struct segment_table *table = segment->table;
    if (layer >= table->layers || count == 0 || first >= table->count || count > table->count - first)
        return -EINVAL;
    int code = segment_open(segment);
    if (code < 0)
        return code;
    const struct segment_entry *last = &table->entries[first + count - 1];
    uint64_t start = table->entries[first].slice_at & ~(uint64_t)(SEGMENT_ALIGN - 1);
    uint64_t end = (last->slice_at + last->slice_bytes + SEGMENT_ALIGN - 1) & ~(uint64_t)(SEGMENT_ALIGN - 1);
    range->descriptor = segment->descriptor;
    range->offset = table->header_bytes + layer * table->layer_bytes + start;
    range->bytes = (size_t)(end - start);
    for (uint32_t i = 0; i < count; i++)
        slice_at[i] = (size_t)(table->entries[first + i].slice_at - start);
    return 0;
}

bool segment_slice_valid(const struct segment *segment, uint32_t layer, uint32_t index, const void *slice)
{
    const struct segment_table *table = segment->table;
    return hash_bulk(slice, table->entries[index].slice_bytes, table->seed) ==
           table->checksums[(size_t)index * table->layers + layer];
}
