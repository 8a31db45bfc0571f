/* SPDX-License-Identifier: MIT */
#include "halotile.h"

const char *ht_status_text(enum ht_status status)
{
    switch (status) {
    case HT_OK: return "no error";
    case HT_BAD_SIZE: return "an image side must be at least 1, and the least window at least 0";
    case HT_BAD_TILE: return "tile_size must be at least 1";
    case HT_BAD_HALO: return "halo must be at least 0";
    case HT_BAD_OVERLAP: return "overlap must be at least 0 and below tile_size";
    case HT_BAD_PHASE: return "phase must be at least 1";
    case HT_BAD_SCALE: return "scale must be a fraction with numerator and denominator from 1 to 1024";
    case HT_BAD_TRIM: return "trim must be at least 0";
    case HT_BAD_CHOICE: return "boundary or blend is not one of the known ones";
    case HT_TILE_TOO_SMALL:
        return "tile_size - overlap must be at least the phase (a multiple of the scale's denominator)";
    case HT_HALO_TOO_SMALL: return "halo must be at least what the model's valid convolutions take from each side";
    case HT_NATIVE_LOSS: return "boundary 'native' needs a model whose output is not smaller than scale x its input";
    case HT_TOO_LARGE:
        return "a size is too large: sides, tile_size, halo, overlap and phase end at 2^40, and the number of tiles "
               "must fit 64 bits";
    case HT_BAD_ARRAY: return "the arrays do not fit together";
    case HT_BAD_ORDER: return "tiles must come in the plan's order";
    case HT_BAD_VALUES: return "values must be (peak > 0, gain != 0, offset, clamp), all finite";
    case HT_MODEL_FAILED: return "the model failed";
    case HT_NO_MEMORY: return "there is not enough memory";
    case HT_BAD_CPU: return "the environment variable HALOTILE_CPU must be scalar, avx2, avx512 or neon";
    case HT_BAD_SHIFT:
        return "shift must be 0, or a multiple of the phase below the step of the tiles, with boundary 'reflect'";
    case HT_NONFINITE: return "there is a NaN or an infinity";
    case HT_STATUS_COUNT: break;
    }
    return "unknown status";
}
