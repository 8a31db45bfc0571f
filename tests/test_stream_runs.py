# SPDX-License-Identifier: MIT
"""Runs with schedule="stream" through the public functions, beside model(image) and tiles."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import (  # noqa: E402
    NonFiniteError,
    NonFiniteWarning,
    TiledRestorer,
    iter_bands,
    restore_tiled,
    restore_to,
)

from .architectures import KNOWN, Gate, RRDBNet, UNet, chain, conv  # noqa: E402
from .networks import Chain, on_arrays, seeded  # noqa: E402
from .reference import whole  # noqa: E402
from .test_engines import MODELS, pixels_of  # noqa: E402
from .test_untouched import Unchanged  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::halotile.SeamWarning")

DTYPES = ["uint8", "uint16", "float16", "float32", "float64"]
STREAM = {"schedule": "stream"}
IMAGE = pixels_of("uint8", (70, 61, 3))
FLOATS = pixels_of("float32", (70, 61, 3))
NEAR = {"uint8": 1, "uint16": 1, "float16": 2e-3, "float32": 2e-5, "float64": 2e-5}
RADIUS = {"plain": 2, "x3": 2, "stride 4": 12, "1/2": 6, "3/2": 6, "valid": 2}


def assert_near(got, want, dtype=None):
    got, want = (np.asarray(one.float() if isinstance(one, torch.Tensor) else one) for one in (got, want))
    assert got.shape == want.shape
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=0, atol=NEAR[dtype or str(want.dtype)]
    )


def through(model, image):
    """model(image), for float32 (H, W, C)."""
    with torch.inference_mode():
        return model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def streams(restorer, count=1):
    """Whether the last run was a stream, or so many."""
    found = restorer.last_run
    return found.schedule == "stream" and found.stream.streams == count


# ---- the result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["native", "reflect"])
@pytest.mark.parametrize("name", MODELS)
def test_beside_the_whole_image_and_tiles(name, boundary):
    model = seeded(MODELS[name])
    if name == "valid":
        boundary = "reflect"
    scale = getattr(model, "scale", 1)
    for size in ((72, 60), (70, 61), (9, 7), (200, 33)):
        image = pixels_of("float32", (*size, 3))
        options = {"halo": 12, "phase": model.phase, "boundary": boundary}
        got = restore_tiled(image, model, **STREAM, **options)
        trim = 2 if name == "valid" else 0
        kept = options | {"scale": scale, "trim": trim}
        if boundary == "reflect" or (not size[0] % model.phase and not size[1] % model.phase):
            want = whole(image.transpose(2, 0, 1), on_arrays(model), **kept).transpose(1, 2, 0)
            assert_near(got, want)
        tiles = restore_tiled(image, model, schedule="tiles", tile_size=32, **options)
        assert got.shape == tiles.shape
        if boundary == "reflect":
            assert_near(got, tiles)


def test_the_schedule_that_is_cheaper_does_not_change_the_picture(streams_pay):
    """Sizes that the phase does not divide are completed as for tiles."""
    model, image = seeded(KNOWN["U-Net 2, pooled"].make), pixels_of("float32", (97, 61, 3))
    options = {"halo": "exact", "boundary": "native"}
    small = TiledRestorer(model, tile_size=16, **options)
    large = TiledRestorer(model, tile_size=512, **options)
    assert_near(small(image), large(image))
    assert streams(small) and not streams(large)
    assert not small.last_run.stream.as_is


def test_sweeps_are_told():
    model, image = seeded(KNOWN["NAFNet"].make), pixels_of("float32", (96, 64, 3))
    restorer = TiledRestorer(model, boundary="native", halo="exact", **STREAM)
    restorer(image)
    assert restorer.last_run.stream.sweeps > 1
    assert f"in {restorer.last_run.stream.sweeps} sweeps" in str(restorer.last_run)


@pytest.mark.parametrize("name", ["U-Net 2, pooled", "NAFNet", "squeeze and excite", "instance norm", "dense"])
def test_sizes_that_the_model_takes_by_itself(name):
    """boundary="native" is model(image), also where the phase does not divide it."""
    model = seeded(KNOWN[name].make)
    for size in ((60, 44), (61, 43)) if KNOWN[name].multiple == 1 else ((60, 44),):
        image = pixels_of("float32", (*size, 3))
        restorer = TiledRestorer(model, boundary="native", halo="exact", **STREAM)
        assert_near(restorer(image), through(model, image))
        assert streams(restorer) and restorer.last_run.stream.as_is and restorer.last_run.stream.recompute == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    model = seeded(MODELS["x3"])
    for out_dtype in (None, "uint8", "float32"):
        for image in (pixels_of(dtype, (50, 41, 3)), torch.from_numpy(pixels_of(dtype, (3, 50, 41)))):
            got = restore_tiled(image, model, halo=2, out_dtype=out_dtype, **STREAM)
            want = restore_tiled(image, model, halo=2, out_dtype=out_dtype, tile_size=24, schedule="tiles")
            assert type(got) is type(want) and got.dtype == want.dtype
            assert_near(got, want, out_dtype or dtype)


@pytest.mark.parametrize("alpha", ["restore", "resize", "opaque", "channel"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_and_alpha(channels, alpha):
    for scale in (1, 2):
        model = seeded(lambda s=scale: Chain(2, channels=channels if alpha == "channel" else 3, scale=s))
        image = pixels_of("uint8", (41, 50, channels))
        hidden, constant = image.copy(), image.copy()
        hidden[3:20, 10:30, -1] = 0
        constant[..., -1] = 77
        for pixels in (image, hidden, constant, np.stack([image, constant])):
            for boundary in ("reflect", "native"):
                options = {"halo": 4, "alpha": alpha, "boundary": boundary}
                got = restore_tiled(pixels, model, **STREAM, **options)
                assert_near(got, restore_tiled(pixels, model, tile_size=24, schedule="tiles", **options))


def test_alpha_resized_by_fractions_and_across_bands():
    for name in ("1/2", "3/2", "stride 4", "valid"):
        model = seeded(MODELS[name])
        for size in ((60, 48), (61, 47), (200, 9)):
            image = pixels_of("uint8", (*size, 4))
            options = {"halo": 12, "alpha": "resize", "phase": model.phase, "boundary": "reflect"}
            got = restore_tiled(image, model, **STREAM, **options)
            assert_near(got, restore_tiled(image, model, tile_size=24, schedule="tiles", **options))


def test_value_ranges_batches_and_memmaps(tmp_path):
    model, images = seeded(MODELS["x3"]), pixels_of("uint8", (3, 40, 31, 3))
    options = {"halo": 2, "value_range": (-1, 1)}
    want = restore_tiled(images, model, tile_size=24, schedule="tiles", **options)
    assert_near(restore_tiled(images, model, **STREAM, **options), want)
    out = np.memmap(tmp_path / "out", np.uint8, "w+", shape=want.shape)
    assert restore_tiled(images, model, out=out, **STREAM, **options) is out
    assert_near(out, want)
    grey = restore_tiled(images[0, ..., 0], model, **STREAM, halo=2)
    assert_near(grey, restore_tiled(images[0, ..., 0], model, schedule="tiles", halo=2, tile_size=24))


def test_bands_come_in_order_and_without_gaps():
    model = seeded(lambda: UNet(2))
    image = pixels_of("uint8", (300, 40, 3))
    found = list(iter_bands(image, model, halo="exact", **STREAM))
    assert len(found) > 2
    assert [y for y, _ in found] == np.cumsum([0, *(len(rows) for _, rows in found[:-1])]).tolist()
    want = restore_tiled(image, model, halo="exact", tile_size=64, schedule="tiles")
    assert_near(np.concatenate([rows for _, rows in found]), want)


@pytest.mark.parametrize("ending", [".npy", ".tif", ".png", ".zarr"])
def test_files(tmp_path, ending):
    pytest.importorskip({".zarr": "zarr", ".png": "pyvips", ".tif": "tifffile"}.get(ending, "numpy"))
    model, image = seeded(MODELS["x3"]), pixels_of("uint8", (130, 41, 3))
    want = restore_tiled(image, model, halo=2, tile_size=64, schedule="tiles")
    target = tmp_path / f"result{ending}"
    restore_to(target, image, model, halo=2, **STREAM)
    source = tmp_path / "source.npy"
    np.save(source, image)
    again = tmp_path / f"again{ending}"
    restore_to(again, source, model, halo=2, **STREAM)
    for path in (target, again):
        if ending == ".npy":
            got = np.load(path)
        elif ending == ".zarr":
            import zarr

            got = zarr.open(path)[:]
            assert_near(
                restore_tiled(zarr.open(path)[:, :40], model, halo=2, **STREAM)[:60, :60],
                np.asarray(restore_tiled(want[:, :40], model, halo=2, tile_size=99, schedule="tiles"))[:60, :60],
            )
        else:
            import pyvips

            got = pyvips.Image.new_from_file(str(path)).numpy()
        assert_near(got, want)


# ---- restorers -------------------------------------------------------------------------------------------------------


class Strong(nn.Module):
    """Has a setting, a buffer, and weights that are made of others."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.register_parameter("gain", nn.Parameter(torch.ones(3, 1, 1)))
        self.strength = 1.0

    def forward(self, x):
        return self.norm(self.conv(x)) * torch.sigmoid(self.gain) * self.strength


