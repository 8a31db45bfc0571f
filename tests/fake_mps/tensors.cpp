// SPDX-License-Identifier: MIT
//
// tensors.cpp - see tensors.h; and the operators that make, view, resize and copy tensors.
//
// Operators that take int lists take them as SymIntArrayRef: boxed callers, such as torch's stable ABI, pass lists that
// unbox to nothing else.
#include "tensors.h"

#include "ledger.h"
#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>

namespace fake_mps {

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;

OnDevice::OnDevice(c10::Device device) : before_(current_device())
{
    if (device.type() == DEVICE && device.has_index())
        set_current_device(device.index());
}

OnDevice::OnDevice(const at::Tensor &t) : OnDevice(t.defined() ? t.device() : c10::Device(at::kCPU)) {}
OnDevice::~OnDevice() { set_current_device(before_); }

void check_dtype(at::ScalarType dtype)
{
    if (dtype != at::kDouble && dtype != at::kComplexDouble)
        return;
    note_violation("float64 on the device");
    TORCH_CHECK_TYPE(false, "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                            "float64. Please use float32 instead.");
}

void check_size(at::IntArrayRef sizes, size_t element_size)
{
    int64_t limit = limits().tensor, elements = 1;
    for (int64_t size : sizes)
        elements *= size;
    if (limit && elements * int64_t(element_size) >= limit)
        forbid("a tensor of " + std::to_string(elements) + " elements of " + std::to_string(element_size) +
               " bytes reaches the limit of " + std::to_string(limit));
}

at::Tensor new_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype)
{
    check_dtype(dtype);
    check_size(sizes, c10::elementSize(dtype));
    return at::detail::empty_strided_generic(sizes, strides, device_allocator(),
                                             c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), dtype);
}

at::Tensor host_view(const at::Tensor &t)
{
    if (!on_device(t))
        return t;
    check_dtype(t.scalar_type());
    check_size(t.sizes(), t.element_size());
    auto keep = [storage = t.storage()](void *) {};
    return at::from_blob(host_address(t.data_ptr()), t.sizes(), t.strides(), keep,
                         at::TensorOptions(t.scalar_type()).device(at::kCPU));
}

at::Tensor to_device(const at::Tensor &host)
{
    at::Tensor made = new_tensor(host.sizes(), host.strides(), host.scalar_type());
    host_view(made).copy_(host);
    return made;
}

static void record_transfer(const char *direction, const at::Tensor &from, const at::Tensor &host)
{
    std::string dtype(c10::getDtypeNames(from.scalar_type()).first);
    int64_t bytes = from.numel() * int64_t(from.element_size());
    record({direction, bytes, dtype, host.is_contiguous(), host.storage_offset()});
}

void record_upload(const at::Tensor &host) { record_transfer("upload", host, host); }

namespace {

// Copying to the host with another dtype, or into the middle of an array, has overwritten the source on real devices.
void record_download(const at::Tensor &source, const at::Tensor &host)
{
    if (source.scalar_type() != host.scalar_type())
        forbid("a copy to the host with a change of dtype");
    if (host.storage_offset() != 0)
        forbid("a copy to the host into a tensor with a storage offset");
    record_transfer("download", source, host);
}

at::Tensor copy_from(const at::Tensor &source, const at::Tensor &target, bool non_blocking)
{
    OnDevice there(on_device(target) ? target : source);
    InUse in_use("a copy");
    if (non_blocking)
        forbid("a copy with non_blocking=True");
    if (source.numel() == 0)
        return target;
    if (!on_device(target))
        record_download(source, target);
    else if (!on_device(source))
        record_upload(source);
    else
        count(DEVICE_COPIES);
    host_view(target).copy_(host_view(source));
    return target;
}

at::Tensor copy_from_and_resize(const at::Tensor &source, const at::Tensor &target)
{
    if (source.sizes() != target.sizes())
        target.resize_(source.sizes());
    return copy_from(source, target, false);
}

at::Scalar local_scalar_dense(const at::Tensor &t)
{
    OnDevice there(t);
    InUse in_use("reading a scalar");
    count(SCALAR_READS);
    return at::_local_scalar_dense(host_view(t));
}

at::Tensor empty(c10::SymIntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format)
{
    OnDevice there(device.value_or(c10::Device(at::kCPU)));
    auto type = c10::dtype_or_default(dtype);
    auto plain = C10_AS_INTARRAYREF_SLOW(sizes);
    if (pin.value_or(false))
        forbid("pinned memory");
    check_dtype(type);
    check_size(plain, c10::elementSize(type));
    c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
    return at::detail::empty_generic(plain, device_allocator(), keys, type, format);
}

at::Tensor empty_strided(c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool> pin)
{
    OnDevice there(device.value_or(c10::Device(at::kCPU)));
    if (pin.value_or(false))
        forbid("pinned memory");
    return new_tensor(C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), c10::dtype_or_default(dtype));
}

