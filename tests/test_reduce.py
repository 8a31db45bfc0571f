# SPDX-License-Identifier: MIT
"""reduce=: labels are those of the whole image's channels, and these channels are never held whole."""

import contextlib
import tracemalloc

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import (  # noqa: E402
    ModelOutputError,
    TiledRestorer,
    error_curve,
    iter_bands,
    restore_tiled,
    restore_to,
    verify,
)
from halotile.cli import main  # noqa: E402
from halotile.testing import assert_exact  # noqa: E402

IMAGE = np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8)
ENGINES = ["host", "torch"]


class Classes(torch.nn.Module):
    """So many classes of whole numbers, in which every sum is exact: labels never depend on rounding."""

    def __init__(self, classes=20, channels=3, scale=1):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.up = torch.nn.Upsample(scale_factor=scale, mode="nearest")
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(*pair, 3, padding=1) for pair in ((channels, 6), (6, classes)))
        for one in self.parameters():
            one.data = torch.randint(-3, 4, one.shape, generator=generator).float()

    def forward(self, x):
        first, second = self.convs
        return second(torch.relu(first(self.up(torch.round(x * 255)))))


def whole(model, image=IMAGE):
    tensor = torch.from_numpy(np.atleast_3d(image).transpose(2, 0, 1).astype(np.float32) / 255)[None]
    with torch.inference_mode():
        return model(tensor)[0].numpy()


OPTIONS = {"halo": 2, "boundary": "native", "schedule": "tiles", "reduce": "argmax"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("tile", [24, (16, 90), 200])
def test_labels_are_those_of_the_whole_image(engine, scale, tile):
    model = Classes(scale=scale)
    want = whole(model).argmax(0)
    assert len(np.unique(want)) > 3
    got = restore_tiled(IMAGE, model, engine=engine, tile_size=tile, **OPTIONS)
    assert got.dtype == np.uint8 and got.shape == want.shape
    np.testing.assert_array_equal(got, want)
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    got = restore_tiled(tensor, model, engine=engine, tile_size=tile, **OPTIONS)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_are_those_of_the_blended_result(blend, dtype):
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 7, 7, padding=3).to(dtype)
    options = {"halo": 1, "tile_size": 32, "overlap": 8, "blend": blend, "batch_size": 3, "schedule": "tiles"}
    logits = restore_tiled(IMAGE, model, out_dtype="float32", **options)
    got = restore_tiled(IMAGE, model, reduce="argmax", **options)
    np.testing.assert_array_equal(got, logits.argmax(2))


@pytest.mark.parametrize("columns", [None, 40])
def test_streams(columns, tmp_path):
    model = Classes()
    options = OPTIONS | {"schedule": "stream", "halo": "exact", "tile_size": columns or 512}
    restorer = TiledRestorer(model, **options)
    np.testing.assert_array_equal(restorer(IMAGE), whole(model).argmax(0))
    assert restorer.last_run.stream is not None
    restore_to(tmp_path / "a.npy", IMAGE, restorer)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole(model).argmax(0))


def test_bands_images_and_grey():
    model = Classes()
    want = whole(model).argmax(0)
    bands = list(iter_bands(IMAGE, model, tile_size=24, **OPTIONS))
    assert len(bands) > 2 and all(rows.ndim == 2 for _, rows in bands)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in bands]), want)
    stack = np.stack([IMAGE, IMAGE[::-1]])
    got = restore_tiled(stack, model, tile_size=24, **OPTIONS)
    np.testing.assert_array_equal(got, np.stack([want, whole(model, IMAGE[::-1]).argmax(0)]))
    grey = Classes(channels=1)
    got = restore_tiled(IMAGE[..., 0], grey, tile_size=24, **OPTIONS)
    np.testing.assert_array_equal(got, whole(grey, IMAGE[..., 0]).argmax(0))
    got = restore_tiled(IMAGE.transpose(2, 1, 0), model, layout="CWH", tile_size=24, **OPTIONS)
    np.testing.assert_array_equal(got, want.T)


def test_three_classes_of_a_grey_image_are_no_colours():
    model = Classes(classes=3)
    want = whole(model, np.repeat(IMAGE[..., :1], 3, 2)).argmax(0)
    np.testing.assert_array_equal(restore_tiled(IMAGE[..., 0], model, tile_size=24, **OPTIONS), want)
    np.testing.assert_array_equal(restore_tiled(IMAGE[..., :1], model, tile_size=24, **OPTIONS), want)


@pytest.mark.parametrize("suffix", ["npy", "png", "tif", "zarr"])
def test_files(suffix, tmp_path):
    pytest.importorskip({"npy": "numpy", "zarr": "zarr"}.get(suffix, "pyvips"))
    from halotile.files.pairs import read_array

    model, path = Classes(), tmp_path / f"a.{suffix}"
    restore_to(path, IMAGE, model, tile_size=24, **OPTIONS)
    if suffix == "zarr":
        import zarr

        got = zarr.open_array(path)[:]
    else:
        got = np.squeeze(read_array(path))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, whole(model).argmax(0))


