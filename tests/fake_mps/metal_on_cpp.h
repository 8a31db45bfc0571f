// SPDX-License-Identifier: MIT
//
// metal_on_cpp.h - enough of the Metal Shading Language for C++ to compile tiles.metal. Include nothing after it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace metal {

using uchar = std::uint8_t;
using ushort = std::uint16_t;
using uint = std::uint32_t;
using half = _Float16;

struct uint3 {
    uint x, y, z;
};

using std::floor;
using std::fma;
using std::max;
using std::min;
using std::rint;

template <class To, class From> inline To as_type(From x) { return std::bit_cast<To>(x); }

// Threads run one after another.
struct atomic_uint {
    uint value;
};

enum memory_order { memory_order_relaxed };

inline uint atomic_fetch_add_explicit(atomic_uint *at, uint by, memory_order)
{
    uint was = at->value;
    at->value += by;
    return was;
}

inline uint atomic_fetch_min_explicit(atomic_uint *at, uint other, memory_order)
{
    uint was = at->value;
    at->value = std::min(was, other);
    return was;
}

} // namespace metal

#define kernel static inline __attribute__((always_inline))
#define device
#define constant const
#define thread
