/* SPDX-License-Identifier: MIT */
#ifndef HALOTILE_NONFINITE_H
#define HALOTILE_NONFINITE_H

#include "halotile.h"

/* The first position where source / (ny[y] * nx[x]) is NaN or infinite; ny and nx both NULL: source itself. There is
 * one: this is slow, and called once a row kernel has seen it. */
void ht_find_nonfinite(const struct ht_array *source, const float *ny, const float *nx, struct ht_position *first);

#endif
