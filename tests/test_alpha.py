# SPDX-License-Identifier: MIT
"""Hidden colours do not show at visible edges, constant alpha stays what it is, and both cost what they should."""

import copy
import tracemalloc

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from halotile import NonFiniteError, TiledRestorer, iter_bands, restore_tiled, restore_to, verify  # noqa: E402
from halotile.files import picture as files  # noqa: E402
from halotile.files.vips_rows import PictureSource  # noqa: E402
from halotile.images.hidden import REACH, FilledSource, HiddenColours, filled_tensor  # noqa: E402
from halotile.images.image import Alpha, open_image  # noqa: E402
from halotile.images.scan import alpha_of  # noqa: E402

from .fake_mps.attach import DEVICE  # noqa: E402
from .networks import Chain, seeded  # noqa: E402

LIME, RED = (0, 255, 0), (200, 30, 60)
WHITE = {"uint8": 255, "uint16": 65535}


def icon(hidden=LIME, size=(90, 101), dtype="uint8"):
    """A hard-edged red disc; elsewhere alpha is 0."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(size) * 0.36) ** 2
    image = np.zeros((*size, 4), np.uint8)
    image[..., :3] = np.where(inside[..., None], RED, hidden)
    image[..., 3] = inside * 255
    if dtype == "uint8":
        return image
    return (image / 255 * WHITE.get(dtype, 1)).astype(dtype)


def seeing(radius, scale=1, channels=3):
    """A model that carries colours over `radius` pixels."""
    chain = seeded(lambda: Chain(radius, scale=scale, channels=channels))

    class Spreading(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = chain

        def forward(self, x):
            spread = nn.functional.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
            return nn.functional.interpolate(spread, scale_factor=float(scale)) + self.chain(x)

    return Spreading().eval()


def composites(image):
    """Over black and over white, as floats from 0 to 255."""
    image = image.astype(float) * 255 / WHITE.get(str(image.dtype), 1)
    colour, alpha = image[..., :-1], np.clip(image[..., -1:] / 255, 0, 1)
    return colour * alpha, colour * alpha + 255 * (1 - alpha)


def assert_looks_the_same(got, want, within=1.0):
    assert got.shape == want.shape
    for one, other in zip(composites(got), composites(want), strict=True):
        assert np.abs(one - other).max() <= within


# ---- hidden colours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize(
    ("radius", "scale", "tile"), [(1, 1, 512), (4, 1, 32), (3, 2, 40), (8, 2, 64), (2, 4, 24), (20, 1, 48)]
)
def test_hidden_colours_do_not_show(engine, radius, scale, tile):
    model, options = seeing(radius, scale), {"tile_size": tile, "halo": radius, "engine": engine}
    for size in ((90, 101), (128, 192)):
        want = restore_tiled(icon(RED, size), model, **options)
        assert_looks_the_same(restore_tiled(icon(LIME, size), model, **options), want)


def test_they_would_show():
    """What these tests measure is there to be measured."""
    model = seeing(4)
    leaking = restore_tiled(icon()[..., :3].copy(), model, halo=4)
    got, want = np.dstack([leaking, icon()[..., 3]]), restore_tiled(icon(RED), model, halo=4)
    assert max(np.abs(a - b).max() for a, b in zip(composites(got), composites(want), strict=True)) > 16


@pytest.mark.parametrize("alpha", ["restore", "resize", "opaque"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_whatever_becomes_of_alpha(dtype, alpha):
    model, options = seeing(3, 2), {"tile_size": 40, "halo": 3, "alpha": alpha}
    got, want = (restore_tiled(icon(hidden, dtype=dtype), model, **options) for hidden in (LIME, RED))
    if alpha == "opaque":  # what was hidden is seen now: near the edge it is red
        got, want = (
            np.dstack([image[..., :3], restore_tiled(icon(dtype=dtype), model)[..., 3]]) for image in (got, want)
        )
    assert_looks_the_same(got, want)


def test_grey_with_alpha():
    for channels in (1, 3):
        model = seeing(3, channels=channels)
        got, want = (restore_tiled(icon(hidden)[..., [1, 3]].copy(), model, halo=3) for hidden in (LIME, RED))
        assert_looks_the_same(got, want)


def test_the_grey_of_colours_with_alpha():
    model = nn.Conv2d(1, 3, 3, padding=1).eval()
    with pytest.warns(UserWarning, match="own colours are not used"):
        got, want = (restore_tiled(icon(hidden), model, halo=1) for hidden in (LIME, RED))
    assert_looks_the_same(got, want)


def gaps_of(image):
    dtype = str(image.dtype).removeprefix("torch.")
    return HiddenColours(dtype, WHITE.get(dtype, 1) / 2)


@pytest.mark.parametrize("size", [(5, 7), (64, 64), (130, 65), (63, 200)])
def test_every_pixel_beside_a_visible_one_has_its_colour(size):
    """Also where blocks end: at multiples of 2 ... 64."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = np.zeros((*size, 4), np.uint8)
        image[..., :3] = LIME
        y, x = (int(rng.integers(side)) for side in size)
        image[y:, x:, :3], image[y:, x:, 3] = RED, 255
        filled = np.empty_like(image)
        FilledSource(open_image(image, None), 0, gaps_of(image)).read(0, filled)
        near = filled[max(0, y - REACH) :, max(0, x - REACH) :]
        assert (near[..., :3] == RED).all()
        np.testing.assert_array_equal(filled[..., 3], image[..., 3])


