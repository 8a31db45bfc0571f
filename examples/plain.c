/* SPDX-License-Identifier: MIT
 *
 * plain.c - an image restored by the C core alone: PPM in, PPM out, a small blur as the model.
 *
 *     make install-core PREFIX=$HOME/.local
 *     export PKG_CONFIG_PATH=$HOME/.local/lib/pkgconfig
 *     cc -std=c11 -O2 examples/plain.c $(pkg-config --cflags --libs halotile) -o plain
 *     ./plain in.ppm out.ppm --tile 256 --scale 2
 *
 * Put your own model where `blur` is.
 */
#include "ppm.h"

/* ---- the model -------------------------------------------------------------------------------------------------- */

static int64_t clamped(int64_t at, int64_t size) { return at < 0 ? 0 : at < size ? at : size - 1; }

/* The weighted mean of 3x3 pixels: it sees one pixel around, so a halo of 1 makes tiles exact. */
static float blurred(const float *channel, int64_t height, int64_t width, int64_t y, int64_t x)
{
    static const float weights[3] = {1, 2, 1};
    float sum = 0;
    for (int dy = 0; dy < 3; dy++)
        for (int dx = 0; dx < 3; dx++)
            sum += weights[dy] * weights[dx] *
                   channel[clamped(y + dy - 1, height) * width + clamped(x + dx - 1, width)];
    return sum / 16;
}

/* context: how many times each pixel is repeated, in rows and in columns. Windows and outputs are contiguous. */
static int blur(void *context, const struct ht_batch *batch)
{
    int64_t scale = *(const int64_t *)context, height = batch->height, width = batch->width;
    for (int64_t k = 0; k < batch->count * batch->channels; k++) {
        const float *channel = batch->windows + k * height * width;
        float *output = batch->outputs + k * batch->out_height * batch->out_width;
        for (int64_t y = 0; y < batch->out_height; y++)
            for (int64_t x = 0; x < batch->out_width; x++)
                output[y * batch->out_width + x] = blurred(channel, height, width, y / scale, x / scale);
    }
    return 0;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    if (argc < 3)
        fail("usage", "plain IN.ppm OUT.ppm [--tile 256] [--halo 1] [--overlap 16] [--scale 1] [--batch 1]");
    struct ht_array image = read_ppm(argv[1]);
    int64_t scale = option(argc, argv, "--scale", 1);

    struct ht_axis_options rows = {
        .size = image.height,
        .tile = option(argc, argv, "--tile", 256),
        .halo = option(argc, argv, "--halo", 1),
        .overlap = option(argc, argv, "--overlap", 16),
        .phase = 1,
        .scale_num = scale,
        .scale_den = 1,
        .boundary = HT_REFLECT,
    };
    struct ht_axis_options columns = rows;
    columns.size = image.width;
    struct ht_plan plan;
    enum ht_status status = ht_plan_init(&plan, &rows, &columns, HT_COSINE, NULL);
    if (status != HT_OK)
        fail("plan", ht_status_text(status));

    struct ht_array output = new_image(plan.y.output_size, plan.x.output_size);
    struct ht_restore_options options = {
        .plan = &plan,
        .input = ht_values_of(image.dtype),
        .output = ht_values_of(output.dtype),
        .batch = option(argc, argv, "--batch", 1),
    };
    status = ht_restore(&image, &output, &options, blur, &scale, NULL);
    if (status != HT_OK)
        fail(argv[1], ht_status_text(status));
    write_ppm(argv[2], &output);
    free(image.data);
    free(output.data);
    return 0;
}
