/* SPDX-License-Identifier: MIT
 *
 * One side of the image, cut into equal windows.
 *
 * Both boundaries are one construction on different domains. A domain is what windows may cover, a multiple of the
 * phase long:
 *     native    [0, size)                rounded up to the phase
 *     reflect   [-halo, size + halo)     rounded outwards to the phase
 * It ends later where that makes it shorter than the shortest window allowed.
 * The first window starts where the domain starts, the last ends where it ends, the others are spread evenly between.
 * Inner ends of windows lose the halo; outer ends keep everything up to the image's edge.
 * A shift moves all windows of reflect towards the start and adds one at the end:
 *     [-halo [   window 0   ]              [-halo - shift [   window 0   ]
 *                    [   window 1   ]                             [   window 1   ]
 *                                                                         [   window 2   ]
 */
#include "halotile.h"

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t multiple) { return divide_up(a, multiple) * multiple; }
static int64_t round_down(int64_t a, int64_t multiple) { return a / multiple * multiple; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t common_divisor(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static enum ht_status check(const struct ht_axis_options *o)
{
    if (o->size < 1) return HT_BAD_SIZE;
    if (o->tile < 1) return HT_BAD_TILE;
    if (o->halo < 0) return HT_BAD_HALO;
    if (o->overlap < 0 || o->overlap >= o->tile) return HT_BAD_OVERLAP;
    if (o->phase < 1) return HT_BAD_PHASE;
    if (o->scale_num < 1 || o->scale_num > HT_MAX_SCALE) return HT_BAD_SCALE;
    if (o->scale_den < 1 || o->scale_den > HT_MAX_SCALE) return HT_BAD_SCALE;
    if (o->trim < 0) return HT_BAD_TRIM;
    if (o->least < 0) return HT_BAD_SIZE;
    if (o->shift < 0 || (o->shift > 0 && o->boundary == HT_NATIVE)) return HT_BAD_SHIFT;
    if ((unsigned)o->boundary >= HT_BOUNDARY_COUNT) return HT_BAD_CHOICE;
    /* With every size at most 2^40 and scales at most 2^10 no sum or product below passes 2^54. */
    if (o->size > HT_MAX_SIDE || o->tile > HT_MAX_SIDE || o->halo > HT_MAX_SIDE || o->phase > HT_MAX_SIDE ||
        o->least > HT_MAX_SIDE || o->shift > HT_MAX_SIDE)
        return HT_TOO_LARGE;
    return HT_OK;
}

/* Least common multiple, halo and what follows from the scale. */
static void take_options(struct ht_axis *a, const struct ht_axis_options *o)
{
    int64_t divisor = common_divisor(o->scale_num, o->scale_den);
    a->scale_num = o->scale_num / divisor;
    a->scale_den = o->scale_den / divisor;
    a->size = o->size;
    a->output_size = divide_up(o->size * a->scale_num, a->scale_den);
    a->phase = o->phase / common_divisor(o->phase, a->scale_den) * a->scale_den;
    a->halo = round_up(o->halo, a->scale_den);
    a->trim = o->trim;
}

/* The fewest windows that cover `length` input pixels; then the smallest of equal size; then even steps. */
static void cut(struct ht_axis *a, int64_t length, int64_t tile, int64_t overlap, int64_t least)
{
    int64_t extra = round_up(2 * a->halo + overlap, a->phase); /* window - step, at least */
    int64_t longest_step = round_down(tile + 2 * a->halo - extra, a->phase);
    if (longest_step < a->phase)
        longest_step = a->phase;
    if (a->size <= tile || length <= longest_step + extra) {
        a->count = 1;
        a->window = length;
        a->step = a->longer = 0;
        return;
    }
    int64_t covered = length - extra;
    a->count = divide_up(covered, longest_step);
    a->window = round_up(divide_up(covered, a->count), a->phase) + extra;
    if (a->window < least) {
        a->window = least;
        a->count = 1 + divide_up(length - least, least - extra);
    }
    if (a->count == 1) {
        a->step = a->longer = 0;
        return;
    }
    int64_t phases = (length - a->window) / a->phase;
    a->step = phases / (a->count - 1) * a->phase;
    a->longer = phases % (a->count - 1);
}

/* at is a multiple of the scale's denominator. */
static int64_t to_output(const struct ht_axis *axis, int64_t at) { return at / axis->scale_den * axis->scale_num; }

static struct ht_kept kept_by(const struct ht_axis *a)
{
    return (struct ht_kept){
        .start = to_output(a, a->origin + a->halo),
        .length = to_output(a, a->window - 2 * a->halo),
        .origin = to_output(a, a->origin) + a->trim,
        .step = to_output(a, a->step),
        .phase = to_output(a, a->phase),
        .longer = a->longer,
        .count = a->count,
        .size = a->output_size,
    };
}

enum ht_status ht_axis_init(struct ht_axis *axis, const struct ht_axis_options *options)
{
    enum ht_status status = check(options);
    if (status != HT_OK)
        return status;
    take_options(axis, options);
    if (options->tile - options->overlap < axis->phase)
        return HT_TILE_TOO_SMALL;
    if (options->boundary == HT_NATIVE && options->trim > 0)
        return HT_NATIVE_LOSS;
    if (options->trim > axis->halo / axis->scale_den * axis->scale_num)
        return HT_HALO_TOO_SMALL;

    bool native = options->boundary == HT_NATIVE;
    axis->origin = native ? 0 : -round_up(axis->halo, axis->phase);
    int64_t end = native ? axis->size : axis->size + axis->halo;
    int64_t length = round_up(end - axis->origin, axis->phase), least = round_up(options->least, axis->phase);
    cut(axis, length > least ? length : least, options->tile, options->overlap, least);
    if (axis->count > 1 && options->shift > 0) {
        if (options->shift % axis->phase != 0 || options->shift >= axis->step)
            return HT_BAD_SHIFT;
        axis->origin -= options->shift;
        axis->count++;
    }
    axis->kept = kept_by(axis);
    return HT_OK;
}

int64_t ht_axis_window(const struct ht_axis *axis, int64_t i)
{
    return axis->origin + i * axis->step + smaller(i, axis->longer) * axis->phase;
}

int64_t ht_axis_model_output(const struct ht_axis *axis) { return to_output(axis, axis->window) - 2 * axis->trim; }

struct ht_range ht_axis_keep(const struct ht_axis *axis, int64_t i) { return ht_kept_range(&axis->kept, i); }

struct ht_range ht_axis_exclusive(const struct ht_axis *axis, int64_t i)
{
    int64_t start = i == 0 ? 0 : ht_axis_keep(axis, i - 1).stop;
    int64_t stop = i == axis->count - 1 ? axis->output_size : ht_axis_keep(axis, i + 1).start;
    return (struct ht_range){start, stop > start ? stop : start};
}

struct ht_range ht_axis_done(const struct ht_axis *axis, int64_t i)
{
    int64_t stop = i == axis->count - 1 ? axis->output_size : ht_axis_keep(axis, i + 1).start;
    return (struct ht_range){ht_axis_keep(axis, i).start, stop};
}
