# SPDX-License-Identifier: MIT
"""Images of every kind: dtypes, layouts, strides, alpha, grey, ranges, outputs. Models on arrays: no torch needed."""

from fractions import Fraction

import numpy as np
import pytest

import halotile
from halotile import TileError, iter_bands, restore_tiled
from halotile.images.image import from_bfloat16, to_bfloat16

OPTIONS = {"tile_size": 16, "halo": 4, "overlap": 3}


def identity(x: np.ndarray) -> np.ndarray:
    return np.array(x)


def twice(x: np.ndarray) -> np.ndarray:
    """Nearest x2."""
    return np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)


def colour_only(x: np.ndarray) -> np.ndarray:
    if x.shape[1] != 3:
        raise ValueError(f"expected 3 channels, got {x.shape[1]}")
    return np.array(x)


def grey_only(x: np.ndarray) -> np.ndarray:
    if x.shape[1] != 1:
        raise ValueError(f"expected 1 channel, got {x.shape[1]}")
    return np.array(x)


def random_image(rng, shape, dtype):
    if np.dtype(dtype).kind == "u":
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return (rng.standard_normal(shape) * 2).astype(dtype)


def shown(image):
    """The same where alpha hides no colours."""
    image[..., -1] += (image[..., -1] == 0).astype(image.dtype)
    return image


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 53), (40, 53, 1), (40, 53, 3), (40, 53, 7), (2, 40, 53, 3)])
def test_identity_returns_the_image(rng, dtype, shape):
    image = random_image(rng, shape, dtype)
    got = restore_tiled(image, identity, **OPTIONS)
    assert type(got) is np.ndarray and got.dtype == image.dtype and got.shape == shape
    np.testing.assert_array_equal(got, image if dtype != "float64" else image.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_identity_of_alpha_images(rng, dtype):
    for channels in (2, 4):
        image = shown(random_image(rng, (40, 53, channels), dtype))
        np.testing.assert_allclose(restore_tiled(image, identity, **OPTIONS), image, rtol=1e-6)


def test_any_memory_layout(rng, tmp_path):
    base = random_image(rng, (80, 159, 6), "uint8")
    fields = np.zeros((40, 53), [("pad", "u1"), ("v", "<f4")])  # unaligned
    fields["v"] = rng.random((40, 53))
    mapped = np.memmap(tmp_path / "image", np.uint16, "w+", shape=(40, 53, 3))
    mapped[:] = random_image(rng, mapped.shape, "uint16")
    frozen = random_image(rng, (40, 53, 3), "uint8")
    frozen.flags.writeable = False
    for image in [
        base[::2, ::3, ::2],
        base[::-2, ::-3, 3::-1][..., :3],
        base[:40, :53, :3],
        np.asfortranarray(base[:40, :53, :3]),
        np.broadcast_to(base[:1, :53, :3], (40, 53, 3)),
        base[:40, :53, :3].astype(">u2"),
        fields["v"],
        mapped,
        frozen,
    ]:
        before = image.copy()
        got = restore_tiled(image, identity, **OPTIONS)
        np.testing.assert_array_equal(got, image)
        np.testing.assert_array_equal(image, before)
        assert got.dtype == image.dtype.newbyteorder("=")


@pytest.mark.parametrize("layout", ["CHW", "NCHW", "HWC", "NHWC", "HW"])
def test_layouts(rng, layout):
    sides = {"N": 2, "C": 3, "H": 30, "W": 41}
    image = random_image(rng, tuple(sides[a] for a in layout), "uint8")
    got = restore_tiled(image, twice, layout=layout, **OPTIONS)
    assert got.shape == tuple(sides[a] * (2 if a in "HW" else 1) for a in layout)
    y, x = layout.index("H"), layout.index("W")
    np.testing.assert_array_equal(got, np.repeat(np.repeat(image, 2, axis=y), 2, axis=x))


def test_a_channels_first_array_is_not_taken_for_a_flat_image(rng):
    image = random_image(rng, (3, 40, 50), "uint8")
    with pytest.raises(ValueError, match="layout='CHW'"):
        restore_tiled(image, identity)
    assert restore_tiled(image, identity, layout="HWC").shape == (3, 40, 50)


def test_integers_reach_the_model_from_0_to_1_and_return_rounded_and_clamped(rng):
    for dtype, white in (("uint8", 255), ("uint16", 65535)):
        image = random_image(rng, (30, 30, 3), dtype)
        image[0, 0], image[0, 1] = 0, white
        seen = []

        def model(x, seen=seen):
            seen.append((x.min(), x.max(), x.dtype))
            return x * np.float32(1.5) - np.float32(0.1)

        got = restore_tiled(image, model, **OPTIONS)
        assert min(s[0] for s in seen) == 0 and max(s[1] for s in seen) == 1
        assert {s[2] for s in seen} == {np.dtype(np.float32)}
        scaled = (image.astype(np.float32) / np.float32(white)) * np.float32(1.5) - np.float32(0.1)
        np.testing.assert_array_equal(got, np.rint(np.clip(scaled * white, 0, white)).astype(dtype))


def test_rounding_does_not_truncate():
    """x + 0.4/255 must come back as x, x + 0.6/255 as x + 1."""
    image = np.arange(255, dtype=np.uint8).reshape(15, 17)
    np.testing.assert_array_equal(restore_tiled(image, lambda x: x + np.float32(0.4 / 255)), image)
    np.testing.assert_array_equal(restore_tiled(image, lambda x: x + np.float32(0.6 / 255)), image + 1)


def test_a_dark_16_bit_image_stays_16_bit():
    image = np.arange(200, dtype=np.uint16).reshape(10, 20)
    got = restore_tiled(image, identity)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, image)


