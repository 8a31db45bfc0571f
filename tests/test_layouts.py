# SPDX-License-Identifier: MIT
"""The order of axes: every spelling, what is usual, what only the model can decide, and stacks from file to file."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from halotile import (  # noqa: E402
    TiledRestorer,
    error_curve,
    inspect_model,
    iter_bands,
    metrics,
    plan_tiles,
    restore_tiled,
    restore_to,
    testing,
    verify,
)
from halotile.layouts import checked_layout  # noqa: E402
from halotile.models.kinds import channels_of  # noqa: E402

from .networks import Chain, seeded  # noqa: E402

TILES = {"tile_size": 16, "halo": 2}


def twice(x):
    """Nearest x2 of any channels, by NumPy or torch."""
    return x.repeat(2, axis=2).repeat(2, axis=3)


def conv(channels, out=None):
    return nn.Conv2d(channels, out or channels, 3, padding=1).eval()


def noise(shape, dtype="uint8", seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def spellings():
    letters = {"N": "NZTB", "C": "CS", "H": "HY", "W": "WX"}
    for count in (2, 3, 4):
        for axes in itertools.permutations("NCHW", count):
            if {"H", "W"} <= set(axes):
                yield from ("".join(each) for each in itertools.product(*(letters[axis] for axis in axes)))


# ---- what is spelled -------------------------------------------------------------------------------------------------


def test_every_spelling_means_its_axes():
    sides = {"N": 2, "Z": 2, "T": 2, "B": 2, "C": 3, "S": 3, "H": 12, "Y": 12, "W": 9, "X": 9}
    for layout in list(spellings())[::7]:  # every permutation, of some letters
        image = noise([sides[letter] for letter in layout])
        got = restore_tiled(image, twice, layout=layout, halo=1)
        y, x = (next(layout.index(letter) for letter in pair if letter in layout) for pair in ("HY", "WX"))
        np.testing.assert_array_equal(got, image.repeat(2, y).repeat(2, x), err_msg=layout)


@pytest.mark.parametrize("layout", ["", "H", "HH", "HWQ", "hwc", "HWCS", "HYW", "WC", "NCH", "HWX", 3, ("H", "W")])
def test_other_spellings_are_refused(layout):
    with pytest.raises(ValueError, match="layout must name each axis by a capital letter: H or Y for rows"):
        checked_layout(layout)


@pytest.mark.parametrize("layout", ["TZYX", "TZCYX", "NBHW"])
def test_two_axes_of_images_are_refused(layout):
    image = np.zeros((2,) * len(layout), np.uint8)
    with pytest.raises(ValueError, match=r"one image axis, not 2 .*one axis at a time, or reshape"):
        restore_tiled(image, twice, layout=layout)


def test_a_layout_of_other_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"3 dimensions of layout 'ZYX', not shape \(20, 20\)"):
        restore_tiled(np.zeros((20, 20), np.uint8), twice, layout="ZYX")


@pytest.mark.parametrize(
    ("layout", "shape", "want"),
    [
        ("ZYX", (2, 12, 9), (2, 12, 9, 3)),
        ("YX", (12, 9), (12, 9, 3)),
        ("XYZ", (9, 12, 2), (9, 12, 2, 3)),
    ],
)
def test_results_with_channels_get_an_axis_for_them(layout, shape, want):
    model = conv(1, 3)
    assert restore_tiled(noise(shape), model, layout=layout).shape == want
    tensor = restore_tiled(torch.from_numpy(noise(shape)), model, layout=layout)
    rows = min(layout.index("Y"), layout.index("X"))
    assert tensor.shape == (*shape[:rows], 3, *shape[rows:])


# ---- what is usual, and what the model decides -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        (30, 40, 1),
        (30, 40, 4),
        (30, 40, 13),
        (2, 30, 40, 3),
        (2, 30, 40, 13),
        (1, 1, 1),
        (3, 3, 3),
        (1, 5, 4),
        (9, 2, 2),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_the_usual_order_stands_where_it_is_plausible(shape, first):
    """Whatever the model seems to take: what its first convolution says may be wrong."""
    image = noise(shape) | 1  # nothing is hidden
    if first:
        image = torch.from_numpy(np.moveaxis(image, -1, -3).copy())
    for model in (lambda x: x * 1, Unshuffled()):
        np.testing.assert_array_equal(restore_tiled(image, model), image)


class Unshuffled(nn.Module):
    """The first convolution, which is never used, takes 5 channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 1)

    def forward(self, x):
        return x * 1


