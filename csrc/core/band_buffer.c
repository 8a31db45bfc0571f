/* SPDX-License-Identifier: MIT
 *
 * BAND: model outputs, tile by tile, become finished rows.
 *
 * Sums are kept only of what tiles share. What one tile alone contributes to goes straight from the model's output to
 * the finished rows. This is what a tile row of four tiles keeps:
 *
 *              <---- tile 0 --->              <----- tile 2 ----->
 *                            <----- tile 1 ----->              <---- tile 3 --->
 *     top     |rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr|   shared with the tile row above
 *     middle  |..............ccc..............ccc..............ccc..............|   of this tile row alone
 *     bottom  |rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr|   shared with the tile row below
 *
 *     r   `rows`, a ring of sums over the full width. The bottom of one tile row is the top of the next, which adds to
 *         it and finishes it; then the slots of the top are free again. The ring has as many slots as any tile row has
 *         shared rows, and a shared row's slot is the number of shared rows above it modulo that:
 *
 *             tile row i        [ top i | bottom i ]
 *             tile row i + 1            [ top i+1  | bottom i+1 ]
 *
 *     c   `columns`: sums of shared columns in the middle, side by side without what lies between them. They are
 *         finished with the tile row, and start from zero in the next.
 *     .   exclusive pixels: finished as they come, no sums.
 *
 * Where overlaps are longer than half a tile there is no middle, and a row may be shared by more than two tile rows:
 * then `top` is what any tile row above has added to, and of it the rows that no later one adds to are finished.
 */
#include "band.h"

/* ---- the caller's buffer ---------------------------------------------------------------------------------------- */

static void raise_to(int64_t *most, int64_t value) { *most = value > *most ? value : *most; }

static struct ht_band_sizes sizes_of(const struct ht_plan *plan)
{
    struct ht_band_sizes sizes = {.width = plan->x.output_size};
    struct ht_kind kinds[HT_KINDS];
    for (int k = ht_axis_kinds(&plan->y, kinds); k-- > 0;) {
        int64_t keep = ht_length(ht_axis_keep(&plan->y, kinds[k].i));
        int64_t exclusive = ht_length(ht_axis_exclusive(&plan->y, kinds[k].i));
        raise_to(&sizes.ring, keep - exclusive);
        raise_to(&sizes.middle, exclusive);
        raise_to(&sizes.tallest, keep);
    }
    sizes.shared = sizes.width;
    for (int k = ht_axis_kinds(&plan->x, kinds); k-- > 0;) {
        sizes.shared -= kinds[k].count * ht_length(ht_axis_exclusive(&plan->x, kinds[k].i));
        sizes.weights += kinds[k].count * ht_length(ht_axis_keep(&plan->x, kinds[k].i));
    }
    return sizes;
}

/* *total += a * b, or false if that does not fit. All are at least 0. */
static bool add_product(int64_t *total, int64_t a, int64_t b)
{
    if (a > 0 && b > (INT64_MAX - *total) / a)
        return false;
    *total += a * b;
    return true;
}

int64_t ht_band_floats(const struct ht_plan *plan, int64_t channels)
{
    struct ht_band_sizes sizes = sizes_of(plan);
    int64_t sums = 0, floats = 0;
    bool fits = channels >= 1 && add_product(&sums, sizes.ring, sizes.width) &&
                add_product(&sums, sizes.middle, sizes.shared) && add_product(&floats, sums, channels) &&
                add_product(&floats, sizes.width, 1) && add_product(&floats, sizes.weights, 1) &&
                add_product(&floats, sizes.tallest, 2);
    return fits ? floats : -1;
}

static void lay_out(struct ht_band *band, float *buffer)
{
    const struct ht_band_sizes *sizes = &band->sizes;
    band->rows = buffer;
    band->columns = band->rows + band->channels * sizes->ring * sizes->width;
    band->nx = band->columns + band->channels * sizes->middle * sizes->shared;
    band->wx = band->nx + sizes->width;
    band->wy = band->wx + sizes->weights;
    band->ny = band->wy + sizes->tallest;
}

static void weigh_columns(const struct ht_band *band)
{
    const struct ht_axis *x = &band->plan.x;
    ht_axis_normaliser(band->nx, x, band->plan.blend, (struct ht_range){0, band->sizes.width});
    float *weights = band->wx;
    for (int64_t column = 0; column < x->count; column++) {
        ht_axis_weights(weights, x, band->plan.blend, column);
        weights += ht_length(ht_axis_keep(x, column));
    }
}

enum ht_status ht_band_init(struct ht_band *band, const struct ht_plan *plan, int64_t channels,
                            const struct ht_values *values, float *buffer, int64_t first_row)
{
    if (!ht_values_are_valid(values))
        return HT_BAD_VALUES;
    if (first_row < 0 || first_row >= plan->y.count)
        return HT_BAD_ORDER;
    if (ht_band_floats(plan, channels) < 0)
        return HT_TOO_LARGE;
    *band = (struct ht_band){.plan = *plan, .values = *values, .channels = channels, .sizes = sizes_of(plan)};
    band->next = first_row * plan->x.count;
    lay_out(band, buffer);
    weigh_columns(band);
    return HT_OK;
}

/* ---- places in it ------------------------------------------------------------------------------------------------ */

/* The slot of a shared row, above or below the middle. */
static int64_t slot_of(const struct ht_band *band, int64_t y)
{
    int64_t above = y - band->keep.start - (y >= band->exclusive.stop ? ht_length(band->exclusive) : 0);
    return (band->first_slot + above) % band->sizes.ring;
}

struct ht_range ht_band_take_run(const struct ht_band *band, struct ht_range *rest)
{
    int64_t until_end = band->sizes.ring - slot_of(band, rest->start);
    struct ht_range run = *rest;
    if (ht_length(run) > until_end)
        run.stop = run.start + until_end;
    rest->start = run.stop;
    return run;
}

struct ht_array ht_band_ring(const struct ht_band *band, const struct ht_area *area)
{
    const struct ht_band_sizes *sizes = &band->sizes;
    float *data = band->rows + slot_of(band, area->y.start) * sizes->width + area->x.start;
    return (struct ht_array){data,           HT_F32,
                             band->channels, ht_length(area->y),
                             ht_length(area->x), sizes->ring * sizes->width,
                             sizes->width,   1};
}

int64_t ht_shared_until_next(const struct ht_axis *axis, int64_t i)
{
    return ht_length(ht_axis_done(axis, i)) - ht_length(ht_axis_exclusive(axis, i));
}

struct ht_array ht_band_columns(const struct ht_band *band, int64_t column, int64_t left, const struct ht_area *area)
{
    const struct ht_band_sizes *sizes = &band->sizes;
    struct ht_range exclusive = ht_axis_exclusive(&band->plan.x, column);
    int64_t at = left + area->x.start - ht_axis_keep(&band->plan.x, column).start;
    if (area->x.start >= exclusive.stop)
        at -= ht_length(exclusive);
    return (struct ht_array){band->columns + at, HT_F32,
                             band->channels,     ht_length(area->y),
                             ht_length(area->x),    sizes->middle * sizes->shared,
                             sizes->shared,      1};
}
