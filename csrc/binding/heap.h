/* SPDX-License-Identifier: MIT
 *
 * heap.h - malloc's settings while a model runs. They belong to the process, so they are no part of the core.
 */
#ifndef HALOTILE_HEAP_H
#define HALOTILE_HEAP_H

#include <stdbool.h>

/* glibc maps every block above a threshold (at most 32 MiB) anew and unmaps it when it is freed: a model that makes one
 * large activation after the other spends its time in page faults. ht_heap_keep lets malloc serve such blocks from the
 * heap, and hand nothing back: the process then stays at its high-water mark. Threads other than the first have heaps
 * of 64 MiB each: larger blocks are mapped there as ever.
 *
 * All change the whole process and count nothing: the caller sees to it that keep and release alternate, from one
 * thread at a time. Other threads may allocate meanwhile.
 *
 * ht_heap_keep: returns whether it was done; false, with nothing changed, where the C library is not glibc.
 * ht_heap_pause: what is allocated from now on and has 128 KiB or more is mapped, until ht_heap_keep: for what outlives
 * windows. In the heap it would keep their blocks on both sides of it from becoming one.
 * ht_heap_release: sets the thresholds at which glibc's own adaptation would end (it cannot be turned on again), and
 * gives free memory of all threads back to the system. */
bool ht_heap_keep(void);
void ht_heap_pause(void);
void ht_heap_release(void);

#endif
