# SPDX-License-Identifier: MIT
"""OME-Zarr in and out: versions 0.4 (zarr v2) and 0.5 (zarr v3), plane by plane, by rows."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import zarr

from halotile import TiledRestorer


class Plane:
    """One (C, Y, X) or (Y, X) of an array of more axes; read where it is sliced."""

    def __init__(self, array: Any, index: tuple[int, ...]):
        self.array, self.index, self.dtype = array, index, array.dtype
        self.shape, self.chunks = array.shape[len(index) :], tuple(array.chunks[len(index) :])
        self.ndim = len(self.shape)

    def __getitem__(self, where: tuple[Any, ...]) -> Any:
        return self.array[(*self.index, *where)]


def opened(path: str, level: int = 0) -> tuple[Any, dict[str, Any], Any]:
    """The array of a level, the first multiscales of the metadata, and the group."""
    group = zarr.open_group(path, mode="r")
    scales = dict(group.attrs.get("ome", group.attrs))["multiscales"][0]
    return group[scales["datasets"][level]["path"]], scales, group


def placed(dataset: dict[str, Any], axes: str, zoom: dict[str, Fraction]) -> list[dict[str, Any]]:
    """The dataset's transforms for pixels that are smaller: steps shrink, the first centre with its corner."""
    found = {one["type"]: one[one["type"]] for one in dataset.get("coordinateTransformations", ())}
    step, start = found.get("scale", [1.0] * len(axes)), found.get("translation", [0.0] * len(axes))
    by = [float(zoom.get(axis, 1)) for axis in axes]
    moved = [t + s * (0.5 / z - 0.5) for t, s, z in zip(start, step, by, strict=True)]
    scale = {"type": "scale", "scale": [s / z for s, z in zip(step, by, strict=True)]}
    return [scale, {"type": "translation", "translation": moved}] if any(moved) else [scale]


def restore(source: str, target: str, model: Callable[..., Any], level: int = 0, **options: Any) -> None:
    """Restores a level into a new OME-Zarr of the same version, one level deep, with the metadata it had."""
    array, scales, group = opened(source, level)
    axes = "".join(axis["name"] for axis in scales["axes"]).lower()
    layout = "cyx" if axes.endswith("cyx") else "yx"
    restorer = TiledRestorer(model, layout=layout.upper(), **({"alpha": "channel"} | options))
    found = restorer.inspected().scale
    zoom = dict(zip("yx", found if isinstance(found, tuple) else (found, found), strict=True))
    shape = tuple(int(n * zoom.get(axis, 1)) for axis, n in zip(axes, array.shape, strict=True))
    v2 = array.metadata.zarr_format == 2
    made = zarr.create_group(target, zarr_format=array.metadata.zarr_format)
    keys = {"name": "v2" if v2 else "default", "separator": "/"}
    names = None if v2 else list(axes)
    into = made.create_array(
        "0", shape=shape, dtype=array.dtype, chunks=array.chunks, chunk_key_encoding=keys, dimension_names=names
    )
    outer = len(axes) - len(layout)
    for index in np.ndindex(*array.shape[:outer]):
        for y, rows in restorer.iter_bands(Plane(array, index)):
            at = slice(y, y + rows.shape[-2])
            into[(*index, slice(None), at) if layout == "cyx" else (*index, at)] = rows
    dataset = {"path": "0", "coordinateTransformations": placed(scales["datasets"][level], axes, zoom)}
    about = dict(group.attrs.get("ome", group.attrs)) | {"multiscales": [scales | {"datasets": [dataset]}]}
    made.attrs.update({"ome": about} if "ome" in group.attrs else about)
