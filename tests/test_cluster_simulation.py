# SPDX-License-Identifier: MIT
"""The simulator: what can be reckoned by hand, and what must hold whatever the costs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr")

from halotile import plan_tiles
from halotile.cli import main
from halotile.cluster.blocks import Grid
from halotile.cluster.simulate import Costs, simulate
from halotile.cluster.work import StreamWork, TilesWork
from halotile.run.spread import Share, Spread


def even(rows, again=0.0):
    """Work of a stream of `rows` rows of shards, of which each block does `again` rows more."""
    left = (0.0, *((row - again) / rows for row in range(1, rows + 1)))
    made = tuple(row / rows for row in range(rows + 1))
    return StreamWork(float(rows), left, made, int(512 * again), 256 * rows, 0.1, 1000.0)


def test_workers_without_warm_up_share_the_time():
    for workers in (1, 2, 4):
        found = simulate(Grid(256 * 64, 1000), even(64), Costs(pixel=1.0), workers)
        assert found.seconds == pytest.approx(64 / workers)
        assert found.recompute == pytest.approx(1)
        assert found.efficiency == pytest.approx(1)


def test_warm_up_start_and_settling_cost_what_they_cost():
    found = simulate(Grid(256 * 64, 1000), even(64, again=1.0), Costs(pixel=1.0, start=5, settling=3), 2)
    assert 3 + 5 + 32 < found.seconds <= 3 + 5 + 32 * 1.1 + 1
    assert 1 < found.recompute <= 1.15


def test_the_store_may_hold_all_up():
    costs = Costs(pixel=1e-9, store=1e6)
    found = simulate(Grid(256 * 64, 1000), even(64), costs, 64, image_bytes=3e8, result_bytes=1e8)
    assert found.bound == "store"
    assert found.seconds == pytest.approx(400, rel=0.01)


def test_more_workers_than_rows_are_idle_and_layers_in_a_row_may_be_faster():
    work = even(8, again=4.0)
    found = simulate(Grid(256 * 8, 1000), work, Costs(pixel=1.0), 100)
    assert found.blocks == 8
    assert found.seconds == pytest.approx(5.0, abs=0.1)
    assert found.pipeline == pytest.approx(0.8 * (1 + work.warm_up / work.rows), rel=0.01)
    assert found.pipeline_is_faster


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 9000), st.integers(1, 60), st.floats(0.1, 10), st.floats(0, 3))
def test_no_run_is_faster_than_all_workers_together(height, width, workers, pixel, read):
    plan = plan_tiles((height, width), tile_size=512, halo=16)
    work = TilesWork(plan, 1)
    found = simulate(Grid(height, width), work, Costs(pixel=pixel, read=read), workers, image_bytes=height * width)
    alone = plan.processed_pixels * pixel + height * width * read
    assert found.seconds >= alone / workers * (1 - 1e-9)
    assert 0 < found.efficiency <= 1 + 1e-9
    assert found.recompute >= 1 - 1e-9
    assert math.isfinite(found.seconds)


def test_costs_are_those_of_a_run():
    shares = (Share("a", 2, 3, 10.0, 900.0, 60, 1.0, 5, 2.0), Share("b", 1, 1, 5.0, 300.0, 20, 1.0, 5, 0.5))
    spread = Spread(shares, 3, "", 1.0, 1.2, 0, 4, None, 0, 2.0, 12.0, 1.0)
    costs = Costs.of_run(spread, 100)
    assert costs.pixel == pytest.approx(13 / 1200)
    assert costs.read == pytest.approx(2 / 80)
    assert costs.write == pytest.approx(2.5 / 100)
    assert costs.settling == 2.0
    assert spread.efficiency == pytest.approx(15 / 20)


def test_the_command_line_plans_for_workers(capsys):
    pytest.importorskip("torch")
    asked = ["plan", "20000x20000", "--model", "tests.on_cluster:network()", "--workers", "1,10,1000", "--store", "1G"]
    assert main(asked) == 0
    told = capsys.readouterr().out
    for name in ("1 worker ", "10 workers ", "1000 workers "):
        assert name in told
    assert "efficiency" in told
    assert main(["plan", "2000x2000", "--workers", "3"]) == 2
    assert "--workers is only for a plan with --model" in capsys.readouterr().err
