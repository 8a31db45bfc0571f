/* SPDX-License-Identifier: MIT
 *
 * A band of a random plan, with outputs of any dtype and layout, from any tile row on; between its tiles calls that must
 * be refused and change nothing. Against sums of the image's full size.
 */
#include "dense.h"

static struct dense dense;

static void check_position(int64_t i, const struct owned *output, const struct ht_position *bad)
{
    int64_t row = i / dense.x.count, column = i % dense.x.count;
    int64_t y = bad->y - dense.y.keep[row].start, x = bad->x - dense.x.keep[column].start;
    CHECK(bad->c >= 0 && bad->c < dense.channels && y >= 0 && bad->y < dense.y.keep[row].stop && x >= 0);
    CHECK(bad->x < dense.x.keep[column].stop);
    const void *at = element_of(&output->array, bad->c, naive_crop(&dense.y, row) + y, naive_crop(&dense.x, column) + x);
    CHECK(!isfinite(naive_load(output->array.dtype, at)));
}

/* Things that do not fit. */
static void misuse(struct ht_band *band, int64_t i, const struct owned *output, const struct owned *rows, uint8_t how)
{
    struct ht_array bad_output = output->array, bad_rows = rows->array;
    CHECK(ht_band_add(band, i + 1 - 2 * (how & 1), &output->array, &rows->array, NULL) == HT_BAD_ORDER);
    switch (how % 8) {
    case 0: bad_output.height--; break;
    case 1: bad_output.width++; break;
    case 2: bad_output.channels++; break;
    case 3: bad_output.dtype = HT_F64; break;
    case 4: bad_rows.height++; break;
    case 5: bad_rows.width--; break;
    case 6: bad_rows.channels--; break;
    default: bad_rows.dtype = HT_DTYPE_COUNT;
    }
    CHECK(ht_band_add(band, i, &bad_output, &bad_rows, NULL) == HT_BAD_ARRAY);
}

static void run(struct input *in, const struct ht_plan *plan, struct ht_band *band, int64_t first_row,
                const struct ht_values *values, enum ht_dtype to)
{
    enum ht_dtype from = (enum ht_dtype)number(in, HT_F16, HT_F32);
    enum content content = (enum content)number(in, TAME, ANYTHING);
    bool spoilt = false, misused = byte_of(in) > 200, wanted = byte_of(in) & 1;
    for (int64_t row = first_row; row < dense.y.count; row++) {
        struct ht_range done = naive_done(&dense.y, row);
        struct owned rows = owned_from(in, to, dense.channels, range_length(done), dense.x.output_size, false);
        struct owned want = copy_of(&rows);
        unset_elements(&rows);
        for (int64_t column = 0; column < dense.x.count; column++) {
            int64_t i = row * dense.x.count + column;
            struct owned output = owned_from(in, from, dense.channels, naive_output(&dense.y), naive_output(&dense.x), true);
            struct ht_position bad = {-1, -1, -1};
            fill_owned(&output, in, content);
            if (misused)
                misuse(band, i, &output, &rows, byte_of(in));
            bool found = dense_add(&dense, i, &output.array), last = column == dense.x.count - 1;
            enum ht_status status = ht_band_add(band, i, &output.array, &rows.array, wanted ? &bad : NULL);
            bool overflows = last && !found && !spoilt && dense_overflows(&dense, done);
            spoilt |= found;
            CHECK(status == (found || overflows ? HT_NONFINITE : HT_OK));
            CHECK((bad.c >= 0) == (status == HT_NONFINITE && wanted));
            if (found && wanted)
                check_position(i, &output, &bad);
            else if (bad.c >= 0)
                CHECK(!isfinite(dense_quotient(&dense, bad.c, bad.y, bad.x)) && bad.y >= done.start && bad.y < done.stop);
            spoilt |= overflows;
            free(output.memory);
        }
        dense_finish(&dense, &want.array, done.start, values);
        check_same(&rows, &want);
        free(rows.memory), free(want.memory);
    }
    CHECK(band->next == plan->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    struct ht_axis_options y, x;
    struct ht_plan plan;
    choose_rows(&in);
    if (!plan_from(&in, &plan, &y, &x) || plan.count > 60 || ht_axis_model_output(&plan.y) < 1)
        return 0;
    int64_t channels = number(&in, 1, 4), first_row = byte_of(&in) > 180 ? byte_of(&in) % plan.y.count : 0;
    enum ht_dtype to = (enum ht_dtype)number(&in, 0, 5);
    struct ht_values values = values_from(&in);
    float *buffer = malloc((size_t)ht_band_floats(&plan, channels) * sizeof(float));
    struct ht_band band;
    POISON(buffer, (size_t)ht_band_floats(&plan, channels) * sizeof(float));
    enum ht_status status = ht_band_init(&band, &plan, channels, &values, buffer, first_row);
    CHECK(status == (naive_valid(&values) ? HT_OK : HT_BAD_VALUES));
    if (status == HT_OK && naive_fit(&values, to)) {
        dense_init(&dense, &y, &x, plan.blend, channels);
        run(&in, &plan, &band, first_row, &values, to);
        free(dense.sums);
    }
    free(buffer);
    return 0;
}