DOUBTFUL = [(3, 40, 50), (13, 40, 50), (16, 80, 90), (6, 30, 30), (1, 3, 40, 50), (2, 13, 40, 50), (2, 30, 30, 30)]


@pytest.mark.parametrize("shape", DOUBTFUL)
def test_doubtful_arrays_are_refused_before_any_work(shape):
    calls = []

    def model(x):
        calls.append(x)
        return x * 1

    image = np.zeros(shape, np.uint8)
    words = (
        rf"of shape \({', '.join(map(str, shape))}\) would have {shape[-1]} channels in layout .*pass layout='N?CHW'"
    )
    for run in (
        lambda: restore_tiled(image, model),
        lambda: iter_bands(image, model),
        lambda: verify(image, model),
        lambda: restore_to("out.npy", image, model),
        lambda: testing.assert_exact(image, model),
        lambda: plan_tiles(shape),
        lambda: metrics.ssim(image, image),
        lambda: metrics.largest_difference(image, image),
        lambda: metrics.seam_score(image, ([5], [])),
        lambda: metrics.heatmap(image, image),
        lambda: metrics.compare(image, image),
    ):
        with pytest.raises(ValueError, match=words):
            run()
    assert not calls
    layout = "CHW"[-len(shape) :] if len(shape) == 3 else "NCHW"
    assert restore_tiled(image, model, layout=layout, tile_size=64).shape == shape


@pytest.mark.parametrize("shape", [(40, 50, 3), (2, 40, 50, 3), (30, 30, 30), (1, 40, 50, 13)])
def test_doubtful_tensors_are_refused(shape):
    with pytest.raises(ValueError, match=f"would have {shape[-3]} channels in layout 'N?CHW'; pass layout='N?HWC'"):
        restore_tiled(torch.zeros(shape), lambda x: x * 1)


@pytest.mark.parametrize(
    ("image", "takes", "layout"),
    [
        (np.zeros((1, 3, 40, 50), np.uint8), 3, "NCHW"),
        (np.zeros((2, 4, 40, 50), np.uint8), 3, "NCHW"),  # RGBA
        (np.zeros((13, 40, 50), np.uint8), 13, "CHW"),
        (np.zeros((2, 13, 40, 50), np.uint8), 13, "NCHW"),
        (np.zeros((6, 40, 50), np.uint16), 1, "NHW"),
        (np.zeros((6, 40, 50), np.uint16), 3, "NHW"),  # grey pictures for a colour model
        (np.zeros((30, 30, 30), np.uint8), 1, "NHW"),
        (np.zeros((16, 40, 50), np.uint8), 50, "HWC"),
        (torch.zeros(2, 40, 50, 3), 3, "NHWC"),
        (torch.zeros(2, 40, 50, 12), 12, "NHWC"),
        (torch.zeros(60, 40, 50), 1, "NHW"),
        (torch.zeros(50, 40, 13), 13, "HWC"),
    ],
)
def test_the_model_decides(image, takes, layout):
    model = conv(takes)
    want = restore_tiled(image, model, layout=layout, **TILES)

    def wrapped(x):
        return model(x) + 0

    for known in (model, wrapped):
        got = restore_tiled(image, known, **TILES)
        assert got.shape == want.shape == tuple(image.shape)
        assert (got == want).all()
        assert channels_of(known) == takes


@pytest.mark.parametrize(("shape", "takes"), [((3, 40, 50), 3), ((4, 40, 50), 1), ((3, 40, 50), 7), ((6, 40, 50), 9)])
def test_what_the_model_does_not_decide_is_refused(shape, takes):
    with pytest.raises(ValueError, match=f"that the model takes {takes} does not decide .*pass layout='CHW'"):
        restore_tiled(np.zeros(shape, np.uint8), conv(takes))


