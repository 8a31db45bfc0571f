# SPDX-License-Identifier: MIT
"""Random runs beside the whole image at once, by an independent implementation: see oracle.py."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

from . import oracle  # noqa: E402
from .oracle import Case, Net, cases, model_of, on_arrays, wrong  # noqa: E402

MANY = int(os.environ.get("HALOTILE_ORACLE", "20000"))
QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck), database=None)


def checked(case):
    found = wrong(case)
    assert found is None, f"{found}: {case}"


@settings(max_examples=60, derandomize=True, **QUIET)
@given(cases())
def test_whole_images(case):
    checked(case)


@pytest.mark.slow
@settings(max_examples=MANY, **QUIET)
@given(cases())
def test_many_whole_images(case):
    checked(case)


STREAM = {"boundary": "reflect", "schedule": "stream", "layout": "HWC", "alpha": "channel", "phase": (1, 1)}
STREAM |= {"tile_size": (9, 9), "halo": 6, "value_range": None, "out_dtype": None}


@pytest.mark.parametrize("size", [(7, 6), (70, 60)])
@pytest.mark.parametrize("channels, valid", [(3, True), (5, False), (5, True)])
def test_streams_of_networks_that_were_not_inspected(channels, valid, size):
    """Nobody knows what they lose at the ends, nor how many channels they take: the halo and the image tell."""
    net = Net(channels, 3, valid, (1, 1), (1, 2), 1)
    checked(Case(net, size, 1, "float32", "array", "HWC", "plain", "module", STREAM, 5))


@settings(max_examples=20, derandomize=True, **QUIET)
@given(cases())
def test_both_forms_of_the_network_agree(case):
    """And so the oracle can be wrong only where both are."""
    net = case.net
    random = np.random.default_rng(0)
    sides = [2 * net.depth + 6 * step for step in net.down]
    batch = random.random((2, net.channels, *sides), np.float32)
    with torch.inference_mode():
        made = model_of(case)(torch.from_numpy(batch)) if case.form != "arrays" else on_arrays(net, batch)
    np.testing.assert_allclose(np.asarray(made), on_arrays(net, batch.astype(np.float64)), atol=1e-5)


@settings(max_examples=15, derandomize=True, phases=[Phase.generate], **QUIET)
@given(cases())
def test_the_oracle_sees_a_pixel_that_is_wrong(case):
    real = oracle.result_of

    def spoilt(case, given):
        result = real(case, given)
        place, dtype = tuple(side // 2 for side in result.shape), str(result.dtype).removeprefix("torch.")
        peak = oracle.PEAKS.get(dtype)
        result[place] = result[place] + 1 if peak is None else 0 if int(result[place]) > peak // 2 else peak
        return result

    oracle.result_of = spoilt
    try:
        assert wrong(case) is not None, case
    finally:
        oracle.result_of = real
