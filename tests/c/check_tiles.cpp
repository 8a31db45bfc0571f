// SPDX-License-Identifier: MIT
//
// check_tiles.cpp - the Metal kernels, compiled as C++, against plain loops that follow their description.
//
// For each kernel many small cases: odd sizes, any strides, reflections many times over, strips, several tiles in a
// batch, ring buffers that wrap around. Grids go past the arrays' ends as groups of threads do, their threads run in
// any order, arrays are as large as need be and no larger, and what a kernel should not write is compared too.
// References go along tiles and pixels (the kernels: along pixels and tiles), step by step where the kernels have
// formulas, and compute in doubles that are rounded to f32 after each operation.
//
// check_tiles [CASES]: prints a line for each kind of kernel, then ok.
#include <functional>
#include <sys/mman.h>

#include "halotile.h"
#include "tile_values.h"

#include "metal_for_check.h" // behind all other headers
#include "tiles.metal"

#undef kernel
#undef device
#undef thread
#undef constant

typedef metal::uint3 Thread;

// ---- calling kernels ------------------------------------------------------------------------------------------------

// What a kernel is told in buffers 0 to 16. Numbers that nobody sets are random: no kernel may depend on them.
struct Numbers {
    Array slots = Array(F32, 34); // two for each slot

    Numbers()
    {
        for (long i = 0; i < slots.length(); i++)
            slots.set_bits(i, random_bits());
    }
    void set(int i, long value)
    {
        CHECK(value >= INT32_MIN && value <= INT32_MAX);
        slots.set_bits(i, static_cast<uint32_t>(value));
    }
    void set(int first, std::initializer_list<long> values)
    {
        for (long value : values)
            set(first++, value);
    }
    void set_float(int i, double value) { slots.set(i, value); }
    const int *ints() { return static_cast<const int *>(slots.data()); }
    const long &slot(int i) { return static_cast<const long *>(slots.data())[i]; }
};

#ifdef HALOTILE_ARGUMENT_BYTES
#define PASSED(N) (N).ints()
#else
#define PASSED(N)                                                                                                      \
    (N).slot(0), (N).slot(1), (N).slot(2), (N).slot(3), (N).slot(4), (N).slot(5), (N).slot(6), (N).slot(7),            \
        (N).slot(8), (N).slot(9), (N).slot(10), (N).slot(11), (N).slot(12), (N).slot(13), (N).slot(14), (N).slot(15),  \
        (N).slot(16)
#endif

// Runs every thread of a grid that is rounded up to whole groups, forwards, backwards or in leaps.
static void dispatch(long width, long height, long depth, const std::function<void(Thread)> &run)
{
    long group[3] = {one_of<long>({1, 4, 8}), one_of<long>({1, 2, 4}), one_of<long>({1, 2})};
    width = (width + group[0] - 1) / group[0] * group[0];
    height = (height + group[1] - 1) / group[1] * group[1];
    depth = (depth + group[2] - 1) / group[2] * group[2];
    long total = width * height * depth, leap = one_of<long>({1, total - 1, 1000003}); // a prime; small grids only
    CHECK(total < 1000003);
    for (long i = 0, at = between(0, total - 1); i < total; i++, at = (at + leap) % total)
        run({static_cast<uint>(at % width), static_cast<uint>(at / width % height),
             static_cast<uint>(at / width / height)});
}

// Where things start on an axis: each begins `step` behind the one before, the first `longer` of them `phase` later.
struct Steps {
    long step, phase, longer;

    explicit Steps(long count) : step(between(1, 9)), phase(between(1, 4)), longer(between(0, count - 1)) {}
    std::vector<long> from(long start, long count) const
    {
        std::vector<long> starts = {start};
        for (long i = 0; i + 1 < count; i++)
            starts.push_back(starts[i] + step + (i < longer ? phase : 0));
        return starts;
    }
};

// ---- read -----------------------------------------------------------------------------------------------------------

struct ReadKernel {
    const char *name;
    Format image, window;
    void (*run)(Numbers &, void *image, void *windows, Thread);
};

