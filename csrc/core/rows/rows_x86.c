/* SPDX-License-Identifier: MIT
 *
 * rows_x86.c - the row kernels for AVX2 and AVX-512.
 */
#include "rows.h"

#if defined(HT_X86_64)
#include <immintrin.h>
#include <string.h>

/* Triples of D, from three vectors of interleaved elements that are sorted, or were interleaved, as floats. */
#define TRIPLES(D, T)                                                                                                  \
    INLINE void V(load3_##D)(float *d0, float *d1, float *d2, const T *src)                                            \
    {                                                                                                                  \
        VEC a = V(widen_##D)(src), b = V(widen_##D)(src + LANES), c = V(widen_##D)(src + 2 * LANES);                   \
        V(split)(&a, &b, &c);                                                                                          \
        V(put)(d0, a);                                                                                                 \
        V(put)(d1, b);                                                                                                 \
        V(put)(d2, c);                                                                                                 \
    }                                                                                                                  \
    INLINE void V(store3_##D)(T *dst, const float *s0, const float *s1, const float *s2)                               \
    {                                                                                                                  \
        VEC a = V(get)(s0), b = V(get)(s1), c = V(get)(s2);                                                            \
        V(join)(&a, &b, &c);                                                                                           \
        V(narrow_##D)(dst, a);                                                                                         \
        V(narrow_##D)(dst + LANES, b);                                                                                 \
        V(narrow_##D)(dst + 2 * LANES, c);                                                                             \
    }

#define SINGLES(D, T)                                                                                                  \
    INLINE void V(load_##D)(float *dst, const T *src) { V(put)(dst, V(widen_##D)(src)); }                              \
    INLINE void V(store_##D)(T *dst, const float *src) { V(narrow_##D)(dst, V(get)(src)); }

#define INLINE static inline TARGET

/* ---- AVX2, FMA, F16C --------------------------------------------------------------------------------------------- */

#define ROW(name) name##_avx2
#define V(name) v8_##name
#define TARGET HT_TARGET("avx2,fma,f16c")
#define VEC __m256
#define LANES 8
#define BLOCK 8

INLINE VEC v8_set(float x) { return _mm256_set1_ps(x); }
INLINE VEC v8_get(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v8_put(float *p, VEC x) { _mm256_storeu_ps(p, x); }
INLINE VEC v8_fma(VEC a, VEC b, VEC c) { return _mm256_fmadd_ps(a, b, c); }
INLINE VEC v8_either(VEC a, VEC b) { return _mm256_or_ps(a, b); }
INLINE __m256i v8_bits(VEC x) { return _mm256_castps_si256(x); }
INLINE VEC v8_of_bits(__m256i x) { return _mm256_castsi256_ps(x); }
INLINE bool v8_any_nan(VEC x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) != 0; }

/* Of equal or unordered operands, max and min give the second. */
INLINE VEC v8_clamp(VEC x, VEC high) { return _mm256_min_ps(_mm256_max_ps(x, _mm256_setzero_ps()), high); }

INLINE VEC v8_set_bits(uint32_t bits) { return v8_of_bits(_mm256_set1_epi32((int)bits)); }

INLINE VEC v8_least(VEC a, VEC x)
{
    __m256i twice = _mm256_add_epi32(v8_bits(x), v8_bits(x));

    return v8_of_bits(_mm256_min_epu32(v8_bits(a), _mm256_add_epi32(twice, _mm256_set1_epi32(-1))));
}

INLINE bool v8_at_least(VEC a, uint32_t low)
{
    __m256i l = _mm256_set1_epi32((int)low);

    return _mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_min_epu32(v8_bits(a), l), l)) == -1;
}

INLINE __m128i v8_get8(const void *p) { return _mm_loadl_epi64(p); }
INLINE __m128i v8_get16(const void *p) { return _mm_loadu_si128(p); }
INLINE void v8_put16(void *p, __m128i x) { _mm_storeu_si128(p, x); }
INLINE __m128i v8_low(__m256i x) { return _mm256_castsi256_si128(x); }
INLINE __m128i v8_high(__m256i x) { return _mm256_extracti128_si256(x, 1); }

INLINE VEC v8_widen_u8(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v8_get8(p))); }
INLINE VEC v8_widen_u16(const uint16_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(v8_get16(p))); }
INLINE VEC v8_widen_f16(const uint16_t *p) { return _mm256_cvtph_ps(v8_get16(p)); }
INLINE VEC v8_widen_f32(const float *p) { return v8_get(p); }

INLINE VEC v8_widen_bf16(const uint16_t *p)
{
    VEC x = v8_of_bits(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v8_get16(p)), 16));
    VEC quiet = _mm256_and_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q), v8_of_bits(_mm256_set1_epi32(0x00400000)));

    return _mm256_or_ps(x, quiet);
}

