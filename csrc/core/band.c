/* SPDX-License-Identifier: MIT
 *
 * BAND: model outputs, tile by tile, become finished rows. Where sums lie is told in band_buffer.c.
 */
#include "band.h"

#include <string.h>

/* ---- places ----------------------------------------------------------------------------------------------------- */

static bool is_empty(const struct ht_area *area) { return ht_length(area->y) <= 0 || ht_length(area->x) <= 0; }

/* The same box of an array whose first element is output pixel (y, x). */
static struct ht_array cut_out(const struct ht_array *array, int64_t y, int64_t x, const struct ht_area *area)
{
    struct ht_array part = *array;
    part.data = ht_array_at(array, 0, area->y.start - y, area->x.start - x);
    part.height = ht_length(area->y);
    part.width = ht_length(area->x);
    return part;
}

/* What one call of ht_band_add works on. */
struct step {
    struct ht_band *band;
    struct ht_tile tile;
    const struct ht_array *output, *rows;
    bool found; /* whether a NaN or an infinity was met; then `first` holds the first one */
    struct ht_position first;
};

static struct ht_array output_part(const struct step *step, const struct ht_area *area)
{
    const struct ht_tile *tile = &step->tile;
    return cut_out(step->output, tile->keep.y - tile->crop_y, tile->keep.x - tile->crop_x, area);
}

static struct ht_array rows_part(const struct step *step, const struct ht_area *area)
{
    return cut_out(step->rows, step->band->done.start, 0, area);
}

/* ---- parts of a step -------------------------------------------------------------------------------------------- */

/* Positions in two parts of a step, which have no pixel in common. */
static bool comes_before(const struct ht_position *a, const struct ht_position *b)
{
    return a->y != b->y ? a->y < b->y : a->x < b->x;
}

/* Keeps the first position of all. at: within the area. */
static void note(struct step *step, enum ht_status status, struct ht_position at, const struct ht_area *area)
{
    if (status != HT_NONFINITE)
        return;
    at.y += area->y.start, at.x += area->x.start;
    if (!step->found || comes_before(&at, &step->first))
        step->first = at;
    step->found = true;
}

static void finish_exclusive(struct step *step)
{
    const struct ht_box *exclusive = &step->tile.exclusive;
    struct ht_range y = {exclusive->y, exclusive->y + exclusive->height};
    struct ht_range x = {exclusive->x, exclusive->x + exclusive->width};
    struct ht_area area = {y, x};
    if (is_empty(&area))
        return;
    struct ht_array rows = rows_part(step, &area), source = output_part(step, &area);
    struct ht_position at = {0, 0, 0};
    note(step, ht_finish(&rows, &source, NULL, NULL, &step->band->values, &at), at, &area);
}

static void accumulate(struct step *step, const struct ht_array *sums, const struct ht_area *area)
{
    const struct ht_band *band = step->band;
    struct ht_array source = output_part(step, area);
    const float *wy = band->wy + (area->y.start - band->keep.start);
    const float *wx = band->wx + band->weights_left + (area->x.start - step->tile.keep.x);
    struct ht_position at = {0, 0, 0};
    note(step, ht_accumulate(sums, &source, wy, wx, &at), at, area);
}

static void finish(struct step *step, const struct ht_array *sums, const struct ht_area *area)
{
    const struct ht_band *band = step->band;
    struct ht_array rows = rows_part(step, area);
    const float *ny = band->ny + (area->y.start - band->keep.start);
    struct ht_position at = {0, 0, 0};
    note(step, ht_finish(&rows, sums, ny, band->nx + area->x.start, &band->values, &at), at, area);
}

static void add_to_rows(struct step *step, struct ht_range shared)
{
    const struct ht_box *keep = &step->tile.keep;
    while (ht_length(shared) > 0) {
        struct ht_area area = {ht_band_take_run(step->band, &shared), {keep->x, keep->x + keep->width}};
        struct ht_array sums = ht_band_ring(step->band, &area);
        accumulate(step, &sums, &area);
    }
}

static void add_to_columns(struct step *step, struct ht_range shared)
{
    struct ht_area area = {step->band->exclusive, shared};
    if (is_empty(&area))
        return;
    struct ht_array sums = ht_band_columns(step->band, step->tile.column, step->band->columns_left, &area);
    accumulate(step, &sums, &area);
}

/* ---- tile rows -------------------------------------------------------------------------------------------------- */

static void clear_rows(struct ht_band *band, struct ht_range shared)
{
    while (ht_length(shared) > 0) {
        struct ht_area area = {ht_band_take_run(band, &shared), {0, band->sizes.width}};
        struct ht_array sums = ht_band_ring(band, &area);
        for (int64_t c = 0; c < band->channels; c++)
            memset(ht_array_at(&sums, c, 0, 0), 0, sizeof(float) * (size_t)(sums.height * sums.width));
    }
}

