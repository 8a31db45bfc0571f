/* SPDX-License-Identifier: MIT
 *
 * Blend weights along one axis. A tile weighs 1 except where a neighbour also contributes; there it rises from its end
 * over the length of that overlap. Where more than two tiles meet, both ends of a tile can lie in overlaps at once and
 * their ramps multiply.
 */
#include "halotile.h"

#include <math.h>

static const double half_pi = 1.57079632679489661923;

/* t in (0, 1): how far into the overlap, from the tile's end inwards. Strictly positive. */
static double ramp(enum ht_blend blend, double t)
{
    switch (blend) {
    case HT_LINEAR: return t;
    case HT_COSINE: return sin(half_pi * t) * sin(half_pi * t);
    case HT_GAUSSIAN: return exp(-4.5 * (1 - t) * (1 - t)); /* the end lies three standard deviations out */
    default: return 1;
    }
}

struct profile {
    struct ht_range keep;
    int64_t before, after; /* lengths of the overlaps with the previous and the next tile */
};

static struct profile profile_of(const struct ht_axis *axis, int64_t i)
{
    struct profile p = {.keep = ht_axis_keep(axis, i)};
    if (i > 0)
        p.before = ht_axis_keep(axis, i - 1).stop - p.keep.start;
    if (i < axis->count - 1)
        p.after = p.keep.stop - ht_axis_keep(axis, i + 1).start;
    return p;
}

static float weight_at(const struct profile *p, enum ht_blend blend, int64_t at)
{
    double weight = 1;
    int64_t from_start = at - p->keep.start, from_stop = p->keep.stop - 1 - at;
    if (from_start < p->before)
        weight *= ramp(blend, ((double)from_start + 0.5) / (double)p->before);
    if (from_stop < p->after)
        weight *= ramp(blend, ((double)from_stop + 0.5) / (double)p->after);
    return (float)weight;
}

void ht_axis_weights(float *weights, const struct ht_axis *axis, enum ht_blend blend, int64_t i)
{
    struct profile p = profile_of(axis, i);
    for (int64_t at = p.keep.start; at < p.keep.stop; at++)
        weights[at - p.keep.start] = weight_at(&p, blend, at);
}

/* The first tile that contributes to `at`: the first whose keep stops beyond it. */
static int64_t first_tile_at(const struct ht_axis *axis, int64_t at)
{
    int64_t low = 0, high = axis->count - 1;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (ht_axis_keep(axis, middle).stop > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

void ht_axis_normaliser(float *sums, const struct ht_axis *axis, enum ht_blend blend, struct ht_range range)
{
    for (int64_t at = range.start; at < range.stop; at++) {
        double sum = 0;
        for (int64_t i = first_tile_at(axis, at); i < axis->count; i++) {
            struct profile p = profile_of(axis, i);
            if (p.keep.start > at)
                break;
            sum += weight_at(&p, blend, at);
        }
        sums[at - range.start] = (float)sum;
    }
}
