/* SPDX-License-Identifier: MIT
 *
 * halotile._core.Plan: an immutable struct ht_plan.
 */
#include "binding.h"

typedef struct {
    PyObject_HEAD
    struct ht_plan plan;
} PlanObject;

static struct ht_plan *plan_of(PyObject *self) { return &((PlanObject *)self)->plan; }

const struct ht_plan *plan_from_object(PyObject *plan) { return plan_of(plan); }

/* ---- construction ----------------------------------------------------------------------------------------------- */

static PyObject *refuse(enum ht_status status, int axis, const struct ht_axis_options *sides)
{
    if (axis < 0)
        return raise_status(status, NULL);
    const struct ht_axis_options *o = &sides[axis];
    char detail[320];
    PyOS_snprintf(detail, sizeof detail,
                  "%s: size %lld, tile_size %lld, halo %lld, overlap %lld, phase %lld, scale %lld/%lld, trim %lld, "
                  "least %lld",
                  axis == 0 ? "rows" : "columns", (long long)o->size, (long long)o->tile, (long long)o->halo,
                  (long long)o->overlap, (long long)o->phase, (long long)o->scale_num, (long long)o->scale_den,
                  (long long)o->trim, (long long)o->least);
    return raise_status(status, detail);
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"size",  "tile", "halo",     "overlap", "phase",
                            "scale", "trim", "boundary", "blend",   "least", NULL};
    long long size[2], tile[2], halo[2], overlap[2], phase[2], scale[2][2], trim[2], least[2] = {0, 0};
    int boundary, blend;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "(LL)(LL)(LL)(LL)(LL)((LL)(LL))(LL)ii|(LL):Plan", names, size,
                                     size + 1, tile, tile + 1, halo, halo + 1, overlap, overlap + 1, phase, phase + 1,
                                     scale[0], scale[0] + 1, scale[1], scale[1] + 1, trim, trim + 1, &boundary, &blend,
                                     least, least + 1))
        return NULL;
    struct ht_axis_options sides[2];
    for (int k = 0; k < 2; k++)
        sides[k] = (struct ht_axis_options){size[k],  tile[k],     halo[k],     overlap[k],
                                            phase[k], scale[k][0], scale[k][1], trim[k], (enum ht_boundary)boundary,
                                            least[k]};
    struct ht_plan plan;
    int failed_axis;
    enum ht_status status = ht_plan_init(&plan, &sides[0], &sides[1], (enum ht_blend)blend, &failed_axis);
    if (status != HT_OK)
        return refuse(status, failed_axis, sides);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (self)
        *plan_of(self) = plan;
    return self;
}

static void plan_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

static const struct ht_axis *axis_of(PyObject *self, int axis)
{
    if (axis != 0 && axis != 1) {
        PyErr_Format(PyExc_ValueError, "axis must be 0 (rows) or 1 (columns), not %d", axis);
        return NULL;
    }
    return axis == 0 ? &plan_of(self)->y : &plan_of(self)->x;
}

static int index_checked(long long index, int64_t least, int64_t count)
{
    if (index >= least && index < count)
        return 0;
    PyErr_Format(PyExc_IndexError, "index %lld must be from %lld to %lld", index, (long long)least,
                 (long long)count - 1);
    return -1;
}

/* (axis, i) with i a tile of that axis. */
static const struct ht_axis *axis_and_index(PyObject *self, PyObject *args, int64_t *i)
{
    int which;
    long long index;
    if (!PyArg_ParseTuple(args, "iL", &which, &index))
        return NULL;
    const struct ht_axis *axis = axis_of(self, which);
    if (!axis || index_checked(index, 0, axis->count) < 0)
        return NULL;
    *i = index;
    return axis;
}

/* ---- methods ---------------------------------------------------------------------------------------------------- */

static PyObject *wrap_range(struct ht_range r) { return Py_BuildValue("(LL)", (long long)r.start, (long long)r.stop); }

static PyObject *wrap_box(struct ht_box b)
{
    return Py_BuildValue("(LLLL)", (long long)b.y, (long long)b.x, (long long)b.height, (long long)b.width);
}

static PyObject *plan_tile(PyObject *self, PyObject *index_object)
{
    long long index = PyLong_AsLongLong(index_object);
    if ((index == -1 && PyErr_Occurred()) || index_checked(index, 0, plan_of(self)->count) < 0)
        return NULL;
    struct ht_tile t = ht_plan_tile(plan_of(self), index);
    return Py_BuildValue("(LLNNN(LL))", (long long)t.row, (long long)t.column, wrap_box(t.window), wrap_box(t.keep),
                         wrap_box(t.exclusive), (long long)t.crop_y, (long long)t.crop_x);
}

