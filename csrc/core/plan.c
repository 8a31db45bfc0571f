/* SPDX-License-Identifier: MIT */
#include "halotile.h"

enum ht_status ht_plan_init(struct ht_plan *plan, const struct ht_axis_options *y, const struct ht_axis_options *x,
                            enum ht_blend blend, int *failed_axis)
{
    int ignored;
    int *failed = failed_axis ? failed_axis : &ignored;
    *failed = 0;
    enum ht_status status = ht_axis_init(&plan->y, y);
    if (status != HT_OK)
        return status;
    *failed = 1;
    status = ht_axis_init(&plan->x, x);
    if (status != HT_OK)
        return status;
    *failed = -1;
    if ((unsigned)blend >= HT_BLEND_COUNT)
        return HT_BAD_CHOICE;
    plan->blend = blend;
    if (plan->y.count > INT64_MAX / plan->x.count)
        return HT_TOO_LARGE;
    plan->count = plan->y.count * plan->x.count;
    return HT_OK;
}

static struct ht_box box_of(struct ht_range y, struct ht_range x)
{
    return (struct ht_box){y.start, x.start, y.stop - y.start, x.stop - x.start};
}

/* Where the keep range starts inside the output for window i. */
static int64_t crop_of(const struct ht_axis *axis, int64_t i, int64_t keep_start)
{
    return keep_start - ht_axis_window(axis, i) / axis->scale_den * axis->scale_num - axis->loss;
}

struct ht_tile ht_plan_tile(const struct ht_plan *plan, int64_t index)
{
    const struct ht_axis *y = &plan->y, *x = &plan->x;
    struct ht_tile tile = {.row = index / x->count, .column = index % x->count};
    tile.window = (struct ht_box){ht_axis_window(y, tile.row), ht_axis_window(x, tile.column), y->window, x->window};
    tile.keep = box_of(ht_axis_keep(y, tile.row), ht_axis_keep(x, tile.column));
    tile.sole = box_of(ht_axis_sole(y, tile.row), ht_axis_sole(x, tile.column));
    tile.crop_y = crop_of(y, tile.row, tile.keep.y);
    tile.crop_x = crop_of(x, tile.column, tile.keep.x);
    return tile;
}

int64_t ht_plan_rows_complete(const struct ht_plan *plan, int64_t index)
{
    int64_t finished_rows = (index + 1) / plan->x.count; /* tile rows */
    return finished_rows == 0 ? 0 : ht_axis_done(&plan->y, finished_rows - 1).stop;
}
