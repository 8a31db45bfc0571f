/* SPDX-License-Identifier: MIT
 *
 * READ: a strided image of any dtype becomes one window in the model's dtype, reflected where the window leaves it.
 */
#include "array.h"

#include <string.h>

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct job {
    struct ht_array window, image;
    int64_t pixel;      /* columns per pixel: more than one where both arrays are flat */
    int64_t size, step; /* bytes of a window's element, and from one column to the next */
    bool at_once;       /* there is a kernel from the image to the window */
    const struct ht_values *values;
    struct ht_piece piece;
};

/* n columns of window row wy from column wx, read from image row y, column x on: by one kernel. */
static void read_at_once(struct job *job, int64_t wy, int64_t wx, int64_t y, int64_t x, int64_t n)
{
    const struct ht_array *window = &job->window, *image = &job->image;
    const void *source = ht_array_at(image, job->piece.c, y, x);
    void *row[HT_GROUP];
    for (int k = 0; k < job->piece.group; k++)
        row[k] = ht_array_at(window, job->piece.c + k, wy, wx);
    if (job->piece.group == HT_GROUP)
        ht_rows.read3[image->dtype][window->dtype](row[0], row[1], row[2], source, n, job->values);
    else
        ht_rows.read[image->dtype][window->dtype](row[0], source, n, job->values);
}

/* The same step by step; n <= HT_PIECE. */
static void read_piece(struct job *job, int64_t wy, int64_t wx, int64_t y, int64_t x, int64_t n)
{
    struct ht_piece *piece = &job->piece;
    const struct ht_values *v = job->values;
    piece->n = n;
    piece->y = wy, piece->x = wx;
    bool direct = ht_piece_point(piece, &job->window);
    piece->y = y, piece->x = x;
    ht_piece_load(piece, &job->image);
    for (int k = 0; k < piece->group; k++)
        ht_rows.scale(piece->row[k], n, v->peak, v->gain, v->offset);
    piece->y = wy, piece->x = wx;
    if (!direct)
        ht_piece_store(piece, &job->window);
}

/* The same for any n. */
static void read_run(struct job *job, int64_t wy, int64_t wx, int64_t y, int64_t x, int64_t n)
{
    if (job->at_once)
        read_at_once(job, wy, wx, y, x, n);
    else
        for (int64_t done = 0; done < n; done += HT_PIECE)
            read_piece(job, wy, wx + done, y, x + done, ht_piece_length(n - done));
}

/* One pixel of a window row, from another one that was read. */
static void copy_pixel(struct job *job, char *const *row, int64_t to, int64_t from)
{
    for (int64_t column = 0; column < job->pixel; column++)
        for (int k = 0; k < job->piece.group; k++) {
            char *target = row[k] + (to + column) * job->step;
            const char *source = row[k] + (from + column) * job->step;
            if (job->size == sizeof(float))
                memcpy(target, source, sizeof(float));
            else
                memcpy(target, source, sizeof(uint16_t));
        }
}

/* Pixels [start, stop) outside the image, one by one: a wide window over a narrow image has many. Those whose mirror
 * image is among the pixels [inside, outside) of the window, which were read, are copied from there. */
static void read_reflected(struct job *job, int64_t wy, int64_t y, int64_t x, int64_t start, int64_t stop,
                           int64_t inside, int64_t outside)
{
    int64_t pixel = job->pixel, width = job->image.width / pixel;
    char *row[HT_GROUP];
    for (int k = 0; k < job->piece.group; k++)
        row[k] = ht_array_at(&job->window, job->piece.c + k, wy, 0);
    int64_t at = ht_reflect(x + start, width), step = ht_reflect(x + start + 1, width) - at;
    for (int64_t wx = start; wx < stop; wx++) {
        if (at - x >= inside && at - x < outside)
            copy_pixel(job, row, wx * pixel, (at - x) * pixel);
        else
            read_run(job, wy, wx * pixel, y, at * pixel, pixel);
        at += step;
        if (at < 0 || at == width) /* bounces off */
            step = -step, at += 2 * step;
    }
}

static void read_row(struct job *job, int64_t wy, int64_t y, int64_t x)
{
    int64_t pixel = job->pixel, width = job->window.width / pixel;
    int64_t inside = smaller(larger(-x, 0), width);                                 /* first pixel inside the image */
    int64_t outside = larger(smaller(job->image.width / pixel - x, width), inside); /* first one beyond it */
    if (inside < outside)
        read_run(job, wy, inside * pixel, y, (x + inside) * pixel, (outside - inside) * pixel);
    read_reflected(job, wy, y, x, 0, inside, inside, outside);
    read_reflected(job, wy, y, x, outside, width, inside, outside);
}

/* A whole window row, from another one that was read; columns lie side by side. */
static void copy_row(struct job *job, int64_t to, int64_t from)
{
    for (int k = 0; k < job->piece.group; k++)
        memcpy(ht_array_at(&job->window, job->piece.c + k, to, 0), ht_array_at(&job->window, job->piece.c + k, from, 0),
               (size_t)(job->window.width * job->size));
}

/* Window rows [start, stop) outside the image. Those whose mirror image is among the rows [inside, outside), which were
 * read, are copied from there. */
static void read_mirrored_rows(struct job *job, int64_t y, int64_t x, int64_t start, int64_t stop, int64_t inside,
                               int64_t outside)
{
    for (int64_t wy = start; wy < stop; wy++) {
        int64_t at = ht_reflect(y + wy, job->image.height);
        if (job->step == job->size && at - y >= inside && at - y < outside)
            copy_row(job, wy, at - y);
        else
            read_row(job, wy, at, x);
    }
}

/* The channels of a group. */
static void read_rows(struct job *job, int64_t y, int64_t x)
{
    int64_t height = job->window.height;
    int64_t inside = smaller(larger(-y, 0), height), outside = larger(smaller(job->image.height - y, height), inside);
    for (int64_t wy = inside; wy < outside; wy++)
        read_row(job, wy, y + wy, x);
    read_mirrored_rows(job, y, x, 0, inside, inside, outside);
    read_mirrored_rows(job, y, x, outside, height, inside, outside);
}

enum ht_status ht_read(const struct ht_array *window, const struct ht_array *image, int64_t y, int64_t x,
                       const struct ht_values *values)
{
    if (!ht_dtype_is_model(window->dtype) || !ht_array_fits(window, window) || !ht_array_fits(image, image) ||
        window->channels != image->channels)
        return HT_BAD_ARRAY;
    if (!ht_values_are_valid(values))
        return HT_BAD_VALUES;
    struct job job = {.window = *window, .image = *image, .values = values};
    job.pixel = ht_array_flatten(&job.window, &job.image);
    job.piece.group = ht_array_group(&job.window, &job.image);
    job.size = ht_dtype_size(window->dtype);
    job.step = job.window.stride_x * job.size;
    job.at_once = image->dtype < HT_INTEGERS && job.window.stride_x == 1 &&
                  (job.image.stride_x == 1 || job.piece.group == HT_GROUP);
    for (job.piece.c = 0; job.piece.c < job.window.channels; job.piece.c += job.piece.group)
        read_rows(&job, y, x);
    return HT_OK;
}
