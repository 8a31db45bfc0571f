# SPDX-License-Identifier: MIT
"""Blocks of a result, one process: however it is cut, in whatever order, stopped wherever, it has the same bytes."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
pytest.importorskip("distributed")

from halotile import plan_tiles, restore_to  # noqa: E402
from halotile.cluster.blockrun import run_block  # noqa: E402
from halotile.cluster.blocks import AT_MOST, Block, Grid, cut, halves, missing_blocks  # noqa: E402
from halotile.cluster.job import new_job  # noqa: E402
from halotile.cluster.settle import ready, settle  # noqa: E402
from halotile.cluster.shards import Encoder  # noqa: E402
from halotile.cluster.store import RUN, Folder, Receipts  # noqa: E402
from halotile.cluster.sweeps import measured_over  # noqa: E402
from halotile.cluster.work import TilesWork  # noqa: E402
from halotile.files import zarr as zarr_files  # noqa: E402

from .networks import Chain, Strided, seeded  # noqa: E402

STREAM = {"schedule": "stream", "halo": "exact", "boundary": "native"}
WAYS = {
    "tiles": {"tile_size": 90, "halo": 4},
    "batches": {"tile_size": 70, "halo": 4, "batch_size": 4},
    "blended": {"tile_size": 64, "halo": 4, "overlap": 16, "blend": "cosine", "out_dtype": "float32"},
    "native": {"tile_size": 128, "halo": "exact", "boundary": "native"},
    "stream": STREAM | {"out_dtype": "float32"},
}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    """Shards of 64 x 128 pixels, and a folder of the test's own."""
    monkeypatch.setattr(zarr_files, "CHUNK", 64)
    monkeypatch.setattr(zarr_files, "SHARD_COLUMNS", 128)
    for module in ("blocks", "work", "shards", "blockrun"):
        monkeypatch.setattr(f"halotile.cluster.{module}.CHUNK", 64)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def written(image, path="in.zarr"):
    array = zarr.create_array(path, shape=image.shape, dtype=image.dtype, chunks=(50, 60, *image.shape[2:]))
    array[:] = image
    return os.path.abspath(path)


def content(path):
    below = (one for one in sorted(Path(path).rglob("*")) if one.is_file())
    return {str(one.relative_to(path)): one.read_bytes() for one in below if ".halotile" not in str(one)}


class OneRun:
    """A run in blocks, as workers do it."""

    def __init__(self, path, model, options, folder="draft"):
        self.job = new_job("run", path, model, options, None, False)
        self.settled = settle(self.job)
        self.ready = ready(self.job, self.settled)
        self.grid = Grid(*self.settled.shape[:2])
        self.encoder = Encoder(self.settled.shape, self.settled.out_dtype)
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        self.store = Folder(folder)
        self.store.put({"zarr.json": self.encoder.description, RUN: b"run"})
        self.receipts = Receipts(self.store, "run")

    def make(self, block, told=lambda row: None):
        return run_block(self.ready, self.settled.work, block, self.encoder, self.receipts, told)


def whole(path, model, options):
    restore_to("whole.zarr", path, model, **options)
    return content("whole.zarr")


# ---- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [1, 2])
def test_each_row_of_shards_made_alone_gives_the_bytes_of_one_run(rng, way, scale):
    path, network = written(rng.integers(0, 256, (190, 301, 3), np.uint8)), seeded(lambda: Chain(3, scale=scale))
    want = whole(path, network, WAYS[way])
    run = OneRun(path, network, WAYS[way])
    for row in reversed(range(run.grid.rows)):
        made = run.make(Block(row, row + 1, 0, run.grid.columns))
        assert [one.row for one in made.rows] == [row]
    assert content("draft") == want


@pytest.mark.parametrize("way", [way for way in WAYS if way != "stream"])
def test_each_shard_made_alone_gives_the_bytes_of_one_run(rng, way):
    path, network = written(rng.integers(0, 65536, (130, 290), np.uint16)), seeded(lambda: Strided(channels=1))
    options = WAYS[way] | {"phase": 2}
    want = whole(path, network, options)
    run = OneRun(path, network, options)
    assert run.grid.columns == 3
    for row, column in sorted(Block(0, run.grid.rows, 0, 3).shards, key=lambda one: (one[1], -one[0])):
        run.make(Block(row, row + 1, column, column + 1))
    assert content("draft") == want


def test_columns_run_the_model_on_their_tiles_alone(rng):
    path, network = written(rng.integers(0, 256, (64, 1000, 3), np.uint8)), Counting(seeded(Chain))
    run = OneRun(path, network, {"tile_size": 64, "halo": 4, "overlap": 0})
    network = run.ready.restorer.model
    before = network.calls[0]
    run.make(Block(0, 1, 7, 8))
    assert 0 < network.calls[0] - before <= 4  # of 16 tiles: two, and their neighbours


