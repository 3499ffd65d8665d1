/* Chunk files: KV on flash. A cache: whatever is missing, torn or corrupt costs time, never an answer
 * (invariant 6).
 *
 * A segment is one file, written once, published by rename and never changed: DIR/<context id>/<number>.kv
 * holds the chunks that one swap-out wrote, laid out layer after layer so that a layer's slices of
 * neighbouring chunks are one read (docs/FORMATS.md, Chunk files, gives the bytes): header (magic, version,
 * model fingerprint, geometry, chunk count, and for each chunk: key, level, tokens, received, rows, and a
 * 64-bit checksum for each layer's slice; a checksum over the header), padded to 4096 for each layer: the
 * slices of all chunks in order, each kv_layer_bytes(level), the layer padded to 4096
 *
 * A chunk's key is a 128-bit keyed hash of its owner and of all tokens up to its end, salted per daemon
 * (libsodium), so that only contexts of one owner with the same beginning share. A segment belongs to the
 * context that wrote it and to those that segment_link gave it to, each of which has a hard link to the file
 * in its own directory: it is alive as long as one of them has it, over restarts too. Segments are counted
 * references; the file goes when the last goes and the segment was killed. Thread rules: one thread (the
 * worker) owns the store; segment_write may run on another thread, one at a time, and then touches nothing
 * that the worker does without the store's mutex. */
#ifndef LLMS_STORE_CHUNKFILE_H
#define LLMS_STORE_CHUNKFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct chunk_store;
struct segment;

struct chunk_key {
    uint8_t bytes[16];
};

/* The levels that chunks can be stored at: 16, 8, 4, 3, 2, and 64 more for the paper's 4 and 2. */
enum { CHUNK_LEVELS = 7 };
extern const uint8_t chunk_levels[CHUNK_LEVELS];

struct chunk_geometry { /* what the store needs to know of kv/geometry: bytes of one chunk's layer by level */
    uint32_t layers;
    uint32_t layer_bytes[CHUNK_LEVELS]; /* of each of chunk_levels */
};

struct segment_chunk {
    struct chunk_key key;
    uint8_t level;           /* one of chunk_levels */
    uint8_t tokens;          /* 1..16 that are filled */
    uint64_t received, rows; /* what its density is made of (kv/chunk.h) */
    const void *data;        /* writing: layers x layer_bytes; reading: NULL */
};

/* Opens DIR (created, 0700): removes leftovers of unfinished writes, and directories of contexts for which
 * `known` says false; reads and checks the headers of the rest. A bad file is removed with a line in the log.
 */
int chunk_store_open(const char *directory, uint64_t model_fingerprint, const struct chunk_geometry *geometry,
                     bool (*known)(void *argument, const char *context), void *argument,
                     struct chunk_store **out, struct error *error);
void chunk_store_close(struct chunk_store *store); /* NULL is fine; segments still referred to go too */

void chunk_key_start(const struct chunk_store *store, const char *owner, struct chunk_key *state);
/* Continues a key over the next tokens: state after chunk i is chunk i's key. */
void chunk_key_next(const struct chunk_store *store, struct chunk_key *state, const int32_t *tokens,
                    size_t count);

/* Finds a chunk by key among published segments, in the newest that has it; takes a reference on *segment. 0
 * or -ENOENT. */
int chunk_store_find(struct chunk_store *store, const struct chunk_key *key, struct segment **segment,
                     uint32_t *index);

/* Writes and publishes a segment for `context`; its chunks can be found by key from then on. Returns with one
 * reference for the caller. On failure nothing is left behind: -ENOSPC, -EIO, -ENOMEM, ... */
int segment_write(struct chunk_store *store, const char *context, const struct segment_chunk *chunks,
                  size_t count, struct segment **out, struct error *error);

const struct segment_chunk *segment_chunk(const struct segment *segment, uint32_t index); /* data is NULL */
uint32_t segment_chunk_count(const struct segment *segment);
uint64_t segment_bytes(const struct segment *segment); /* on flash */
struct segment *segment_ref(struct segment *segment);
void segment_unref(struct chunk_store *store, struct segment *segment);
/* Its chunks are not found by key any more, and the file is removed once nobody refers to it. */
void segment_kill(struct chunk_store *store, struct segment *segment);
/* The segment is that context's too from now on. 0, also where it was already; -ESTALE: it was killed;
 * -ENOMEM, or what the file system answers (some know no links). */
int segment_link(struct chunk_store *store, struct segment *segment, const char *context);
bool segment_alive(const struct segment *segment); /* the worker's: not killed */
/* That chunk of the segment is not found by key any more, as long as the store is open. */
void segment_withdraw(struct chunk_store *store, struct segment *segment, uint32_t index);
/* The context gives up all its segments: segment_kill for those no other context has. */
void chunk_store_delete_context(struct chunk_store *store, const char *context);
/* The same for those that nobody refers to: after a context's chunks were looked up or written, the rest of
 * its files has been replaced. */
void chunk_store_sweep(struct chunk_store *store, const char *context);

/* Where layer `layer` of chunks first..first+count-1 lies: the aligned range to read (offset and bytes
 * multiples of 4096) and, for chunk i of them, its slice at slice_at[i] bytes into that range. descriptor:
 * open for direct reading where the file system allows it; it stays open until the last segment_unref of a
 * killed segment or chunk_store_trim. -EINVAL: there are no such chunks; or what opening the file answers. */
struct segment_range {
    int descriptor;
    uint64_t offset;
    size_t bytes;
};
int segment_layer_range(struct segment *segment, uint32_t layer, uint32_t first, uint32_t count,
                        struct segment_range *range, size_t *slice_at);
/* Whether a slice as read matches its checksum. */
bool segment_slice_valid(const struct segment *segment, uint32_t layer, uint32_t index, const void *slice);

/* Closes descriptors that have not been asked for lately where many are open. No read may be in flight. */
void chunk_store_trim(struct chunk_store *store);
/* Chunks in the context's live segments, those of others in them too. Any thread. */
uint64_t chunk_store_count(struct chunk_store *store, const char *context);
uint64_t chunk_store_bytes(const struct chunk_store *store); /* of all live segments on flash */

#endif
