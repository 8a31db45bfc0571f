/* SPDX-License-Identifier: MIT
 *
 * rows_tmpl.h - the vector kernels' shared bodies, included once for each instruction set. No include guard.
 *
 * Defined before the inclusion, and undefined by it:
 *   ROW(name)     names a kernel
 *   V(name)       names a primitive of the instruction set
 *   TARGET        function attribute that switches the instruction set on
 *   VEC           vector of LANES floats with the compiler's operators (a GNU vector type)
 *   LANES         floats in a VEC
 *   BLOCK         elements that one conversion primitive converts
 * and these functions:
 *   VEC V(set)(float x)                          x in all lanes
 *   VEC V(set_bits)(uint32_t bits)               the same, of a bit pattern
 *   VEC V(get)(const float *p)                   LANES floats
 *   void V(put)(float *p, VEC x)
 *   VEC V(fma)(VEC a, VEC b, VEC c)              a * b + c, rounded once
 *   VEC V(either)(VEC a, VEC b)                  bitwise or
 *   VEC V(clamp)(VEC x, VEC high)                as clamp() in rows_scalar.c
 *   VEC V(least)(VEC a, VEC x)                   unsigned minimum of the bit pattern a and twice that of x less one
 *   bool V(at_least)(VEC a, uint32_t low)        whether all bit patterns are, unsigned
 *   bool V(any_nan)(VEC x)
 *   void V(load_D)(float *dst, const T *src), V(store_D)(T *dst, const float *src)
 *                                                BLOCK elements, for each D
 *   void V(load3_D)(float *d0, float *d1, float *d2, const T *src)
 *   void V(store3_D)(T *dst, const float *s0, const float *s1, const float *s2)
 *                                                BLOCK triples, for each D
 *
 * Whole vectors only; no primitive touches a byte beyond its elements. Conversions finish a row with a block that
 * overlaps the one before; where results replace their source, and in rows shorter than a block, the scalar kernels do
 * the rest.
 */

static struct ht_rows ROW(rest); /* the scalar kernels */

/* ---- conversions ------------------------------------------------------------------------------------------------- */

