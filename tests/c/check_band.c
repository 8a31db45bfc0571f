/* SPDX-License-Identifier: MIT
 *
 * Bands of random plans against sums of the image's full size: every bit of every finished row, from any tile row on,
 * in buffers that hold NaN at first. Then what a band refuses. Prints one line.
 */
#include "random_plans.h"

static struct ht_array new_output(const struct ht_plan *plan, int64_t channels)
{
    return new_array(HT_F32, channels, ht_axis_model_output(&plan->y), ht_axis_model_output(&plan->x));
}

static void fill(const struct ht_array *output, int64_t spoilt)
{
    float *data = output->data;
    int64_t count = output->channels * output->height * output->width;
    for (int64_t i = 0; i < count; i++)
        data[i] = random_float();
    if (one_in(2))
        data[between(0, count - 1)] = 0.5f / 255; /* a tie */
    for (; spoilt > 0; spoilt--)
        data[between(0, count - 1)] = one_in(2) ? NAN : -INFINITY;
}

static void check_rows(const struct dense *dense, const struct ht_array *rows, struct ht_range done,
                       const struct ht_values *values)
{
    for (int64_t c = 0; c < dense->channels; c++)
        for (int64_t y = done.start; y < done.stop; y++)
            for (int64_t x = 0; x < dense->plan.x.output_size; x++)
                CHECK(is_value(rows, c, y - done.start, x, dense_quotient(dense, c, y, x), values));
}

/* A position of a NaN or infinity that the output holds where the tile keeps it. */
static void check_position(const struct ht_plan *plan, int64_t i, const struct ht_array *output,
                           const struct ht_position *bad)
{
    struct ht_tile tile = ht_plan_tile(plan, i);
    int64_t y = bad->y - tile.keep.y, x = bad->x - tile.keep.x;
    CHECK(bad->c >= 0 && bad->c < output->channels && y >= 0 && y < tile.keep.height && x >= 0 && x < tile.keep.width);
    CHECK(!isfinite(*float_at(output, bad->c, tile.crop_y + y, tile.crop_x + x)));
}

static void check_random_band(void)
{
    struct ht_plan plan = random_plan();
    int64_t channels = one_in(2) ? 3 : between(1, 4), floats = ht_band_floats(&plan, channels);
    int64_t first_row = one_in(2) ? 0 : between(0, plan.y.count - 1);
    enum ht_dtype dtype = one_in(2) ? HT_U8 : HT_F32;
    struct ht_values values = {dtype == HT_U8 ? 255 : 1, 1, 0, one_in(2)};
    if (one_in(3))
        values.gain = 2, values.offset = -1;
    bool spoilt = one_in(4);
    float *buffer = allocated(floats * (int64_t)sizeof(float));
    struct dense dense = new_dense(&plan, channels);
    struct ht_array output = new_output(&plan, channels), rows = {0};
    struct ht_band band;
    CHECK(ht_band_init(&band, &plan, channels, &values, buffer, first_row) == HT_OK);
    for (int64_t i = first_row * plan.x.count; i < plan.count; i++) {
        struct ht_range done = ht_axis_done(&plan.y, i / plan.x.count);
        struct ht_position bad = {-1, -1, -1};
        if (i % plan.x.count == 0)
            rows = new_array(dtype, channels, done.stop - done.start, plan.x.output_size);
        fill(&output, spoilt && one_in(3) ? 2 : 0);
        bool found = add_dense(&dense, i, &output);
        CHECK(ht_band_add(&band, i, &output, &rows, one_in(5) && !found ? NULL : &bad) ==
              (found ? HT_NONFINITE : HT_OK));
        if (found)
            check_position(&plan, i, &output, &bad);
        CHECK(found || bad.c == -1);
        if (i % plan.x.count == plan.x.count - 1) {
            check_rows(&dense, &rows, done, &values);
            free(rows.data);
        }
    }
    CHECK(ht_band_add(&band, plan.count, &output, &output, NULL) == HT_BAD_ORDER);
    free_dense(&dense);
    free(output.data);
    free(buffer);
}

static struct ht_plan plan_of(int64_t height, int64_t width, int64_t tile)
{
    struct ht_axis_options y = {.size = height, .tile = tile, .halo = 1, .overlap = tile / 4, .phase = 1,
                                .scale_num = 1, .scale_den = 1}, x = y;
    struct ht_plan plan;
    x.size = width;
    CHECK(ht_plan_init(&plan, &y, &x, HT_LINEAR, NULL) == HT_OK);
    return plan;
}

