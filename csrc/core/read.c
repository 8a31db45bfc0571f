/* SPDX-License-Identifier: MIT
 *
 * READ: a strided image of any dtype becomes one window in the model's dtype, reflected where the window leaves it.
 */
#include "array.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct job {
    const struct ht_array *window, *image;
    const struct ht_values *values;
    struct ht_piece piece;
};

/* One piece: n pixels of window row wy from column wx, read from image row y, column x on. */
static void read_piece(struct job *job, int64_t wy, int64_t wx, int64_t y, int64_t x, int64_t n)
{
    struct ht_piece *piece = &job->piece;
    const struct ht_values *v = job->values;
    piece->n = n;
    piece->y = wy, piece->x = wx;
    bool direct = ht_piece_point(piece, job->window);
    piece->y = y, piece->x = x;
    ht_piece_load(piece, job->image);
    for (int k = 0; k < piece->group; k++)
        ht_rows.scale(piece->row[k], n, v->peak, v->gain, v->offset);
    piece->y = wy, piece->x = wx;
    if (!direct)
        ht_piece_store(piece, job->window);
}

/* Columns outside the image, one by one; there are at most a few halos of them. */
static void read_reflected(struct job *job, int64_t wy, int64_t y, int64_t x, int64_t start, int64_t stop)
{
    for (int64_t wx = start; wx < stop; wx++)
        read_piece(job, wy, wx, y, ht_reflect(x + wx, job->image->width), 1);
}

static void read_row(struct job *job, int64_t wy, int64_t y, int64_t x)
{
    int64_t width = job->window->width;
    int64_t inside = smaller(larger(-x, 0), width);                                /* first column inside the image */
    int64_t outside = larger(smaller(job->image->width - x, width), inside);        /* first one beyond it */
    read_reflected(job, wy, y, x, 0, inside);
    for (int64_t wx = inside; wx < outside; wx += HT_PIECE)
        read_piece(job, wy, wx, y, x + wx, ht_piece_length(outside - wx));
    read_reflected(job, wy, y, x, outside, width);
}

enum ht_status ht_read(const struct ht_array *window, const struct ht_array *image, int64_t y, int64_t x,
                       const struct ht_values *values)
{
    if (!ht_dtype_is_model(window->dtype) || !ht_array_fits(window, window) || !ht_array_fits(image, image) ||
        window->channels != image->channels)
        return HT_BAD_ARRAY;
    struct job job = {.window = window, .image = image, .values = values};
    job.piece.group = ht_array_group(window, image);
    for (job.piece.c = 0; job.piece.c < window->channels; job.piece.c += job.piece.group)
        for (int64_t wy = 0; wy < window->height; wy++)
            read_row(&job, wy, ht_reflect(y + wy, image->height), x);
    return HT_OK;
}
