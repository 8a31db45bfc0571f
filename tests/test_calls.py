# SPDX-License-Identifier: MIT
"""How people call: with Pillow's images, paths, arguments the other way round, names nearly right."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

import halotile
from halotile import TiledRestorer, cli, error_curve, iter_bands, restore_tiled, restore_to, testing, verify

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

TILES = {"tile_size": 24, "halo": 3, "phase": 1}


class Soft(nn.Module):
    """A blur of any number of channels, in the image's own range."""

    def forward(self, x):
        return 0.5 * x + 0.5 * nn.functional.avg_pool2d(x, 3, 1, 1)


def noise(shape, dtype="uint8", seed=0):
    values = np.random.default_rng(seed).random(shape)
    return (values * np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- Pillow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (30, 40), "uint8"),
        ("LA", (30, 40, 2), "uint8"),
        ("RGB", (30, 40, 3), "uint8"),
        ("RGBA", (30, 40, 4), "uint8"),
        ("I;16", (30, 40), "uint16"),
        ("F", (30, 40), "float32"),
    ],
)
def test_pillow_images_go_in_and_come_out(mode, shape, dtype):
    images = pytest.importorskip("PIL.Image")
    array, model = noise(shape, dtype), Soft()
    picture = images.fromarray(array)
    assert picture.mode == mode
    got = restore_tiled(picture, model, **TILES)
    assert isinstance(got, images.Image) and (got.mode, got.size) == (mode, picture.size)
    np.testing.assert_array_equal(np.asarray(got), restore_tiled(array, model, **TILES))


def test_other_modes_of_pillow_are_the_colours_that_they_show():
    images = pytest.importorskip("PIL.Image")
    model, colours = Soft(), noise((30, 40, 3))
    picture = images.fromarray(colours)
    palette = picture.quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 3
    for made, shown in [
        (palette, "RGB"),
        (clear, "RGBA"),
        (picture.convert("1"), "L"),
        (picture.convert("CMYK"), "RGB"),
        (picture.convert("YCbCr"), "RGB"),
        (picture.convert("RGBA").convert("RGBa"), "RGBA"),
    ]:
        got = restore_tiled(made, model, **TILES)
        assert got.mode == shown
        np.testing.assert_array_equal(np.asarray(got), restore_tiled(np.asarray(made.convert(shown)), model, **TILES))
    words = images.fromarray(noise((30, 40), "uint16").astype(np.int32))
    assert words.mode == "I" and restore_tiled(words, model, **TILES).mode == "I;16"
    for bad in (images.fromarray(np.full((9, 9), -1, np.int32)), images.new("LAB", (9, 9))):
        with pytest.raises(TypeError, match="image must be a Pillow image of"):
            restore_tiled(bad, model)


def test_a_pillow_image_keeps_its_profile_and_metadata():
    images = pytest.importorskip("PIL.Image")
    picture = images.fromarray(noise((30, 40, 3)))
    exif = images.Exif()
    exif[0x0112], exif[0x013B] = 6, "Ann"
    picture.info |= {"icc_profile": b"profile", "exif": exif.tobytes(), "dpi": (300, 300), "duration": 40}
    got = restore_tiled(picture, Soft(), **TILES)
    assert {name: got.info[name] for name in got.info} == {name: picture.info[name] for name in got.info}
    assert set(got.info) == {"icc_profile", "exif", "dpi"} and got.getexif()[0x0112] == 6
    grey = restore_tiled(picture, lambda x: x.mean(1, keepdim=True), alpha="channel", **TILES)
    assert grey.mode == "L" and "icc_profile" not in grey.info


