#include "support/sqlite_faults.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sqlite3.h>

static struct {
    _Atomic unsigned mask;
    atomic_long nth, calls, hits;
    atomic_bool persistent;
    atomic_int code; /* what a write or sync answers */
} faults;

static bool faulty(unsigned operation)
{
    if (!(faults.mask & operation) || faults.nth == 0)
        return false;
    long call = ++faults.calls;
    if (call != faults.nth && !(faults.persistent && call > faults.nth))
        return false;
    faults.hits++;
    return true;
}

static const char *shadow; /* directory; NULL: none */

struct shim_file {
    sqlite3_file base;
    const char *name;   /* SQLite's, valid while the file is open */
    sqlite3_file *real; /* behind this struct */
};

static sqlite3_file *real_of(sqlite3_file *file)
{
    return ((struct shim_file *)(void *)file)->real;
}

static int shim_close(sqlite3_file *file)
{
    return real_of(file)->pMethods->xClose(real_of(file));
}

static int shim_read(sqlite3_file *file, void *data, int bytes, sqlite3_int64 offset)
{
    if (faulty(SQLITE_FAULT_READ))
        return SQLITE_IOERR_READ;
    return real_of(file)->pMethods->xRead(real_of(file), data, bytes, offset);
}

static int shim_write(sqlite3_file *file, const void *data, int bytes, sqlite3_int64 offset)
{
    if (faulty(SQLITE_FAULT_WRITE)) {
        real_of(file)->pMethods->xWrite(real_of(file), data, bytes / 2, offset);
        return faults.code;
    }
    return real_of(file)->pMethods->xWrite(real_of(file), data, bytes, offset);
}

static int shim_truncate(sqlite3_file *file, sqlite3_int64 bytes)
{
    if (faulty(SQLITE_FAULT_WRITE))
        return SQLITE_IOERR_TRUNCATE;
    return real_of(file)->pMethods->xTruncate(real_of(file), bytes);
}

static void shadow_path(const char *name, char path[256])
{
    const char *slash = strrchr(name, '/');
    snprintf(path, 256, "%s/%s", shadow, slash ? slash + 1 : name);
}

static int shim_size(sqlite3_file *file, sqlite3_int64 *bytes)
{
    return real_of(file)->pMethods->xFileSize(real_of(file), bytes);
}

/* What is in the file now would be there after a loss of power. */
static int shadow_sync(sqlite3_file *file)
{
    char path[256], block[4096];
    sqlite3_int64 bytes = 0;
    shim_size(file, &bytes);
    shadow_path(((struct shim_file *)(void *)file)->name, path);
    FILE *out = fopen(path, "wb");
    if (!out)
        return SQLITE_IOERR_FSYNC;
    for (sqlite3_int64 at = 0; at < bytes; at += (sqlite3_int64)sizeof block) {
        int n = bytes - at < (sqlite3_int64)sizeof block ? (int)(bytes - at) : (int)sizeof block;
        real_of(file)->pMethods->xRead(real_of(file), block, n, at);
        fwrite(block, 1, (size_t)n, out);
    }
    return fclose(out) == 0 ? SQLITE_OK : SQLITE_IOERR_FSYNC;
}

static int shim_sync(sqlite3_file *file, int flags)
{
    (void)flags;
    if (faulty(SQLITE_FAULT_SYNC))
        return SQLITE_IOERR_FSYNC;
    /* no power is lost while a test runs: the sweeps need not wait for the disk */
    return shadow ? shadow_sync(file) : SQLITE_OK;
}

static int shim_lock(sqlite3_file *file, int level)
{
    return real_of(file)->pMethods->xLock(real_of(file), level);
}

static int shim_unlock(sqlite3_file *file, int level)
{
    return real_of(file)->pMethods->xUnlock(real_of(file), level);
}

static int shim_check_lock(sqlite3_file *file, int *out)
{
    return real_of(file)->pMethods->xCheckReservedLock(real_of(file), out);
}

static int shim_control(sqlite3_file *file, int operation, void *argument)
{
    return real_of(file)->pMethods->xFileControl(real_of(file), operation, argument);
}

static int shim_sector(sqlite3_file *file)
{
    return real_of(file)->pMethods->xSectorSize(real_of(file));
}

static int shim_characteristics(sqlite3_file *file)
{
    return real_of(file)->pMethods->xDeviceCharacteristics(real_of(file));
}

static const sqlite3_io_methods shim_methods = {
    .iVersion = 1,
    .xClose = shim_close,
    .xRead = shim_read,
    .xWrite = shim_write,
    .xTruncate = shim_truncate,
    .xSync = shim_sync,
    .xFileSize = shim_size,
    .xLock = shim_lock,
    .xUnlock = shim_unlock,
    .xCheckReservedLock = shim_check_lock,
    .xFileControl = shim_control,
    .xSectorSize = shim_sector,
    .xDeviceCharacteristics = shim_characteristics,
};

static sqlite3_vfs shim_vfs, *real_vfs;

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags)
{
    (void)vfs;
    struct shim_file *shim = (struct shim_file *)(void *)file;
    file->pMethods = NULL;
    if (faulty(SQLITE_FAULT_OPEN))
        return SQLITE_CANTOPEN;
    shim->name = name;
    shim->real = (sqlite3_file *)(void *)(shim + 1);
    int rc = real_vfs->xOpen(real_vfs, name, shim->real, flags, out_flags);
    if (rc == SQLITE_OK)
        file->pMethods = &shim_methods;
    return rc;
}

static int shim_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
    char path[256];
    (void)vfs;
    if (shadow) {
        shadow_path(name, path);
        unlink(path);
    }
    return real_vfs->xDelete(real_vfs, name, sync);
}

void sqlite_faults_shadow(const char *directory)
{
    shadow = directory;
}

int sqlite_faults_install(void)
{
    if (sqlite3_initialize() != SQLITE_OK)
        return -1;
    real_vfs = sqlite3_vfs_find(NULL);
    shim_vfs = *real_vfs;
    shim_vfs.pNext = NULL;
    shim_vfs.zName = "faulty";
    shim_vfs.szOsFile = (int)sizeof(struct shim_file) + real_vfs->szOsFile;
    shim_vfs.xOpen = shim_open;
    shim_vfs.xDelete = shim_delete;
    return sqlite3_vfs_register(&shim_vfs, 1) == SQLITE_OK ? 0 : -1;
}

void sqlite_faults_set(unsigned mask, long nth, bool persistent, int code)
{
    faults.nth = 0;
    faults.mask = mask;
    faults.calls = 0;
    faults.hits = 0;
    faults.persistent = persistent;
    faults.code = code;
    faults.nth = nth;
}

long sqlite_faults_hits(void)
{
    return faults.hits;
}
