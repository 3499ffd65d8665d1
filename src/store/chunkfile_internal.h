/* The chunk store's parts: chunkfile.c (segments and their references), chunkfile_open.c (what is found at
 * start), segment_write.c (new files), chunk_index.c (keys). */
#ifndef LLMS_STORE_CHUNKFILE_INTERNAL_H
#define LLMS_STORE_CHUNKFILE_INTERNAL_H

#include <limits.h>
#include <pthread.h>

#include "store/segment.h"

enum { SALT_BYTES = 32 };

/* Keys to entries of live segments. Entries are chained, so that only a larger table needs memory, and is
 * done without where there is none. */
struct chunk_index {
    struct segment_entry **buckets;
    size_t bucket_count; /* a power of two */
    size_t count;
};

int chunk_index_init(struct chunk_index *index); /* -ENOMEM */
void chunk_index_deinit(struct chunk_index *index);
void chunk_index_add(struct chunk_index *index, struct segment *segment);
void chunk_index_remove(struct chunk_index *index, struct segment *segment);
void chunk_index_remove_entry(struct chunk_index *index, struct segment_entry *entry); /* it is in it */
/* The entry with that key in the segment of the highest number; NULL: none. */
struct segment_entry *chunk_index_find(const struct chunk_index *index, const struct chunk_key *key);

/* A context whose segment it is: it has the file, or a link to it, in its directory. */
struct segment_holder {
    struct segment_holder *next;
    char context[]; /* the directory's name */
};

struct segment {
    struct segment *next, *previous; /* of the store's */
    struct chunk_store *store;
    struct segment_table *table;
    uint64_t number; /* higher: written later */
    uint32_t references;
    bool dead;                      /* not in the index; its file goes with its last reference */
    int descriptor;                 /* -1: not open. The worker's alone */
    uint32_t round;                 /* of chunk_store_trim, when the descriptor was last asked for */
    struct segment_holder *holders; /* one at least */
};

struct chunk_store {
    char *directory;
    struct chunk_geometry geometry;
    uint64_t fingerprint;
    uint8_t salt[SALT_BYTES];
    uint32_t round;
    uint32_t open_descriptors;
    pthread_mutex_t mutex; /* around what follows, and making and removing of contexts' directories */
    struct chunk_index index;
    struct segment *segments;
    uint64_t next_number;
    uint64_t bytes; /* of all segments' files */
};

/* Takes the table on success. One reference. NULL: out of memory. */
struct segment *segment_create(const char *context, uint64_t number, struct segment_table *table);
void segment_destroy(struct segment *segment);                                /* the struct; not the file */
void chunk_store_publish(struct chunk_store *store, struct segment *segment); /* mutex held or not needed */
struct segment *chunk_store_by_number(const struct chunk_store *store,
                                      uint64_t number);         /* likewise; or NULL */
int segment_hold(struct segment *segment, const char *context); /* one more holder: 0 or -ENOMEM; likewise */

/* Paths into PATH_MAX characters: 0 or -ENAMETOOLONG. */
int chunk_store_context_path(const struct chunk_store *store, const char *context, char *path);
int chunk_store_segment_path(const struct chunk_store *store, const char *context, uint64_t number,
                             const char *suffix, char *path);
#define SEGMENT_SUFFIX ".kv"
#define SEGMENT_TEMPORARY_SUFFIX ".kv.tmp"

/* chunkfile_open.c: the salt and the segments of a store whose directory is there. */
int chunk_store_load(struct chunk_store *store, bool (*known)(void *argument, const char *context),
                     void *argument, struct error *error);

#endif
