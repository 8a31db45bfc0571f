/* SPDX-License-Identifier: MIT
 *
 * RESTORE: the whole loop, one thread: read a batch of windows, call the model, add its outputs to the band.
 */
#include <stdlib.h>

#include "array.h"

struct ht_values ht_values_of(enum ht_dtype dtype)
{
    struct ht_values values = {1, 1, 0, dtype < HT_INTEGERS};
    if (dtype < HT_INTEGERS)
        values.peak = dtype == HT_U8 ? 255.0f : 65535.0f;
    return values;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* As many calls as batches of the asked size need, and windows spread evenly over them. */
static int64_t batch_of(const struct ht_restore_options *options)
{
    int64_t count = options->plan->count, most = options->batch < 1 ? 1 : options->batch;
    int64_t calls = (count - 1) / most + 1;
    return (count - 1) / calls + 1;
}

static struct ht_batch empty_batch(const struct ht_restore_options *options, int64_t channels, int64_t out_channels)
{
    const struct ht_axis *y = &options->plan->y, *x = &options->plan->x;
    return (struct ht_batch){
        .count = batch_of(options),
        .channels = channels,
        .height = y->window,
        .width = x->window,
        .out_channels = out_channels,
        .out_height = ht_axis_model_output(y),
        .out_width = ht_axis_model_output(x),
    };
}

/* count * channels * height * width, all at least 1, or -1 if that does not fit. */
static int64_t floats_of(int64_t count, int64_t channels, int64_t height, int64_t width)
{
    const int64_t factors[] = {channels, height, width};
    int64_t product = count;
    for (int k = 0; k < 3; k++) {
        if (factors[k] < 1 || product > INT64_MAX / factors[k])
            return -1;
        product *= factors[k];
    }
    return product;
}

int64_t ht_restore_floats(const struct ht_restore_options *options, int64_t channels, int64_t out_channels)
{
    struct ht_batch b = empty_batch(options, channels, out_channels);
    const int64_t parts[] = {floats_of(b.count, b.channels, b.height, b.width),
                             floats_of(b.count, b.out_channels, b.out_height, b.out_width),
                             ht_band_floats(options->plan, out_channels)};
    int64_t floats = 0;
    for (int k = 0; k < 3; k++) {
        if (parts[k] < 0 || floats > INT64_MAX - parts[k])
            return -1;
        floats += parts[k];
    }
    return floats;
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

struct job {
    const struct ht_array *image, *output;
    const struct ht_restore_options *options;
    ht_model *model;
    void *context;
    struct ht_batch batch;
    float *windows;
    struct ht_band band;
    bool found; /* whether a NaN or an infinity was met */
    struct ht_position *bad;
};

/* The k-th of a batch's windows or outputs. */
static struct ht_array array_of(const float *data, int64_t k, int64_t channels, int64_t height, int64_t width)
{
    float *first = (float *)data + k * channels * height * width;
    return (struct ht_array){first, HT_F32, channels, height, width, height * width, width, 1};
}

static enum ht_status read_windows(const struct job *job)
{
    const struct ht_batch *b = &job->batch;
    enum ht_status status = HT_OK;
    for (int64_t k = 0; k < b->count && status == HT_OK; k++) {
        struct ht_box box = ht_plan_tile(job->options->plan, b->first_tile + k).window;
        struct ht_array window = array_of(job->windows, k, b->channels, b->height, b->width);
        status = ht_read(&window, job->image, box.y, box.x, &job->options->input);
    }
    return status;
}

/* Where the finished rows of a tile row go. */
static struct ht_array rows_of(const struct job *job, int64_t row)
{
    struct ht_range done = ht_axis_done(&job->options->plan->y, row);
    struct ht_array rows = *job->output;
    rows.data = ht_array_at(&rows, 0, done.start, 0);
    rows.height = done.stop - done.start;
    return rows;
}

static enum ht_status add_output(struct job *job, int64_t tile)
{
    const struct ht_batch *b = &job->batch;
    struct ht_array output =
        array_of(b->outputs, tile - b->first_tile, b->out_channels, b->out_height, b->out_width);
    struct ht_array rows = rows_of(job, tile / job->options->plan->x.count);
    enum ht_status status = ht_band_add(&job->band, tile, &output, &rows, job->found ? NULL : job->bad);
    job->found |= status == HT_NONFINITE;
    return status == HT_NONFINITE ? HT_OK : status;
}

/* Every batch has the same number of windows: the last one may see some again. */
static enum ht_status run(struct job *job)
{
    int64_t count = job->options->plan->count;
    enum ht_status status = HT_OK;
    for (int64_t first = 0, stop; first < count && status == HT_OK; first = stop) {
        stop = first + smaller(job->batch.count, count - first);
        job->batch.first_tile = stop - job->batch.count;
        status = read_windows(job);
        if (status == HT_OK && job->model(job->context, &job->batch) != 0)
            status = HT_MODEL_FAILED;
        for (int64_t tile = first; tile < stop && status == HT_OK; tile++)
            status = add_output(job, tile);
    }
    return status == HT_OK && job->found ? HT_NONFINITE : status;
}

static enum ht_status check(const struct ht_array *image, const struct ht_array *output,
                            const struct ht_restore_options *options)
{
    const struct ht_plan *plan = options->plan;
    if (!ht_array_fits(image, image) || !ht_array_fits(output, output) || image->height != plan->y.size ||
        image->width != plan->x.size || output->height != plan->y.output_size || output->width != plan->x.output_size)
        return HT_BAD_ARRAY;
    if (!ht_values_are_valid(&options->input) || !ht_values_are_valid(&options->output))
        return HT_BAD_VALUES;
    return ht_values_fit(&options->output, output->dtype) ? HT_OK : HT_BAD_ARRAY;
}

static enum ht_status run_in(struct job *job, float *memory)
{
    const struct ht_restore_options *options = job->options;
    struct ht_batch *b = &job->batch;
    job->windows = memory;
    b->windows = job->windows;
    b->outputs = job->windows + b->count * b->channels * b->height * b->width;
    float *buffer = b->outputs + b->count * b->out_channels * b->out_height * b->out_width;
    enum ht_status status =
        ht_band_init(&job->band, options->plan, b->out_channels, &options->output, buffer, 0);
    return status == HT_OK ? run(job) : status;
}

enum ht_status ht_restore(const struct ht_array *image, const struct ht_array *output,
                          const struct ht_restore_options *options, ht_model *model, void *context,
                          struct ht_position *bad)
{
    enum ht_status status = check(image, output, options);
    if (status != HT_OK)
        return status;
    if (!ht_rows_init(NULL))
        return HT_BAD_CPU;
    int64_t floats = ht_restore_floats(options, image->channels, output->channels);
    if (floats < 0)
        return HT_TOO_LARGE;
    bool countable = (uint64_t)floats <= SIZE_MAX / sizeof(float);
    float *memory = options->memory || !countable ? options->memory : malloc((size_t)floats * sizeof(float));
    if (!memory)
        return HT_NO_MEMORY;
    struct job job = {.image = image, .output = output, .options = options, .model = model, .context = context,
                      .batch = empty_batch(options, image->channels, output->channels), .bad = bad};
    status = run_in(&job, memory);
    if (memory != options->memory)
        free(memory);
    return status;
}
