/* SPDX-License-Identifier: MIT
 *
 * Every small axis there is: coverage, windows, exclusive and done ranges, weights. Then the extremes. Prints one line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kinds.h"

#define CHECK(condition)                                                                                            \
    do {                                                                                                            \
        if (!(condition)) {                                                                                         \
            fprintf(stderr, "check_plan: %s fails for size %lld tile %lld halo %lld overlap %lld phase %lld scale " \
                            "%lld/%lld boundary %d least %lld shift %lld (tile %lld)\n", #condition, (long long)o.size,        \
                    (long long)o.tile, (long long)o.halo, (long long)o.overlap, (long long)o.phase,                  \
                    (long long)o.scale_num, (long long)o.scale_den, (int)o.boundary, (long long)o.least,             \
                    (long long)o.shift, (long long)i);                                                               \
            exit(1);                                                                                                \
        }                                                                                                           \
    } while (0)

enum { MOST = 256 };

static void check_windows(const struct ht_axis_options o, const struct ht_axis *a, int64_t i)
{
    struct ht_range keep = ht_axis_keep(a, i);
    int64_t window = ht_axis_window(a, i), halo = a->halo / a->scale_den * a->scale_num;
    CHECK(window % a->phase == 0 && a->window % a->phase == 0);
    CHECK(0 <= keep.start && keep.start < keep.stop && keep.stop <= a->output_size);
    int64_t left = keep.start - window / a->scale_den * a->scale_num;
    int64_t right = (window + a->window) / a->scale_den * a->scale_num - keep.stop;
    bool native = o.boundary == HT_NATIVE;
    CHECK(left >= halo || (native && keep.start == 0 && window == 0));
    CHECK(right >= halo - a->scale_num || (native && keep.stop == a->output_size));
    int64_t shortest = (o.least + a->phase - 1) / a->phase * a->phase;
    CHECK(a->window >= shortest);
    if (native)
        CHECK(window >= 0 && (window + a->window < a->size + a->phase || (window == 0 && a->window == shortest)));
    if (i > 0 && i < a->count - 1) { /* inner tiles are as large as asked, but for the rounding to the phase */
        int64_t core = (a->window - 2 * a->halo) / a->scale_den * a->scale_num;
        CHECK(keep.stop - keep.start == core);
        int64_t least = a->phase + (2 * a->halo + o.overlap + a->phase - 1) / a->phase * a->phase;
        CHECK(a->window - 2 * a->halo <= o.tile || a->window == least || a->window == shortest);
    }
}

/* Windows of one length: what tiles no larger than that length less two halos, rounded up to the phase, come to. */
static void check_fixed(struct ht_axis_options o)
{
    struct ht_axis a;
    int64_t i = -1;
    o.tile = 100;
    CHECK(ht_axis_init(&a, &o) == HT_OK);
    int64_t halo = (a.halo + a.phase - 1) / a.phase * a.phase;
    for (o.least = a.phase; o.least <= 24; o.least += a.phase) {
        o.tile = o.least - 2 * halo;
        if (o.tile > o.overlap && ht_axis_init(&a, &o) == HT_OK)
            CHECK(a.window == o.least);
    }
}

static bool same_length(struct ht_range a, struct ht_range b) { return a.stop - a.start == b.stop - b.start; }

/* Every tile has the lengths of exactly as many tiles of one kind as that kind counts. */
static void check_kinds(const struct ht_axis_options o, const struct ht_axis *a)
{
    struct ht_kind kinds[HT_KINDS];
    int64_t i = -1, counted = 0, kept = 0, exclusives = 0;
    int found = ht_axis_kinds(a, kinds);
    for (int k = 0; k < found; k++) {
        struct ht_range keep = ht_axis_keep(a, kinds[k].i), exclusive = ht_axis_exclusive(a, kinds[k].i);
        struct ht_range done = ht_axis_done(a, kinds[k].i);
        CHECK(kinds[k].count >= 1 && kinds[k].i == (k == 0 ? 0 : k == found - 1 ? a->count - 1 : counted));
        for (i = counted; i < counted + kinds[k].count; i++)
            CHECK(same_length(ht_axis_keep(a, i), keep) && same_length(ht_axis_exclusive(a, i), exclusive) &&
                  same_length(ht_axis_done(a, i), done));
        counted += kinds[k].count;
        kept += kinds[k].count * (keep.stop - keep.start);
        exclusives += kinds[k].count * (exclusive.stop - exclusive.start);
    }
    CHECK(counted == a->count && exclusives <= a->output_size && kept >= a->output_size);
}

