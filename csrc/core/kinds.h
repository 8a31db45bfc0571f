/* SPDX-License-Identifier: MIT
 *
 * kinds.h - the kinds of tiles along one axis. Internal to the core.
 *
 * Steps differ by at most one phase and the longer ones come first. So the keep, exclusive and done ranges of all tiles
 * have at most five sets of lengths: those of the first tile, of tiles between two longer steps, between a longer and a
 * shorter one, between two shorter ones, and of the last tile. Largest values and sums over all tiles need no loop over
 * them, of which there may be 2^40.
 */
#ifndef HALOTILE_KINDS_H
#define HALOTILE_KINDS_H

#include "halotile.h"

#define HT_KINDS 5

struct ht_kind {
    int64_t i;     /* a tile of this kind */
    int64_t count; /* how many there are, >= 1 */
};

/* Fills in those that the axis has and returns how many. */
int ht_axis_kinds(const struct ht_axis *axis, struct ht_kind kinds[HT_KINDS]);

#endif
