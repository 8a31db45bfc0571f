// SPDX-License-Identifier: MIT
//
// runtime.cpp - the stand-in for torch's C functions that run Metal kernels: torch's header, our checks, and the
// kernels of tiles.metal as C++.
//
// Every function returns 0, or nonzero having noted a violation that says why. Handles live as long as the process. A
// launch runs at once, over the grid rounded up to whole groups, x fastest. Torch keeps one encoder for the stream: so
// does this.
#include "runtime.h"

#include "launcher.h"
#include "memory.h"

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string_view>

namespace fake_mps {
namespace {

const char TILES_SOURCE[] =
#include SOURCE_FILE
    ;
constexpr std::string_view BYTES_LINE = "#define HALOTILE_ARGUMENT_BYTES 1\n";
constexpr uint64_t USUAL_GROUP = 32; // along x, where the caller names no group

struct Library {
    const std::vector<Kernel> *kernels;
};

struct Function {
    const Kernel *kernel;
};

// Handles given out. Never destroyed: callers may keep theirs until the process ends.
struct Handles {
    std::mutex mutex;
    std::set<const void *> libraries, functions;
};

Handles &handles()
{
    static Handles &the = *new Handles;
    return the;
}

struct Binding {
    Kind kind;
    Value value;
};

// Used by the thread within a command block only.
struct Encoder {
    bool open = false;            // within a command block
    Function *function = nullptr; // encoding was started
    bool dispatched = false;      // since then
    std::map<unsigned, Binding> bound;
} encoder;

// ---- libraries and functions ----------------------------------------------------------------------------------------

void check_handle(const std::set<const void *> &known, const void *handle, const char *what)
{
    std::lock_guard<std::mutex> lock(handles().mutex);
    if (!known.count(handle))
        forbid(std::string(what) + " that was never given out");
}

// Torch's caches of functions have no lock: looking one up is a use of the device.
template <class Body> void using_device(const char *what, Body body)
{
    if (InUse::by_this_thread())
        return body();
    InUse in_use(what);
    body();
}

Library *new_library(std::string_view source)
{
    for (unsigned char c : source)
        if (c > 127)
            forbid("a shader's source that is not ASCII");
    bool bytes = source.substr(0, BYTES_LINE.size()) == BYTES_LINE;
    if (source.substr(bytes ? BYTES_LINE.size() : 0) != TILES_SOURCE)
        forbid("a shader's source that differs from tiles.metal");
    auto *library = new Library{bytes ? &kernels_of_bytes() : &kernels_of_slots()};
    std::lock_guard<std::mutex> lock(handles().mutex);
    handles().libraries.insert(library);
    count(LIBRARIES);
    return library;
}

Function *new_function(const Library &library, const std::string &name)
{
    for (const Kernel &kernel : *library.kernels)
        if (kernel.name == name) {
            auto *function = new Function{&kernel};
            std::lock_guard<std::mutex> lock(handles().mutex);
            handles().functions.insert(function);
            return function;
        }
    forbid("no kernel named " + name);
}

Function &checked_function(AOTIMetalKernelFunctionHandle handle)
{
    check_handle(handles().functions, handle, "a kernel function");
    return *reinterpret_cast<Function *>(handle);
}

// ---- encoding -------------------------------------------------------------------------------------------------------

void check_in_block(const char *what)
{
    if (!InUse::by_this_thread() || !encoder.open)
        forbid(std::string(what) + " outside of a command block");
}

// The function that is being encoded.
Function &encoded(AOTIMetalKernelFunctionHandle handle, const char *what)
{
    Function &function = checked_function(handle);
    check_in_block(what);
    if (encoder.function != &function)
        forbid(std::string(what) + " of " + function.kernel->name + " before its encoding was started");
    return function;
}

void start_encoding(AOTIMetalKernelFunctionHandle handle)
{
    Function &function = checked_function(handle);
    check_in_block("start_encoding");
    if (encoder.function && !encoder.dispatched)
        forbid("start_encoding of " + function.kernel->name + ": " + encoder.function->kernel->name +
               " was started and not dispatched");
    encoder.function = &function;
    encoder.dispatched = false;
    encoder.bound.clear();
}

std::string described(const Function &function, unsigned buffer)
{
    return "buffer " + std::to_string(buffer) + " of " + function.kernel->name;
}

const Parameter &parameter_of(const Function &function, unsigned buffer)
{
    for (const Parameter &parameter : function.kernel->parameters)
        if (parameter.buffer == buffer)
            return parameter;
    forbid(described(function, buffer) + " does not exist");
}

void bind(const Function &function, unsigned buffer, Binding binding)
{
    static const char *const names[] = {"an array", "an integer", "bytes"};
    Kind wanted = parameter_of(function, buffer).kind;
    if (encoder.bound.count(buffer) && encoder.bound[buffer].kind != binding.kind)
        forbid(described(function, buffer) + " is bound twice, as different kinds");
    if (wanted != binding.kind)
        forbid(described(function, buffer) + " is " + names[int(wanted)] + ", not " + names[int(binding.kind)]);
    encoder.bound[buffer] = std::move(binding);
}

void check_call(AOTITorchError error, const char *what)
{
    if (error)
        throw std::runtime_error(std::string(what) + " failed");
}

void bind_tensor(const Function &function, unsigned buffer, AtenTensorHandle tensor)
{
    int32_t type, dtype;
    void *data;
    if (!tensor)
        forbid(described(function, buffer) + " is bound to no tensor");
    check_call(aoti_torch_get_device_type(tensor, &type), "aoti_torch_get_device_type");
    check_call(aoti_torch_get_dtype(tensor, &dtype), "aoti_torch_get_dtype");
    if (type != aoti_torch_device_type_privateuse1())
        forbid(described(function, buffer) + " is bound to a tensor that is not on the device");
    size_t element = aoti_torch_dtype_element_size(dtype), wanted = parameter_of(function, buffer).element;
    if (parameter_of(function, buffer).kind == Kind::array && element != wanted)
        forbid(described(function, buffer) + " has elements of " + std::to_string(wanted) + " bytes, the tensor of " +
               std::to_string(element));
    check_call(aoti_torch_get_data_ptr(tensor, &data), "aoti_torch_get_data_ptr");
    if (!data)
        forbid(described(function, buffer) + " is bound to a tensor without memory");
    bind(function, buffer, {Kind::array, {host_address(data), 0, {}}});
}

void bind_bytes(const Function &function, unsigned buffer, const void *from, uint64_t size)
{
    const Parameter &parameter = parameter_of(function, buffer);
    if (size > MOST_BYTES || !from)
        forbid(described(function, buffer) + " is bound to " + std::to_string(size) + " bytes, or to none");
    if (parameter.kind == Kind::bytes && (size < parameter.least || size % parameter.element))
        forbid(described(function, buffer) + " is bound to " + std::to_string(size) + " bytes, but reads " +
               std::to_string(parameter.least));
    const char *bytes = static_cast<const char *>(from);
    bind(function, buffer, {Kind::bytes, {nullptr, 0, {bytes, bytes + size}}});
}

// ---- launches -------------------------------------------------------------------------------------------------------

struct Extent {
    uint64_t length, group;
};

// Rounded up to whole groups.
uint64_t checked(const Extent &extent)
{
    if (extent.length == 0 || extent.length >> 32)
        forbid("a grid of length " + std::to_string(extent.length));
    if (extent.group == 0 || extent.group > uint64_t(limits().group))
        forbid("a group of length " + std::to_string(extent.group));
    return (extent.length + extent.group - 1) / extent.group * extent.group;
}

Grid checked_grid(const std::vector<Extent> &extents)
{
    uint64_t lengths[3] = {1, 1, 1}, group = 1;
    for (size_t i = 0; i < extents.size(); i++) {
        lengths[i] = checked(extents[i]);
        group *= extents[i].group;
    }
    if (group > uint64_t(limits().group))
        forbid("a group of " + std::to_string(group) + " threads");
    return {lengths[0], lengths[1], lengths[2]};
}

void dispatch(AOTIMetalKernelFunctionHandle handle, const std::vector<Extent> &extents)
{
    const Kernel &kernel = *encoded(handle, "a dispatch").kernel;
    Grid grid = checked_grid(extents);
    std::vector<Value> values;
    for (const Parameter &parameter : kernel.parameters) {
        auto found = encoder.bound.find(parameter.buffer);
        if (found == encoder.bound.end())
            forbid("buffer " + std::to_string(parameter.buffer) + " of " + kernel.name + " is unbound");
        values.push_back(found->second.value);
    }
    kernel.run(values, grid);
    encoder.dispatched = true;
    count_launch(kernel.name);
}

void dispatch_array(AOTIMetalKernelFunctionHandle handle, const uint64_t *lengths, size_t dimensions,
                    const uint64_t *groups, size_t group_dimensions)
{
    if (dimensions == 0 || dimensions > 3 || !lengths)
        forbid("a grid of " + std::to_string(dimensions) + " dimensions");
    if (groups && group_dimensions != dimensions)
        forbid("a group of " + std::to_string(group_dimensions) + " dimensions for a grid of " +
               std::to_string(dimensions));
    std::vector<Extent> extents;
    for (size_t i = 0; i < dimensions; i++)
        extents.push_back({lengths[i], groups ? groups[i] : i == 0 ? USUAL_GROUP : 1});
    dispatch(handle, extents);
}

void run_block(AOTIMetalKernelFunctionHandle handle, aoti_torch_mps_command_block_callback_t callback, void *data)
{
    checked_function(handle);
    if (!callback)
        forbid("a command block without a callback");
    InUse in_use("a command block");
    struct Open {
        Open() { encoder.open = true; }
        ~Open() { encoder = Encoder{}; }
    } open;
    count(COMMAND_BLOCKS);
    callback(handle, data);
}

} // namespace

AOTITorchError set_arg_bytes(AOTIMetalKernelFunctionHandle func, unsigned idx, const void *ptr, uint64_t size)
{
    return answer("set_arg_bytes", [&] { bind_bytes(encoded(func, "set_arg_bytes"), idx, ptr, size); });
}

} // namespace fake_mps

