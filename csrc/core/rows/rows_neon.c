/* SPDX-License-Identifier: MIT
 *
 * rows_neon.c - the row kernels for AArch64, where every processor has NEON.
 */
#include "rows.h"

#if defined(HT_AARCH64)
#include <arm_neon.h>
#include <string.h>

#define ROW(name) name##_neon
#define V(name) v4_##name
#define TARGET
#define VEC float32x4_t
#define LANES 4
#define BLOCK 8

#define INLINE static inline

INLINE VEC v4_set(float x) { return vdupq_n_f32(x); }
INLINE VEC v4_set_bits(uint32_t bits) { return vreinterpretq_f32_u32(vdupq_n_u32(bits)); }
INLINE VEC v4_get(const float *p) { return vld1q_f32(p); }
INLINE void v4_put(float *p, VEC x) { vst1q_f32(p, x); }
INLINE VEC v4_fma(VEC a, VEC b, VEC c) { return vfmaq_f32(c, a, b); }
INLINE uint32x4_t v4_bits(VEC x) { return vreinterpretq_u32_f32(x); }
INLINE VEC v4_of_bits(uint32x4_t x) { return vreinterpretq_f32_u32(x); }
INLINE VEC v4_either(VEC a, VEC b) { return v4_of_bits(vorrq_u32(v4_bits(a), v4_bits(b))); }
INLINE bool v4_any_nan(VEC x) { return vminvq_u32(vceqq_f32(x, x)) == 0; }
INLINE bool v4_at_least(VEC a, uint32_t low) { return vminvq_u32(v4_bits(a)) >= low; }

INLINE VEC v4_clamp(VEC x, VEC high)
{
    return vminq_f32(v4_of_bits(vandq_u32(v4_bits(x), vcgtzq_f32(x))), high);
}

INLINE VEC v4_least(VEC a, VEC x)
{
    uint32x4_t twice = vaddq_u32(v4_bits(x), v4_bits(x));

    return v4_of_bits(vminq_u32(v4_bits(a), vsubq_u32(twice, vdupq_n_u32(1))));
}

/* ---- eight elements in registers: to and from f32 ---------------------------------------------------------------- */

INLINE void v4_widen_u16(float *dst, uint16x8_t x)
{
    v4_put(dst, vcvtq_f32_u32(vmovl_u16(vget_low_u16(x))));
    v4_put(dst + 4, vcvtq_f32_u32(vmovl_high_u16(x)));
}

INLINE void v4_widen_u8(float *dst, uint8x8_t x) { v4_widen_u16(dst, vmovl_u8(x)); }

INLINE void v4_widen_f16(float *dst, uint16x8_t x)
{
    float16x8_t halves = vreinterpretq_f16_u16(x);

    v4_put(dst, vcvt_f32_f16(vget_low_f16(halves)));
    v4_put(dst + 4, vcvt_high_f32_f16(halves));
}

INLINE VEC v4_of_bf16(uint16x4_t x)
{
    uint32x4_t bits = vshll_n_u16(x, 16), number = vceqq_f32(v4_of_bits(bits), v4_of_bits(bits));

    return v4_of_bits(vorrq_u32(bits, vbicq_u32(vdupq_n_u32(0x00400000), number)));
}

INLINE void v4_widen_bf16(float *dst, uint16x8_t x)
{
    v4_put(dst, v4_of_bf16(vget_low_u16(x)));
    v4_put(dst + 4, v4_of_bf16(vget_high_u16(x)));
}

INLINE uint16x8_t v4_narrow_u16(const float *src)
{
    return vcombine_u16(vmovn_u32(vcvtnq_u32_f32(v4_get(src))), vmovn_u32(vcvtnq_u32_f32(v4_get(src + 4))));
}

INLINE uint8x8_t v4_narrow_u8(const float *src) { return vmovn_u16(v4_narrow_u16(src)); }

INLINE uint16x8_t v4_narrow_f16(const float *src)
{
    return vreinterpretq_u16_f16(vcombine_f16(vcvt_f16_f32(v4_get(src)), vcvt_f16_f32(v4_get(src + 4))));
}

INLINE uint16x4_t v4_to_bf16(VEC x)
{
    uint32x4_t bits = v4_bits(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));

    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

INLINE uint16x8_t v4_narrow_bf16(const float *src)
{
    return vcombine_u16(v4_to_bf16(v4_get(src)), v4_to_bf16(v4_get(src + 4)));
}

