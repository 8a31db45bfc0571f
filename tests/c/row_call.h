/* SPDX-License-Identifier: MIT
 *
 * row_call.h - one call of a row kernel, and guarded memory for its rows.
 */
#ifndef ROW_CALL_H
#define ROW_CALL_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rows.h"

enum kind { LOAD, LOAD3, READ, READ3, STORE, STORE3, SCALE, ACCUMULATE, RESOLVE };

static const char *const kind_names[] = {"load",   "load3", "read",       "read3",  "store",
                                         "store3", "scale", "accumulate", "resolve"};
static const char *const dtype_names[] = {"u8", "u16", "f16", "bf16", "f32", "f64"};
static const int64_t dtype_sizes[] = {1, 2, 2, 2, 4, 8};
static const char *const level_names[] = {"scalar", "avx2", "avx512", "neon"};

/* One call of a kernel. All but scale look at dtype, all but conversions at values and the flags. */
struct call {
    enum kind kind;
    enum ht_dtype dtype; /* of the destination of stores, of the source of all others */
    enum ht_dtype to;    /* read: of the destination */
    struct ht_values values;
    bool divide, in_place; /* resolve: with nx; dst is src */
    int64_t n;
};

/* ---- memory ------------------------------------------------------------------------------------------------------ */

#define ROOM ((int64_t)96 << 20) /* bytes between two pages that fault; committed as they are touched */

static unsigned char *got[3], *want[3], *in[3];

static unsigned char *guarded(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *base = mmap(NULL, ROOM + 2 * page, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED || mprotect(base, page, PROT_NONE) || mprotect(base + page + ROOM, page, PROT_NONE)) {
        perror("guard pages");
        exit(2);
    }
    return base + page;
}

static unsigned char *place(unsigned char *base, int64_t bytes, bool at_end)
{
    return at_end ? base + ROOM - bytes : base;
}

static bool is_triple(enum kind kind) { return kind == LOAD3 || kind == READ3 || kind == STORE3; }
static bool is_store(enum kind kind) { return kind == STORE || kind == STORE3; }
static bool is_read(enum kind kind) { return kind == READ || kind == READ3; }
static int in_rows(const struct call *c) { return c->kind == STORE3 ? 3 : c->kind == SCALE ? 0 : 1; }
static int out_rows(const struct call *c) { return c->kind == LOAD3 || c->kind == READ3 ? 3 : 1; }

/* Of input k: of the row that is converted, or one of floats beside it. */
static int64_t in_bytes(const struct call *c, int k)
{
    if (is_store(c->kind) || k > 0)
        return c->n * 4;
    return c->n * dtype_sizes[c->dtype] * (is_triple(c->kind) ? 3 : 1);
}

static int64_t out_bytes(const struct call *c)
{
    if (is_store(c->kind))
        return c->n * dtype_sizes[c->dtype] * (is_triple(c->kind) ? 3 : 1);
    return c->n * (is_read(c->kind) ? dtype_sizes[c->to] : 4);
}

/* ---- the call ---------------------------------------------------------------------------------------------------- */

static bool run(const struct ht_rows *rows, const struct call *c, unsigned char *o[3], unsigned char *s[3])
{
    float *f0 = (float *)(void *)o[0];
    const float *s0 = (const float *)(const void *)s[0], *s1 = (const float *)(const void *)s[1];
    const struct ht_values *v = &c->values;

    switch (c->kind) {
    case LOAD: rows->load[c->dtype](f0, s0, c->n); return false;
    case LOAD3: rows->load3[c->dtype](f0, (void *)o[1], (void *)o[2], s0, c->n); return false;
    case READ: rows->read[c->dtype][c->to](f0, s0, c->n, v); return false;
    case READ3: rows->read3[c->dtype][c->to](f0, o[1], o[2], s0, c->n, v); return false;
    case STORE: rows->store[c->dtype](f0, s0, c->n); return false;
    case STORE3: rows->store3[c->dtype](f0, s0, s1, (void *)s[2], c->n); return false;
    case SCALE: rows->scale(f0, c->n, v->peak, v->gain, v->offset); return false;
    case ACCUMULATE: return rows->accumulate[c->dtype](f0, s0, 0.7f, s1, c->n);
    case RESOLVE: return rows->resolve[c->dtype](f0, c->in_place ? f0 : s0, 0.7f, c->divide ? s1 : NULL, c->n, v);
    }
    return false;
}

#endif
