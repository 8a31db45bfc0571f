/* SPDX-License-Identifier: MIT
 *
 * row_bench.h - check_rows --bench: GB/s of every kernel, bytes read and written, beside memcpy: of rows that stay in
 * the first-level cache, and of a stream through memory. Then the steps of a read and of a finish as the verbs take
 * them, piece by piece, between a large u8 image and a planar f32 window that is used again and again.
 */
#ifndef ROW_BENCH_H
#define ROW_BENCH_H

#include <string.h>
#include <time.h>

#include "row_call.h"

#define CACHED ((int64_t)20 << 10)
#define STREAM ((int64_t)64 << 20)
#define WINDOW ((int64_t)1 << 18) /* pixels: 3 MiB of f32 in three planes */

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One measured pass: a call or a chain of calls, over `bytes` bytes; a copy where rows is NULL. */
struct bench {
    const struct ht_rows *rows;
    struct call call;
    void (*pass)(const struct bench *bench);
    int64_t bytes;
    double best; /* seconds */
};

static void pass_call(const struct bench *b)
{
    if (!b->rows || b->call.kind == SCALE) /* scaled again and again, values would underflow */
        memcpy(got[0], in[0], (size_t)(b->rows ? b->call.n * 4 : b->bytes / 2));
    if (b->rows)
        run(b->rows, &b->call, got, in);
}

static int64_t in_window(int64_t pixel) { return pixel % WINDOW; }

static void pass_read(const struct bench *b)
{
    static const struct ht_values values = {255, 1, 0, false};
    float *window = (void *)got[0];

    for (int64_t i = 0; i + HT_PIECE <= b->bytes / 15; i += HT_PIECE) {
        float *row = window + in_window(i);
        b->rows->read3[HT_U8][HT_F32](row, row + WINDOW, row + 2 * WINDOW, in[0] + 3 * i, HT_PIECE, &values);
    }
}

static void pass_finish(const struct bench *b)
{
    static const struct ht_values values = {255, 1, 0, true};
    static float scratch[3][HT_PIECE];
    const float *window = (void *)in[0];

    for (int64_t i = 0; i + HT_PIECE <= b->bytes / 15; i += HT_PIECE) {
        for (int k = 0; k < 3; k++)
            b->rows->resolve[HT_F32](scratch[k], window + in_window(i) + k * WINDOW, 1, NULL, HT_PIECE, &values);
        b->rows->store3[HT_U8](got[0] + 3 * i, scratch[0], scratch[1], scratch[2], HT_PIECE);
    }
}

static void pass_copy_in(const struct bench *b)
{
    for (int64_t i = 0; i + HT_PIECE <= b->bytes / 24; i += HT_PIECE)
        memcpy(got[0] + 12 * in_window(i), in[0] + 12 * i, 12 * HT_PIECE);
}

static void pass_copy_out(const struct bench *b)
{
    for (int64_t i = 0; i + HT_PIECE <= b->bytes / 24; i += HT_PIECE)
        memcpy(got[0] + 12 * i, in[0] + 12 * in_window(i), 12 * HT_PIECE);
}

static void measure(struct bench *b)
{
    int64_t passes = 1 + ((int64_t)2 << 20) / b->bytes;
    double start = now();

    for (int64_t i = 0; i < passes; i++)
        b->pass(b);
    double each = (now() - start) / (double)passes;
    if (b->best == 0 || each < b->best)
        b->best = each;
}

/* Takes turns, so that both meet the same disturbances, and keeps the best of each. */
static void compare(struct bench *b, struct bench *copy, const char *unit)
{
    for (int k = 0; k < 40; k++) {
        measure(b);
        measure(copy);
    }
    double speed = 1e-9 * (double)b->bytes / b->best, copy_speed = 1e-9 * (double)copy->bytes / copy->best;
    printf("  %s %6.1f GB/s, %.2f of memcpy's %.1f", unit, speed, speed / copy_speed, copy_speed);
}

