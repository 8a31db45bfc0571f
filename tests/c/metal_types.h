// SPDX-License-Identifier: MIT
//
// metal_types.h - included before tiles.metal to type-check it with clang's front end, without any other header.
//
// Address spaces are real here, so that a pointer that lost its `device` is an error. Attributes are checked by name:
// the known ones become empty, any other is an unknown attribute, which -Werror rejects. CHECK_KERNEL(name) behind the
// file rejects a kernel with a parameter that Metal would not take. Nothing is compiled further.
#ifndef METAL_TYPES_H
#define METAL_TYPES_H

#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define thread // clang's default
#define kernel extern "C"

#define buffer(N)
#define thread_position_in_grid

namespace metal {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef _Float16 half;

static_assert(sizeof(long) == 8 && sizeof(int) == 4 && sizeof(half) == 2, "Metal's sizes");

struct uint3 {
    uint x, y, z;
};

float rint(float);

template <class To, class From> To as_type(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as_type keeps all bits");
    return __builtin_bit_cast(To, from);
}

enum memory_order { memory_order_relaxed };

struct atomic_uint {
    uint value;
};

uint atomic_fetch_add_explicit(device atomic_uint *object, uint operand, memory_order order);
uint atomic_fetch_min_explicit(device atomic_uint *object, uint operand, memory_order order);

} // namespace metal

// Parameters that kernels may have: arrays in device memory, numbers in constant memory, the thread's position. Tensors
// must not be constant: an offset into constant memory has to be a multiple of 4 bytes, and torch does not check it.
template <class P> struct FitsKernel { static constexpr bool value = false; };
template <class T> struct FitsKernel<device T *> { static constexpr bool value = true; };
template <> struct FitsKernel<constant long &> { static constexpr bool value = true; };
template <> struct FitsKernel<constant int *> { static constexpr bool value = true; };
template <> struct FitsKernel<metal::uint3> { static constexpr bool value = true; };

template <class... P> struct AllFit { static constexpr bool value = true; };
template <class P, class... Rest> struct AllFit<P, Rest...> {
    static constexpr bool value = FitsKernel<P>::value && AllFit<Rest...>::value;
};
template <class... P> constexpr bool fits_kernel(void (*)(P...)) { return AllFit<P...>::value; }

#define CHECK_KERNEL(NAME) static_assert(fits_kernel(NAME), #NAME " has a parameter that Metal does not take");

#endif