def test_nothing_near_is_mid_grey():
    image = np.zeros((300, 300, 4), np.uint8)
    image[:9, :9] = 255
    filled = np.empty_like(image)
    FilledSource(open_image(image, None), 0, gaps_of(image)).read(0, filled)
    assert (filled[200:, 200:, :3] == 128).all()
    assert (filled[:64, :64, :3] == 255).all()


def noise_with_holes(size, dtype="uint8", channels=4):
    rng = np.random.default_rng(1)
    image = rng.random((*size, channels)) * WHITE.get(dtype, 1)
    image[..., -1][rng.random(size) < 0.4] = 0
    image[size[0] // 3 :, size[1] // 2 :, -1] = 0
    return image.astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", "bfloat16"])
def test_arrays_and_tensors_are_filled_alike(dtype):
    for size in ((200, 1100), (7, 5), (129, 64)):
        image = noise_with_holes(size, "float32" if dtype == "bfloat16" else dtype)
        image[image[..., 3] == 0, 0] = np.nan if "float" in dtype else 255  # counts for nothing
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).to(getattr(torch, dtype))
        source = FilledSource(open_image(tensor, None), 0, gaps_of(tensor))
        got = np.empty(source.shape, source.dtype)
        source.read(0, got)
        want = filled_tensor(tensor, dtype, gaps_of(tensor)).permute(1, 2, 0).contiguous()
        np.testing.assert_array_equal(got, (want.view(torch.uint16) if dtype == "bfloat16" else want).numpy())
        for start, stop in ((0, 1), (3, size[0]), (size[0] // 2, size[0] // 2 + 1)):
            rows = np.empty((stop - start, *got.shape[1:]), got.dtype)
            source.read(start, rows)
            np.testing.assert_array_equal(rows, got[start:stop])
        visible = image[..., 3] != 0
        if dtype != "bfloat16":
            np.testing.assert_array_equal(got[visible], image[visible])


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiles_engines_and_axes_give_the_same_bits(dtype, boundary):
    image, model = noise_with_holes((150, 83), dtype), seeded(lambda: Chain(3, scale=2))
    options = {"halo": 3, "boundary": boundary, "overlap": 0, "memory_format": "contiguous"}
    want = restore_tiled(image, model, tile_size=48, **options)
    for given in (image, np.asfortranarray(image), image[::-1][::-1], np.stack([image, image])):
        for engine in ("host", "torch"):
            got = restore_tiled(given, model, tile_size=48, engine=engine, **options)
            np.testing.assert_array_equal(got if got.ndim == 3 else got[1], want)
    bands = np.concatenate([rows for _, rows in iter_bands(image, model, tile_size=48, **options)])
    np.testing.assert_array_equal(bands, want)
    first = restore_tiled(image.transpose(2, 0, 1).copy(), model, tile_size=48, layout="CHW", **options)
    np.testing.assert_array_equal(first.transpose(1, 2, 0), want)
    whole = restore_tiled(image, model, tile_size=512, **options)
    assert np.abs(whole.astype(float) - want).max() <= (1 if dtype != "float32" else 1e-5)
    assert verify(image, model, want, tile_size=48, **options).seamless(1e-4 * WHITE.get(dtype, 1))


def test_what_is_visible_is_given_as_it_is():
    image, seen = noise_with_holes((40, 50)), []

    def model(x):
        seen.append(x.copy())
        return x * 1

    restore_tiled(image, model, halo=0, scale=1)
    visible = image[..., 3] != 0
    np.testing.assert_array_equal(seen[0][0].transpose(1, 2, 0)[visible], (image[..., :3] / np.float32(255))[visible])
    assert len(seen) == 2 and (seen[1][0, 0] == image[..., 3] / np.float32(255)).all()


def test_no_image_that_hides_nothing_changes():
    image, model = np.random.default_rng(0).integers(1, 256, (60, 70, 4), np.uint8), seeing(2)
    got = restore_tiled(image, model, tile_size=32, halo=2)
    np.testing.assert_array_equal(got[..., :3], restore_tiled(image[..., :3].copy(), model, tile_size=32, halo=2))


def test_channels_that_are_no_picture_with_alpha_stay_what_they_are():
    image, model = noise_with_holes((40, 50)), nn.Conv2d(4, 4, 1, bias=False).eval()
    with torch.no_grad():
        model.weight[:] = torch.eye(4)[..., None, None]
    np.testing.assert_array_equal(restore_tiled(image, model), image)
    np.testing.assert_array_equal(restore_tiled(image, lambda x: x * 1, alpha="channel"), image)
    two = noise_with_holes((40, 50), channels=2)
    np.testing.assert_array_equal(restore_tiled(two, lambda x: x * 1, alpha="channel"), two)


# ---- constant alpha --------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    def __init__(self, scale=1):
        super().__init__()
        self.model, self.calls = seeing(2, scale), 0

    def forward(self, x):
        self.calls += 1
        return self.model(x) + 0.05


@pytest.mark.parametrize("alpha", ["restore", "resize"])
@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize("value", [255, 128, 1, 0])
def test_constant_alpha_costs_nothing_and_stays(value, engine, alpha):
    model = Counted(2)
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 4), np.uint8)
    image[..., 3] = value
    options = {"tile_size": 24, "halo": 2, "engine": engine}
    colour = restore_tiled(image[..., :3].copy(), model, **options)
    calls, model.calls = model.calls, 0
    for given in (image, image.transpose(1, 0, 2).copy().transpose(1, 0, 2)):
        got = restore_tiled(given, model, alpha=alpha, **options)
        np.testing.assert_array_equal(got[..., :3], colour)
        assert (got[..., 3] == value).all()
    assert model.calls == 2 * calls