def test_resumed(tmp_path):
    model, path, seen = Classes(), tmp_path / "a.npy", []

    class Stopped(Exception):
        pass

    def progress(done, total):
        seen.append(done)
        if done > total // 2 and len(seen) < 12:
            raise Stopped

    options = OPTIONS | {"tile_size": 24}
    with pytest.raises(Stopped):
        restore_to(path, IMAGE, model, resume=True, progress=progress, **options)
    with pytest.raises(ValueError, match="reduce is None and was argmax"):
        restore_to(path, IMAGE, model, resume=True, **(options | {"reduce": None}))
    restore_to(path, IMAGE, model, resume=True, **options)
    np.testing.assert_array_equal(np.load(path), whole(model).argmax(0))


def test_out_of_memory_goes_on_with_smaller_tiles():
    model, calls = Classes(), []

    def tight(windows):
        calls.append(windows.shape)
        if len(calls) > 3 and windows.shape[2] > 24:
            raise MemoryError
        with torch.inference_mode():
            return model(torch.as_tensor(windows))

    got = restore_tiled(IMAGE, tight, tile_size=32, phase=1, scale=1, **OPTIONS)
    assert len({shape[2:] for shape in calls}) > 1
    np.testing.assert_array_equal(got, whole(model).argmax(0))


def test_many_classes_and_dtypes():
    model = Classes(classes=300)
    want = whole(model).argmax(0)
    assert want.max() > 255
    got = restore_tiled(IMAGE, model, tile_size=40, **OPTIONS)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, want)
    out = np.zeros(want.shape, np.float32)
    assert restore_tiled(IMAGE, model, tile_size=40, out=out, **OPTIONS) is out
    np.testing.assert_array_equal(out, want)
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    for engine in ENGINES:
        got = restore_tiled(tensor, model, tile_size=40, engine=engine, **OPTIONS)
        assert got.dtype == torch.uint16
        np.testing.assert_array_equal(got.numpy(), want)
    with pytest.raises(ValueError, match="holds labels from 0 to 299, not uint8"):
        restore_tiled(IMAGE, model, out_dtype="uint8", **OPTIONS)


# ---- callables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_of_rows(engine):
    model = Classes(classes=4)
    logits = whole(model)
    options = OPTIONS | {"tile_size": 24, "engine": engine}
    seen = []

    def two_best(rows):
        seen.append(type(rows))
        return np.sort(np.asarray(rows), 0)[-2:]

    got = restore_tiled(IMAGE, model, **options | {"reduce": two_best})
    assert got.dtype == np.float32 and set(seen) == {np.ndarray}
    np.testing.assert_array_equal(got, np.sort(logits, 0)[-2:].transpose(1, 2, 0))
    mask = restore_tiled(IMAGE, model, **options | {"reduce": lambda rows: rows[0] > rows[1]})
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, logits[0] > logits[1])
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    best = restore_tiled(tensor, model, **options | {"reduce": lambda rows: rows.amax(0)})
    assert best.shape == (70, 90)
    np.testing.assert_array_equal(best.numpy(), logits.max(0))
    labels = restore_tiled(tensor, model, **options | {"reduce": lambda rows: rows.argmax(0), "out_dtype": "uint8"})
    np.testing.assert_array_equal(labels.numpy(), logits.argmax(0))
    one = Classes(classes=1)
    foreground = restore_tiled(IMAGE, one, **options | {"reduce": lambda rows: (rows > 0)[0]})
    np.testing.assert_array_equal(foreground, whole(one)[0] > 0)


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (lambda rows: rows.sum(), {}, r"not shape \(\) of \(20, 2, 3\)"),
        (lambda rows: 3, {}, r"not int of \(20, 2, 3\)"),
        (lambda rows: rows[:, :1], {}, r"not shape \(20, 1, 3\)"),
        (lambda rows: rows.argmax(0), {}, "not int64, which it makes: pass the one to hold it in"),
        (lambda rows: rows[0], {"out_dtype": "uint8"}, "not uint8: round in reduce"),
        (lambda rows: rows.argmax(0) - 1, {"out_dtype": "uint8"}, "made values from -1 to .*uint8 does not hold"),
        (lambda rows: rows[: 1 + (rows.shape[1] > 9)], {}, r"made shape .*not \(1, .* as before"),
        ("max", {}, "'argmax' or a callable, not 'max'"),
    ],
)
def test_functions_that_do_not_do(function, options, said):
    with pytest.raises(ValueError, match=said):
        restore_tiled(IMAGE, Classes(), tile_size=24, **OPTIONS | options | {"reduce": function})


