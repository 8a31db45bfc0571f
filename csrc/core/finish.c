/* SPDX-License-Identifier: MIT
 *
 * FINISH: sums, or a model's output where one tile stands alone, become pixels of the restored image.
 */
#include "array.h"
#include "nonfinite.h"

static bool is_integer(enum ht_dtype dtype) { return dtype == HT_U8 || dtype == HT_U16; }

enum ht_status ht_finish_check(const struct ht_array *destination, const struct ht_array *source,
                               const struct ht_values *values)
{
    bool fits = ht_array_fits(destination, source) && ht_dtype_is_model(source->dtype);
    if (fits && is_integer(destination->dtype))
        fits = values->peak <= (destination->dtype == HT_U8 ? 255.0f : 65535.0f);
    return fits ? HT_OK : HT_BAD_ARRAY;
}

struct job {
    struct ht_array destination, source;
    const float *ny, *nx;
    struct ht_values values;
    struct ht_piece piece;
};

/* Returns whether a quotient is NaN or infinite. */
static bool finish_piece(struct job *job)
{
    struct ht_piece *piece = &job->piece;
    const void *from[HT_GROUP];
    enum ht_dtype dtype = ht_piece_source(piece, &job->source, from);
    bool direct = ht_piece_point(piece, &job->destination);

    float ny = job->ny ? job->ny[piece->y] : 1.0f;
    const float *nx = job->nx ? job->nx + piece->x : NULL;
    bool bad = false;
    for (int k = 0; k < piece->group; k++)
        bad |= ht_rows.resolve[dtype](piece->row[k], from[k], ny, nx, piece->n, &job->values);
    if (!direct)
        ht_piece_store(piece, &job->destination);
    return bad;
}

bool ht_finish(const struct ht_array *destination, const struct ht_array *source, const float *ny, const float *nx,
               const struct ht_values *values, struct ht_position *first)
{
    struct job job = {.destination = *destination, .source = *source, .ny = ny, .nx = nx, .values = *values};
    struct ht_piece *piece = &job.piece;
    bool bad = false;
    job.values.clamp |= is_integer(destination->dtype);
    if (!nx)
        ht_array_flatten(&job.destination, &job.source);
    piece->group = ht_array_group(&job.destination, &job.source);
    for (piece->c = 0; piece->c < job.source.channels; piece->c += piece->group)
        for (piece->y = 0; piece->y < job.source.height; piece->y++)
            for (piece->x = 0; piece->x < job.source.width; piece->x += HT_PIECE) {
                piece->n = ht_piece_length(job.source.width - piece->x);
                bad |= finish_piece(&job);
            }
    if (bad && first)
        ht_find_nonfinite(source, ny, nx, first);
    return bad;
}
