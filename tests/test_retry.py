# SPDX-License-Identifier: MIT
"""on_nonfinite="retry": what half precision made into NaN or infinity has the values of float32, and nothing else."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from halotile import NonFiniteError, TiledRestorer, TileError, plan_tiles, restore_tiled, restore_to  # noqa: E402
from halotile.cli import main  # noqa: E402
from halotile.run import devices  # noqa: E402

from .networks import Delicate, seeded  # noqa: E402

TILES = {"tile_size": 16, "halo": 2, "overlap": 5, "boundary": "native", "out_dtype": "float32"}
STREAM = {"schedule": "stream", "halo": 2, "phase": 1, "boundary": "native", "out_dtype": "float32"}
BRIGHT = (23, 37)  # the one pixel at which half precision fails


class Poisoned(nn.Module):
    """NaN where the input is white, in every dtype."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.where(x == 1, torch.full_like(x, torch.nan), x * self.gain)


@pytest.fixture
def image(rng):
    image = rng.random((48, 64, 3), np.float32) * np.float32(0.1)
    image[BRIGHT] = 1
    return image


def delicate():
    return seeded(Delicate)


def mixed(image, halves, floats, options):
    """Result, tile by tile: of float32 where the kept part of the window is not finite in half precision."""
    plan = plan_tiles(
        image.shape, phase=1, scale=1, **{k: options[k] for k in ("tile_size", "halo", "boundary")}, overlap=0
    )
    want, count = halves.copy(), 0
    for tile in plan:
        box = tile.keep
        where = slice(box.y, box.y_stop), slice(box.x, box.x_stop)
        if not np.isfinite(halves[where]).all():
            want[where] = floats[where]
            count += 1
    return want, count


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("engine", ["host", "torch"])
def test_only_windows_that_fail_are_made_again(image, engine, dtype, batch):
    options = TILES | {"overlap": 0, "boundary": "reflect", "engine": engine, "batch_size": batch}
    halves = restore_tiled(image, delicate(), dtype=dtype, on_nonfinite="ignore", **options)
    floats = restore_tiled(image, delicate(), dtype="float32", **options)
    want, count = mixed(image, halves, floats, options)
    assert count == 1 and not np.isfinite(halves).all()
    with pytest.raises(NonFiniteError):
        restore_tiled(image, delicate(), dtype=dtype, **options)
    restorer = TiledRestorer(delicate(), dtype=dtype, on_nonfinite="retry", **options)
    np.testing.assert_array_equal(restorer(image), want)
    assert restorer.last_run.retried == 1
    assert str(restorer.last_run).endswith(
        "1 window was made again in float32, because half precision made NaN or infinity"
    )
    np.testing.assert_array_equal(restorer(image), want)
    assert restorer.last_run.retried == 1  # of each run by itself


@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize("more", [{"shift_average": 3}, {"match_low": 64}], ids=["grids", "low band"])
def test_models_that_no_halo_makes_exact(image, engine, more):
    options = {"tile_size": 32, "halo": 2, "out_dtype": "float32", "engine": engine, **more}
    with pytest.raises(NonFiniteError):
        restore_tiled(image, delicate(), dtype="float16", **options)
    restorer = TiledRestorer(delicate(), dtype="float16", on_nonfinite="retry", **options)
    got = restorer(image)
    assert restorer.last_run.retried >= 1
    np.testing.assert_allclose(got, restore_tiled(image, delicate(), **options), rtol=0, atol=3e-3)


def test_a_module_in_half_precision_is_converted(image):
    got = restore_tiled(image, delicate().bfloat16(), on_nonfinite="retry", **TILES)
    assert np.isfinite(got).all()
    want = restore_tiled(image, delicate().bfloat16().float(), **TILES)
    assert abs(got - want).max() < 0.02


def test_overlaps_and_several_images(image):
    options = TILES | {"dtype": "float16", "blend": "cosine", "batch_size": 3}
    several = np.stack([image, image[::-1], image * 0, image[:, ::-1]])
    restorer = TiledRestorer(delicate(), on_nonfinite="retry", **options)
    got = restorer(several)
    for one, alone in zip(got, several, strict=True):
        np.testing.assert_allclose(one, restore_tiled(alone, delicate(), on_nonfinite="retry", **options), atol=2e-3)
    assert np.isfinite(got).all()
    assert restorer.last_run.retried >= 3
    together = TILES | {"tile_size": 500, "dtype": "float16", "batch_size": 3}
    restorer = TiledRestorer(delicate(), on_nonfinite="retry", **together)
    assert np.isfinite(restorer(several)).all()
    assert restorer.last_run.retried == 3


