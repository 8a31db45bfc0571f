// SPDX-License-Identifier: MIT
//
// python.cpp - the device as a Python module: what torch expects of a device's module, and what tests look at.
#include "ledger.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

namespace py = pybind11;
using namespace fake_mps;

namespace {

std::map<std::string, int64_t> counts()
{
    std::map<std::string, int64_t> all;
    for (int what = 0; what < COUNTS; what++)
        all[count_name(Count(what))] = counted(Count(what));
    return all;
}

py::list listed_transfers()
{
    py::list list;
    for (const auto &t : transfers())
        list.append(py::make_tuple(t.direction, t.bytes, t.dtype, t.host_contiguous, t.host_offset));
    return list;
}

void use_device(Count what)
{
    py::gil_scoped_release released;
    InUse in_use(count_name(what));
    if (what == CACHE_EMPTIES)
        empty_cache();
    else
        count(what);
}

template <class Field> void set_limit(Field Limits::*field, Field value)
{
    Limits changed = limits();
    changed.*field = value;
    set_limits(changed);
}

void define_device(py::module_ &m)
{
    m.def("is_available", [] { return true; });
    m.def("device_count", [] { return DEVICES; });
    m.def("current_device", &current_device);
    m.def("synchronize", [](py::object) { use_device(SYNCHRONIZES); }, py::arg("device") = py::none());
    m.def("empty_cache", [] { use_device(CACHE_EMPTIES); });
    m.def("recommended_max_memory", [] { return limits().recommended; });
    m.def("driver_allocated_memory", &driver_memory);
    m.def("current_allocated_memory", [] { return counted(LIVE_BYTES); });
    m.def("_is_in_bad_fork", [] { return false; });
    m.def("manual_seed_all", [](int64_t) {});
}

void define_settings(py::module_ &m)
{
    m.def("set_memory_limit", [](std::optional<int64_t> n) { set_limit(&Limits::memory, n.value_or(0)); });
    m.def("set_recommended_max_memory", [](int64_t n) { set_limit(&Limits::recommended, n); });
    m.def("set_tensor_limit", [](int64_t n) { set_limit(&Limits::tensor, n); });
    m.def("set_group_limit", [](int64_t n) { set_limit(&Limits::group, n); });
    m.def("set_busy", [](int64_t microseconds) { set_limit(&Limits::busy, microseconds); });
    m.def("set_threads", [](bool on) { set_limit(&Limits::threads, on); });
    m.def("set_guard", [](bool on) { set_limit(&Limits::guard, on); });
    m.def("set_wrong_views", [](bool on) { set_limit(&Limits::wrong_views, on); });
    m.def("set_wrong_kernels", [](bool on) { set_limit(&Limits::wrong_kernels, on); });
    m.def("set_wrong_channels_last", [](bool on) { set_limit(&Limits::wrong_channels_last, on); });
    m.def("reset_settings", [] { set_limits({}); });
}

void define_ledger(py::module_ &m)
{
    m.def("counts", &counts);
    m.def("reset_counts", &reset_counts);
    m.def("operators", &operators);
    m.def("transfers", &listed_transfers);
    m.def("launches", &launches);
    m.def("command_blocks", [] { return counted(COMMAND_BLOCKS); });
    m.def("libraries", [] { return counted(LIBRARIES); });
    m.def("violations", &violations);
    m.def("take_violations", &take_violations);
}

} // namespace

PYBIND11_MODULE(fake_mps_device, m)
{
    define_device(m);
    define_settings(m);
    define_ledger(m);
}