class WithNoiseMap(nn.Module):
    """Takes a channel less than its first convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.cat([x, torch.full_like(x[:, :1], 0.1)], 1))


@pytest.mark.parametrize("takes", [1, 3])
def test_what_the_model_only_seemed_to_take_does_not_decide(place, takes):
    """Two slices of a volume are no grey image with alpha, four none in colour."""
    model, volume = WithNoiseMap(takes).eval(), noise((takes + 1, 40, 50))

    def wrapped(x):
        return model(x)

    for given in (model, wrapped):
        for run in (
            lambda given: restore_tiled(volume, given),
            lambda given: restore_tiled(volume, given, engine="torch"),
            lambda given: restore_tiled(volume, given, tile_size="auto"),
            lambda given: list(iter_bands(volume, given)),
            lambda given: restore_to("out.npy", volume, given),
            lambda given: verify(volume, given),
        ):
            with pytest.raises(ValueError, match=rf"that the model takes {takes} does not decide .*layout='CHW'"):
                run(given)
        assert restore_tiled(volume, given, layout="ZYX").shape == volume.shape
        restorer = TiledRestorer(given)
        restorer(volume.transpose(1, 2, 0).copy())
        with pytest.raises(ValueError, match="does not decide"):  # also where the first image taught all
            restorer(volume)


def test_what_inspection_found_decides():
    def model(x):
        assert x.shape[1] == 13
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1)

    image = noise((13, 40, 50))
    with pytest.raises(ValueError, match="pass layout="):
        restore_tiled(image, model)
    from halotile.inspection import known

    known.remember(model, inspect_model(conv(13)))
    np.testing.assert_array_equal(restore_tiled(image, model), restore_tiled(image, model, layout="CHW"))


def test_the_same_everywhere():
    """verify, error_curve, halotile.testing, bands and halo="auto" see the axes that restore_tiled sees."""
    model, stack = seeded(lambda: Chain(2, channels=1)), noise((5, 60, 70), "uint16")
    want = np.stack([restore_tiled(image, model, **TILES) for image in stack])
    result = restore_tiled(stack, model, verify=2, **TILES)
    np.testing.assert_array_equal(result, want)
    np.testing.assert_array_equal(restore_tiled(stack, model, tile_size=16, halo="auto", phase=None), want)
    assert verify(stack, model, result, **TILES).seamless(0.5)
    assert error_curve(stack, model, halos=(2,)).largest[0] < 1
    assert testing.assert_exact(stack, model, **TILES).windows == len(stack)
    tensor = torch.from_numpy(stack[:, :, :, None].astype(np.float32) / 65535).expand(-1, -1, -1, 3)
    colour = seeded(lambda: Chain(2))
    rows = [rows for _, rows in iter_bands(tensor[:1], colour, **TILES)]
    assert torch.equal(torch.cat(rows, 1), restore_tiled(tensor[:1], colour, layout="NHWC", **TILES))


def test_metrics_take_layouts():
    a, b = noise((3, 40, 50)), noise((3, 40, 50), seed=1)
    last = [image.transpose(1, 2, 0) for image in (a, b)]
    assert metrics.largest_difference(a, b, layout="CYX") == metrics.largest_difference(*last)
    assert metrics.seam_score(a, ([20], [25]), layout="CHW") == metrics.seam_score(last[0], ([20], [25]))
    assert metrics.psnr(a, b) == metrics.psnr(*last) and metrics.mae(a, b) == metrics.mae(*last)
    assert metrics.compare(a, b, layout="CHW") == metrics.compare(*last)
    np.testing.assert_array_equal(metrics.heatmap(a, b, layout="CHW")[0], metrics.heatmap(*last)[0])


# ---- from file to file -----------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def zarr_of(image, name="in.zarr", chunks=None):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(
        store=name, shape=image.shape, dtype=image.dtype, chunks=chunks or tuple(min(7, side) for side in image.shape)
    )
    array[...] = image
    return array


def saved(image, name="in.npy"):
    np.save(name, image)
    return name


def foreign(image):
    saved(image.astype(image.dtype.newbyteorder()), "foreign.npy")
    return np.load("foreign.npy", mmap_mode="r")


def content(path):
    if path.endswith(".npy"):
        return np.load(path)
    return pytest.importorskip("zarr").open_array(path, mode="r")[:]


@pytest.mark.parametrize(
    "source", [zarr_of, saved, foreign, lambda image: image], ids=["zarr", "npy", "foreign", "array"]
)
@pytest.mark.parametrize(
    "axes", ["HWC", "CHW", "HCW", "WH", "NHW", "NCHW", "CNHW", "NHWC", "HNW", "WCHN", "NWH", "NHCW"]
)
def test_every_order_of_axes_is_read_by_rows(place, source, axes):
    image = noise([{"N": 3, "C": 3, "H": 40, "W": 53}[axis] for axis in axes], "uint16")
    want = restore_tiled(image, twice, layout=axes, **TILES)
    given = source(image)
    if not isinstance(given, str):
        np.testing.assert_array_equal(restore_tiled(given, twice, layout=axes, **TILES), want)
        np.testing.assert_array_equal(restore_tiled(given, nn.Identity(), layout=axes, engine="torch", **TILES), image)
    restore_to("out.npy", given, twice, layout=axes, **TILES)
    np.testing.assert_array_equal(content("out.npy"), want.transpose([axes.index(a) for a in "NHWC" if a in axes]))


@pytest.mark.parametrize("sink", ["npy", "zarr"])
@pytest.mark.parametrize("shape", [(4, 300, 301), (5, 61, 280), (3, 60, 70, 3)])
def test_volumes_as_documented(place, sink, shape):
    """docs/big.md: restore_to("volume.zarr", zarr.open_array("scan.zarr"), model)"""
    zarr = pytest.importorskip("zarr")
    volume, channels = noise(shape, "uint16"), 3 if len(shape) == 4 else 1
    model = seeded(lambda: Chain(2, channels=channels, scale=2))
    zarr_of(volume, "scan.zarr", chunks=(2, 64, 64, *shape[3:]))
    layout = {"layout": "ZYX"} if shape[0] <= 4 and channels == 1 else {}  # or it might be an image of 4 channels
    restore_to(f"volume.{sink}", zarr.open_array("scan.zarr"), model, tile_size=32, halo=2, **layout)
    got = content(f"volume.{sink}")
    want = np.stack([restore_tiled(image, model, tile_size=32, halo=2) for image in volume])
    np.testing.assert_array_equal(got, want)
    if sink == "zarr":
        array = zarr.open_array("volume.zarr", mode="r")
        assert array.metadata.dimension_names == ("image", "y", "x", "channel")[: len(shape)]
        assert array.chunks[:3] == (1, 256, 256)
    with pytest.raises(ValueError, match="PNG holds one"):
        restore_to("volume.png", zarr.open_array("scan.zarr"), model, **layout)


def test_volumes_for_any_channels_need_a_layout(place):
    volume = zarr_of(noise((6, 40, 50)), "scan.zarr")
    with pytest.raises(ValueError, match="pass layout='CHW'"):
        restore_to("volume.npy", volume, twice)
    restore_to("volume.npy", volume, twice, layout="ZYX", **TILES)
    np.testing.assert_array_equal(content("volume.npy"), volume[:].repeat(2, 1).repeat(2, 2))
    one = zarr_of(noise((1, 40, 50)), "one.zarr")
    restore_to("volume.npy", one, twice, layout="ZYX", **TILES)
    assert content("volume.npy").shape == (1, 80, 100)


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_formats_of_one_image_refuse_several(place, suffix):
    pytest.importorskip("pyvips")
    with pytest.raises(ValueError, match=r"path must be that of a \.npy file or a \.zarr array for 2 images, not 'out"):
        restore_to(f"out.{suffix}", np.zeros((2, 40, 50, 3), np.uint8), twice)


def test_a_volume_is_read_an_image_at_a_time(place, monkeypatch):
    """No more rows are held than one image's windows need, and each is read once, from the top."""
    from halotile.files.npy import NpySource
    from halotile.images.source import HeldRows

    reads, held = [], []
    read, holding = NpySource.read_at, HeldRows.holding
    monkeypatch.setattr(
        NpySource, "read_at", lambda self, at, values: reads.append((at, values.nbytes)) or read(self, at, values)
    )
    monkeypatch.setattr(HeldRows, "holding", lambda self, *rows: held.append(len(self.buffer)) or holding(self, *rows))
    path = saved(noise((3, 400, 50)))
    restore_to("out.npy", path, twice, layout="ZYX", **TILES)
    at = 128
    for start, size in reads:
        assert start == at
        at += size
    assert at == 128 + 3 * 400 * 50
    assert max(held) < 60


def test_the_axes_of_image_files_are_certain(place):
    """However narrow they are, and whatever the model seems to take."""
    pytest.importorskip("pyvips")
    from halotile.files import picture as files

    image = noise((2, 40, 4)) | 1
    files.write_image("in.png", image)
    restore_to("out.npy", "in.png", twice, halo=1)
    np.testing.assert_array_equal(content("out.npy"), image.repeat(2, 0).repeat(2, 1))
    restore_to("out.npy", "in.png", twice, layout="YXS", halo=1)
    with pytest.raises(ValueError, match="layout must be 'HWC' for this image file, not 'CYX'"):
        restore_to("out.npy", "in.png", twice, layout="CYX")
