// SPDX-License-Identifier: MIT
//
// tiles.metal - read, accumulate and finish on the Apple GPU: one thread for each element written.
//
// Also compiled as C++ by the tests, so: ASCII, no templates, no vectors but the thread's position. The arithmetic is
// that of csrc/core/rows/rows_scalar.c, operation for operation, each rounded once: nothing may be fused or reordered.
//
// Every kernel takes the same 17 slots of numbers, then its arrays from buffer 17 on. A slot is a long that holds two
// 32-bit numbers, the lower half first (before torch 2.14 nothing else can be passed); with HALOTILE_ARGUMENT_BYTES all
// numbers are one array of 34. Their order is that of the enums below, which operators.cpp follows. Floats are passed
// as their bits. Strides are in elements. Every number fits 32 bits since arrays have fewer than 2^31 elements; indices
// are computed in 64, but nothing is divided there: that is slow on a GPU.
#ifdef __METAL_VERSION__
#include <metal_stdlib>
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#pragma clang fp contract(off)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL
#endif
using namespace metal;

#ifdef HALOTILE_ARGUMENT_BYTES
#define NUMBERS constant int *numbers [[buffer(0)]]
#define UNPACK(COUNT)                                                                                                  \
    int n[34];                                                                                                         \
    UNROLL for (int k = 0; k < COUNT; k++)                                                                             \
        n[k] = numbers[k];
#else
#define NUMBERS                                                                                                        \
    constant long &p0 [[buffer(0)]], constant long &p1 [[buffer(1)]], constant long &p2 [[buffer(2)]],                 \
    constant long &p3 [[buffer(3)]], constant long &p4 [[buffer(4)]], constant long &p5 [[buffer(5)]],                 \
    constant long &p6 [[buffer(6)]], constant long &p7 [[buffer(7)]], constant long &p8 [[buffer(8)]],                 \
    constant long &p9 [[buffer(9)]], constant long &p10 [[buffer(10)]], constant long &p11 [[buffer(11)]],             \
    constant long &p12 [[buffer(12)]], constant long &p13 [[buffer(13)]], constant long &p14 [[buffer(14)]],           \
    constant long &p15 [[buffer(15)]], constant long &p16 [[buffer(16)]]
#define UNPACK(COUNT)                                                                                                  \
    const long packed[17] = {p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12, p13, p14, p15, p16};               \
    int n[34];                                                                                                         \
    UNROLL for (int k = 0; k < COUNT; k++)                                                                             \
        n[k] = int(packed[k / 2] >> (k % 2 * 32));
#endif

// ---- elements -------------------------------------------------------------------------------------------------------

static inline float widen_u8(uchar x) { return float(x); }
static inline float widen_u16(ushort x) { return float(x); }
static inline float widen_f16(half x) { return float(x); }
static inline float widen_bf16(ushort x) { return as_type<float>(uint(x) << 16); }
static inline float widen_f32(float x) { return x; }

static inline uchar narrow_u8(float x) { return uchar(rint(x)); }
static inline ushort narrow_u16(float x) { return ushort(rint(x)); }
static inline half narrow_f16(float x) { return half(x); }
static inline float narrow_f32(float x) { return x; }

