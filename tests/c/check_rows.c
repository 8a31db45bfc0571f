/* SPDX-License-Identifier: MIT
 *
 * check_rows.c - every row kernel of every level the processor has gives the scalar kernels' bits.
 *
 *   check_rows           compares; prints the failing parameters where bits differ and exits non-zero
 *   check_rows --bench   prints GB/s (bytes read and bytes written) beside memcpy
 *
 * Rows lie right before or right behind a page that faults, with room on the other side that must stay as it was. A row
 * that ends at the page starts at whatever alignment its length gives, so that all of them occur.
 */
#define _DEFAULT_SOURCE
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "row_bench.h"
#include "row_call.h"
#include "row_values.h"

#define MARGIN 64 /* bytes beside a row that are compared too */

/* What is compared now. */
struct check {
    const char *level;
    struct ht_rows scalar, rows;
    struct call call;
    bool at_end;
    enum fill fill;
    int64_t count; /* comparisons so far */
};

static struct check *running;

/* ---- one comparison ---------------------------------------------------------------------------------------------- */

static void fill_in(void *row, const struct call *c, enum fill fill)
{
    int64_t bytes = in_bytes(c, 0), n = bytes / (is_store(c->kind) ? 4 : dtype_sizes[c->dtype]);

    if (is_store(c->kind) && c->dtype <= HT_U16)
        fill_in_range(row, n, c->dtype == HT_U8 ? 255 : 65535);
    else if (is_store(c->kind) || c->dtype == HT_F32)
        fill_floats(row, n, fill);
    else if (c->dtype == HT_F64)
        fill_doubles(row, n);
    else
        fill_small(row, bytes, c->kind > STORE3 && (fill == PLAIN || fill == FINITE));
}

/* Weights and normalisers are positive. Sums hold no NaN where the source may: of two NaNs either may be kept. */
static void fill_beside(const struct call *c, float *second, float *out, enum fill fill)
{
    if (c->kind == ACCUMULATE || c->kind == RESOLVE)
        for (int64_t i = 0; i < c->n; i++)
            second[i] = 0.01f + (float)(random_bits() % 4096) / 1024;
    if (c->kind == ACCUMULATE)
        fill_floats(out, c->n, fill == PLAIN ? ANY : FINITE);
    if (c->kind == SCALE || (c->kind == RESOLVE && c->in_place))
        fill_floats(out, c->n, fill);
}

static void report(const struct check *check, const char *what)
{
    const struct call *c = &check->call;

    printf("FAIL %s %s", check->level, kind_names[c->kind]);
    if (c->kind != SCALE)
        printf("[%s]", dtype_names[c->dtype]);
    if (is_read(c->kind))
        printf("[%s]", dtype_names[c->to]);
    if (is_read(c->kind) || c->kind > STORE3)
        printf(" peak %g gain %g offset %g clamp %d divide %d in place %d", (double)c->values.peak,
               (double)c->values.gain, (double)c->values.offset, c->values.clamp, c->divide, c->in_place);
    printf(" n %" PRId64 " %s fill %d: %s\n", c->n, check->at_end ? "at end" : "at start", (int)check->fill, what);
}

static void report_fault(int signal)
{
    (void)signal;
    if (running)
        report(running, "touched a byte outside its rows");
    fflush(stdout);
    _exit(1);
}

static bool same_row(const struct check *check, int row)
{
    const struct call *c = &check->call;
    const bool at_end = check->at_end;
    int64_t bytes = out_bytes(c), size = c->n ? bytes / c->n / (c->kind == STORE3 ? 3 : 1) : 1;
    const unsigned char *g = place(got[row], bytes, at_end), *w = place(want[row], bytes, at_end);
    int64_t first = at_end ? -MARGIN : 0, stop = at_end ? bytes : bytes + MARGIN, at = first;
    uint64_t g_bits = 0, w_bits = 0;
    char what[160];

    if (memcmp(g + first, w + first, (size_t)(stop - first)) == 0)
        return true;
    while (g[at] == w[at])
        at++;
    if (at < 0 || at >= bytes) {
        snprintf(what, sizeof what, "row %d: wrote byte %" PRId64 " of a row of %" PRId64, row, at, bytes);
    } else {
        at -= at % size;
        memcpy(&g_bits, g + at, (size_t)size);
        memcpy(&w_bits, w + at, (size_t)size);
        snprintf(what, sizeof what, "row %d: index %" PRId64 " got %" PRIx64 " want %" PRIx64, row, at / size, g_bits,
                 w_bits);
    }
    report(check, what);
    return false;
}

