// SPDX-License-Identifier: MIT
//
// launcher.h - a Metal kernel compiled as C++: what its parameters are, and how to run it over a grid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fake_mps {

enum class Kind { array, integer, bytes };

constexpr size_t MOST_BYTES = 4096; // that Metal's setBytes takes

struct Parameter {
    unsigned buffer; // its [[buffer(n)]]
    Kind kind;
    size_t element; // bytes of what it points to, or of the integer
    size_t least;   // of bytes: how many the kernel reads
};

// What a parameter is bound to.
struct Value {
    void *array = nullptr; // an address of the host
    int64_t integer = 0;
    std::vector<char> bytes;
};

struct Grid {
    uint64_t x, y, z;
};

struct Kernel {
    std::string name;
    std::vector<Parameter> parameters;
    void (*run)(const std::vector<Value> &values, const Grid &grid); // values in the order of parameters
};

// The kernels of tiles.metal, without and with HALOTILE_ARGUMENT_BYTES.
const std::vector<Kernel> &kernels_of_slots();
const std::vector<Kernel> &kernels_of_bytes();

} // namespace fake_mps