/* The plan of an axis with itself, against the definitions. */
static void check_schedule(const struct ht_axis_options o)
{
    struct ht_plan plan;
    int64_t i = -1;
    CHECK(ht_plan_init(&plan, &o, &o, HT_AVERAGE, NULL) == HT_OK);
    int64_t columns = plan.x.count, tallest = 0;
    for (i = 0; i < plan.y.count; i++) {
        struct ht_range done = ht_axis_done(&plan.y, i);
        tallest = done.stop - done.start > tallest ? done.stop - done.start : tallest;
    }
    CHECK(ht_plan_tallest_band(&plan) == tallest);
    for (int64_t batch = 1; batch <= 4; batch++)
        for (int64_t first_row = 0; first_row < plan.y.count; first_row += 2) {
            int64_t most = 0;
            for (int64_t first = first_row * columns; first < plan.count; first += batch)
                for (i = first; i < first + batch && i < plan.count; i++) {
                    struct ht_tile from = ht_plan_tile(&plan, first), tile = ht_plan_tile(&plan, i);
                    int64_t rows = tile.keep.y + tile.keep.height - from.keep.y;
                    most = rows > most ? rows : most;
                }
            CHECK(ht_plan_rows_in_progress(&plan, batch, first_row) == most);
        }
    CHECK(ht_plan_rows_in_progress(&plan, INT64_MAX, 0) == plan.y.output_size);
}

/* The same windows, so much earlier, and one more. */
static void check_shift(const struct ht_axis_options o, const struct ht_axis *a, enum ht_status status)
{
    struct ht_axis_options still = o;
    struct ht_axis b;
    int64_t i = -1;
    still.shift = 0;
    CHECK(ht_axis_init(&b, &still) == HT_OK);
    bool fits = b.count == 1 || (o.shift % b.phase == 0 && o.shift < b.step);
    CHECK(status == (fits ? HT_OK : HT_BAD_SHIFT));
    if (!fits)
        return;
    CHECK(a->window == b.window && a->count == (b.count == 1 ? 1 : b.count + 1));
    for (i = 0; i < b.count; i++)
        CHECK(ht_axis_window(a, i) == ht_axis_window(&b, i) - (b.count == 1 ? 0 : o.shift));
}

static void check_axis(const struct ht_axis_options o)
{
    struct ht_axis a;
    int64_t i = -1;
    enum ht_status status = ht_axis_init(&a, &o);
    if (status == HT_TILE_TOO_SMALL)
        return;
    if (o.shift > 0)
        check_shift(o, &a, status);
    if (status == HT_BAD_SHIFT)
        return;
    CHECK(status == HT_OK && a.output_size <= MOST);
    check_kinds(o, &a);
    if (a.count <= 5)
        check_schedule(o);
    static int covered[MOST], left[MOST];
    static float weights[MOST], sums[MOST];
    static double expected[MOST];
    memset(covered, 0, sizeof covered);
    memset(expected, 0, sizeof expected);
    for (i = 0; i < a.count; i++) {
        check_windows(o, &a, i);
        struct ht_range keep = ht_axis_keep(&a, i);
        ht_axis_weights(weights, &a, HT_COSINE, i);
        for (int64_t p = keep.start; p < keep.stop; p++) {
            CHECK(weights[p - keep.start] > 0);
            expected[p] += weights[p - keep.start];
            covered[p]++;
        }
    }
    memcpy(left, covered, sizeof left);
    for (i = 0; i < a.count; i++) {
        struct ht_range keep = ht_axis_keep(&a, i), exclusive = ht_axis_exclusive(&a, i), done = ht_axis_done(&a, i);
        CHECK(exclusive.start >= keep.start && exclusive.stop <= keep.stop && exclusive.start <= exclusive.stop);
        for (int64_t p = keep.start; p < keep.stop; p++) {
            CHECK((covered[p] == 1) == (p >= exclusive.start && p < exclusive.stop));
            CHECK((--left[p] == 0) == (p >= done.start && p < done.stop));
        }
    }
    ht_axis_normaliser(sums, &a, HT_COSINE, (struct ht_range){0, a.output_size});
    for (i = 0; i < a.output_size; i++)
        CHECK(covered[i] >= 1 && sums[i] == (float)expected[i]);
}