def changed_attribute(model):
    model.strength = 0.5


def changed_in_place(model):
    with torch.no_grad():
        model.conv.weight.mul_(3)
        model.gain.add_(2)


def changed_data(model):
    model.gain.data.mul_(-2)
    model.conv.weight.data.copy_(model.conv.weight.data * 2)


def changed_buffer(model):
    model.norm.running_mean.add_(0.3)


def loaded(model):
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def replaced(model):
    model.conv = nn.Conv2d(3, 3, 5, padding=2)
    model.gain = nn.Parameter(torch.full((3, 1, 1), 0.3))


CHANGES = [changed_attribute, changed_in_place, changed_data, changed_buffer, loaded, replaced]


@pytest.mark.parametrize("change", CHANGES)
def test_models_that_change_between_two_images(change):
    model = seeded(Strong)
    restorer = TiledRestorer(model, halo=4, boundary="native", **STREAM)
    assert_near(restorer(FLOATS), through(model, FLOATS))
    recorded = restorer.knowledge.recorded.graphs
    restorer(FLOATS)
    assert restorer.knowledge.recorded.graphs is recorded  # nothing was recorded again
    change(model)
    assert_near(restorer(FLOATS), through(model, FLOATS))
    assert_near(restorer(FLOATS[:40]), through(model, FLOATS[:40]))


