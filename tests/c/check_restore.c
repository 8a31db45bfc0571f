/* SPDX-License-Identifier: MIT
 *
 * ht_restore of random plans against the naive way: windows read pixel by pixel, the model on one at a time, sums of
 * the image's full size. In memory of exactly the size told, and in its own; with models that fail. Then what it
 * refuses. Prints one line.
 */
#include "random_plans.h"

/* The model: its output's pixel (y, x) is half of the window's nearest pixel, plus a third of the first one of the next
 * channel: so that whole windows matter, and channels may be more or less. Pixels of 0.25 become NaN. */
struct model {
    const struct ht_plan *plan;
    int64_t calls, fails_at, count, next;
};

static void apply(const struct ht_plan *plan, const float *window, float *output, const struct ht_batch *b)
{
    for (int64_t c = 0; c < b->out_channels; c++)
        for (int64_t y = 0; y < b->out_height; y++)
            for (int64_t x = 0; x < b->out_width; x++) {
                int64_t wy = (y + plan->y.trim) * plan->y.scale_den / plan->y.scale_num;
                int64_t wx = (x + plan->x.trim) * plan->x.scale_den / plan->x.scale_num;
                const float *channel = window + c % b->channels * b->height * b->width;
                float half = 0.5f * channel[wy * b->width + wx];
                float first = window[(c + 1) % b->channels * b->height * b->width] / 3;
                float sum = half + first;
                output[(c * b->out_height + y) * b->out_width + x] = half == 0.125f ? NAN : sum;
            }
}

static int run(void *context, const struct ht_batch *b)
{
    struct model *m = context;
    CHECK(m->calls == 0 || b->count == m->count);
    CHECK(b->first_tile >= 0 && b->first_tile <= m->next && b->first_tile + b->count > m->next);
    CHECK(b->first_tile == m->next || b->first_tile + b->count == m->plan->count); /* only the last sees some again */
    m->count = b->count;
    m->next = b->first_tile + b->count;
    if (m->calls++ == m->fails_at)
        return 7;
    for (int64_t k = 0; k < b->count; k++)
        apply(m->plan, b->windows + k * b->channels * b->height * b->width,
              b->outputs + k * b->out_channels * b->out_height * b->out_width, b);
    return 0;
}

static void fill_image(const struct ht_array *image)
{
    for (int64_t i = 0; i < image->channels * image->height * image->width; i++)
        if (image->dtype == HT_U8)
            ((uint8_t *)image->data)[i] = (uint8_t)random_bits();
        else
            ((float *)image->data)[i] = one_in(200) ? 0.25f : random_float();
}

static float image_at(const struct ht_array *image, int64_t c, int64_t y, int64_t x, const struct ht_values *v)
{
    int64_t at = element(image, c, ht_reflect(y, image->height), ht_reflect(x, image->width));
    float value = image->dtype == HT_U8 ? (float)((uint8_t *)image->data)[at] : ((float *)image->data)[at];
    if (v->peak != 1)
        value = value / v->peak;
    if (v->gain != 1 || v->offset != 0) {
        value = value * v->gain;
        value = value + v->offset;
    }
    return value;
}

/* Returns whether anything that is kept is NaN or infinite. */
static bool add_naive(struct dense *dense, int64_t i, const struct ht_array *image, const struct ht_values *values)
{
    const struct ht_axis *y = &dense->plan.y, *x = &dense->plan.x;
    struct ht_batch b = {.channels = image->channels, .height = y->window, .width = x->window,
                         .out_channels = dense->channels};
    b.out_height = y->window / y->scale_den * y->scale_num - 2 * y->trim;
    b.out_width = x->window / x->scale_den * x->scale_num - 2 * x->trim;
    float *window = allocated(b.channels * b.height * b.width * 4);
    float *output = allocated(b.out_channels * b.out_height * b.out_width * 4);
    struct ht_box box = ht_plan_tile(&dense->plan, i).window;
    for (int64_t c = 0; c < b.channels; c++)
        for (int64_t wy = 0; wy < b.height; wy++)
            for (int64_t wx = 0; wx < b.width; wx++)
                window[(c * b.height + wy) * b.width + wx] = image_at(image, c, box.y + wy, box.x + wx, values);
    apply(&dense->plan, window, output, &b);
    struct ht_array array = {output, HT_F32, b.out_channels, b.out_height, b.out_width,
                             b.out_height * b.out_width, b.out_width, 1};
    bool bad = add_dense(dense, i, &array);
    free(window);
    free(output);
    return bad;
}

