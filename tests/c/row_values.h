/* SPDX-License-Identifier: MIT
 *
 * row_values.h - what check_rows feeds the row kernels: random values, and the extremes among them.
 */
#ifndef ROW_VALUES_H
#define ROW_VALUES_H

#include <string.h>

#include "halotile.h"

/* Integers 0 .. 65535; one exception among them; anything finite; anything. */
enum fill { PLAIN, PLAIN_BUT_ONE, FINITE, ANY, FILLS };

static uint64_t random_bits(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static float float_of(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, 4);
    return x;
}

static double double_of(uint64_t bits)
{
    double x;

    memcpy(&x, &bits, 8);
    return x;
}

/* Anything, with the neighbourhoods of f16's and bf16's halfway cases, both subnormal ranges, and the extremes. */
static uint32_t random_float(void)
{
    static const uint32_t extremes[] = {0, 1, 0x007fffff, 0x00800000, 0x3f800000, 0x477fe000, 0x477fefff, 0x477ff000,
                                        0x33000000, 0x33000001, 0x38800000, 0x387fffff, 0x7f7fffff, 0x7f800000,
                                        0x7f800001, 0x7fc00000, 0x7f8fffff, 0x7fffffff, 0x7f7f8000, 0x4b000000};
    uint32_t bits = (uint32_t)random_bits(), sign = bits & 0x80000000, near = (uint32_t)(random_bits() % 3) - 1;

    switch (random_bits() % 6) {
    case 0: return sign | extremes[bits % (sizeof extremes / sizeof *extremes)];
    case 1: return sign | (((bits >> 3 & 0xfff) << 16 | 0x8000) + near);                        /* bf16 */
    case 2: return sign | ((((bits & 0x7fff) << 13 | 0x1000) + near + (112 << 23)) & 0x7fffffff); /* f16 */
    case 3: return sign | (0x33000000 + bits % 0x05800000);                                     /* f16 subnormals */
    case 4: return sign | bits % 0x00800000;
    default: return bits;
    }
}

/* Bytes of integers, or of f16 or bf16, where finite takes a bit out of the exponent. */
static void fill_small(void *row, int64_t bytes, bool finite)
{
    unsigned char *b = row;

    for (int64_t i = 0; i < bytes; i++)
        b[i] = (unsigned char)(random_bits() >> 32 & (finite && i % 2 ? 0xbf : 0xff));
}

static void fill_floats(void *row, int64_t n, enum fill fill)
{
    int64_t one = fill == PLAIN_BUT_ONE && n ? (int64_t)(random_bits() % (uint64_t)n) : -1;
    uint32_t *bits = row;

    for (int64_t i = 0; i < n; i++) {
        float plain = (float)(random_bits() % 65536);
        memcpy(&bits[i], &plain, 4);
        if (fill >= FINITE || i == one)
            bits[i] = random_float();
        if (fill == FINITE && (bits[i] & 0x7f800000) == 0x7f800000)
            bits[i] = 0x80000000;
    }
}

/* Within the integer dtype's range: integers, halfway cases and their neighbours, anything between. */
static void fill_in_range(float *row, int64_t n, float most)
{
    for (int64_t i = 0; i < n; i++) {
        float x = (float)(random_bits() % (uint64_t)(2 * most + 1)) / 2;
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (x > 0 && x < most)
            bits += (uint32_t)(random_bits() % 3) - 1;
        row[i] = random_bits() % 4 ? float_of(bits) : most * (float)(random_bits() % 4096) / 4096;
    }
}

/* The float halfway between value k of a dtype of at most 16 bits and the next, or near it by -1, 0, 1 units in the
 * last place; near 2 is value k itself. Integers stay within 0 .. most. */
static float around_half(enum ht_dtype dtype, int64_t k, int near, int64_t most)
{
    float x = 0;
    uint32_t bits;

    if (dtype <= HT_U16)
        x = near == 2 || k == most ? (float)k : (float)k + 0.5f;
    memcpy(&bits, &x, 4);
    if (dtype == HT_F16) /* 112: the difference of the exponents' biases */
        bits = (((uint32_t)k & 0x8000) << 16 | ((uint32_t)k & 0x7fff) << 13) + (112 << 23) + (near == 2 ? 0 : 0x1000);
    if (dtype == HT_F16 && (k & 0x7fff) < 0x400) { /* subnormals: units of 2^-24 */
        x = ((float)(k & 0x3ff) + (near == 2 ? 0 : 0.5f)) * (k & 0x8000 ? -0x1p-24f : 0x1p-24f);
        memcpy(&bits, &x, 4);
    }
    if (dtype == HT_BF16)
        bits = (uint32_t)k << 16 | (near == 2 ? 0 : 0x8000);
    return float_of(near == 2 || (dtype <= HT_U16 && k == most) ? bits : bits + (uint32_t)near);
}

/* Floats with up to 29 more bits: none, a half, about a half, any; and f32's subnormal and overflow ranges. */
static void fill_doubles(double *row, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double x = float_of(random_float());
        uint64_t bits, more = random_bits() & 0x1fffffff;
        memcpy(&bits, &x, 8);
        switch (random_bits() % 4) {
        case 0: more = 0x10000000; break;
        case 1: more = 0x10000000 + random_bits() % 3 - 1; break;
        case 2: bits = random_bits() >> 12 | ((random_bits() % 2 ? 870 : 1130) + random_bits() % 28) << 52; break;
        default: bits = random_bits() % 2 ? random_bits() : bits; break;
        }
        row[i] = double_of(bits ^ more);
    }
}

#endif
