// SPDX-License-Identifier: MIT
//
// torch_shim.cpp - the module halotile._torch: libtorch's functions, found at run time, and handles to tensors.
//
// _torch.open(libtorch_cpu) and _torch.attach(key, library): see torch_shim.h. Both raise RuntimeError.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <set>
#include <stdexcept>

#include "torch_shim.h"

namespace halotile {

Torch torch = {};

void require(bool fine, const std::string &text)
{
    if (!fine)
        throw std::runtime_error(text);
}

void check(AOTITorchError error, const char *doing)
{
    if (!error)
        return;
    const char *what = nullptr;
    if (torch.torch_exception_get_what_without_backtrace)
        what = torch.torch_exception_get_what_without_backtrace();
    std::string text = what && *what ? what : "torch gives no reason (from 2.13 on it does)";
    throw std::runtime_error("halotile: " + std::string(doing) + ": " + text);
}

// ---- tensors --------------------------------------------------------------------------------------------------------

int64_t Tensor::dim() const
{
    int64_t result = 0;
    check(torch.aoti_torch_get_dim(handle_, &result), "reading a tensor's dimensions");
    return result;
}

int64_t Tensor::size(int64_t d) const
{
    int64_t result = 0;
    check(torch.aoti_torch_get_size(handle_, d, &result), "reading a tensor's size");
    return result;
}

int64_t Tensor::stride(int64_t d) const
{
    int64_t result = 0;
    check(torch.aoti_torch_get_stride(handle_, d, &result), "reading a tensor's stride");
    return result;
}

int32_t Tensor::dtype() const
{
    int32_t result = 0;
    check(torch.aoti_torch_get_dtype(handle_, &result), "reading a tensor's dtype");
    return result;
}

int32_t Tensor::device() const
{
    int32_t result = 0;
    check(torch.aoti_torch_get_device_type(handle_, &result), "reading a tensor's device");
    return result;
}

// ---- looking functions up -------------------------------------------------------------------------------------------

namespace {

class Loaded {
public:
    // A library that is loaded already; halotile never loads one.
    explicit Loaded(const std::string &path) : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD))
    {
        require(handle_ != nullptr, "halotile: " + path + " is not loaded: import torch first");
    }

    template <typename Function> void optional(Function &function, const char *name) const
    {
        function = reinterpret_cast<Function>(dlsym(handle_, name));
    }

    template <typename Function> void required(Function &function, const char *name) const
    {
        optional(function, name);
        require(function != nullptr, "halotile: this torch has no function " + std::string(name) + " (in " + path_ +
                                         "); torch " HT_TORCH_FLOOR " or newer is needed");
    }

private:
    std::string path_;
    void *handle_; // one reference is kept for good
};

} // namespace

void open_torch(const std::string &libtorch_cpu)
{
    static bool done = false;
    if (done)
        return;
    Loaded library(libtorch_cpu);
#define X(RESULT, NAME, PARAMETERS) library.required(torch.NAME, #NAME);
    HT_TORCH_FUNCTIONS(X)
#undef X
#define X(RESULT, NAME, PARAMETERS, SINCE) library.optional(torch.NAME, #NAME);
    HT_TORCH_OPTIONAL(X)
#undef X
    define_operators();
    done = true;
}

void attach(const std::string &key, const std::string &path)
{
    static std::set<std::string> registered;
    require(torch.torch_library_impl != nullptr, "halotile: open() must come before attach()");
    Loaded library(path);
#define X(RESULT, NAME, PARAMETERS) library.required(torch.NAME, #NAME);
    HT_MPS_FUNCTIONS(X)
#undef X
#define X(RESULT, NAME, PARAMETERS, SINCE) library.optional(torch.NAME, #NAME);
    HT_MPS_OPTIONAL(X)
#undef X
    compile_kernels();
    if (!registered.count(key))
        register_operators(key);
    registered.insert(key);
}

} // namespace halotile

// ---- the module -----------------------------------------------------------------------------------------------------

namespace {

// C++ exceptions end here.
template <typename Work> PyObject *none_or_error(Work work)
{
    try {
        work();
    } catch (const std::exception &error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
    Py_RETURN_NONE;
}

PyObject *py_open(PyObject *, PyObject *args)
{
    const char *path;
    if (!PyArg_ParseTuple(args, "s:open", &path))
        return nullptr;
    return none_or_error([&] { halotile::open_torch(path); });
}

PyObject *py_attach(PyObject *, PyObject *args)
{
    const char *key, *library;
    if (!PyArg_ParseTuple(args, "ss:attach", &key, &library))
        return nullptr;
    return none_or_error([&] { halotile::attach(key, library); });
}

PyMethodDef methods[] = {
    {"open", py_open, METH_VARARGS, "open(libtorch_cpu): finds libtorch's functions and defines the operators."},
    {"attach", py_attach, METH_VARARGS,
     "attach(key, library): compiles the Metal kernels and registers the operators for a dispatch key."},
    {nullptr, nullptr, 0, nullptr},
};

int module_exec(PyObject *self) { return PyModule_AddStringConstant(self, "KERNEL_SOURCE", halotile::KERNEL_SOURCE); }

PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void *>(module_exec)},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_torch", "Operators on tensors through libtorch's C functions.", 0, methods, slots, nullptr,
    nullptr, nullptr,
};

} // namespace

PyMODINIT_FUNC PyInit__torch(void) { return PyModuleDef_Init(&module); }
