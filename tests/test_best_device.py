# SPDX-License-Identifier: MIT
"""device="best": an Apple GPU, CUDA, XPU, else the CPU; here an emulated Apple GPU, and a machine with a CPU only."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import TiledRestorer, TileError, cli, restore_tiled  # noqa: E402
from halotile.cli.restore import half  # noqa: E402 - imported before a test replaces what it imports
from halotile.files.picture import read_image, write_image  # noqa: E402
from halotile.models import devices  # noqa: E402
from halotile.models.devices import usable_device  # noqa: E402
from halotile.models.kinds import open_model  # noqa: E402
from halotile.models.load import load_model  # noqa: E402

from .networks import Chain, seeded  # noqa: E402
from .test_engines import pixels_of  # noqa: E402

TILES = {"tile_size": 24, "halo": 4, "overlap": 5, "memory_format": "contiguous"}
IMAGE = pixels_of("uint8", (60, 71, 3))
SAID = "a copy of the model runs on fakemps, the best device here"


@pytest.fixture
def mac(fake_mps, monkeypatch):
    """A machine whose Apple GPU is the emulated one."""
    own = devices.usable_device
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(devices, "usable_device", lambda name: own("fakemps" if name == "mps" else name))
    return fake_mps


@pytest.fixture
def cpu_only(monkeypatch):
    for backend in (torch.backends.mps, torch.cuda, torch.xpu):
        monkeypatch.setattr(backend, "is_available", lambda: False)


def test_the_order(monkeypatch):
    there = {"mps": torch.backends.mps, "cuda": torch.cuda, "xpu": torch.xpu}
    own = devices.usable_device
    monkeypatch.setattr(devices, "usable_device", lambda name: name if name in there else own(name))
    for backend in there.values():
        monkeypatch.setattr(backend, "is_available", lambda: True)
    for name, backend in there.items():
        assert own("best") == name
        monkeypatch.setattr(backend, "is_available", lambda: False)
    assert own("best") == torch.device("cpu")


def test_models_on_the_cpu_run_as_a_copy_on_the_gpu(mac):
    model = seeded(lambda: Chain(2))
    before, want = copy.deepcopy(model.state_dict()), restore_tiled(IMAGE, model, device="cpu", **TILES)
    restorer = TiledRestorer(model, device="best", **TILES)
    for _ in range(2):
        mac.reset_counts()
        np.testing.assert_array_equal(restorer(IMAGE), want)
        assert mac.launches()
        assert restorer.last_run.why.count(SAID) == 1
    assert all(one.device.type == "cpu" for one in model.parameters())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one is not model for one in restorer.knowledge.opened[False].modules)


def test_the_default_of_the_library_leaves_models_where_they_are(mac):
    restorer = TiledRestorer(seeded(lambda: Chain(2)), **TILES)
    restorer(IMAGE)
    assert not mac.launches() and "best device" not in restorer.last_run.why


def test_the_included_model_goes_there(mac):
    model = load_model()
    restorer = TiledRestorer(model, device="best", memory_format="contiguous")
    want = restore_tiled(IMAGE, model, device="cpu")
    assert np.abs(restorer(IMAGE).astype(int) - want).max() <= 1
    assert mac.launches() and SAID in restorer.last_run.why


def test_half_precision_and_auto_options_go_there_too(mac):
    model = seeded(lambda: Chain(2))
    restorer = TiledRestorer(model, device="best", dtype="float16", halo="exact", tile_size="auto")
    want = restore_tiled(IMAGE, model, device="cpu", halo="exact")
    assert np.abs(restorer(IMAGE).astype(int) - want).max() <= 2
    assert mac.launches() and SAID in restorer.last_run.why and restorer.last_run.how == "exact"
    assert next(model.parameters()).dtype == torch.float32


def test_models_that_cannot_be_copied_stay(mac):
    class Alone(Chain):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one")

    model = seeded(lambda: Alone(2))
    restorer = TiledRestorer(model, device="best", **TILES)
    np.testing.assert_array_equal(restorer(IMAGE), restore_tiled(IMAGE, model, **TILES))
    assert "the model runs on the CPU: it cannot be copied to fakemps, the best device here" in restorer.last_run.why
    with pytest.raises(ValueError, match="asks for a converted copy of model, which cannot be copied"):
        restore_tiled(IMAGE, model, device="fakemps", **TILES)


def test_models_that_are_on_a_device_and_callables_stay(mac):
    other = seeded(lambda: Chain(2)).to("fakemps:1")
    assert open_model(other, device="best", dtype=None, tensors=False).modules == [other]
    model = seeded(lambda: Chain(2))
    want = restore_tiled(IMAGE, model, **TILES)
    mac.reset_counts()
    np.testing.assert_array_equal(restore_tiled(IMAGE, lambda x: model(x), device="best", phase=1, **TILES), want)
    assert not mac.launches()
    np.testing.assert_array_equal(restore_tiled(IMAGE, lambda x: np.clip(x, 0, 1), device="best", **TILES), IMAGE)


def test_what_makes_tensors_on_the_cpu_says_how_to_stay_there(mac):
    class Own(Chain):
        def forward(self, windows):
            return super().forward(windows + torch.zeros(1, 3, 1, 1, device="cpu"))

    model = seeded(lambda: Own(1))
    with pytest.raises(TileError, match=r"make tensors on the CPU by itself, .* device='cpu' leaves it"):
        restore_tiled(IMAGE, model, device="best", **TILES)
    restore_tiled(IMAGE, model, device="cpu", **TILES)


def test_a_machine_with_a_cpu_only(cpu_only):
    model = seeded(lambda: Chain(2))
    assert usable_device("best") == torch.device("cpu")
    assert open_model(model, device="best", dtype=None, tensors=False).modules == [model]
    restorer = TiledRestorer(model, device="best", **TILES)
    np.testing.assert_array_equal(restorer(IMAGE), restore_tiled(IMAGE, model, **TILES))
    assert "best" not in restorer.last_run.why


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image("in.png", IMAGE)
    return "in.png"


def test_the_command_goes_there_by_itself_and_says_so(mac, photo, capsys):
    assert cli.main(["restore", photo, "-o", "out.png"]) == 0
    assert mac.launches() and SAID in capsys.readouterr().out
    mac.reset_counts()
    assert cli.main(["restore", photo, "-o", "cpu.png", "--device", "cpu"]) == 0
    assert not mac.launches() and "best" not in capsys.readouterr().out
    assert np.abs(read_image("out.png").pixels.astype(int) - read_image("cpu.png").pixels).max() <= 1


def test_half_is_of_the_device_that_runs(mac, monkeypatch):
    model = torch.nn.Conv2d(3, 3, 3)
    assert half(model, "best") == "float16"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert half(model, "best") == "bfloat16"
    assert half(model.to("fakemps"), "best") == "float16"


def test_the_command_on_a_machine_with_a_cpu_only(cpu_only, photo, capsys):
    assert cli.main(["restore", photo, "-o", "out.png"]) == 0
    assert "best" not in capsys.readouterr().out


def test_the_help_says_what_is_best(capsys):
    with pytest.raises(SystemExit):
        cli.main(["restore", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "best: mps, cuda, xpu, else cpu, whichever is there first (default: best)" in said
