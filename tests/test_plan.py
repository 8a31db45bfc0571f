# SPDX-License-Identifier: MIT
"""The plan: every output pixel covered, one window shape, phase kept, rows complete when they are said to be."""

import copy
import pickle
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import halotile
from halotile import _core, plan_tiles
from halotile.models.needs import Needs

from . import reference

BLENDS = ["average", "linear", "cosine", "gaussian"]
SCALES = [Fraction(1), Fraction(2), Fraction(4), Fraction(1, 2), Fraction(3, 2), Fraction(2, 3)]


@st.composite
def plans(draw):
    tile = draw(st.integers(1, 60))
    phase = draw(st.sampled_from([1, 1, 2, 3, 4, 8]))
    scale = draw(st.sampled_from(SCALES))
    overlap = draw(st.integers(0, tile - 1))
    options = {
        "tile_size": tile,
        "halo": draw(st.integers(0, 70)),
        "overlap": overlap,
        "phase": phase,
        "scale": scale,
        "boundary": draw(st.sampled_from(["reflect", "native"])),
        "blend": draw(st.sampled_from(BLENDS)),
        "needs": Needs(minimum=draw(st.sampled_from([1, 1, 20, 90]))),
    }
    try:
        return options, plan_tiles((draw(st.integers(1, 150)), draw(st.integers(1, 150))), **options)
    except ValueError as error:
        assert "tile_size - overlap must be at least the phase" in str(error)
        assume(False)


def ranges(plan, axis):
    return [plan.core.keep(axis, i) for i in range(plan.grid[axis])]


@settings(max_examples=300, deadline=None)
@given(plans())
def test_every_output_pixel_is_covered_and_boxes_are_inside(case):
    _, plan = case
    cover = np.zeros(plan.output_size, int)
    exclusive = np.zeros(plan.output_size, int)
    for tile in plan:
        keep = tile.keep
        assert 0 <= keep.y < keep.y_stop <= plan.output_size[0]
        assert 0 <= keep.x < keep.x_stop <= plan.output_size[1]
        cover[keep.y : keep.y_stop, keep.x : keep.x_stop] += 1
        exclusive[tile.exclusive.y : tile.exclusive.y_stop, tile.exclusive.x : tile.exclusive.x_stop] += 1
    assert cover.min() >= 1
    assert np.array_equal(exclusive == 1, cover == 1)
    assert exclusive.max() <= 1
    assert plan.output_size == tuple(
        -(-side * plan.scale.numerator // plan.scale.denominator) for side in plan.image_size
    )


@settings(max_examples=300, deadline=None)
@given(plans())
def test_one_window_shape_phase_and_halo(case):
    options, plan = case
    for tile in plan:
        window = tile.window
        assert (window.height, window.width) == plan.window
        for axis, (start, side, size) in enumerate(
            [(window.y, window.height, plan.image_size[0]), (window.x, window.width, plan.image_size[1])]
        ):
            phase, halo = plan.phase[axis], plan.halo[axis]
            assert start % phase == 0 and side % phase == 0 and side >= options["needs"].minimum
            assert phase % options["phase"] == 0 and phase % plan.scale.denominator == 0
            keep = (tile.keep.y, tile.keep.y_stop) if axis == 0 else (tile.keep.x, tile.keep.x_stop)
            left = keep[0] - start * plan.scale  # output pixels of context on either side
            right = (start + side) * plan.scale - keep[1]
            at_start, at_end = keep[0] == 0, keep[1] == plan.output_size[axis]
            if options["boundary"] == "native":
                least = options["needs"].minimum
                assert start >= 0 and start + side <= reference.round_up(max(size, least), phase)
                assert (at_start and start == 0) or left >= halo * plan.scale
                assert (at_end and start + side >= size) or right >= halo * plan.scale
            else:
                assert left >= halo * plan.scale
                assert right >= halo * plan.scale - plan.scale  # ceil(size * scale) may end inside a pixel
            assert tile.crop[axis] == left


@settings(max_examples=200, deadline=None)
@given(plans())
def test_tiles_are_no_larger_than_asked_and_overlap_enough(case):
    options, plan = case
    for axis in (0, 1):
        keeps = ranges(plan, axis)
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(keeps))
        for i, (start, stop) in enumerate(keeps):
            inner = 0 < i < len(keeps) - 1
            if inner:
                least = plan.phase[axis] + reference.round_up(
                    2 * plan.halo[axis] + options["overlap"], plan.phase[axis]
                )
                least = max(least, reference.round_up(options["needs"].minimum, plan.phase[axis]))
                assert stop - start <= max(options["tile_size"], least - 2 * plan.halo[axis]) * plan.scale
        for a, b in pairwise(keeps):
            assert a[1] - b[0] >= options["overlap"] * plan.scale - 1e-9


@settings(max_examples=200, deadline=None)
@given(plans())
def test_rows_are_complete_exactly_when_their_last_tile_has_run(case):
    _, plan = case
    left = np.zeros(plan.output_size[0], int)
    for tile in plan:
        left[tile.keep.y : tile.keep.y_stop] += 1
    assert plan.rows_complete(-1) == 0
    for tile in plan:
        left[tile.keep.y : tile.keep.y_stop] -= 1
        waiting = np.flatnonzero(left)
        assert plan.rows_complete(tile.index) == (waiting[0] if len(waiting) else plan.output_size[0])


