// SPDX-License-Identifier: MIT
//
// tensors.h - tensors of the device, and how a CPU kernel sees one.
#pragma once

#include <ATen/core/Tensor.h>

namespace fake_mps {

inline bool on_device(const at::Tensor &t)
{
    return t.defined() && t.device().type() == c10::DeviceType::PrivateUse1;
}

// Inside, that device is the current one: of a tensor if it is on one, as it was otherwise.
class OnDevice {
public:
    explicit OnDevice(c10::Device device);
    explicit OnDevice(const at::Tensor &t);
    ~OnDevice();
    OnDevice(const OnDevice &) = delete;
    OnDevice &operator=(const OnDevice &) = delete;

private:
    int before_;
};

// Both note a violation and throw: TypeError for float64, as torch does.
void check_dtype(at::ScalarType dtype);
void check_size(at::IntArrayRef sizes, size_t element_size);

at::Tensor new_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype);

// A CPU tensor over a device tensor's memory, and any other tensor itself.
at::Tensor host_view(const at::Tensor &t);

// A device tensor of a CPU tensor's values and strides: what an operation on the device gave. Not counted as a copy.
at::Tensor to_device(const at::Tensor &host);

void record_upload(const at::Tensor &host);

} // namespace fake_mps