def test_floats_pass_unscaled_and_unclamped(rng):
    image = (rng.standard_normal((30, 30)) * 1000).astype(np.float32)
    np.testing.assert_array_equal(restore_tiled(image, identity, **OPTIONS), image)
    np.testing.assert_array_equal(restore_tiled(image, lambda x: x * 2, **OPTIONS), image * 2)


def test_value_range(rng):
    image = random_image(rng, (30, 30, 3), "uint8")
    seen = []

    def model(x):
        seen.append(x.copy())
        return np.array(x)

    for low, high in [(-1, 1), (0, 255), (0.25, 0.75)]:
        seen.clear()
        got = restore_tiled(image, model, value_range=(low, high), halo=0)
        np.testing.assert_array_equal(got, image)
        t = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        np.testing.assert_allclose(seen[0][0], t * np.float32(high - low) + np.float32(low), rtol=1e-6)
    floats = np.linspace(-0.5, 1.5, 900, dtype=np.float32).reshape(30, 30)
    np.testing.assert_allclose(restore_tiled(floats, model, value_range=(-1, 1)), np.clip(floats, 0, 1), atol=1e-6)


def test_out_dtype(rng):
    image = random_image(rng, (30, 31, 3), "uint8")
    as_float = restore_tiled(image, identity, out_dtype="float32", **OPTIONS)
    assert as_float.dtype == np.float32
    np.testing.assert_array_equal(as_float, image.astype(np.float32) / np.float32(255))
    deep = restore_tiled(image, identity, out_dtype=np.uint16, **OPTIONS)
    np.testing.assert_array_equal(deep, image.astype(np.uint16) * 257)
    np.testing.assert_array_equal(restore_tiled(deep, identity, out_dtype=np.dtype("u1"), **OPTIONS), image)
    with pytest.raises(ValueError, match="NumPy has no such dtype"):
        restore_tiled(image, identity, out_dtype="bfloat16")


# ---- channels --------------------------------------------------------------------------------------------------------


def test_grey_through_a_colour_model_and_back(rng):
    for shape in [(30, 41), (30, 41, 1)]:
        image = random_image(rng, shape, "uint8")
        got = restore_tiled(image, colour_only, **OPTIONS)
        assert got.shape == shape
        np.testing.assert_array_equal(got, image)


