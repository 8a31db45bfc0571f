# SPDX-License-Identifier: MIT
"""Scales that differ by axis: models that enlarge, or reduce, one axis only or both by other factors."""

import itertools
import json
import pickle
import warnings
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile import (  # noqa: E402
    ModelOutputError,
    TiledRestorer,
    TileError,
    error_curve,
    inspect_model,
    plan_tiles,
    restore_tiled,
    restore_to,
    verify,
)
from halotile.inspection.info import ModelInfo  # noqa: E402
from halotile.inspection.quick import Quick, quick_look  # noqa: E402
from halotile.testing import assert_exact  # noqa: E402

from . import reference  # noqa: E402
from .networks import on_arrays, seeded  # noqa: E402
from .test_engines import assert_same, pixels_of  # noqa: E402

HALF = Fraction(1, 2)
SCALES = [(2, 1), (1, 2), (2, 3), (1, HALF), (HALF, 2), (Fraction(3, 2), 1)]
SIZES = [(61, 83), (40, 121), (33, 32), (9, 70)]
TILES = {"tile_size": 24, "overlap": 4}
WAYS = {
    "module": lambda model: model,
    "wrapped": lambda model: lambda x: model(x) * 1,
    "arrays": lambda model: lambda x: on_arrays(model)(np.asarray(x)),
}


class Axes(nn.Module):
    """Strides of the denominators, transposed convolutions of the numerators: phase is the denominators."""

    def __init__(self, scale, channels=3, width=6):
        super().__init__()
        rows, columns = map(Fraction, scale)
        self.scale, self.phase = (rows, columns), (rows.denominator, columns.denominator)
        up = rows.numerator, columns.numerator
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, tuple(step + 2 for step in self.phase), self.phase, padding=1)
        self.up = nn.ConvTranspose2d(width, channels, up, up)
        self.halo = tuple(step + 3 for step in self.phase)

    def forward(self, x):
        return 0.5 + self.up(torch.relu(self.down(torch.relu(self.head(x)))))


class Cut(nn.Module):
    """Enlarges by whole factors and takes `trim` output pixels (rows, columns) from each end."""

    def __init__(self, scale, trim):
        super().__init__()
        self.mix, self.scale, self.trim = nn.Conv2d(3, 3, 1), scale, trim

    def forward(self, x):
        y = F.interpolate(self.mix(x), scale_factor=tuple(map(float, self.scale)))
        (top, left), (height, width) = self.trim, y.shape[2:]
        if height <= 2 * top or width <= 2 * left:
            raise RuntimeError("the window is too small")
        return y[:, :, top : height - top, left : width - left]


def made(scale, **options):
    return seeded(lambda: Axes(scale, **options))


def floats(size, channels=3):
    return np.random.default_rng(size[0] * 1000 + size[1]).random((*size, channels), np.float32)