def test_several_devices(image):
    options = TILES | {"dtype": "float16"}
    want = restore_tiled(image, delicate(), on_nonfinite="retry", **options)
    assert devices.SLOTS > 1
    got = restore_tiled(image, delicate(), on_nonfinite="retry", device=["cpu", "cpu"], **options)
    np.testing.assert_array_equal(got, want)


def test_float32_is_not_looked_at(image, monkeypatch):
    from halotile.run import again

    monkeypatch.setattr(again, "are_finite", lambda *_: pytest.fail("looked at"))
    restorer = TiledRestorer(delicate(), on_nonfinite="retry", **TILES)
    assert np.isfinite(restorer(image)).all()
    assert restorer.last_run.retried == 0
    assert "again" not in str(restorer.last_run)


@pytest.mark.parametrize("options", [TILES, STREAM], ids=["tiles", "stream"])
def test_autocast(image, options):
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(NonFiniteError):
            restore_tiled(image, delicate(), **options)
        restorer = TiledRestorer(delicate(), on_nonfinite="retry", **options)
        got = restorer(image)
    assert restorer.last_run.retried
    want = restore_tiled(image, delicate(), **options)
    place = BRIGHT if options is TILES else BRIGHT[:1]  # windows, or rows, are float32's as they are
    np.testing.assert_allclose(got[place], want[place], atol=1e-6)
    np.testing.assert_allclose(got, want, atol=0.02)


# ---- what float32 does not cure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [TILES, TILES | {"engine": "torch"}, STREAM], ids=["host", "torch", "stream"])
def test_what_is_not_finite_in_float32_raises_with_its_place(image, options):
    y, x = BRIGHT
    text = rf"first at output row {y}, column {x}, channel 0; also in float32"
    with pytest.raises(NonFiniteError, match=text) as caught:
        restore_tiled(image, Poisoned(), dtype="float16", on_nonfinite="retry", **options)
    with pytest.raises(NonFiniteError) as plain:
        restore_tiled(image, Poisoned(), dtype="float16", **options)
    top, left, height, width = caught.value.box
    assert top <= y < top + height and left <= x < left + width
    assert plain.value.rows_done <= y or "engine" in options  # a device tells at the end
    assert caught.value.rows_done <= y


def test_a_model_that_raises_in_float32(image):
    class Halves(Delicate):
        def forward(self, x):
            if x.dtype == torch.float32:
                raise RuntimeError("no kernel")
            return super().forward(x)

    with pytest.raises(TileError, match="the model raised RuntimeError: no kernel; it was made again in float32"):
        restore_tiled(image, seeded(Halves), dtype="float16", on_nonfinite="retry", **TILES)


def test_models_without_float32(image):
    inner = delicate().half()
    with pytest.raises(
        ValueError, match="on_nonfinite must not be 'retry' for a function that runs modules in float16"
    ):
        restore_tiled(image, lambda x: inner(x), on_nonfinite="retry", **TILES)

    def on_arrays(x):
        return np.where(x == 1, np.inf, x).astype(np.float16)

    with pytest.raises(NonFiniteError, match="it computes in half precision by itself"):
        restore_tiled(image, on_arrays, on_nonfinite="retry", **TILES)


def test_functions(image):
    def on_arrays(x):
        step = (x + x.dtype.type(2.0**-12)) - x
        with np.errstate(invalid="ignore"):
            return x * (step / step)

    def on_tensors(x):
        step = (x + 2.0**-12) - x
        return x * (step / step)

    for call, kind in ((on_arrays, image), (on_tensors, torch.from_numpy(image))):
        restorer = TiledRestorer(call, dtype="float16", on_nonfinite="retry", layout="HWC", **TILES)
        got = restorer(kind)
        np.testing.assert_allclose(np.asarray(got), image, atol=1e-3)
        assert got[BRIGHT].tolist() == [1, 1, 1]
        assert restorer.last_run.retried == 4  # a pixel in the overlaps of two rows and two columns of tiles


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_of_a_stream(image, dtype, engine):
    options = STREAM | {"dtype": dtype, "engine": engine}
    halves = restore_tiled(image, delicate(), on_nonfinite="ignore", **options)
    floats = restore_tiled(image, delicate(), **STREAM | {"engine": engine})
    restorer = TiledRestorer(delicate(), on_nonfinite="retry", **options)
    got = restorer(image)
    assert restorer.last_run.retried == 1 and "strip was made again" in str(restorer.last_run)
    bad = ~np.isfinite(halves).all((1, 2))
    assert np.flatnonzero(bad).tolist() == [BRIGHT[0]]
    np.testing.assert_array_equal(got[~bad], halves[~bad])
    np.testing.assert_allclose(got[bad], floats[bad], atol=1e-6)


