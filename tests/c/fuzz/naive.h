/* SPDX-License-Identifier: MIT
 *
 * naive.h - what the verbs are to do, one element at a time, written from halotile.h alone.
 */
#ifndef NAIVE_H
#define NAIVE_H

#include "input.h"

/* ---- elements ---------------------------------------------------------------------------------------------------- */

/* A number of two bytes: a sign, an exponent of which `bias` means 0, and a fraction. NaN: NaN made quiet. */
static inline float from_small(uint16_t bits, int fraction_bits, int bias)
{
    int exponent_mask = 2 * bias + 1, exponent = bits >> fraction_bits & exponent_mask;
    int fraction = bits & ((1 << fraction_bits) - 1);
    uint32_t sign = (uint32_t)(bits >> 15) << 31;
    if (exponent == exponent_mask)
        return float_from_bits(sign | 0x7f800000u | (fraction ? 0x00400000u : 0) |
                               (uint32_t)fraction << (23 - fraction_bits));
    int whole = exponent ? fraction + (1 << fraction_bits) : fraction;
    float value = (float)ldexp(whole, (exponent ? exponent : 1) - bias - fraction_bits);
    return sign ? -value : value;
}

static inline uint16_t to_small(float value, int fraction_bits, int bias)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    int infinity = (2 * bias + 1) << fraction_bits, sign = (int)(bits >> 31) << 15;
    if (isnan(value))
        return (uint16_t)(sign | infinity | 1 << (fraction_bits - 1) | (int)((bits & 0x7fffff) >> (23 - fraction_bits)));
    if (isinf(value))
        return (uint16_t)(sign | infinity);
    double size = fabs((double)value);
    int exponent = size > 0 ? ilogb(size) : 1 - bias;
    if (exponent < 1 - bias)
        exponent = 1 - bias;
    int encoded = ((exponent + bias - 1) << fraction_bits) + (int)nearbyint(ldexp(size, fraction_bits - exponent));
    return (uint16_t)(sign | (encoded < infinity ? encoded : infinity));
}

static inline float naive_load(enum ht_dtype dtype, const void *at)
{
    uint16_t small = 0;
    float value;
    double wide;
    if (ht_dtype_size(dtype) == 2)
        memcpy(&small, at, 2);
    switch (dtype) {
    case HT_U8: return *(const uint8_t *)at;
    case HT_U16: return small;
    case HT_F16: return from_small(small, 10, 15);
    case HT_BF16: return from_small(small, 7, 127);
    case HT_F32: memcpy(&value, at, 4); return value;
    default: memcpy(&wide, at, 8); return (float)wide;
    }
}

static inline void naive_store(enum ht_dtype dtype, void *at, float value)
{
    uint16_t small = 0;
    double wide = value;
    if (dtype == HT_U16)
        small = (uint16_t)nearbyintf(value);
    else if (ht_dtype_size(dtype) == 2)
        small = dtype == HT_F16 ? to_small(value, 10, 15) : to_small(value, 7, 127);
    switch (dtype) {
    case HT_U8: *(uint8_t *)at = (uint8_t)nearbyintf(value); break;
    case HT_F32: memcpy(at, &value, 4); break;
    case HT_F64: memcpy(at, &wide, 8); break;
    default: memcpy(at, &small, 2);
    }
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static inline bool naive_valid(const struct ht_values *v)
{
    return isfinite(v->peak) && isfinite(v->gain) && isfinite(v->offset) && v->peak > 0 && v->gain != 0;
}

static inline float naive_model_value(float image, const struct ht_values *v)
{
    volatile float value = image;
    if (v->peak != 1)
        value = value / v->peak;
    if (v->gain != 1 || v->offset != 0) {
        value = value * v->gain;
        value = value + v->offset;
    }
    return value;
}

static inline float naive_image_value(float model, const struct ht_values *v, bool clamp)
{
    volatile float value = model;
    if (v->gain != 1 || v->offset != 0) {
        value = value - v->offset;
        value = value / v->gain;
    }
    if (v->peak != 1)
        value = value * v->peak;
    if (!clamp)
        return value;
    if (isnan(value) || value <= 0)
        return 0;
    return value > v->peak ? v->peak : value;
}

static inline bool is_integer_dtype(enum ht_dtype dtype) { return dtype == HT_U8 || dtype == HT_U16; }
static inline bool is_model_dtype(enum ht_dtype dtype)
{
    return dtype == HT_F16 || dtype == HT_BF16 || dtype == HT_F32;
}

/* Whether a destination can hold the peak. */
static inline bool naive_fit(const struct ht_values *v, enum ht_dtype destination)
{
    return !(destination == HT_U8 && v->peak > 255) && !(destination == HT_U16 && v->peak > 65535);
}

/* Walks there, turning at both edges. */
static inline int64_t naive_reflect(int64_t index, int64_t size)
{
    int64_t at = 0, step = 1, sign = index < 0 ? -1 : 1; /* the mirror image is the same on both sides of 0 */
    if (size == 1)
        return 0;
    for (int64_t walked = 0; walked < index * sign % (2 * size - 2); walked++) {
        if (at + step < 0 || at + step >= size)
            step = -step;
        at += step;
    }
    return at;
}

/* ---- comparison -------------------------------------------------------------------------------------------------- */

/* Every byte of both, but for which NaN a NaN is: that is nobody's promise where two meet. */
static inline void check_same(const struct owned *got, const struct owned *want)
{
    const struct ht_array *g = &got->array, *w = &want->array;
    MUST_BE_SET(got->memory, got->bytes);
    if (memcmp(got->memory, want->memory, got->bytes) == 0)
        return;
    EACH_ELEMENT(g, c, y, x) {
        void *a = element_of(g, c, y, x), *b = element_of(w, c, y, x);
        size_t size = (size_t)ht_dtype_size(g->dtype);
        if (!is_integer_dtype(g->dtype) && isnan(naive_load(g->dtype, a)) && isnan(naive_load(g->dtype, b)))
            memcpy(b, a, size);
        CHECK(memcmp(a, b, size) == 0);
    }
    CHECK(memcmp(got->memory, want->memory, got->bytes) == 0);
}

#endif
