/* SPDX-License-Identifier: MIT */
#ifndef HALOTILE_NONFINITE_H
#define HALOTILE_NONFINITE_H

#include "halotile.h"

/* The status of a verb whose row kernels have found a NaN or an infinity in source / (ny[y] * nx[x]), or have not; ny
 * and nx both NULL: in source itself. If there is one and *bad is wanted, it looks for the first, which is slow. */
enum ht_status ht_nonfinite(bool found, const struct ht_array *source, const float *ny, const float *nx,
                            struct ht_position *bad);

#endif