@pytest.mark.parametrize("out_dtype", ["uint8", "uint16", "float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("share", [1.0, 128 / 255, 0.3])
def test_constants_are_exact_in_every_dtype(dtype, out_dtype, share):
    white, out_white = WHITE.get(dtype, 1), WHITE.get(out_dtype, 1)
    image = torch.rand(4, 20, 30, dtype=torch.float64) * white
    image[3] = share * white
    image = (image.round() if white > 1 else image).to(getattr(torch, dtype))
    exact = float(image[3, 0, 0].double()) / white * out_white
    wanted = torch.tensor(exact, dtype=torch.float64)
    wanted = (wanted.round() if out_white > 1 else wanted).to(getattr(torch, out_dtype))
    for engine in ("host", "torch"):
        got = restore_tiled(image, seeing(1), out_dtype=out_dtype, engine=engine)
        assert got.dtype == wanted.dtype
        assert bool((got[3].double() == wanted.double()).all())
    if "bfloat16" not in (dtype, out_dtype):
        array = restore_tiled(image.numpy().transpose(1, 2, 0), seeing(1), out_dtype=out_dtype)
        assert (array[..., 3] == wanted.numpy()).all()


def test_constants_are_clamped_where_results_are():
    image = np.full((20, 30, 4), 1.5, np.float32)
    assert (restore_tiled(image, seeing(1))[..., 3] == 1.5).all()
    assert (restore_tiled(image, seeing(1), value_range=(-1, 1))[..., 3] == 1).all()
    assert (restore_tiled(image, seeing(1), out_dtype="uint8")[..., 3] == 255).all()


def test_each_image_of_several_has_its_own_alpha():
    model, image = Counted(), np.random.default_rng(0).integers(1, 256, (3, 40, 50, 4), np.uint8)
    image[0, ..., 3], image[2, ..., 3] = 255, 7
    got = restore_tiled(image, model, halo=2)
    assert model.calls == 4
    assert (got[0, ..., 3] == 255).all() and (got[2, ..., 3] == 7).all()
    for one, whole in zip(image, got, strict=True):
        np.testing.assert_array_equal(restore_tiled(one, model, halo=2), whole)
    restorer = TiledRestorer(model, halo=2)
    for one, whole in zip(image, got, strict=True):
        np.testing.assert_array_equal(restorer(one), whole)


def test_one_pixel_makes_it_another():
    image = np.full((70, 90, 4), 255, np.uint8)
    image[69, 89, 3] = 254
    model = Counted()
    restore_tiled(image, model, halo=2)
    assert model.calls == 2
    assert alpha_of(open_image(image, None), 0) == Alpha(None, False)
    image[69, 89, 3] = 0
    assert alpha_of(open_image(image, None), 0) == Alpha(None, True)
    floats = np.ones((70, 90, 4), np.float32)
    floats[..., 3] = np.nan
    assert alpha_of(open_image(floats, None), 0) == Alpha(None, False)


def test_constant_alpha_is_verified_without_it():
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 4), np.uint8)
    image[..., 3] = 200
    restorer = TiledRestorer(seeing(2), tile_size=24, halo=2, verify=3)
    assert (restorer(image)[..., 3] == 200).all()
    assert restorer.last_run.verified.seamless(0.5)


