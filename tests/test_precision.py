# SPDX-License-Identifier: MIT
"""dtype="auto": half precision where it is faster and within the tolerance, else float32; and it is said why."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import TiledRestorer, restore_tiled  # noqa: E402
from halotile.auto import dtype as precision  # noqa: E402

from .networks import Chain, seeded  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (150, 211, 3), np.uint8)
OPTIONS = {"tile_size": 100, "halo": 2, "dtype": "auto"}
COSTS = {torch.float32: 1.0, torch.bfloat16: 0.5, torch.float16: 0.7}


@pytest.fixture
def costs(monkeypatch):
    """Time passes as these costs have it, whatever the machine."""
    now, known = [0.0], dict(COSTS)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])

    class Timed(Chain):
        def forward(self, windows):
            now[0] += known[windows.dtype]
            return super().forward(windows)

    known["model"] = seeded(lambda: Timed(2))
    return known


def test_the_fastest_within_the_tolerance(costs):
    model = costs.pop("model")
    restorer = TiledRestorer(model, tolerance=50.0, **OPTIONS)
    got = restorer(IMAGE)
    found = restorer.last_run.precision
    assert found.dtype == "bfloat16"
    assert 0 < found.error <= 50
    assert "bfloat16 took 0.50 of the time" in found.why
    assert str(found) in str(restorer.last_run)
    want = restore_tiled(IMAGE, model, **OPTIONS | {"dtype": "bfloat16"})
    assert np.array_equal(got, want)
    assert next(model.parameters()).dtype == torch.float32
    restorer(IMAGE[:140])
    assert restorer.last_run.precision is found  # once for each restorer


@pytest.mark.parametrize("why", ["tolerance", "slow"])
def test_float32_where_that_is_better(costs, why):
    model = costs.pop("model")
    tolerance = 0.0 if why == "tolerance" else 255.0
    if why == "slow":
        costs |= {torch.bfloat16: 0.95, torch.float16: 3.0}
    restorer = TiledRestorer(model, tolerance=tolerance, **OPTIONS)
    got = restorer(IMAGE)
    assert restorer.last_run.precision.dtype == "float32"
    assert restorer.last_run.precision.error == 0
    assert np.array_equal(got, restore_tiled(IMAGE, model, **OPTIONS | {"dtype": None}))


def test_a_dtype_that_fails_is_not_taken(costs):
    model = costs.pop("model")
    del costs[torch.bfloat16]
    restorer = TiledRestorer(model, tolerance=50.0, **OPTIONS)
    restorer(IMAGE)
    assert restorer.last_run.precision.dtype == "float16"
    assert "bfloat16 failed" in restorer.last_run.precision.why


def test_every_kind_of_image_gets_it(costs):
    restorer = TiledRestorer(costs.pop("model"), tolerance=50.0, **OPTIONS)
    want = restorer(IMAGE)
    got = restorer(torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())).numpy().transpose(1, 2, 0)
    assert restorer.last_run.precision.dtype == "bfloat16"
    assert np.array_equal(got, want)


def test_every_thread_gets_it(costs):
    """The second run has begun before the first one chooses."""
    model, begun, results = costs.pop("model"), threading.Barrier(2, timeout=30), []
    restorer = TiledRestorer(model, tolerance=50.0, progress=lambda done, total: done or meet(), **OPTIONS)
    met = set()

    def meet():
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            begun.wait()

    threads = [threading.Thread(target=lambda: results.append(restorer(IMAGE))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = restore_tiled(IMAGE, model, **OPTIONS | {"dtype": "bfloat16"})
    assert [np.array_equal(got, want) for got in results] == [True, True]


def test_models_that_cannot_be_converted():
    for model in (lambda windows: windows, seeded(lambda: Chain(2)).double()):
        restorer = TiledRestorer(model, **OPTIONS)
        restorer(IMAGE)
        assert "only torch modules in float32" in restorer.last_run.precision.why


def test_beside_tiles_and_places_made_again():
    restorer = TiledRestorer(seeded(lambda: Chain(2)), **OPTIONS | {"tile_size": "auto", "verify": 2})
    restorer(IMAGE)
    assert restorer.last_run.tuning is not None
    assert restorer.last_run.precision is not None


def test_bad_values():
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, not 'int8'"):
        restore_tiled(IMAGE, seeded(lambda: Chain(2)), dtype="int8")
