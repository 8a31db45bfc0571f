# SPDX-License-Identifier: MIT
"""OME-Zarr in and out: a level of an image, restored into an image of its own, with its axes and physical size.

    restore_ome("scan.ome.zarr", "restored.ome.zarr", model, level=0)

Reads versions 0.4 (zarr 2) and 0.5 (zarr 3), writes 0.5. Every image of times and planes is read and written by rows.
"""

import itertools

import zarr

from halotile import TiledRestorer


def restore_ome(source, target, model, *, level=0, **options):
    """Returns what the last image's run did. options: of `halotile.restore_tiled`, but `layout`."""
    group = zarr.open_group(source, mode="r")
    ome = group.attrs.get("ome", group.attrs)
    image = ome["multiscales"][0]
    axes, dataset = [axis["name"] for axis in image["axes"]], image["datasets"][level]
    array = group[dataset["path"]]
    many = [at for at, name in enumerate(axes) if name in "tz"]
    layout = "".join(name for name in axes if name not in "tz").upper()
    restorer = TiledRestorer(model, layout=layout, **options)
    out = zarr.open_group(target, mode="w-", zarr_format=3)
    made = None
    for index in itertools.product(*(range(array.shape[at]) for at in many)):
        where = [slice(None)] * len(axes)
        for at, number in zip(many, index, strict=True):
            where[at] = number
        result = restorer(array[tuple(where)])
        if made is None:
            shape = _with(array.shape, many, result.shape)
            made = out.create_array(
                "0", shape=shape, dtype=result.dtype, chunks=_with(array.chunks, many, array.chunks)
            )
        made[tuple(where)] = result
    factors = [new / old for new, old in zip(made.shape, array.shape, strict=True)]
    factors = [1.0 if name in "tzc" else one for name, one in zip(axes, factors, strict=True)]
    dataset = {"path": "0", "coordinateTransformations": _scaled(dataset["coordinateTransformations"], factors)}
    kept = {name: value for name, value in image.items() if name not in ("datasets", "version")}
    out.attrs["ome"] = {"version": "0.5", "multiscales": [kept | {"datasets": [dataset]}]}
    return restorer.last_run


def _with(shape, many, others):
    """`shape` with its other axes those of `others`, which may lack those in `many`."""
    rest = iter(others if len(others) < len(shape) else [one for at, one in enumerate(others) if at not in many])
    return tuple(shape[at] if at in many else next(rest) for at in range(len(shape)))


def _scaled(transformations, factors):
    """Smaller pixels; centres move by half the difference."""
    scale = next(one["scale"] for one in transformations if one["type"] == "scale")
    moved = next((one["translation"] for one in transformations if one["type"] == "translation"), [0.0] * len(scale))
    new = [one / factor for one, factor in zip(scale, factors, strict=True)]
    moved = [at + (small - large) / 2 for at, small, large in zip(moved, new, scale, strict=True)]
    return [{"type": "scale", "scale": new}, {"type": "translation", "translation": moved}]