def test_a_stream_with_statistics_of_the_whole_image(image):
    class Pooled(Delicate):
        def forward(self, x):
            return super().forward(x) * (1 + x.mean((2, 3), keepdim=True))

    options = STREAM | {"global_stats": "exact"}
    got = restore_tiled(image, seeded(Pooled), dtype="bfloat16", on_nonfinite="retry", **options)
    want = restore_tiled(image, seeded(Pooled), **options)
    np.testing.assert_allclose(got[BRIGHT[0]], want[BRIGHT[0]], atol=1e-5)
    np.testing.assert_allclose(got, want, atol=0.02)


def test_statistics_held_in_windows(image):
    class Pooled(Delicate):
        def forward(self, x):
            return super().forward(x) * (1 + x.mean((2, 3), keepdim=True))

    options = TILES | {"global_stats": "exact", "dtype": "bfloat16"}
    restorer = TiledRestorer(seeded(Pooled), on_nonfinite="retry", **options)
    got = restorer(np.stack([image, image[::-1] / 2 + (image[::-1] == 1) / 2]))
    want = restore_tiled(
        np.stack([image, image[::-1] / 2 + (image[::-1] == 1) / 2]), seeded(Pooled), **TILES, global_stats="exact"
    )
    assert restorer.last_run.retried
    np.testing.assert_allclose(got, want, atol=0.03)


def test_a_stream_that_reads_a_file(image, tmp_path):
    path = str(tmp_path / "in.png")
    from halotile.files import picture

    picture.write_image(path, np.round(image * 255).astype(np.uint8))
    stored = np.round(image * 255).astype(np.uint8)
    options = STREAM | {"dtype": "bfloat16", "on_nonfinite": "retry"}
    restore_to(tmp_path / "out.npy", path, delicate(), **options)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), restore_tiled(stored, delicate(), **options))


# ---- what else there is ----------------------------------------------------------------------------------------------


def test_the_emulated_device(fake_mps, image):
    from .fake_mps.attach import DEVICE

    options = TILES | {"dtype": "float16", "memory_format": "contiguous"}
    want = restore_tiled(image, delicate(), on_nonfinite="retry", engine="torch", device="cpu", **options)
    for engine in ("mps", "torch"):
        restorer = TiledRestorer(delicate(), on_nonfinite="retry", engine=engine, device=DEVICE, **options)
        fake_mps.reset_counts()
        np.testing.assert_array_equal(restorer(image), want)
        assert restorer.last_run.retried == 4  # a pixel in the overlaps of two rows and two columns of tiles
        with pytest.raises(NonFiniteError, match="row 23, column 37, channel 0; also in float32"):
            restore_tiled(image, Poisoned(), on_nonfinite="retry", engine=engine, device=DEVICE, **options)
    got = restore_tiled(image, delicate(), on_nonfinite="retry", device=DEVICE, dtype="float16", **STREAM)
    assert np.isfinite(got).all()


def test_verified_windows_are_made_again_too(image):
    restorer = TiledRestorer(delicate(), dtype="float16", on_nonfinite="retry", verify=40, **TILES)
    restorer(image)
    assert restorer.last_run.verified.largest < 0.01
    assert restorer.last_run.retried < 5


def test_a_run_that_raised_goes_on_with_retry(image, tmp_path):
    """Rows that were kept raised nothing, so retry would have changed nothing of them."""
    path, options = tmp_path / "out.npy", TILES | {"dtype": "float16"}
    tall = np.concatenate([image[::-1][:20] * 0, image])
    restore_to(tmp_path / "want.npy", tall, delicate(), on_nonfinite="retry", **options)
    with pytest.raises(NonFiniteError):
        restore_to(path, tall, delicate(), resume=True, **options)
    with pytest.raises(ValueError, match="on_nonfinite is 'ignore' and was 'raise'"):
        restore_to(path, tall, delicate(), resume=True, on_nonfinite="ignore", **options)
    restore_to(path, tall, delicate(), resume=True, on_nonfinite="retry", **options)
    assert path.read_bytes() == (tmp_path / "want.npy").read_bytes()


def test_the_command_line(image, tmp_path, monkeypatch, capsys):
    import json

    from halotile.files import picture

    monkeypatch.chdir(tmp_path)
    picture.write_image("in.png", np.round(image * 255).astype(np.uint8))
    (tmp_path / "delicate_models.py").write_text("from tests.test_retry import delicate\nmake = delicate()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["restore", "in.png", "-o", "out.png", "--model", "delicate_models:make", "--dtype", "bfloat16"]
    command += ["--halo", "2", "--tile-size", "16", "--json"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(command) != 0
        capsys.readouterr()
        assert main([*command, "--on-nonfinite", "retry"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["retried"] >= 1