static PyObject *plan_rows_complete(PyObject *self, PyObject *index_object)
{
    long long index = PyLong_AsLongLong(index_object);
    if ((index == -1 && PyErr_Occurred()) || index_checked(index, -1, plan_of(self)->count) < 0)
        return NULL;
    return PyLong_FromLongLong(ht_plan_rows_complete(plan_of(self), index));
}

#define RANGE_METHOD(name)                                                    \
    static PyObject *plan_##name(PyObject *self, PyObject *args)              \
    {                                                                         \
        int64_t i;                                                            \
        const struct ht_axis *axis = axis_and_index(self, args, &i);          \
        return axis ? wrap_range(ht_axis_##name(axis, i)) : NULL;             \
    }
RANGE_METHOD(keep)
RANGE_METHOD(exclusive)
RANGE_METHOD(done)
#undef RANGE_METHOD

static PyObject *plan_starts(PyObject *self, PyObject *args)
{
    int which;
    if (!PyArg_ParseTuple(args, "i:starts", &which))
        return NULL;
    const struct ht_axis *a = axis_of(self, which);
    if (!a)
        return NULL;
    return Py_BuildValue("(LLLL)", (long long)a->origin, (long long)a->step, (long long)a->phase, (long long)a->longer);
}

static PyObject *plan_kept(PyObject *self, PyObject *args)
{
    int which;
    if (!PyArg_ParseTuple(args, "i:kept", &which))
        return NULL;
    const struct ht_axis *axis = axis_of(self, which);
    if (!axis)
        return NULL;
    const struct ht_kept *k = &axis->kept;
    return Py_BuildValue("(LLLLLLLL)", (long long)k->start, (long long)k->length, (long long)k->origin,
                         (long long)k->step, (long long)k->phase, (long long)k->longer, (long long)k->count,
                         (long long)k->size);
}

static PyObject *plan_tallest_band(PyObject *self, PyObject *Py_UNUSED(args))
{
    return PyLong_FromLongLong(ht_plan_tallest_band(plan_of(self)));
}

static PyObject *plan_rows_in_progress(PyObject *self, PyObject *args)
{
    long long batch, first_row;
    if (!PyArg_ParseTuple(args, "LL:rows_in_progress", &batch, &first_row))
        return NULL;
    if (batch < 1)
        return PyErr_Format(PyExc_ValueError, "batch must be at least 1, not %lld", batch);
    if (index_checked(first_row, 0, plan_of(self)->y.count) < 0)
        return NULL;
    int64_t rows;
    Py_BEGIN_ALLOW_THREADS
    rows = ht_plan_rows_in_progress(plan_of(self), batch, first_row);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(rows);
}

static PyObject *plan_band_floats(PyObject *self, PyObject *channels_object)
{
    long long channels = PyLong_AsLongLong(channels_object);
    if (channels == -1 && PyErr_Occurred())
        return NULL;
    int64_t floats = ht_band_floats(plan_of(self), channels);
    if (floats < 0)
        return PyErr_Format(PyExc_ValueError, "channels must be at least 1 and few enough for 64 bits, not %lld",
                            channels);
    return PyLong_FromLongLong(floats);
}

static PyObject *new_floats(int64_t n)
{
    npy_intp shape[1] = {(npy_intp)n};
    return PyArray_SimpleNew(1, shape, NPY_FLOAT32);
}

static float *floats_of(PyObject *array) { return PyArray_DATA((PyArrayObject *)array); }

static PyObject *plan_weights(PyObject *self, PyObject *args)
{
    int64_t i;
    const struct ht_axis *axis = axis_and_index(self, args, &i);
    if (!axis)
        return NULL;
    struct ht_range keep = ht_axis_keep(axis, i);
    PyObject *weights = new_floats(keep.stop - keep.start);
    if (weights)
        ht_axis_weights(floats_of(weights), axis, plan_of(self)->blend, i);
    return weights;
}

static PyObject *plan_normaliser(PyObject *self, PyObject *args)
{
    int which;
    long long start, stop;
    if (!PyArg_ParseTuple(args, "iLL:normaliser", &which, &start, &stop))
        return NULL;
    const struct ht_axis *axis = axis_of(self, which);
    if (!axis)
        return NULL;
    if (start < 0 || stop < start || stop > axis->output_size)
        return PyErr_Format(PyExc_ValueError,
                            "start and stop must satisfy 0 <= start <= stop <= %lld, not %lld and %lld",
                            (long long)axis->output_size, start, stop);
    PyObject *sums = new_floats(stop - start);
    if (sums) {
        float *data = floats_of(sums);
        Py_BEGIN_ALLOW_THREADS
        ht_axis_normaliser(data, axis, plan_of(self)->blend, (struct ht_range){start, stop});
        Py_END_ALLOW_THREADS
    }
    return sums;
}

static PyMethodDef plan_methods[] = {
    {"tile", plan_tile, METH_O,
     "tile(index) -> (row, column, window, keep, exclusive, crop); boxes are (y, x, height, width)"},
    {"rows_complete", plan_rows_complete, METH_O, "rows_complete(index) -> output rows complete after that tile"},
    {"keep", plan_keep, METH_VARARGS, "keep(axis, i) -> (start, stop) in output pixels"},
    {"exclusive", plan_exclusive, METH_VARARGS, "exclusive(axis, i) -> (start, stop): no other tile contributes"},
    {"done", plan_done, METH_VARARGS, "done(axis, i) -> (start, stop): no later tile contributes"},
    {"starts", plan_starts, METH_VARARGS,
     "starts(axis) -> (origin, step, phase, longer): window i starts at origin + i * step + min(i, longer) * phase"},
    {"kept", plan_kept, METH_VARARGS,
     "kept(axis) -> (start, length, origin, step, phase, longer, count, size): what tiles keep, in output pixels"},
    {"tallest_band", plan_tallest_band, METH_NOARGS, "tallest_band() -> most output rows finished with one tile row"},
    {"rows_in_progress", plan_rows_in_progress, METH_VARARGS,
     "rows_in_progress(batch, first_row) -> most output rows from the first unfinished one to a batch's last"},
    {"band_floats", plan_band_floats, METH_O, "band_floats(channels) -> floats that a Band holds"},
    {"weights", plan_weights, METH_VARARGS, "weights(axis, i) -> float32 blend weights over keep(axis, i)"},
    {"normaliser", plan_normaliser, METH_VARARGS, "normaliser(axis, start, stop) -> float32 sums of weights"},
    {NULL, NULL, 0, NULL}};

/* ---- attributes ------------------------------------------------------------------------------------------------- */

#define PAIR(name, field)                                                                                         \
    static PyObject *plan_get_##name(PyObject *self, void *Py_UNUSED(closure))                                    \
    {                                                                                                             \
        struct ht_plan *p = plan_of(self);                                                                        \
        return Py_BuildValue("(LL)", (long long)p->y.field, (long long)p->x.field);                               \
    }
PAIR(image_size, size)
PAIR(output_size, output_size)
PAIR(grid, count)
PAIR(window, window)
PAIR(halo, halo)
PAIR(phase, phase)
PAIR(trim, trim)
#undef PAIR

static PyObject *plan_get_window_output(PyObject *self, void *Py_UNUSED(closure))
{
    struct ht_plan *p = plan_of(self);
    return Py_BuildValue("(LL)", (long long)ht_axis_model_output(&p->y), (long long)ht_axis_model_output(&p->x));
}

static PyObject *plan_get_scale(PyObject *self, void *Py_UNUSED(closure))
{
    struct ht_axis *y = &plan_of(self)->y, *x = &plan_of(self)->x;
    return Py_BuildValue("((LL)(LL))", (long long)y->scale_num, (long long)y->scale_den, (long long)x->scale_num,
                         (long long)x->scale_den);
}

static PyObject *plan_get_count(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(plan_of(self)->count);
}

static PyGetSetDef plan_attributes[] = {
    {"image_size", plan_get_image_size, NULL, "(rows, columns) of the image, input pixels", NULL},
    {"output_size", plan_get_output_size, NULL, "(rows, columns) of the restored image", NULL},
    {"grid", plan_get_grid, NULL, "(rows, columns) of tiles", NULL},
    {"window", plan_get_window, NULL, "(height, width) of every window, input pixels", NULL},
    {"window_output", plan_get_window_output, NULL, "(height, width) that the model makes of one, output pixels", NULL},
    {"halo", plan_get_halo, NULL, "effective halo (y, x), input pixels", NULL},
    {"phase", plan_get_phase, NULL, "effective phase (y, x), input pixels", NULL},
    {"trim", plan_get_trim, NULL, "output pixels lost at each end of a window (y, x)", NULL},
    {"scale", plan_get_scale, NULL, "(numerator, denominator) of rows, then of columns", NULL},
    {"count", plan_get_count, NULL, "number of tiles", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static char plan_doc[] = "Plan(size, tile, halo, overlap, phase, scale, trim, boundary, blend, least=(0, 0))";

static PyType_Slot plan_slots[] = {{Py_tp_doc, plan_doc},
                                   {Py_tp_new, plan_new},
                                   {Py_tp_dealloc, plan_dealloc},
                                   {Py_tp_methods, plan_methods},
                                   {Py_tp_getset, plan_attributes},
                                   {0, NULL}};

static PyType_Spec plan_spec = {.name = "halotile._core.Plan",
                                .basicsize = sizeof(PlanObject),
                                .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                                .slots = plan_slots};

int plan_type_init(PyObject *module, struct module_state *state)
{
    state->plan_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &plan_spec, NULL);
    if (!state->plan_type)
        return -1;
    return PyModule_AddType(module, state->plan_type);
}