#define CONVERSIONS1(D, T)                                                                                             \
    static TARGET void ROW(load_##D)(float *dst, const void *src, int64_t n)                                           \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        if (n < BLOCK) {                                                                                               \
            ROW(rest).load[DTYPE_##D](dst, src, n);                                                                    \
            return;                                                                                                    \
        }                                                                                                              \
        for (int64_t i = 0; i < n - BLOCK; i += BLOCK)                                                                 \
            V(load_##D)(dst + i, s + i);                                                                               \
        V(load_##D)(dst + n - BLOCK, s + n - BLOCK);                                                                   \
    }                                                                                                                  \
    static TARGET void ROW(store_##D)(void *dst, const float *src, int64_t n)                                          \
    {                                                                                                                  \
        T *d = dst;                                                                                                    \
        if (n < BLOCK) {                                                                                               \
            ROW(rest).store[DTYPE_##D](dst, src, n);                                                                   \
            return;                                                                                                    \
        }                                                                                                              \
        for (int64_t i = 0; i < n - BLOCK; i += BLOCK)                                                                 \
            V(store_##D)(d + i, src + i);                                                                              \
        V(store_##D)(d + n - BLOCK, src + n - BLOCK);                                                                  \
    }

#define CONVERSIONS3(D, T)                                                                                             \
    static TARGET void ROW(load3_##D)(float *d0, float *d1, float *d2, const void *src, int64_t n)                     \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        if (n < BLOCK) {                                                                                               \
            ROW(rest).load3[DTYPE_##D](d0, d1, d2, src, n);                                                            \
            return;                                                                                                    \
        }                                                                                                              \
        for (int64_t i = 0; i < n - BLOCK; i += BLOCK)                                                                 \
            V(load3_##D)(d0 + i, d1 + i, d2 + i, s + 3 * i);                                                           \
        n -= BLOCK;                                                                                                    \
        V(load3_##D)(d0 + n, d1 + n, d2 + n, s + 3 * n);                                                               \
    }                                                                                                                  \
    static TARGET void ROW(store3_##D)(void *dst, const float *s0, const float *s1, const float *s2, int64_t n)        \
    {                                                                                                                  \
        T *d = dst;                                                                                                    \
        if (n < BLOCK) {                                                                                               \
            ROW(rest).store3[DTYPE_##D](dst, s0, s1, s2, n);                                                           \
            return;                                                                                                    \
        }                                                                                                              \
        for (int64_t i = 0; i < n - BLOCK; i += BLOCK)                                                                 \
            V(store3_##D)(d + 3 * i, s0 + i, s1 + i, s2 + i);                                                          \
        n -= BLOCK;                                                                                                    \
        V(store3_##D)(d + 3 * n, s0 + n, s1 + n, s2 + n);                                                              \
    }

#define DTYPE_u8 HT_U8
#define DTYPE_u16 HT_U16
#define DTYPE_f16 HT_F16
#define DTYPE_bf16 HT_BF16
#define DTYPE_f32 HT_F32
#define DTYPE_f64 HT_F64

CONVERSIONS1(u8, uint8_t)
CONVERSIONS1(u16, uint16_t)
CONVERSIONS1(f16, uint16_t)
CONVERSIONS1(bf16, uint16_t)
CONVERSIONS1(f64, double)

CONVERSIONS3(u8, uint8_t)
CONVERSIONS3(u16, uint16_t)
CONVERSIONS3(f16, uint16_t)
CONVERSIONS3(bf16, uint16_t)
CONVERSIONS3(f32, float)
CONVERSIONS3(f64, double)

#undef CONVERSIONS1
#undef CONVERSIONS3

/* ---- scale ------------------------------------------------------------------------------------------------------- */

/* Division by an integer y, 2 <= y <= 65535, is x * high + x * low, where high + low is 1 / y. Before the last rounding
 * its relative error is below 2^-45, too little to change the result: the middle m between two floats has 25
 * significant bits, the last one set, and m * y has as many or more, so that no float x equals it, and x / y is no
 * closer to m than 2^-25 / y, relatively. high is rounded towards zero, so that low is not negative and infinities do
 * not cancel.
 * Where x * low or the quotient may underflow, which is below 2^-64 but for 0, a true division is due. */
struct ROW(scaling) {
    VEC peak, high, low, gain, offset;
    bool divided, by_product, mapped;
};

static TARGET struct ROW(scaling) ROW(prepare)(float peak, float gain, float offset)
{
    bool by_product = peak >= 2 && peak <= 65535 && peak == (float)(int)peak;
    double inverse = 1 / (double)peak;
    float high = (float)inverse;

    if (high > inverse) {
        uint32_t bits;
        memcpy(&bits, &high, sizeof bits);
        bits--;
        memcpy(&high, &bits, sizeof high);
    }
    return (struct ROW(scaling)){
        .peak = V(set)(peak), .high = V(set)(high), .low = V(set)((float)(inverse - high)),
        .gain = V(set)(gain), .offset = V(set)(offset),
        .divided = peak != 1, .by_product = by_product, .mapped = gain != 1 || offset != 0,
    };
}

/* count <= 4 vectors. */
static inline TARGET void ROW(scale_vectors)(float *row, int count, const struct ROW(scaling) *s)
{
    const uint32_t low = (127 - 64) << 23;
    VEC x[4], least = V(set_bits)(UINT32_MAX); /* what 0 gives, too */

    for (int k = 0; k < count; k++) {
        x[k] = V(get)(row + k * LANES);
        least = V(least)(least, x[k]);
    }
    if (s->by_product && V(at_least)(least, 2 * low - 1))
        for (int k = 0; k < count; k++)
            x[k] = V(fma)(x[k], s->high, x[k] * s->low);
    else if (s->divided)
        for (int k = 0; k < count; k++)
            x[k] = x[k] / s->peak;
    if (s->mapped)
        for (int k = 0; k < count; k++)
            x[k] = x[k] * s->gain + s->offset;
    for (int k = 0; k < count; k++)
        V(put)(row + k * LANES, x[k]);
}

static TARGET void ROW(scale)(float *row, int64_t n, float peak, float gain, float offset)
{
    int64_t i = 0;

    if (n < LANES || (peak == 1 && gain == 1 && offset == 0)) {
        ROW(rest).scale(row, n, peak, gain, offset);
        return;
    }
    const struct ROW(scaling) s = ROW(prepare)(peak, gain, offset);
    for (; i <= n - 4 * LANES; i += 4 * LANES)
        ROW(scale_vectors)(row + i, 4, &s);
    for (; i <= n - LANES; i += LANES)
        ROW(scale_vectors)(row + i, 1, &s);
    ROW(rest).scale(row + i, n - i, peak, gain, offset);
}

/* ---- read, accumulate, resolve ----------------------------------------------------------------------------------- */

/* In all of these, `block` is BLOCK floats that the compiler keeps in registers. */

/* Integers are no small values: the product is always right. */
static inline TARGET void ROW(scale_block)(float *block, const struct ROW(scaling) *s)
{
    for (int k = 0; k < BLOCK; k += LANES) {
        VEC x = V(get)(block + k);
        if (s->by_product)
            x = V(fma)(x, s->high, x * s->low);
        else if (s->divided)
            x = x / s->peak;
        if (s->mapped)
            x = x * s->gain + s->offset;
        V(put)(block + k, x);
    }
}

#define READS(D, T, M, U)                                                                                              \
    static inline TARGET void ROW(read_block_##D##_##M)(U *dst, const T *src, const struct ROW(scaling) *s)            \
    {                                                                                                                  \
        float block[BLOCK];                                                                                            \
        V(load_##D)(block, src);                                                                                       \
        ROW(scale_block)(block, s);                                                                                    \
        V(store_##M)(dst, block);                                                                                      \
    }                                                                                                                  \
    static TARGET void ROW(read_##D##_##M)(void *dst, const void *src, int64_t n, const struct ht_values *v)           \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        U *d = dst;                                                                                                    \
        if (n < BLOCK) {                                                                                               \
            ROW(rest).read[DTYPE_##D][DTYPE_##M](dst, src, n, v);                                                      \
            return;                                                                                                    \
        }                                                                                                              \
        const struct ROW(scaling) scaling = ROW(prepare)(v->peak, v->gain, v->offset);                                 \
        for (int64_t i = 0; i < n - BLOCK; i += BLOCK)                                                                 \
            ROW(read_block_##D##_##M)(d + i, s + i, &scaling);                                                         \
        ROW(read_block_##D##_##M)(d + n - BLOCK, s + n - BLOCK, &scaling);                                             \
    }

#define READS3(D, T, M, U)                                                                                             \
    static inline TARGET void ROW(read3_block_##D##_##M)(U *d0, U *d1, U *d2, const T *src,                            \
                                                         const struct ROW(scaling) *s)                                 \
    {                                                                                                                  \
        float b0[BLOCK], b1[BLOCK], b2[BLOCK];                                                                         \
        V(load3_##D)(b0, b1, b2, src);                                                                                 \
        ROW(scale_block)(b0, s);                                                                                       \
        ROW(scale_block)(b1, s);                                                                                       \
        ROW(scale_block)(b2, s);                                                                                       \
        V(store_##M)(d0, b0);                                                                                          \
        V(store_##M)(d1, b1);                                                                                          \
        V(store_##M)(d2, b2);                                                                                          \
    }                                                                                                                  \
    static TARGET void ROW(read3_##D##_##M)(void *d0, void *d1, void *d2, const void *src, int64_t n,                  \
                                            const struct ht_values *v)                                                 \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        U *r = d0, *g = d1, *b = d2;                                                                                   \
        if (n < BLOCK) {                                                                                               \
            ROW(rest).read3[DTYPE_##D][DTYPE_##M](d0, d1, d2, src, n, v);                                              \
            return;                                                                                                    \
        }                                                                                                              \
        const struct ROW(scaling) scaling = ROW(prepare)(v->peak, v->gain, v->offset);                                 \
        for (int64_t i = 0; i < n - BLOCK; i += BLOCK)                                                                 \
            ROW(read3_block_##D##_##M)(r + i, g + i, b + i, s + 3 * i, &scaling);                                      \
        n -= BLOCK;                                                                                                    \
        ROW(read3_block_##D##_##M)(r + n, g + n, b + n, s + 3 * n, &scaling);                                          \
    }

#define READS_TO(M, U)                                                                                                 \
    READS(u8, uint8_t, M, U)                                                                                           \
    READS(u16, uint16_t, M, U)                                                                                         \
    READS3(u8, uint8_t, M, U)                                                                                          \
    READS3(u16, uint16_t, M, U)

READS_TO(f16, uint16_t)
READS_TO(bf16, uint16_t)
READS_TO(f32, float)

/* `taint` gathers the bits of x * 0: those of a zero, or, for infinities and NaNs, of a NaN. */

static inline TARGET VEC ROW(accumulate_block)(float *sums, const float *block, VEC wy, const float *wx, VEC taint)
{
    for (int k = 0; k < BLOCK; k += LANES) {
        VEC x = V(get)(block + k);
        V(put)(sums + k, V(get)(sums + k) + (wy * V(get)(wx + k)) * x);
        taint = V(either)(taint, x * V(set)(0));
    }
    return taint;
}

struct ROW(resolving) {
    VEC ny, offset, gain, peak;
    bool mapped, scaled, clamped;
};

static inline TARGET VEC ROW(resolve_block)(float *dst, const float *block, const float *nx, VEC taint,
                                            const struct ROW(resolving) *r)
{
    for (int k = 0; k < BLOCK; k += LANES) {
        VEC q = V(get)(block + k) + V(set)(0);
        if (nx)
            q = q / (r->ny * V(get)(nx + k));
        taint = V(either)(taint, q * V(set)(0));
        if (r->mapped)
            q = (q - r->offset) / r->gain;
        if (r->scaled)
            q = q * r->peak;
        if (r->clamped)
            q = V(clamp)(q, r->peak);
        V(put)(dst + k, q);
    }
    return taint;
}

/* resolve fetches the next piece of its row ahead: between two pieces of one channel come those of the others, and the
 * processor starts anew with each. A fetch beyond the row's end is harmless. */

#define SOURCES(D, T)                                                                                                  \
    static TARGET bool ROW(accumulate_##D)(float *sums, const void *src, float wy, const float *wx, int64_t n)         \
    {                                                                                                                  \
        const T *s = src;                                                                                              \
        const VEC w = V(set)(wy);                                                                                      \
        VEC taint = V(set)(0);                                                                                         \
        float block[BLOCK];                                                                                            \
        int64_t i = 0;                                                                                                 \
        for (; i <= n - BLOCK; i += BLOCK) {                                                                           \
            V(load_##D)(block, s + i);                                                                                 \
            taint = ROW(accumulate_block)(sums + i, block, w, wx + i, taint);                                          \
        }                                                                                                              \
        return ROW(rest).accumulate[DTYPE_##D](sums + i, s + i, wy, wx + i, n - i) || V(any_nan)(taint);               \
    }                                                                                                                  \
    static TARGET bool ROW(resolve_##D)(float *dst, const void *src, float ny, const float *nx, int64_t n,             \
                                        const struct ht_values *v)                                                     \
    {                                                                                                                  \
        const struct ROW(resolving) r = {                                                                              \
            .ny = V(set)(ny), .offset = V(set)(v->offset), .gain = V(set)(v->gain), .peak = V(set)(v->peak),           \
            .mapped = v->gain != 1 || v->offset != 0, .scaled = v->peak != 1, .clamped = v->clamp,                     \
        };                                                                                                             \
        const T *s = src;                                                                                              \
        VEC taint = V(set)(0);                                                                                         \
        float block[BLOCK];                                                                                            \
        int64_t i = 0;                                                                                                 \
        for (; i <= n - BLOCK; i += BLOCK) {                                                                           \
            HT_PREFETCH((uintptr_t)(s + i) + HT_PIECE * sizeof *s);                                                    \
            V(load_##D)(block, s + i);                                                                                 \
            taint = ROW(resolve_block)(dst + i, block, nx ? nx + i : NULL, taint, &r);                                 \
        }                                                                                                              \
        return ROW(rest).resolve[DTYPE_##D](dst + i, s + i, ny, nx ? nx + i : NULL, n - i, v) || V(any_nan)(taint);    \
    }

SOURCES(f16, uint16_t)
SOURCES(bf16, uint16_t)
SOURCES(f32, float)

#undef DTYPE_u8
#undef DTYPE_u16
#undef DTYPE_f16
#undef DTYPE_bf16
#undef DTYPE_f32
#undef DTYPE_f64
#undef READS
#undef READS3
#undef READS_TO
#undef SOURCES

/* ---- the table --------------------------------------------------------------------------------------------------- */

static void ROW(fill)(struct ht_rows *rows)
{
    ht_rows_scalar(&ROW(rest));
    *rows = (struct ht_rows){
        .name = rows->name,
        .load = {ROW(load_u8), ROW(load_u16), ROW(load_f16), ROW(load_bf16), ROW(rest).load[HT_F32], ROW(load_f64)},
        .load3 = {ROW(load3_u8), ROW(load3_u16), ROW(load3_f16), ROW(load3_bf16), ROW(load3_f32), ROW(load3_f64)},
        .store = {ROW(store_u8), ROW(store_u16), ROW(store_f16), ROW(store_bf16), ROW(rest).store[HT_F32],
                  ROW(store_f64)},
        .store3 = {ROW(store3_u8), ROW(store3_u16), ROW(store3_f16), ROW(store3_bf16), ROW(store3_f32),
                   ROW(store3_f64)},
        .scale = ROW(scale),
        .read[HT_U8] = {[HT_F16] = ROW(read_u8_f16), [HT_BF16] = ROW(read_u8_bf16), [HT_F32] = ROW(read_u8_f32)},
        .read[HT_U16] = {[HT_F16] = ROW(read_u16_f16), [HT_BF16] = ROW(read_u16_bf16), [HT_F32] = ROW(read_u16_f32)},
        .read3[HT_U8] = {[HT_F16] = ROW(read3_u8_f16), [HT_BF16] = ROW(read3_u8_bf16), [HT_F32] = ROW(read3_u8_f32)},
        .read3[HT_U16] = {[HT_F16] = ROW(read3_u16_f16), [HT_BF16] = ROW(read3_u16_bf16),
                          [HT_F32] = ROW(read3_u16_f32)},
        .accumulate = {[HT_F16] = ROW(accumulate_f16), [HT_BF16] = ROW(accumulate_bf16),
                       [HT_F32] = ROW(accumulate_f32)},
        .resolve = {[HT_F16] = ROW(resolve_f16), [HT_BF16] = ROW(resolve_bf16), [HT_F32] = ROW(resolve_f32)},
    };
}

#undef ROW
#undef V
#undef TARGET
#undef VEC
#undef LANES
#undef BLOCK
