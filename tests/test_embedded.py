# SPDX-License-Identifier: MIT
"""The model that comes with halotile: its file, its strength, its tiles, and figures on a photo it was not trained on.

The photo is examples/seeding.jpg: training/photos.csv holds it out. The crop is the one that training/figures.json has
figures of, made by the same steps (reduced four times, the middle 512 x 512 pixels), with noise of another seed.
"""

import csv
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import inspect_model, restore_tiled  # noqa: E402
from halotile.models.embedded import WEIGHTS, Restorer, load_embedded, read_weights  # noqa: E402

from .networks import on_arrays  # noqa: E402
from .reference import whole  # noqa: E402

ROOT = Path(__file__).parents[1]


# ---- the file --------------------------------------------------------------------------------------------------------


def test_the_file_is_small_and_holds_the_whole_network():
    assert WEIGHTS.stat().st_size <= 1_000_000
    weights, wanted = read_weights(WEIGHTS), Restorer().state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {k: v.shape for k, v in wanted.items()}
    assert sum(tensor.numel() for tensor in weights.values()) == 383_180
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())


def test_it_is_read_as_safetensors_reads_it():
    theirs = pytest.importorskip("safetensors.torch").load_file(WEIGHTS)
    ours = read_weights(WEIGHTS)
    assert theirs.keys() == ours.keys()
    assert all(tensor.dtype == torch.float16 and torch.equal(tensor.float(), ours[k]) for k, tensor in theirs.items())


def file_of(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F16", shape=(2,), offsets=(0, 4)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_a_small_file_by_hand(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(file_of(entry() | {"__metadata__": {"a": "b"}}, np.array([1.5, -2], "<f2").tobytes()))
    weights = read_weights(path)
    assert list(weights) == ["w"] and weights["w"].tolist() == [1.5, -2]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 something else",
        file_of([1, 2]),
        file_of(entry("F32", (1,)), bytes(4)),
        file_of(entry(), bytes(3)),
        file_of(entry(shape=(3,)), bytes(4)),
        file_of(entry(offsets=(0, 99)), bytes(4))[:-1],
        file_of({"w": {"dtype": "F16"}}, bytes(4)),
        WEIGHTS.read_bytes()[:-2],
    ],
)
def test_a_damaged_file_is_refused(tmp_path, data):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.safetensors is not a readable file of weights"):
        read_weights(path)


# ---- strength --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "1", None, True, 1j])
def test_a_strength_that_is_none(strength):
    with pytest.raises(ValueError, match="strength must be a number from 0 to 1, not ") as caught:
        load_embedded(strength)
    assert repr(strength) in str(caught.value)


def test_strength_blends(rng):
    image = torch.from_numpy(rng.random((1, 3, 40, 34), np.float32))
    with torch.inference_mode():
        none, half, full = (load_embedded(strength)(image) for strength in (0, np.float32(0.5), 1))
    assert torch.equal(none, image)
    assert (full - image).abs().max() > 0.1
    torch.testing.assert_close(half, (image + full) / 2, rtol=0, atol=1e-6)


def test_strength_0_returns_files_as_they_are(rng):
    for dtype in (np.uint8, np.uint16):
        image = rng.integers(0, np.iinfo(dtype).max, (77, 91, 3), dtype, endpoint=True)
        assert np.array_equal(restore_tiled(image, load_embedded(0.0), tile_size=32), image)


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_what_inspection_finds():
    info = inspect_model(load_embedded())
    assert (info.scale, info.phase, info.multiple, info.trim) == (1, (2, 2), (2, 2), (0, 0))
    assert tuple(info.receptive_field) == (25, 25, 25, 25)
    assert info.global_operations == () and info.deterministic and info.batch_invariant and info.doubts == ()
    assert (info.in_channels, info.out_channels, info.clamps) == (3, 3, False)


