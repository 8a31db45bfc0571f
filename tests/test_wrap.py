# SPDX-License-Identifier: MIT
"""boundary="wrap": windows go on at the opposite edge, so that seamless textures stay seamless."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import TiledRestorer, plan_tiles, restore_tiled, restore_to  # noqa: E402
from halotile.images.source import Source  # noqa: E402
from halotile.run.wrapped import pieces  # noqa: E402
from halotile.testing import assert_exact  # noqa: E402

from .architectures import chain, conv  # noqa: E402
from .networks import Chain, Strided, on_arrays, seeded  # noqa: E402

IMAGE = np.random.default_rng(3).random((61, 47, 3), np.float32)
WRAP = {"boundary": "wrap", "tile_size": 20, "phase": 1}


def round_trip(scale=1):
    return seeded(lambda: Chain(3, mode="circular", scale=scale))


def whole(model, image=IMAGE):
    return on_arrays(model)(image.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)


def wrapped_whole(model, halo, image=IMAGE, scale=1):
    """crop(model(wrap_pad(image, halo)))"""
    padded = np.pad(image, ((halo, halo), (halo, halo), (0, 0)), mode="wrap")
    return whole(model, padded)[halo * scale : -halo * scale or None, halo * scale : -halo * scale or None]


@pytest.mark.parametrize("size", [16, 20, (13, 47), 200])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_model_that_pads_circularly_is_exact(size, scale):
    model = round_trip(scale)
    restorer = TiledRestorer(model, **WRAP | {"tile_size": size}, halo="exact", batch_size=2)
    np.testing.assert_allclose(restorer(IMAGE), whole(model), rtol=0, atol=2e-6)
    assert (restorer.last_run.how, restorer.last_run.bound, restorer.last_run.halo) == ("exact", 0, (3, 3))


def test_it_matters():
    model = round_trip()
    reflected = restore_tiled(IMAGE, model, **WRAP | {"boundary": "reflect"}, halo="exact")
    assert np.abs(reflected - whole(model)).max() > 0.01


def test_a_stride_on_sides_that_it_divides():
    class Circular(nn.Module):
        def __init__(self):
            super().__init__()
            circular = {"padding_mode": "circular"}
            self.head, self.body = nn.Conv2d(3, 8, 3, padding=1, **circular), nn.Conv2d(8, 8, 3, padding=1, **circular)
            self.down, self.up = nn.Conv2d(8, 8, 4, 4), nn.ConvTranspose2d(8, 3, 4, 4)

        def forward(self, x):
            return x + self.up(self.body(self.down(self.head(x))))

    model, image = seeded(Circular), IMAGE[:60, :44]
    restorer = TiledRestorer(model, boundary="wrap", tile_size=20, halo="exact", phase=None)
    np.testing.assert_allclose(restorer(image), whole(model, image), rtol=0, atol=2e-6)
    assert restorer.last_run.phase == (4, 4)


def test_any_model_is_that_of_the_wrapped_image():
    model = seeded(lambda: Chain(3))
    np.testing.assert_allclose(
        restore_tiled(IMAGE, model, **WRAP, halo=12), wrapped_whole(model, 12), rtol=0, atol=2e-6
    )
    valid = seeded(lambda: Chain(3, valid=True))
    padded = np.pad(IMAGE, ((3, 3), (3, 3), (0, 0)), mode="wrap")
    np.testing.assert_allclose(restore_tiled(IMAGE, valid, **WRAP, halo=5), whole(valid, padded), rtol=0, atol=2e-6)


def test_sides_that_are_no_multiple_of_the_phase_are_completed_by_what_follows():
    model = seeded(lambda: Strided(2, scale=2))
    padded = np.pad(IMAGE, ((12, 13), (12, 13), (0, 0)), mode="wrap")
    got = restore_tiled(IMAGE, model, **WRAP | {"phase": 2}, halo=12)
    np.testing.assert_allclose(got, whole(model, padded)[24:146, 24:118], rtol=0, atol=2e-6)


def test_an_image_smaller_than_its_halo_wraps_more_than_once():
    model, image = round_trip(), IMAGE[:2, :3]
    got = restore_tiled(image, model, **WRAP, halo=7)
    np.testing.assert_allclose(got, wrapped_whole(seeded(lambda: Chain(3)), 7, image)[:], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_engines_agree(dtype):
    peak = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    image = (IMAGE * peak).astype(dtype)
    options = {**WRAP, "halo": 3, "batch_size": 3, "value_range": (-1, 2)}
    got, want = (restore_tiled(image, round_trip(), **options, engine=engine) for engine in ("torch", "host"))
    np.testing.assert_array_equal(got, want)
    floats = restore_tiled(image, round_trip(), **options, out_dtype="float32")
    want = np.clip((whole(round_trip(), image / np.float32(peak) * 3 - 1) + 1) / 3, 0, 1)
    np.testing.assert_allclose(floats, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("engine", ["mps", "torch"])
def test_the_same_on_the_device(fake_mps, engine):
    want = restore_tiled(IMAGE, round_trip(), **WRAP, halo=3)
    for image in (IMAGE, torch.from_numpy(IMAGE.transpose(2, 0, 1).copy()).to("fakemps")):
        got = restore_tiled(image, round_trip().to("fakemps"), **WRAP, halo=3, batch_size=2, engine=engine)
        got = got if isinstance(got, np.ndarray) else got.cpu().numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_a_result_tiles_seamlessly():
    """Rolled images give rolled results: no place is an edge."""
    model = seeded(lambda: Chain(3))  # of any padding: windows have none of it
    got = restore_tiled(IMAGE, model, **WRAP, halo="exact")
    rolled = restore_tiled(np.roll(IMAGE, (17, 29), (0, 1)), model, **WRAP, halo="exact")
    np.testing.assert_allclose(np.roll(got, (17, 29), (0, 1)), rolled, rtol=0, atol=2e-6)


def test_streams_wrap_too():
    model = seeded(lambda: Chain(3))
    restorer = TiledRestorer(model, boundary="wrap", halo="exact", schedule="stream")
    np.testing.assert_allclose(restorer(IMAGE), wrapped_whole(model, 3), rtol=0, atol=2e-6)
    assert restorer.last_run.schedule == "stream"


class Counted(Source):
    def __init__(self, image):
        self.image, self.shape, self.dtype, self.rows_read = image, image.shape, image.dtype, 0

    def read(self, start, rows):
        self.rows_read += len(rows)
        rows[...] = self.image[start : start + len(rows)]

    def laid(self, layout):
        return self

    def single(self, layout, index):
        return self


def test_rows_of_a_file_are_read_about_once(tmp_path):
    """Those of the opposite edge are held beside those that the run has come to."""
    source = Counted(np.concatenate([IMAGE] * 4))
    restore_to(tmp_path / "out.npy", source, round_trip(), **WRAP, halo=3)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), whole(round_trip(), source.image), rtol=0, atol=2e-6)
    assert source.rows_read <= len(source.image) + 60


def test_hidden_pixels_and_missing_values_wrap():
    image = np.concatenate([IMAGE, np.ones((61, 47, 1), np.float32)], 2)
    image[10:20, 10:20, 3] = 0
    got = restore_tiled(image, round_trip(), **WRAP, halo=3)
    want = restore_tiled(image, round_trip(), boundary="wrap", tile_size=200, phase=1, halo=3)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    holes = IMAGE.copy()
    holes[0, 0] = -9
    got = restore_tiled(holes, round_trip(), **WRAP, halo=3, nodata=-9)
    assert (got[0, 0] == -9).all()
    np.testing.assert_allclose(got[10:50, 10:40], whole(round_trip())[10:50, 10:40], rtol=0, atol=2e-6)


def test_it_is_verified_and_named():
    model = round_trip()
    restorer = TiledRestorer(model, **WRAP, halo="exact", verify=6)
    restorer(IMAGE)
    assert restorer.last_run.verified.seamless(1e-5)
    found = assert_exact(IMAGE, model, **WRAP, halo="exact")
    assert "wrap_pad" in found.whole
    assert plan_tiles((61, 47), boundary="wrap").boundary == "wrap"
    with pytest.raises(ValueError, match="boundary must be one of 'reflect', 'native', 'wrap', not 'circular'"):
        restore_tiled(IMAGE, model, boundary="circular")


def test_statistics_of_the_wrapped_image():
    class Mean(nn.Module):
        def forward(self, x):
            return x - x.mean((2, 3), keepdim=True)

    model = chain(conv(3, 8), Mean(), conv(8, 3)).eval()
    got = restore_tiled(IMAGE, model, **WRAP, halo="exact", global_stats="exact")
    np.testing.assert_allclose(got, wrapped_whole(model, 2), rtol=0, atol=5e-6)


def test_pieces_of_a_side():
    assert list(pieces(-2, 5, 4)) == [(0, 2, 4), (2, 0, 3)]
    assert list(pieces(3, 9, 4)) == [(0, 3, 4), (1, 0, 4), (5, 0, 4)]
    assert list(pieces(0, 4, 4)) == [(0, 0, 4)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_the_command_line(tmp_path):
    from halotile.cli import main

    np.save(tmp_path / "in.npy", IMAGE)
    circular = [nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular") for _ in range(2)]
    model = torch.jit.script(chain(*circular).eval())
    model.save(tmp_path / "model.pt")
    files = [str(tmp_path / "in.npy"), "-o", str(tmp_path / "out.npy"), "--model", str(tmp_path / "model.pt")]
    assert main(["restore", *files, "--boundary", "wrap", "--tile", "20", "--value-range", "-9", "10", "--quiet"]) == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), (whole(model, IMAGE * 19 - 9) + 9) / 19, rtol=0, atol=2e-6
    )