@settings(max_examples=150, deadline=None)
@given(plans())
def test_weights_and_normalisers_match_the_reference(case):
    _, plan = case
    for axis in (0, 1):
        keeps = ranges(plan, axis)
        total = np.zeros(plan.output_size[axis], np.float64)
        for i, (start, stop) in enumerate(keeps):
            got = plan.core.weights(axis, i)
            np.testing.assert_allclose(got, reference.axis_weights(keeps, i, plan.blend), rtol=3e-7)
            assert got.min() > 0
            total[start:stop] += got
            exclusive = plan.core.exclusive(axis, i)
            assert (got[exclusive[0] - start : exclusive[1] - start] == 1).all()
        normaliser = plan.normaliser(axis)
        np.testing.assert_array_equal(normaliser, total.astype(np.float32))
        assert normaliser.min() > 0
    assert plan.weight_map().shape == plan.output_size


def test_average_counts():
    plan = plan_tiles((100, 100), tile_size=40, halo=5, overlap=10)
    cover = np.zeros(plan.output_size)
    for tile in plan:
        cover[tile.keep.y : tile.keep.y_stop, tile.keep.x : tile.keep.x_stop] += 1
    np.testing.assert_array_equal(plan.weight_map(), cover)


def test_balanced_as_in_the_design():
    plan = plan_tiles((2160, 3840, 3), tile_size=512, halo=32, overlap=0)
    assert plan.grid == (5, 8)
    assert plan.tile == (432, 480)
    assert plan.window == (496, 544)
    assert plan.processed_pixels == 40 * 496 * 544
    assert round(plan.processed_pixels / 1e6, 1) == 10.8


def test_native_windows_shift_inward_and_small_images_get_one_smaller_window():
    plan = plan_tiles((1000, 1000), tile_size=256, halo=20, overlap=0, boundary="native")
    assert all(t.window.y >= 0 and t.window.y_stop <= 1000 for t in plan)
    assert plan[0].window[:2] == (0, 0) and plan[-1].window.y_stop == 1000
    small = plan_tiles((50, 61), tile_size=256, halo=20, boundary="native", phase=4)
    assert len(small) == 1 and small.window == (52, 64)


def test_an_image_that_fits_a_tile_is_one_tile():
    for side in (1, 2, 511, 512):
        for phase in (1, 4, 8):
            assert len(plan_tiles((side, side), phase=phase)) == 1


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3), (2, 40, 60, 3)])
def test_shapes(shape):
    assert plan_tiles(shape).image_size == (40, 60)
    assert plan_tiles((3, 40, 60), layout="CHW").image_size == (40, 60)


def test_huge_sizes_are_planned_without_touching_memory():
    plan = plan_tiles((2**40, 2**40), tile_size=2**20, halo=2**10, overlap=0)
    last = plan[len(plan) - 1]
    assert last.keep.y_stop == 2**40 and last.keep.x_stop == 2**40
    assert plan[len(plan) // 3].window.height == plan.window[0]
    plan = plan_tiles((2**40, 1), tile_size=8, halo=0, overlap=0, scale=1024)
    assert plan.output_size == (2**50, 1024)
    assert plan[-1].keep.y_stop == 2**50


def test_too_many_tiles_is_an_error_not_an_overflow():
    with pytest.raises(ValueError, match="number of tiles"):
        plan_tiles((2**40, 2**40), tile_size=1, halo=0, overlap=0)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"tile_size": 0}, ValueError, "tile_size must be from 1 to 2**40, not 0"),
        ({"tile_size": 2.5}, TypeError, "tile_size must be a whole number, not 2.5"),
        ({"tile_size": True}, TypeError, "tile_size must be a whole number, not True"),
        ({"tile_size": (1, 2, 3)}, ValueError, "pair"),
        ({"halo": -1}, ValueError, "halo must be from 0 to 2**40, not -1"),
        ({"halo": "32"}, ValueError, "halo must be 'exact', 'auto', a number or a pair (rows, columns), not '32'"),
        ({"overlap": 512}, ValueError, "overlap must be below tile_size, not 512 with tile_size 512"),
        ({"overlap": "some"}, ValueError, "overlap must be 'auto'"),
        ({"phase": 0}, ValueError, "phase must be from 1 to 2**40, not 0"),
        ({"tile_size": 8, "phase": 16}, ValueError, "at least the phase"),
        ({"tile_size": 2**50}, ValueError, "2**40"),
        ({"scale": 0}, ValueError, "scale must be a positive fraction"),
        ({"scale": "x"}, ValueError, "not 'x'"),
        ({"scale": 5000}, ValueError, "up to 1024"),
        ({"scale": 3.14159265}, ValueError, "up to 1024"),
        ({"scale": [2]}, ValueError, "scale"),
        ({"blend": "mean"}, ValueError, "blend must be one of 'average', 'linear', 'cosine', 'gaussian', not 'mean'"),
        ({"boundary": "zero"}, ValueError, "boundary must be one of 'reflect', 'native', not 'zero'"),
        ({"batch_size": 0}, ValueError, "batch_size must be from 1"),
        ({"value_range": (1, 0)}, ValueError, "low < high"),
        ({"value_range": 3}, ValueError, "value_range"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of float32, float16, bfloat16, not 'int8'"),
        ({"out_dtype": "int64"}, ValueError, "out_dtype must be one of"),
        ({"layout": "WW"}, ValueError, "layout must name each axis by a capital letter"),
        ({"alpha": "drop"}, ValueError, "alpha must be one of"),
        ({"on_nonfinite": "stop"}, ValueError, "on_nonfinite must be one of"),
        ({"progress": 3}, TypeError, "progress must be True, None or a callable"),
        ({"tilesize": 3}, TypeError, "tilesize"),
    ],
)
def test_bad_options_quote_what_was_received(options, kind, words):
    with pytest.raises(kind) as caught:
        plan_tiles((100, 100), **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4, 5), "ab", 7, (0, 5), (5, -1)])
