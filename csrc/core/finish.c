/* SPDX-License-Identifier: MIT
 *
 * FINISH: sums, or a model's output where one tile stands alone, become pixels of the restored image.
 */
#include "array.h"
#include "nonfinite.h"

static bool is_integer(enum ht_dtype dtype) { return dtype == HT_U8 || dtype == HT_U16; }

bool ht_values_fit(const struct ht_values *values, enum ht_dtype destination)
{
    return !is_integer(destination) || values->peak <= (destination == HT_U8 ? 255.0f : 65535.0f);
}

static enum ht_status check(const struct ht_array *destination, const struct ht_array *source,
                            const struct ht_values *values)
{
    if (!ht_values_are_valid(values))
        return HT_BAD_VALUES;
    bool fits = ht_array_fits(destination, source) && ht_dtype_is_model(source->dtype) &&
                ht_values_fit(values, destination->dtype);
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

enum ht_status ht_finish(const struct ht_array *destination, const struct ht_array *source, const float *ny,
                         const float *nx, const struct ht_values *values, struct ht_position *bad)
{
    enum ht_status status = check(destination, source, values);
    if (status != HT_OK)
        return status;
    struct job job = {.destination = *destination, .source = *source, .ny = ny, .nx = nx, .values = *values};
    struct ht_piece *piece = &job.piece;
    bool found = false;
    job.values.clamp |= is_integer(destination->dtype);
    if (!nx)
        ht_array_flatten(&job.destination, &job.source);
    piece->group = ht_array_group(&job.destination, &job.source);
    for (piece->c = 0; piece->c < job.source.channels; piece->c += piece->group)
        for (piece->y = 0; piece->y < job.source.height; piece->y++)
            for (piece->x = 0; piece->x < job.source.width; piece->x += HT_PIECE) {
                piece->n = ht_piece_length(job.source.width - piece->x);
                found |= finish_piece(&job);
            }
    return ht_nonfinite(found, source, ny, nx, bad);
}
