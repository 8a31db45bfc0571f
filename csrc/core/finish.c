/* SPDX-License-Identifier: MIT
 *
 * FINISH: sums, or a model's output where one tile stands alone, become pixels of the restored image.
 */
#include "array.h"
#include "position.h"

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
    const struct ht_array *destination, *source;
    const float *ny, *nx;
    struct ht_values values;
    struct ht_piece piece;
};

/* Returns whether a quotient is NaN or infinite. */
static bool finish_piece(struct job *job)
{
    struct ht_piece *piece = &job->piece;
    if (!ht_piece_point(piece, job->source))
        ht_piece_load(piece, job->source);
    float *from[HT_GROUP] = {piece->row[0], piece->row[1], piece->row[2]};
    bool direct = ht_piece_point(piece, job->destination);

    float ny = job->ny ? job->ny[piece->y] : 1.0f;
    const float *nx = job->nx ? job->nx + piece->x : NULL;
    bool bad = false;
    for (int k = 0; k < piece->group; k++)
        bad |= ht_rows.resolve(piece->row[k], from[k], ny, nx, piece->n, &job->values);
    if (!direct)
        ht_piece_store(piece, job->destination);
    return bad;
}

bool ht_finish(const struct ht_array *destination, const struct ht_array *source, const float *ny, const float *nx,
               const struct ht_values *values, struct ht_position *first)
{
    struct job job = {.destination = destination, .source = source, .ny = ny, .nx = nx, .values = *values};
    job.values.clamp |= is_integer(destination->dtype);
    struct ht_piece *piece = &job.piece;
    piece->group = ht_array_group(destination, source);
    bool bad = false;
    for (piece->c = 0; piece->c < source->channels; piece->c += piece->group)
        for (piece->y = 0; piece->y < source->height; piece->y++)
            for (piece->x = 0; piece->x < source->width; piece->x += HT_PIECE) {
                piece->n = ht_piece_length(source->width - piece->x);
                bad |= finish_piece(&job);
            }
    if (bad && first)
        ht_find_nonfinite(source, ny, nx, first);
    return bad;
}
