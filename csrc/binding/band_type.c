/* SPDX-License-Identifier: MIT
 *
 * halotile._core.Band: a struct ht_band and its buffer, which is a NumPy array so that it is counted with the others.
 */
#include "binding.h"

#include <stdatomic.h>

typedef struct {
    PyObject_HEAD
    struct ht_band band;
    PyObject *buffer;
    enum ht_dtype uint16_means; /* in finished rows */
    atomic_flag busy;
} BandObject;

static BandObject *band_of(PyObject *self) { return (BandObject *)self; }

/* A buffer for the band's floats, or NULL with an exception. */
static PyObject *new_buffer(const struct ht_plan *plan, long long channels)
{
    if (channels < 1)
        return PyErr_Format(PyExc_ValueError, "channels must be at least 1, not %lld", channels);
    int64_t floats = ht_band_floats(plan, channels);
    if (floats < 0 || floats > PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(float))
        return PyErr_NoMemory();
    npy_intp shape[1] = {(npy_intp)floats};
    return PyArray_SimpleNew(1, shape, NPY_FLOAT32);
}

static PyObject *band_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"plan", "channels", "values", "bfloat16", "first_row", NULL};
    struct module_state *state = PyType_GetModuleState(type);
    PyObject *plan_object;
    struct ht_values v;
    long long channels, first_row = 0;
    int clamp, bfloat16 = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!L(fffp)|pL:Band", names, state->plan_type, &plan_object,
                                     &channels, &v.peak, &v.gain, &v.offset, &clamp, &bfloat16, &first_row))
        return NULL;
    v.clamp = clamp;
    const struct ht_plan *plan = plan_from_object(plan_object);
    if (first_row < 0 || first_row >= plan->y.count)
        return PyErr_Format(PyExc_IndexError, "first_row %lld must be from 0 to %lld", first_row,
                            (long long)plan->y.count - 1);
    PyObject *buffer = new_buffer(plan, channels);
    if (!buffer)
        return NULL;
    struct ht_band band;
    float *floats = PyArray_DATA((PyArrayObject *)buffer);
    enum ht_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ht_band_init(&band, plan, channels, &v, floats, first_row);
    Py_END_ALLOW_THREADS
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = status == HT_OK ? allocate(type, 0) : raise_status(status, NULL);
    if (!self) {
        Py_DECREF(buffer);
        return NULL;
    }
    BandObject *made = band_of(self);
    made->band = band;
    made->buffer = buffer;
    made->uint16_means = bfloat16 ? HT_BF16 : HT_U16;
    atomic_flag_clear(&made->busy);
    return self;
}

static void band_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    Py_XDECREF(band_of(self)->buffer);
    release(self);
    Py_DECREF(type);
}

static PyObject *refuse(const struct ht_band *band, enum ht_status status, long long tile)
{
    char detail[320];
    if (status == HT_BAD_ORDER) {
        PyOS_snprintf(detail, sizeof detail, "tile %lld after %lld of %lld", tile, (long long)band->next - 1,
                      (long long)band->plan.count);
        return raise_status(status, detail);
    }
    return raise_status(status, "output must be float32, float16 or bfloat16 of what the model makes of a window, rows "
                                "the finished rows of the tile's row over the full width, and peak at most the largest "
                                "value of integer rows");
}

static PyObject *band_add(PyObject *self, PyObject *args)
{
    BandObject *object = band_of(self);
    PyObject *output_object, *rows_object;
    long long tile;
    struct ht_array output, rows;
    if (!PyArg_ParseTuple(args, "LOO:add", &tile, &output_object, &rows_object) ||
        array_from_object(&output, output_object, "output", ARRAY_READ, HT_BF16) < 0 ||
        array_from_object(&rows, rows_object, "rows", ARRAY_WRITE, object->uint16_means) < 0 ||
        arrays_are_apart(output_object, "output", rows_object, "rows") < 0 ||
        arrays_are_apart(object->buffer, "the band", rows_object, "rows") < 0)
        return NULL;
    if (atomic_flag_test_and_set(&object->busy)) {
        PyErr_SetString(PyExc_RuntimeError, "a band takes one tile at a time: another thread is adding to it");
        return NULL;
    }
    enum ht_status status;
    struct ht_position bad;
    Py_BEGIN_ALLOW_THREADS
    status = ht_band_add(&object->band, tile, &output, &rows, &bad);
    Py_END_ALLOW_THREADS
    atomic_flag_clear(&object->busy);
    if (status == HT_OK)
        Py_RETURN_NONE;
    if (status != HT_NONFINITE)
        return refuse(&object->band, status, tile);
    return Py_BuildValue("(LLL)", (long long)bad.c, (long long)bad.y, (long long)bad.x);
}

static PyMethodDef band_methods[] = {
    {"add", band_add, METH_VARARGS, "add(tile, output, rows) -> None or (channel, row, column) of the output image"},
    {NULL, NULL, 0, NULL}};

static char band_doc[] = "Band(plan, channels, values, bfloat16=False, first_row=0)";

static PyType_Slot band_slots[] = {{Py_tp_doc, band_doc},
                                   {Py_tp_new, band_new},
                                   {Py_tp_dealloc, band_dealloc},
                                   {Py_tp_methods, band_methods},
                                   {0, NULL}};

static PyType_Spec band_spec = {.name = "halotile._core.Band",
                                .basicsize = sizeof(BandObject),
                                .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                                .slots = band_slots};

int band_type_init(PyObject *module, struct module_state *state)
{
    state->band_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &band_spec, NULL);
    if (!state->band_type)
        return -1;
    return PyModule_AddType(module, state->band_type);
}
