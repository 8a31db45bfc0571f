/* SPDX-License-Identifier: MIT
 *
 * rows_scalar.c - the row kernels in plain C: the specification of all others.
 *
 * Every float step is one operation rounded to f32: compile without contraction (-ffp-contract=off) and without
 * -ffast-math. Where an operation meets two NaNs, which of the two payloads it keeps is the compiler's choice.
 */
#include <string.h>

#include "rows.h"

static inline uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline bool is_finite(float value)
{
    return (bits_of(value) & 0x7f800000) != 0x7f800000;
}

/* ---- elements to f32 --------------------------------------------------------------------------------------------- */

static inline float widen_u8(uint8_t x)
{
    return x;
}

static inline float widen_u16(uint16_t x)
{
    return x;
}

static inline float widen_f16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000) << 16;
    uint32_t magnitude = x & 0x7fff;

    if (magnitude > 0x7c00)
        return float_of(sign | 0x7fc00000 | magnitude << 13);
    if (magnitude == 0x7c00)
        return float_of(sign | 0x7f800000);
    if (magnitude < 0x0400) /* zero or subnormal: units of 2^-24 */
        return float_of(sign | bits_of((float)magnitude * 0x1p-24f));
    return float_of(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

static inline float widen_bf16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;

    return float_of((x & 0x7fff) > 0x7f80 ? bits | 0x00400000 : bits);
}

static inline float widen_f32(float x)
{
    return x;
}

static inline float widen_f64(double x)
{
    return (float)x;
}

/* ---- f32 to elements --------------------------------------------------------------------------------------------- */

/* At 1.5 * 2^23 the unit in the last place is 1: the sum is rounded half to even and its low bits are the integer. */
static inline uint32_t round_to_int(float x)
{
    return bits_of(x + 0x1.8p23f);
}

static inline uint8_t narrow_u8(float x)
{
    return (uint8_t)round_to_int(x);
}

static inline uint16_t narrow_u16(float x)
{
    return (uint16_t)round_to_int(x);
}

static inline uint16_t narrow_f16(float x)
{
    uint32_t bits = bits_of(x);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;

    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x03ff));
    if (magnitude >= 0x477ff000) /* 65520 rounds up to 2^16 */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) /* below 2^-14: at 0.5 the unit in the last place is 2^-24, the subnormals' unit */
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    magnitude += 0x0fff + (magnitude >> 13 & 1); /* a carry into the exponent is right */
    return (uint16_t)(sign | (magnitude - ((127 - 15) << 23)) >> 13);
}

static inline uint16_t narrow_bf16(float x)
{
    uint32_t bits = bits_of(x);

    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x0040);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float narrow_f32(float x)
{
    return x;
}

static inline double narrow_f64(float x)
{
    return x;
}

/* ---- rows of them ------------------------------------------------------------------------------------------------ */

/* In all of these, dtype D has elements of type T. */

#define SINGLES(D, T)                                                                                                  \
    static void load_##D(float *dst, const void *src, int64_t n)                                                       \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        for (int64_t i = 0; i < n; i++)                                                                                \
            dst[i] = widen_##D(s[i]);                                                                                  \
    }                                                                                                                  \
    static void store_##D(void *dst, const float *src, int64_t n)                                                      \
    {                                                                                                                  \
        T *d = dst;                                                                                                    \
        for (int64_t i = 0; i < n; i++)                                                                                \
            d[i] = narrow_##D(src[i]);                                                                                 \
    }

SINGLES(u8, uint8_t)
SINGLES(u16, uint16_t)
SINGLES(f16, uint16_t)
SINGLES(bf16, uint16_t)
SINGLES(f64, double)

static void load_f32(float *dst, const void *src, int64_t n)
{
    memcpy(dst, src, (size_t)n * sizeof *dst);
}

static void store_f32(void *dst, const float *src, int64_t n)
{
    memcpy(dst, src, (size_t)n * sizeof *src);
}

