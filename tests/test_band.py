# SPDX-License-Identifier: MIT
"""The core's band against the one in Python: every bit, every first NaN or infinity, from any tile row on."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halotile import _core, plan_tiles
from halotile.images.values import Values

from . import reference
from .reference_band import ReferenceBand
from .test_plan import plans

DTYPES = ["uint8", "uint16", "float16", "bfloat16", "float32", "float64"]
MODEL_DTYPES = ["float32", "float16", "bfloat16"]
SPOILERS = [np.nan, np.inf, -np.inf, 3e38, -3e38]  # the last two: only sums of them are infinite


def model_output(rng, plan, channels, dtype, interleaved, spoilt):
    shape = (channels, *plan.window_output)
    values = (rng.standard_normal(shape) * 0.5 + 0.5).astype(np.float32)
    for spoiler in spoilt:
        values[tuple(rng.integers(0, shape))] = spoiler
    with np.errstate(over="ignore", invalid="ignore"):
        values = reference.bf16_bits(values) if dtype == "bfloat16" else values.astype(dtype)
    return np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1) if interleaved else values


def new_rows(plan, channels, row, dtype, interleaved):
    start, stop = plan.core.done(0, row)
    dtype = "uint16" if dtype == "bfloat16" else dtype
    if interleaved:
        return np.full((stop - start, plan.output_size[1], channels), 7, dtype).transpose(2, 0, 1)
    return np.full((channels, stop - start, plan.output_size[1]), 7, dtype)


@settings(max_examples=400, deadline=None)
@given(
    case=plans(),
    channels=st.sampled_from([1, 2, 3, 4]),
    dtype=st.sampled_from(DTYPES),
    model_dtype=st.sampled_from(MODEL_DTYPES),
    value_range=st.sampled_from([None, (0, 1), (-1, 1)]),
    layouts=st.tuples(st.booleans(), st.booleans()),
    spoilers=st.lists(st.sampled_from(SPOILERS), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_bit_is_that_of_the_reference(case, channels, dtype, model_dtype, value_range, layouts, spoilers, seed):
    compare(case[1], channels, dtype, model_dtype, value_range, layouts, spoilers, seed)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    tile=st.integers(9, 30),
    trim=st.integers(0, 4),
    scale=st.sampled_from(["1", "2", "3/2"]),
    spoilers=st.lists(st.sampled_from(SPOILERS), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_models_that_lose_pixels(size, tile, trim, scale, spoilers, seed):
    options = {"tile_size": tile, "halo": 6, "overlap": tile // 2, "scale": scale}
    plan = plan_tiles(size, **options)
    plan = type(plan)(plan._made_of[0], size, plan.scale, (trim, trim))
    compare(plan, 3, "uint8", "float32", None, (True, False), spoilers, seed)


def compare(plan, channels, dtype, model_dtype, value_range, layouts, spoilers, seed):
    rng = np.random.default_rng(seed)
    values = Values(dtype, value_range)
    first_row = int(rng.integers(0, plan.grid[0])) if seed % 2 else 0
    band = _core.Band(plan.core, channels, values.numbers, values.bfloat16, first_row)
    wanted = ReferenceBand(plan, channels, values, first_row)
    for tile in plan[first_row * plan.grid[1] :]:
        if tile.column == 0:
            rows = {tile.row: new_rows(plan, channels, tile.row, dtype, layouts[1])}
            got = rows[tile.row].copy("K")
        output = model_output(rng, plan, channels, model_dtype, layouts[0], spoilers if rng.random() < 0.2 else ())
        with np.errstate(all="ignore"):
            told = [position for _, position in wanted.add([tile], output[None], rows) if position is not None]
        assert len(told) < 2
        assert band.add(tile.index, output, got) == (told[0] if told else None)
        if tile.column == plan.grid[1] - 1:
            np.testing.assert_array_equal(bits(got), bits(rows[tile.row]))


def bits(rows):
    return np.ascontiguousarray(rows).view(f"u{rows.dtype.itemsize}")


# ---- hostile arguments -----------------------------------------------------------------------------------------------

NUMBERS = (255.0, 1.0, 0.0, True)


@pytest.fixture
def plan():
    return plan_tiles((40, 50), tile_size=16, halo=2, overlap=4)


def arrays(plan, dtype="uint8"):
    start, stop = plan.core.done(0, 0)
    return np.zeros((3, *plan.window_output), np.float32), np.zeros((3, stop - start, plan.output_size[1]), dtype)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((None, 3, NUMBERS), TypeError),
        (("plan", "3", NUMBERS), TypeError),
        (("plan", 3, NUMBERS[:3]), TypeError),
        (("plan", 3), TypeError),
        (("plan", 0, NUMBERS), ValueError),
        (("plan", -1, NUMBERS), ValueError),
        (("plan", 2**62, NUMBERS), MemoryError),
        (("plan", 2**70, NUMBERS), OverflowError),
        (("plan", 3, (0.0, 1.0, 0.0, True)), ValueError),
        (("plan", 3, (1.0, 0.0, 0.0, True)), ValueError),
        (("plan", 3, (1.0, 1.0, np.nan, True)), ValueError),
        (("plan", 3, NUMBERS, False, -1), IndexError),
        (("plan", 3, NUMBERS, False, 4), IndexError),
    ],
)
def test_bands_that_cannot_be_made(plan, arguments, kind):
    given = [plan.core if argument == "plan" else argument for argument in arguments]
    with pytest.raises(kind):
        _core.Band(*given)


def test_no_band_of_a_plan_that_no_memory_holds():
    side = 2**31
    plan = plan_tiles((side, side), tile_size=1000, halo=2, overlap=4)
    with pytest.raises(MemoryError):
        _core.Band(plan.core, 2**28, NUMBERS)
    with pytest.raises(ValueError, match="channels"):
        plan.core.band_floats(2**60)
    with pytest.raises(TypeError):
        plan.core.band_floats("3")


def bad_arrays(output, rows):
    frozen = rows.copy()
    frozen.flags.writeable = False
    both = np.zeros((3, 100, 50), np.float32)
    return [
        (None, rows, TypeError),
        (output, None, TypeError),
        (output[0], rows, ValueError),
        (output.astype(np.float64), rows, ValueError),
        (output.astype(np.int32), rows, TypeError),
        (output.astype(">f4"), rows, TypeError),
        (output[:2], rows, ValueError),
        (output[:, 1:], rows, ValueError),
        (output[:, :, 1:], rows, ValueError),
        (output, rows[:2], ValueError),
        (output, rows[:, 1:], ValueError),
        (output, rows[:, :, 1:], ValueError),
        (output, frozen, ValueError),
        (output, rows.astype(complex), TypeError),
        (both[:, : output.shape[1], : output.shape[2]], both[:, : rows.shape[1]], ValueError),  # one memory
    ]


def test_what_add_refuses_changes_nothing(plan):
    output, rows = arrays(plan)
    band = _core.Band(plan.core, 3, NUMBERS)
    for bad_output, bad_rows, kind in bad_arrays(output, rows):
        with pytest.raises(kind):
            band.add(0, bad_output, bad_rows)
    for tile in (-1, 1, plan.core.count, 2**62):
        with pytest.raises(ValueError, match="plan's order"):
            band.add(tile, output, rows)
    with pytest.raises(OverflowError):
        band.add(2**70, output, rows)
    assert band.add(0, output, rows) is None
    with pytest.raises(ValueError, match="plan's order"):
        band.add(0, output, rows)
    assert band.add(1, output, rows) is None


def test_a_peak_that_rows_cannot_hold(plan):
    output, rows = arrays(plan)
    with pytest.raises(ValueError, match="largest value"):
        _core.Band(plan.core, 3, (65535.0, 1.0, 0.0, True)).add(0, output, rows)


def test_a_band_is_not_finished_twice(plan):
    small = plan_tiles((10, 10), tile_size=16, halo=2)
    output, rows = arrays(small)
    band = _core.Band(small.core, 3, NUMBERS)
    assert band.add(0, output, rows) is None
    with pytest.raises(ValueError, match="plan's order"):
        band.add(1, output, rows)
    with pytest.raises((TypeError, AttributeError)):
        band.add = None


def test_threads_that_share_a_band_do_no_harm(plan):
    """Whoever comes when another one is at work, or out of turn, is refused; each tile is added once."""
    band, added, refused = _core.Band(plan.core, 3, NUMBERS), [], []
    output, _ = arrays(plan)

    def work():
        for tile in plan:
            start, stop = plan.core.done(0, tile.row)
            rows = np.zeros((3, stop - start, plan.output_size[1]), np.uint8)
            try:
                band.add(tile.index, output, rows)
                added.append(tile.index)
            except (RuntimeError, ValueError) as error:
                refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(added)) == sorted(added) == list(range(len(added)))
    assert len(added) + len(refused) == 4 * len(plan)


def test_estimates_count_what_a_band_holds(plan):
    assert plan.estimate_bytes(out_channels=3)["sums"] == 4 * plan.core.band_floats(3)
