# SPDX-License-Identifier: MIT
"""read, accumulate, finish against their NumPy twins, bit for bit."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halotile import _core

from . import reference

DTYPES = ["uint8", "uint16", "float16", "float32", "float64"]
MODEL_DTYPES = ["float32", "float16", "bfloat16"]


def random_image(rng, shape, dtype):
    if dtype.startswith("u"):
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return (rng.standard_normal(shape) * 3).astype(dtype)


def in_layout(array, layout):
    """The (C, H, W) array with its memory in another order."""
    if layout == "CHW":
        return array
    if layout == "HWC":
        return np.ascontiguousarray(array.transpose(1, 2, 0)).transpose(2, 0, 1)
    if layout == "flipped":
        return np.ascontiguousarray(array[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    if layout == "strided":
        wide = np.zeros((array.shape[0], array.shape[1] * 2, array.shape[2] * 3), array.dtype)
        wide[:, ::2, ::3] = array
        return wide[:, ::2, ::3]
    raise AssertionError(layout)


LAYOUTS = ["CHW", "HWC", "flipped", "strided"]


def stored(values, dtype):
    """float32 values as a model array of a dtype."""
    return reference.bf16_bits(values) if dtype == "bfloat16" else values.astype(dtype)


def loaded(array, dtype):
    return reference.bf16_values(array) if dtype == "bfloat16" else array.astype(np.float32)


def same_bits(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)
    if a.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_read_every_dtype_and_layout(rng, dtype, layout, channels):
    image = random_image(rng, (channels, 23, 37), dtype)
    peak = {"uint8": 255.0, "uint16": 65535.0}.get(dtype, 1.0)
    for window_dtype, window_layout, (gain, offset) in itertools.product(
        MODEL_DTYPES, ["CHW", "HWC"], [(1, 0), (2.5, -1)]
    ):
        window = in_layout(np.zeros((channels, 30, 41), np.float32), window_layout)
        if window_dtype != "float32":
            window = np.zeros_like(window, np.uint16 if window_dtype == "bfloat16" else np.float16)
        want = stored(reference.read(image, -4, -6, 30, 41, peak, gain, offset), window_dtype)
        before = image.copy()
        _core.read(window, in_layout(image, layout), -4, -6, (peak, gain, offset, False))
        same_bits(np.ascontiguousarray(window), want)
        np.testing.assert_array_equal(image, before)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(-60, 60),
    st.integers(-60, 60),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_read_reflects_any_number_of_times(height, width, y, x, window_height, window_width):
    image = np.random.default_rng(height * 100 + width).integers(0, 255, (3, height, width), np.uint8)
    window = np.full((3, window_height, window_width), np.nan, np.float32)
    _core.read(window, in_layout(image, "HWC"), y, x)
    same_bits(window, reference.read(image, y, x, window_height, window_width))


WIDER = list(itertools.product(["uint8", "uint16", "float32", "bfloat16"], LAYOUTS, ["CHW", "HWC"], [1, 2, 3, 4]))


@pytest.mark.parametrize(("dtype", "layout", "window_layout", "channels"), WIDER)
def test_windows_much_wider_than_the_image_mirror_it_many_times(rng, dtype, layout, window_layout, channels):
    """Most of such a window is copied from the part that was read."""
    values = random_image(rng, (channels, 9, 14), "float32" if dtype == "bfloat16" else dtype)
    image = stored(values, dtype)
    peak = {"uint8": 255.0, "uint16": 65535.0}.get(dtype, 1.0)
    for y, x, height, width in [
        (-40, -50, 95, 110),
        (3, 5, 40, 60),
        (-40, 5, 45, 60),
        (20, -90, 30, 80),
        (-2, -3, 5, 8),
    ]:
        window = in_layout(np.zeros((channels, height, width), np.float32), window_layout)
        if dtype == "bfloat16":
            window = np.zeros_like(window, np.uint16)
        want = reference.read(loaded(image, dtype), y, x, height, width, peak, 2.0, -1.0)
        _core.read(window, in_layout(image, layout), y, x, (peak, 2.0, -1.0, False), dtype == "bfloat16")
        same_bits(np.ascontiguousarray(window), stored(want, dtype) if dtype == "bfloat16" else want)


def test_read_wide_rows_cross_pieces(rng):
    for width in (1023, 1024, 1025, 2049, 3333):
        image = random_image(rng, (3, 2, width), "uint8")
        window = np.empty((3, 2, width + 9), np.float32)
        _core.read(window, in_layout(image, "HWC"), 0, -5, (255.0, 1.0, 0.0, False))
        same_bits(window, reference.read(image, 0, -5, 2, width + 9, 255.0))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(("channels", "width"), [(1, 3000), (2, 1500), (3, 700), (4, 513), (1500, 4)])
def test_interleaved_to_interleaved_crosses_pieces(rng, dtype, channels, width):
    image = random_image(rng, (channels, 3, width), dtype)
    peak = 255.0 if dtype == "uint8" else 1.0
    for x, window_width in ((-3, width + 7), (2, width - 3), (width + 1, 9), (-20, 9)):
        window = in_layout(np.empty((channels, 4, window_width), np.float32), "HWC")
        want = reference.read(image, -1, x, 4, window_width, peak, 2.0, -1.0)
        _core.read(window, in_layout(image, "HWC"), -1, x, (peak, 2.0, -1.0, False))
        same_bits(np.ascontiguousarray(window), want)
    back = in_layout(np.zeros_like(image), "HWC")
    window = in_layout(reference.read(image, 0, 0, 3, width, peak), "HWC")
    assert _core.finish(back, window, None, None, (peak, 1.0, 0.0, False)) is None
    same_bits(np.ascontiguousarray(back), image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("peak", [1.0, 1023.0, 0.1, 99.5])
def test_integers_with_any_peak(rng, dtype, peak):
    image = random_image(rng, (3, 5, 77), dtype)
    for window_dtype, layout in itertools.product(MODEL_DTYPES, LAYOUTS):
        window = np.zeros((3, 7, 90), np.float32 if window_dtype == "float32" else np.uint16)
        window = window.view(np.float16) if window_dtype == "float16" else window
        with np.errstate(over="ignore"):
            want = stored(reference.read(image, -1, -4, 7, 90, peak, 0.3, 2.0), window_dtype)
        _core.read(window, in_layout(image, layout), -1, -4, (peak, 0.3, 2.0, False))
        same_bits(window, want)


def test_every_8_and_16_bit_value_is_divided_exactly():
    for dtype, peak in (("uint8", 255.0), ("uint16", 65535.0)):
        values = np.arange(int(peak) + 1).astype(dtype).reshape(1, 1, -1)
        window = np.empty(values.shape, np.float32)
        _core.read(window, values, 0, 0, (peak, 1.0, 0.0, False))
        same_bits(window, values.astype(np.float32) / np.float32(peak))
        back = np.empty_like(values)
        _core.finish(back, window, None, None, (peak, 1.0, 0.0, True))
        same_bits(back, values)


def test_grey_read_as_three_channels(rng):
    grey = random_image(rng, (1, 9, 11), "uint8")
    window = np.empty((3, 12, 12), np.float32)
    _core.read(window, np.broadcast_to(grey, (3, 9, 11)), -1, -1)
    same_bits(window, np.repeat(reference.read(grey, -1, -1, 12, 12), 3, axis=0))


@pytest.mark.parametrize("dtype", MODEL_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_accumulate(rng, dtype, layout, channels):
    for width in (1, 7, 33, 1500):
        source = stored(rng.standard_normal((channels, 6, width)).astype(np.float32), dtype)
        sums = rng.standard_normal((channels, 6, width)).astype(np.float32)
        wy, wx = rng.random(6, np.float32) + 0.1, rng.random(width, np.float32) + 0.1
        want = reference.accumulate(sums, loaded(source, dtype), wy, wx)
        assert _core.accumulate(sums, in_layout(source, layout), wy, wx) is None
        same_bits(sums, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source_dtype", MODEL_DTYPES)
def test_finish_every_dtype_and_layout(rng, dtype, layout, source_dtype):
    peak = {"uint8": 255.0, "uint16": 65535.0}.get(dtype, 1.0)
    for channels, source_layout, norm, (gain, offset, clamp) in itertools.product(
        [1, 3, 4], ["CHW", "HWC"], [False, True], [(1, 0, False), (2, -1, True)]
    ):
        shape = (channels, 5, 61)
        values = (rng.standard_normal(shape) * 0.7 + 0.4).astype(np.float32)
        values[0, 0, :4] = [-0.0, 0.5 / 255, 1.5 / 255, 2.5 / 255]
        source = stored(values, source_dtype)
        ny = rng.random(5, np.float32) + 1 if norm else None
        nx = rng.random(61, np.float32) + 1 if norm else None
        want = reference.finish(loaded(source, source_dtype), ny, nx, dtype, peak, gain, offset, clamp)
        destination = in_layout(np.zeros(shape, dtype), layout)
        before = source.copy()
        assert _core.finish(destination, in_layout(source, source_layout), ny, nx, (peak, gain, offset, clamp)) is None
        same_bits(np.ascontiguousarray(destination), want)
        np.testing.assert_array_equal(source, before)


def test_finish_bfloat16(rng):
    source = rng.standard_normal((3, 4, 50)).astype(np.float32)
    destination = np.zeros((3, 4, 50), np.uint16)
    _core.finish(destination, source, None, None, (1.0, 1.0, 0.0, False), True)
    same_bits(destination, reference.bf16_bits(source))
    window = np.empty((3, 4, 50), np.float32)
    _core.read(window, destination, 0, 0, (1.0, 1.0, 0.0, False), True)
    same_bits(window, reference.bf16_values(destination))


def test_rounding_is_half_to_even():
    source = (np.arange(0, 511, dtype=np.float32) / 2).reshape(
        1, 1, -1
    )  # 0, 0.5, 1, ... with peak 1 and no clamp below
    destination = np.empty(source.shape, np.uint8)
    _core.finish(destination, source / np.float32(255), None, None, (255.0, 1.0, 0.0, True))
    exact = source / np.float32(255) * np.float32(255)
    np.testing.assert_array_equal(destination, np.rint(np.minimum(exact, 255)).astype(np.uint8))
    assert (exact == source).mean() > 0.9  # the halves really are halves


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", MODEL_DTYPES)
def test_the_first_bad_value_is_found(rng, bad, dtype):
    for c, y, x in [(0, 0, 0), (2, 3, 40), (1, 0, 1029), (0, 4, 1199)]:
        values = rng.standard_normal((3, 5, 1200)).astype(np.float32)
        values[c, y, x] = bad
        values[2, 4, 1199] = bad
        source = stored(values, dtype)
        ones = np.ones(5, np.float32), np.ones(1200, np.float32)
        assert _core.accumulate(np.zeros((3, 5, 1200), np.float32), source, *ones) == (c, y, x)
        out = np.empty((3, 5, 1200), np.uint8)
        assert _core.finish(out, source, None, None, (255.0, 1.0, 0.0, True)) == (c, y, x)
        assert out[c, y, x] == (255 if bad == np.inf else 0)


def test_an_overflowing_quotient_is_found():
    source = np.full((1, 1, 3), 3e38, np.float32)
    tiny = np.full(3, 0.1, np.float32)
    out = np.empty((1, 1, 3), np.float32)
    assert _core.finish(out, source, np.ones(1, np.float32), tiny, (1.0, 1.0, 0.0, False)) == (0, 0, 0)