/* Nothing refused changes anything: the tile can be given again. */
static void check_refusals(void)
{
    struct ht_plan plan = plan_of(40, 50, 16);
    struct ht_values values = {255, 1, 0, true}, wrong = {0, 1, 0, true}, large = {256, 1, 0, true};
    float *buffer = allocated(ht_band_floats(&plan, 3) * (int64_t)sizeof(float));
    struct ht_array output = new_output(&plan, 3), thin = output;
    struct ht_array rows = new_array(HT_U8, 3, ht_axis_done(&plan.y, 0).stop, 50), low = rows, strange = output;
    struct ht_band band;
    thin.channels = 2, low.height--, strange.dtype = HT_F64;
    CHECK(ht_band_init(&band, &plan, 3, &wrong, buffer, 0) == HT_BAD_VALUES);
    CHECK(ht_band_init(&band, &plan, 3, &values, buffer, -1) == HT_BAD_ORDER);
    CHECK(ht_band_init(&band, &plan, 3, &values, buffer, plan.y.count) == HT_BAD_ORDER);
    CHECK(ht_band_init(&band, &plan, 0, &values, buffer, 0) == HT_TOO_LARGE);
    fill(&output, 0);
    CHECK(ht_band_init(&band, &plan, 3, &large, buffer, 0) == HT_OK);
    CHECK(ht_band_add(&band, 0, &output, &rows, NULL) == HT_BAD_ARRAY);
    CHECK(ht_band_init(&band, &plan, 3, &values, buffer, 0) == HT_OK);
    CHECK(ht_band_add(&band, 1, &output, &rows, NULL) == HT_BAD_ORDER);
    CHECK(ht_band_add(&band, -1, &output, &rows, NULL) == HT_BAD_ORDER);
    CHECK(ht_band_add(&band, 0, &thin, &rows, NULL) == HT_BAD_ARRAY);
    CHECK(ht_band_add(&band, 0, &output, &low, NULL) == HT_BAD_ARRAY);
    CHECK(ht_band_add(&band, 0, &strange, &rows, NULL) == HT_BAD_ARRAY);
    CHECK(ht_band_add(&band, 0, &output, &rows, NULL) == HT_OK);
    CHECK(ht_band_add(&band, 0, &output, &rows, NULL) == HT_BAD_ORDER);
    free(buffer);
    free(output.data);
    free(rows.data);
}

/* Plans that no memory holds: told at once. */
static void check_sizes(void)
{
    struct ht_plan apart = plan_of(HT_MAX_SIDE, 1 << 20, 1), large = plan_of(1 << 20, HT_MAX_SIDE, 1000);
    CHECK(ht_band_floats(&apart, 1) == 2 * (1 << 20) + 2); /* weights alone: nothing is shared */
    CHECK(ht_band_floats(&apart, INT64_MAX) == 2 * (1 << 20) + 2);
    CHECK(ht_band_floats(&large, 1) > 500 * HT_MAX_SIDE && ht_band_floats(&large, 1 << 20) == -1);
    CHECK(ht_band_floats(&large, 0) == -1);
    struct ht_plan rows = plan_of(HT_MAX_SIDE, HT_MAX_SIDE, 1 << 30); /* shared rows alone are too many */
    CHECK(ht_band_floats(&rows, 1) == -1);
    struct ht_axis_options y = {.size = HT_MAX_SIDE, .tile = HT_MAX_SIDE / 2, .overlap = 1, .phase = 1, .scale_num = 1,
                                .scale_den = 1}, x = y;
    x.tile = 16, x.overlap = 4; /* and shared columns */
    CHECK(ht_plan_init(&rows, &y, &x, HT_LINEAR, NULL) == HT_OK && ht_band_floats(&rows, 1) == -1);
}

/* Channels so many that the number just fits, or just does not: adding any of its parts may be what is too much. */
static void check_largest(void)
{
    int64_t fits = 0, not = 0;
    for (int64_t width = 1; width <= 400; width++) {
        struct ht_plan plan = plan_of(60, width, 16);
        int64_t one = ht_band_floats(&plan, 1), each = ht_band_floats(&plan, 2) - one, most = INT64_MAX / each;
        for (int64_t channels = most - 2; channels <= most; channels++) {
            bool small = channels * each <= INT64_MAX - (one - each); /* the product is at most INT64_MAX */
            CHECK(ht_band_floats(&plan, channels) == (small ? channels * each + (one - each) : -1));
            *(small ? &fits : &not) += 1;
        }
    }
    CHECK(fits > 100 && not > 100);
}

int main(void)
{
    CHECK(ht_rows_init(NULL));
    for (case_number = 0; case_number < 3000; case_number++)
        check_random_band();
    check_refusals();
    check_sizes();
    check_largest();
    printf("check_band: %ld random bands, refusals and sizes: ok\n", case_number);
    return 0;
}