// ---- torch's functions ----------------------------------------------------------------------------------------------

using namespace fake_mps;

extern "C" {

AOTITorchError aoti_torch_mps_create_shader_library(const char *metal_shader_source,
                                                    AOTIMetalShaderLibraryHandle *library_handle)
{
    return answer("create_shader_library", [&] {
        using_device("create_shader_library", [&] {
            *library_handle = reinterpret_cast<AOTIMetalShaderLibraryHandle>(new_library(metal_shader_source));
        });
    });
}

// Order of destruction has crashed processes as they end: it must not be called.
AOTITorchError aoti_torch_mps_delete_shader_library(AOTIMetalShaderLibraryHandle)
{
    return answer("delete_shader_library", [] { forbid("delete_shader_library"); });
}

AOTITorchError aoti_torch_mps_get_kernel_function(AOTIMetalShaderLibraryHandle library_handle, const char *kernel_name,
                                                  AOTIMetalKernelFunctionHandle *function_handle)
{
    return answer("get_kernel_function", [&] {
        using_device("get_kernel_function", [&] {
            check_handle(handles().libraries, library_handle, "a shader library");
            auto *function = new_function(*reinterpret_cast<Library *>(library_handle), kernel_name);
            *function_handle = reinterpret_cast<AOTIMetalKernelFunctionHandle>(function);
        });
    });
}

AOTITorchError aoti_torch_mps_start_encoding(AOTIMetalKernelFunctionHandle func)
{
    return answer("start_encoding", [&] { start_encoding(func); });
}

AOTITorchError aoti_torch_mps_set_arg_tensor(AOTIMetalKernelFunctionHandle func, unsigned idx, AtenTensorHandle tensor)
{
    return answer("set_arg_tensor", [&] { bind_tensor(encoded(func, "set_arg_tensor"), idx, tensor); });
}

AOTITorchError aoti_torch_mps_set_arg_int(AOTIMetalKernelFunctionHandle func, unsigned idx, int64_t val)
{
    return answer("set_arg_int", [&] { bind(encoded(func, "set_arg_int"), idx, {Kind::integer, {nullptr, val, {}}}); });
}

AOTITorchError aoti_torch_mps_dispatch_single(AOTIMetalKernelFunctionHandle func, uint64_t length)
{
    return answer("dispatch_single", [&] { dispatch_array(func, &length, 1, nullptr, 0); });
}

AOTITorchError aoti_torch_mps_dispatch_single_with_group_size(AOTIMetalKernelFunctionHandle func, uint64_t length,
                                                              uint64_t group_size)
{
    return answer("dispatch_single_with_group_size", [&] { dispatch_array(func, &length, 1, &group_size, 1); });
}

AOTITorchError aoti_torch_mps_dispatch_array(AOTIMetalKernelFunctionHandle func, const uint64_t *length,
                                             size_t length_size)
{
    return answer("dispatch_array", [&] { dispatch_array(func, length, length_size, nullptr, 0); });
}

AOTITorchError aoti_torch_mps_dispatch_array_with_group_size(AOTIMetalKernelFunctionHandle func, const uint64_t *length,
                                                             size_t length_size, const uint64_t *group_size,
                                                             size_t group_size_size)
{
    return answer("dispatch_array_with_group_size", [&] {
        if (!group_size)
            forbid("a group of no dimensions");
        dispatch_array(func, length, length_size, group_size, group_size_size);
    });
}

void aoti_torch_mps_shared_callback(AOTIMetalKernelFunctionHandle func, void *user_data)
{
    auto *wrapped = static_cast<std::function<void(AOTIMetalKernelFunctionHandle)> *>(user_data);
    if (wrapped)
        (*wrapped)(func);
}

AOTITorchError aoti_torch_mps_run_command_block(AOTIMetalKernelFunctionHandle func,
                                                aoti_torch_mps_command_block_callback_t callback, void *user_data)
{
    return answer("run_command_block", [&] { run_block(func, callback, user_data); });
}

} // extern "C"