def test_what_pillow_has_no_image_for_is_an_array(place):
    images = pytest.importorskip("PIL.Image")
    picture, model = images.fromarray(noise((30, 40, 3))), Soft()
    got = restore_tiled(picture, model, out_dtype="uint16", **TILES)
    np.testing.assert_array_equal(got, restore_tiled(np.asarray(picture), model, out_dtype="uint16", **TILES))
    out = np.empty((30, 40, 3), np.uint8)
    assert restore_tiled(picture, model, out=out, **TILES) is out
    bands = np.concatenate([rows for _, rows in iter_bands(picture, model, **TILES)])
    np.testing.assert_array_equal(bands, out)
    assert verify(picture, model, out, **TILES).largest < 1
    restore_to("out.npy", picture, model, **TILES)
    np.testing.assert_array_equal(np.load("out.npy"), out)
    assert halotile.metrics.psnr(picture, picture) == float("inf")


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_a_path_is_read_and_restored(place):
    images = pytest.importorskip("PIL.Image")
    array, model = noise((50, 40, 3)), Soft()
    images.fromarray(array).save("in.png")
    np.save("in.npy", array)
    want = restore_tiled(array, model, **TILES)
    for path in ("in.png", Path("in.png"), "in.npy"):
        np.testing.assert_array_equal(restore_tiled(path, model, **TILES), want)
    bands = np.concatenate([rows for _, rows in iter_bands("in.png", model, **TILES)])
    np.testing.assert_array_equal(bands, want)
    restorer = TiledRestorer(model, **TILES)
    np.testing.assert_array_equal(restorer("in.png"), want)
    assert restorer.last_run is not None
    with pytest.raises(OSError, match="nowhere"):
        restore_tiled("nowhere.png", model)


def test_what_a_file_says_of_its_pixels_counts(place):
    tifffile = pytest.importorskip("tifffile")
    array = noise((50, 40), "float32")
    array[10:14, 10:14] = -9999
    tifffile.imwrite("dem.tif", array, extratags=[(42113, "s", 0, "-9999", True)])
    restorer = TiledRestorer(Soft(), **TILES)
    for run in (restorer, lambda path: np.concatenate([rows for _, rows in restorer.iter_bands(path)])):
        restorer.last_run = None
        assert (run("dem.tif")[10:14, 10:14] == -9999).all() and restorer.last_run.filled


# ---- the other way round ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [restore_tiled, iter_bands, verify, error_curve, testing.assert_exact, testing.assert_seamless]
)
def test_arguments_swapped(call):
    image, model = noise((40, 40, 3)), Soft()
    tensor = torch.zeros(3, 40, 40)
    for swapped in (image, tensor):
        with pytest.raises(TypeError, match=r"arguments swapped\? \(image, model\) is their order"):
            call(model, swapped)


def test_arguments_swapped_on_the_way_to_a_file(place):
    image, model = noise((40, 40, 3)), Soft()
    with pytest.raises(TypeError, match=r"arguments swapped\?"):
        restore_to("out.png", model, image)
    with pytest.raises(TypeError, match=r"path must be .*: arguments swapped\? \(path, image, model\)"):
        restore_to(image, "out.png", model)
    with pytest.raises(TypeError, match=r"load_model\('x4.pth'\) opens files"):
        restore_tiled(image, "x4.pth")


# ---- names nearly right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["restor", "in.png"], "did you mean restore?"),
        (["inspct"], "did you mean inspect?"),
        (["restore", "in.png", "--tile_size", "64"], "did you mean --tile-size?"),
        (["restore", "in.png", "--outpt=x.png"], "did you mean --output?"),
        (["plan", "640x480", "--batchsize", "2"], "did you mean --batch-size?"),
    ],
)
def test_the_command_line_says_what_may_have_been_meant(place, capsys, words, meant):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and meant in capsys.readouterr().err


def test_what_is_like_nothing_is_not_guessed_at(place, capsys):
    with pytest.raises(SystemExit):
        cli.main(["restore", "in.png", "--zzzz"])
    assert "did you mean" not in capsys.readouterr().err
    with pytest.raises(TypeError, match="did you mean 'tile_size'"):
        restore_tiled(noise((9, 9)), nn.Identity(), tilesize=3)


# ---- batches across images -------------------------------------------------------------------------------------------


