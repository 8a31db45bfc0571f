/* SPDX-License-Identifier: MIT
 *
 * ht_restore of any image, in memory of exactly the size told or in its own, with models that fail or make NaN, against
 * windows read one pixel after the other and sums of the image's full size.
 */
#include "dense.h"

static struct dense dense;

struct model {
    int64_t calls, fails_at, next, count, tiles;
    bool spoils;
};

/* A third of the nearest pixel plus half of the last pixel of the next channel. */
static void apply(const struct ht_batch *b, const float *window, float *output, bool spoils)
{
    for (int64_t c = 0; c < b->out_channels; c++)
        for (int64_t y = 0; y < b->out_height; y++)
            for (int64_t x = 0; x < b->out_width; x++) {
                int64_t wy = (y + dense.y.trim) * dense.y.den / dense.y.num, wx = (x + dense.x.trim) * dense.x.den / dense.x.num;
                volatile float here = window[(c % b->channels * b->height + wy) * b->width + wx] / 3;
                volatile float there = window[((c + 1) % b->channels + 1) * b->height * b->width - 1] * 0.5f;
                float sum = here + there;
                output[(c * b->out_height + y) * b->out_width + x] = spoils && sum > 0.6f ? INFINITY : sum;
            }
}

static int call(void *context, const struct ht_batch *b)
{
    struct model *m = context;
    CHECK(m->calls == 0 || b->count == m->count);
    CHECK(b->first_tile + b->count > m->next && b->first_tile <= m->next && b->first_tile >= 0);
    CHECK(b->first_tile == m->next || b->first_tile + b->count == m->tiles);
    CHECK(b->height == dense.y.window && b->width == dense.x.window);
    CHECK(b->out_height == naive_output(&dense.y) && b->out_width == naive_output(&dense.x));
    MUST_BE_SET(b->windows, (size_t)(b->count * b->channels * b->height * b->width) * sizeof(float));
    m->count = b->count, m->next = b->first_tile + b->count;
    if (m->calls++ == m->fails_at)
        return -1;
    for (int64_t k = 0; k < b->count; k++)
        apply(b, b->windows + k * b->channels * b->height * b->width,
              b->outputs + k * b->out_channels * b->out_height * b->out_width, m->spoils);
    return 0;
}

static bool add_naively(int64_t i, const struct ht_array *image, const struct ht_values *values, bool spoils)
{
    struct ht_batch b = {.channels = image->channels, .height = dense.y.window, .width = dense.x.window,
                         .out_channels = dense.channels, .out_height = naive_output(&dense.y),
                         .out_width = naive_output(&dense.x)};
    float *window = malloc((size_t)(b.channels * b.height * b.width) * sizeof(float)), *at = window;
    float *output = malloc((size_t)(b.out_channels * b.out_height * b.out_width) * sizeof(float));
    int64_t top = dense.y.starts[i / dense.x.count], left = dense.x.starts[i % dense.x.count];
    for (int64_t c = 0; c < b.channels; c++)
        for (int64_t y = top; y < top + b.height; y++)
            for (int64_t x = left; x < left + b.width; x++) {
                int64_t iy = naive_reflect(y, image->height), ix = naive_reflect(x, image->width);
                *at++ = naive_model_value(naive_load(image->dtype, element_of(image, c, iy, ix)), values);
            }
    apply(&b, window, output, spoils);
    struct ht_array array = {output, HT_F32, b.out_channels, b.out_height, b.out_width, b.out_height * b.out_width,
                             b.out_width, 1};
    bool found = dense_add(&dense, i, &array);
    free(window), free(output);
    return found;
}

