/* SPDX-License-Identifier: MIT
 *
 * array.h - how the verbs reach an array's pixels: as f32 rows. Internal to the core.
 *
 * The verbs work piece by piece: at most HT_PIECE pixels of one row, in all channels of a group. A group is one
 * channel, or three where an array interleaves them (RGB in memory), so that interleaved pixels are touched once.
 */
#ifndef HALOTILE_ARRAY_H
#define HALOTILE_ARRAY_H

#include "rows.h"

#define HT_GROUP 3

/* f32 rows of one piece: row[k] belongs to the k-th channel of the group. */
struct ht_piece {
    int64_t c, y, x, n; /* first channel, row, first column, pixels */
    int group;          /* channels: 1 or HT_GROUP */
    float *row[HT_GROUP];
    float scratch[HT_GROUP][HT_PIECE];
};

void *ht_array_at(const struct ht_array *array, int64_t c, int64_t y, int64_t x);

/* Windows, model outputs and sums: f32, f16 or bf16. */
bool ht_dtype_is_model(enum ht_dtype dtype);

/* Whether peak is above 0, gain is not 0 and all are finite. */
bool ht_values_are_valid(const struct ht_values *values);

/* Whether a destination of that dtype can hold the peak; finish.c. */
bool ht_values_fit(const struct ht_values *values, enum ht_dtype destination);

/* Whether shapes are equal, no side is below 1 and dtypes exist. */
bool ht_array_fits(const struct ht_array *a, const struct ht_array *b);

/* Where both arrays interleave all their channels, makes each one channel, of as many times the width, and returns the
 * number of channels: pixels side by side are elements side by side in both. Else changes nothing and returns 1. */
int64_t ht_array_flatten(struct ht_array *a, struct ht_array *b);

/* HT_GROUP if either array interleaves three channels, else 1. */
int ht_array_group(const struct ht_array *a, const struct ht_array *b);

/* How many of the pixels left in a row make up the next piece. */
static inline int64_t ht_piece_length(int64_t left) { return left < HT_PIECE ? left : HT_PIECE; }

/* Points the rows at the array itself where it holds f32 side by side, else at the scratch. Returns whether it did the
 * former for all rows. */
bool ht_piece_point(struct ht_piece *piece, const struct ht_array *array);

/* rows <- array, array <- rows; converting dtypes. */
void ht_piece_load(struct ht_piece *piece, const struct ht_array *array);
void ht_piece_store(const struct ht_piece *piece, const struct ht_array *array);

/* Points `from` at the array's own rows where their elements lie side by side, else at the scratch, which it loads.
 * Returns the dtype of what is there. */
enum ht_dtype ht_piece_source(struct ht_piece *piece, const struct ht_array *array, const void *from[HT_GROUP]);

#endif
