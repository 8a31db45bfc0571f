/* SPDX-License-Identifier: MIT */
#include "nonfinite.h"

#include <math.h>

#include "array.h"

static void find(const struct ht_array *source, const float *ny, const float *nx, struct ht_position *first)
{
    for (int64_t c = 0; c < source->channels; c++)
        for (int64_t y = 0; y < source->height; y++)
            for (int64_t x = 0; x < source->width; x++) {
                float value;
                ht_load_strided(&value, ht_array_at(source, c, y, x), source->dtype, 1, 1);
                if (nx)
                    value /= ny[y] * nx[x];
                if (!isfinite(value)) {
                    *first = (struct ht_position){c, y, x};
                    return;
                }
            }
}

enum ht_status ht_nonfinite(bool found, const struct ht_array *source, const float *ny, const float *nx,
                            struct ht_position *bad)
{
    if (found && bad)
        find(source, ny, nx, bad);
    return found ? HT_NONFINITE : HT_OK;
}