INLINE VEC v8_widen_f64(const double *p)
{
    return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(p)));
}

INLINE __m128i v8_pack_u16(__m256i x) { return _mm_packus_epi32(v8_low(x), v8_high(x)); }

INLINE void v8_narrow_u8(uint8_t *p, VEC x)
{
    __m128i words = v8_pack_u16(_mm256_cvtps_epi32(x));

    _mm_storel_epi64((void *)p, _mm_packus_epi16(words, words));
}

INLINE void v8_narrow_u16(uint16_t *p, VEC x) { v8_put16(p, v8_pack_u16(_mm256_cvtps_epi32(x))); }
INLINE void v8_narrow_f16(uint16_t *p, VEC x) { v8_put16(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
INLINE void v8_narrow_f32(float *p, VEC x) { v8_put(p, x); }

INLINE void v8_narrow_bf16(uint16_t *p, VEC x)
{
    __m256i bits = v8_bits(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    __m256i nan = v8_bits(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));

    v8_put16(p, v8_pack_u16(_mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16)));
}

INLINE void v8_narrow_f64(double *p, VEC x)
{
    _mm256_storeu_pd(p, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    _mm256_storeu_pd(p + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
}

/* Eight triples, and in each 128-bit lane four of them. With the halves of the vectors exchanged so that a lane holds
 *     a = r0 g0 b0 r1    b = g1 b1 r2 g2    c = b2 r3 g3 b3
 * one channel's four elements stand at different places and can be gathered by blending, then sorted. */
INLINE void v8_split(VEC *a, VEC *b, VEC *c)
{
    VEC x = _mm256_permute2f128_ps(*a, *b, 0x30);
    VEC y = _mm256_permute2f128_ps(*a, *c, 0x21);
    VEC z = _mm256_blend_ps(*b, *c, 0xf0);
    VEC r = _mm256_blend_ps(_mm256_blend_ps(x, z, 0x22), y, 0x44); /* r0 r3 r2 r1 */
    VEC g = _mm256_blend_ps(_mm256_blend_ps(y, x, 0x22), z, 0x44); /* g1 g0 g3 g2 */
    VEC u = _mm256_blend_ps(_mm256_blend_ps(z, y, 0x22), x, 0x44); /* b2 b1 b0 b3 */

    *a = _mm256_permute_ps(r, _MM_SHUFFLE(1, 2, 3, 0));
    *b = _mm256_permute_ps(g, _MM_SHUFFLE(2, 3, 0, 1));
    *c = _mm256_permute_ps(u, _MM_SHUFFLE(3, 0, 1, 2));
}

/* The same backwards. */
INLINE void v8_join(VEC *a, VEC *b, VEC *c)
{
    VEC r = _mm256_permute_ps(*a, _MM_SHUFFLE(1, 2, 3, 0));
    VEC g = _mm256_permute_ps(*b, _MM_SHUFFLE(2, 3, 0, 1));
    VEC u = _mm256_permute_ps(*c, _MM_SHUFFLE(3, 0, 1, 2));
    VEC x = _mm256_blend_ps(_mm256_blend_ps(r, g, 0x22), u, 0x44);
    VEC y = _mm256_blend_ps(_mm256_blend_ps(g, u, 0x22), r, 0x44);
    VEC z = _mm256_blend_ps(_mm256_blend_ps(u, r, 0x22), g, 0x44);

    *a = _mm256_permute2f128_ps(x, y, 0x20);
    *b = _mm256_blend_ps(z, x, 0xf0);
    *c = _mm256_permute2f128_ps(y, z, 0x31);
}

SINGLES(u8, uint8_t)
SINGLES(u16, uint16_t)
SINGLES(f16, uint16_t)
SINGLES(bf16, uint16_t)
SINGLES(f32, float)
SINGLES(f64, double)

TRIPLES(u16, uint16_t)
TRIPLES(f16, uint16_t)
TRIPLES(bf16, uint16_t)
TRIPLES(f32, float)
TRIPLES(f64, double)

/* Eight byte triples are 24 bytes, of which each lane takes 12: channel k of pixel i is byte 3i + k of them, or one
 * further by 4 in the upper lane, which is loaded from byte 8 on. */
INLINE void v8_load3_u8(float *d0, float *d1, float *d2, const uint8_t *src)
{
    const __m256i first = _mm256_setr_epi32((int)0xffffff00, (int)0xffffff03, (int)0xffffff06, (int)0xffffff09,
                                            (int)0xffffff04, (int)0xffffff07, (int)0xffffff0a, (int)0xffffff0d);
    const __m256i one = _mm256_set1_epi32(1);
    __m256i x = _mm256_inserti128_si256(_mm256_castsi128_si256(v8_get16(src)), v8_get16(src + 8), 1);
    __m256i second = _mm256_add_epi32(first, one), third = _mm256_add_epi32(second, one);

    v8_put(d0, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(x, first)));
    v8_put(d1, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(x, second)));
    v8_put(d2, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(x, third)));
}