#define TRIPLES(D, T)                                                                                                  \
    static void load3_##D(float *d0, float *d1, float *d2, const void *src, int64_t n)                                 \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            d0[i] = widen_##D(s[3 * i]);                                                                               \
            d1[i] = widen_##D(s[3 * i + 1]);                                                                           \
            d2[i] = widen_##D(s[3 * i + 2]);                                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    static void store3_##D(void *dst, const float *s0, const float *s1, const float *s2, int64_t n)                    \
    {                                                                                                                  \
        T *d = dst;                                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            d[3 * i] = narrow_##D(s0[i]);                                                                              \
            d[3 * i + 1] = narrow_##D(s1[i]);                                                                          \
            d[3 * i + 2] = narrow_##D(s2[i]);                                                                          \
        }                                                                                                              \
    }

TRIPLES(u8, uint8_t)
TRIPLES(u16, uint16_t)
TRIPLES(f16, uint16_t)
TRIPLES(bf16, uint16_t)
TRIPLES(f32, float)
TRIPLES(f64, double)

#define STRIDED(D, T)                                                                                                  \
    static void load_strided_##D(float *dst, const void *src, int64_t stride, int64_t n)                               \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        for (int64_t i = 0; i < n; i++)                                                                                \
            dst[i] = widen_##D(s[i * stride]);                                                                         \
    }                                                                                                                  \
    static void store_strided_##D(void *dst, int64_t stride, const float *src, int64_t n)                              \
    {                                                                                                                  \
        T *d = dst;                                                                                                    \
        for (int64_t i = 0; i < n; i++)                                                                                \
            d[i * stride] = narrow_##D(src[i]);                                                                        \
    }

STRIDED(u8, uint8_t)
STRIDED(u16, uint16_t)
STRIDED(f16, uint16_t)
STRIDED(bf16, uint16_t)
STRIDED(f32, float)
STRIDED(f64, double)

void ht_load_strided(float *dst, const void *src, enum ht_dtype dtype, int64_t stride, int64_t n)
{
    switch (dtype) {
    case HT_U8: load_strided_u8(dst, src, stride, n); break;
    case HT_U16: load_strided_u16(dst, src, stride, n); break;
    case HT_F16: load_strided_f16(dst, src, stride, n); break;
    case HT_BF16: load_strided_bf16(dst, src, stride, n); break;
    case HT_F32: load_strided_f32(dst, src, stride, n); break;
    case HT_F64: load_strided_f64(dst, src, stride, n); break;
    case HT_DTYPE_COUNT: break;
    }
}

void ht_store_strided(void *dst, enum ht_dtype dtype, int64_t stride, const float *src, int64_t n)
{
    switch (dtype) {
    case HT_U8: store_strided_u8(dst, stride, src, n); break;
    case HT_U16: store_strided_u16(dst, stride, src, n); break;
    case HT_F16: store_strided_f16(dst, stride, src, n); break;
    case HT_BF16: store_strided_bf16(dst, stride, src, n); break;
    case HT_F32: store_strided_f32(dst, stride, src, n); break;
    case HT_F64: store_strided_f64(dst, stride, src, n); break;
    case HT_DTYPE_COUNT: break;
    }
}

/* ---- arithmetic -------------------------------------------------------------------------------------------------- */

static inline float scaled(float x, float peak, float gain, float offset)
{
    if (peak != 1)
        x = x / peak;
    if (gain != 1 || offset != 0)
        x = x * gain + offset;
    return x;
}

static void scale(float *row, int64_t n, float peak, float gain, float offset)
{
    for (int64_t i = 0; i < n; i++)
        row[i] = scaled(row[i], peak, gain, offset);
}

#define READS(D, T, M, U)                                                                                              \
    static void read_##D##_##M(void *dst, const void *src, int64_t n, const struct ht_values *v)                       \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        U *d = dst;                                                                                                    \
        for (int64_t i = 0; i < n; i++)                                                                                \
            d[i] = narrow_##M(scaled(widen_##D(s[i]), v->peak, v->gain, v->offset));                                   \
    }                                                                                                                  \
    static void read3_##D##_##M(void *d0, void *d1, void *d2, const void *src, int64_t n, const struct ht_values *v)   \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        U *d[] = {d0, d1, d2};                                                                                         \
        for (int64_t i = 0; i < n; i++)                                                                                \
            for (int k = 0; k < 3; k++)                                                                                \
                d[k][i] = narrow_##M(scaled(widen_##D(s[3 * i + k]), v->peak, v->gain, v->offset));                    \
    }

