/* SPDX-License-Identifier: MIT */
#include "binding.h"

PyObject *raise_status(enum ht_status status, const char *detail)
{
    if (detail)
        return PyErr_Format(PyExc_ValueError, "%s (%s)", ht_status_text(status), detail);
    PyErr_SetString(PyExc_ValueError, ht_status_text(status));
    return NULL;
}
