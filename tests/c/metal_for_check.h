// SPDX-License-Identifier: MIT
//
// metal_for_check.h - just enough of Metal's language for tiles.metal to be compiled, and run, as C++ on a CPU.
//
// Address spaces vanish; metal_types.h is where they are checked. Atomics are plain: the threads of a grid run one
// after the other. Include it behind all standard headers: it defines words that those may use.
#ifndef METAL_FOR_CHECK_H
#define METAL_FOR_CHECK_H

#include <cmath>
#include <cstring>

namespace metal {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef _Float16 half;

struct uint3 {
    uint x, y, z;
};

using std::rint;

template <class To, class From> static inline To as_type(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as_type keeps all bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

enum memory_order { memory_order_relaxed };

struct atomic_uint {
    uint value;
};

static inline uint atomic_fetch_add_explicit(atomic_uint *object, uint operand, memory_order)
{
    uint before = object->value;
    object->value += operand;
    return before;
}

static inline uint atomic_fetch_min_explicit(atomic_uint *object, uint operand, memory_order)
{
    uint before = object->value;
    object->value = operand < before ? operand : before;
    return before;
}

} // namespace metal

#define kernel static
#define device
#define thread
#define constant const

#endif
