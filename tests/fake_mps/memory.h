// SPDX-License-Identifier: MIT
//
// memory.h - device memory: host memory whose addresses carry a tag, so that whoever follows one on the host faults.
//
// With the tag an address is not canonical on x86-64 and has no translation on arm64. Only the device's kernels take
// it off. Fresh memory holds 0xff in every byte (NaN, as floats). With the guard (see Limits) an array ends where a
// page begins that cannot be touched.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>

namespace fake_mps {

constexpr uintptr_t DEVICE_TAG = uintptr_t(1) << 52;

inline void *device_address(void *host) { return host ? (void *)((uintptr_t)host + DEVICE_TAG) : nullptr; }
inline void *host_address(const void *device) { return device ? (void *)((uintptr_t)device - DEVICE_TAG) : nullptr; }

// Checks limits, counts; throws as ledger.h says.
c10::Allocator *device_allocator();

} // namespace fake_mps