/* Runs both on what stands in the inputs and in `got`. */
static bool same(struct check *check)
{
    const struct call *c = &check->call;
    const int64_t before = check->at_end ? MARGIN : 0;
    unsigned char *g[3], *w[3], *s[3];
    bool good = true;

    for (int k = 0; k < 3; k++) {
        g[k] = place(got[k], out_bytes(c), check->at_end);
        w[k] = place(want[k], out_bytes(c), check->at_end);
        s[k] = place(in[k], in_bytes(c, k), check->at_end);
        if (k < out_rows(c))
            memcpy(w[k] - before, g[k] - before, (size_t)(out_bytes(c) + MARGIN));
    }
    check->count++;
    running = check;
    bool flag = run(&check->rows, c, g, s);
    running = NULL;
    if (flag != run(&check->scalar, c, w, s)) {
        report(check, flag ? "returned true" : "returned false");
        good = false;
    }
    for (int k = 0; good && k < out_rows(c); k++)
        good = same_row(check, k);
    return good;
}

static bool check_call(struct check *check)
{
    const struct call *c = &check->call;
    bool good = true;

    for (int i = 0; good && i < 2 * FILLS; i++) {
        bool at_end = check->at_end = i % 2;
        enum fill fill = check->fill = (enum fill)(i / 2);
        unsigned char *out = place(got[0], out_bytes(c), at_end), *second = place(in[1], in_bytes(c, 1), at_end);
        for (int k = 0; k < in_rows(c); k++)
            fill_in(place(in[k], in_bytes(c, k), at_end), c, fill);
        fill_beside(c, (void *)second, (void *)out, fill);
        good = same(check);
    }
    return good;
}

/* ---- all of them ------------------------------------------------------------------------------------------------- */

static const struct ht_values all_values[] = {
    {255, 1, 0, true},   {65535, 1, 0, false},   {1023, 1, 0, true}, {1, 1, 0, false},    {100, 1, -0.0f, true},
    {255, 2, -1, false}, {1, 1, 0.5f, true},     {1, -3, 0, true},   {0.1f, 0.7f, 3, true}, {1, 2, -1, false},
};

static const float all_peaks[] = {255, 1023, 4095, 16383, 65535, 2, 100, 21845, 54613};

static bool check_lengths(struct check *check, struct call call)
{
    static const int64_t longer[] = {127, 128, 129, 255, 1021, 1024, 1031, 4099};
    bool good = true;

    check->call = call;
    for (int64_t n = 0; good && n <= 70; n++) {
        check->call.n = n;
        good = check_call(check);
    }
    for (size_t i = 0; good && i < sizeof longer / sizeof *longer; i++) {
        check->call.n = longer[i];
        good = check_call(check);
    }
    return good;
}

/* The kernels that map values. */
static bool check_mapped(struct check *check, const struct ht_values *values)
{
    struct call c = {.kind = SCALE, .dtype = HT_F32, .values = *values};
    bool good = check_lengths(check, c);

    for (int k = 0; k < 12; k++) {
        c.kind = k % 2 ? READ3 : READ;
        c.dtype = k / 6 ? HT_U16 : HT_U8;
        c.to = (enum ht_dtype)(HT_F16 + k % 6 / 2);
        good &= check_lengths(check, c);
    }
    c.kind = RESOLVE;
    for (int k = 0; k < 8; k++) {
        c.dtype = (enum ht_dtype)(k < 6 ? HT_F16 + k / 2 : HT_F32);
        c.divide = k % 2;
        c.in_place = k >= 6;
        good &= check_lengths(check, c);
    }
    return good;
}

static bool check_kernels(struct check *check)
{
    bool good = true;

    for (int kind = LOAD; kind <= STORE3; kind++)
        for (int dtype = 0; dtype < HT_DTYPE_COUNT && !is_read((enum kind)kind); dtype++)
            good &= check_lengths(check, (struct call){.kind = (enum kind)kind, .dtype = (enum ht_dtype)dtype});
    for (int dtype = HT_F16; dtype <= HT_F32; dtype++)
        good &= check_lengths(check, (struct call){.kind = ACCUMULATE, .dtype = (enum ht_dtype)dtype});
    for (size_t i = 0; i < sizeof all_values / sizeof *all_values; i++)
        good &= check_mapped(check, &all_values[i]);
    return good;
}