static long check_small_axes(void)
{
    static const int64_t scales[][2] = {{1, 1}, {2, 1}, {1, 2}, {3, 2}, {2, 4}};
    long count = 0;
    struct ht_axis_options o = {0};
    for (o.size = 1; o.size <= 40; o.size += 1 + o.size / 8)
        for (o.tile = 1; o.tile <= 20; o.tile++)
            for (o.halo = 0; o.halo <= 9; o.halo += 1 + o.halo / 3)
                for (o.overlap = 0; o.overlap < o.tile; o.overlap += 1 + o.overlap / 4)
                    for (o.phase = 1; o.phase <= 4; o.phase++)
                        for (int s = 0; s < 5; s++)
                            for (int boundary = 0; boundary < HT_BOUNDARY_COUNT; boundary++) {
                                o.scale_num = scales[s][0], o.scale_den = scales[s][1];
                                o.boundary = (enum ht_boundary)boundary;
                                for (o.least = 0; o.least <= 30; o.least += 15, count++)
                                    check_axis(o);
                                o.least = 0;
                                for (o.shift = 1; boundary == HT_REFLECT && o.shift <= 12; o.shift += 3, count++)
                                    check_axis(o);
                                o.shift = 0;
                                check_fixed(o);
                            }
    return count;
}

static long check_extremes(void)
{
    static const int64_t values[] = {INT64_MIN,       -1,          0,               1,        2, 511,
                                     HT_MAX_SIDE - 1, HT_MAX_SIDE, HT_MAX_SIDE + 1, INT64_MAX};
    enum { N = sizeof values / sizeof *values };
    long count = 0;
    for (long code = 0; code < (long)N * N * N * N * N; code++) {
        int64_t pick[5];
        for (long k = 0, rest = code; k < 5; k++, rest /= N)
            pick[k] = values[rest % N];
        struct ht_axis_options o = {pick[0], pick[1], pick[2], pick[3], pick[4], 1 + code % HT_MAX_SCALE,
                                    1 + code / 7 % HT_MAX_SCALE, 0, (enum ht_boundary)(code & 1),
                                    values[code / 11 % N], code % 13 == 0 ? values[code / 3 % N] : 0};
        struct ht_axis a;
        if (ht_axis_init(&a, &o) == HT_OK) {
            int64_t i = a.count - 1;
            struct ht_range keep = ht_axis_keep(&a, i);
            CHECK(a.count >= 1 && a.window >= 1 && keep.start >= 0 && keep.start < keep.stop);
            CHECK(keep.stop == a.output_size);
            check_windows(o, &a, i / 2);
        }
        count++;
    }
    return count;
}

static void check_status_and_reflect(void)
{
    struct ht_axis_options o = {0};
    int64_t i = 0;
    for (int status = -1; status <= HT_STATUS_COUNT; status++)
        CHECK(ht_status_text((enum ht_status)status)[0] != '\0');
    for (int64_t size = 1; size < 6; size++)
        for (i = -50; i < 50; i++) {
            int64_t at = ht_reflect(i, size);
            CHECK(at >= 0 && at < size);
            CHECK(size == 1 || at == ht_reflect(i + 2 * (size - 1), size));
            CHECK(ht_reflect(-i, size) == at);
        }
    CHECK(ht_reflect((int64_t)1 << 61, 7) >= 0 && ht_reflect(-((int64_t)1 << 61), 7) < 7);
}

int main(void)
{
    long small = check_small_axes(), extremes = check_extremes();
    check_status_and_reflect();
    printf("check_plan: %ld small axes, %ld extreme ones, status and reflect: ok\n", small, extremes);
    return 0;
}
