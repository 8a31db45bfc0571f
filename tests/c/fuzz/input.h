/* SPDX-License-Identifier: MIT
 *
 * input.h - for the fuzz targets: numbers, arrays and plans out of the fuzzer's bytes. Bytes that are used up are zeros,
 * so that every input is complete. What fills arrays comes from a generator that the bytes start.
 */
#ifndef INPUT_H
#define INPUT_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: %s fails\n", __FILE__, __LINE__, #condition);    \
            abort();                                                                 \
        }                                                                            \
    } while (0)

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define POISON(memory, bytes) __msan_poison(memory, bytes)
#define MUST_BE_SET(memory, bytes) __msan_check_mem_is_initialized(memory, bytes)
#define MEMORY_SANITIZER
#endif
#endif
#ifndef POISON
#define POISON(memory, bytes) ((void)(memory), (void)(bytes))
#define MUST_BE_SET(memory, bytes) ((void)(memory), (void)(bytes))
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *at;
    size_t left;
    uint64_t state; /* of the generator */
};

static inline struct input input_of(const uint8_t *data, size_t size)
{
    struct input in = {data, size, 1469598103934665603u};
    for (size_t i = 0; i < size; i++)
        in.state = (in.state ^ data[i]) * 1099511628211u;
    return in;
}

static inline uint8_t byte_of(struct input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->at++;
}

/* From low to high, both included, out of one byte. */
static inline int64_t number(struct input *in, int64_t low, int64_t high)
{
    return low + byte_of(in) % (high - low + 1);
}

static inline int64_t whole_number(struct input *in)
{
    uint64_t value = 0;
    for (int k = 0; k < 8; k++)
        value = value << 8 | byte_of(in);
    return (int64_t)value;
}

static inline uint32_t next_bits(struct input *in)
{
    in->state = in->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(in->state >> 32);
}

