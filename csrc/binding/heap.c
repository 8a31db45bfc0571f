/* SPDX-License-Identifier: MIT */
#include "heap.h"

#include <stdlib.h> /* says whether this is glibc */

#if defined(__GLIBC__)
#include <malloc.h>

/* What glibc's adaptation tops out at, and how many mappings it allows by itself: malloc/malloc.c. */
#define MAPS_FROM (32 << 20)
#define TRIMS_FROM (2 * MAPS_FROM)
#define MAPPINGS 65536
#define LASTS_FROM (128 << 10) /* what is allocated while the heap is not kept, and outlives the run's windows */

bool ht_heap_keep(void)
{
    /* No mappings: a threshold would do, but is refused above 32 MiB before glibc 2.35. -1: nothing is trimmed. */
    if (mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, -1))
        return true;
    ht_heap_release();
    return false;
}

static void map_from(int threshold)
{
    mallopt(M_MMAP_MAX, MAPPINGS);
    mallopt(M_MMAP_THRESHOLD, threshold);
}

void ht_heap_pause(void)
{
    map_from(LASTS_FROM);
}

void ht_heap_release(void)
{
    map_from(MAPS_FROM);
    mallopt(M_TRIM_THRESHOLD, TRIMS_FROM);
    malloc_trim(0);
}
#else
bool ht_heap_keep(void) { return false; }

void ht_heap_pause(void) {}

void ht_heap_release(void) {}
#endif
