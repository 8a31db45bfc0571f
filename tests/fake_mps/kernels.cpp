// SPDX-License-Identifier: MIT
//
// kernels.cpp - tiles.metal as C++, and launchers for its kernels. Compiled twice: with HALOTILE_ARGUMENT_BYTES, and
// without. The build finds every kernel of the file, with the attributes of its parameters (which C++ ignores), and
// writes them down in KERNELS_FILE:
//     KERNEL(read_u8_f32, READ_COUNT, {0, true}, ..., {17, false}, ...)
// a name, how many numbers it reads, and for each parameter its buffer and whether it is `constant`.
#include "launcher.h"

#include <array>
#include <cstring>
#include <tuple>
#include <utility>

#include "metal_on_cpp.h"

namespace {

#include TILES_FILE

#undef kernel
#undef device
#undef constant
#undef thread

using fake_mps::Grid;
using fake_mps::Kernel;
using fake_mps::Kind;
using fake_mps::Parameter;
using fake_mps::Value;

struct Attributes {
    unsigned buffer;
    bool is_constant;
};

// A parameter of type P: its kind, and what holds its value during a launch. Integers and bytes are copied, so that the
// compiler sees that nothing else writes them.
template <class P> struct Slot;

template <class T> struct Slot<T *> {
    static constexpr Kind kind = Kind::array;
    static constexpr size_t element = sizeof(T);
    explicit Slot(const Value &bound) : array(static_cast<T *>(bound.array)) {}
    T *get() const { return array; }
    T *array;
};

template <> struct Slot<const long &> {
    static constexpr Kind kind = Kind::integer;
    static constexpr size_t element = sizeof(long);
    explicit Slot(const Value &bound) : integer(bound.integer) {}
    const long &get() const { return integer; }
    long integer;
};

template <> struct Slot<const int *> {
    static constexpr Kind kind = Kind::bytes;
    static constexpr size_t element = sizeof(int);
    explicit Slot(const Value &bound) { std::memcpy(numbers, bound.bytes.data(), bound.bytes.size()); }
    const int *get() const { return numbers; }
    int numbers[fake_mps::MOST_BYTES / sizeof(int)];
};

template <class F> struct Signature;

template <class... P> struct Signature<void (*)(P...)> {
    static constexpr size_t bound = sizeof...(P) - 1;
    template <size_t I> using At = std::tuple_element_t<I, std::tuple<P...>>;
    static_assert(std::is_same_v<At<bound>, metal::uint3>, "the last parameter is the position");
};

template <auto FUNCTION, size_t... I>
void run_kernel(const std::vector<Value> &values, const Grid &grid, std::index_sequence<I...>)
{
    using S = Signature<decltype(FUNCTION)>;
    const std::tuple<Slot<typename S::template At<I>>...> slots{Slot<typename S::template At<I>>(values[I])...};
    for (uint64_t z = 0; z < grid.z; z++)
        for (uint64_t y = 0; y < grid.y; y++)
            for (uint64_t x = 0; x < grid.x; x++)
                FUNCTION(std::get<I>(slots).get()..., metal::uint3{metal::uint(x), metal::uint(y), metal::uint(z)});
}

template <auto FUNCTION> void run(const std::vector<Value> &values, const Grid &grid)
{
    run_kernel<FUNCTION>(values, grid, std::make_index_sequence<Signature<decltype(FUNCTION)>::bound>());
}

template <auto FUNCTION, size_t... I> consteval auto kinds_of(std::index_sequence<I...>)
{
    return std::array{Slot<typename Signature<decltype(FUNCTION)>::template At<I>>::kind...};
}

// Throws, while compiling, where types and attributes do not fit, or a buffer is used twice or beyond Metal's 31.
template <auto FUNCTION, size_t N> consteval bool fits(const std::array<Attributes, N> &attributes)
{
    static_assert(N == Signature<decltype(FUNCTION)>::bound, "every parameter but the position has a buffer");
    auto kinds = kinds_of<FUNCTION>(std::make_index_sequence<N>());
    for (size_t i = 0; i < N; i++) {
        if (attributes[i].is_constant != (kinds[i] != Kind::array))
            throw "numbers are constant, arrays are device";
        if (attributes[i].buffer > 30 || (i && attributes[i].buffer <= attributes[i - 1].buffer))
            throw "buffers ascend and end at 30";
    }
    return true;
}

template <auto FUNCTION, size_t... I>
Kernel make(const char *name, size_t numbers, const std::array<Attributes, sizeof...(I)> &attributes,
            std::index_sequence<I...>)
{
    using S = Signature<decltype(FUNCTION)>;
    return {name,
            {Parameter{attributes[I].buffer, Slot<typename S::template At<I>>::kind,
                       Slot<typename S::template At<I>>::element, numbers * sizeof(int)}...},
            &run<FUNCTION>};
}

#define KERNEL(NAME, NUMBERS, ...)                                                                                     \
    [] {                                                                                                               \
        constexpr auto attributes = std::to_array<Attributes>({__VA_ARGS__});                                          \
        static_assert(fits<&NAME>(attributes));                                                                        \
        return make<&NAME>(#NAME, NUMBERS, attributes, std::make_index_sequence<attributes.size()>());                 \
    }(),

const std::vector<Kernel> kernels = {
#include KERNELS_FILE
};

} // namespace

#ifdef HALOTILE_ARGUMENT_BYTES
const std::vector<Kernel> &fake_mps::kernels_of_bytes() { return kernels; }
#else
const std::vector<Kernel> &fake_mps::kernels_of_slots() { return kernels; }
#endif
