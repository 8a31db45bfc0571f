/* SPDX-License-Identifier: MIT
 *
 * band.h - where a band's sums lie: band_buffer.c. Internal to the core.
 */
#ifndef HALOTILE_BAND_H
#define HALOTILE_BAND_H

#include "array.h"
#include "kinds.h"

/* A box of the output image. */
struct ht_area { struct ht_range y, x; };

static inline int64_t ht_length(struct ht_range range) { return range.stop - range.start; }

/* How many pixels of [this tile's keep.start, the next one's) are shared. */
int64_t ht_shared_until_next(const struct ht_axis *axis, int64_t i);

/* From the top of *rest, which are shared rows of the tile row in work, takes as many as lie side by side in the ring;
 * *rest becomes what is left. Not to be called with nothing left. */
struct ht_range ht_band_take_run(const struct ht_band *band, struct ht_range *rest);

/* The sums of such a run of shared rows, in some columns. */
struct ht_array ht_band_ring(const struct ht_band *band, const struct ht_area *area);

/* The sums of the middle in some shared columns on one side of the exclusive ones of a tile. left: how many shared
 * columns there are before what that tile keeps. */
struct ht_array ht_band_columns(const struct ht_band *band, int64_t column, int64_t left, const struct ht_area *area);

#endif
