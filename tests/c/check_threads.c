/* SPDX-License-Identifier: MIT
 *
 * Threads that restore one image, each for itself, and threads that share the tile rows of one band's output as devices
 * do. All results are those of one thread. Under the thread sanitizer, no access races. Prints one line.
 */
#include <pthread.h>

#include "random_plans.h"

enum { THREADS = 4 };

static int halve(void *context, const struct ht_batch *b)
{
    (void)context;
    for (int64_t i = 0; i < b->count * b->channels * b->height * b->width; i++)
        b->outputs[i] = b->windows[i] * 0.5f;
    return 0;
}

struct job {
    const struct ht_plan *plan;
    const struct ht_array *image;
    struct ht_array output;
    int64_t first_row, rows; /* tile rows of a team's member */
    pthread_t thread;
};

static void *restore(void *argument)
{
    struct job *job = argument;
    struct ht_restore_options o = {job->plan, ht_values_of(HT_U8), ht_values_of(HT_U8), 3, NULL};
    for (int k = 0; k < 3; k++)
        CHECK(ht_restore(job->image, &job->output, &o, halve, NULL, NULL) == HT_OK);
    return NULL;
}

/* Bands that begin in the middle: tiles from the row before on, as what that one shares belongs to the first rows. */
static void *make_rows(void *argument)
{
    struct job *job = argument;
    const struct ht_plan *plan = job->plan;
    struct ht_values values = ht_values_of(HT_U8);
    int64_t from = job->first_row > 0 ? job->first_row - 1 : 0, window = plan->y.window * plan->x.window;
    float *buffer = allocated(ht_band_floats(plan, 1) * 4), *pixels = allocated(window * 4);
    uint8_t *unused = allocated(plan->y.output_size * plan->x.output_size);
    struct ht_array read = {pixels, HT_F32, 1, plan->y.window, plan->x.window, window, plan->x.window, 1};
    struct ht_band band;
    CHECK(ht_band_init(&band, plan, 1, &values, buffer, from) == HT_OK);
    for (int64_t i = from * plan->x.count; i < (job->first_row + job->rows) * plan->x.count; i++) {
        struct ht_range done = ht_axis_done(&plan->y, i / plan->x.count);
        struct ht_array rows = job->output;
        struct ht_box box = ht_plan_tile(plan, i).window;
        rows.data = i / plan->x.count < job->first_row ? unused : (uint8_t *)rows.data + done.start * rows.stride_y;
        rows.height = done.stop - done.start;
        CHECK(ht_read(&read, job->image, box.y, box.x, &values) == HT_OK);
        for (int64_t k = 0; k < window; k++)
            pixels[k] = pixels[k] * 0.5f;
        CHECK(ht_band_add(&band, i, &read, &rows, NULL) == HT_OK);
    }
    free(buffer), free(pixels), free(unused);
    return NULL;
}

static void run_all(struct job *jobs, void *(*body)(void *))
{
    for (int k = 0; k < THREADS; k++)
        CHECK(pthread_create(&jobs[k].thread, NULL, body, &jobs[k]) == 0);
    for (int k = 0; k < THREADS; k++)
        CHECK(pthread_join(jobs[k].thread, NULL) == 0);
}

int main(void)
{
    struct ht_axis_options y = {.size = 230, .tile = 24, .halo = 5, .overlap = 6, .phase = 1, .scale_num = 1,
                                .scale_den = 1}, x = y;
    struct ht_plan plan;
    x.size = 171;
    CHECK(ht_rows_init(NULL));
    CHECK(ht_plan_init(&plan, &y, &x, HT_COSINE, NULL) == HT_OK);
    struct ht_array image = {allocated(230 * 171), HT_U8, 1, 230, 171, 230 * 171, 171, 1}, want = image;
    for (int64_t i = 0; i < 230 * 171; i++)
        ((uint8_t *)image.data)[i] = (uint8_t)random_bits();
    want.data = allocated(230 * 171);
    struct job alone = {.plan = &plan, .image = &image, .output = want}, jobs[THREADS];
    restore(&alone);

    for (int k = 0; k < THREADS; k++) {
        jobs[k] = alone;
        jobs[k].output.data = allocated(230 * 171);
    }
    run_all(jobs, restore);
    for (int k = 0; k < THREADS; k++) {
        CHECK(memcmp(jobs[k].output.data, want.data, 230 * 171) == 0);
        free(jobs[k].output.data);
    }

    uint8_t *shared = allocated(230 * 171);
    for (int64_t k = 0, row = 0; k < THREADS; k++, row += jobs[k - 1].rows) {
        jobs[k].output.data = shared;
        jobs[k].first_row = row;
        jobs[k].rows = plan.y.count * (k + 1) / THREADS - row;
    }
    run_all(jobs, make_rows);
    CHECK(memcmp(shared, want.data, 230 * 171) == 0);
    free(shared), free(image.data), free(want.data);
    printf("check_threads: %d threads, each for itself and as a team: ok\n", THREADS);
    return 0;
}
