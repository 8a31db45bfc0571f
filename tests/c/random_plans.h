/* SPDX-License-Identifier: MIT
 *
 * random_plans.h - for check_band.c and check_restore.c: random numbers, plans and arrays of exact size.
 */
#ifndef RANDOM_PLANS_H
#define RANDOM_PLANS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "halotile.h"

static long case_number;

#define CHECK(condition)                                                                               \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            fprintf(stderr, "%s:%d: case %ld: %s fails\n", __FILE__, __LINE__, case_number, #condition); \
            exit(1);                                                                                   \
        }                                                                                              \
    } while (0)

static uint64_t random_state = 20261123;

static inline uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* From low to high, both included. */
static inline int64_t between(int64_t low, int64_t high)
{
    return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1));
}

static inline bool one_in(int64_t n) { return between(1, n) == 1; }

static inline float random_float(void) { return (float)random_bits() / 4294967296.0f * 1.2f - 0.1f; }

static inline void *allocated(int64_t bytes)
{
    void *memory = malloc((size_t)bytes);
    CHECK(memory);
    memset(memory, 0xff, (size_t)bytes); /* NaN, where it is read too early */
    return memory;
}

static inline struct ht_axis_options random_axis(enum ht_boundary boundary, int64_t num, int64_t den)
{
    struct ht_axis_options o = {.size = between(1, 60), .tile = between(1, 25), .halo = between(0, 6)};
    o.overlap = between(0, o.tile - 1);
    o.phase = one_in(2) ? 1 : between(1, 4);
    o.scale_num = num, o.scale_den = den;
    o.boundary = boundary;
    o.least = one_in(4) ? between(1, 30) : 0;
    if (boundary == HT_REFLECT && one_in(3))
        o.trim = between(0, o.halo / den * num);
    return o;
}

/* One of those that exist. */
static inline struct ht_plan random_plan(void)
{
    static const int64_t scales[][2] = {{1, 1}, {1, 1}, {2, 1}, {1, 2}, {3, 2}};
    struct ht_plan plan;
    enum ht_status status;
    do {
        const int64_t *rows = scales[between(0, 4)], *columns = one_in(2) ? rows : scales[between(0, 4)];
        enum ht_boundary boundary = one_in(2) ? HT_REFLECT : HT_NATIVE;
        struct ht_axis_options y = random_axis(boundary, rows[0], rows[1]);
        struct ht_axis_options x = random_axis(boundary, columns[0], columns[1]);
        status = ht_plan_init(&plan, &y, &x, (enum ht_blend)between(0, HT_BLEND_COUNT - 1), NULL);
    } while (status != HT_OK);
    return plan;
}

/* Planar or interleaved, on the heap, no byte larger than need be. */
static inline struct ht_array new_array(enum ht_dtype dtype, int64_t channels, int64_t height, int64_t width)
{
    struct ht_array array = {NULL, dtype, channels, height, width, height * width, width, 1};
    if (one_in(2))
        array.stride_c = 1, array.stride_x = channels, array.stride_y = width * channels;
    array.data = allocated(channels * height * width * ht_dtype_size(dtype));
    return array;
}

static inline int64_t element(const struct ht_array *array, int64_t c, int64_t y, int64_t x)
{
    return c * array->stride_c + y * array->stride_y + x * array->stride_x;
}

static inline float *float_at(const struct ht_array *array, int64_t c, int64_t y, int64_t x)
{
    return (float *)array->data + element(array, c, y, x);
}

/* A quotient as an image value, step by step. */
static inline float image_value(float q, const struct ht_values *v, bool clamp)
{
    float value = q + 0.0f;
    if (v->gain != 1 || v->offset != 0) {
        value = value - v->offset;
        value = value / v->gain;
    }
    if (v->peak != 1)
        value = value * v->peak;
    if (clamp)
        value = !(value > 0) ? 0 : value < v->peak ? value : v->peak;
    return value;
}

/* Whether an element of a u8 or f32 array is that quotient. */
static inline bool is_value(const struct ht_array *rows, int64_t c, int64_t y, int64_t x, float q,
                            const struct ht_values *values)
{
    bool integer = rows->dtype == HT_U8;
    float want = image_value(q, values, integer || values->clamp);
    if (integer)
        return ((uint8_t *)rows->data)[element(rows, c, y, x)] == (uint8_t)rintf(want);
    float got = *float_at(rows, c, y, x);
    return (isnan(got) && isnan(want)) || memcmp(&got, &want, sizeof got) == 0;
}

/* Full-size sums and weights of the tiles of a plan, added one after the other: what bands are compared with. */
struct dense {
    struct ht_plan plan;
    int64_t channels;
    struct ht_array sums;
    int *tiles; /* how many contribute to each pixel of a channel, of the whole plan */
    float *ny, *nx;
};

static inline struct dense new_dense(const struct ht_plan *plan, int64_t channels)
{
    int64_t height = plan->y.output_size, width = plan->x.output_size;
    struct dense dense = {.plan = *plan, .channels = channels, .sums = new_array(HT_F32, channels, height, width)};
    memset(dense.sums.data, 0, (size_t)(channels * height * width) * sizeof(float));
    dense.tiles = calloc((size_t)(height * width), sizeof(int));
    dense.ny = allocated(height * (int64_t)sizeof(float));
    dense.nx = allocated(width * (int64_t)sizeof(float));
    ht_axis_normaliser(dense.ny, &plan->y, plan->blend, (struct ht_range){0, height});
    ht_axis_normaliser(dense.nx, &plan->x, plan->blend, (struct ht_range){0, width});
    for (int64_t i = 0; i < plan->count; i++) {
        struct ht_box keep = ht_plan_tile(plan, i).keep;
        for (int64_t y = keep.y; y < keep.y + keep.height; y++)
            for (int64_t x = keep.x; x < keep.x + keep.width; x++)
                dense.tiles[y * width + x]++;
    }
    return dense;
}

static inline void free_dense(struct dense *dense)
{
    free(dense->sums.data);
    free(dense->tiles);
    free(dense->ny);
    free(dense->nx);
}

/* Adds what tile i keeps of its output; returns whether any of it is NaN or infinite. */
static inline bool add_dense(struct dense *dense, int64_t i, const struct ht_array *output)
{
    const struct ht_plan *plan = &dense->plan;
    struct ht_tile tile = ht_plan_tile(plan, i);
    float *wy = allocated(tile.keep.height * 4), *wx = allocated(tile.keep.width * 4);
    bool bad = false;
    ht_axis_weights(wy, &plan->y, plan->blend, tile.row);
    ht_axis_weights(wx, &plan->x, plan->blend, tile.column);
    for (int64_t c = 0; c < dense->channels; c++)
        for (int64_t y = 0; y < tile.keep.height; y++)
            for (int64_t x = 0; x < tile.keep.width; x++) {
                int64_t at_y = tile.keep.y + y, at_x = tile.keep.x + x;
                float value = *float_at(output, c, tile.crop_y + y, tile.crop_x + x);
                float weight = dense->tiles[at_y * plan->x.output_size + at_x] == 1 ? 1 : wy[y] * wx[x];
                float part = weight * value;
                *float_at(&dense->sums, c, at_y, at_x) += part;
                bad |= !isfinite(value);
            }
    free(wy);
    free(wx);
    return bad;
}

static inline float dense_quotient(const struct dense *dense, int64_t c, int64_t y, int64_t x)
{
    float sum = *float_at(&dense->sums, c, y, x);
    return dense->tiles[y * dense->plan.x.output_size + x] == 1 ? sum : sum / (dense->ny[y] * dense->nx[x]);
}

#endif