def test_a_model_that_cannot_stream_any_more():
    model = seeded(Strong)
    stream, auto = (TiledRestorer(model, halo=4, schedule=one) for one in ("stream", "auto"))
    stream(FLOATS), auto(FLOATS)
    model.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match="schedule must be 'auto' or 'tiles' for this model, not 'stream': copy_"):
        stream(FLOATS)
    assert auto(FLOATS).shape == FLOATS.shape
    model.conv = nn.Conv2d(3, 3, 3, padding=1)
    assert_near(stream(FLOATS), restore_tiled(FLOATS, model, halo=4, schedule="tiles", tile_size=32))


def test_one_restorer_for_many_sizes():
    model = seeded(lambda: UNet(2))
    restorer = TiledRestorer(model, halo="exact", **STREAM)
    for size in ((60, 44), (60, 44), (61, 45), (200, 16), (60, 44), (7, 5), (1, 1)):
        image = pixels_of("uint8", (*size, 3))
        want = restore_tiled(image, model, halo="exact", tile_size=64, schedule="tiles")
        assert_near(restorer(image), want)
        assert streams(restorer)


def test_threads_that_share_a_restorer():
    model = seeded(lambda: chain(conv(3, 8), Gate(8), conv(8, 3)))
    images = [pixels_of("uint8", (50 + 7 * i, 40 + i, 3), i) for i in range(4)]
    wanted = [TiledRestorer(model, halo="exact", **STREAM)(image) for image in images]
    restorer, errors = TiledRestorer(model, halo="exact", **STREAM), []

    def work(i):
        try:
            for _ in range(3):
                np.testing.assert_array_equal(restorer(images[i]), wanted[i])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("name", ["plain", "batch norm", "squeeze and excite", "pooling in place"])