/* ---- in memory --------------------------------------------------------------------------------------------------- */

#define CONVERSIONS(D, T, X, GET, PUT, GET3, PUT3)                                                                     \
    INLINE void v4_load_##D(float *dst, const T *src) { v4_widen_##D(dst, GET(src)); }                                 \
    INLINE void v4_store_##D(T *dst, const float *src) { PUT(dst, v4_narrow_##D(src)); }                               \
    INLINE void v4_load3_##D(float *d0, float *d1, float *d2, const T *src)                                            \
    {                                                                                                                  \
        X x = GET3(src);                                                                                               \
        v4_widen_##D(d0, x.val[0]);                                                                                    \
        v4_widen_##D(d1, x.val[1]);                                                                                    \
        v4_widen_##D(d2, x.val[2]);                                                                                    \
    }                                                                                                                  \
    INLINE void v4_store3_##D(T *dst, const float *s0, const float *s1, const float *s2)                               \
    {                                                                                                                  \
        X x = {{v4_narrow_##D(s0), v4_narrow_##D(s1), v4_narrow_##D(s2)}};                                             \
        PUT3(dst, x);                                                                                                  \
    }

CONVERSIONS(u8, uint8_t, uint8x8x3_t, vld1_u8, vst1_u8, vld3_u8, vst3_u8)
CONVERSIONS(u16, uint16_t, uint16x8x3_t, vld1q_u16, vst1q_u16, vld3q_u16, vst3q_u16)
CONVERSIONS(f16, uint16_t, uint16x8x3_t, vld1q_u16, vst1q_u16, vld3q_u16, vst3q_u16)
CONVERSIONS(bf16, uint16_t, uint16x8x3_t, vld1q_u16, vst1q_u16, vld3q_u16, vst3q_u16)

INLINE void v4_load_f32(float *dst, const float *src)
{
    v4_put(dst, v4_get(src));
    v4_put(dst + 4, v4_get(src + 4));
}

INLINE void v4_store_f32(float *dst, const float *src) { v4_load_f32(dst, src); }

INLINE void v4_load3_f32(float *d0, float *d1, float *d2, const float *src)
{
    for (int i = 0; i < BLOCK; i += 4) {
        float32x4x3_t x = vld3q_f32(src + 3 * i);
        v4_put(d0 + i, x.val[0]);
        v4_put(d1 + i, x.val[1]);
        v4_put(d2 + i, x.val[2]);
    }
}

INLINE void v4_store3_f32(float *dst, const float *s0, const float *s1, const float *s2)
{
    for (int i = 0; i < BLOCK; i += 4) {
        float32x4x3_t x = {{v4_get(s0 + i), v4_get(s1 + i), v4_get(s2 + i)}};
        vst3q_f32(dst + 3 * i, x);
    }
}

INLINE void v4_load_f64(float *dst, const double *src)
{
    for (int i = 0; i < BLOCK; i += 2)
        vst1_f32(dst + i, vcvt_f32_f64(vld1q_f64(src + i)));
}

INLINE void v4_store_f64(double *dst, const float *src)
{
    for (int i = 0; i < BLOCK; i += 2)
        vst1q_f64(dst + i, vcvt_f64_f32(vld1_f32(src + i)));
}

INLINE void v4_load3_f64(float *d0, float *d1, float *d2, const double *src)
{
    for (int i = 0; i < BLOCK; i += 2) {
        float64x2x3_t x = vld3q_f64(src + 3 * i);
        vst1_f32(d0 + i, vcvt_f32_f64(x.val[0]));
        vst1_f32(d1 + i, vcvt_f32_f64(x.val[1]));
        vst1_f32(d2 + i, vcvt_f32_f64(x.val[2]));
    }
}

INLINE void v4_store3_f64(double *dst, const float *s0, const float *s1, const float *s2)
{
    for (int i = 0; i < BLOCK; i += 2) {
        float64x2_t r = vcvt_f64_f32(vld1_f32(s0 + i)), g = vcvt_f64_f32(vld1_f32(s1 + i));
        float64x2x3_t x = {{r, g, vcvt_f64_f32(vld1_f32(s2 + i))}};
        vst3q_f64(dst + 3 * i, x);
    }
}

#include "rows_tmpl.h"

void ht_rows_neon(struct ht_rows *rows)
{
    fill_neon(rows);
}
#endif
