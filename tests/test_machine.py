# SPDX-License-Identifier: MIT
"""Any sequence of runs that are cancelled, run out of memory, fail, are killed and go on: nothing is lost or mixed."""

import errno
import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("zarr")
pytest.importorskip("pyvips")
from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import (  # noqa: E402
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from halotile import TiledRestorer, TileError, iter_bands, restore_tiled, restore_to, verify  # noqa: E402
from halotile.files import journal  # noqa: E402
from halotile.files.atomic import sweep  # noqa: E402

from .test_resume import Layer, Power, Stopped, needs_proc, stopping  # noqa: E402

IMAGE = np.random.default_rng(3).integers(0, 256, (96, 31, 3), np.uint8)
OPTIONS = {"halo": 2, "phase": 1, "scale": 2, "boundary": "native", "memory_format": "contiguous"}


class Exact(torch.nn.Module):
    """Its bits depend on no tile size, strip height or batch: maxima of neighbours, and every pixel four times.

    Attributes:
        plan: what happens at a call, by its number; shared by copies.
    """

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.shuffle = torch.nn.Upsample(scale_factor=2)

    def forward(self, x):
        return self.shuffle(torch.nn.functional.max_pool2d(x, 5, 1, 2)) * self.gain


class Failing(Exact):
    """The same, and raises at a call."""

    def forward(self, x):
        PLANNED["left"] -= 1
        if PLANNED["left"] == 0:
            raise PLANNED["error"]
        return super().forward(x)


PLANNED = {"left": 0, "error": RuntimeError("boom")}
Failing.__qualname__, Failing.__name__ = Exact.__qualname__, Exact.__name__  # a journal sees one model
WANT = restore_tiled(IMAGE, Exact().eval(), tile_size=500, **OPTIONS)


MANNER = {"tile": st.integers(9, 40), "batch": st.integers(1, 3)}
UNFINISHED = precondition(lambda self: not self.complete)


class Life(RuleBasedStateMachine):
    """Runs of one output, and what is known of it.

    Attributes:
        rows: of the result that are kept. old: whether a file of an earlier run has the output's name.
    """

    def __init__(self):
        super().__init__()
        self.folder, self.home = tempfile.mkdtemp(), os.getcwd()
        os.chdir(self.folder)
        sweep.cache_clear()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(journal, "SHARE", float("inf"))
        self.complete = self.old = False

    def teardown(self):
        self.patch.undo()
        os.chdir(self.home)
        shutil.rmtree(self.folder)

    @initialize(sink=st.sampled_from(["npy", "zarr", "tif", "png"]), old=st.booleans())
    def open(self, sink, old):
        self.path, self.old = f"out.{sink}", old
        restore_to("want." + sink, WANT, torch.nn.Identity(), tile_size=40, halo=0, scale=1)
        self.want = self.content("want." + sink)
        self.before = None
        if old:
            restore_to(self.path, WANT[::-1].copy(), torch.nn.Identity(), tile_size=40, halo=0, scale=1)
            self.before = self.content(self.path)

    def content(self, path):
        below = [one for one in sorted(Path(path).rglob("*")) if one.is_file()] if os.path.isdir(path) else [Path(path)]
        return [(str(one.relative_to(path)), one.read_bytes()) for one in below]

    def is_there(self):
        """Whether a run that failed had given the result its name, and removed what it kept."""
        hidden = [name for name in os.listdir() if name.startswith(".")]
        return not hidden and os.path.exists(self.path) and self.content(self.path) == self.want != self.before

    def run(self, tile, batch, **options):
        """A run with resume, with any tiles: bits do not depend on them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = OPTIONS | {"tile_size": tile, "batch_size": batch} | options
            restore_to(self.path, IMAGE, options.pop("model", None) or Exact().eval(), resume=True, **options)
        self.complete = True

    @UNFINISHED
    @rule(at=st.integers(1, 12), **MANNER)
    def cancel(self, at, tile, batch):
        with suppress(Stopped):
            self.run(tile, batch, progress=stopping(at))

    @UNFINISHED
    @rule(at=st.integers(1, 20), error=st.sampled_from([RuntimeError("boom"), KeyboardInterrupt()]), **MANNER)
    def fail(self, at, error, tile, batch):
        PLANNED.update(left=at, error=error)
        with suppress(TileError, KeyboardInterrupt):
            self.run(tile, batch, model=Failing().eval())

    @UNFINISHED
    @rule(at=st.integers(1, 20), **MANNER)
    def run_out_of_memory(self, at, tile, batch):
        """It goes on with smaller tiles; where there are none, it ends, and the next run goes on."""
        PLANNED.update(left=at, error=MemoryError("full"))
        try:
            self.run(tile, batch, model=Failing().eval())
        except TileError as error:
            assert isinstance(error, MemoryError)

    @UNFINISHED
    @rule(at=st.integers(1, 25), code=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EACCES]), **MANNER)
    def have_no_space(self, at, code, tile, batch):
        with pytest.MonkeyPatch.context() as patch:
            Layer(patch, at, OSError(code, os.strerror(code)))
            try:
                self.run(tile, batch)
            except OSError as error:
                assert error.errno == code
                self.complete = self.is_there()

    @UNFINISHED
    @rule(at=st.integers(1, 25), kept=st.sampled_from([0, 0.5, 1]), garbage=st.booleans(), **MANNER)
    def lose_power(self, at, kept, garbage, tile, batch):
        with pytest.MonkeyPatch.context() as patch:
            layer = Layer(patch, at)
            try:
                self.run(tile, batch)
            except Power:
                self.complete = self.is_there()
        layer.lose(kept, garbage)

    @UNFINISHED
    @rule(**MANNER)
    def ask_for_something_else(self, tile, batch):
        """It is refused, and nothing is touched, if rows are kept; they may be none."""
        if not journal.has_journal(self.path):
            return
        files = {name: Path(name).read_bytes() for name in os.listdir() if os.path.isfile(name)}
        with journal.open_journal(self.path) as kept:
            found = kept.found
        if found is None:
            return
        with pytest.raises(ValueError, match=r"value_range is .0.0, 2.0. and was None"):
            self.run(tile, batch, value_range=(0, 2))
        assert {name: Path(name).read_bytes() for name in os.listdir() if os.path.isfile(name)} == files

    @rule(**MANNER)
    def resume(self, tile, batch):
        self.run(tile, batch)

    @rule(tile=st.integers(9, 40))
    def make_it_anew(self, tile):
        restore_to(self.path, IMAGE, Exact().eval(), tile_size=tile, **OPTIONS)
        assert not journal.has_journal(self.path)
        self.complete = True

    @rule(tile=st.integers(9, 40), taken=st.integers(0, 5))
    def read_bands(self, tile, taken):
        bands = iter_bands(IMAGE, Exact().eval(), tile_size=tile, **OPTIONS)
        for _, (y, rows) in zip(range(taken), bands, strict=False):
            np.testing.assert_array_equal(rows, WANT[y : y + len(rows)])
        bands.close()

    @precondition(lambda self: self.complete)
    @rule(seed=st.integers(0, 9))
    def verify(self, seed):
        from halotile.files.open import open_source

        source, rows = open_source(self.path, None, None), np.empty(WANT.shape, np.uint8)
        source.read(0, rows)
        restorer = TiledRestorer(Exact().eval(), tile_size=20, **OPTIONS)
        assert verify(IMAGE, restorer, rows, windows=2, seed=seed).largest == 0

    @precondition(lambda self: self.complete)
    @rule()
    def begin_again(self):
        """The complete file is the old one now."""
        self.complete, self.before = False, self.content(self.path)
        self.old = True

    @invariant()
    def the_output_is_whole(self):
        """It is complete, or the old one, or there is none."""
        if not hasattr(self, "path"):
            return
        if self.complete:
            assert self.content(self.path) == self.want
        elif self.old:
            assert self.content(self.path) in (self.before, self.want)
        else:
            assert not os.path.exists(self.path) or self.content(self.path) == self.want

    @invariant()
    def rows_that_are_kept_are_right(self):
        if not hasattr(self, "path") or not journal.has_journal(self.path):
            return
        with journal.open_journal(self.path) as kept:
            assert kept.read(0, kept.rows) == WANT[: kept.rows].tobytes()

    @invariant()
    def nothing_is_left(self):
        names = [name for name in os.listdir() if not name.endswith((".rows", ".journal"))]
        assert len(names) <= 2 and not [name for name in names if name.startswith(".")], names
        if self.complete:
            assert not [name for name in os.listdir() if name.startswith(".")]


QUIET = {"phases": [Phase.generate], "deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@needs_proc
@pytest.mark.parametrize("many", [6, pytest.param(400, marks=pytest.mark.slow)])
def test_any_sequence(many):
    steps = settings(max_examples=many, stateful_step_count=12, derandomize=many == 6, **QUIET)
    run_state_machine_as_test(Life, settings=steps)
