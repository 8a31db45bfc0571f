/* SPDX-License-Identifier: MIT
 *
 * Two axes and the schedule of their tiles; how much memory bands and runs need.
 */
#include "naive_plan.h"

static struct naive_axis y, x;

static void check_box(struct ht_box box, struct ht_range rows, struct ht_range columns)
{
    CHECK(box.height == range_length(rows) && box.width == range_length(columns));
    CHECK((box.y == rows.start || box.height == 0) && (box.x == columns.start || box.width == 0));
}

static void check_tile(const struct ht_plan *plan, int64_t index)
{
    int64_t row = 0, column = index;
    for (; column >= x.count; column -= x.count)
        row++;
    struct ht_tile tile = ht_plan_tile(plan, index);
    CHECK(tile.row == row && tile.column == column);
    CHECK(tile.window.y == y.starts[row] && tile.window.x == x.starts[column]);
    CHECK(tile.window.height == y.window && tile.window.width == x.window);
    check_box(tile.keep, y.keep[row], x.keep[column]);
    check_box(tile.exclusive, naive_exclusive(&y, row), naive_exclusive(&x, column));
    CHECK(tile.crop_y == naive_crop(&y, row) && tile.crop_x == naive_crop(&x, column));
}

/* Rows to which no tile after this one adds. */
static int64_t complete_after(int64_t index)
{
    int64_t next_row = (index + 1) / x.count, least = y.output_size;
    for (int64_t row = next_row; row < y.count; row++)
        if (y.keep[row].start < least)
            least = y.keep[row].start;
    return least;
}

static int64_t in_progress(int64_t batch, int64_t first_row)
{
    int64_t most = 0, count = y.count * x.count;
    for (int64_t first = first_row * x.count; first < count; first += batch)
        for (int64_t i = first; i < first + batch && i < count; i++) {
            int64_t rows = y.keep[i / x.count].stop - y.keep[first / x.count].start;
            most = rows > most ? rows : most;
        }
    return most;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* What band_buffer.c says it keeps. */
static int64_t floats_of_band(int64_t channels)
{
    int64_t ring = 0, middle = 0, tallest = 0, shared = 0, weights = 0;
    for (int64_t i = 0; i < y.count; i++) {
        int64_t own = range_length(naive_exclusive(&y, i)), kept = range_length(y.keep[i]);
        ring = larger(ring, kept - own), middle = larger(middle, own), tallest = larger(tallest, kept);
    }
    for (int64_t p = 0; p < x.output_size; p++)
        shared += x.covered[p] > 1;
    for (int64_t i = 0; i < x.count; i++)
        weights += range_length(x.keep[i]);
    return channels * (ring * x.output_size + middle * shared) + x.output_size + weights + 2 * tallest;
}

static void check_floats(const struct ht_plan *plan, struct input *in)
{
    int64_t channels = number(in, -1, 5), out_channels = number(in, -1, 5), batch = number(in, -1, 40);
    struct ht_restore_options options = {.plan = plan, .batch = batch};
    int64_t most = batch < 1 ? 1 : batch, calls = 0, count = 1;
    while (calls * most < plan->count)
        calls++;
    while (count * calls < plan->count)
        count++;
    int64_t windows = channels * y.window * x.window, outputs = out_channels * naive_output(&y) * naive_output(&x);
    int64_t floats = ht_restore_floats(&options, channels, out_channels);
    CHECK(ht_band_floats(plan, out_channels) == (out_channels < 1 ? -1 : floats_of_band(out_channels)));
    if (channels < 1 || out_channels < 1 || outputs < 1)
        CHECK(floats == -1);
    else
        CHECK(floats == count * (windows + outputs) + floats_of_band(out_channels));
    int64_t huge = whole_number(in);
    if (huge > 0 && ht_band_floats(plan, huge) >= 0)
        CHECK((double)huge * (double)(floats_of_band(1) - floats_of_band(0)) < 9.3e18);
}

static void check_refusals(const struct ht_axis_options *rows)
{
    struct ht_axis_options side = {.size = HT_MAX_SIDE, .tile = 1, .phase = 1, .scale_num = 1, .scale_den = 1};
    struct ht_plan plan;
    int failed = -2;
    CHECK(ht_plan_init(&plan, &side, &side, HT_AVERAGE, &failed) == HT_TOO_LARGE && failed == -1);
    if (ht_axis_init(&plan.y, rows) == HT_OK)
        CHECK(ht_plan_init(&plan, rows, rows, HT_BLEND_COUNT, &failed) == HT_BAD_CHOICE && failed == -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    struct ht_axis_options rows, columns;
    struct ht_plan plan;
    bool planned = plan_from(&in, &plan, &rows, &columns);
    check_refusals(&rows);
    if (!planned) {
        struct ht_axis side;
        int failed = -2;
        bool bad_y = ht_axis_init(&side, &rows) != HT_OK, bad_x = ht_axis_init(&side, &columns) != HT_OK;
        CHECK(ht_plan_init(&plan, &rows, &columns, HT_AVERAGE, &failed) != HT_OK);
        CHECK((bad_y || bad_x) && failed == (bad_y ? 0 : 1));
        return 0;
    }
    naive_axis(&y, &rows), naive_axis(&x, &columns);
    CHECK(plan.count == y.count * x.count);
    for (int64_t i = 0; i < plan.count; i += 1 + plan.count / 200) {
        check_tile(&plan, i);
        CHECK(ht_plan_rows_complete(&plan, i) == complete_after(i));
    }
    CHECK(ht_plan_rows_complete(&plan, -1) == 0);
    int64_t tallest = 0;
    for (int64_t i = 0; i < y.count; i++)
        tallest = larger(tallest, range_length(naive_done(&y, i)));
    CHECK(ht_plan_tallest_band(&plan) == tallest);
    int64_t batch = number(&in, 1, 60), first_row = byte_of(&in) % y.count;
    CHECK(ht_plan_rows_in_progress(&plan, batch, first_row) == in_progress(batch, first_row));
    check_floats(&plan, &in);
    return 0;
}