def test_colour_through_a_grey_model(rng):
    image = random_image(rng, (30, 41, 3), "uint8")
    np.testing.assert_array_equal(restore_tiled(image, grey_only, **OPTIONS), image)


def test_alpha(rng):
    rgba = shown(random_image(rng, (30, 41, 4), "uint8"))

    def brighter(x):
        return twice(colour_only(x)) + np.float32(20 / 255)

    colour = restore_tiled(rgba[..., :3], brighter, **OPTIONS)
    for alpha in ("restore", "resize", "opaque"):
        got = restore_tiled(rgba, brighter, alpha=alpha, **OPTIONS)
        assert got.shape == (60, 82, 4)
        np.testing.assert_array_equal(got[..., :3], colour)
        if alpha == "opaque":
            assert (got[..., 3] == 255).all()
        elif alpha == "restore":
            np.testing.assert_array_equal(got[..., 3], restore_tiled(rgba[..., 3], brighter, **OPTIONS))
        else:
            assert abs(got[::2, ::2, 3].astype(int) - rgba[..., 3]).mean() < 60
    la = restore_tiled(rgba[..., 2:], brighter, **OPTIONS)
    assert la.shape == (60, 82, 2)
    np.testing.assert_array_equal(la[..., 0], restore_tiled(rgba[..., 2], brighter, **OPTIONS))


@pytest.mark.parametrize("scale", [1, 2, 3, "1/2", "3/2"])
def test_resized_alpha_is_bilinear_and_seamless(rng, scale):
    s = Fraction(scale)
    alpha = rng.random((44, 50)).astype(np.float32)
    rgba = np.dstack([alpha] * 4)

    def model(x):
        size = int(x.shape[2] * s), int(x.shape[3] * s)
        return np.zeros((*x.shape[:2], *size), np.float32)

    tiled = restore_tiled(rgba, model, alpha="resize", scale=scale, phase=2, tile_size=10, halo=4, overlap=2)
    padded = np.pad(alpha, 4, mode="reflect")
    for y in range(0, tiled.shape[0], 7):
        for x in range(0, tiled.shape[1], 5):
            cy, cx = (y + 0.5) / float(s) - 0.5 + 4, (x + 0.5) / float(s) - 0.5 + 4
            iy, ix = int(cy), int(cx)
            fy, fx = cy - iy, cx - ix
            quad = padded[iy : iy + 2, ix : ix + 2]
            want = (quad * np.outer([1 - fy, fy], [1 - fx, fx])).sum()
            assert abs(tiled[y, x, 3] - want) < 1e-5


def test_alpha_as_a_channel(rng):
    image = random_image(rng, (30, 41, 4), "uint8")

    def four(x):
        assert x.shape[1] == 4
        return x[:, ::-1]

    got = restore_tiled(image, four, alpha="channel", **OPTIONS)
    np.testing.assert_array_equal(got, image[..., ::-1])


def test_output_channels_are_the_models(rng):
    image = random_image(rng, (30, 41, 3), "uint8")
    assert restore_tiled(image, lambda x: x[:, :1], **OPTIONS).shape == (30, 41, 1)
    assert restore_tiled(image, lambda x: np.repeat(x, 2, axis=1), **OPTIONS).shape == (30, 41, 6)
    grey = image[..., 0]
    assert restore_tiled(grey, lambda x: np.repeat(x, 3, axis=1), **OPTIONS).shape == (30, 41, 3)


# ---- out -------------------------------------------------------------------------------------------------------------


def test_out_is_filled_and_returned(rng, tmp_path):
    image = random_image(rng, (30, 41, 3), "uint8")
    want = restore_tiled(image, twice, **OPTIONS)
    plain = np.zeros_like(want)
    mapped = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint8, want.shape)
    window = np.zeros((100, 100, 5), np.uint8)[10:70, 5:87, 1:4]
    for out in (plain, mapped, window):
        assert restore_tiled(image, twice, out=out, **OPTIONS) is out
        np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want)
    deeper = np.zeros(want.shape, np.float32)  # its dtype stands in for out_dtype
    restore_tiled(image, twice, out=deeper, **OPTIONS)
    np.testing.assert_array_equal(deeper, want.astype(np.float32) / np.float32(255))