def whole(model, image, boundary="reflect"):
    """Whole-image inference by model(image) and F.pad alone, with a halo and a phase for each axis."""
    (height, width), (rows, columns) = image.shape[:2], model.scale
    before = [
        reference.round_up(h, p) if boundary == "reflect" else 0 for h, p in zip(model.halo, model.phase, strict=True)
    ]
    sides = zip(image.shape[:2], before, model.phase, strict=True)
    after = [reference.round_up(side + 2 * lead, step) - side - lead for side, lead, step in sides]
    planes = image.transpose(2, 0, 1)
    padded = np.pad(planes, ((0, 0), (before[0], after[0]), (before[1], after[1])), mode="reflect")
    output = on_arrays(model)(padded[None])[0].transpose(1, 2, 0)
    y, x = int(before[0] * rows), int(before[1] * columns)
    return output[y : y - (-height * rows // 1), x : x - (-width * columns // 1)]


def options_of(model, **options):
    return {"halo": model.halo, "phase": model.phase, **TILES, **options}


def near(got, want, within=2e-6):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=within)


# ---- the result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("scale", SCALES)
def test_equals_the_whole_image(scale, boundary):
    model = made(scale)
    for size, engine in itertools.product(SIZES, ("host", "torch")):
        image = floats(size)
        want = whole(model, image, boundary)
        options = options_of(model, boundary=boundary, engine=engine)
        near(restore_tiled(image, model, **options), want)
        near(restore_tiled(image, model, scale=scale, **options), want)
        near(restore_tiled(image, model, batch_size=3, blend="linear", **options), want)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float64"])
@pytest.mark.parametrize("scale", SCALES)
def test_dtypes_and_engines(scale, dtype):
    model, image = made(scale), pixels_of(dtype, (45, 58, 3))
    host = restore_tiled(image, model, engine="host", **options_of(model))
    assert_same(restore_tiled(image, model, engine="torch", **options_of(model)), host)
    peak = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    want = whole(model, (image / np.float64(peak)).astype(np.float32)) * peak
    if peak > 1:
        want = np.clip(want, 0, peak)
    assert np.abs(host.astype(np.float64) - want).max() <= {"uint8": 0.51, "uint16": 0.6, "float16": 2e-3}.get(
        dtype, 1e-5
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", SCALES)
def test_callables_of_which_nothing_is_known(scale, way):
    model = made(scale)
    for size in SIZES:
        image = floats(size)
        options = {**TILES, "halo": tuple(2 * step + 2 for step in model.phase)}
        restorer = TiledRestorer(WAYS[way](model), phase=model.phase, **options)
        near(restorer(image), whole(model, image))
    loose = restore_tiled(floats((64, 96)), WAYS[way](model), halo=8)
    near(loose, whole(model, floats((64, 96))))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [(2, 1), (1, 3), (2, 3), (4, 2)])
def test_every_loss(scale, way):
    random = np.random.default_rng(scale[0] * 10 + scale[1])
    for trim in ((0, 0), (1, 0), (0, 3), (2, 1), (4, 4), (8, 2), (5, 16), (12, 12), (20, 1)):
        model = seeded(lambda trim=trim: Cut(scale, trim))
        halo = max(-(-lost // by) for lost, by in zip(trim, scale, strict=True)) + int(random.integers(0, 5))
        for size in (tuple(random.integers(8, 61, 2)), (60, 47)):
            image = floats(size)
            planes = torch.from_numpy(image).permute(2, 0, 1)[None]
            with torch.inference_mode():
                want = F.interpolate(model.mix(planes), scale_factor=tuple(map(float, scale)))[0].permute(1, 2, 0)
            try:
                got = restore_tiled(image, WAYS[way](model), halo=halo, tile_size=40, overlap=0)
            except TileError as error:  # the first window is not even as large as what is lost
                assert "the window is too small" in str(error)
                continue
            near(got, want.numpy())


def test_deinterlacing_says_nothing_and_runs_once_more():
    """One small window tells, and no other."""
    shapes = []

    def fields(x):
        shapes.append(tuple(x.shape[2:]))
        return x.repeat(2, axis=2)

    image = floats((300, 200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = restore_tiled(image, fields, halo=4, phase=1)
    np.testing.assert_array_equal(got, image.repeat(2, 0))
    assert len(shapes) == 2 and max(shapes[1]) < 48


def test_models_of_one_size_only():
    def fixed(x):
        if x.shape[2:] != (64, 64):
            raise RuntimeError("64x64 only")
        return x.repeat(2, axis=2)

    image = floats((32, 32))
    np.testing.assert_array_equal(restore_tiled(image, fixed, halo=16, phase=1), image.repeat(2, 0))

    def narrower(x):  # rows as they are, two columns lost: no scale of columns
        return fixed(x)[:, :, ::2, 2:-2]

    with pytest.raises(TileError, match="pass scale="):
        restore_tiled(image, narrower, halo=16, phase=1)
    np.testing.assert_array_equal(restore_tiled(image, narrower, halo=16, phase=1, scale=1), image)


# ---- devices, streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("scale", SCALES)
def test_on_a_device(fake_mps, scale, dtype):
    from .test_device import check_run

    model, image = made(scale), pixels_of(dtype, (60, 71, 3))
    check_run(fake_mps, image, model, scale=scale, **options_of(model, memory_format="contiguous"))


@pytest.mark.parametrize("boundary", ["native", "reflect"])
@pytest.mark.parametrize("scale", SCALES)
def test_streams(scale, boundary):
    model = made(scale)
    for size in ((72, 60), (70, 61), (200, 33)):
        image = floats(size)
        options = {"halo": model.halo, "phase": model.phase, "boundary": boundary}
        restorer = TiledRestorer(model, schedule="stream", **options)
        got = restorer(image)
        assert restorer.last_run.schedule == "stream"
        if all(side % step == 0 for side, step in zip(size, model.phase, strict=True)) or boundary == "reflect":
            near(got, whole(model, image, boundary), 2e-5)


def test_schedule_auto_gives_the_same(streams_pay):
    for scale in SCALES[:4]:
        model, image = made(scale), floats((97, 61))
        small = TiledRestorer(model, halo="exact", tile_size=16)
        near(small(image), restore_tiled(image, model, halo="exact", schedule="tiles", tile_size=32), 2e-5)


# ---- alpha, missing values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["tiles", "stream"])
@pytest.mark.parametrize("scale", SCALES[:4])
def test_alpha_is_resized_by_the_same_pair(scale, schedule):
    model, image = made(scale), floats((58, 64), 4)
    options = options_of(model, schedule=schedule, alpha="resize")
    got = restore_tiled(image, model, **options)
    alpha = torch.from_numpy(np.pad(image[..., 3], 4, mode="reflect"))[None, None]
    factors = tuple(map(float, scale))
    want = F.interpolate(alpha, scale_factor=factors, mode="bilinear", align_corners=False)[0, 0].numpy()
    y, x = (int(4 * one) for one in scale)
    near(got[..., 3], want[y : y + got.shape[0], x : x + got.shape[1]], 2e-5)
    near(got[..., :3], restore_tiled(image[..., :3].copy(), model, **options), 2e-5)


def test_alpha_through_the_model_and_hidden_colours():
    model, image = made((2, 1)), floats((58, 64), 4)
    image[10:30, 20:40, 3] = 0
    other = image.copy()
    other[10:30, 20:40, :3] = 1
    got, beside = (restore_tiled(one, model, **options_of(model)) for one in (image, other))
    assert got.shape == (116, 64, 4)
    np.testing.assert_array_equal(got, beside)


@pytest.mark.parametrize(("scale", "nodata"), list(itertools.product([(2, 1), (1, 2), (2, 3)], (np.nan, -9999))))
def test_missing_values_are_put_back(scale, nodata):
    image = floats((40, 50))
    image[5:9, 11:30], image[33, 7] = nodata, nodata
    got = restore_tiled(image, lambda x: x.repeat(scale[0], 2).repeat(scale[1], 3), nodata=nodata, halo=2, **TILES)
    want = image.repeat(scale[0], 0).repeat(scale[1], 1)
    missing = np.isnan(want) if np.isnan(nodata) else want == nodata
    np.testing.assert_array_equal(np.isnan(got) if np.isnan(nodata) else got == nodata, missing)
    near(got[~missing], want[~missing])


# ---- what is known of a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_inspection(scale):
    model = made(scale)
    info = inspect_model(model)
    assert info.scale == scale and info.phase == model.phase and info.trim == (0, 0)
    assert "structure" in info.how["scale"] and info.certain, info.doubts
    assert ModelInfo.from_json(info.to_json()) == info
    assert json.loads(info.to_json())["scale"] == [str(one) for one in scale]
    assert f"{scale[0]} (rows), {scale[1]} (columns)" in str(info)
    image = floats((61, 83))
    restorer = TiledRestorer(model, halo="exact", tile_size=24, overlap=0, schedule="tiles")
    assert restorer(image).shape == whole(model, image).shape
    near(restorer(image), restore_tiled(image, model, halo=24, phase=model.phase, tile_size=96))
    assert restorer.last_run.how == "exact"


def test_inspection_without_operators():
    """Windows of several sizes and noise alone."""
    model = made((2, 1))
    info = inspect_model(WAYS["arrays"](model))
    assert info.scale == (2, 1) and info.receptive_field is not None
    assert info.receptive_field.halo <= model.halo


def test_a_quick_look():
    found = quick_look(made((2, 3)), (3,))
    assert found.scale == (2, 3) and Quick.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="fraction"):
        Quick.from_json(found.to_json().replace('["2", "3"]', '["2"]'))


@pytest.mark.parametrize("scale", [(2, 1), (1, HALF), (2, 3)])
def test_verification(scale):
    model, image = made(scale), floats((110, 97))
    options = options_of(model)
    assert verify(image, model, windows=6, **options).seamless(1e-6)
    assert assert_exact(image, model, **options).windows == 1
    restore_tiled(image, model, verify=2, **options)
    found = verify(image, model, windows=6, **options | {"halo": 1})
    assert not found.seamless(1e-6) and found.edge_ratio > 2


def test_an_error_curve():
    curve = error_curve(floats((200, 180)), made((2, 1)), halos=(0, 2, 4, 8))
    assert curve.largest[0] > 1e-3 and max(curve.largest[2:]) < 1e-6


@pytest.mark.parametrize("scale", [(2, 1), (1, HALF)])
def test_statistics_of_the_whole_image(scale):
    class Normed(Axes):
        def forward(self, x):
            return F.instance_norm(super().forward(F.instance_norm(x)))

    model, image = seeded(lambda: Normed(scale)), floats((64, 48))
    for schedule in ("tiles", "stream"):
        options = {"boundary": "native", "halo": "exact", "global_stats": "exact", "schedule": schedule, **TILES}
        with torch.inference_mode():
            want = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        near(restore_tiled(image, model, **options), want, 2e-5)


@pytest.mark.parametrize("before", [True, False])
def test_statistics_of_flattened_rows_and_columns_are_refused(before):
    """Where four times the rows cannot be told from twice the rows and columns."""

    class Flat(Axes):
        def forward(self, x):
            if before:
                return super().forward(F.instance_norm(x.flatten(2)).view_as(x))
            y = super().forward(x)
            return F.instance_norm(y.flatten(2)).view_as(y)

    model = seeded(lambda: Flat((4, 1)))
    text = "rows and columns cannot be told apart" if before else "no statistic that could be held fixed"
    with pytest.raises(ValueError, match=f"global_stats must be 'tile'.*{text}"):
        restore_tiled(floats((64, 48)), model, halo="exact", global_stats="exact", schedule="tiles", **TILES)


# ---- options ---------------------------------------------------------------------------------------------------------


def test_plans():
    plan = plan_tiles((61, 83), scale=(2, "1/2"), halo=3, tile_size=24)
    assert plan.scale == plan.scales == (2, HALF) and plan.output_size == (122, 42)
    assert plan.halo == (3, 4) and plan.phase == (1, 2)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.window_output == (plan.window[0] * 2, plan.window[1] // 2)
    assert plan.estimate_bytes()["model output"] == plan.window[0] * plan.window[1] * 3 * 4
    same = plan_tiles((61, 83), scale=(2.0, Fraction(2)), halo=3, tile_size=24)
    assert same == plan_tiles((61, 83), scale=2, halo=3, tile_size=24)
    assert same.scale == 2 and same.scales == (2, 2)


@pytest.mark.parametrize(
    ("scale", "message"),
    [((2,), r"a pair \(rows, columns\)"), ((1, 2, 3), "a pair"), ((2, 0), "positive"), (("x", 1), "not 'x'")],
)
def test_bad_pairs(scale, message):
    with pytest.raises(ValueError, match=message):
        plan_tiles((61, 83), scale=scale)
    with pytest.raises(TypeError, match="not None"):
        plan_tiles((61, 83), scale=(2, None))


@pytest.mark.parametrize("wrong", [1, 2, 3, (1, 2), (1, 1)])
def test_a_wrong_scale_says_which_is_right(wrong):
    model = made((2, 1))
    for call in (model, lambda x: model(x) * 1):
        with pytest.raises(ModelOutputError, match=r"enlarges rows by 2 and columns by 1: pass scale=\(2, 1\)"):
            restore_tiled(floats((80, 90)), call, scale=wrong, halo=32, phase=1)


# ---- files, and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_npy_files(tmp_path, dtype):
    for scale in SCALES[:4]:
        model, image = made(scale), pixels_of(dtype, (45, 58, 3))
        np.save(tmp_path / "a.npy", image)
        restore_to(tmp_path / "b.npy", tmp_path / "a.npy", model, **options_of(model))
        np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), restore_tiled(image, model, **options_of(model)))


def test_png_files_and_a_size(tmp_path):
    pytest.importorskip("pyvips")
    from halotile.files import picture as files

    model, image = made((2, 1)), pixels_of("uint8", (45, 58, 3))
    files.write_image(tmp_path / "a.png", image)
    restore_to(tmp_path / "b.png", tmp_path / "a.png", model, **options_of(model))
    want = restore_tiled(image, model, **options_of(model))
    np.testing.assert_array_equal(files.read_image(tmp_path / "b.png").pixels, want)
    restore_to(tmp_path / "c.png", tmp_path / "a.png", model, size=(90, 116), **options_of(model))
    assert files.read_image(tmp_path / "c.png").pixels.shape == (90, 116, 3)


@pytest.mark.parametrize("scale", [(2, 1), (1, 3)])
def test_a_georeference_is_of_the_same_place(tmp_path, scale):
    pytest.importorskip("pyvips")
    tifffile = pytest.importorskip("tifffile")
    from .test_extras import POINT, geo_tags, tags_of, world

    photo = pixels_of("uint8", (40, 60, 3))
    tifffile.imwrite(tmp_path / "a.tif", photo, extratags=geo_tags(POINT), metadata=None)
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", lambda x: x.repeat(scale[0], axis=2).repeat(scale[1], axis=3))
    before, after = tags_of(tmp_path / "a.tif"), tags_of(tmp_path / "b.tif")
    for row, column in ((0, 0), (40, 60), (7, 11)):
        got = world(after, row * scale[0], column * scale[1])
        assert got == pytest.approx(world(before, row, column), abs=1e-6)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyvips")
    from halotile import cli
    from halotile.files import picture as files

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def rows(x):\n    return x.repeat(2, axis=2)\n")
    image = pixels_of("uint8", (45, 58, 3))
    files.write_image("a.png", image)
    words = ["restore", "a.png", "-m", "mine:rows", "--halo", "2", "--phase", "1", "--quiet", "--force"]
    for given in ([], ["--scale", "1x2"]):
        assert cli.main([*words, *given]) == 0
        np.testing.assert_array_equal(files.read_image("a_restored.png").pixels, image.repeat(2, 0))
    for wrong in ("2", "2x1"):
        assert cli.main([*words, "--scale", wrong]) == 2
        assert "pass --scale 1x2" in capsys.readouterr().err
    assert cli.main(["plan", "58x45", "--scale", "1x3/2"]) == 0
    assert "58x68, scale 1x3/2, uint8" in capsys.readouterr().out
    assert cli.main(["plan", "58x45", "--scale", "2x"]) == 2
    assert "scale must be a positive fraction" in capsys.readouterr().err
    tiles = ["--tile-size", "20", "--scale", "1x2"]
    assert cli.main(["compare", "a_restored.png", "a_restored.png", *tiles]) == 0
    assert cli.main(["compare", "a.png", "a.png", *tiles]) == 2
    assert "--scale 1x2: no input size gives 58x45" in capsys.readouterr().err
