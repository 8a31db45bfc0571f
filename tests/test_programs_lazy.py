# SPDX-License-Identifier: MIT
"""Arrays of dask, xarray and h5py: read by rows, equal to the whole image, and with their coordinates."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import halotile

from .networks import Chain, seeded

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(7)
PHOTO = RNG.random((260, 96, 3), np.float32)


def whole(model, image):
    with torch.inference_mode():
        return model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def restored(image, model, **options):
    return halotile.restore_tiled(image, model, tile_size=48, halo="exact", boundary="native", **options)


class Counted:
    """An array in pieces: which were made, how often, and how many at most before the first rows came out."""

    def __init__(self, array, chunks):
        dask = pytest.importorskip("dask.array")
        self.made, self.lock = {}, threading.Lock()
        self.array = dask.from_array(array, chunks=chunks).map_blocks(self.count, dtype=array.dtype, meta=array[:0])

    def count(self, block, block_info=None):
        place = tuple(block_info[0]["chunk-location"])
        with self.lock:
            self.made[place] = self.made.get(place, 0) + 1
        return block


def test_a_dask_array_is_the_whole_image():
    model = seeded(lambda: Chain(3, scale=2))
    counted = Counted(PHOTO, (20, 32, 3))
    np.testing.assert_allclose(restored(counted.array, model), whole(model, PHOTO), rtol=0, atol=2e-5)
    assert len(counted.made) == 13 * 3


def test_a_dask_array_is_read_in_bands_each_chunk_once():
    model = seeded(lambda: Chain(3))
    counted = Counted(PHOTO, (20, 32, 3))
    seen = []
    for _, _rows in halotile.iter_bands(counted.array, model, tile_size=48, halo="exact", boundary="native"):
        seen.append(len(counted.made))
    assert seen[0] <= 5 * 3 < seen[-1] == 13 * 3  # rows of chunks that the first band needs, and never all
    assert set(counted.made.values()) == {1}


def test_other_axes_of_a_dask_array():
    model = seeded(lambda: Chain(2))
    planar = np.ascontiguousarray(np.stack([PHOTO, PHOTO[::-1]]).transpose(0, 3, 1, 2))
    counted = Counted(planar, (1, 3, 64, 96))
    result = restored(counted.array, model, layout="TCYX")
    for plane, image in zip(result, (PHOTO, PHOTO[::-1]), strict=True):
        np.testing.assert_allclose(plane.transpose(1, 2, 0), whole(model, image.copy()), rtol=0, atol=2e-5)


def test_what_dask_raises_has_its_cause():
    dask = pytest.importorskip("dask.array")

    def broken(block):
        raise RuntimeError("the disk is gone")

    array = dask.from_array(PHOTO, chunks=(64, 96, 3)).map_blocks(broken, dtype=PHOTO.dtype, meta=PHOTO[:0])
    with pytest.raises(ValueError, match="the disk is gone"):
        restored(array, seeded(lambda: Chain(2)))


def test_h5py_is_read_by_chunks(tmp_path):
    h5py = pytest.importorskip("h5py")
    model = seeded(lambda: Chain(2))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("image", data=PHOTO, chunks=(32, 32, 3))
        np.testing.assert_allclose(restored(data, model), whole(model, PHOTO), rtol=0, atol=2e-5)


@pytest.fixture
def labelled():
    xarray = pytest.importorskip("xarray")

    def make(values, dims=("y", "x", "band"), **coords):
        places = {"y": 500.0 - 10.0 * np.arange(260), "x": ("x", 3.0 + 2.0 * np.arange(96), {"units": "m"}), **coords}
        return xarray.DataArray(values, dims=dims, coords=places, name="red", attrs={"crs": "EPSG:32633"})

    return make


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("planar", [False, True])
def test_coordinates_are_those_of_the_new_pixels(labelled, scale, planar):
    model = seeded(lambda: Chain(2, scale=scale))
    image = labelled(PHOTO, band=["r", "g", "b"], when=("y", np.arange(260).astype("datetime64[s]")), spot=7)
    if planar:
        image = image.transpose("band", "y", "x")
    before = image.copy(deep=True)
    result = restored(image, model)
    assert result.dims == image.dims and result.name == "red" and result.attrs == image.attrs
    values = result.transpose("y", "x", "band")
    np.testing.assert_allclose(values.values, whole(model, PHOTO), rtol=0, atol=2e-5)
    # The mean of the pixels that one became lies where it lay.
    np.testing.assert_allclose(result.y.values.reshape(-1, scale).mean(1), image.y.values)
    np.testing.assert_allclose(result.x.values.reshape(-1, scale).mean(1), image.x.values)
    assert len(set(np.round(np.diff(result.y.values), 9))) == 1
    assert result.x.attrs == {"units": "m"} and list(result.band.values) == ["r", "g", "b"] and result.spot == 7
    assert ("when" in result.coords) == (scale == 1)
    assert image.identical(before)


def test_an_xarray_of_dask_is_read_in_bands(labelled):
    model = seeded(lambda: Chain(2))
    counted = Counted(PHOTO, (20, 96, 3))
    result = restored(labelled(counted.array), model)
    np.testing.assert_allclose(result.values, whole(model, PHOTO), rtol=0, atol=2e-5)
    assert set(counted.made.values()) == {1}


def test_names_that_tell_nothing_leave_the_layout_to_the_shape(labelled):
    xarray = pytest.importorskip("xarray")
    model = seeded(lambda: Chain(2))
    result = restored(xarray.DataArray(PHOTO, dims=("u", "v", "w2")), model)
    assert result.dims == ("u", "v", "w2")
    np.testing.assert_allclose(result.values, whole(model, PHOTO), rtol=0, atol=2e-5)


def test_labels_and_classes_keep_their_coordinates(labelled):
    model = seeded(lambda: Chain(2))
    result = restored(labelled(PHOTO), model, reduce="argmax")
    assert result.dims == ("y", "x") and "band" not in result.coords
    np.testing.assert_array_equal(result.values, whole(model, PHOTO).argmax(-1))
    np.testing.assert_array_equal(result.y.values, labelled(PHOTO).y.values)
