// SPDX-License-Identifier: MIT
//
// mps.cpp - launches of the Metal kernels through libtorch's aoti_torch_mps_* functions.
//
// Kernel handles hold the live encoder and libtorch's own tables are unlocked, so handles are found once and everything
// is encoded under one lock. The shader library is never deleted: at exit Metal may be gone before it.
#include <map>
#include <mutex>

#include "torch_shim.h"

namespace halotile {
namespace {

const char *const KERNELS[] = {
    "read_u8_f32",  "read_u16_f32",   "read_f16_f32",   "read_bf16_f32",  "read_f32_f32",   "read_u8_f16",
    "read_u16_f16", "read_f16_f16",   "read_bf16_f16",  "read_f32_f16",   "read_u8_bf16",   "read_u16_bf16",
    "read_f16_bf16", "read_bf16_bf16", "read_f32_bf16",  "accumulate_f32", "accumulate_f16", "accumulate_bf16",
    "finish_u8",    "finish_u16",     "finish_f16",     "finish_bf16",    "finish_f32",
};

std::mutex lock;
std::map<std::string, AOTIMetalKernelFunctionHandle> kernels;
bool argument_bytes; // whether the library was compiled for them

struct Launch {
    const Numbers &numbers;
    std::initializer_list<const Tensor *> tensors;
    const Grid &grid;
    AOTITorchError error; // the callback must not throw through libtorch's frames
};

AOTITorchError set_numbers(AOTIMetalKernelFunctionHandle kernel, const Numbers &numbers)
{
    if (argument_bytes)
        return torch.torch_mps_set_arg_bytes(kernel, 0, numbers.data(), sizeof numbers);
    AOTITorchError error = 0;
    for (unsigned slot = 0; slot < FIRST_TENSOR && !error; slot++) {
        uint64_t low = static_cast<uint32_t>(numbers[2 * slot]), high = static_cast<uint32_t>(numbers[2 * slot + 1]);
        error = torch.aoti_torch_mps_set_arg_int(kernel, slot, static_cast<int64_t>(low | high << 32));
    }
    return error;
}

AOTITorchError encode(AOTIMetalKernelFunctionHandle kernel, const Launch &launch)
{
    AOTITorchError error = torch.aoti_torch_mps_start_encoding(kernel);
    if (!error)
        error = set_numbers(kernel, launch.numbers);
    unsigned buffer = FIRST_TENSOR;
    for (const Tensor *tensor : launch.tensors)
        if (!error)
            error = torch.aoti_torch_mps_set_arg_tensor(kernel, buffer++, tensor->handle());
    const uint64_t group[3] = {64, 4, 1}; // neighbours along rows; within every pipeline's limit
    if (!error)
        error = torch.aoti_torch_mps_dispatch_array_with_group_size(kernel, launch.grid.data(), 3, group, 3);
    return error;
}

void encode_callback(AOTIMetalKernelFunctionHandle kernel, void *user_data)
{
    Launch *launch = static_cast<Launch *>(user_data);
    launch->error = encode(kernel, *launch);
}

} // namespace

const char *const KERNEL_SOURCE =
#include "tiles_metal.h" // made by setup.py: tiles.metal as a string
    ;

void compile_kernels()
{
    std::lock_guard<std::mutex> guard(lock);
    bool bytes = torch.torch_mps_set_arg_bytes != nullptr;
    std::string text = std::string(bytes ? "#define HALOTILE_ARGUMENT_BYTES 1\n" : "") + KERNEL_SOURCE;
    AOTIMetalShaderLibraryHandle library = nullptr;
    check(torch.aoti_torch_mps_create_shader_library(text.c_str(), &library), "compiling the Metal kernels");

    std::map<std::string, AOTIMetalKernelFunctionHandle> found;
    for (const char *name : KERNELS)
        check(torch.aoti_torch_mps_get_kernel_function(library, name, &found[name]), name);
    kernels = found;
    argument_bytes = bytes;
}

void launch(const std::string &kernel, const Numbers &numbers, std::initializer_list<const Tensor *> tensors,
            const Grid &grid)
{
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0)
        return;
    std::lock_guard<std::mutex> guard(lock);
    auto found = kernels.find(kernel);
    require(found != kernels.end(), "halotile has no Metal kernel " + kernel);
    Launch work = {numbers, tensors, grid, 0};
    AOTITorchError error = torch.aoti_torch_mps_run_command_block(found->second, encode_callback, &work);
    check(error ? error : work.error, kernel.c_str());
}

} // namespace halotile