READS(u8, uint8_t, f16, uint16_t)
READS(u8, uint8_t, bf16, uint16_t)
READS(u8, uint8_t, f32, float)
READS(u16, uint16_t, f16, uint16_t)
READS(u16, uint16_t, bf16, uint16_t)
READS(u16, uint16_t, f32, float)

static inline float clamp(float x, float high)
{
    x = x > 0 ? x : 0; /* -0 and NaN too */
    return x < high ? x : high;
}

/* Quotient to image value. */
static inline float resolved(float q, const struct ht_values *v)
{
    if (v->gain != 1 || v->offset != 0)
        q = (q - v->offset) / v->gain;
    if (v->peak != 1)
        q = q * v->peak;
    return v->clamp ? clamp(q, v->peak) : q;
}

#define SOURCES(D, T)                                                                                                  \
    static bool accumulate_##D(float *sums, const void *src, float wy, const float *wx, int64_t n)                     \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        bool all_finite = true;                                                                                        \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            float x = widen_##D(s[i]);                                                                                 \
            sums[i] = sums[i] + (wy * wx[i]) * x;                                                                      \
            all_finite &= is_finite(x);                                                                                \
        }                                                                                                              \
        return !all_finite;                                                                                            \
    }                                                                                                                  \
    static bool resolve_##D(float *dst, const void *src, float ny, const float *nx, int64_t n,                         \
                            const struct ht_values *values)                                                            \
    {                                                                                                                  \
        const struct ht_values v = *values;                                                                            \
        const T *s = src;                                                                                              \
        bool all_finite = true;                                                                                        \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            float q = widen_##D(s[i]) + 0.0f;                                                                          \
            if (nx)                                                                                                    \
                q = q / (ny * nx[i]);                                                                                  \
            all_finite &= is_finite(q);                                                                                \
            dst[i] = resolved(q, &v);                                                                                  \
        }                                                                                                              \
        return !all_finite;                                                                                            \
    }

SOURCES(f16, uint16_t)
SOURCES(bf16, uint16_t)
SOURCES(f32, float)

/* ---- the table --------------------------------------------------------------------------------------------------- */

static const struct ht_rows scalar = {
    .name = "scalar",
    .load = {load_u8, load_u16, load_f16, load_bf16, load_f32, load_f64},
    .load3 = {load3_u8, load3_u16, load3_f16, load3_bf16, load3_f32, load3_f64},
    .store = {store_u8, store_u16, store_f16, store_bf16, store_f32, store_f64},
    .store3 = {store3_u8, store3_u16, store3_f16, store3_bf16, store3_f32, store3_f64},
    .scale = scale,
    .read[HT_U8] = {[HT_F16] = read_u8_f16, [HT_BF16] = read_u8_bf16, [HT_F32] = read_u8_f32},
    .read[HT_U16] = {[HT_F16] = read_u16_f16, [HT_BF16] = read_u16_bf16, [HT_F32] = read_u16_f32},
    .read3[HT_U8] = {[HT_F16] = read3_u8_f16, [HT_BF16] = read3_u8_bf16, [HT_F32] = read3_u8_f32},
    .read3[HT_U16] = {[HT_F16] = read3_u16_f16, [HT_BF16] = read3_u16_bf16, [HT_F32] = read3_u16_f32},
    .accumulate = {[HT_F16] = accumulate_f16, [HT_BF16] = accumulate_bf16, [HT_F32] = accumulate_f32},
    .resolve = {[HT_F16] = resolve_f16, [HT_BF16] = resolve_bf16, [HT_F32] = resolve_f32},
};

void ht_rows_scalar(struct ht_rows *rows)
{
    *rows = scalar;
}