def test_models_stay_what_they_are(name):
    model = seeded(KNOWN[name].make).train()
    with Unchanged(model):
        restore_tiled(IMAGE, model, halo="exact", **STREAM)
        list(iter_bands(IMAGE, model, halo="exact", dtype="bfloat16", **STREAM))
        with pytest.raises(ValueError, match="a model of my own"):
            restore_tiled(IMAGE, nn.Sequential(model, Failing()), halo=4, phase=1, boundary="native", **STREAM)


class Failing(nn.Module):
    def forward(self, x):
        if x.shape[3] == IMAGE.shape[1]:
            raise KeyError("a model of my own")
        return x.clone()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models(dtype):
    model = seeded(MODELS["x3"])
    want = restore_tiled(FLOATS, model, halo=2, schedule="tiles", tile_size=64)
    for got in (
        restore_tiled(FLOATS, model, halo=2, dtype=dtype, **STREAM),
        restore_tiled(FLOATS, seeded(MODELS["x3"]).to(getattr(torch, dtype)), halo=2, **STREAM),
    ):
        np.testing.assert_allclose(got, want, atol=2e-2)


def test_double_models():
    model = seeded(MODELS["x3"]).double()
    got = restore_tiled(FLOATS, model, halo=2, boundary="native", **STREAM)
    assert got.dtype == np.float32
    assert_near(got, through(model, FLOATS.astype(np.float64)).astype(np.float32))


# ---- progress, verification, errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 3])
def test_progress(images):
    seen = []
    pixels = np.stack([IMAGE] * images)
    restore_tiled(pixels, seeded(MODELS["plain"]), halo=2, progress=lambda *now: seen.append(now), **STREAM)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    class Enough(Exception):
        pass

    def cancel(done, total):
        if done:
            raise Enough

    with pytest.raises(Enough):
        restore_tiled(pixels, seeded(MODELS["plain"]), halo=2, progress=cancel, **STREAM)


def test_verification():
    restorer = TiledRestorer(seeded(lambda: UNet(2)), halo="exact", verify=3, **STREAM)
    restorer(IMAGE)
    assert restorer.last_run.verified.largest == 0 and streams(restorer)
    restorer = TiledRestorer(seeded(MODELS["plain"]), halo="exact", verify=3, boundary="native", **STREAM)
    restorer(FLOATS)
    assert restorer.last_run.verified.largest <= 1e-5


class Poisoned(nn.Module):
    """NaN where the input is white."""

    def forward(self, x):
        return torch.where(x == 1, torch.full_like(x, torch.nan), x)