@pytest.mark.parametrize("options", [{"halo": "exact", "phase": None}, {"halo": 24, "phase": 2}])
def test_tiles_of_odd_images_equal_the_whole(rng, options):
    model, image = load_embedded(), rng.random((101, 75, 3), np.float32)
    want = whole(image.transpose(2, 0, 1), on_arrays(model), halo=26, phase=2).transpose(1, 2, 0)
    got = restore_tiled(image, model, tile_size=32, overlap=0, **options)
    assert np.abs(got - image).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_25_pixels_are_seen_and_no_more():
    """By gradients in float64: whatever the weights, no more; with these, no less."""
    model = load_embedded().double()
    image = torch.rand(1, 3, 60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    output, reach = model(image), []
    for at in (30, 31):
        (gradient,) = torch.autograd.grad(output[0, :, at, at].sum(), image, retain_graph=True)
        seen = gradient[0].abs().amax((0, 1)).nonzero()
        reach += [at - int(seen.min()), int(seen.max()) - at]
    assert reach == [24, 25, 25, 24]


# ---- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo():
    """(512, 512, 3), float32 in [0, 1]."""
    image = pytest.importorskip("PIL.Image").open(ROOT / "examples" / "seeding.jpg").convert("RGB")
    small = image.resize((image.width // 4, image.height // 4), 1)  # 1: Lanczos
    left, top = (small.width - 512) // 2, (small.height - 512) // 2
    return np.asarray(small.crop((left, top, left + 512, top + 512))).astype(np.float32) / 255


def eight_bits(image):
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def noisy(photo, sigma):
    """As a file of 8 bits holds it."""
    return eight_bits(photo + np.random.default_rng(7).normal(0, sigma / 255, photo.shape))


def packed(photo, quality):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(eight_bits(photo)).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(buffer))


def psnr(image, clean):
    return -10 * np.log10(np.mean((image / 255.0 - clean) ** 2))


def gain(image, clean, strength=1.0):
    """Decibels between a degraded image and the restored one, both uint8."""
    restored = restore_tiled(image, load_embedded(strength), tile_size=256)
    return psnr(restored, clean) - psnr(image, clean)


def test_the_photo_was_held_out():
    with open(ROOT / "training" / "photos.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows if row["name"] == "seeding"] == ["test"]
    train, test = ({row["sha256"] for row in rows if row["split"] == split} for split in ("train", "test"))
    assert len(train) > 80 and len(test) > 10 and not train & test


def figures(case):
    rows = json.loads((ROOT / "training" / "figures.json").read_text())["rows"]
    (row,) = (row for row in rows if row["photo"] == "seeding" and row["case"] == case)
    return row


@pytest.mark.parametrize(("sigma", "least"), [(10, 9), (25, 12), (50, 13)])
def test_noise_of_any_strength_is_removed(photo, sigma, least):
    got, told = gain(noisy(photo, sigma), photo), figures(f"sigma {sigma}")
    assert got > least
    assert abs(got - (told["model"] - told["input"])) < 0.1


@pytest.mark.parametrize(("quality", "least"), [(30, 0.6), (80, 0.35)])
def test_jpeg_artefacts_are_reduced(photo, quality, least):
    got, told = gain(packed(photo, quality), photo), figures(f"JPEG {quality}")
    assert got > least
    assert abs(got - (told["model"] - told["input"])) < 0.1


def test_a_clean_photo_stays_what_it_is(photo):
    image = eight_bits(photo)
    assert np.array_equal(restore_tiled(image, load_embedded(0)), image)
    assert psnr(restore_tiled(image, load_embedded()), photo) > 40
    assert gain(noisy(photo, 25), photo, strength=0.5) > 4


def test_its_channels_decide_a_doubtful_order_of_axes():
    """Its first convolution takes twelve channels, those of four pixels."""
    image = torch.rand(1, 40, 50, 3)  # as ComfyUI has them
    got = restore_tiled(image, load_embedded())
    want = restore_tiled(image.permute(0, 3, 1, 2), load_embedded())
    assert torch.equal(got.permute(0, 3, 1, 2), want)
