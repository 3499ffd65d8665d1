#include "os/fault.h"

#include <errno.h>
#include <stdatomic.h>

static atomic_uint fault_mask;
static atomic_long fault_nth;
static atomic_long fault_calls;
static atomic_long fault_hit_count;
static atomic_bool fault_persistent;
static atomic_int fault_code;
static atomic_bool short_reads;

void os_fault_set(unsigned mask, long nth, bool persistent, int code)
{
    atomic_store(&fault_mask, 0);
    atomic_store(&fault_nth, nth);
    atomic_store(&fault_calls, 0);
    atomic_store(&fault_hit_count, 0);
    atomic_store(&fault_persistent, persistent);
    atomic_store(&fault_code, code);
    atomic_store(&fault_mask, nth > 0 ? mask : 0);
}

long os_fault_hits(void)
{
    return atomic_load(&fault_hit_count);
}

void os_fault_short_reads(bool on)
{
    atomic_store(&short_reads, on);
}

bool os_fault(enum os_fault kind)
{
    if (!(atomic_load_explicit(&fault_mask, memory_order_relaxed) & kind))
        return false;
    long call = atomic_fetch_add(&fault_calls, 1) + 1;
    long nth = atomic_load(&fault_nth);
    if (call != nth && !(call > nth && atomic_load(&fault_persistent)))
        return false;
    atomic_fetch_add(&fault_hit_count, 1);
    errno = atomic_load(&fault_code);
    return true;
}

size_t os_fault_read_size(size_t bytes)
{
    if (!atomic_load_explicit(&short_reads, memory_order_relaxed))
        return bytes;
    if (bytes > 4096) {
        size_t half = bytes / 2 & ~(size_t)4095;
        return half ? half : 4096;
    }
    return bytes % 512 && bytes > 1 ? bytes / 2 : bytes;
}