@pytest.mark.parametrize("where", [(0, 0, 2), (3, 5, 1), (69, 60, 0), (31, 44, 1)])
@pytest.mark.parametrize("boundary", ["native", "reflect"])
def test_nan_is_found_where_it_is(where, boundary):
    image = np.zeros_like(IMAGE)
    image[where] = 255
    options = {"halo": 0, "boundary": boundary, **STREAM}
    text = "first at output row {}, column {}, channel {}".format(*where)
    with pytest.raises(NonFiniteError, match=text):
        restore_tiled(image, Poisoned(), **options)
    with pytest.warns(NonFiniteWarning, match=text):
        restore_tiled(image, Poisoned(), on_nonfinite="warn", **options)
    got = restore_tiled(image, Poisoned(), on_nonfinite="ignore", out_dtype="float32", **options)
    assert np.argwhere(np.isnan(got)).tolist() == [list(where)]


REFUSED = [
    ({"compile": True}, "schedule must be 'auto' or 'tiles' with compile=True"),
    ({"device": ["cpu", "cpu"]}, "schedule must be 'auto' or 'tiles' on several devices"),
    ({"global_stats": "tile"}, "schedule must be 'auto' or 'tiles' with global_stats='tile'"),
    ({"global_stats": "frozen"}, "schedule must be 'auto' or 'tiles' with global_stats='frozen'"),
    ({"schedule": "rows"}, "schedule must be one of"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_options_are_refused_before_any_work(options, text):
    model = seeded(MODELS["plain"])
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=text):
        restore_tiled(IMAGE, model, **STREAM | options)
    assert not calls


def test_what_cannot_stream_is_refused_by_operator_and_place():
    text = "schedule must be 'auto' or 'tiles' for this model, not 'stream': "
    with pytest.raises(ValueError, match=f"{text}_fft_r2c in the model"):
        restore_tiled(IMAGE, seeded(KNOWN["spectrum"].make), halo=2, **STREAM)
    for call in (np.negative, lambda x: x * 2):
        with pytest.raises(ValueError, match=f"{text}only torch modules stream"):
            restore_tiled(IMAGE, call, halo=2, **STREAM)


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_auto_chooses_what_is_cheaper(streams_pay):
    deep = seeded(lambda: RRDBNet(blocks=1, features=8, growth=4))
    image = pixels_of("uint8", (130, 120, 3))
    auto = TiledRestorer(deep, halo="exact", tile_size=32)
    got = auto(image)
    assert streams(auto)
    tiles = TiledRestorer(deep, halo="exact", tile_size=64, schedule="tiles")
    assert_near(got, tiles(image))
    assert tiles.last_run.schedule == "tiles" and tiles.last_run.schedule_why is None
    fixed = TiledRestorer(deep, halo=4, tile_size=32)
    fixed(image)
    assert fixed.last_run.schedule == "tiles" and fixed.last_run.schedule_why is None
    one = TiledRestorer(deep, halo="exact", tile_size=512)
    one(image)
    assert one.last_run.schedule == "tiles" and "of the image's pixels" in one.last_run.schedule_why
    spectrum = TiledRestorer(seeded(KNOWN["circular padding"].make), halo="exact", tile_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spectrum(image)
    assert spectrum.last_run.schedule == "tiles" and "copy_ in module 'layers.0'" in spectrum.last_run.schedule_why


def test_auto_keeps_tiles_where_strips_are_slow(streams_pay, monkeypatch):
    deep = seeded(lambda: RRDBNet(blocks=1, features=8, growth=4))
    asked = []
    monkeypatch.setattr("halotile.run.stream.cost.strip_cost", lambda *sizes: asked.append(sizes) or 10.0)
    restorer = TiledRestorer(deep, halo="exact", tile_size=128)
    restorer(pixels_of("uint8", (130, 120, 3)))
    assert asked and restorer.last_run.schedule == "tiles"
    assert restorer.last_run.schedule_why.endswith("where each takes 10.00 times as long")


def test_auto_keeps_tiles_for_small_images():
    restorer = TiledRestorer(seeded(lambda: Chain(6)), halo="exact", tile_size=16)
    restorer(IMAGE)
    assert restorer.last_run.schedule == "tiles"
    assert restorer.last_run.schedule_why == "in tiles, which are done before the model is recorded"