INLINE void v8_store3_u8(uint8_t *dst, const float *s0, const float *s1, const float *s2)
{
    const __m128i order = _mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1);
    __m256i r = _mm256_cvtps_epi32(v8_get(s0)), g = _mm256_cvtps_epi32(v8_get(s1)), b = _mm256_cvtps_epi32(v8_get(s2));
    __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(r, g), _mm256_packus_epi32(b, b)); /* r0-3 g0-3 b0-3 b0-3 */
    __m256i lanes = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order));
    __m256i x = _mm256_permutevar8x32_epi32(lanes, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7));

    v8_put16(dst, v8_low(x));
    _mm_storel_epi64((void *)(dst + 16), v8_high(x));
}

#include "rows_tmpl.h"

void ht_rows_avx2(struct ht_rows *rows)
{
    fill_avx2(rows);
}

/* ---- AVX-512 F, BW, DQ, VL --------------------------------------------------------------------------------------- */

#define ROW(name) name##_avx512
#define V(name) v16_##name
#define TARGET HT_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define VEC __m512
#define LANES 16
#define BLOCK 16

INLINE VEC v16_set(float x) { return _mm512_set1_ps(x); }
INLINE VEC v16_get(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v16_put(float *p, VEC x) { _mm512_storeu_ps(p, x); }
INLINE VEC v16_fma(VEC a, VEC b, VEC c) { return _mm512_fmadd_ps(a, b, c); }
INLINE VEC v16_either(VEC a, VEC b) { return _mm512_or_ps(a, b); }
INLINE VEC v16_clamp(VEC x, VEC high) { return _mm512_min_ps(_mm512_max_ps(x, _mm512_setzero_ps()), high); }
INLINE __mmask16 v16_nan(VEC x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
INLINE bool v16_any_nan(VEC x) { return v16_nan(x) != 0; }
INLINE __m512i v16_ints(int x) { return _mm512_set1_epi32(x); }
INLINE __m512i v16_bits(VEC x) { return _mm512_castps_si512(x); }
INLINE VEC v16_of_bits(__m512i x) { return _mm512_castsi512_ps(x); }
INLINE VEC v16_set_bits(uint32_t bits) { return v16_of_bits(v16_ints((int)bits)); }

INLINE VEC v16_least(VEC a, VEC x)
{
    __m512i twice = _mm512_add_epi32(v16_bits(x), v16_bits(x));

    return v16_of_bits(_mm512_min_epu32(v16_bits(a), _mm512_add_epi32(twice, v16_ints(-1))));
}

INLINE bool v16_at_least(VEC a, uint32_t low)
{
    return _mm512_cmplt_epu32_mask(v16_bits(a), v16_ints((int)low)) == 0;
}

INLINE __m128i v16_get16(const void *p) { return _mm_loadu_si128(p); }
INLINE void v16_put16(void *p, __m128i x) { _mm_storeu_si128(p, x); }
INLINE __m256i v16_get32(const void *p) { return _mm256_loadu_si256(p); }
INLINE void v16_put32(void *p, __m256i x) { _mm256_storeu_si256(p, x); }

INLINE VEC v16_widen_u8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v16_get16(p))); }
INLINE VEC v16_widen_u16(const uint16_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(v16_get32(p))); }
INLINE VEC v16_widen_f16(const uint16_t *p) { return _mm512_cvtph_ps(v16_get32(p)); }
INLINE VEC v16_widen_f32(const float *p) { return v16_get(p); }

INLINE VEC v16_widen_bf16(const uint16_t *p)
{
    __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(v16_get32(p)), 16);

    return v16_of_bits(_mm512_mask_or_epi32(bits, v16_nan(v16_of_bits(bits)), bits, v16_ints(0x00400000)));
}

INLINE VEC v16_widen_f64(const double *p)
{
    VEC low = _mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_loadu_pd(p)));

    return _mm512_insertf32x8(low, _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8)), 1);
}

