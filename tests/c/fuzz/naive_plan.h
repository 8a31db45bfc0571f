/* SPDX-License-Identifier: MIT
 *
 * naive_plan.h - how a side is cut and weighed, found by counting up: for small sizes.
 */
#ifndef NAIVE_PLAN_H
#define NAIVE_PLAN_H

#include "naive.h"

enum { MOST_TILES = 300, MOST_PIXELS = 1024 };

struct naive_axis {
    int64_t num, den, phase, halo, trim, output_size, count, window;
    int64_t starts[MOST_TILES];
    struct ht_range keep[MOST_TILES];
    int covered[MOST_PIXELS]; /* how many tiles keep a pixel */
};

static inline int64_t counted_up(int64_t from, int64_t multiple)
{
    while (from % multiple != 0)
        from++;
    return from;
}

static inline void naive_scale(struct naive_axis *a, const struct ht_axis_options *o)
{
    a->num = o->scale_num, a->den = o->scale_den;
    for (int64_t divisor = 2; divisor <= a->den; divisor++)
        while (a->num % divisor == 0 && a->den % divisor == 0)
            a->num /= divisor, a->den /= divisor;
    a->phase = o->phase;
    while (a->phase % a->den != 0)
        a->phase += o->phase;
    a->halo = counted_up(o->halo, a->den);
    a->trim = o->trim;
    for (a->output_size = 0; a->output_size * a->den < o->size * a->num;)
        a->output_size++;
}

/* The number and length of windows over a domain. */
static inline void naive_windows(struct naive_axis *a, const struct ht_axis_options *o, int64_t length, int64_t least)
{
    int64_t extra = counted_up(2 * a->halo + o->overlap, a->phase), step = a->phase;
    while (extra + step + a->phase <= o->tile + 2 * a->halo)
        step += a->phase;
    a->count = 1, a->window = length;
    if (o->size <= o->tile || length <= step + extra)
        return;
    while (extra + a->count * step < length)
        a->count++;
    for (a->window = extra + a->phase; extra + a->count * (a->window - extra) < length;)
        a->window += a->phase;
    if (a->window >= least)
        return;
    a->window = least, a->count = 1;
    while (least + (a->count - 1) * (least - extra) < length)
        a->count++;
}

static inline struct ht_range naive_keep(const struct naive_axis *a, int64_t i)
{
    int64_t start = (a->starts[i] + a->halo) * a->num / a->den;
    int64_t stop = (a->starts[i] + a->window - a->halo) * a->num / a->den;
    return (struct ht_range){i == 0 ? 0 : start, i == a->count - 1 ? a->output_size : stop};
}

static inline void naive_axis(struct naive_axis *a, const struct ht_axis_options *o)
{
    naive_scale(a, o);
    bool native = o->boundary == HT_NATIVE;
    int64_t first = native ? 0 : -counted_up(a->halo, a->phase);
    int64_t length = counted_up((native ? o->size : o->size + a->halo) - first, a->phase);
    int64_t least = counted_up(o->least, a->phase), at = first;
    if (length < least)
        length = least;
    naive_windows(a, o, length, least);
    CHECK(a->count <= MOST_TILES && a->output_size <= MOST_PIXELS);
    memset(a->covered, 0, sizeof a->covered);
    int64_t phases = (length - a->window) / a->phase;
    for (int64_t i = 0; i < a->count; i++) {
        a->starts[i] = at;
        int64_t gaps = a->count - 1 - i; /* the longer steps come first */
        int64_t taken = gaps ? (phases + gaps - 1) / gaps : 0;
        phases -= taken;
        at += taken * a->phase;
        a->keep[i] = naive_keep(a, i);
        for (int64_t p = a->keep[i].start; p < a->keep[i].stop; p++)
            a->covered[p]++;
    }
}

/* The pixels of a tile that no other one keeps; the ones that no later one does. */
static inline struct ht_range naive_exclusive(const struct naive_axis *a, int64_t i)
{
    struct ht_range own = {-1, -1};
    for (int64_t p = a->keep[i].start; p < a->keep[i].stop; p++)
        if (a->covered[p] == 1)
            own = (struct ht_range){own.start < 0 ? p : own.start, p + 1};
    return own;
}

static inline struct ht_range naive_done(const struct naive_axis *a, int64_t i)
{
    struct ht_range done = a->keep[i];
    for (int64_t later = i + 1; later < a->count; later++)
        if (a->keep[later].start < done.stop)
            done.stop = a->keep[later].start;
    return done;
}

/* The part of its weight that a tile has at a distance from one end, in an overlap of some length. */
static inline double naive_ramp(enum ht_blend blend, int64_t distance, int64_t overlap)
{
    double t = ((double)distance + 0.5) / (double)overlap, quarter_turn = 1.57079632679489661923;
    if (distance >= overlap || blend == HT_AVERAGE)
        return 1;
    if (blend == HT_LINEAR)
        return t;
    if (blend == HT_COSINE)
        return sin(quarter_turn * t) * sin(quarter_turn * t);
    return exp(-4.5 * (1 - t) * (1 - t));
}

static inline float naive_weight(const struct naive_axis *a, enum ht_blend blend, int64_t i, int64_t p)
{
    double weight = 1;
    const struct ht_range *keep = &a->keep[i];
    if (i > 0)
        weight *= naive_ramp(blend, p - keep->start, a->keep[i - 1].stop - keep->start);
    if (i + 1 < a->count)
        weight *= naive_ramp(blend, keep->stop - 1 - p, keep->stop - a->keep[i + 1].start);
    return (float)weight;
}

static inline float naive_sum(const struct naive_axis *a, enum ht_blend blend, int64_t p)
{
    double sum = 0;
    for (int64_t i = 0; i < a->count; i++)
        if (p >= a->keep[i].start && p < a->keep[i].stop)
            sum += (double)naive_weight(a, blend, i, p);
    return (float)sum;
}

static inline int64_t range_length(struct ht_range r) { return r.stop - r.start; }

/* How many output pixels the model makes of a window. */
static inline int64_t naive_output(const struct naive_axis *a) { return a->window * a->num / a->den - 2 * a->trim; }

/* Where tile i's keep range starts within that. */
static inline int64_t naive_crop(const struct naive_axis *a, int64_t i)
{
    int64_t origin = a->starts[i] * a->num; /* may be negative, but is a multiple of den */
    return a->keep[i].start - (origin / a->den + a->trim);
}

#endif