def test_bad_out(rng):
    image = random_image(rng, (30, 41, 3), "uint8")
    frozen = np.zeros((60, 82, 3), np.uint8)
    frozen.flags.writeable = False
    for out, kind, words in [
        (np.zeros((60, 80, 3), np.uint8), ValueError, r"out must have shape \(60, 82, 3\), not \(60, 80, 3\)"),
        (np.zeros((60, 82, 3), np.int32), TypeError, "out must have dtype .* not int32"),
        (frozen, ValueError, "writeable"),
        ([0], TypeError, "out must be a NumPy array"),
    ]:
        with pytest.raises(kind, match=words):
            restore_tiled(image, twice, out=out, **OPTIONS)
    with pytest.raises(TypeError, match="dtype float32, not uint8"):
        restore_tiled(image, twice, out=np.zeros((60, 82, 3), np.uint8), out_dtype="float32")
    with pytest.raises(ValueError, match="never modified"):
        restore_tiled(image, identity, out=image)


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        ([[1, 2]], TypeError, "NumPy array, a torch tensor, a Pillow image, or a zarr"),
        (np.zeros((4, 4), np.int32), TypeError, "not int32"),
        (np.zeros((4, 4), bool), TypeError, "not bool"),
        (np.zeros((4, 4), complex), TypeError, "not complex"),
        (np.zeros(4, np.uint8), ValueError, "dimensions"),
        (np.zeros((1, 1, 1, 1, 1), np.uint8), ValueError, "dimensions"),
        (np.zeros((0, 4), np.uint8), ValueError, "empty"),
        (np.zeros((4, 4, 0), np.uint8), ValueError, "empty"),
        (np.array([["a"]]), TypeError, "dtypes"),
    ],
)
def test_bad_images(image, kind, words):
    with pytest.raises(kind, match=words):
        restore_tiled(image, identity)


# ---- bands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize("overlap", [0, 3, 11, 15])
def test_bands_are_the_result_in_pieces(rng, blend, overlap):
    image = random_image(rng, (70, 41, 4), "uint8")
    options = {"tile_size": 16, "halo": 4, "overlap": overlap, "blend": blend}
    whole = restore_tiled(image, twice, **options)
    at, pieces = 0, []
    for y, rows in iter_bands(image, twice, **options):
        assert y == at and rows.shape[1:] == whole.shape[1:]
        at += len(rows)
        pieces.append(rows)
    assert len(pieces) > 2
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_bands_check_at_once_and_run_lazily(rng):
    calls = []

    def model(x):
        calls.append(1)
        return np.array(x)

    image = random_image(rng, (60, 40), "uint8")
    with pytest.raises(ValueError):
        iter_bands(image, model, tile_size=0)
    with pytest.raises(ValueError, match="single"):
        iter_bands(random_image(rng, (2, 40, 40, 3), "uint8"), model)
    with pytest.raises(ValueError, match="out must be None"):
        iter_bands(image, model, out=np.zeros_like(image))
    bands = iter_bands(image, model, tile_size=20, overlap=0, halo=2, scale=1)
    assert not calls
    next(bands)
    assert len(calls) == 2
    bands.close()
    assert len(calls) == 2


def test_names():
    assert issubclass(halotile.ModelOutputError, TileError) and issubclass(halotile.ModelOutputError, ValueError)
    assert set(halotile.__all__) <= set(dir(halotile))


def test_bfloat16_is_rounded_as_torch_rounds(rng):
    torch = pytest.importorskip("torch")
    words = np.array([0, 1 << 31, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0x3F808000], np.uint32)
    values = np.concatenate([rng.integers(0, 2**32, 100_000, np.uint32), words]).view(np.float32)
    found, number = to_bfloat16(values), ~np.isnan(values)
    want = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(found[number], want.view(torch.int16).numpy().view(np.uint16)[number])
    assert np.isnan(from_bfloat16(found)[~number]).all()
    np.testing.assert_array_equal(from_bfloat16(found)[number], want.float().numpy()[number])
