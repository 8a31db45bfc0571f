/* SPDX-License-Identifier: MIT
 *
 * read, accumulate, finish, heap: parse, check, call with the GIL released, wrap.
 */
#include "binding.h"
#include "heap.h"

/* What verbs that look for NaN and infinity return: a position or None. fit: what arrays have to be. */
static PyObject *position_or_none(enum ht_status status, const struct ht_position *bad, const char *fit)
{
    if (status == HT_NONFINITE)
        return Py_BuildValue("(LLL)", (long long)bad->c, (long long)bad->y, (long long)bad->x);
    if (status != HT_OK)
        return raise_status(status, status == HT_BAD_ARRAY ? fit : NULL);
    Py_RETURN_NONE;
}

static PyObject *py_read(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"window", "image", "y", "x", "values", "bfloat16", NULL};
    PyObject *window_object, *image_object;
    long long y, x;
    struct ht_values v = {1, 1, 0, false};
    int clamp = 0, bfloat16 = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOLL|(fffp)p:read", names, &window_object, &image_object, &y, &x,
                                     &v.peak, &v.gain, &v.offset, &clamp, &bfloat16))
        return NULL;
    struct ht_array window, image;
    if (array_from_object(&window, window_object, "window", ARRAY_WRITE, HT_BF16) < 0 ||
        array_from_object(&image, image_object, "image", ARRAY_READ, bfloat16 ? HT_BF16 : HT_U16) < 0 ||
        arrays_are_apart(window_object, "window", image_object, "image") < 0)
        return NULL;
    if (y < -HT_MAX_SIDE || y > HT_MAX_SIDE || x < -HT_MAX_SIDE || x > HT_MAX_SIDE)
        return PyErr_Format(PyExc_ValueError, "y and x must be within 2^40 of zero, not %lld and %lld", y, x);

    enum ht_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ht_read(&window, &image, y, x, &v);
    Py_END_ALLOW_THREADS
    const struct ht_position nowhere = {0, 0, 0}; /* what an image holds is not looked at */
    return position_or_none(
        status, &nowhere, "window must be float32, float16 or bfloat16 with as many channels as image");
}

static PyObject *py_accumulate(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sums", "source", "wy", "wx", NULL};
    PyObject *sums_object, *source_object, *wy_object, *wx_object;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:accumulate", names, &sums_object, &source_object, &wy_object,
                                     &wx_object))
        return NULL;
    struct ht_array sums, source;
    if (array_from_object(&sums, sums_object, "sums", ARRAY_WRITE, HT_U16) < 0 ||
        array_from_object(&source, source_object, "source", ARRAY_READ, HT_BF16) < 0 ||
        arrays_are_apart(sums_object, "sums", source_object, "source") < 0)
        return NULL;
    const float *wy = floats_from_object(wy_object, "wy", source.height);
    const float *wx = wy ? floats_from_object(wx_object, "wx", source.width) : NULL;
    if (!wx)
        return NULL;

    enum ht_status status;
    struct ht_position bad;
    Py_BEGIN_ALLOW_THREADS
    status = ht_accumulate(&sums, &source, wy, wx, &bad);
    Py_END_ALLOW_THREADS
    return position_or_none(status, &bad, "sums must be float32 with contiguous rows, source float32, float16 or "
                                          "bfloat16, both of one shape");
}

/* Both None, or both float32 arrays of the right length. */
static int normalisers(PyObject *ny_object, PyObject *nx_object, const struct ht_array *source, const float **ny,
                       const float **nx)
{
    *ny = *nx = NULL;
    if (ny_object == Py_None && nx_object == Py_None)
        return 0;
    *ny = floats_from_object(ny_object, "ny", source->height);
    *nx = *ny ? floats_from_object(nx_object, "nx", source->width) : NULL;
    return *nx ? 0 : -1;
}

static PyObject *py_finish(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"destination", "source", "ny", "nx", "values", "bfloat16", NULL};
    PyObject *destination_object, *source_object, *ny_object = Py_None, *nx_object = Py_None;
    struct ht_values v = {1, 1, 0, false};
    int clamp = 0, bfloat16 = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OO(fffp)p:finish", names, &destination_object, &source_object,
                                     &ny_object, &nx_object, &v.peak, &v.gain, &v.offset, &clamp, &bfloat16))
        return NULL;
    v.clamp = clamp;
    struct ht_array destination, source;
    const float *ny, *nx;
    enum ht_dtype uint16_means = bfloat16 ? HT_BF16 : HT_U16;
    if (array_from_object(&destination, destination_object, "destination", ARRAY_WRITE, uint16_means) < 0 ||
        array_from_object(&source, source_object, "source", ARRAY_READ, HT_BF16) < 0 ||
        arrays_are_apart(destination_object, "destination", source_object, "source") < 0 ||
        normalisers(ny_object, nx_object, &source, &ny, &nx) < 0)
        return NULL;

    enum ht_status status;
    struct ht_position bad;
    Py_BEGIN_ALLOW_THREADS
    status = ht_finish(&destination, &source, ny, nx, &v, &bad);
    Py_END_ALLOW_THREADS
    return position_or_none(status, &bad, "source must be float32, float16 or bfloat16 of destination's shape, and "
                                          "peak at most the largest value of an integer destination");
}

static PyObject *py_rows_name(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    return PyUnicode_FromString(ht_rows_name());
}

static PyObject *py_reflect(PyObject *Py_UNUSED(module), PyObject *args)
{
    long long index, size;
    if (!PyArg_ParseTuple(args, "LL:reflect", &index, &size))
        return NULL;
    if (size < 1 || size > HT_MAX_SIDE || index < -HT_MAX_SIDE || index > HT_MAX_SIDE)
        return PyErr_Format(PyExc_ValueError,
                            "index must be within 2^40 of zero and size from 1 to 2^40, not %lld and %lld", index,
                            size);
    return PyLong_FromLongLong(ht_reflect(index, size));
}

static PyObject *py_heap_keep(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    return PyBool_FromLong(ht_heap_keep());
}

static PyObject *py_heap_pause(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    ht_heap_pause();
    Py_RETURN_NONE;
}

static PyObject *py_heap_release(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    Py_BEGIN_ALLOW_THREADS
    ht_heap_release();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

PyMethodDef ops_methods[] = {
    {"read", WITH_KEYWORDS(py_read), "read(window, image, y, x, values, bfloat16=False)"},
    {"accumulate", WITH_KEYWORDS(py_accumulate), "accumulate(sums, source, wy, wx) -> None or (c, y, x)"},
    {"finish", WITH_KEYWORDS(py_finish),
     "finish(destination, source, ny, nx, values, bfloat16=False) -> None or (c, y, x)"},
    {"rows_name", py_rows_name, METH_NOARGS, "rows_name() -> the name of the chosen row kernels"},
    {"heap_keep", py_heap_keep, METH_NOARGS, "heap_keep() -> whether malloc now keeps what is freed"},
    {"heap_pause", py_heap_pause, METH_NOARGS, "heap_pause(): until heap_keep, what is large is mapped"},
    {"heap_release", py_heap_release, METH_NOARGS, "heap_release(): the opposite, and what is free goes back"},
    {"reflect", py_reflect, METH_VARARGS, "reflect(index, size) -> the index inside [0, size) it is reflected to"},
    {NULL, NULL, 0, NULL}};
