/* SPDX-License-Identifier: MIT
 *
 * ACCUMULATE: what more than one tile contributes to is summed, weighted.
 */
#include "array.h"
#include "nonfinite.h"

static bool can_accumulate(const struct ht_array *sums, const struct ht_array *source)
{
    return ht_array_fits(sums, source) && sums->dtype == HT_F32 && sums->stride_x == 1 &&
           ht_dtype_is_model(source->dtype);
}

/* Returns whether the source holds a NaN or an infinity here. */
static bool accumulate_piece(const struct ht_array *sums, const struct ht_array *source, float wy, const float *wx,
                             struct ht_piece *piece)
{
    const void *from[HT_GROUP];
    enum ht_dtype dtype = ht_piece_source(piece, source, from);
    bool bad = false;
    for (int k = 0; k < piece->group; k++) {
        float *row = ht_array_at(sums, piece->c + k, piece->y, piece->x);
        bad |= ht_rows.accumulate[dtype](row, from[k], wy, wx + piece->x, piece->n);
    }
    return bad;
}

enum ht_status ht_accumulate(const struct ht_array *sums, const struct ht_array *source, const float *wy,
                             const float *wx, struct ht_position *bad)
{
    if (!can_accumulate(sums, source))
        return HT_BAD_ARRAY;
    struct ht_piece piece = {.group = ht_array_group(source, source)};
    bool found = false;
    for (piece.c = 0; piece.c < source->channels; piece.c += piece.group)
        for (piece.y = 0; piece.y < source->height; piece.y++)
            for (piece.x = 0; piece.x < source->width; piece.x += HT_PIECE) {
                piece.n = ht_piece_length(source->width - piece.x);
                found |= accumulate_piece(sums, source, wy[piece.y], wx, &piece);
            }
    return ht_nonfinite(found, source, NULL, NULL, bad);
}