# ---- by rows ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def as_zarr(image):
    array = pytest.importorskip("zarr").create_array(
        store="in.zarr", shape=image.shape, dtype=image.dtype, chunks=(50, 30, 4), overwrite=True
    )
    array[...] = image
    return array


def as_npy(image):
    np.save("in.npy", image)
    return "in.npy"


def as_png(image):
    pytest.importorskip("pyvips")
    files.write_image("in.png", image)
    return "in.png"


@pytest.mark.parametrize("source", [as_zarr, as_npy, as_png])
@pytest.mark.parametrize("engine", ["host", "torch"])
def test_by_rows_the_bits_are_the_same(place, source, engine):
    model, options = seeing(3, 2), {"tile_size": 32, "halo": 3}
    for image in (icon(size=(300, 101)), noise_with_holes((210, 90)), icon(size=(150, 64))[..., [0, 1, 2, 3]]):
        restore_to("out.npy", source(image), model, engine=engine, **options)
        np.testing.assert_array_equal(np.load("out.npy"), restore_tiled(image, model, **options))
    opaque = np.random.default_rng(0).integers(0, 256, (130, 70, 4), np.uint8)
    opaque[..., 3] = 255
    counted = Counted()
    restore_to("out.npy", source(opaque), counted, engine=engine, **options)
    assert (np.load("out.npy")[..., 3] == 255).all()
    calls, counted.calls = counted.calls, 0
    restore_tiled(opaque[..., :3].copy(), counted, **options)
    assert counted.calls == calls


def test_stacks_with_alpha(place):
    stack = np.stack([icon(), noise_with_holes((90, 101)), icon(RED)])
    model = seeing(2)
    restore_to("out.npy", as_npy(stack), model, tile_size=32, halo=2)
    np.testing.assert_array_equal(np.load("out.npy"), restore_tiled(stack, model, tile_size=32, halo=2))


def test_a_file_is_read_again_only_for_its_alpha(place, monkeypatch):
    opened, own = [], PictureSource._open
    monkeypatch.setattr(PictureSource, "_open", lambda self: (opened.append(1), own(self)))
    opaque = np.full((90, 50, 4), 255, np.uint8)
    restore_to("out.npy", as_png(opaque), seeing(1), tile_size=32, halo=1)
    assert len(opened) == 2
    opened.clear()
    restore_to("out.npy", as_png(opaque), seeing(1), tile_size=32, halo=1, alpha="opaque")
    assert len(opened) <= 2


def test_a_changing_alpha_is_noticed_at_once(place, monkeypatch):
    """Before the run, no more is read than up to the first strip that differs."""
    from halotile.files.npy import NpySource

    reads, own = [], NpySource.read
    monkeypatch.setattr(NpySource, "read", lambda self, at, rows: reads.append((at, len(rows))) or own(self, at, rows))
    monkeypatch.setattr("halotile.images.scan.STRIP", 4000)
    restore_to("out.npy", as_npy(noise_with_holes((400, 50))), seeing(1), tile_size=32, halo=1)
    assert reads[0] == (0, 20)
    assert reads[1][0] == 0
    ends = [0, *(start + count for start, count in reads[1:])]
    assert [start for start, _ in reads[1:]] == ends[:-1] and ends[-1] == 400