@pytest.mark.parametrize("kind", ["alpha", "nodata", "reflect"])
def test_what_is_seen_of_the_whole_image_holds_for_blocks(rng, kind):
    image, options = rng.integers(0, 256, (190, 150, 4), np.uint8), WAYS["tiles"]
    if kind == "alpha":
        image[40:100, 20:60, 3] = 0
    elif kind == "nodata":
        image = image[..., :3]
        image[60:120, 30:90] = 7
        options = options | {"nodata": 7}
    else:
        image, options = image[..., :3], options | {"boundary": "reflect", "value_range": (-1, 1)}
    path, network = written(image), seeded(Chain)
    want = whole(path, network, options)
    run = OneRun(path, network, options)
    for row in (2, 0, 1):
        run.make(Block(row, row + 1, 0, run.grid.columns))
    assert content("draft") == want


@pytest.mark.slow
def test_wide_streams_in_tiles_give_the_same(rng):
    path, network = written(rng.integers(0, 256, (300, 400, 3), np.uint8)), seeded(lambda: Chain(4))
    options = STREAM | {"memory_limit": 560_000}
    want = whole(path, network, options)
    run = OneRun(path, network, options)
    assert run.settled.report.stream.streams > 1
    for row in (3, 1, 4, 0, 2):
        run.make(Block(row, row + 1, 0, run.grid.columns))
    assert content("draft") == want


def test_rows_at_which_blocks_meet_are_made_twice_and_compared(rng):
    path, network = written(rng.integers(0, 256, (200, 90, 3), np.uint8)), seeded(Chain)
    for way in ("tiles", "stream"):
        run = OneRun(path, network, WAYS[way])
        run.make(Block(0, 2, 0, 1))
        above = run.make(Block(2, 4, 0, 1)).above
        there = run.encoder.last_row(1, range(1), run.store.get)
        assert above.keys() == {2}
        np.testing.assert_array_equal(above[2], there)


# ---- stopped and gone on with ----------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