static inline ushort narrow_bf16(float x)
{
    uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return ushort((bits >> 16) | 0x0040u);
    return ushort((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline bool is_finite(float x) { return (as_type<uint>(x) & 0x7f800000u) != 0x7f800000u; }

// ---- read -----------------------------------------------------------------------------------------------------------
// windows[k] <- the image from (start of its rows, start of its columns) on, reflected where that leaves the image.
// Grid: window width, window height, windows x channels. Windows are contiguous (k, c, y, x). The image's array holds
// only its rows [STRIP_START, STRIP_STOP): what lies elsewhere is left alone.

enum ReadNumber {
    READ_WINDOWS, READ_CHANNELS, READ_HEIGHT, READ_WIDTH,
    READ_STRIDE_C, READ_STRIDE_Y, READ_STRIDE_X,
    READ_IMAGE_HEIGHT, READ_IMAGE_WIDTH, READ_STRIP_START, READ_STRIP_STOP,
    READ_FIRST, READ_COLUMNS, // the batch's first tile; tiles in a row of them
    READ_ROWS,                // four numbers for where windows start: see starts()
    READ_COLS = READ_ROWS + 4,
    READ_PEAK = READ_COLS + 4, READ_GAIN, READ_OFFSET,
    READ_COUNT
};

// Where window i starts on an axis: origin, step, phase, longer.
static inline long starts(thread const int *n, long i)
{
    long longer = n[3];
    return n[0] + i * n[1] + (i < longer ? i : longer) * n[2];
}

static inline long reflected(long at, long size)
{
    if (at >= 0 && at < size)
        return at;
    if (size == 1)
        return 0;
    long period = 2 * (size - 1);
    at %= period;
    if (at < 0)
        at += period;
    return at < size ? at : period - at;
}

struct Spot {
    bool inside;
    long to, from;
};

static inline Spot read_spot(thread const int *n, uint3 at)
{
    Spot spot = {false, 0, 0};
    long height = n[READ_HEIGHT], width = n[READ_WIDTH];
    int k = int(at.z) / n[READ_CHANNELS], c = int(at.z) % n[READ_CHANNELS];
    if (k >= n[READ_WINDOWS] || long(at.y) >= height || long(at.x) >= width)
        return spot;
    int tile = n[READ_FIRST] + k, columns = n[READ_COLUMNS];
    long y = reflected(starts(n + READ_ROWS, tile / columns) + long(at.y), n[READ_IMAGE_HEIGHT]);
    long x = reflected(starts(n + READ_COLS, tile % columns) + long(at.x), n[READ_IMAGE_WIDTH]);
    spot.inside = y >= n[READ_STRIP_START] && y < n[READ_STRIP_STOP];
    spot.to = (long(at.z) * height + long(at.y)) * width + long(at.x);
    spot.from = long(c) * n[READ_STRIDE_C] + (y - n[READ_STRIP_START]) * n[READ_STRIDE_Y] + x * n[READ_STRIDE_X];
    return spot;
}

static inline float scaled(float x, thread const int *n)
{
    float peak = as_type<float>(n[READ_PEAK]), gain = as_type<float>(n[READ_GAIN]);
    float offset = as_type<float>(n[READ_OFFSET]);
    if (peak != 1.0f)
        x = x / peak;
    if (gain != 1.0f || offset != 0.0f) {
        x = x * gain;
        x = x + offset;
    }
    return x;
}

#define READ(IMAGE, I, WINDOW, W)                                                                                      \
    kernel void read_##IMAGE##_##WINDOW(NUMBERS, device const I *image [[buffer(17)]],                                 \
                                        device W *windows [[buffer(18)]], uint3 at [[thread_position_in_grid]])        \
    {                                                                                                                  \
        UNPACK(READ_COUNT)                                                                                             \
        Spot spot = read_spot(n, at);                                                                                  \
        if (spot.inside)                                                                                               \
            windows[spot.to] = narrow_##WINDOW(scaled(widen_##IMAGE(image[spot.from]), n));                            \
    }
#define READS(IMAGE, I)                                                                                                \
    READ(IMAGE, I, f32, float)                                                                                         \
    READ(IMAGE, I, f16, half)                                                                                          \
    READ(IMAGE, I, bf16, ushort)

READS(u8, uchar)
READS(u16, ushort)
READS(f16, half)
READS(bf16, ushort)
READS(f32, float)

// ---- accumulate -----------------------------------------------------------------------------------------------------
// band += (wy * wx) * output, for all tiles of a batch that keep a pixel, in their order.
// Grid: a box of the output image, width, height, channels. The band is a ring of rows, output row y being row
// y % RING; it starts at output column BAND_X, its columns are contiguous. Weights are tables: one row for each row
// (column) of tiles.

enum AccumulateNumber {
    SUM_CHANNELS, SUM_HEIGHT, SUM_WIDTH, SUM_Y, SUM_X, // the box
    SUM_RING, SUM_BAND_C, SUM_BAND_Y, SUM_BAND_X,
    SUM_FIRST, SUM_TILES, SUM_COLUMNS, // the batch's first tile, how many it has; tiles in a row of them
    SUM_STRIDE_N, SUM_STRIDE_C, SUM_STRIDE_Y, SUM_STRIDE_X, // of outputs
    SUM_WY, SUM_WX,                                         // lengths of the tables' rows
    SUM_ROWS, // eight numbers for what tiles keep: see kept()
    SUM_COLS = SUM_ROWS + 8,
    SUM_COUNT = SUM_COLS + 8
};

struct Kept {
    bool inside;
    long weight, output; // index into the tile's weights, and into its output
};

// What tile i of an axis keeps: first and last tile reach the image's ends. n: struct ht_kept of halotile.h, in its
// order.
static inline Kept kept(thread const int *n, long i, long at)
{
    long longer = n[5];
    long moved = i * n[3] + (i < longer ? i : longer) * n[4];
    long start = i == 0 ? 0 : n[0] + moved;
    long stop = i == n[6] - 1 ? n[7] : n[0] + n[1] + moved;
    Kept k = {at >= start && at < stop, at - start, at - (n[2] + moved)};
    return k;
}

static inline bool in_box(thread const int *n, uint3 at)
{
    return long(at.x) < n[SUM_WIDTH] && long(at.y) < n[SUM_HEIGHT] && long(at.z) < n[SUM_CHANNELS];
}

#define ACCUMULATE(OUTPUT, O)                                                                                          \
    kernel void accumulate_##OUTPUT(NUMBERS, device float *band [[buffer(17)]],                                        \
                                    device const O *outputs [[buffer(18)]], device const float *wy [[buffer(19)]],     \
                                    device const float *wx [[buffer(20)]], uint3 at [[thread_position_in_grid]])       \
    {                                                                                                                  \
        UNPACK(SUM_COUNT)                                                                                              \
        if (!in_box(n, at))                                                                                            \
            return;                                                                                                    \
        long y = n[SUM_Y] + long(at.y), x = n[SUM_X] + long(at.x), c = long(at.z);                                     \
        long slot = int(y) % n[SUM_RING];                                                                              \
        long to = c * n[SUM_BAND_C] + slot * n[SUM_BAND_Y] + (x - n[SUM_BAND_X]);                                      \
        float sum = band[to];                                                                                          \
        int row = n[SUM_FIRST] / n[SUM_COLUMNS], column = n[SUM_FIRST] % n[SUM_COLUMNS] - 1;                           \
        for (long k = 0; k < n[SUM_TILES]; k++) {                                                                      \
            column += 1;                                                                                               \
            if (column == n[SUM_COLUMNS]) {                                                                            \
                column = 0;                                                                                            \
                row += 1;                                                                                              \
            }                                                                                                          \
            Kept ky = kept(n + SUM_ROWS, row, y), kx = kept(n + SUM_COLS, column, x);                                  \
            if (!(ky.inside && kx.inside))                                                                             \
                continue;                                                                                              \
            float weight = wy[long(row) * n[SUM_WY] + ky.weight] * wx[long(column) * n[SUM_WX] + kx.weight];           \
            float part = weight * widen_##OUTPUT(outputs[k * n[SUM_STRIDE_N] + c * n[SUM_STRIDE_C] +                   \
                                                         ky.output * n[SUM_STRIDE_Y] + kx.output * n[SUM_STRIDE_X]]);  \
            sum = sum + part;                                                                                          \
        }                                                                                                              \
        band[to] = sum;                                                                                                \
    }