# ---- what does not go together ---------------------------------------------------------------------------------------


def test_alpha_and_colours_by_themselves():
    rgba = np.dstack([IMAGE, IMAGE[..., :1]])
    with pytest.raises(ModelOutputError, match="alpha does not belong; pass the image without alpha, or alpha='chan"):
        restore_tiled(rgba, Classes(classes=3), **OPTIONS)
    model = Classes(channels=4)
    got = restore_tiled(rgba, model, alpha="channel", tile_size=24, **OPTIONS)
    np.testing.assert_array_equal(got, whole(model, rgba).argmax(0))
    with pytest.raises(ModelOutputError, match="takes each colour by itself"):
        restore_tiled(IMAGE, Classes(classes=1, channels=1), **OPTIONS | {"reduce": lambda rows: rows[0] > 0})
    with pytest.raises(ValueError, match="reduce='argmax' needs a model that makes several channels"):
        restore_tiled(IMAGE[..., 0], Classes(classes=1, channels=1), **OPTIONS)


def test_values_without_data():
    image, model = IMAGE.copy(), Classes()
    image[10:20, 5:9] = 255
    got = restore_tiled(image, model, nodata=255, **OPTIONS)
    missing = (image == 255).any(2)
    assert (got[missing] == 255).all() and (got[~missing] < 20).all()
    with pytest.raises(ValueError, match="nodata must be no label, from 0 to 19"):
        restore_tiled(image, model, nodata=3, **OPTIONS)
    with pytest.raises(ValueError, match="out_dtype must be one that can hold nodata=-1"):
        restore_tiled(image.astype(np.float32), model, nodata=-1, **OPTIONS)


def test_what_compares_results_refuses(tmp_path):
    model = Classes()
    with pytest.raises(ValueError, match="verify=2 does not go with reduce="):
        restore_tiled(IMAGE, model, verify=2, **OPTIONS)
    for compare in (verify, error_curve, assert_exact):
        options = OPTIONS if compare is not error_curve else {"reduce": "argmax"}
        with pytest.raises((ValueError, TypeError), match="reduce must"):
            compare(IMAGE, model, **options)
    with pytest.raises(ValueError, match="background and size must be None with reduce"):
        restore_to(tmp_path / "a.png", IMAGE, model, size=(30, 30), **OPTIONS)
    with pytest.raises(ValueError, match="changes no value, such as PNG or TIFF, not JPEG"):
        restore_to(tmp_path / "a.jpg", IMAGE, model, **OPTIONS)


# ---- memory and command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["array", "bands", "file"])
def test_the_channels_are_never_held_whole(target, tmp_path):
    image = np.zeros((2400, 200, 1), np.uint8)
    classes = 64
    ramp = np.arange(classes, dtype=np.float32)[None, :, None, None]
    whole_bytes = image.size * classes * 4

    def model(windows):
        return windows + ramp

    options = {"tile_size": 48, "halo": 0, "phase": 1, "scale": 1, "reduce": "argmax", "keep_heap": False}
    tracemalloc.start()
    try:
        if target == "array":
            assert (restore_tiled(image, model, **options) == classes - 1).all()
        elif target == "bands":
            assert sum(len(rows) for _, rows in iter_bands(image, model, **options)) == len(image)
        else:
            restore_to(tmp_path / "a.npy", image, model, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    band = 48 * 200 * classes * 4
    assert peak < 6 * band < whole_bytes / 4


def test_limits_of_memory_count_labels():
    image = np.zeros((1500, 1500, 3), np.uint8)
    model = Classes(classes=60)
    limit = 200 << 20  # the logits alone are 540 MB
    restorer = TiledRestorer(model, memory_limit=limit, tile_size="auto", **OPTIONS)
    assert restorer(image).shape == (1500, 1500)
    assert max(restorer.last_run.tuning.tile_size) >= 128


def test_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyvips")
    from halotile.files.picture import read_image, write_image

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "classifier_of_pixels.py").write_text("from tests.test_reduce import Classes\nnet = Classes()\n")
    write_image("a.png", IMAGE)
    arguments = ["restore", "a.png", "-m", "classifier_of_pixels:net", "--halo", "2", "--boundary", "native"]
    arguments += ["--tile", "24", "--reduce", "argmax", "--quiet"]
    assert main([*arguments, "-o", "labels.png"]) == 0
    np.testing.assert_array_equal(np.squeeze(read_image("labels.png").pixels), whole(Classes()).argmax(0))
    for wrong in (["b.png", "--verify", "2"], ["b.png", "--size", "30x30"], ["b.jpg"]):
        with contextlib.suppress(SystemExit):
            assert main([*arguments, "-o", *wrong]) == 2
    told = capsys.readouterr().err
    for said in ("--verify 2 does not go with --reduce", "--reduce cannot be combined with --size", "not JPEG"):
        assert said in told