/* Every value of the small dtypes, there and back; every halfway case of the way back, and its neighbours. */
static bool check_small_dtype(struct check *check, enum ht_dtype dtype)
{
    int64_t values = dtype == HT_U8 ? 256 : 65536, n = 0;
    float *floats = (void *)in[0];
    uint16_t *words = (void *)in[0];
    bool good = true;

    for (int k = 0; k < 65538; k++)
        words[k] = (uint16_t)k;
    check->call = (struct call){.kind = LOAD, .dtype = dtype, .n = 65536};
    good &= same(check);
    check->call = (struct call){.kind = LOAD3, .dtype = dtype, .n = 65538 / 3};
    good &= same(check);

    for (size_t i = 0; dtype <= HT_U16 && i < sizeof all_peaks / sizeof *all_peaks; i++)
        for (int to = HT_F16; to <= HT_F32; to++) {
            check->call = (struct call){.kind = READ, .dtype = dtype, .to = (enum ht_dtype)to, .n = 65538};
            check->call.values = (struct ht_values){all_peaks[i], 1, 0, false};
            good &= same(check);
            check->call.kind = READ3;
            check->call.n /= 3;
            good &= same(check);
        }

    for (int64_t k = 0; k < values; k++)
        for (int near = -1; near <= 2; near++)
            floats[n++] = around_half(dtype, k, near, values - 1);
    memcpy(in[1], floats, (size_t)n * 4);
    memcpy(in[2], floats, (size_t)n * 4);
    check->call = (struct call){.kind = STORE, .dtype = dtype, .n = n};
    good &= same(check);
    check->call.kind = STORE3;
    good &= same(check);
    return good;
}

/* The proof of the division without a division: all significands, all integers. */
static bool check_quotients(struct check *check, float peak)
{
    const int64_t significands = 1 << 23, integers = 65536;
    float *row = (void *)got[0];

    for (int64_t k = 0; k < significands; k++)
        row[k] = float_of(0x3f800000 + (uint32_t)k);
    for (int64_t k = 0; k < integers; k++)
        row[significands + k] = (float)k;
    check->call = (struct call){.kind = SCALE, .values = {peak, 1, 0, false}, .n = significands + integers};
    return same(check);
}

/* The strided conversions are the scalar ones: channel k of triples, and the same backwards. */
static bool check_strided(void)
{
    struct ht_rows scalar;
    bool good = true;

    ht_rows_scalar(&scalar);
    for (int d = 0; d < HT_DTYPE_COUNT; d++) {
        struct call c = {.kind = LOAD3, .dtype = (enum ht_dtype)d, .n = 100};
        int64_t size = dtype_sizes[d];
        fill_in(in[0], &c, ANY);
        scalar.load3[d]((void *)want[0], (void *)want[1], (void *)want[2], in[0], 100);
        memset(got[1], 0, (size_t)(300 * size));
        memset(got[2], 0, (size_t)(300 * size));
        for (int k = 0; k < 3; k++) {
            ht_load_strided((void *)got[0], in[0] + k * size, c.dtype, 3, 100);
            good &= memcmp(got[0], want[k], 400) == 0;
            ht_load_strided((void *)got[0], in[0] + (297 + k) * size, c.dtype, -3, 100);
            for (int i = 0; i < 100; i++)
                good &= memcmp(got[0] + 4 * i, want[k] + 4 * (99 - i), 4) == 0;
            if (d <= HT_U16)
                fill_in_range((void *)want[k], 100, 255);
            ht_store_strided(got[1] + k * size, c.dtype, 3, (void *)want[k], 100);
        }
        scalar.store3[d](got[2], (void *)want[0], (void *)want[1], (void *)want[2], 100);
        good &= memcmp(got[1], got[2], (size_t)(300 * size)) == 0;
    }
    printf("scalar: %s\n", good ? "strided conversions same as triples" : "FAIL strided conversions");
    return good;
}

/* ---- levels ------------------------------------------------------------------------------------------------------ */

static bool check_level(enum ht_cpu level)
{
    static struct check check;
    bool good = true;

    check = (struct check){.level = level_names[level]};
    ht_rows_scalar(&check.scalar);
    ht_rows_fill(&check.rows, level);
    good &= check_kernels(&check);
    check.at_end = false;
    for (int dtype = HT_U8; dtype <= HT_BF16; dtype++)
        good &= check_small_dtype(&check, (enum ht_dtype)dtype);
    for (size_t i = 0; i < sizeof all_peaks / sizeof *all_peaks; i++)
        good &= check_quotients(&check, all_peaks[i]);
    printf("%s: %s in %" PRId64 " calls\n", check.level, good ? "same bits as scalar" : "FAIL", check.count);
    return good;
}

int main(int argc, char **argv)
{
    bool bench = argc == 2 && strcmp(argv[1], "--bench") == 0, good = true;

    if (argc > 1 && !bench) {
        fprintf(stderr, "usage: check_rows [--bench]\n");
        return 2;
    }
    signal(SIGSEGV, report_fault);
    signal(SIGBUS, report_fault);
    for (int k = 0; k < 3; k++)
        got[k] = guarded(), want[k] = guarded(), in[k] = guarded();
    for (int level = HT_CPU_SCALAR; level < HT_CPU_COUNT; level++)
        if (!ht_cpu_has((enum ht_cpu)level))
            printf("%s: skipped, this processor lacks it\n", level_names[level]);
        else if (bench)
            bench_level((enum ht_cpu)level);
        else if (level == HT_CPU_SCALAR)
            good &= check_strided();
        else
            good &= check_level((enum ht_cpu)level);
    return good ? 0 : 1;
}