#define READ_KERNEL(IMAGE, I, IMAGE_FORMAT, WINDOW, W, WINDOW_FORMAT)                                                  \
    {"read_" #IMAGE "_" #WINDOW, IMAGE_FORMAT, WINDOW_FORMAT, [](Numbers &n, void *image, void *windows, Thread at) {  \
         read_##IMAGE##_##WINDOW(PASSED(n), static_cast<const I *>(image), static_cast<W *>(windows), at);             \
     }}
#define READ_KERNELS(IMAGE, I, FORMAT)                                                                                 \
    READ_KERNEL(IMAGE, I, FORMAT, f32, float, F32), READ_KERNEL(IMAGE, I, FORMAT, f16, half, F16),                     \
        READ_KERNEL(IMAGE, I, FORMAT, bf16, ushort, BF16)

static const ReadKernel read_kernels[] = {READ_KERNELS(u8, uchar, U8), READ_KERNELS(u16, ushort, U16),
                                          READ_KERNELS(f16, half, F16), READ_KERNELS(bf16, ushort, BF16),
                                          READ_KERNELS(f32, float, F32)};

// Walks from pixel 0 to `at`, turning at the ends.
static long walked(long at, long size)
{
    long place = 0, direction = 1;
    for (long steps = std::labs(at); steps > 0 && size > 1; steps--) {
        if (place + direction < 0 || place + direction >= size)
            direction = -direction;
        place += direction;
    }
    return place;
}

struct Mapping {
    double peak = one_of<double>({1, 255, 65535, 128, 1.5}), gain = rounded(one_of<double>({1, 1, 2, 0.3, -3}));
    double offset = rounded(one_of<double>({0, 0, -1, 0.1}));
};

static double to_model(double x, const Mapping &m)
{
    if (m.peak != 1)
        x = rounded(x / m.peak);
    return m.gain == 1 && m.offset == 0 ? x : rounded(rounded(x * m.gain) + m.offset);
}

static void check_read(const ReadKernel &kernel)
{
    long channels = between(1, 4), width = between(1, 13), height = between(1, 9), windows = between(1, 4);
    long image_width = between(1, 17), image_height = between(1, 17), columns = between(1, 4), first = between(0, 8);
    long strip_start = one_in(2) ? 0 : between(0, image_height - 1);
    long strip_stop = one_in(2) ? image_height : between(strip_start + 1, image_height);
    long rows = (first + windows - 1) / columns + 1, far = one_in(4) ? 5000 : 40;
    Steps down(rows), across(columns);
    long top = between(-far, far), left = between(-far, far);
    Layout layout({channels, strip_stop - strip_start, image_width}, true);
    Mapping mapping;
    Array image(kernel.image, layout.length()), got(kernel.window, windows * channels * height * width);
    fill(image);
    fill(got);
    Array expected = got;

    std::vector<long> tops = down.from(top, rows), lefts = across.from(left, columns);
    for (long k = 0; k < windows; k++)
        for (long c = 0; c < channels; c++)
            for (long wy = 0; wy < height; wy++)
                for (long wx = 0; wx < width; wx++) {
                    long y = walked(tops[(first + k) / columns] + wy, image_height);
                    long x = walked(lefts[(first + k) % columns] + wx, image_width);
                    if (y >= strip_start && y < strip_stop)
                        expected.set(((k * channels + c) * height + wy) * width + wx,
                                     to_model(image.get(layout.at({c, y - strip_start, x})), mapping));
                }

    Numbers n;
    n.set(READ_WINDOWS, {windows, channels, height, width});
    n.set(READ_STRIDE_C, {layout.strides[0], layout.strides[1], layout.strides[2]});
    n.set(READ_IMAGE_HEIGHT, {image_height, image_width, strip_start, strip_stop, first, columns});
    n.set(READ_ROWS, {top, down.step, down.phase, down.longer});
    n.set(READ_COLS, {left, across.step, across.phase, across.longer});
    n.set_float(READ_PEAK, mapping.peak);
    n.set_float(READ_GAIN, mapping.gain);
    n.set_float(READ_OFFSET, mapping.offset);
    dispatch(width, height, windows * channels, [&](Thread at) { kernel.run(n, image.data(), got.data(), at); });
    CHECK(got.equals(expected));
}

// ---- accumulate -----------------------------------------------------------------------------------------------------

struct AccumulateKernel {
    const char *name;
    Format output;
    void (*run)(Numbers &, void *band, void *outputs, void *wy, void *wx, Thread);
};

