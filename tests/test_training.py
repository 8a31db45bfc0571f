# SPDX-License-Identifier: MIT
"""The training of the embedded model, on drawn pictures: it learns, goes on where it was, and exports what is read."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

FOLDER = Path(__file__).parents[1] / "training"


@pytest.fixture(scope="module")
def scripts():
    """The modules of training/, which are no package, by name."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def data(tmp_path):
    """What photos.py prepares, of two drawn pictures."""
    y, x = np.mgrid[:256, :256]
    picture = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 5), (x + y) / 2], 2).astype(np.uint8)
    np.save(tmp_path / "train.npy", picture.reshape(-1))
    (tmp_path / "train.json").write_text(json.dumps([{"name": "drawn", "offset": 0, "height": 256, "width": 256}]))
    (tmp_path / "test").mkdir()
    Image.fromarray(picture[::-1].copy()).save(tmp_path / "test" / "drawn.png")
    return tmp_path


@pytest.fixture
def run(scripts, data, monkeypatch):
    """Runs train.py into a folder, with the options given and smaller batches; returns the lines of its log."""
    train = scripts("train")
    for name, value in {"PATCH": 32, "PARTS": 2, "PART": 2, "WARM_UP": 5}.items():
        monkeypatch.setattr(train, name, value)

    def main(out, *options):
        command = ["train.py", "--data", data, "--out", data / out, "--threads", "1", "--every", "3", *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        threads = torch.get_num_threads()
        try:
            train.main()
        finally:
            torch.set_num_threads(threads)
        return (data / out / "log.csv").read_text().splitlines()

    return main


def weights(path):
    return torch.cat([tensor.flatten() for tensor in torch.load(path, weights_only=True)["average"].values()])


def test_an_interrupted_run_takes_the_same_steps(run, scripts, data, monkeypatch):
    pytest.importorskip("safetensors")
    train = scripts("train")
    whole = run("whole", "--steps", "6")
    advance, interrupted = train.Training.advance, 4

    def stopping(training, pool):
        if training.step == interrupted:
            raise KeyboardInterrupt
        return advance(training, pool)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "advance", stopping)
        patch.setattr(train, "SAVE_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            run("parts", "--steps", "6")
    resumed = run("parts", "--steps", "6", "--threads", "2")
    assert torch.equal(weights(data / "whole" / "checkpoint.pt"), weights(data / "parts" / "checkpoint.pt"))
    held_out = [[line.split(",")[-3:] for line in log] for log in (whole, resumed)]
    assert held_out[0] == held_out[1] and len(whole) == 3  # the head, and steps 3 and 6


def test_what_is_exported_is_what_the_package_reads(run, scripts, data):
    pytest.importorskip("safetensors")
    from halotile.models.embedded import Restorer, read_weights

    run("run", "--steps", "2")
    model = Restorer()
    model.load_state_dict(read_weights(data / "run" / "restorer.safetensors"))
    exact = weights(data / "run" / "checkpoint.pt")
    assert torch.equal(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]), exact.half().float())


def test_it_learns(run, scripts, monkeypatch):
    """To remove noise of sigma 50, in 30 steps: the model begins as the identity, for which the loss is log(0.2²)."""
    monkeypatch.setattr(scripts("train"), "degrade", lambda image, rng: scripts("degrade").gaussian(image, 50, rng))
    log = run("run", "--steps", "30", "--every", "10")
    loss = [float(line.split(",")[3]) for line in log[1:]]
    assert loss[0] == pytest.approx(np.log((50 / 255) ** 2), abs=0.2)
    assert loss[-1] < loss[0] - 0.5


def test_the_steps_cannot_change_when_the_rate_falls(run):
    run("run", "--steps", "3")
    with pytest.raises(SystemExit, match="too late for other steps than 3"):
        run("run", "--steps", "9")


def test_degradations_are_what_they_are_called(scripts, rng):
    degrade = scripts("degrade")
    image = np.full((200, 200, 3), 0.5, np.float32)
    assert np.std(degrade.gaussian(image, 25, rng) - image) * 255 == pytest.approx(25, rel=0.02)
    shot = degrade.poisson_gaussian(image, 4, 150, rng) - image
    assert np.std(shot) == pytest.approx(np.sqrt(0.5 / 150 + (4 / 255) ** 2), rel=0.02)
    assert 10 < np.std(degrade.correlated(image, 25, rng) - image) * 255 < 40
    ramp = np.linspace(0, 1, 200, dtype=np.float32)[None, :, None] * np.ones((200, 1, 3), np.float32)
    assert np.abs(degrade.jpeg(ramp, 20, 2) - ramp).max() > np.abs(degrade.jpeg(ramp, 95, 0) - ramp).max() > 0
    results = [degrade.degrade(ramp, np.random.default_rng(seed)) for seed in range(40)]
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
    clean = [np.abs(result - ramp).max() <= 0.5 / 255 + 1e-6 for result in results]
    assert 0 < sum(clean) < 10  # some are left as they are