def test_memory_does_not_grow_with_the_height(place):
    peaks = []
    for height in (700, 2800):
        image = noise_with_holes((height, 160))
        as_npy(image)
        del image
        restore_to("out.npy", "in.npy", lambda x: x * 1, tile_size=64, halo=2)
        tracemalloc.start()
        restore_to("out.npy", "in.npy", lambda x: x * 1, tile_size=64, halo=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_an_image_in_memory_is_not_copied_as_a_whole():
    image = noise_with_holes((20_000, 160))
    restorer = TiledRestorer(lambda x: x * 1, tile_size=64, halo=2)
    out = np.empty_like(image)
    restorer(image, out=out)
    tracemalloc.start()
    restorer(image, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes


# ---- on a device -----------------------------------------------------------------------------------------------------


def on_device(fake, image, model, **options):
    there = copy.deepcopy(model).to(DEVICE)
    fake.reset_counts()
    result = restore_tiled(image, there, **options)
    return result, fake.counts()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_images_that_go_to_a_device(fake_mps, dtype):
    model, options = seeing(3, 2), {"tile_size": 40, "halo": 3, "memory_format": "contiguous"}
    for image in (icon(dtype=dtype), noise_with_holes((150, 70), dtype)):
        got, counts = on_device(fake_mps, image, model, **options)
        np.testing.assert_array_equal(got, restore_tiled(image, model, engine="host", **options))
        assert counts["upload_bytes"] == image.nbytes and counts["download_bytes"] == got.nbytes
        assert counts["scalar_reads"] <= 3 and counts["synchronizes"] == 0  # is all finite: of colour and of alpha


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "bfloat16", "float32"])
def test_images_on_a_device_stay_there(fake_mps, dtype):
    """What is found out about alpha is one number more that comes down, before the loop."""
    model, options = seeing(3, 2), {"tile_size": 40, "halo": 3, "memory_format": "contiguous"}
    base = noise_with_holes((150, 70), "float32" if dtype == "bfloat16" else dtype)
    opaque = base.copy()
    opaque[..., 3] = WHITE.get(dtype, 1)
    for image, reads in ((base, 4), (opaque, 3)):  # is all finite: of colour, and of alpha that goes through the model
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).to(getattr(torch, dtype))
        want = restore_tiled(tensor, model, engine="host", **options)
        got, counts = on_device(fake_mps, tensor.to(DEVICE), model, **options)
        words = (one.cpu().contiguous().view(torch.uint8) for one in (got, want))
        assert torch.equal(*words)
        assert counts["upload_bytes"] == counts["download_bytes"] == counts["synchronizes"] == 0
        assert counts["scalar_reads"] == reads
    colour = torch.from_numpy(base[..., :3].transpose(2, 0, 1).copy()).to(getattr(torch, dtype)).to(DEVICE)
    assert on_device(fake_mps, colour, model, **options)[1]["scalar_reads"] == 2


def test_an_image_read_by_rows_for_a_device(fake_mps, place):
    model, options = seeing(2), {"tile_size": 40, "halo": 2, "memory_format": "contiguous"}
    image = icon(size=(200, 70))
    there = copy.deepcopy(model).to(DEVICE)
    as_npy(image)
    fake_mps.reset_counts()
    restore_to("out.npy", "in.npy", there, **options)
    assert fake_mps.counts()["upload_bytes"] == image.nbytes
    np.testing.assert_array_equal(np.load("out.npy"), restore_tiled(image, model, engine="host", **options))


def test_colours_and_grey_on_a_device(fake_mps):
    """The grey of colours, and how colourful grey became: a number each."""
    image = np.random.default_rng(0).integers(0, 256, (3, 60, 70), np.uint8)
    model, options = nn.Conv2d(1, 3, 3, padding=1).eval(), {"tile_size": 40, "halo": 1, "memory_format": "contiguous"}
    tensor = torch.from_numpy(image)
    with pytest.warns(UserWarning, match="own colours"):
        want = restore_tiled(tensor, model, **options)
    with pytest.warns(UserWarning, match="own colours"):
        got, counts = on_device(fake_mps, tensor.to(DEVICE), model, **options)
    assert torch.equal(got.cpu(), want)
    assert counts["scalar_reads"] == 3 and counts["upload_bytes"] == counts["download_bytes"] == 0
    with pytest.warns(UserWarning, match="makes colours of a grey image"):
        want = restore_tiled(tensor[0], seeing(2), **options)
    with pytest.warns(UserWarning, match="makes colours of a grey image"):
        got, counts = on_device(fake_mps, tensor[0].to(DEVICE), seeing(2), **options)
    assert torch.equal(got.cpu(), want)
    assert counts["scalar_reads"] == 3 and counts["upload_bytes"] == counts["download_bytes"] == 0


def test_nan_is_told_where_all_is_hidden_and_replaced_where_something_shows():
    """docs/images.md says so."""
    image = np.full((40, 40, 4), 0.5, np.float32)
    image[10, 10, :3], image[..., 3] = np.nan, 0
    with pytest.raises(NonFiniteError):
        restore_tiled(image, lambda x: x * 1, tile_size=24, halo=4)
    image[20:, :, 3] = 1
    assert np.isfinite(restore_tiled(image, lambda x: x * 1, tile_size=24, halo=4)).all()