#define ACCUMULATE_KERNEL(OUTPUT, O, FORMAT)                                                                           \
    {"accumulate_" #OUTPUT, FORMAT, [](Numbers &n, void *band, void *outputs, void *wy, void *wx, Thread at) {         \
         accumulate_##OUTPUT(PASSED(n), static_cast<float *>(band), static_cast<const O *>(outputs),                   \
                             static_cast<const float *>(wy), static_cast<const float *>(wx), at);                      \
     }}

static const AccumulateKernel accumulate_kernels[] = {ACCUMULATE_KERNEL(f32, float, F32),
                                                      ACCUMULATE_KERNEL(f16, half, F16),
                                                      ACCUMULATE_KERNEL(bf16, ushort, BF16)};

// Tiles along one side of the output: their outputs have a margin that is cropped, but for the image's ends.
struct Side {
    long tiles = between(1, 4), margin = between(0, 3), output = 2 * margin + between(1, 9);
    long origin = -between(0, margin);
    Steps steps = Steps(tiles);
    std::vector<long> origins = steps.from(origin, tiles), starts, stops;
    long size, longest = 0;

    Side()
    {
        size = std::max(origins.back() + output - between(0, margin), origins.back() + margin + 1);
        size = std::max(size, 1L);
        for (long i = 0; i < tiles; i++) {
            starts.push_back(i == 0 ? 0 : origins[i] + margin);
            stops.push_back(i == tiles - 1 ? size : origins[i] + output - margin);
            longest = std::max(longest, stops[i] - starts[i]);
        }
    }
    Array weights() const // rows of equal length, the last one no longer than it has to be
    {
        Array table(F32, longest * (tiles - 1) + stops.back() - starts.back());
        fill_finite(table, 0.01, 1);
        return table;
    }
    void tell(Numbers &n, int first) const
    {
        n.set(first, {origin + margin, output - 2 * margin, origin});
        n.set(first + 3, {steps.step, steps.phase, steps.longer, tiles, size});
    }
};

// kept() is the core's formula for the same numbers: struct ht_kept, as the operators pass it.
static void check_kept(long times)
{
    for (long t = 0; t < times; t++) {
        running = "kept() case " + std::to_string(t);
        long count = between(1, 5);
        Steps steps(count);
        const ht_kept core = {between(-9, 20), between(1, 20), between(-20, 9), steps.step,
                              steps.phase,     steps.longer,   count,           between(1, 60)};
        const int64_t numbers[] = {core.start, core.length, core.origin, core.step,
                                   core.phase, core.longer, core.count,  core.size};
        static_assert(sizeof core == sizeof numbers, "every number is told");
        CHECK(std::memcmp(&core, numbers, sizeof core) == 0); // in the struct's order
        const std::vector<int> told(numbers, numbers + 8);
        for (long i = 0; i < count; i++)
            for (long at = -40; at < 100; at++) {
                ht_range keep = ht_kept_range(&core, i);
                Kept metal = kept(told.data(), i, at);
                CHECK(metal.inside == (at >= keep.start && at < keep.stop));
                CHECK(metal.weight == at - keep.start && metal.output == at - ht_kept_origin(&core, i));
            }
    }
    std::printf("kept(): %ld cases\n", times);
}

// A ring of rows of sums, from some output column on.
struct Ring {
    long rows, x, c_stride, y_stride, length;

    Ring(long channels, long height, long left, long right)
        : rows(height + between(0, 3)), x(left - between(0, std::min(left, 2L)))
    {
        y_stride = right - x + between(0, 3);
        c_stride = rows * y_stride + between(0, 5);
        length = (channels - 1) * c_stride + (rows - 1) * y_stride + right - x;
    }
    long at(long c, long y, long column) const { return c * c_stride + y % rows * y_stride + column - x; }
};

