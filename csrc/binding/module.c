/* SPDX-License-Identifier: MIT
 *
 * halotile._core: slots, state, method table.
 */
#define HALOTILE_IMPORTS_NUMPY
#include "binding.h"

static int module_exec(PyObject *module)
{
    const char *unknown;
    if (!ht_rows_init(&unknown)) {
        PyErr_Format(PyExc_ImportError,
                     "the environment variable HALOTILE_CPU is '%s'; it must be scalar, avx2, avx512 or neon", unknown);
        return -1;
    }
    if (PyArray_ImportNumPyAPI() < 0)
        return -1;
    struct module_state *state = PyModule_GetState(module);
    if (plan_type_init(module, state) == 0 && band_type_init(module, state) == 0)
        return 0;
    if (!PyErr_Occurred()) /* CPython 3.11 says nothing where a type's name finds no memory */
        PyErr_NoMemory();
    return -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->plan_type);
    Py_VISIT(state->band_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->plan_type);
    Py_CLEAR(state->band_type);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "halotile._core",
    .m_doc = "The C core on NumPy arrays. Internal: signatures are in _core.pyi, contracts in csrc/core/halotile.h.",
    .m_size = sizeof(struct module_state),
    .m_methods = ops_methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