static void clear_columns(struct ht_band *band)
{
    size_t used = sizeof(float) * (size_t)(ht_length(band->exclusive) * band->sizes.shared);
    for (int64_t c = 0; c < band->channels && used > 0; c++)
        memset(band->columns + c * band->sizes.middle * band->sizes.shared, 0, used);
}

/* What no tile row has added to yet starts from zero; in the first tile row that is also what it shares with rows above
 * which this band never sees. */
static void open_row(struct ht_band *band, int64_t row)
{
    const struct ht_axis *y = &band->plan.y;
    if (band->opened)
        band->first_slot += ht_shared_until_next(y, row - 1);
    band->keep = ht_axis_keep(y, row);
    band->exclusive = ht_axis_exclusive(y, row);
    band->done = ht_axis_done(y, row);
    band->columns_left = band->weights_left = 0;
    ht_axis_weights(band->wy, y, band->plan.blend, row);
    ht_axis_normaliser(band->ny, y, band->plan.blend, band->keep);
    clear_columns(band);
    if (!band->opened)
        clear_rows(band, (struct ht_range){band->keep.start, band->exclusive.start});
    clear_rows(band, (struct ht_range){band->exclusive.stop, band->keep.stop});
    band->opened = true;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void finish_rows(struct step *step)
{
    const struct ht_band *band = step->band;
    struct ht_range shared = {band->keep.start, smaller(band->exclusive.start, band->done.stop)};
    while (ht_length(shared) > 0) {
        struct ht_area area = {ht_band_take_run(band, &shared), {0, band->sizes.width}};
        struct ht_array sums = ht_band_ring(band, &area);
        finish(step, &sums, &area);
    }
}

static void finish_columns(struct step *step)
{
    const struct ht_axis *x = &step->band->plan.x;
    int64_t left = 0;
    for (int64_t column = 0; column < x->count; column++) {
        struct ht_range done = ht_axis_done(x, column);
        struct ht_range shared = {done.start, smaller(ht_axis_exclusive(x, column).start, done.stop)};
        struct ht_area area = {step->band->exclusive, shared};
        if (!is_empty(&area)) {
            struct ht_array sums = ht_band_columns(step->band, column, left, &area);
            finish(step, &sums, &area);
        }
        left += ht_shared_until_next(x, column);
    }
}

/* The sums may be too large for float32 where what was added was finite; after a NaN they say nothing new. */
static void close_row(struct step *step)
{
    bool found = step->found;
    struct ht_position first = step->first;
    step->found = false;
    finish_rows(step);
    finish_columns(step);
    if (step->band->bad || found)
        step->found = found, step->first = first;
}

/* ---- one tile --------------------------------------------------------------------------------------------------- */

static enum ht_status check(const struct ht_band *band, int64_t tile, const struct ht_array *output,
                            const struct ht_array *rows)
{
    const struct ht_plan *plan = &band->plan;
    if (tile != band->next || tile >= plan->count)
        return HT_BAD_ORDER;
    bool fits = ht_array_fits(output, output) && ht_dtype_is_model(output->dtype) && ht_array_fits(rows, rows) &&
                output->channels == band->channels && output->height == ht_axis_model_output(&plan->y) &&
                output->width == ht_axis_model_output(&plan->x) && rows->channels == band->channels &&
                rows->height == ht_length(ht_axis_done(&plan->y, tile / plan->x.count)) &&
                rows->width == band->sizes.width && ht_values_fit(&band->values, rows->dtype);
    return fits ? HT_OK : HT_BAD_ARRAY;
}

static void add(struct step *step)
{
    struct ht_band *band = step->band;
    const struct ht_tile *tile = &step->tile;
    struct ht_range exclusive = ht_axis_exclusive(&band->plan.x, tile->column);
    finish_exclusive(step);
    add_to_rows(step, (struct ht_range){band->keep.start, band->exclusive.start});
    add_to_rows(step, (struct ht_range){band->exclusive.stop, band->keep.stop});
    add_to_columns(step, (struct ht_range){tile->keep.x, exclusive.start});
    add_to_columns(step, (struct ht_range){exclusive.stop, tile->keep.x + tile->keep.width});
}

enum ht_status ht_band_add(struct ht_band *band, int64_t tile, const struct ht_array *output,
                           const struct ht_array *rows, struct ht_position *bad)
{
    enum ht_status status = check(band, tile, output, rows);
    if (status != HT_OK)
        return status;
    struct step step = {.band = band, .tile = ht_plan_tile(&band->plan, tile), .output = output, .rows = rows};
    if (step.tile.column == 0)
        open_row(band, step.tile.row);
    add(&step);
    if (step.tile.column == band->plan.x.count - 1)
        close_row(&step);
    band->columns_left += ht_shared_until_next(&band->plan.x, step.tile.column);
    band->weights_left += step.tile.keep.width;
    band->bad |= step.found;
    band->next++;
    if (step.found && bad)
        *bad = step.first;
    return step.found ? HT_NONFINITE : HT_OK;
}