static inline float float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The kernels of one of the levels that the processor has. */
static inline void choose_rows(struct input *in)
{
    enum ht_cpu level = (enum ht_cpu)number(in, 0, HT_CPU_COUNT - 1);
#ifdef MEMORY_SANITIZER
    level = HT_CPU_SCALAR; /* it does not know what masked and shuffling instructions leave unset */
#endif
    ht_rows_fill(&ht_rows, ht_cpu_has(level) ? level : HT_CPU_SCALAR);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

enum content { TAME, ANY_FINITE, ANYTHING }; /* about [-0.2, 1.2]; finite; every bit pattern */

static inline float next_float(struct input *in, enum content content)
{
    static const float odd[] = {0, -0.0f, 1, 0.5f, 0.5f / 255, 1.5f / 255, 3e38f, -3e38f, 1e-45f, -1e-40f, 65519.5f,
                                65520, 6e-8f, 2.9e-8f, INFINITY, -INFINITY, NAN};
    uint32_t bits = next_bits(in);
    if (content == TAME || bits % 4 == 0)
        return (float)(bits >> 8) / 16777216.0f * 1.4f - 0.2f;
    if (bits % 4 == 1)
        return odd[(bits >> 8) % (content == ANYTHING ? 17 : 14)];
    float value = float_from_bits(next_bits(in));
    return content == ANYTHING || isfinite(value) ? value : 0.25f;
}

static inline float from_bytes(struct input *in, enum content content)
{
    static const float usual[] = {1, 0, 255, 65535, 2, -1, 0.5f, -0.0f, 100, 1023};
    uint8_t how = byte_of(in);
    return how < 200 ? usual[how % 10] : next_float(in, content);
}

static inline struct ht_values values_from(struct input *in)
{
    static const float peaks[] = {1, 255, 65535, 1023, 0.1f, 254.5f, 65504};
    struct ht_values v = {peaks[number(in, 0, 6)], 1, 0, byte_of(in) & 1};
    uint8_t how = byte_of(in);
    if (how & 1)
        v.gain = from_bytes(in, ANYTHING);
    if (how & 2)
        v.offset = from_bytes(in, ANYTHING);
    if (how > 250)
        v.peak = from_bytes(in, ANYTHING);
    return v;
}

static inline float *floats_from(struct input *in, int64_t n, enum content content)
{
    float *values = malloc((size_t)n * sizeof *values);
    CHECK(values);
    for (int64_t i = 0; i < n; i++)
        values[i] = next_float(in, content);
    return values;
}

/* Weights and normalisers: positive. */
static inline float *weights_from(struct input *in, int64_t n)
{
    float *values = floats_from(in, n, TAME);
    for (int64_t i = 0; i < n; i++)
        values[i] = 0.001f + fabsf(values[i]);
    return values;
}

/* ---- arrays: on the heap, no byte larger than need be ------------------------------------------------------------ */

struct owned {
    struct ht_array array;
    unsigned char *memory;
    size_t bytes;
};

static inline void *element_of(const struct ht_array *a, int64_t c, int64_t y, int64_t x)
{
    return (char *)a->data + (c * a->stride_c + y * a->stride_y + x * a->stride_x) * ht_dtype_size(a->dtype);
}

/* Axes in any order, with gaps, backwards; read-only arrays also with strides of zero. */
static inline struct owned owned_from(struct input *in, enum ht_dtype dtype, int64_t channels, int64_t height,
                                      int64_t width, bool read_only)
{
    static const int orders[6][3] = {{2, 1, 0}, {0, 2, 1}, {2, 0, 1}, {0, 1, 2}, {1, 2, 0}, {1, 0, 2}};
    int64_t sizes[3] = {channels, height, width}, strides[3], elements = 1, first = 0, last = 0;
    uint8_t how = byte_of(in), gaps = how & 8 ? byte_of(in) : 0, turned = how & 16 ? byte_of(in) : 0;
    const int *order = orders[how & 4 ? byte_of(in) % 6 : how & 1];
    for (int k = 0; k < 3; k++) {
        int axis = order[k];
        int64_t stride = elements * (1 + (gaps >> 2 * k & 3) % 3);
        elements = stride * sizes[axis];
        strides[axis] = turned >> k & 1 ? -stride : stride;
        if (read_only && turned >> (3 + k) & 1)
            strides[axis] = 0;
        int64_t reach = strides[axis] * (sizes[axis] - 1);
        *(reach < 0 ? &first : &last) += reach;
    }
    struct owned owned = {{NULL, dtype, channels, height, width, strides[0], strides[1], strides[2]}, NULL,
                          (size_t)((last - first + 1) * ht_dtype_size(dtype))};
    owned.memory = malloc(owned.bytes);
    CHECK(owned.memory);
    memset(owned.memory, 0xa5, owned.bytes);
    owned.array.data = owned.memory - first * ht_dtype_size(dtype);
    return owned;
}

#define EACH_ELEMENT(a, c, y, x)                          \
    for (int64_t c = 0; c < (a)->channels; c++)           \
        for (int64_t y = 0; y < (a)->height; y++)         \
            for (int64_t x = 0; x < (a)->width; x++)

static inline void put_any(void *at, enum ht_dtype dtype, struct input *in, enum content content)
{
    uint32_t bits = next_bits(in);
    float value = next_float(in, content);
    uint16_t small = (uint16_t)bits;
    double wide = bits & 1 ? (double)value : (double)value * (1 + ldexp((double)bits, -56));
    if (dtype == HT_F16 && content != ANYTHING && (small & 0x7c00) == 0x7c00)
        small = 0x3555;
    if (dtype == HT_BF16 && content != ANYTHING && (small & 0x7f80) == 0x7f80)
        small = 0x3eaa;
    if (dtype == HT_F16 && content == TAME)
        small = (uint16_t)(0x2c00 + small % 0x1000);
    if (dtype == HT_BF16 && content == TAME)
        small = (uint16_t)(0x3c00 + small % 0x180);
    switch (dtype) {
    case HT_U8: *(uint8_t *)at = (uint8_t)bits; break;
    case HT_F32: memcpy(at, &value, sizeof value); break;
    case HT_F64: memcpy(at, &wide, sizeof wide); break;
    default: memcpy(at, &small, sizeof small);
    }
}

static inline void fill_owned(struct owned *owned, struct input *in, enum content content)
{
    EACH_ELEMENT(&owned->array, c, y, x)
        put_any(element_of(&owned->array, c, y, x), owned->array.dtype, in, content);
}

/* For results: reading an element before it is written is found by the memory sanitizer. */
static inline void unset_elements(struct owned *owned)
{
    EACH_ELEMENT(&owned->array, c, y, x)
        POISON(element_of(&owned->array, c, y, x), (size_t)ht_dtype_size(owned->array.dtype));
}

/* The same array over a copy of its memory. */
static inline struct owned copy_of(const struct owned *owned)
{
    struct owned copy = *owned;
    copy.memory = malloc(owned->bytes);
    CHECK(copy.memory);
    memcpy(copy.memory, owned->memory, owned->bytes);
    copy.array.data = copy.memory + ((unsigned char *)owned->array.data - owned->memory);
    return copy;
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

/* Fields lie anywhere near what is allowed. */
static inline struct ht_axis_options small_axis(struct input *in, enum ht_boundary boundary)
{
    static const int64_t scales[8][2] = {{1, 1}, {2, 1}, {1, 2}, {3, 2}, {4, 1}, {2, 4}, {1, 3}, {5, 3}};
    struct ht_axis_options o = {.size = number(in, 1, 48), .tile = number(in, 1, 24), .halo = number(in, 0, 7)};
    uint8_t how = byte_of(in);
    const int64_t *scale = scales[how & 7];
    o.scale_num = scale[0], o.scale_den = scale[1];
    o.overlap = how & 8 ? number(in, 0, o.tile - 1) : 0;
    o.phase = how & 16 ? number(in, 1, 5) : 1;
    o.least = how & 32 ? number(in, 0, 40) : 0;
    o.trim = how & 64 ? number(in, 0, 9) : 0;
    o.boundary = boundary;
    return o;
}

/* Whether the bytes tell a plan. */
static inline bool plan_from(struct input *in, struct ht_plan *plan, struct ht_axis_options *y,
                             struct ht_axis_options *x)
{
    uint8_t how = byte_of(in);
    enum ht_boundary boundary = how & 1 ? HT_NATIVE : HT_REFLECT;
    *y = small_axis(in, boundary), *x = small_axis(in, boundary);
    return ht_plan_init(plan, y, x, (enum ht_blend)(how >> 1 & 3), NULL) == HT_OK;
}

#endif
