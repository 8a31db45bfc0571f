# SPDX-License-Identifier: MIT
"""OME-Zarr and GeoTIFF in and out: the pixels of the whole image, at the place where they were."""

from __future__ import annotations

import numpy as np
import pytest

import halotile

from .networks import Chain, seeded
from .test_programs import program

torch = pytest.importorskip("torch")
AXES = [{"name": "t", "type": "time"}, *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx")]


def written(path, version, axes, pixels):
    """Two levels, by the specification's words."""
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level in range(2):
        values = pixels[..., :: 2**level, :: 2**level]
        group.create_array(str(level), data=values, chunks=(1,) * (values.ndim - 2) + (32, 32))
        step = [1.0] * (values.ndim - 2) + [0.5 * 2**level, 0.25 * 2**level]
        first = [0.0] * (values.ndim - 2) + [7.0 + 0.25 * level, 3.0]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": step},
                    {"type": "translation", "translation": first},
                ],
            }
        )
    scales = {
        "multiscales": [{"axes": axes, "datasets": datasets, "name": "cells"}],
        "omero": {"channels": [{"label": "a"}]},
    }
    if version == "0.4":
        scales["multiscales"][0]["version"] = "0.4"
    group.attrs.update(scales if version == "0.4" else {"ome": {"version": version, **scales}})


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("channels, scale, level", [(0, 2, 0), (3, 1, 1), (3, 2, 1)])
def test_ome_zarr_keeps_version_axes_and_place(tmp_path, version, channels, scale, level):
    zarr = pytest.importorskip("zarr")
    pixels = np.random.default_rng(2).random((2, channels or 3, 120, 100), np.float32)
    axes = [AXES[0], {"name": "c", "type": "channel"}, *AXES[2:]] if channels else AXES
    written(tmp_path / "a.zarr", version, axes, pixels)
    model = seeded(lambda: Chain(2, scale=scale, channels=channels or 1))
    options = {"tile_size": 48, "halo": "exact", "boundary": "native"}
    program("ome_zarr").restore(str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), model, level, **options)

    made = zarr.open_group(tmp_path / "b.zarr", mode="r")
    old = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert made.metadata.zarr_format == old.metadata.zarr_format == (2 if version == "0.4" else 3)
    attrs, before = (dict(one.attrs if version == "0.4" else one.attrs["ome"]) for one in (made, old))
    assert attrs["omero"] == before["omero"] and attrs.get("version") == before.get("version")
    scales = attrs["multiscales"][0]
    assert scales["axes"] == axes and scales["name"] == "cells"
    images = pixels[..., :: 2**level, :: 2**level]
    flat = torch.from_numpy(np.ascontiguousarray(images.reshape(-1, channels or 1, *images.shape[-2:])))
    with torch.inference_mode():
        expected = model(flat).numpy().reshape(*images.shape[:2], images.shape[2] * scale, images.shape[3] * scale)
    np.testing.assert_allclose(made["0"][:], expected, rtol=0, atol=2e-5)

    def centre(one, n):  # of the whole level, in the metadata's units
        step, first = (t[t["type"]] for t in one["coordinateTransformations"])
        return np.array(first[-2:]) + np.array(step[-2:]) * (np.array(n) - 1) / 2

    (dataset,) = scales["datasets"]
    if scale == 1:
        assert (
            dataset["coordinateTransformations"]
            == before["multiscales"][0]["datasets"][level]["coordinateTransformations"]
        )
    was = centre(before["multiscales"][0]["datasets"][level], images.shape[-2:])
    np.testing.assert_allclose(centre(dataset, made["0"].shape[-2:]), was)


def test_rasterio_finds_a_geotiff_where_it_was(tmp_path):
    rasterio, vips = pytest.importorskip("rasterio"), pytest.importorskip("pyvips")
    assert vips
    pixels = np.random.default_rng(4).integers(0, 256, (3, 90, 70), np.uint8)
    place = rasterio.Affine(10.0, 0, 500000.0, 0, -20.0, 4_600_000.0)
    about = {"driver": "GTiff", "width": 70, "height": 90, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(tmp_path / "a.tif", "w", **about, crs="EPSG:32633", transform=place) as file:
        file.write(pixels)
    model = seeded(lambda: Chain(2, scale=2))
    options = {"tile_size": 48, "halo": "exact", "boundary": "native", "value_range": (-1, 1)}
    halotile.restore_to(tmp_path / "b.tif", tmp_path / "a.tif", model, **options)
    expected = halotile.restore_tiled(pixels, model, layout="CHW", **options | {"tile_size": 4096})
    with rasterio.open(tmp_path / "a.tif") as old, rasterio.open(tmp_path / "b.tif") as new:
        assert new.crs == old.crs and (new.height, new.width) == (180, 140)
        np.testing.assert_allclose(new.bounds, old.bounds)
        assert np.abs(new.read().astype(int) - expected.astype(int)).max() <= 1
        assert np.ptp(new.read()) > 20