/* The first `rows` rows of the output. */
static void check_rows(const struct dense *dense, const struct ht_array *output, const struct ht_values *values,
                       int64_t rows)
{
    for (int64_t c = 0; c < dense->channels; c++)
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < output->width; x++)
                CHECK(is_value(output, c, y, x, dense_quotient(dense, c, y, x), values));
}

static long spoilt; /* images with NaN or infinity in their results */

static void check_random_restore(void)
{
    struct ht_plan plan = random_plan();
    int64_t channels = between(1, 4), out_channels = one_in(2) ? channels : between(1, 4);
    enum ht_dtype dtypes[] = {HT_U8, HT_F32};
    struct ht_array image = new_array(dtypes[between(0, 1)], channels, plan.y.size, plan.x.size);
    struct ht_array output = new_array(dtypes[between(0, 1)], out_channels, plan.y.output_size, plan.x.output_size);
    struct ht_restore_options o = {&plan, ht_values_of(image.dtype), ht_values_of(output.dtype), between(-1, 6), NULL};
    if (one_in(3))
        o.input.gain = o.output.gain = 2, o.input.offset = o.output.offset = -1;
    if (one_in(2))
        o.memory = allocated(ht_restore_floats(&o, channels, out_channels) * (int64_t)sizeof(float));
    struct model m = {.plan = &plan, .fails_at = one_in(4) ? between(0, plan.count) : -1};
    struct dense dense = new_dense(&plan, out_channels);
    bool found = false;
    fill_image(&image);
    for (int64_t i = 0; i < plan.count; i++)
        found |= add_naive(&dense, i, &image, &o.input);

    struct ht_position bad = {-1, -1, -1};
    enum ht_status status = ht_restore(&image, &output, &o, run, &m, one_in(5) ? NULL : &bad);
    if (m.fails_at >= 0 && m.calls == m.fails_at + 1) {
        int64_t before = m.next == plan.count ? m.fails_at * m.count : m.next - m.count;
        CHECK(status == HT_MODEL_FAILED);
        check_rows(&dense, &output, &o.output, ht_plan_rows_complete(&plan, before - 1));
    } else {
        CHECK(status == (found ? HT_NONFINITE : HT_OK));
        spoilt += found;
        check_rows(&dense, &output, &o.output, output.height);
        CHECK(m.next == plan.count && (found || bad.c == -1));
        CHECK(m.count == 1 || (m.count <= o.batch && m.calls == (plan.count + o.batch - 1) / o.batch));
    }
    if (bad.c >= 0)
        CHECK(!isfinite(dense_quotient(&dense, bad.c, bad.y, bad.x)));
    free_dense(&dense);
    free(o.memory);
    free(image.data);
    free(output.data);
}