INLINE void v16_narrow_u8(uint8_t *p, VEC x) { v16_put16(p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))); }
INLINE void v16_narrow_u16(uint16_t *p, VEC x) { v16_put32(p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x))); }
INLINE void v16_narrow_f16(uint16_t *p, VEC x) { v16_put32(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
INLINE void v16_narrow_f32(float *p, VEC x) { v16_put(p, x); }

INLINE void v16_narrow_bf16(uint16_t *p, VEC x)
{
    __m512i bits = v16_bits(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), v16_ints(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, v16_ints(0x7fff)), odd);
    __m512i result = _mm512_mask_or_epi32(rounded, v16_nan(x), bits, v16_ints(0x00400000));

    v16_put32(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
}

INLINE void v16_narrow_f64(double *p, VEC x)
{
    _mm512_storeu_pd(p, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    _mm512_storeu_pd(p + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
}

INLINE __m512i v16_count(int step)
{
    return _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), v16_ints(step));
}

/* Element k of every triple; permutations look at the low four bits of an index. */
INLINE VEC v16_every_third(VEC a, VEC b, VEC c, int k)
{
    __m512i at = _mm512_add_epi32(v16_count(3), v16_ints(k));
    VEC x = _mm512_permutexvar_ps(at, a);

    x = _mm512_mask_permutexvar_ps(x, _mm512_cmpgt_epi32_mask(at, v16_ints(15)), at, b);
    return _mm512_mask_permutexvar_ps(x, _mm512_cmpgt_epi32_mask(at, v16_ints(31)), at, c);
}

INLINE void v16_split(VEC *a, VEC *b, VEC *c)
{
    VEC r = v16_every_third(*a, *b, *c, 0), g = v16_every_third(*a, *b, *c, 1), u = v16_every_third(*a, *b, *c, 2);

    *a = r;
    *b = g;
    *c = u;
}

/* Elements first to first + 15 of the triples. */
INLINE VEC v16_third(VEC r, VEC g, VEC u, int first)
{
    __m512i at = _mm512_add_epi32(v16_count(1), v16_ints(first));
    __m512i triple = _mm512_srli_epi32(_mm512_mullo_epi32(at, v16_ints(0x5556)), 16); /* at / 3 */
    __m512i channel = _mm512_sub_epi32(at, _mm512_mullo_epi32(triple, v16_ints(3)));
    VEC x = _mm512_permutexvar_ps(triple, r);

    x = _mm512_mask_permutexvar_ps(x, _mm512_cmpeq_epi32_mask(channel, v16_ints(1)), triple, g);
    return _mm512_mask_permutexvar_ps(x, _mm512_cmpeq_epi32_mask(channel, v16_ints(2)), triple, u);
}

INLINE void v16_join(VEC *a, VEC *b, VEC *c)
{
    VEC x = v16_third(*a, *b, *c, 0), y = v16_third(*a, *b, *c, 16), z = v16_third(*a, *b, *c, 32);

    *a = x;
    *b = y;
    *c = z;
}

SINGLES(u8, uint8_t)
SINGLES(u16, uint16_t)
SINGLES(f16, uint16_t)
SINGLES(bf16, uint16_t)
SINGLES(f32, float)
SINGLES(f64, double)

TRIPLES(u16, uint16_t)
TRIPLES(f16, uint16_t)
TRIPLES(bf16, uint16_t)
TRIPLES(f32, float)
TRIPLES(f64, double)

/* Sixteen byte triples are twelve words of 32 bits; each lane takes three. */
INLINE void v16_load3_u8(float *d0, float *d1, float *d2, const uint8_t *src)
{
    const __m512i words = _mm512_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0);
    const __m512i first = _mm512_set4_epi32((int)0xffffff09, (int)0xffffff06, (int)0xffffff03, (int)0xffffff00);
    __m512i second = _mm512_add_epi32(first, v16_ints(1)), third = _mm512_add_epi32(first, v16_ints(2));
    __m512i x = _mm512_permutexvar_epi32(words, _mm512_maskz_loadu_epi32(0x0fff, src));

    v16_put(d0, _mm512_cvtepi32_ps(_mm512_shuffle_epi8(x, first)));
    v16_put(d1, _mm512_cvtepi32_ps(_mm512_shuffle_epi8(x, second)));
    v16_put(d2, _mm512_cvtepi32_ps(_mm512_shuffle_epi8(x, third)));
}

INLINE void v16_store3_u8(uint8_t *dst, const float *s0, const float *s1, const float *s2)
{
    const __m128i order = _mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1);
    const __m512i words = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
    __m512i r = _mm512_cvtps_epi32(v16_get(s0)), g = _mm512_cvtps_epi32(v16_get(s1));
    __m512i b = _mm512_cvtps_epi32(v16_get(s2));
    __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(r, g), _mm512_packus_epi32(b, b));
    __m512i lanes = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));

    _mm512_mask_storeu_epi32(dst, 0x0fff, _mm512_permutexvar_epi32(words, lanes));
}

#include "rows_tmpl.h"

void ht_rows_avx512(struct ht_rows *rows)
{
    fill_avx512(rows);
}
#endif
