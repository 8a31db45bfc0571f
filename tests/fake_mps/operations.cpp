// SPDX-License-Identifier: MIT
//
// operations.cpp - every other operator of the device: torch's CPU kernel, run over the device's memory.
//
// What a real device would refuse is refused (arrays of the host among those of the device), what it would copy or wait
// for is counted (indices from the host, results that are no tensors). Views cannot come from here: a view of the
// CPU's alias is not one of the device's tensor.
#include "ledger.h"
#include "tensors.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <set>

namespace fake_mps {
namespace {

bool is_written(const c10::Argument &argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

// One call of an operator: its arguments on the device, and what the CPU's kernel was given for them.
class Call {
public:
    Call(const c10::OperatorHandle &op, torch::jit::Stack &stack)
        : op_(op), schema_(op.schema()), stack_(stack), name_(c10::toString(op.operator_name())),
          given_(schema_.arguments().size()), host_(given_.size())
    {
    }

    void run()
    {
        static const std::set<std::string> waiting = {"aten::nonzero", "aten::masked_select", "aten::_unique2"};
        count_operation(name_);
        waits_ = waiting.count(name_) != 0;
        size_t first = stack_.size() - given_.size();
        for (size_t i = 0; i < given_.size(); i++)
            argument_to_host(i, stack_[first + i]);
        if (waits_)
            count(SCALAR_READS);
        op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack_);
        for (size_t i = 0; i < given_.size(); i++)
            resized_to_device(i);
        first = stack_.size() - schema_.returns().size();
        for (size_t i = 0; i < schema_.returns().size(); i++)
            result_to_device(schema_.returns()[i], stack_[first + i]);
    }

private:
    void argument_to_host(size_t i, c10::IValue &value)
    {
        if (value.isTensor())
            value = host_[i] = tensor_to_host(schema_.arguments()[i], given_[i] = value.toTensor());
        else if (value.isTensorList())
            value = list_to_host(value.toTensorVector());
        else if (value.isOptionalTensorList())
            value = indices_to_host(value.toOptionalTensorList());
        else if (value.isDevice() && value.toDevice().type() == c10::DeviceType::PrivateUse1)
            value = c10::Device(at::kCPU);
    }

    // An empty output may be resized: it gets memory of the host, see resized_to_device().
    at::Tensor tensor_to_host(const c10::Argument &argument, const at::Tensor &t) const
    {
        check_placed(t);
        if (is_written(argument) && on_device(t) && t.numel() == 0)
            return at::empty({0}, t.options().device(at::kCPU));
        return host_view(t);
    }

    std::vector<at::Tensor> list_to_host(std::vector<at::Tensor> list) const
    {
        for (auto &t : list) {
            check_placed(t);
            t = host_view(t);
        }
        return list;
    }

    // Indices of the host are uploaded. A mask is waited for; in reading, torch's nonzero() has done so.
    c10::List<std::optional<at::Tensor>> indices_to_host(const c10::List<std::optional<at::Tensor>> &list)
    {
        c10::List<std::optional<at::Tensor>> host;
        for (const std::optional<at::Tensor> index : list) {
            bool given = index && index->defined();
            if (given && !on_device(*index))
                record_upload(*index);
            bool is_mask = given && (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte);
            waits_ = waits_ || (is_mask && name_ != "aten::index.Tensor_out");
            host.push_back(given ? std::optional<at::Tensor>(host_view(*index)) : index);
        }
        return host;
    }

    void check_placed(const at::Tensor &t) const
    {
        TORCH_CHECK(!on_device(t) || t.device().index() == current_device(), name_,
                    ": expected all tensors to be on the same device, but found more than one");
        TORCH_CHECK(!t.defined() || on_device(t) || t.dim() == 0, name_,
                    ": expected all tensors to be on the same device, but found cpu among those on the device");
    }

    void resized_to_device(size_t i) const
    {
        const at::Tensor &given = given_[i];
        if (!is_written(schema_.arguments()[i]) || !on_device(given) || given.sizes() == host_[i].sizes())
            return;
        given.resize_(host_[i].sizes());
        host_view(given).copy_(host_[i]);
    }

    void result_to_device(const c10::Argument &result, c10::IValue &value) const
    {
        if (result.alias_info())
            value = written_argument(*result.alias_info());
        else if (value.isTensor())
            value = value.toTensor().defined() ? to_device(value.toTensor()) : value.toTensor();
        else if (value.isTensorList()) {
            auto list = value.toTensorVector();
            for (auto &t : list)
                t = to_device(t);
            value = list;
        } else
            count(SCALAR_READS);
    }

    c10::IValue written_argument(const c10::AliasInfo &alias) const
    {
        for (size_t i = 0; i < given_.size(); i++)
            if (is_written(schema_.arguments()[i]) && *schema_.arguments()[i].alias_info() == alias)
                return given_[i];
        TORCH_CHECK(false, name_, ": a view that the emulated device has no kernel for");
    }

    const c10::OperatorHandle &op_;
    const c10::FunctionSchema &schema_;
    torch::jit::Stack &stack_;
    const std::string name_;
    std::vector<at::Tensor> given_, host_;
    bool waits_ = false; // for what the device computes
};

// That of the first argument which is on one.
c10::Device device_of(const c10::OperatorHandle &op, const torch::jit::Stack &stack)
{
    for (size_t i = stack.size() - op.schema().arguments().size(); i < stack.size(); i++) {
        if (stack[i].isTensor() && on_device(stack[i].toTensor()))
            return stack[i].toTensor().device();
        if (stack[i].isTensorList())
            for (const at::Tensor &t : stack[i].toTensorVector())
                if (on_device(t))
                    return t.device();
        if (stack[i].isDevice())
            return stack[i].toDevice();
    }
    return at::kCPU;
}

void fallback(const c10::OperatorHandle &op, torch::jit::Stack *stack)
{
    OnDevice there(device_of(op, *stack));
    InUse in_use(c10::toString(op.operator_name()));
    Call(op, *stack).run();
}

// What convolutions of some versions of macOS got wrong, where a test asks for it: an output of the host, spoilt.
at::Tensor spoilt(at::Tensor output, const at::Tensor &input, const at::Tensor &weight)
{
    const Limits set = limits();
    const bool last = input.dim() == 4 && input.is_contiguous(at::MemoryFormat::ChannelsLast);
    const bool view = !last && !input.is_contiguous();
    const bool large = weight.size(2) >= 256 || weight.size(-1) >= 256;
    if ((set.wrong_kernels && large) || (set.wrong_channels_last && last && !input.is_contiguous()))
        output.add_(1);
    if (set.wrong_views && view && output.size(0) > 1)
        output.narrow(0, 1, output.size(0) - 1).add_(1);
    return output;
}

at::Tensor convolution(const at::Tensor &input, const at::Tensor &weight, const std::optional<at::Tensor> &bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups)
{
    OnDevice there(input);
    InUse in_use("aten::convolution_overrideable");
    count_operation("aten::convolution_overrideable");
    TORCH_CHECK(on_device(input) && on_device(weight) && (!bias || !bias->defined() || on_device(*bias)),
                "convolution: input, weight and bias are not all on the device");
    auto host_bias = bias ? std::optional<at::Tensor>(host_view(*bias)) : std::nullopt;
    at::Tensor output =
        at::convolution(host_view(input), host_view(weight), host_bias, C10_AS_INTARRAYREF_SLOW(stride),
                        C10_AS_INTARRAYREF_SLOW(padding), C10_AS_INTARRAYREF_SLOW(dilation), transposed,
                        C10_AS_INTARRAYREF_SLOW(output_padding), groups.expect_int());
    return to_device(spoilt(output, input, weight));
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m)
{
    m.impl("convolution_overrideable", convolution);
    // Otherwise torch composes these from other operators, which gives other bits than the CPU's kernels.
    for (const char *name : {"native_group_norm", "native_layer_norm"})
        m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

} // namespace
} // namespace fake_mps