static void check_refusals(void)
{
    struct ht_axis_options side = {.size = 9, .tile = 4, .halo = 1, .phase = 1, .scale_num = 1, .scale_den = 1};
    struct ht_plan plan, huge;
    CHECK(ht_plan_init(&plan, &side, &side, HT_AVERAGE, NULL) == HT_OK);
    side.size = HT_MAX_SIDE, side.tile = HT_MAX_SIDE;
    CHECK(ht_plan_init(&huge, &side, &side, HT_AVERAGE, NULL) == HT_OK);
    struct ht_array image = new_array(HT_U8, 3, 9, 9), output = new_array(HT_U8, 3, 9, 9), low = output, thin = image;
    struct ht_array large = image;
    struct ht_restore_options o = {&plan, ht_values_of(HT_U8), ht_values_of(HT_U8), 1, NULL}, unset = {.plan = &plan};
    low.height--, thin.width--, large.height = large.width = HT_MAX_SIDE;
    CHECK(ht_restore(&thin, &output, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    CHECK(ht_restore(&image, &low, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    thin = image, thin.channels = 0;
    CHECK(ht_restore(&thin, &output, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    CHECK(ht_restore(&image, &thin, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    thin = image, thin.height++;
    CHECK(ht_restore(&thin, &output, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    low = output, low.width++;
    CHECK(ht_restore(&image, &low, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    low = output, low.dtype = HT_DTYPE_COUNT;
    CHECK(ht_restore(&image, &low, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    low = output, low.dtype = (enum ht_dtype)-1;
    CHECK(ht_restore(&low, &output, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    CHECK(ht_restore(&image, &output, &unset, run, NULL, NULL) == HT_BAD_VALUES);
    o.output = ht_values_of(HT_U16);
    CHECK(ht_restore(&image, &output, &o, run, NULL, NULL) == HT_BAD_ARRAY);
    o = (struct ht_restore_options){&huge, ht_values_of(HT_U8), ht_values_of(HT_U8), 1, NULL};
    CHECK(ht_restore_floats(&o, 3, 3) == -1 && ht_restore(&large, &large, &o, run, NULL, NULL) == HT_TOO_LARGE);
    o.plan = &plan;
    CHECK(ht_restore_floats(&o, 0, 3) == -1 && ht_restore_floats(&o, 3, 0) == -1);
    CHECK(ht_values_of(HT_U16).peak == 65535 && ht_values_of(HT_F16).peak == 1 && !ht_values_of(HT_F16).clamp);
    free(image.data);
    free(output.data);
}

/* What no memory holds: refused, and nothing is touched. */
static void check_too_large(void)
{
    struct ht_axis_options y = {.size = HT_MAX_SIDE, .tile = HT_MAX_SIDE, .phase = 1, .scale_num = 1, .scale_den = 1};
    struct ht_axis_options x = y;
    struct ht_array image = new_array(HT_U8, 1, 1, 1), output = new_array(HT_U8, 1, 1, 1);
    struct ht_plan plan;
    struct ht_restore_options o = {&plan, ht_values_of(HT_U8), ht_values_of(HT_U8), 1, NULL};
    image.height = output.height = HT_MAX_SIDE;
    for (int bits = 10; bits <= 22; bits++) {
        image.width = output.width = x.size = (int64_t)1 << bits;
        CHECK(ht_plan_init(&plan, &y, &x, HT_AVERAGE, NULL) == HT_OK);
        enum ht_status status = ht_restore(&image, &output, &o, run, NULL, NULL);
        CHECK(status == (bits < 22 ? HT_NO_MEMORY : HT_TOO_LARGE)); /* at 2^22 two numbers that fit do not together */
    }
    y.scale_den = x.scale_den = 2;
    x.tile = HT_MAX_SIDE, x.halo = 8; /* more than 2^62 floats: their bytes do not fit */
    CHECK(ht_plan_init(&plan, &y, &x, HT_AVERAGE, NULL) == HT_OK);
    output.height = plan.y.output_size, output.width = plan.x.output_size;
    CHECK(ht_restore_floats(&o, 1, 1) > INT64_MAX / 2);
    CHECK(ht_restore(&image, &output, &o, run, NULL, NULL) == HT_NO_MEMORY);
    free(image.data);
    free(output.data);
}

const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

int main(void)
{
    for (case_number = 0; case_number < 1500; case_number++)
        check_random_restore();
    CHECK(spoilt > 50);
    check_refusals();
    check_too_large();
    printf("check_restore: %ld random images, %ld of them spoilt, refusals: ok\n", case_number, spoilt);
    return 0;
}
