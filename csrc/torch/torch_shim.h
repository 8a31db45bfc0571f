// SPDX-License-Identifier: MIT
//
// torch_shim.h - what the files of halotile._torch share. No arithmetic on pixels happens here: operators check their
// arguments and hand them to a Metal kernel.
#ifndef HALOTILE_TORCH_SHIM_H
#define HALOTILE_TORCH_SHIM_H

#include <array>
#include <initializer_list>
#include <string>
#include <vector>

#include "torch_abi.h"

namespace halotile {

// ---- libtorch's functions -------------------------------------------------------------------------------------------

struct Torch {
#define X(RESULT, NAME, PARAMETERS) RESULT(*NAME) PARAMETERS;
    HT_TORCH_FUNCTIONS(X)
    HT_MPS_FUNCTIONS(X)
#undef X
#define X(RESULT, NAME, PARAMETERS, SINCE) RESULT(*NAME) PARAMETERS;
    HT_TORCH_OPTIONAL(X) // null where torch is older
    HT_MPS_OPTIONAL(X)
#undef X
};

extern Torch torch; // filled by open_torch and attach

// Throws std::runtime_error, with libtorch's own text where it can be had, if `error` is not 0. doing: "reading ...".
void check(AOTITorchError error, const char *doing);

// Throws std::runtime_error(text) unless `fine`.
void require(bool fine, const std::string &text);

// ---- tensors --------------------------------------------------------------------------------------------------------

// A tensor of a kernel's stack: owned, deleted with this.
class Tensor {
public:
    explicit Tensor(StableIValue value) : handle_(reinterpret_cast<AtenTensorHandle>(value)) {}
    ~Tensor() { torch.aoti_torch_delete_tensor_object(handle_); }
    Tensor(const Tensor &) = delete;
    Tensor &operator=(const Tensor &) = delete;

    AtenTensorHandle handle() const { return handle_; }
    int64_t dim() const;
    int64_t size(int64_t d) const;
    int64_t stride(int64_t d) const;
    int32_t dtype() const;
    int32_t device() const; // its type

private:
    AtenTensorHandle handle_;
};

// ---- Metal ----------------------------------------------------------------------------------------------------------

constexpr size_t NUMBERS = 34; // that every kernel takes, two for each of its slots: see tiles.metal
constexpr unsigned FIRST_TENSOR = 17;

using Numbers = std::array<int32_t, NUMBERS>;
using Grid = std::array<uint64_t, 3>;

extern const char *const KERNEL_SOURCE; // tiles.metal

// Compiles tiles.metal and finds its kernels. Throws if one is missing.
void compile_kernels();

// Runs a kernel on torch's stream, which orders it after all that was launched before; returns without waiting for it.
// Arrays are bound from FIRST_TENSOR on. One launch at a time: others wait. Throws if it cannot be launched.
void launch(const std::string &kernel, const Numbers &numbers, std::initializer_list<const Tensor *> tensors,
            const Grid &grid);

// ---- the module's two functions -------------------------------------------------------------------------------------

// Finds libtorch's functions in a libtorch_cpu that is loaded, and defines the operators. Once; later calls do nothing.
void open_torch(const std::string &libtorch_cpu);

// Finds the aoti_torch_mps_* functions in a library that is loaded, compiles the kernels, and registers the operators
// for a dispatch key ("MPS"). May be called again, with another library.
void attach(const std::string &key, const std::string &library);

// Defines the operators' schemas, and registers their kernels for a dispatch key.
void define_operators();
void register_operators(const std::string &key);

} // namespace halotile

#endif