static void check_accumulate(const AccumulateKernel &kernel)
{
    Side down, across;
    long channels = between(1, 4), first = between(0, down.tiles * across.tiles - 1);
    long tiles = between(1, down.tiles * across.tiles - first);
    long y = between(0, down.size - 1), height = between(1, std::min(down.size - y, 11L));
    long x = between(0, across.size - 1), width = between(1, std::min(across.size - x, 13L));
    Ring ring(channels, height, x, x + width);
    Layout layout({tiles, channels, down.output, across.output}, true);
    Array outputs(kernel.output, layout.length()), wy = down.weights(), wx = across.weights(), got(F32, ring.length);
    fill(outputs);
    fill(got);
    Array expected = got;

    for (long k = 0; k < tiles; k++) {
        long row = (first + k) / across.tiles, column = (first + k) % across.tiles;
        for (long py = down.starts[row]; py < down.stops[row]; py++)
            for (long px = across.starts[column]; px < across.stops[column]; px++)
                for (long c = 0; c < channels; c++) {
                    if (py < y || py >= y + height || px < x || px >= x + width)
                        continue;
                    double weight = rounded(wy.get(row * down.longest + py - down.starts[row]) *
                                            wx.get(column * across.longest + px - across.starts[column]));
                    double value = outputs.get(layout.at({k, c, py - down.origins[row], px - across.origins[column]}));
                    long to = ring.at(c, py, px);
                    expected.set(to, expected.get(to) + rounded(weight * value));
                }
    }

    Numbers n;
    n.set(SUM_CHANNELS, {channels, height, width, y, x, ring.rows, ring.c_stride, ring.y_stride, ring.x});
    n.set(SUM_FIRST, {first, tiles, across.tiles});
    n.set(SUM_STRIDE_N, {layout.strides[0], layout.strides[1], layout.strides[2], layout.strides[3]});
    n.set(SUM_WY, {down.longest, across.longest});
    down.tell(n, SUM_ROWS);
    across.tell(n, SUM_COLS);
    dispatch(width, height, channels,
             [&](Thread at) { kernel.run(n, got.data(), outputs.data(), wy.data(), wx.data(), at); });
    CHECK(got.equals(expected));
}

// ---- finish ---------------------------------------------------------------------------------------------------------

struct FinishKernel {
    const char *name;
    Format rows;
    void (*run)(Numbers &, void *rows, void *band, void *ny, void *nx, void *bad, Thread);
};

#define FINISH_KERNEL(ROWS, R, FORMAT)                                                                                 \
    {"finish_" #ROWS, FORMAT, [](Numbers &n, void *rows, void *band, void *ny, void *nx, void *bad, Thread at) {       \
         finish_##ROWS(PASSED(n), static_cast<R *>(rows), static_cast<float *>(band), static_cast<const float *>(ny),  \
                       static_cast<const float *>(nx), static_cast<metal::atomic_uint *>(bad), at);                    \
     }}

static const FinishKernel finish_kernels[] = {FINISH_KERNEL(u8, uchar, U8), FINISH_KERNEL(u16, ushort, U16),
                                              FINISH_KERNEL(f16, half, F16), FINISH_KERNEL(bf16, ushort, BF16),
                                              FINISH_KERNEL(f32, float, F32)};

static double to_image(double q, const Mapping &m, bool clamp)
{
    if (m.gain != 1 || m.offset != 0)
        q = rounded(rounded(q - m.offset) / m.gain);
    if (m.peak != 1)
        q = rounded(q * m.peak);
    if (clamp)
        q = std::isnan(q) || q <= 0 ? 0.0 : std::min(q, m.peak);
    return q;
}

// Sums that become halves of image values, so that rounding meets ties; or anything.
static void fill_sums(Array &band, bool ties)
{
    fill(band);
    for (long i = 0; ties && i < band.length(); i++)
        if (!one_in(8))
            band.set(i, static_cast<double>(between(-10, 270)) / 256); // by a peak of 128
}

