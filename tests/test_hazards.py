# SPDX-License-Identifier: MIT
"""What an Apple GPU's own operations get wrong, on an emulated one that gets it wrong when it is asked to."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from halotile import RangeWarning, TiledRestorer, restore_tiled  # noqa: E402
from halotile.engine import hazards  # noqa: E402

from .networks import Chain, seeded  # noqa: E402
from .test_engines import pixels_of  # noqa: E402

TILES = {"tile_size": 24, "halo": 4, "overlap": 5}
IMAGE = pixels_of("uint8", (60, 71, 3))
ALL_RIGHT = {"views": "fine", "kernels": "fine", "channels_last": "fine"}


@pytest.fixture
def untried(fake_mps, monkeypatch):
    """As at the first use of the device in a process."""
    monkeypatch.setattr(hazards, "_found", {})
    return fake_mps


class Halved(torch.nn.Module):
    """Convolves the views that chunk() makes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, windows):
        one, other = self.first(windows).chunk(2, dim=1)
        return self.second(one) + self.second(other)


class Large(torch.nn.Module):
    """Its kernel is as wide as 256 pixels."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.wide = torch.nn.Conv2d(3, 3, (1, 256), padding=(0, 128), groups=3)

    def forward(self, windows):
        return self.wide(self.stem(windows))[..., :-1]


class Shapes(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.shapes = model, []

    def forward(self, windows):
        self.shapes.append(tuple(windows.shape))
        return self.model(windows)


# ---- the trials ------------------------------------------------------------------------------------------------------


def test_a_device_without_faults_passes(untried):
    assert all(trial.fine for trial in hazards.tried(torch.device("fakemps")))
    assert hazards.faults_of(torch.device("fakemps")) == frozenset()
    assert hazards._found == {"fakemps": ALL_RIGHT}


@pytest.mark.parametrize("name", hazards.TRIALS)
def test_every_fault_is_found_and_no_other(untried, name):
    getattr(untried, f"set_wrong_{name}")(True)
    assert hazards.faults_of(torch.device("fakemps")) == {name}


def test_other_devices_are_not_tried(untried, monkeypatch):
    monkeypatch.setattr(hazards, "tried", lambda device: 1 / 0)
    assert hazards.faults_of(None) == hazards.faults_of(torch.device("cpu")) == frozenset()


def test_outcomes_are_kept_unless_something_could_not_be_tried(untried, monkeypatch):
    where, runs, own = torch.device("fakemps"), [], hazards.tried
    monkeypatch.setattr(hazards, "tried", lambda device: runs.append(1) or own(device))
    untried.set_memory_limit(untried.current_allocated_memory() + 100)
    assert hazards.faults_of(where) == frozenset()
    assert all("MPS backend out of memory" in outcome for outcome in hazards._found["fakemps"].values())
    hazards._found.clear()
    untried.set_memory_limit(None)
    for _ in range(3):
        assert hazards.faults_of(where) == frozenset()
        hazards._found.clear()  # as in another process
    assert len(runs) == 2


# ---- what is done ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [4, "auto"])
def test_batches_are_of_one_where_convolutions_of_views_are_wrong(untried, batch):
    model = seeded(Halved)
    want = restore_tiled(IMAGE, model, **TILES)
    on_device = Shapes(copy.deepcopy(model).to("fakemps"))
    untried.set_wrong_views(True)
    restorer = TiledRestorer(on_device, batch_size=batch, **TILES)
    for _ in range(2):
        assert np.abs(restorer(IMAGE).astype(int) - want).max() <= 1
        assert restorer.last_run.why.count("batches are of 1, because this machine computes convolutions of views") == 1
    assert {shape[0] for shape in on_device.shapes} == {1}


def test_batches_of_several_would_be_wrong_there(untried, monkeypatch):
    """The fault is real on the emulated device: nothing but a batch of one avoids it."""
    model = seeded(Halved)
    want = restore_tiled(IMAGE, model, **TILES)
    monkeypatch.setitem(hazards._found, "fakemps", ALL_RIGHT)
    untried.set_wrong_views(True)
    restorer = TiledRestorer(copy.deepcopy(model).to("fakemps"), batch_size=4, **TILES)
    assert np.abs(restorer(IMAGE).astype(int) - want).max() > 1
    assert "batches are of 1" not in restorer.last_run.why


def test_several_images_are_not_put_together_there(untried):
    on_device = Shapes(seeded(Halved).to("fakemps"))
    untried.set_wrong_views(True)
    restore_tiled(np.stack([IMAGE[:20, :20]] * 3), on_device, batch_size=8, **TILES)
    assert {shape[0] for shape in on_device.shapes} == {1}


def test_large_kernels_are_refused_where_they_are_wrong(untried):
    model = seeded(Large).to("fakemps")
    untried.set_wrong_kernels(True)
    untried.reset_counts()
    text = r"on fakemps:0 model should have no kernels of 256 and more, but its layer wide has one of 1x256, and this "
    with pytest.raises(ValueError, match=f"{text}machine computes it wrong: pass device='cpu'"):
        restore_tiled(IMAGE, model, **TILES)
    with pytest.raises(ValueError, match=text):
        restore_tiled(IMAGE, lambda windows: model(windows), **TILES)
    assert untried.counts()["upload_bytes"] < 10_000_000
    restore_tiled(IMAGE, model, device="cpu", **TILES)
    restore_tiled(IMAGE, seeded(lambda: Chain(1)).to("fakemps"), **TILES)


def test_large_kernels_run_where_they_are_right(untried):
    model = seeded(Large)
    options = TILES | {"halo": 130}
    want = restore_tiled(IMAGE, model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", RangeWarning)
        got = restore_tiled(IMAGE, copy.deepcopy(model).to("fakemps"), **options)
    assert np.abs(got.astype(int) - want).max() <= 1


def test_large_kernels_are_warned_about_where_they_could_not_be_tried(untried, monkeypatch):
    monkeypatch.setitem(hazards._found, "fakemps", ALL_RIGHT | {"kernels": "no memory"})
    restorer = TiledRestorer(seeded(Large).to("fakemps"), **TILES)
    with pytest.warns(RuntimeWarning, match=r"its layer wide has one of 1x256, .* not be tried here \(no memory\)"):
        restorer(IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        restorer(IMAGE)


# ---- views -----------------------------------------------------------------------------------------------------------

READ_VIEWS = {"copy_", "_to_copy", "to", "clone", "contiguous", "index_select", "add_"}
VIEWS = {"narrow", "slice", "select", "permute", "view", "unsqueeze", "expand", "detach", "alias", "as_strided", "t"}
VIEWS |= {
    "_unsafe_view",
    "transpose",
    "split",
    "unbind",
    "squeeze",
    "empty_like",
    "zeros_like",
    "full_like",
    "resolve_neg",
    "resolve_conj",
}


class DenseOnly(TorchDispatchMode):
    """Notes operations that take tensors of the device that are neither contiguous nor channels_last."""

    def __init__(self):
        super().__init__()
        self.found, self.seen = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, _, name = function._schema.name.partition("::")
        if space == "halotile":  # its kernels take any strides
            return function(*args, **(kwargs or {}))
        for one in args:
            if isinstance(one, torch.Tensor) and one.device.type == "fakemps" and name not in READ_VIEWS | VIEWS:
                self.seen += 1
                last = one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last)
                if not (one.is_contiguous() or last or one.numel() <= 1):
                    self.found.add((name, tuple(one.shape), one.stride()))
        return function(*args, **(kwargs or {}))


class Contiguous(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, windows, *further):
        self.calls += 1
        assert windows.is_contiguous() and all(one.is_contiguous() for one in further)
        return times(self.model)(windows, *further)


def times(model):
    return lambda windows, *further: model(windows) * (further[0] if further else 1)


RUNS = {
    "plain": {},
    "batches": {"batch_size": 4},
    "wrap": {"boundary": "wrap", "batch_size": 3},
    "native": {"boundary": "native"},
    "low band": {"match_low": "auto"},
    "further inputs": {"extra": torch.full((1, 3, 1, 1), 0.5), "batch_size": 4},
    "float32": {"out_dtype": "float32", "value_range": (-1, 1)},
    "alpha": {"alpha": "restore"},
    "retry": {"on_nonfinite": "retry"},
}


@pytest.mark.parametrize("engine", ["torch", "mps", "host"])
@pytest.mark.parametrize("name", RUNS)
def test_operations_get_no_views(fake_mps, name, engine):
    image = pixels_of("uint8", (60, 71, 4)) if name == "alpha" else IMAGE
    image = image[:, ::-1][::1]  # a view, as the image may be
    model, options = seeded(lambda: Chain(2)), TILES | RUNS[name] | {"memory_format": "contiguous"}
    want = restore_tiled(image, times(model), scale=1, phase=1, **options)
    watched = Contiguous(copy.deepcopy(model).to("fakemps"))
    fake_mps.reset_counts()
    with DenseOnly() as mode:
        got = restore_tiled(image, watched, engine=engine, **options)
    assert np.abs(got.astype(np.float64) - want).max() <= (1 if got.dtype == np.uint8 else 1e-5)
    assert watched.calls and mode.seen and mode.found == set()
    assert all(contiguous for _, _, _, contiguous, _ in fake_mps.transfers())


def test_grey_models_and_averages_get_no_views(fake_mps):
    grey = pixels_of("uint8", (60, 71))
    for image, channels in ((grey, 3), (IMAGE, 1)):
        model = Contiguous(seeded(lambda n=channels: Chain(2, channels=n)).to("fakemps"))
        with DenseOnly() as mode:
            restore_tiled(image, model, engine="torch", batch_size=3, memory_format="contiguous", **TILES)
        assert model.calls and mode.found == set()


def test_images_that_are_views_on_the_device(fake_mps):
    whole = torch.from_numpy(pixels_of("uint8", (3, 120, 142))).to("fakemps")
    view = whole[:, ::2, 1::2]
    model = seeded(lambda: Chain(2))
    want = restore_tiled(view.cpu(), model, **TILES)
    for engine in ("torch", "mps"):
        watched = Contiguous(copy.deepcopy(model).to("fakemps"))
        with DenseOnly() as mode:
            got = restore_tiled(view, watched, engine=engine, memory_format="contiguous", **TILES)
        assert torch.equal(got.cpu(), want) and mode.found == set()


def test_streams_give_operators_no_views(fake_mps):
    model = seeded(lambda: Chain(3))
    want = restore_tiled(IMAGE, model, schedule="stream", halo="exact")
    restorer = TiledRestorer(copy.deepcopy(model).to("fakemps"), schedule="stream", halo="exact")
    restorer(IMAGE)
    with DenseOnly() as mode:
        got = restorer(IMAGE)
    assert restorer.last_run.schedule == "stream"
    assert np.abs(got.astype(int) - want).max() <= 1
    assert mode.seen and mode.found == set()