class Counted(Soft):
    """Counts the windows of each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return super().forward(x)


def each(images, model, **options):
    return np.stack([restore_tiled(image, model, **options) for image in images])


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_one_call_for_several_images(engine):
    images, options = noise((6, 64, 64, 3)), {"halo": 3, "phase": 1, "scale": 1, "engine": engine}
    restorer = TiledRestorer(Counted(), batch_size=8, **options)
    np.testing.assert_array_equal(restorer(images), each(images, Soft(), **options))
    assert restorer.model.calls == [6]
    restorer(images)
    assert restorer.model.calls == [6, 6]


@pytest.mark.parametrize(
    ("count", "batch", "calls"), [(6, 5, [3, 3]), (7, 3, [3, 3, 3]), (7, 1, [1] * 7), (5, 100, [5]), (2, 2, [2])]
)
def test_calls_are_as_even_as_possible(count, batch, calls):
    images = noise((count, 20, 22, 1), "float32")
    model, seen = Counted(), []
    got = restore_tiled(images, model, batch_size=batch, scale=1, phase=1, halo=2, progress=lambda *at: seen.append(at))
    assert model.calls == calls and seen[-1] == (count, count)
    np.testing.assert_array_equal(got, each(images, Soft(), halo=2, phase=1))


def test_several_tiles_of_several_images():
    images, model = noise((5, 40, 40, 3)), Counted()
    got = restore_tiled(images, model, batch_size=8, scale=1, **TILES)
    assert model.calls == [8, 8, 8]  # four tiles each: two images in a call
    np.testing.assert_array_equal(got, each(images, Soft(), **TILES))


@pytest.mark.parametrize("make", [np.asarray, lambda array: torch.from_numpy(array.transpose(0, 3, 1, 2).copy())])
def test_alpha_of_each_image_is_its_own(make):
    images = noise((6, 30, 31, 4))
    images[1, :, :, 3], images[4, :, :, 3] = 255, 17
    images[2, 5:9, 5:9, 3] = 0
    images = make(images)
    got = restore_tiled(images, Soft(), batch_size=4, halo=3, phase=1)
    for one, image in zip(got, images, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(restore_tiled(image, Soft(), halo=3, phase=1)))


def test_a_model_that_reuses_its_output():
    images = noise((6, 30, 31, 4))
    images[..., 3] |= 1
    kept = {}

    def model(x):
        kept.setdefault(x.shape, np.empty_like(x))[...] = x[..., ::-1]
        return kept[x.shape]

    got = restore_tiled(images, model, batch_size=4, halo=0, phase=1)
    np.testing.assert_array_equal(got, images[:, :, ::-1])


def test_stacks_that_are_read_by_rows(place):
    images = noise((6, 30, 31, 3))
    np.save("in.npy", images)
    model = Counted()
    restore_to("out.npy", "in.npy", model, batch_size=3, scale=1, halo=3, phase=1)
    assert model.calls == [3, 3]
    np.testing.assert_array_equal(np.load("out.npy"), each(images, Soft(), halo=3, phase=1))


def test_memory_that_runs_out_with_several_images():
    class Small(Counted):
        def forward(self, x):
            if len(x) > 3:
                raise MemoryError("no more than three")
            return super().forward(x)

    images, model = noise((6, 30, 31, 3)), Small()
    with pytest.warns(halotile.TileSizeWarning, match="with 6 windows of"):
        got = restore_tiled(images, model, batch_size=6, scale=1, halo=3, phase=1)
    assert model.calls == [3, 3]
    np.testing.assert_array_equal(got, each(images, Soft(), halo=3, phase=1))


def test_what_fails_names_the_images():
    def model(x):
        if len(x) == 3:
            raise RuntimeError("three")
        return x * 1

    with pytest.raises(halotile.TileError, match="of one of images 0 to 2"):
        restore_tiled(noise((3, 30, 31, 3)), model, batch_size=3, halo=3, phase=1, scale=1)
    images = noise((3, 30, 31, 3), "float32")
    images[1, 4, 4] = np.nan
    with pytest.raises(halotile.NonFiniteError, match="of image 1"):
        restore_tiled(images, Soft(), batch_size=3, halo=3, phase=1, scale=1)


# ---- cancelling ------------------------------------------------------------------------------------------------------


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("schedule", ["tiles", "stream"])
def test_raising_in_progress_cancels(place, schedule):
    image, out = noise((300, 40, 3)), np.zeros((300, 40, 3), np.uint8)
    model = nn.Conv2d(3, 3, 3, padding=1)

    def stop(done, total):
        if done * 2 >= total:
            raise Cancelled

    options = {"tile_size": 24, "halo": 1, "phase": 1, "schedule": schedule, "progress": stop, "boundary": "native"}
    with pytest.raises(Cancelled):
        restore_tiled(image, model, out=out, out_dtype=None, **options)
    assert out[:20].any() and not out[-20:].any()
    with pytest.raises(Cancelled):
        restore_to("out.png", image, model, **options)
    with pytest.raises(Cancelled):
        list(iter_bands(image, model, **options))
    assert not list(place.iterdir())


# ---- several outputs, several inputs ---------------------------------------------------------------------------------


class Several(nn.Module):
    """An image and its mask, in whatever is asked for."""

    def __init__(self, form):
        super().__init__()
        self.form, self.soft, self.weight = form, Soft(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.form(self.soft(x), x[:, :1])


@dataclasses.dataclass
class Result:
    image: object
    mask: object


@pytest.mark.parametrize(
    ("form", "key"),
    [
        (lambda image, mask: (image, mask), 0),
        (lambda image, mask: [mask, image], -1),
        (lambda image, mask: {"sr": image, "mask": mask}, "sr"),
        (lambda image, mask: {0: image}, 0),
        (Result, "image"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda x: model(x)])
def test_one_of_several_outputs(form, key, wrap):
    image, want = noise((50, 60, 3)), restore_tiled(noise((50, 60, 3)), Soft(), **TILES)
    model = wrap(Several(form))
    np.testing.assert_array_equal(restore_tiled(image, model, output=key, **TILES), want)
    restorer = TiledRestorer(model, tile_size=24, halo="exact", output=key)
    np.testing.assert_allclose(restorer(image).astype(int), want, atol=1)
    assert restorer.last_run.halo == (1, 1) and restorer.last_run.how == "exact"


def test_an_output_that_is_not_there():
    image = noise((50, 60, 3))
    for form, key, words in [
        (lambda image, mask: {"sr": image, "mask": mask}, "out", "a dict of 2: 'sr', 'mask'; output='out' is none"),
        (lambda image, mask: (image, mask), 2, "a tuple of 2; output=2 is none of it"),
        (lambda image, mask: image, 0, "a Tensor, of which output=0 picks nothing"),
    ]:
        with pytest.raises(halotile.ModelOutputError, match=words):
            restore_tiled(image, Several(form), output=key, **TILES)
    with pytest.raises(TypeError, match="output must be the index or key"):
        restore_tiled(image, Soft(), output=1.5)


class Mixed(nn.Module):
    """Takes a strength, a map and a switch beside the image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Conv2d(3, 3, 1)

    def forward(self, x, strength, *, level=None, half=False):
        x = x + strength * (nn.functional.avg_pool2d(x, 3, 1, 1) - x)
        x = x if level is None else torch.cat([x, level.repeat(1, 1, *x.shape[2:])], 1)[:, :3]
        return x / 2 if half else x


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda x, *a, **k: model(x, *a, **k)])
def test_further_inputs(wrap):
    image, model = noise((50, 60, 3), "float32"), wrap(Mixed())
    want = restore_tiled(image, Soft(), **TILES)
    level = torch.zeros(1, 1, 1, 1)
    for extra in (0.5, (0.5,), {"strength": 0.5}, {"strength": torch.tensor(0.5)}, {"strength": 0.5, "level": level}):
        got = restore_tiled(image, model, extra=extra, batch_size=4, **TILES)
        np.testing.assert_allclose(got, want, atol=1e-6)
    half = restore_tiled(image, model, extra={"strength": 0.5, "half": True}, **TILES)
    np.testing.assert_allclose(half, want / 2, atol=1e-6)
    partial = restore_tiled(image, functools.partial(model, strength=0.5), **TILES)
    np.testing.assert_allclose(partial, want, atol=1e-6)
    arrays = restore_tiled(image, lambda x, k: x * k, extra=np.full((1, 3, 1, 1), 2, np.float32), batch_size=4, **TILES)
    np.testing.assert_array_equal(arrays, image * 2)