static int64_t bytes_per_element(const struct call *c)
{
    struct call one = *c;

    one.n = 1;
    switch (c->kind) {
    case SCALE: return 16; /* a copy, then the kernel */
    case ACCUMULATE: return 12 + in_bytes(&one, 0);
    case RESOLVE: return (c->divide ? 8 : 4) + in_bytes(&one, 0);
    default: return in_rows(c) * in_bytes(&one, 0) + out_rows(c) * out_bytes(&one);
    }
}

static void bench_call(const struct ht_rows *rows, const struct call *c, const char *detail)
{
    static const int64_t sizes[] = {CACHED, STREAM};

    printf("%-7s %-10s %-11s", rows->name, kind_names[c->kind], detail);
    for (int i = 0; i < 2; i++) {
        struct bench b = {rows, *c, pass_call, sizes[i], 0}, copy = {NULL, *c, pass_call, sizes[i], 0};
        b.call.n = sizes[i] / bytes_per_element(c);
        compare(&b, &copy, i ? "stream" : "cached");
    }
    printf("\n");
}

/* Both read or write an image of STREAM bytes. */
static void bench_chain(const struct ht_rows *rows, const char *name, void (*pass)(const struct bench *),
                        void (*pass_copy)(const struct bench *))
{
    struct bench b = {.rows = rows, .pass = pass, .bytes = STREAM / 3 * 15};
    struct bench copy = {.pass = pass_copy, .bytes = 2 * STREAM};

    printf("%-7s %-39s", rows->name, name);
    compare(&b, &copy, "");
    printf("\n");
}

static void bench_reads(const struct ht_rows *rows)
{
    for (int k = 0; k < 12; k++) {
        struct call c = {.kind = k % 2 ? READ3 : READ, .dtype = k / 6 ? HT_U16 : HT_U8, .values = {255, 1, 0, false}};
        char detail[16];
        c.to = (enum ht_dtype)(HT_F16 + k % 6 / 2);
        snprintf(detail, sizeof detail, "%s %s", dtype_names[c.dtype], dtype_names[c.to]);
        bench_call(rows, &c, detail);
    }
}

static void bench_level(enum ht_cpu level)
{
    struct ht_rows rows;

    ht_rows_fill(&rows, level);
    for (int k = 0; k < 3; k++) { /* ordinary values: 0x3f3f3f3f is 0.747 */
        memset(in[k], 0x3f, (size_t)STREAM);
        memset(got[k], 0x3f, (size_t)STREAM);
    }
    static const enum kind conversions[] = {LOAD, LOAD3, STORE, STORE3};
    for (int k = 0; k < 4; k++)
        for (int dtype = 0; dtype < HT_DTYPE_COUNT; dtype++)
            bench_call(&rows, &(struct call){.kind = conversions[k], .dtype = (enum ht_dtype)dtype},
                       dtype_names[dtype]);
    bench_reads(&rows);
    bench_call(&rows, &(struct call){.kind = SCALE, .values = {255, 1, 0, false}}, "255");
    bench_call(&rows, &(struct call){.kind = SCALE, .values = {2.55f, 1, 0, false}}, "2.55");
    bench_call(&rows, &(struct call){.kind = SCALE, .values = {255, 2, -1, false}}, "255, gain 2");
    for (int dtype = HT_F16; dtype <= HT_F32; dtype++) {
        struct call c = {.kind = ACCUMULATE, .dtype = (enum ht_dtype)dtype, .values = {255, 1, 0, true}};
        bench_call(&rows, &c, dtype_names[dtype]);
        c.kind = RESOLVE;
        bench_call(&rows, &c, dtype_names[dtype]);
        c.divide = true;
        bench_call(&rows, &c, "  nx");
    }
    bench_chain(&rows, "read3[u8][f32]: image to window", pass_read, pass_copy_in);
    bench_chain(&rows, "resolve, store3[u8]: window to image", pass_finish, pass_copy_out);
}

#endif