ACCUMULATE(f32, float)
ACCUMULATE(f16, half)
ACCUMULATE(bf16, ushort)

// ---- finish ---------------------------------------------------------------------------------------------------------
// rows <- band / (ny * nx), mapped from model to image values, clamped, rounded half to even; the band's rows become 0.
// Grid: width, height, channels of the rows. ny and nx are those of the whole output image.
// bad: how many quotients are NaN or infinite, and the least index ((y * width) + x) * channels + c of one.

enum FinishNumber {
    END_CHANNELS, END_HEIGHT, END_WIDTH, END_STRIDE_C, END_STRIDE_Y, END_STRIDE_X,
    END_Y, END_X, // where the rows start, in output pixels
    END_RING, END_BAND_C, END_BAND_Y, END_BAND_X,
    END_PEAK, END_GAIN, END_OFFSET, END_CLAMP,
    END_COUNT
};

static inline bool in_rows(thread const int *n, uint3 at)
{
    return long(at.x) < n[END_WIDTH] && long(at.y) < n[END_HEIGHT] && long(at.z) < n[END_CHANNELS];
}

static inline float resolved(float q, thread const int *n)
{
    float peak = as_type<float>(n[END_PEAK]), gain = as_type<float>(n[END_GAIN]);
    float offset = as_type<float>(n[END_OFFSET]);
    if (gain != 1.0f || offset != 0.0f) {
        q = q - offset;
        q = q / gain;
    }
    if (peak != 1.0f)
        q = q * peak;
    if (n[END_CLAMP]) {
        q = q > 0.0f ? q : 0.0f; // -0 and NaN too
        q = q < peak ? q : peak;
    }
    return q;
}

static inline void note_bad(device atomic_uint *bad, thread const int *n, uint3 at)
{
    uint index = uint((long(at.y) * n[END_WIDTH] + long(at.x)) * n[END_CHANNELS] + long(at.z));
    atomic_fetch_add_explicit(bad, 1u, memory_order_relaxed);
    atomic_fetch_min_explicit(bad + 1, index, memory_order_relaxed);
}

#define FINISH(ROWS, R)                                                                                                \
    kernel void finish_##ROWS(NUMBERS, device R *rows [[buffer(17)]], device float *band [[buffer(18)]],               \
                              device const float *ny [[buffer(19)]], device const float *nx [[buffer(20)]],            \
                              device atomic_uint *bad [[buffer(21)]], uint3 at [[thread_position_in_grid]])            \
    {                                                                                                                  \
        UNPACK(END_COUNT)                                                                                              \
        if (!in_rows(n, at))                                                                                           \
            return;                                                                                                    \
        long y = n[END_Y] + long(at.y), x = n[END_X] + long(at.x), c = long(at.z);                                     \
        long slot = int(y) % n[END_RING];                                                                              \
        long from = c * n[END_BAND_C] + slot * n[END_BAND_Y] + (x - n[END_BAND_X]);                                    \
        float weight = ny[y] * nx[x];                                                                                  \
        float q = band[from] / weight;                                                                                 \
        band[from] = 0.0f;                                                                                             \
        if (!is_finite(q))                                                                                             \
            note_bad(bad, n, at);                                                                                      \
        rows[c * n[END_STRIDE_C] + long(at.y) * n[END_STRIDE_Y] + long(at.x) * n[END_STRIDE_X]] =                      \
            narrow_##ROWS(resolved(q, n));                                                                             \
    }

FINISH(u8, uchar)
FINISH(u16, ushort)
FINISH(f16, half)
FINISH(bf16, ushort)
FINISH(f32, float)
