/* SPDX-License-Identifier: MIT
 *
 * torch_abi.h - the libtorch C functions that halotile uses: all of them, and nothing else of torch.
 *
 * No torch header is included and nothing is linked: the functions are looked up at run time in the libtorch_cpu that
 * the running torch has loaded. They are libtorch's stable C shim; their floor is torch 2.10. tests/test_torch_abi.py
 * compares these declarations with the headers of the installed torch.
 *
 * Each list is X(result, name, parameters); optional functions name the first version of torch that has them.
 * Every function that returns AOTITorchError returns 0 for success. Handles that a kernel finds on its stack are its
 * own: it deletes them. Strings, sizes and handles that are passed in stay the caller's.
 */
#ifndef HALOTILE_TORCH_ABI_H
#define HALOTILE_TORCH_ABI_H

#include <stddef.h>
#include <stdint.h>

#define HT_TORCH_FLOOR "2.10"
#define HT_TORCH_FLOOR_VERSION 0x020a000000000000ull /* what StableIValues look like: as torch 2.10 has them */

struct AtenTensorOpaque;
typedef struct AtenTensorOpaque *AtenTensorHandle;
class TorchLibraryOpaque;
typedef class TorchLibraryOpaque *TorchLibraryHandle;
struct StableListOpaque;
typedef struct StableListOpaque *StableListHandle;
struct AOTIMetalKernelFunctionOpaque;
typedef struct AOTIMetalKernelFunctionOpaque *AOTIMetalKernelFunctionHandle;
struct AOTIMetalShaderLibraryOpaque;
typedef struct AOTIMetalShaderLibraryOpaque *AOTIMetalShaderLibraryHandle;

typedef int32_t AOTITorchError;
typedef uint64_t StableIValue; /* an int, a double's bits, a bool in the lowest byte, or a handle */

typedef void (*aoti_torch_mps_command_block_callback_t)(AOTIMetalKernelFunctionHandle function, void *user_data);

/* ---- on every platform ------------------------------------------------------------------------------------------ */

#define HT_TORCH_FUNCTIONS(X)                                                                                          \
    X(AOTITorchError, aoti_torch_library_init_def, (const char *, const char *, uint32_t, TorchLibraryHandle *))       \
    X(AOTITorchError, aoti_torch_library_def, (TorchLibraryHandle, const char *))                                      \
    X(AOTITorchError, aoti_torch_library_init_impl,                                                                    \
      (const char *, const char *, const char *, uint32_t, TorchLibraryHandle *))                                      \
    X(AOTITorchError, torch_library_impl,                                                                              \
      (TorchLibraryHandle, const char *, void (*)(StableIValue *, uint64_t, uint64_t), uint64_t))                      \
    X(AOTITorchError, torch_list_size, (StableListHandle, size_t *))                                                   \
    X(AOTITorchError, torch_list_get_item, (StableListHandle, size_t, StableIValue *))                                 \
    X(AOTITorchError, torch_delete_list, (StableListHandle))                                                           \
    X(AOTITorchError, aoti_torch_delete_tensor_object, (AtenTensorHandle))                                             \
    X(AOTITorchError, aoti_torch_get_dim, (AtenTensorHandle, int64_t *))                                               \
    X(AOTITorchError, aoti_torch_get_size, (AtenTensorHandle, int64_t, int64_t *))                                     \
    X(AOTITorchError, aoti_torch_get_stride, (AtenTensorHandle, int64_t, int64_t *))                                   \
    X(AOTITorchError, aoti_torch_get_dtype, (AtenTensorHandle, int32_t *))                                             \
    X(AOTITorchError, aoti_torch_get_device_type, (AtenTensorHandle, int32_t *))                                       \
    X(int32_t, aoti_torch_dtype_uint8, (void))                                                                         \
    X(int32_t, aoti_torch_dtype_int16, (void))                                                                         \
    X(int32_t, aoti_torch_dtype_int32, (void))                                                                         \
    X(int32_t, aoti_torch_dtype_float16, (void))                                                                       \
    X(int32_t, aoti_torch_dtype_bfloat16, (void))                                                                      \
    X(int32_t, aoti_torch_dtype_float32, (void))

/* The text of the calling thread's latest failure: borrowed, until the next one. */
#define HT_TORCH_OPTIONAL(X) X(const char *, torch_exception_get_what_without_backtrace, (void), "2.13")

/* ---- where torch has MPS ---------------------------------------------------------------------------------------- */

#define HT_MPS_FUNCTIONS(X)                                                                                            \
    X(AOTITorchError, aoti_torch_mps_create_shader_library, (const char *, AOTIMetalShaderLibraryHandle *))            \
    X(AOTITorchError, aoti_torch_mps_get_kernel_function,                                                              \
      (AOTIMetalShaderLibraryHandle, const char *, AOTIMetalKernelFunctionHandle *))                                   \
    X(AOTITorchError, aoti_torch_mps_run_command_block,                                                                \
      (AOTIMetalKernelFunctionHandle, aoti_torch_mps_command_block_callback_t, void *))                                \
    X(AOTITorchError, aoti_torch_mps_start_encoding, (AOTIMetalKernelFunctionHandle))                                  \
    X(AOTITorchError, aoti_torch_mps_set_arg_tensor, (AOTIMetalKernelFunctionHandle, unsigned, AtenTensorHandle))      \
    X(AOTITorchError, aoti_torch_mps_set_arg_int, (AOTIMetalKernelFunctionHandle, unsigned, int64_t))                  \
    X(AOTITorchError, aoti_torch_mps_dispatch_array_with_group_size,                                                   \
      (AOTIMetalKernelFunctionHandle, const uint64_t *, size_t, const uint64_t *, size_t))

/* At most 4096 bytes, copied at once. */
#define HT_MPS_OPTIONAL(X)                                                                                             \
    X(AOTITorchError, torch_mps_set_arg_bytes,                                                                         \
      (AOTIMetalKernelFunctionHandle, unsigned, const void *, uint64_t), "2.14")

#endif
