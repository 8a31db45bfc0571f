# SPDX-License-Identifier: MIT
"""An xarray.DataArray to another one: read by rows, coordinates and attributes kept.

restored = restored_array(scene, model, scale=2)      # dims such as ("band", "y", "x"), in any order
"""

import numpy as np
import xarray

from halotile import TiledRestorer

LETTERS = {"y": "H", "lat": "H", "latitude": "H", "x": "W", "lon": "W", "longitude": "W"}
LETTERS |= {"band": "C", "channel": "C", "c": "C", "time": "N", "t": "N", "z": "N"}


def restored_array(array, model, **options):
    """Raises KeyError for a dimension whose name tells no axis."""
    letters = {name: LETTERS[str(name).lower()] for name in array.dims}
    restorer = TiledRestorer(model, layout="".join(letters.values()), **options)
    result = restorer(array)
    sizes = dict(zip(array.dims, result.shape, strict=False))
    coordinates = {}
    for name, values in array.coords.items():
        kept = {dim: sizes.get(dim) == array.sizes[dim] for dim in values.dims}
        if all(kept.values()):
            coordinates[name] = values
        elif values.dims == (name,) and np.issubdtype(values.dtype, np.number) and values.size > 1:
            coordinates[name] = (name, _resampled(values.values, sizes[name]), values.attrs)
    return xarray.DataArray(result, coordinates, array.dims, array.name, array.attrs)


def _resampled(values, count):
    """The centres of `count` pixels that fill the same extent; linear beyond the first and last centre."""
    at = (np.arange(count) + 0.5) * len(values) / count - 0.5
    low = np.clip(np.floor(at).astype(int), 0, len(values) - 2)
    return values[low] + (at - low) * (values[low + 1] - values[low])