/* The first rows of the results. */
static void check_rows(const struct owned *output, const struct owned *before, int64_t rows,
                       const struct ht_values *values)
{
    struct owned want = copy_of(before), got = copy_of(output);
    want.array.height = got.array.height = rows;
    dense_finish(&dense, &want.array, 0, values);
    if (rows == output->array.height) {
        check_same(&got, &want);
    } else {
        EACH_ELEMENT(&want.array, c, y, x) {
            void *g = element_of(&got.array, c, y, x), *w = element_of(&want.array, c, y, x);
            float a = naive_load(got.array.dtype, g), b = naive_load(got.array.dtype, w);
            CHECK(memcmp(g, w, (size_t)ht_dtype_size(got.array.dtype)) == 0 || (isnan(a) && isnan(b)));
        }
    }
    free(want.memory), free(got.memory);
}

static void check_run(struct input *in, const struct ht_restore_options *o, const struct owned *image,
                      struct owned *output)
{
    struct model m = {.fails_at = byte_of(in) > 200 ? number(in, 0, 20) : -1, .tiles = o->plan->count,
                      .spoils = byte_of(in) > 200};
    struct owned before = copy_of(output);
    struct ht_position bad = {-1, -1, -1};
    bool found = false, wanted = byte_of(in) & 1;
    for (int64_t i = 0; i < o->plan->count; i++)
        found |= add_naively(i, &image->array, &o->input, m.spoils);
    found |= dense_overflows(&dense, (struct ht_range){0, dense.y.output_size});
    unset_elements(output);
    enum ht_status status = ht_restore(&image->array, &output->array, o, call, &m, wanted ? &bad : NULL);
    if (m.fails_at >= 0 && m.calls == m.fails_at + 1) {
        int64_t complete = m.fails_at * m.count;
        CHECK(status == HT_MODEL_FAILED);
        check_rows(output, &before, ht_plan_rows_complete(o->plan, complete - 1), &o->output);
    } else {
        CHECK(status == (found ? HT_NONFINITE : HT_OK) && m.next == o->plan->count);
        CHECK((bad.c >= 0) == (found && wanted));
        CHECK(bad.c < 0 || !isfinite(dense_quotient(&dense, bad.c, bad.y, bad.x)));
        check_rows(output, &before, output->array.height, &o->output);
    }
    free(before.memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    struct ht_axis_options y, x;
    struct ht_plan plan;
    choose_rows(&in);
    if (!plan_from(&in, &plan, &y, &x) || plan.count > 60)
        return 0;
    int64_t channels = number(&in, 1, 4), out_channels = byte_of(&in) & 1 ? channels : number(&in, 1, 4);
    enum ht_dtype from = (enum ht_dtype)number(&in, 0, 5), to = (enum ht_dtype)number(&in, 0, 5);
    struct ht_restore_options o = {&plan, ht_values_of(from), ht_values_of(to), number(&in, -1, 9), NULL};
    if (byte_of(&in) & 1)
        o.input = values_from(&in), o.output = values_from(&in);
    struct owned image = owned_from(&in, from, channels, y.size, x.size, true);
    struct owned output = owned_from(&in, to, out_channels, plan.y.output_size, plan.x.output_size, false);
    fill_owned(&image, &in, byte_of(&in) > 200 ? ANYTHING : TAME);
    dense_init(&dense, &y, &x, plan.blend, out_channels);
    int64_t floats = ht_restore_floats(&o, channels, out_channels);
    if (floats >= 0 && byte_of(&in) & 1) {
        o.memory = malloc((size_t)floats * sizeof(float));
        POISON(o.memory, (size_t)floats * sizeof(float));
    }
    struct model m = {.fails_at = 0};
    if (!naive_valid(&o.input) || !naive_valid(&o.output))
        CHECK(ht_restore(&image.array, &output.array, &o, call, &m, NULL) == HT_BAD_VALUES);
    else if (!naive_fit(&o.output, to))
        CHECK(ht_restore(&image.array, &output.array, &o, call, &m, NULL) == HT_BAD_ARRAY);
    else if (floats < 0)
        CHECK(ht_restore(&image.array, &output.array, &o, call, &m, NULL) == HT_TOO_LARGE);
    else
        check_run(&in, &o, &image, &output);
    free(o.memory), free(image.memory), free(output.memory), free(dense.sums);
    return 0;
}
