/* Faults of the disk under SQLite: a VFS around the default one whose nth operation fails. */
#ifndef LLMS_TESTS_SQLITE_FAULTS_H
#define LLMS_TESTS_SQLITE_FAULTS_H

#include <stdbool.h>

enum {
    SQLITE_FAULT_OPEN = 1,
    SQLITE_FAULT_WRITE = 2, /* leaves half of its bytes, as a full disk or a lost power may */
    SQLITE_FAULT_SYNC = 4,
    SQLITE_FAULT_READ = 8
};

/* Makes the faulty VFS the default. Call it once, before any database is opened. 0 or -1. */
int sqlite_faults_install(void);

/* Lets the nth of the operations in mask from now on fail, and with `persistent` all after it too; a write
 * fails with `code` (SQLITE_FULL, SQLITE_IOERR_WRITE). nth 0 turns it off. */
void sqlite_faults_set(unsigned mask, long nth, bool persistent, int code);
long sqlite_faults_hits(void); /* since */

/* Keeps in `directory` what of each file would survive a loss of power: its content when it was last synced.
 * Files that are there already count as synced. NULL turns it off. */
void sqlite_faults_shadow(const char *directory);

#endif