def test_a_model_with_further_inputs_is_inspected_converted_and_left_alone():
    image, model = noise((50, 60, 3)), Mixed().train()
    extra = {"strength": np.array(0.5, np.float32)}
    restorer = TiledRestorer(model, tile_size=24, halo="exact", dtype="bfloat16", extra=extra)
    want = restore_tiled(image, Soft(), **TILES)
    assert np.abs(restorer(image).astype(int) - want).max() <= 3 and restorer.last_run.halo == (1, 1)
    assert model.training and model.weight.training and dict(model.named_buffers()) == {}
    assert halotile.inspect_model(model, extra=extra).receptive_field.halo == (1, 1)
    streamed = restore_tiled(image, model, extra=extra, schedule="stream", halo=1, phase=1, boundary="native")
    whole = model(torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255))[None], torch.tensor(0.5))[0]
    np.testing.assert_allclose(streamed, np.rint(whole.detach().numpy().transpose(1, 2, 0) * 255), atol=1)


# ---- models that differentiate ---------------------------------------------------------------------------------------


class Step(nn.Module):
    """A gradient step on a learnt energy: x - d/dx |net(x)|^2 / 2."""

    def __init__(self, enables):
        super().__init__()
        self.enables, self.net = enables, nn.Conv2d(3, 3, 3, padding=1)
        nn.init.uniform_(self.net.weight, -0.1, 0.1)

    def forward(self, x):
        with torch.enable_grad() if self.enables else contextlib.nullcontext():
            x = x.detach().requires_grad_() if self.enables else x.requires_grad_()
            energy = self.net(x).square().sum() / 2
            return x - torch.autograd.grad(energy, x)[0]


