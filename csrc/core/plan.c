/* SPDX-License-Identifier: MIT */
#include "kinds.h"

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
static int64_t crop_of(const struct ht_kept *kept, int64_t i)
{
    return ht_kept_range(kept, i).start - ht_kept_origin(kept, i);
}

struct ht_tile ht_plan_tile(const struct ht_plan *plan, int64_t index)
{
    const struct ht_axis *y = &plan->y, *x = &plan->x;
    struct ht_tile tile = {.row = index / x->count, .column = index % x->count};
    tile.window = (struct ht_box){ht_axis_window(y, tile.row), ht_axis_window(x, tile.column), y->window, x->window};
    tile.keep = box_of(ht_axis_keep(y, tile.row), ht_axis_keep(x, tile.column));
    tile.exclusive = box_of(ht_axis_exclusive(y, tile.row), ht_axis_exclusive(x, tile.column));
    tile.crop_y = crop_of(&y->kept, tile.row);
    tile.crop_x = crop_of(&x->kept, tile.column);
    return tile;
}

int64_t ht_plan_rows_complete(const struct ht_plan *plan, int64_t index)
{
    int64_t finished_rows = (index + 1) / plan->x.count; /* tile rows */
    return finished_rows == 0 ? 0 : ht_axis_done(&plan->y, finished_rows - 1).stop;
}

int64_t ht_plan_tallest_band(const struct ht_plan *plan)
{
    struct ht_kind kinds[HT_KINDS];
    int64_t tallest = 0;
    for (int k = ht_axis_kinds(&plan->y, kinds); k-- > 0;) {
        struct ht_range done = ht_axis_done(&plan->y, kinds[k].i);
        tallest = done.stop - done.start > tallest ? done.stop - done.start : tallest;
    }
    return tallest;
}

int64_t ht_plan_rows_in_progress(const struct ht_plan *plan, int64_t batch, int64_t first_row)
{
    int64_t columns = plan->x.count, most = 0;
    for (int64_t left = plan->count - first_row * columns;; left -= batch) {
        int64_t first = plan->count - left, last = first + (batch < left ? batch : left) - 1;
        int64_t rows = ht_axis_keep(&plan->y, last / columns).stop - ht_axis_keep(&plan->y, first / columns).start;
        most = rows > most ? rows : most;
        if (batch >= left)
            return most;
    }
}
