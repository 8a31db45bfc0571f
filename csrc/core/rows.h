/* SPDX-License-Identifier: MIT
 *
 * rows.h - the table of row kernels. Internal to the core.
 *
 * A row kernel works on n >= 0 elements, contiguous unless its name says otherwise, and can neither fail nor allocate.
 * n need not be a multiple of anything and pointers need only their element's alignment: no kernel reads or writes a
 * byte outside its rows. Source and destination do not overlap unless said. rows/rows_scalar.c is the specification:
 * every variant gives the same bits for every input (see tests/c/check_rows.c).
 */
#ifndef HALOTILE_ROWS_H
#define HALOTILE_ROWS_H

#include "halotile.h"

/* Processors with kernels of their own. MSVC has names of its own for them, wants no attribute for an instruction set,
 * and no prefetch where processors see a row coming anyway. */
#if defined(__x86_64__) || (defined(_M_X64) && !defined(_M_ARM64EC))
#define HT_X86_64
#elif defined(__aarch64__)
#define HT_AARCH64
#endif
#if defined(__GNUC__)
#define HT_TARGET(SET) __attribute__((target(SET)))
#define HT_PREFETCH(P) __builtin_prefetch((const void *)(P))
#else
#define HT_TARGET(SET)
#define HT_PREFETCH(P) ((void)0)
#endif

/* Rows that take several kernels are processed in pieces of this many pixels: a piece of three channels stays in the
 * first-level cache. Half or twice as many are as fast; a quarter is 10 to 20 % slower between planar arrays. */
#define HT_PIECE 1024

/* Dtypes below this one are integers; f16, bf16 and f32 are the model dtypes. */
#define HT_INTEGERS (HT_U16 + 1)

struct ht_rows {
    const char *name;

    /* dst[i] = (float)src[i]. f16 and bf16 widen exactly (NaN made quiet); f64 rounds to nearest even. */
    void (*load[HT_DTYPE_COUNT])(float *dst, const void *src, int64_t n);

    /* Interleaved triples to three rows: d0[i], d1[i], d2[i] = src[3i], src[3i+1], src[3i+2]. */
    void (*load3[HT_DTYPE_COUNT])(float *d0, float *d1, float *d2, const void *src, int64_t n);

    /* dst[i] = src[i] in dst's dtype. Integers: rounded half to even; src is within the dtype's range and not NaN.
     * f16, bf16: rounded to nearest even, overflow to infinity, NaN kept and made quiet. */
    void (*store[HT_DTYPE_COUNT])(void *dst, const float *src, int64_t n);

    /* Three rows to interleaved triples, converted like store. */
    void (*store3[HT_DTYPE_COUNT])(void *dst, const float *s0, const float *s1, const float *s2, int64_t n);

    /* row[i] = row[i] / peak * gain + offset, in place, each step rounded; / peak is left out for peak == 1, the rest
     * for gain == 1 with offset == 0. Division must be correctly rounded for every finite row[i]. */
    void (*scale)(float *row, int64_t n, float peak, float gain, float offset);

    /* load or load3, then scale, then store: [dtype of src][dtype of dst]. From integers to model dtypes only; images
     * of floats have seldom something to scale. */
    void (*read[HT_INTEGERS][HT_DTYPE_COUNT])(void *dst, const void *src, int64_t n, const struct ht_values *values);
    void (*read3[HT_INTEGERS][HT_DTYPE_COUNT])(void *d0, void *d1, void *d2, const void *src, int64_t n,
                                               const struct ht_values *values);

    /* sums[i] += (wy * wx[i]) * src[i], each step rounded. Returns whether any src[i] is NaN or infinite.
     * Here and below src is of a model dtype, and widened as by load. */
    bool (*accumulate[HT_DTYPE_COUNT])(float *sums, const void *src, float wy, const float *wx, int64_t n);

    /* q = src[i] + 0.0f, divided by (ny * nx[i]) unless nx is NULL;
     * dst[i] = (q - offset) / gain * peak (parts left out as in scale), then clamped to [0, peak] if clamp:
     * below 0 or NaN gives +0. dst may be src if that is f32. Returns whether any q is NaN or infinite. */
    bool (*resolve[HT_DTYPE_COUNT])(float *dst, const void *src, float ny, const float *nx, int64_t n,
                                    const struct ht_values *values);
};

/* The chosen table; valid after ht_rows_init. */
extern struct ht_rows ht_rows;

/* Each fills in what it has, over what stands there; called in order of rising preference. */
void ht_rows_scalar(struct ht_rows *rows);
void ht_rows_avx2(struct ht_rows *rows);   /* needs AVX2, FMA and F16C */
void ht_rows_avx512(struct ht_rows *rows); /* needs AVX-512 F, BW, DQ, VL on top */
void ht_rows_neon(struct ht_rows *rows);   /* AArch64 */

/* What the processor can do; cpu.c. */
enum ht_cpu { HT_CPU_SCALAR = 0, HT_CPU_AVX2, HT_CPU_AVX512, HT_CPU_NEON, HT_CPU_COUNT };
bool ht_cpu_has(enum ht_cpu level);
/* Fills the table with level and all below it that belong to it (avx512 is laid over avx2). For tests. */
void ht_rows_fill(struct ht_rows *rows, enum ht_cpu level);

/* The same conversions for elements `stride` apart, one channel at a time: scalar on every processor; rows_scalar.c.
 * stride is in elements, any sign. */
void ht_load_strided(float *dst, const void *src, enum ht_dtype dtype, int64_t stride, int64_t n);
void ht_store_strided(void *dst, enum ht_dtype dtype, int64_t stride, const float *src, int64_t n);

#endif
