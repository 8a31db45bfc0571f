/* SPDX-License-Identifier: MIT
 *
 * dense.h - restoring with sums and weights of the image's full size, one pixel after the other.
 */
#ifndef DENSE_H
#define DENSE_H

#include "naive_plan.h"

struct dense {
    struct naive_axis y, x;
    enum ht_blend blend;
    int64_t channels;
    float *sums;
};

static inline void dense_init(struct dense *d, const struct ht_axis_options *y, const struct ht_axis_options *x,
                              enum ht_blend blend, int64_t channels)
{
    naive_axis(&d->y, y), naive_axis(&d->x, x);
    d->blend = blend, d->channels = channels;
    d->sums = calloc((size_t)(channels * d->y.output_size * d->x.output_size), sizeof *d->sums);
    CHECK(d->sums);
}

static inline float *dense_at(const struct dense *d, int64_t c, int64_t y, int64_t x)
{
    return d->sums + (c * d->y.output_size + y) * d->x.output_size + x;
}

static inline bool dense_alone(const struct dense *d, int64_t y, int64_t x)
{
    return d->y.covered[y] == 1 && d->x.covered[x] == 1;
}

/* Returns whether tile i keeps a NaN or an infinity. */
static inline bool dense_add(const struct dense *d, int64_t i, const struct ht_array *output)
{
    int64_t row = i / d->x.count, column = i % d->x.count;
    struct ht_range rows = d->y.keep[row], columns = d->x.keep[column];
    bool found = false;
    for (int64_t c = 0; c < d->channels; c++)
        for (int64_t y = rows.start; y < rows.stop; y++)
            for (int64_t x = columns.start; x < columns.stop; x++) {
                int64_t oy = naive_crop(&d->y, row) + y - rows.start, ox = naive_crop(&d->x, column) + x - columns.start;
                float value = naive_load(output->dtype, element_of(output, c, oy, ox));
                volatile float weight = naive_weight(&d->y, d->blend, row, y) * naive_weight(&d->x, d->blend, column, x);
                volatile float part = dense_alone(d, y, x) ? value : weight * value;
                *dense_at(d, c, y, x) = *dense_at(d, c, y, x) + part;
                found |= !isfinite(value);
            }
    return found;
}

static inline float dense_quotient(const struct dense *d, int64_t c, int64_t y, int64_t x)
{
    if (dense_alone(d, y, x))
        return *dense_at(d, c, y, x);
    volatile float norm = naive_sum(&d->y, d->blend, y) * naive_sum(&d->x, d->blend, x);
    return *dense_at(d, c, y, x) / norm;
}

/* Rows of the output from `first` on. */
static inline void dense_finish(const struct dense *d, const struct ht_array *rows, int64_t first,
                                const struct ht_values *values)
{
    bool clamp = values->clamp || is_integer_dtype(rows->dtype);
    EACH_ELEMENT(rows, c, y, x) {
        float value = naive_image_value(dense_quotient(d, c, first + y, x), values, clamp);
        naive_store(rows->dtype, element_of(rows, c, y, x), value);
    }
}

/* Whether a quotient of the row range is NaN or infinite. */
static inline bool dense_overflows(const struct dense *d, struct ht_range rows)
{
    bool found = false;
    for (int64_t c = 0; c < d->channels; c++)
        for (int64_t y = rows.start; y < rows.stop; y++)
            for (int64_t x = 0; x < d->x.output_size; x++)
                found |= !isfinite(dense_quotient(d, c, y, x));
    return found;
}

#endif