@pytest.mark.parametrize("enables", [True, False])
@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda x: model(x)])
def test_models_that_differentiate_inside_forward(enables, engine, wrap):
    image, model = noise((50, 60, 3), "float32"), Step(enables)
    x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    whole = model(x).detach()[0].numpy().transpose(1, 2, 0)
    restorer = TiledRestorer(wrap(model), tile_size=24, halo=2, phase=1, boundary="native", engine=engine)
    for _ in range(2):
        np.testing.assert_allclose(restorer(image), whole, atol=1e-5)
    assert model.net.weight.grad is None and not torch.is_inference_mode_enabled()


def test_other_models_stay_in_inference_mode():
    seen = []

    class Asks(Soft):
        def forward(self, x):
            seen.append(torch.is_inference_mode_enabled())
            return super().forward(x)

    restore_tiled(noise((50, 60, 3)), Asks(), **TILES)
    assert all(seen) and len(seen) > 2
    with pytest.raises(halotile.TileError, match="requires grad somewhere"):
        restore_tiled(noise((9, 9, 3)), raises("it requires grad somewhere"), **TILES)


def raises(text):
    def model(x):
        raise RuntimeError(text)

    return model


def test_gradients_of_weights_are_what_they_were():
    class Tuned(Step):
        def forward(self, x):
            with torch.enable_grad():
                self.net(x.clone()).sum().backward()
            return super().forward(x)

    model = Tuned(True)
    model.net.weight.grad = torch.ones_like(model.net.weight)
    restore_tiled(noise((50, 60, 3), "float32"), model, **TILES)
    assert torch.equal(model.net.weight.grad, torch.ones_like(model.net.weight)) and model.net.bias.grad is None


def test_outputs_and_further_inputs_on_the_command_line(place, monkeypatch, capsys):
    images = pytest.importorskip("PIL.Image")
    monkeypatch.syspath_prepend(str(place))
    Path("several.py").write_text("def model(x, k, b=0):\n    return {'rest': x, 'sr': x * k + b}\n")
    array = noise((50, 60, 3))
    images.fromarray(array).save("in.png")
    words = ["restore", "in.png", "-m", "several:model", "--halo", "0", "--quiet"]
    for extra in (["--extra", "0.5"], ["--extra", "k=0.5", "--extra", "b=0"]):
        assert cli.main([*words, "--model-output", "sr", *extra, "--force"]) == 0
        got = np.asarray(images.open("in_restored.png"))
        np.testing.assert_array_equal(got, np.rint(array / np.float32(255) * np.float32(0.5) * 255))
    assert cli.main([*words, "--extra", "0.5", "--force"]) == 2
    assert "pass --model-output rest if that is the image" in capsys.readouterr().err
    assert cli.main([*words, "--extra", "0.5", "--extra", "b=1", "--force"]) == 2
    with pytest.raises(SystemExit):
        cli.main([*words, "--extra", "k=much"])
    assert "such as sigma=0.1" in capsys.readouterr().err
