// SPDX-License-Identifier: MIT
//
// tile_values.h - for check_tiles.cpp: random numbers, element formats by their definition, arrays of exact size.
#ifndef TILE_VALUES_H
#define TILE_VALUES_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

static std::string running; // what is compared now

#define CHECK(CONDITION)                                                                                               \
    do {                                                                                                               \
        if (!(CONDITION)) {                                                                                            \
            std::fprintf(stderr, "check_tiles: line %d: %s fails: %s\n", __LINE__, #CONDITION, running.c_str());       \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

// ---- random numbers -------------------------------------------------------------------------------------------------

static uint64_t random_state = 20261123;

static inline uint32_t random_bits()
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(random_state >> 32);
}

// From low to high, both included.
static inline long between(long low, long high)
{
    return low + static_cast<long>(random_bits() % static_cast<uint64_t>(high - low + 1));
}

static inline bool one_in(long n) { return between(1, n) == 1; }

template <class T> static T one_of(std::initializer_list<T> values)
{
    return values.begin()[between(0, static_cast<long>(values.size()) - 1)];
}

// ---- elements -------------------------------------------------------------------------------------------------------

// An unsigned integer of `bytes` bytes, or a float of so many exponent and fraction bits.
struct Format {
    const char *name;
    size_t bytes;
    int exponent_bits, fraction_bits;
};

static const Format U8 = {"u8", 1, 0, 0}, U16 = {"u16", 2, 0, 0}, F16 = {"f16", 2, 5, 10}, BF16 = {"bf16", 2, 8, 7},
                    F32 = {"f32", 4, 8, 23};

static inline bool is_integer(const Format &f) { return f.exponent_bits == 0; }

static inline double decoded(const Format &f, uint32_t bits)
{
    if (is_integer(f))
        return bits;
    int bias = (1 << (f.exponent_bits - 1)) - 1, top = (1 << f.exponent_bits) - 1;
    int exponent = static_cast<int>(bits >> f.fraction_bits) & top;
    double fraction = bits & ((1u << f.fraction_bits) - 1);
    double sign = bits >> (f.exponent_bits + f.fraction_bits) ? -1 : 1;
    if (exponent == top)
        return fraction > 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
    if (exponent > 0)
        fraction = fraction + std::ldexp(1, f.fraction_bits);
    return sign * std::ldexp(fraction, std::max(exponent, 1) - bias - f.fraction_bits);
}

// The nearest element, of two the even one.
static inline uint32_t encoded(const Format &f, double x)
{
    if (is_integer(f)) {
        double nearest = std::nearbyint(x);
        CHECK(nearest >= 0 && nearest < std::ldexp(1, static_cast<int>(8 * f.bytes)));
        return static_cast<uint32_t>(nearest);
    }
    int bias = (1 << (f.exponent_bits - 1)) - 1;
    uint32_t sign = std::signbit(x) ? 1u << (f.exponent_bits + f.fraction_bits) : 0;
    uint32_t infinity = ((1u << f.exponent_bits) - 1) << f.fraction_bits;
    if (std::isnan(x))
        return infinity + 1;
    if (std::isinf(x) || x == 0)
        return sign | (x == 0 ? 0 : infinity);
    int exponent = 0;
    std::frexp(x, &exponent); // |x| is from 2^(exponent - 1) on
    exponent = std::max(exponent - 1, 1 - bias);
    double units = std::nearbyint(std::ldexp(std::fabs(x), f.fraction_bits - exponent));
    double magnitude = units + std::ldexp(exponent + bias - 1, f.fraction_bits); // carries go into the exponent
    return magnitude >= infinity ? sign | infinity : sign | static_cast<uint32_t>(magnitude);
}

static inline bool is_nan(const Format &f, uint32_t bits) { return std::isnan(decoded(f, bits)); }

// One operation's result, rounded to f32. Doubles have more than twice its bits, so rounding twice does no harm.
static inline double rounded(double x) { return static_cast<double>(static_cast<float>(x)); }

// ---- arrays ---------------------------------------------------------------------------------------------------------

// On the heap, of exactly so many elements: the sanitizer sees the first byte beyond either end.
class Array {
public:
    Array(const Format &format, long length)
        : format_(format), length_(length), bytes_(static_cast<char *>(std::malloc(length * format.bytes)))
    {
        CHECK(length > 0 && bytes_);
    }
    Array(const Array &other) : Array(other.format_, other.length_)
    {
        std::memcpy(bytes_, other.bytes_, length_ * format_.bytes);
    }
    Array &operator=(const Array &) = delete;
    ~Array() { std::free(bytes_); }

    const Format &format() const { return format_; }
    long length() const { return length_; }
    void *data() { return bytes_; }

    uint32_t bits(long i) const
    {
        CHECK(i >= 0 && i < length_);
        uint32_t bits = 0; // little-endian, as all machines that have been seen for long
        std::memcpy(&bits, bytes_ + i * format_.bytes, format_.bytes);
        return bits;
    }
    void set_bits(long i, uint32_t bits)
    {
        CHECK(i >= 0 && i < length_);
        std::memcpy(bytes_ + i * format_.bytes, &bits, format_.bytes);
    }
    double get(long i) const { return decoded(format_, bits(i)); }
    void set(long i, double x) { set_bits(i, encoded(format_, x)); }

    // Every bit the same; of two NaNs any payload.
    bool equals(const Array &other) const
    {
        for (long i = 0; i < length_; i++) {
            uint32_t a = bits(i), b = other.bits(i);
            if (a != b && !(is_nan(format_, a) && is_nan(format_, b))) {
                running += " element " + std::to_string(i) + ": " + std::to_string(get(i)) + " and " +
                           std::to_string(other.get(i));
                return false;
            }
        }
        return length_ == other.length_;
    }

private:
    Format format_;
    long length_;
    char *bytes_;
};

// Exponents that no test's arithmetic takes out of f32's normal range; now and then what is no number, or half-way
// between two elements of a shorter format. Floats of 16 bits come in every pattern.
static inline uint32_t random_element(const Format &f)
{
    if (is_integer(f))
        return static_cast<uint32_t>(random_bits() >> (32 - 8 * f.bytes));
    if (f.fraction_bits == F16.fraction_bits)
        return random_bits() >> 16;
    if (one_in(40))
        return encoded(f, one_of<double>({0.0, -0.0, INFINITY, -INFINITY, NAN}));
    double x = std::ldexp(1 + random_bits() / 0x1p32, static_cast<int>(between(-30, 18))) * (one_in(2) ? 1 : -1);
    uint32_t bits = encoded(f, x);
    if (f.bytes == 4 && one_in(3))
        bits = one_in(2) ? (bits & 0xffff0000u) | 0x8000u : (bits & 0xffffe000u) | 0x1000u; // bf16's ties, f16's ties
    return bits;
}

static inline void fill(Array &array)
{
    for (long i = 0; i < array.length(); i++)
        array.set_bits(i, random_element(array.format()));
}

static inline void fill_finite(Array &array, double low, double high)
{
    for (long i = 0; i < array.length(); i++)
        array.set(i, low + (high - low) * (random_bits() / 0x1p32));
}

// ---- strides --------------------------------------------------------------------------------------------------------

// Strides of an array whose dimensions lie in any order with gaps between; if `spread`, some may be 0.
struct Layout {
    std::vector<long> sizes, strides;

    Layout(std::vector<long> dimensions, bool spread) : sizes(dimensions), strides(dimensions.size())
    {
        std::vector<size_t> order(sizes.size());
        for (size_t d = 0; d < order.size(); d++)
            order[d] = d;
        for (size_t d = order.size(); d > 1; d--)
            std::swap(order[d - 1], order[between(0, static_cast<long>(d) - 1)]);
        long stride = between(1, 3);
        for (size_t d : order) {
            strides[d] = spread && one_in(6) ? 0 : stride;
            stride = stride * sizes[d] + between(0, 4);
        }
    }
    long at(std::initializer_list<long> index) const
    {
        long sum = 0;
        for (size_t d = 0; d < sizes.size(); d++) {
            CHECK(index.begin()[d] >= 0 && index.begin()[d] < sizes[d]);
            sum += index.begin()[d] * strides[d];
        }
        return sum;
    }
    long length() const
    {
        long last = 0;
        for (size_t d = 0; d < sizes.size(); d++)
            last += (sizes[d] - 1) * strides[d];
        return last + 1;
    }
};

#endif
