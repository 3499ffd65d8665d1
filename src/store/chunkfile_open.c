/* What a chunk store finds at its start: the salt, whole segments, leftovers, and files of what is gone.
 *
 * Only names that the store itself gives are ever removed: NUMBER.kv and NUMBER.kv.tmp in its directories,
 * and directories that are empty then. */
#include <errno.h>
#include <string.h>

#include <sodium.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/parse.h"
#include "os/file.h"
#include "store/chunkfile_internal.h"

enum { FIRST_READ = 64 * 1024 }; /* holds most headers */

struct loading {
    struct chunk_store *store;
    bool (*known)(void *argument, const char *context);
    void *argument;
    void *buffer; /* FIRST_READ bytes, aligned */
    const char *context;
    bool keep; /* the context's segments */
    bool new_salt;
    unsigned stale, damaged;
};

/* NUMBER.kv or NUMBER.kv.tmp, as the store writes it. */
static bool parse_name(const char *name, uint64_t *number, bool *temporary)
{
    char digits[24];
    size_t length = strspn(name, "0123456789");
    if (length == 0 || length >= sizeof digits || name[0] == '0')
        return false;
    memcpy(digits, name, length);
    digits[length] = 0;
    *temporary = strcmp(name + length, SEGMENT_TEMPORARY_SUFFIX) == 0;
    return (*temporary || strcmp(name + length, SEGMENT_SUFFIX) == 0) &&
           parse_u64(digits, 1, UINT64_MAX - 1, number) == 0;
}

/* Reads and checks the header of an open file. */
static int read_table(struct loading *loading, int descriptor, struct segment_table **table)
{
    uint64_t file_bytes;
    void *header = loading->buffer;
    int code = os_descriptor_bytes(descriptor, &file_bytes);
    if (code < 0)
        return code;
    if (file_bytes < 2 * SEGMENT_ALIGN || file_bytes % SEGMENT_ALIGN)
        return -EBADMSG;
    size_t bytes = file_bytes < FIRST_READ ? (size_t)file_bytes : FIRST_READ;
    code = os_pread(descriptor, 0, header, bytes);
    if (code < 0)
        return code;
    uint64_t header_bytes = segment_header_bytes(header, file_bytes);
    if (header_bytes > bytes) {
        bytes = (size_t)header_bytes;
        header = mem_aligned(SEGMENT_ALIGN, bytes);
        if (!header)
            return -ENOMEM;
        code = os_pread(descriptor, 0, header, bytes);
    }
    if (code == 0)
        code = segment_parse(header, bytes, file_bytes, &loading->store->geometry,
                             loading->store->fingerprint, table);
    if (header != loading->buffer)
        mem_free(header);
    return code;
}

static int load_segment(struct loading *loading, const char *path, uint64_t number)
{
    struct segment_table *table = NULL;
    struct segment *known = chunk_store_by_number(loading->store, number);
    if (known) /* another context has it too */
        return segment_hold(known, loading->context);
    int descriptor = os_open_direct(path);
    if (descriptor == -ENOMEM)
        return descriptor;
    if (descriptor < 0) { /* it may be there next time */
        log_warning("cannot open the chunk file %s: %s", path, strerror(-descriptor));
        return 0;
    }
    int code = read_table(loading, descriptor, &table);
    os_close(descriptor);
    if (code == -ENOMEM)
        return code;
    if (code < 0) {
        if (code == -ESTALE)
            loading->stale++;
        else
            log_warning("removing the damaged chunk file %s: %s", path, strerror(-code));
        os_remove(path);
        return 0;
    }
    struct segment *segment = segment_create(loading->context, number, table);
    if (!segment) {
        mem_free(table);
        return -ENOMEM;
    }
    segment->references = 0;
    chunk_store_publish(loading->store, segment);
    return 0;
}

static int file_found(void *argument, const char *name)
{
    struct loading *loading = argument;
    struct chunk_store *store = loading->store;
    char path[PATH_MAX];
    uint64_t number;
    bool temporary;
    if (!parse_name(name, &number, &temporary))
        return 0;
    int code = chunk_store_segment_path(store, loading->context, number,
                                        temporary ? SEGMENT_TEMPORARY_SUFFIX : SEGMENT_SUFFIX, path);
    if (code < 0)
        return code;
    if (store->next_number <= number)
        store->next_number = number + 1;
    if (!temporary && loading->keep)
        return load_segment(loading, path, number);
    os_remove(path);
    return 0;
}

static int context_found(void *argument, const char *name)
{
    struct loading *loading = argument;
    char path[PATH_MAX];
    int code = chunk_store_context_path(loading->store, name, path);
    if (code < 0)
        return code;
    if (strncmp(name, "salt", 4) == 0) {
        if (strncmp(name, "salt.tmp", 8) == 0) /* what os_write_file leaves when it is interrupted */
            os_remove(path);
        return 0;
    }
    loading->context = name;
    loading->keep = !loading->new_salt && (!loading->known || loading->known(loading->argument, name));
    code = os_list(path, file_found, loading);
    if (code == -ENOMEM)
        return code;
    if (code < 0 && code != -ENOTDIR)
        log_warning("cannot read the chunk directory %s: %s", path, strerror(-code));
    if (code == 0)
        os_remove_directory(path); /* an empty one only */
    return 0;
}

/* Reads the salt, or makes a new one, with which no segment written before can be found. */
static int load_salt(struct loading *loading)
{
    struct chunk_store *store = loading->store;
    char path[PATH_MAX], *data = NULL;
    size_t bytes = 0;
    int code = chunk_store_context_path(store, "salt", path);
    if (code < 0)
        return code;
    code = os_read_file(path, SALT_BYTES, &data, &bytes);
    if (code == 0 && bytes == SALT_BYTES) {
        memcpy(store->salt, data, SALT_BYTES);
        sodium_memzero(data, SALT_BYTES);
        mem_free(data);
        return 0;
    }
    mem_free(data);
    if (code < 0 && code != -ENOENT && code != -EFBIG)
        return code;
    if (code != -ENOENT)
        log_warning("%s is damaged: the chunk files are of no use and are removed", path);
    loading->new_salt = true;
    randombytes_buf(store->salt, SALT_BYTES);
    return os_write_file(path, store->salt, SALT_BYTES, 0600);
}

int chunk_store_load(struct chunk_store *store, bool (*known)(void *argument, const char *context),
                     void *argument, struct error *error)
{
    struct loading loading = {.store = store, .known = known, .argument = argument};
    int code = load_salt(&loading);
    if (code < 0)
        return error_set(error, code, "cannot use %s/salt: %s", store->directory, strerror(-code));
    loading.buffer = mem_aligned(SEGMENT_ALIGN, FIRST_READ);
    if (!loading.buffer)
        return error_set(error, -ENOMEM, "opening the chunk store: out of memory");
    code = os_list(store->directory, context_found, &loading);
    mem_free(loading.buffer);
    if (code < 0)
        return error_set(error, code, "cannot read the chunk directory %s: %s", store->directory,
                         strerror(-code));
    if (loading.stale)
        log_info("removed %u chunk files of another model", loading.stale);
    return 0;
}
