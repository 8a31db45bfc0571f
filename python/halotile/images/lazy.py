# SPDX-License-Identifier: MIT
"""Arrays of other libraries that are read by rows: dask's, xarray's, and whatever has chunks and slices like an array.

Nothing is imported here: whoever passes such an array has imported its library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Computed", "as_labelled", "is_labelled", "layout_of_names", "lazy_array"]

# What axes are called where they have names.
AXES = {
    "H": ("y", "lat", "latitude", "row", "rows", "height", "h", "northing"),
    "W": ("x", "lon", "longitude", "col", "cols", "column", "columns", "width", "w", "easting"),
    "C": ("c", "s", "channel", "channels", "band", "bands", "sample", "samples", "rgb"),
    "N": ("n", "z", "t", "b", "time", "batch", "image", "images", "plane", "sample_index"),
}
AXIS_OF = {name: axis for axis, names in AXES.items() for name in names}


class Computed:
    """A dask array that slices like an array: what is sliced is computed, and nothing else.

    scheduler: None is the one that its user has set.
    """

    def __init__(self, array: Any, scheduler: str | None = None):
        self.array, self.scheduler = array, scheduler
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, where: Any) -> np.ndarray:
        return np.asarray(self.array[where].compute(scheduler=self.scheduler))


def lazy_array(image: Any) -> tuple[Any, tuple[int, ...], str | None] | None:
    """What slices like the image, the largest chunk along each axis, and the order of axes if their names tell it; None
    if the image is not such an array."""
    if is_labelled(image):
        data = image.data
        inner = lazy_array(data) or (data, (1,) * data.ndim, None)
        return (*inner[:2], layout_of_names(image.dims))
    if not all(hasattr(image, name) for name in ("chunks", "shape", "dtype", "ndim", "__getitem__")):
        return None
    chunks = image.chunks or (1,) * image.ndim  # h5py has None for what is stored in one piece
    if hasattr(image, "compute"):
        if any(math.isnan(side) for side in image.shape):
            raise ValueError("image must have known sides: call compute_chunk_sizes() on the dask array first")
        return Computed(image), tuple(image.chunksize), None
    return (image, chunks, None) if len(chunks) == len(image.shape) else None


def is_labelled(image: Any) -> bool:
    """Whether it is an xarray DataArray."""
    return type(image).__module__.split(".")[0] == "xarray" and type(image).__name__ == "DataArray"


def layout_of_names(names: tuple[Any, ...]) -> str | None:
    """The order of axes that their names tell; None if one of them is unknown, or two mean the same."""
    layout = "".join(AXIS_OF.get(str(name).lower(), "?") for name in names)
    known = "?" not in layout and len(set(layout)) == len(layout) and {"H", "W"} <= set(layout)
    return layout if known else None


def as_labelled(result: np.ndarray, image: Any, layout: str) -> Any:
    """The result as a DataArray with the image's name, attributes and coordinates.

    Coordinates in numbers along rows and columns are those of the new pixels' centres. Others are kept where their axes
    have the length that they had, and left out elsewhere.
    """
    labels = result.ndim < len(layout)  # of classes
    result_layout = layout.replace("C", "") if labels else layout + "C" * (result.ndim - len(layout))
    named = dict(zip(layout, image.dims, strict=True))
    dims = [named.get(axis, "channel") for axis in result_layout]
    sides = dict(zip(dims, result.shape, strict=True))
    coords = _coordinates(image, sides, {named["H"], named["W"]})
    return type(image)(result, dims=dims, coords=coords, name=image.name, attrs=image.attrs)


def _coordinates(image: Any, sides: Mapping[Any, int], scaled: set[Any]) -> dict[Any, Any]:
    found = {}
    for name, coordinate in image.coords.items():
        if all(sides.get(dim) == side for dim, side in coordinate.sizes.items()):
            found[name] = coordinate.variable
        elif set(coordinate.dims) <= scaled and coordinate.ndim == 1 and coordinate.dtype.kind in "iuf":
            (dim,) = coordinate.dims
            values = _centres(np.asarray(coordinate.values, np.float64), sides[dim])
            found[name] = (dim, values, coordinate.attrs)
    return found


def _centres(values: np.ndarray, count: int) -> np.ndarray:
    """Values at the centres of `count` pixels over the same extent; beyond the outer centres, straight on."""
    if len(values) == 1:
        return np.full(count, values[0])
    at = (np.arange(count) + 0.5) * (len(values) / count) - 0.5
    low = np.clip(np.floor(at).astype(int), 0, len(values) - 2)
    return values[low] + (at - low) * (values[low + 1] - values[low])