def test_bad_shapes(shape):
    with pytest.raises((ValueError, TypeError)):
        plan_tiles(shape)


def test_overlap_auto_leaves_room_for_the_phase():
    assert plan_tiles((999, 999)).overlap == (16, 16)
    assert plan_tiles((999, 999), tile_size=64).overlap == (8, 8)
    assert plan_tiles((99, 99), tile_size=8, phase=8).overlap == (0, 0)
    assert plan_tiles((99, 99), tile_size=1, halo=0).overlap == (0, 0)


def test_pairs_are_rows_then_columns():
    plan = plan_tiles((300, 300), tile_size=(50, 100), halo=(1, 2), overlap=(3, 4), phase=(1, 2))
    assert plan.halo == (1, 2) and plan.phase == (1, 2) and plan.overlap == (3, 4)
    assert plan.grid[0] > plan.grid[1]


def test_reflect_matches_walking():
    for size in range(1, 9):
        for index in range(-30, 40):
            assert _core.reflect(index, size) == reference.reflect_index(index, size)
    assert 0 <= _core.reflect(-(2**40), 3) < 3


def test_plan_is_a_sequence_and_readable():
    plan = plan_tiles((700, 900))
    assert plan[-1].index == len(plan) - 1
    assert [t.index for t in plan[1:3]] == [1, 2]
    assert plan[3] in list(plan)
    with pytest.raises(IndexError):
        plan[len(plan)]
    assert "2x2 tiles" in repr(plan)
    estimate = plan.estimate_bytes(channels=3)
    assert estimate["total"] == sum(v for k, v in estimate.items() if k != "total")
    assert halotile.plan_tiles is plan_tiles


def test_plans_are_values():
    plan, same = plan_tiles((300, 200), scale="3/2"), plan_tiles((300, 200), scale=1.5)
    assert plan == same and hash(plan) == hash(same) and plan != plan_tiles((300, 201), scale=1.5)
    for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert copied == plan and copied[-1] == plan[-1]


@pytest.mark.parametrize(
    ("given", "fraction"),
    [(2, 2), (0.5, "1/2"), (0.1, "1/10"), (1.2, "6/5"), (1 / 3, "1/3"), ("1.5", "3/2"), (np.float32(1.2), "6/5")],
)
def test_scales_are_what_was_meant(given, fraction):
    assert plan_tiles((300, 200), scale=given).scale == Fraction(fraction)


@pytest.mark.parametrize("value", ["01", {0: 1, 1: 2}, (0, 1e300), (0, 1e-320), (-3e38, 3e38), (0, float("nan"))])
def test_value_ranges_that_float32_cannot_hold(value):
    with pytest.raises(ValueError, match="value_range must be a pair"):
        plan_tiles((30, 30), value_range=value)


@pytest.mark.parametrize("shape", ["48", (1.7, 2.2), (3, 4000, 3000)])
def test_shapes_that_are_none(shape):
    with pytest.raises((TypeError, ValueError), match="shape"):
        plan_tiles(shape)


def test_estimates_check_their_arguments():
    plan = plan_tiles((30, 30))
    assert plan.estimate_bytes(dtype=None) == plan.estimate_bytes()
    for bad in ({"channels": -3}, {"channels": "a"}, {"batch_size": 0}, {"dtype": "int8"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
            plan.estimate_bytes(**bad)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (-1, 4), (4, 5, 0), (0, 4, 5, 3)])
def test_shapes_without_pixels_are_refused(shape):
    with pytest.raises(ValueError, match=r"^shape must have sides of at least 1, not \("):
        plan_tiles(shape, layout="NHWC"[-len(shape) :] if len(shape) != 2 else "HW")


@pytest.mark.parametrize("scale", [0.3333, float("nan"), 2.0001, -1.5])
def test_a_scale_that_is_refused_is_quoted_as_it_was_given(scale):
    with pytest.raises(ValueError, match=rf"scale must be a positive fraction .*, not {scale!r}$"):
        plan_tiles((40, 50), scale=scale)