class Counting(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, [0]

    def forward(self, x):
        self.calls[0] += 1
        return self.inner(x)


@pytest.mark.parametrize("way", WAYS)
def test_a_block_goes_on_below_the_rows_that_are_there(rng, way):
    path, network = written(rng.integers(0, 256, (400, 90, 3), np.uint8)), seeded(Chain)
    want = whole(path, network, WAYS[way])
    run = OneRun(path, network, WAYS[way])
    seen = []

    def told(row):
        seen.append(row.row)
        if len(seen) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run.make(Block(0, run.grid.rows, 0, 1), told)
    assert run.receipts.all() == {(row, 0) for row in range(3)}
    made = run.make(Block(0, run.grid.rows, 0, 1))
    assert [row.row for row in made.rows] == list(range(3, run.grid.rows))
    assert content("draft") == want


def test_a_worker_stops_where_another_has_been(rng):
    path = written(rng.integers(0, 256, (400, 90, 3), np.uint8))
    run = OneRun(path, Counting(seeded(Chain)), WAYS["tiles"])
    run.make(Block(3, run.grid.rows, 0, 1))
    network = run.ready.restorer.model
    network.calls[0] = 0
    made = run.make(Block(0, run.grid.rows, 0, 1))
    assert [row.row for row in made.rows] == [0, 1, 2]
    assert network.calls[0] <= 5  # tiles of 90 rows as far as row 192, and one on the way
    assert run.make(Block(0, run.grid.rows, 0, 1)).rows == []


def test_shards_that_are_not_what_was_put_are_made_again(rng):
    path, network = written(rng.integers(0, 256, (250, 140, 3), np.uint8)), seeded(Chain)
    want = whole(path, network, WAYS["tiles"])
    run = OneRun(path, network, WAYS["tiles"])
    everything = Block(0, 4, 0, 2)
    run.make(everything)
    Path("draft/c/1/0/0").write_bytes(want["c/1/0/0"][:-1])
    Path("draft/c/2/1/0").unlink()
    changed = bytearray(want["c/3/1/0"])
    changed[40] ^= 1
    Path("draft/c/3/1/0").write_bytes(changed)
    assert run.receipts.drop_false(run.receipts.names()) == ["1/0-2.json", "2/0-2.json", "3/0-2.json"]
    assert run.receipts.all() == {(0, 0), (0, 1)}
    run.make(everything)
    assert content("draft") == want


def test_nothing_is_put_for_a_run_that_has_ended(rng):
    path = written(rng.integers(0, 256, (100, 90, 3), np.uint8))
    run = OneRun(path, seeded(Chain), WAYS["tiles"])
    run.store.put({RUN: b"another"})
    with pytest.raises(OSError, match="another run's"):
        run.make(Block(0, 1, 0, 1))
    assert run.receipts.all() == set()


def test_a_shard_appears_whole_or_not_at_all(monkeypatch):
    os.mkdir("draft")
    store = Folder("draft")
    store.put({"c/0": b"old"})

    def full(descriptor, data):
        os.write(descriptor, data[:2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("halotile.files.disk.write", full)
    with pytest.raises(OSError, match="No space left"):
        store.put({"c/0": b"newer", "c/1": b"new"})
    assert store.names("") == ["c/0"]
    assert store.get("c/0") == b"old"


# ---- cuts ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 3000),
    st.integers(1, 1500),
    st.integers(1, 40),
    st.sampled_from([32, 64, 200]),
    st.integers(0, 40),
    st.integers(1, 5),
)
def test_cuts_hold_every_shard_once_and_say_what_is_computed_again(height, width, workers, tile, halo, batch):
    plan = plan_tiles((height, width), tile_size=tile, halo=halo, overlap=0)
    grid, work = Grid(height, width), TilesWork(plan, plan.batch(batch))
    found = cut(grid, work, workers)
    shards = [shard for block in found.blocks for shard in block.shards]
    assert len(shards) == len(set(shards)) == grid.rows * grid.columns
    costs = [work.of(grid.row_range(one), grid.column_range(one)) for one in found.blocks]
    assert found.recompute == pytest.approx(sum(costs) / (len(plan) * plan.window[0] * plan.window[1]))
    assert found.recompute <= 1 + AT_MOST + 1e-9 or ("more than 10%" in found.why and len(found.blocks) <= 4 * workers)
    assert len(found.blocks) >= min(workers, grid.rows)


def test_few_rows_are_cut_into_columns():
    plan = plan_tiles((128, 4000), tile_size=64, halo=4, overlap=0)
    found = cut(Grid(128, 4000), TilesWork(plan, 1), 8)
    assert len(found.blocks) >= 8
    assert any(block.right - block.left < 32 for block in found.blocks)


@given(st.sets(st.integers(0, 11)), st.integers(1, 11))
def test_what_is_missing_is_cut_again(done, mark):
    blocks = [Block(0, mark, 0, 2), Block(mark, 12, 0, 2)]
    there = {(row, column) for row in done for column in (0, 1)} | {(row, 1) for row in range(12)}
    left = missing_blocks(blocks, there)
    assert sorted(row for one in left for row in range(one.top, one.bottom)) == sorted(set(range(12)) - done)
    assert all(one.bottom <= mark or one.top >= mark for one in left)
    for one in blocks:
        half = halves(one, there)
        rows = [row for row in range(one.top, one.bottom) if row not in done]
        assert half is None if len(rows) < 3 else half.bottom == one.bottom and half.top == rows[(len(rows) + 1) // 2]


def test_deep_streams_tell_their_warm_up(rng):
    path = written(np.zeros((3000, 40, 3), np.uint8))
    deep = seeded(lambda: Chain(20, width=4))
    run = OneRun(path, deep, STREAM)
    work = run.settled.work
    assert work.warm_up == 2 * 20  # 20 convolutions 3x3, above and below
    rows, width = (640, 1280), 40
    again = work.of(rows, (0, width)) / width - 640
    assert 15 < again < 2 * 20  # each layer less than the one before it
    assert cut(run.grid, work, 4).recompute <= 1.1


# ---- statistics of the whole image -----------------------------------------------------------------------------------


class Squeezed(torch.nn.Module):
    """Two levels of means over the whole image, the second of what the first one makes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        x = x * torch.sigmoid(4 * x.mean((2, 3), keepdim=True))
        x = torch.relu(x)
        return self.second(x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


class AtOnce:
    """What a client of Dask does, without one."""

    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value

    @classmethod
    def submit(cls, function, *arguments, pure=True):
        return cls(function(*(one.value if isinstance(one, cls) else one for one in arguments)))


@pytest.mark.parametrize("kind", ["exact", "frozen"])
@pytest.mark.parametrize("workers", [1, 3])
def test_statistics_of_the_whole_image_are_added_up_by_a_tree(rng, kind, workers):
    path, network = written(rng.integers(0, 256, (750, 90, 3), np.uint8)), seeded(Squeezed)
    options = {"tile_size": 64, "halo": "exact", "global_stats": kind, "out_dtype": "float32", "schedule": "tiles"}
    want = whole(path, network, options)
    run = OneRun(path, network, options)
    if kind == "exact":
        asked = []

        def ask(function, *arguments):
            asked.append(function.__name__)
            return AtOnce(function(run.ready.prepared, *arguments))

        held = measured_over(AtOnce, run.settled.plan.grid[0], ask, workers)
        assert asked.count("sums_of_rows") == 2 * {1: 3, 3: 12}[workers]
        run.ready.hold(held)
    else:
        assert run.ready.prepared.windows.held_for == 0
    calls = []
    run.ready.prepared.windows.engine.read, before = (
        lambda *a: (calls.append(1), before(*a)),
        run.ready.prepared.windows.engine.read,
    )
    for row in (2, 0, *range(3, run.grid.rows), 1):
        run.make(Block(row, row + 1, 0, run.grid.columns))
    assert content("draft") == want
    assert len(calls) < 2 * len(run.settled.plan) * 2  # no sweep of its own for a block