// Only ever grows, and keeps what is there.
void resize_storage(const c10::Storage &storage, size_t bytes)
{
    OnDevice there(storage.device());
    auto grown = device_allocator()->allocate(bytes);
    if (storage.data())
        device_allocator()->copy_data(grown.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(grown));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
}

const at::Tensor &resize_(const at::Tensor &t, c10::SymIntArrayRef sizes, std::optional<at::MemoryFormat>)
{
    auto *tensor = t.unsafeGetTensorImpl();
    check_size(C10_AS_INTARRAYREF_SLOW(sizes), tensor->itemsize());
    tensor->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(sizes));
    size_t bytes = size_t(tensor->storage_offset() + tensor->numel()) * tensor->itemsize();
    if (bytes > tensor->storage().nbytes())
        resize_storage(tensor->storage(), bytes);
    return t;
}

at::Tensor as_strided(const at::Tensor &t, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides,
                      std::optional<c10::SymInt> offset)
{
    auto plain = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
    return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides),
                                             plain);
}

at::Tensor view(const at::Tensor &t, c10::SymIntArrayRef sizes)
{
    return at::native::view(t, C10_AS_INTARRAYREF_SLOW(sizes));
}

at::Tensor reshape_alias(const at::Tensor &t, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides)
{
    return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

at::Tensor &set_storage(at::Tensor &t, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef sizes,
                        c10::SymIntArrayRef strides)
{
    return at::native::set_storage_cpu_(t, std::move(storage), offset.expect_int(), C10_AS_INTARRAYREF_SLOW(sizes),
                                        C10_AS_INTARRAYREF_SLOW(strides));
}

at::Tensor &set_whole_storage(at::Tensor &t, at::Storage storage)
{
    int64_t elements = int64_t(storage.nbytes() / t.element_size());
    return at::native::set_storage_cpu_(t, std::move(storage), 0, {elements}, {});
}

class PinnedAllocator final : public c10::Allocator {
public:
    c10::DataPtr allocate(size_t) override
    {
        forbid("pinned memory, which a copy to the host with non_blocking=True asks for, too");
    }

    void copy_data(void *, const void *, size_t) const override { forbid("pinned memory"); }
};

struct Hooks : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return DEVICES; }
    c10::DeviceIndex getCurrentDevice() const override { return c10::DeviceIndex(current_device()); }
    bool isPinnedPtr(const void *) const override { return false; }
    at::Device getDeviceFromPtr(void *) const override { return at::Device(DEVICE, 0); }

    at::Allocator *getPinnedMemoryAllocator() const override
    {
        static PinnedAllocator pinned;
        return &pinned;
    }

    void resizePrivateUse1Bytes(const c10::Storage &storage, size_t bytes) const override
    {
        resize_storage(storage, bytes);
    }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return DEVICE; }
    c10::Device getDevice() const override { return {DEVICE, c10::DeviceIndex(current_device())}; }
    void setDevice(c10::Device device) const override { set_current_device(device.has_index() ? device.index() : 0); }
    void uncheckedSetDevice(c10::Device device) const noexcept override { setDevice(device); }
    c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
    c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
    c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }

    c10::Device exchangeDevice(c10::Device device) const override
    {
        c10::Device before = getDevice();
        setDevice(device);
        return before;
    }
};

const bool hooks_are_registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m)
{
    m.impl("empty.memory_format", empty);
    m.impl("empty_strided", empty_strided);
    m.impl("as_strided", as_strided);
    m.impl("view", view);
    m.impl("_reshape_alias", reshape_alias);
    m.impl("unfold", TORCH_FN(at::native::unfold));
    m.impl("resize_", resize_);
    m.impl("set_.source_Storage_storage_offset", set_storage);
    m.impl("set_.source_Storage", set_whole_storage);
    m.impl("_copy_from", copy_from);
    m.impl("_copy_from_and_resize", copy_from_and_resize);
    m.impl("_local_scalar_dense", local_scalar_dense);
}

// For tests: an AtenTensorHandle is a pointer to a tensor of its own. Operators, since Python's torch calls those.
int64_t handle_of(const at::Tensor &t) { return int64_t(new at::Tensor(t)); }
void free_handle(int64_t handle) { delete reinterpret_cast<at::Tensor *>(handle); }

TORCH_LIBRARY(fake_mps, m)
{
    m.def("handle_of(Tensor t) -> int", handle_of);
    m.def("free_handle(int handle) -> ()", free_handle);
}

} // namespace
} // namespace fake_mps
