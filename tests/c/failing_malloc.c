/* SPDX-License-Identifier: MIT
 *
 * Preloaded into a process: some allocations of one thread fail, one after the other. Counts what is held.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static void *(*real_malloc)(size_t), *(*real_calloc)(size_t, size_t), *(*real_realloc)(void *, size_t);
static void (*real_free)(void *);
static atomic_long held;
static _Thread_local long left = -1; /* allocations until one fails; below 0: none does */
static _Thread_local int more; /* how many fail then */
static _Thread_local bool failed;

/* What dlsym itself asks for, before there is a malloc. Never given back. */
static char early[16384];
static size_t early_used;

static void *early_memory(size_t bytes)
{
    size_t at = early_used;
    early_used += (bytes + 15) / 16 * 16;
    return early_used <= sizeof early ? early + at : NULL;
}

static bool is_early(const void *memory) { return (const char *)memory >= early && (const char *)memory < early + sizeof early; }

static void find(void)
{
    static _Thread_local bool finding;
    if (real_free || finding)
        return;
    finding = true;
    real_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    real_calloc = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "calloc");
    real_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
    real_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    finding = false;
}

static bool fails(void)
{
    if (left < 0)
        return false;
    if (left > 0) {
        left--;
        return false;
    }
    if (--more <= 0)
        left = -1;
    failed = true;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t bytes)
{
    find();
    if (!real_malloc)
        return early_memory(bytes);
    void *memory = fails() ? NULL : real_malloc(bytes);
    held += memory != NULL;
    return memory;
}

void *calloc(size_t n, size_t bytes)
{
    find();
    if (!real_calloc)
        return early_memory(n * bytes);
    void *memory = fails() ? NULL : real_calloc(n, bytes);
    held += memory != NULL;
    return memory;
}

void *realloc(void *before, size_t bytes)
{
    find();
    if (is_early(before)) {
        void *memory = malloc(bytes);
        return memory ? memcpy(memory, before, bytes) : NULL;
    }
    void *memory = fails() ? NULL : real_realloc(before, bytes);
    held += memory && !before;
    return memory;
}

void free(void *memory)
{
    if (!memory || is_early(memory))
        return;
    find();
    held--;
    real_free(memory);
}

/* `after` allocations of this thread succeed, then `count` fail. */
void fail_after(long after, int count)
{
    left = after, more = count, failed = false;
}

/* Ends that; whether any has failed. */
int stop_failing(void)
{
    left = -1;
    return failed;
}

long blocks_held(void) { return held; }
