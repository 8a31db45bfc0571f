/* SPDX-License-Identifier: MIT
 *
 * NumPy arrays become struct ht_array, after every check that keeps the core inside their memory.
 */
#include "binding.h"

static int dtype_of(PyArrayObject *a, enum ht_dtype uint16_means)
{
    switch (PyArray_TYPE(a)) {
    case NPY_UINT8: return HT_U8;
    case NPY_UINT16: return uint16_means;
    case NPY_FLOAT16: return HT_F16;
    case NPY_FLOAT32: return HT_F32;
    case NPY_FLOAT64: return HT_F64;
    default: return -1;
    }
}

static PyArrayObject *array_checked(PyObject *object, const char *name, int dimensions)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a NumPy array, not %R", name, Py_TYPE(object));
        return NULL;
    }
    PyArrayObject *a = (PyArrayObject *)object;
    if (PyArray_NDIM(a) != dimensions) {
        PyErr_Format(PyExc_ValueError, "%s must have %d dimensions, not %d", name, dimensions, PyArray_NDIM(a));
        return NULL;
    }
    if (!PyArray_ISNOTSWAPPED(a)) {
        PyErr_Format(PyExc_TypeError, "%s must be in native byte order", name);
        return NULL;
    }
    if (!PyArray_ISALIGNED(a)) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned to its dtype", name);
        return NULL;
    }
    return a;
}

int array_from_object(struct ht_array *array, PyObject *object, const char *name, enum array_use use,
                      enum ht_dtype uint16_means)
{
    PyArrayObject *a = array_checked(object, name, 3);
    if (!a)
        return -1;
    int dtype = dtype_of(a, uint16_means);
    if (dtype < 0) {
        PyErr_Format(PyExc_TypeError, "%s must be uint8, uint16, float16, float32 or float64, not %R", name,
                     (PyObject *)PyArray_DESCR(a));
        return -1;
    }
    if (use == ARRAY_WRITE && !PyArray_ISWRITEABLE(a)) {
        PyErr_Format(PyExc_ValueError, "%s must be writeable", name);
        return -1;
    }
    int64_t strides[3];
    for (int d = 0; d < 3; d++) {
        if (PyArray_DIM(a, d) < 1) {
            PyErr_Format(PyExc_ValueError, "%s must not be empty: dimension %d is %zd", name, d,
                         (Py_ssize_t)PyArray_DIM(a, d));
            return -1;
        }
        if (PyArray_STRIDE(a, d) % PyArray_ITEMSIZE(a) != 0) {
            PyErr_Format(PyExc_ValueError, "%s must have strides that are multiples of its item size", name);
            return -1;
        }
        /* NumPy leaves the stride of a side of length 1 to chance. */
        strides[d] = PyArray_DIM(a, d) == 1 ? 1 : PyArray_STRIDE(a, d) / PyArray_ITEMSIZE(a);
    }
    *array = (struct ht_array){PyArray_DATA(a),    (enum ht_dtype)dtype, PyArray_DIM(a, 0), PyArray_DIM(a, 1),
                               PyArray_DIM(a, 2), strides[0],           strides[1],        strides[2]};
    return 0;
}

/* The bytes that an array of at least one element may touch. */
static void extent(PyArrayObject *a, uintptr_t *start, uintptr_t *stop)
{
    *start = *stop = (uintptr_t)PyArray_DATA(a);
    for (int d = 0; d < PyArray_NDIM(a); d++) {
        npy_intp reach = (PyArray_DIM(a, d) - 1) * PyArray_STRIDE(a, d);
        if (reach < 0)
            *start += (uintptr_t)reach;
        else
            *stop += (uintptr_t)reach;
    }
    *stop += (uintptr_t)PyArray_ITEMSIZE(a);
}

int arrays_are_apart(PyObject *a, const char *a_name, PyObject *b, const char *b_name)
{
    uintptr_t a_start, a_stop, b_start, b_stop;
    extent((PyArrayObject *)a, &a_start, &a_stop);
    extent((PyArrayObject *)b, &b_start, &b_stop);
    if (a_start < b_stop && b_start < a_stop) {
        PyErr_Format(PyExc_ValueError, "%s and %s must not share memory", a_name, b_name);
        return -1;
    }
    return 0;
}

const float *floats_from_object(PyObject *object, const char *name, int64_t n)
{
    PyArrayObject *a = array_checked(object, name, 1);
    if (!a)
        return NULL;
    if (PyArray_TYPE(a) != NPY_FLOAT32 || !PyArray_IS_C_CONTIGUOUS(a)) {
        PyErr_Format(PyExc_TypeError, "%s must be a contiguous float32 array", name);
        return NULL;
    }
    if (PyArray_DIM(a, 0) != n) {
        PyErr_Format(PyExc_ValueError, "%s must have %lld elements, not %zd", name, (long long)n,
                     (Py_ssize_t)PyArray_DIM(a, 0));
        return NULL;
    }
    return PyArray_DATA(a);
}
