/* SPDX-License-Identifier: MIT
 *
 * binding.h - what the files of `halotile._core` share. Everything that includes NumPy's headers goes through here.
 */
#ifndef HALOTILE_BINDING_H
#define HALOTILE_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL halotile_numpy
#ifndef HALOTILE_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "halotile.h"

struct module_state {
    PyTypeObject *plan_type, *band_type;
};

/* What module.c puts together. */
int plan_type_init(PyObject *module, struct module_state *state);
int band_type_init(PyObject *module, struct module_state *state);
extern PyMethodDef ops_methods[];

/* plan_type.c: the plan of a _core.Plan, which lives as long as that. */
const struct ht_plan *plan_from_object(PyObject *plan);

/* errors.c: the only place where a status becomes an exception: ValueError. Returns NULL. detail may be NULL. */
PyObject *raise_status(enum ht_status status, const char *detail);

/* array.c: a 3-D NumPy array (channels, height, width) seen by the core. uint16 holds integers or, where `bits` is
 * HT_BF16, bfloat16. Returns 0, or -1 with TypeError or ValueError set, naming the argument. */
enum array_use { ARRAY_READ, ARRAY_WRITE };
int array_from_object(struct ht_array *array, PyObject *object, const char *name, enum array_use use,
                      enum ht_dtype uint16_means);

/* Fails with ValueError if the two arrays' memory ranges meet. */
int arrays_are_apart(PyObject *a, const char *a_name, PyObject *b, const char *b_name);

/* A contiguous 1-D float32 array of exactly n elements: its data, or NULL with TypeError or ValueError set. */
const float *floats_from_object(PyObject *object, const char *name, int64_t n);

#endif