static void check_finish(const FinishKernel &kernel)
{
    long channels = between(1, 4), height = between(1, 9), width = between(1, 13);
    long y = between(0, 20), x = between(0, 20);
    bool ties = one_in(3), clamp = is_integer(kernel.rows) || one_in(2);
    Mapping mapping;
    if (ties)
        mapping.peak = 128, mapping.gain = 1, mapping.offset = 0;
    if (kernel.rows.bytes == 1)
        mapping.peak = std::min(mapping.peak, 255.0);
    Ring ring(channels, height, x, x + width);
    Layout layout({channels, height, width}, false);
    Array rows(kernel.rows, layout.length()), band(F32, ring.length), bad(F32, 2);
    Array ny(F32, y + height), nx(F32, x + width);
    fill(rows);
    fill_sums(band, ties);
    fill_finite(ny, ties ? 1 : 0.05, ties ? 1 : 4);
    fill_finite(nx, ties ? 1 : 0.05, ties ? 1 : 4);
    uint32_t count = static_cast<uint32_t>(between(0, 3)), least = one_in(2) ? UINT32_MAX : 5;
    bad.set_bits(0, count);
    bad.set_bits(1, least);
    Array expected = rows, left = band;

    for (long ry = 0; ry < height; ry++)
        for (long rx = 0; rx < width; rx++)
            for (long c = 0; c < channels; c++) {
                long from = ring.at(c, y + ry, x + rx);
                double q = rounded(band.get(from) / rounded(ny.get(y + ry) * nx.get(x + rx)));
                expected.set(layout.at({c, ry, rx}), to_image(q, mapping, clamp));
                left.set_bits(from, 0);
                count += !std::isfinite(q);
                if (!std::isfinite(q))
                    least = std::min(least, static_cast<uint32_t>((ry * width + rx) * channels + c));
            }

    Numbers n;
    n.set(END_CHANNELS, {channels, height, width, layout.strides[0], layout.strides[1], layout.strides[2], y, x});
    n.set(END_RING, {ring.rows, ring.c_stride, ring.y_stride, ring.x});
    n.set_float(END_PEAK, mapping.peak);
    n.set_float(END_GAIN, mapping.gain);
    n.set_float(END_OFFSET, mapping.offset);
    n.set(END_CLAMP, clamp);
    dispatch(width, height, channels, [&](Thread at) {
        kernel.run(n, rows.data(), band.data(), ny.data(), nx.data(), bad.data(), at);
    });
    CHECK(rows.equals(expected));
    CHECK(band.equals(left));
    CHECK(bad.bits(0) == count && bad.bits(1) == least);
}

// ---- near the limit -------------------------------------------------------------------------------------------------

// An image of 2^31 - 1 bytes, of which only the touched pages exist: no index may wrap around on the way.
static void check_large()
{
    running = "an image of 2^31 - 1 elements";
    const long length = INT32_MAX, height = 46340, width = 46341; // channels overlap: they begin 41707 apart
    void *image = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    CHECK(image != MAP_FAILED);
    unsigned char *bytes = static_cast<unsigned char *>(image);
    Numbers n;
    n.set(READ_WINDOWS, {1, 2, 3, 2});
    n.set(READ_STRIDE_C, {length - height * width, width, 1});
    n.set(READ_IMAGE_HEIGHT, {height, width, 0, height, 0, 1});
    n.set(READ_ROWS, {height - 3, 0, 0, 0});
    n.set(READ_COLS, {width - 2, 0, 0, 0});
    for (int k = 0; k < 3; k++)
        n.set_float(READ_PEAK + k, k < 2 ? 1 : 0);
    bytes[length - 1] = 7;                       // channel 1, last pixel
    bytes[(height - 3) * width + width - 2] = 9; // channel 0, the window's first pixel
    Array got(F32, 12);
    dispatch(2, 3, 2, [&](Thread at) { read_kernels[0].run(n, image, got.data(), at); });
    for (long i = 0; i < 12; i++)
        CHECK(got.get(i) == (i == 0 ? 9 : i == 11 ? 7 : 0));
    munmap(image, length);
}

template <size_t N, class Kernel>
static void repeat(const Kernel (&kernels)[N], void (*check)(const Kernel &), long times)
{
    for (const Kernel &kernel : kernels)
        for (long i = 0; i < times; i++) {
            running = std::string(kernel.name) + " case " + std::to_string(i);
            check(kernel);
        }
    std::printf("%.10s...: %zu kernels, %ld cases each\n", kernels[0].name, N, times);
}

int main(int argc, char **argv)
{
    long times = argc > 1 ? std::atol(argv[1]) : 100;
    repeat(read_kernels, check_read, times);
    repeat(accumulate_kernels, check_accumulate, 3 * times);
    repeat(finish_kernels, check_finish, 2 * times);
    check_kept(times);
    check_large();
    std::puts("ok");
}
