# SPDX-License-Identifier: MIT
"""The memory format of windows on an Apple GPU: the faster one, if both give the same. The clock is the test's."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import TiledRestorer, restore_tiled, restore_to  # noqa: E402
from halotile.auto import formats  # noqa: E402
from halotile.engine import hazards  # noqa: E402

from .networks import Chain, seeded  # noqa: E402
from .test_engines import pixels_of  # noqa: E402

TILES = {"tile_size": 24, "halo": 4, "overlap": 5}
IMAGE = pixels_of("uint8", (160, 171, 3))  # more batches than the choice needs
ALL_RIGHT = {"views": "fine", "kernels": "fine", "channels_last": "fine"}


class Timed(torch.nn.Module):
    """Takes a time by the test's clock that depends on the format of its windows; warming up takes much longer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, windows):
        if windows.device.type != "fakemps":  # a look at the model's operators
            return self.model(windows)
        kind = "contiguous" if windows.is_contiguous() else "channels_last"
        assert kind == "contiguous" or windows.is_contiguous(memory_format=torch.channels_last)
        time_passes(kind)
        return self.model(windows)


SEEN = []
CLOCK = {"now": 0.0, "contiguous": 0.0, "channels_last": 0.0}


def time_passes(kind):
    CLOCK["now"] += CLOCK[kind] if kind in SEEN else 50
    SEEN.append(kind)


@pytest.fixture
def clock(fake_mps, monkeypatch):
    def set_to(contiguous, channels_last):
        SEEN.clear()
        CLOCK.update(now=0.0, contiguous=contiguous, channels_last=channels_last)
        monkeypatch.setattr(formats, "clock", lambda: CLOCK["now"])

    return set_to


def on_device(model):
    return Timed(copy.deepcopy(model)).to("fakemps")


def restored(model, **options):
    restorer = TiledRestorer(on_device(model), **TILES | options)
    want = restore_tiled(IMAGE, model, **TILES)
    assert np.abs(restorer(IMAGE).astype(int) - want).max() <= 1
    return restorer


@pytest.mark.parametrize("engine", ["mps", "torch"])
@pytest.mark.parametrize(
    ("seconds", "kind", "share"),
    [((1.0, 0.5), "channels_last", "0.50"), ((1.0, 0.95), "contiguous", "0.95"), ((1.0, 2.0), "contiguous", "2.00")],
)
def test_the_clock_decides(clock, seconds, kind, share, engine):
    clock(*seconds)
    restorer = restored(seeded(lambda: Chain(2)), engine=engine)
    text = f"; windows are {kind}: channels_last took {share} of the time of contiguous"
    assert restorer.last_run.why.endswith(text)
    tried = SEEN.index("channels_last") - 1
    assert SEEN[tried : tried + 4] == ["contiguous", "channels_last"] * 2
    assert set(SEEN[:tried]) == {"contiguous"} and set(SEEN[tried + 4 :]) == {kind}
    before = len(SEEN)
    restorer(IMAGE)  # chosen once
    assert set(SEEN[before:]) == {kind} and restorer.last_run.why.count("windows are") == 1


def test_the_choice_is_told_with_tiles(clock, fake_mps, monkeypatch):
    clock(1.0, 0.5)
    fake_mps.set_recommended_max_memory(1 << 24)
    restorer = TiledRestorer(on_device(seeded(lambda: Chain(1))), tile_size="auto", halo=1)
    restorer(np.zeros((1300, 1300, 3), np.uint8))
    assert restorer.last_run.tuning.memory_format == "channels_last"


def test_formats_that_differ_are_not_taken(clock, fake_mps, monkeypatch):
    clock(1.0, 0.1)
    monkeypatch.setitem(hazards._found, "fakemps", ALL_RIGHT)
    fake_mps.set_wrong_channels_last(True)
    restorer = restored(seeded(lambda: Chain(2)))
    assert restorer.last_run.why.endswith("contiguous, because channels_last ones give other results")
    assert SEEN.count("channels_last") == 1


@pytest.mark.parametrize("outcome", ["differs", "no memory"])
def test_it_is_off_where_the_self_test_says_so(clock, monkeypatch, outcome):
    clock(1.0, 0.1)
    monkeypatch.setitem(hazards._found, "fakemps", ALL_RIGHT | {"channels_last": outcome})
    restorer = restored(seeded(lambda: Chain(2)))
    assert set(SEEN) == {"contiguous"} and "windows are" not in restorer.last_run.why
    with pytest.warns(RuntimeWarning, match="windows are contiguous despite memory_format='channels_last'"):
        restored(seeded(lambda: Chain(2)), memory_format="channels_last")
    assert set(SEEN) == {"contiguous"}


def test_models_that_want_contiguous_windows(clock):
    class Viewing(Chain):
        def forward(self, windows):
            return super().forward(windows.view(len(windows), -1).view(windows.shape))

    clock(1.0, 0.1)
    restorer = restored(seeded(lambda: Viewing(2)))
    assert restorer.last_run.why.endswith("contiguous, because channels_last ones fail")
    assert SEEN.count("channels_last") == 1 and SEEN[-1] == "contiguous"


def test_nothing_is_tried_where_little_is_to_be_won(clock):
    clock(1.0, 0.1)
    restorer = TiledRestorer(on_device(seeded(lambda: Chain(2))), **TILES)
    restorer(IMAGE[:90, :90])
    assert set(SEEN) == {"contiguous"}
    for options in ({"memory_format": "contiguous"}, {"device": "cpu"}):
        restorer = restored(seeded(lambda: Chain(2)), **options)
        assert "windows are" not in restorer.last_run.why
    clock(1.0, 0.1)
    restored(seeded(lambda: Chain(2)), memory_format="channels_last")
    assert set(SEEN[-40:]) == {"channels_last"}  # all windows of the run; before it the model is looked at


def test_a_run_that_goes_on_keeps_the_format(clock, tmp_path):
    """Another clock would choose otherwise, and the bits of the model may depend on it."""
    clock(1.0, 0.5)
    np.save(tmp_path / "in.npy", IMAGE)
    model, out = on_device(seeded(lambda: Chain(2))), tmp_path / "out.npy"

    def stops(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_to(out, tmp_path / "in.npy", model, resume=True, progress=stops, **TILES)
    assert not out.exists() and SEEN[-1] == "channels_last"
    clock(1.0, 2.0)
    restore_to(out, tmp_path / "in.npy", model, resume=True, **TILES)
    assert SEEN[-1] == "channels_last"
    assert np.abs(np.load(out).astype(int) - restore_tiled(IMAGE, model, device="cpu", **TILES)).max() <= 1


def test_weights_that_are_channels_last_do_not_decide(clock):
    clock(1.0, 2.0)
    model = on_device(seeded(lambda: Chain(2))).to(memory_format=torch.channels_last)
    TiledRestorer(model, **TILES)(IMAGE)
    assert SEEN.count("channels_last") == 2


def test_the_users_module_is_not_called_more_often(clock):
    """Trials run through a copy, without the user's hooks."""
    clock(1.0, 0.5)
    model, calls = on_device(seeded(lambda: Chain(2))), []
    model.register_forward_hook(lambda *args: calls.append(1))
    restorer = TiledRestorer(model, **TILES)
    restorer(IMAGE)
    assert len(calls) == len(restorer.last_run.plan)
