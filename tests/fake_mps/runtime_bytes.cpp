// SPDX-License-Identifier: MIT
//
// runtime_bytes.cpp - what torch 2.14 adds to the runtime.
#include "runtime.h"

extern "C" AOTI_TORCH_EXPORT AOTITorchError torch_mps_set_arg_bytes(AOTIMetalKernelFunctionHandle func, unsigned idx,
                                                                    const void *ptr, uint64_t size)
{
    return fake_mps::set_arg_bytes(func, idx, ptr, size);
}
