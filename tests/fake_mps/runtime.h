// SPDX-License-Identifier: MIT
//
// runtime.h - what the files of the Metal runtime share.
#pragma once

#include "ledger.h"

#include <torch/csrc/inductor/aoti_torch/c/shim_mps.h>

namespace fake_mps {

// What a function of the runtime returns: 0, or nonzero if body() throws, with a violation noted that says why.
template <class Body> AOTITorchError answer(const char *name, Body body)
{
    try {
        body();
        return AOTI_TORCH_SUCCESS;
    } catch (const Violation &) {
    } catch (const std::exception &failure) {
        note_violation(std::string(name) + ": " + failure.what());
    }
    return AOTI_TORCH_FAILURE;
}

AOTITorchError set_arg_bytes(AOTIMetalKernelFunctionHandle func, unsigned idx, const void *ptr, uint64_t size);

} // namespace fake_mps
