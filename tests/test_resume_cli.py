# SPDX-License-Identifier: MIT
"""halotile restore --resume: files and folders go on, what is complete is left, and the bytes are those of one run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyvips")

from halotile import cli  # noqa: E402
from halotile.files import journal  # noqa: E402
from halotile.files import picture as files  # noqa: E402
from halotile.files.atomic import sweep  # noqa: E402

MODELS = """
import os, signal
import torch

CALLS = []


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        CALLS.append(1)
        if len(CALLS) == int(os.environ.get("DIE_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x)


def make():
    return Net()
"""
SIZES = ["--tile-size", "24", "--halo", "3", "--phase", "1"]
COMMAND = ["restore", "-m", "models:make()", *SIZES]
OFTEN = "from halotile.files import journal; journal.SHARE = float('inf')\n"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journal, "SHARE", float("inf"))
    Path("models.py").write_text(MODELS)
    os.mkdir("in")
    for number, name in enumerate(("a.png", "b.tif", "c.png")):
        files.write_image(f"in/{name}", rng.integers(0, 256, (90 + number, 61, 3), np.uint8))


def killed(at, *arguments):
    """The command in a process that dies at a call of the model."""
    code = f"{OFTEN}import sys\nfrom halotile.cli import main\nsys.exit(main({list(arguments)!r}))"
    env = os.environ | {"DIE_AT": str(at)}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr
    sweep.cache_clear()


def contents(folder):
    return {one.name: one.read_bytes() for one in sorted(Path(folder).iterdir())}


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.mark.parametrize("at", [5, 20, 32, 38])
def test_a_folder_goes_on(at, capsys):
    assert cli.main([*COMMAND, "in", "-o", "want", "--quiet"]) == 0
    killed(at, *COMMAND, "in", "-o", "out", "--resume")
    complete = {name: os.stat(f"out/{name}").st_mtime_ns for name in os.listdir("out") if not name.startswith(".")}
    assert len(complete) == {5: 0, 20: 1, 32: 1, 38: 2}[at]
    capsys.readouterr()
    assert cli.main([*COMMAND, "in", "-o", "out", "--resume", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["totals"]["skipped"] == len(complete) and found["totals"]["restored"] == 3 - len(complete)
    assert contents("out") == contents("want")
    assert {name: os.stat(f"out/{name}").st_mtime_ns for name in complete} == complete


@pytest.mark.parametrize("output", ["out.png", "out.npy", "out.tif"])
def test_a_file_goes_on(output):
    assert cli.main([*COMMAND, "in/a.png", "-o", f"want-{output}", "--quiet"]) == 0
    killed(11, *COMMAND, "in/a.png", "-o", output, "--resume")
    assert not os.path.exists(output)
    assert cli.main([*COMMAND, "in/a.png", "-o", output, "--resume"]) == 0
    assert Path(output).read_bytes() == Path(f"want-{output}").read_bytes()
    assert not [name for name in os.listdir() if name.startswith(".")]


@pytest.mark.parametrize("at", [6, 9, 14, 18])
@pytest.mark.parametrize("more", [[], ["--verify", "2"]])
def test_pages_of_one_file_go_on(rng, at, more):
    pages = rng.integers(0, 256, (3 * 70, 40, 3), np.uint8)
    files.write_image("pages.tif", pages, pages=3)
    assert cli.main([*COMMAND, "pages.tif", "-o", "want.tif", "--quiet"]) == 0
    killed(at, *COMMAND, "pages.tif", "-o", "out.tif", "--resume")
    assert cli.main([*COMMAND, "pages.tif", "-o", "out.tif", "--resume", *more]) == 0
    assert Path("out.tif").read_bytes() == Path("want.tif").read_bytes()


def test_how_the_file_is_written_may_change():
    """Kept rows are pixels, before they are resampled and compressed."""
    more = ["--size", "80x", "--compression", "1"]
    assert cli.main([*COMMAND, "in/a.png", "-o", "want.png", "--quiet", *more]) == 0
    killed(11, *COMMAND, "in/a.png", "-o", "out.png", "--resume")
    assert cli.main([*COMMAND, "in/a.png", "-o", "out.png", "--resume", *more]) == 0
    assert Path("out.png").read_bytes() == Path("want.png").read_bytes()


def test_what_differs_is_one_line(capsys):
    killed(11, *COMMAND, "in/a.png", "-o", "out.png", "--resume")
    assert cli.main([*COMMAND, "in/c.png", "-o", "out.png", "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("halotile: error: out.png: the rows kept of it were made of something else: the image is")
    assert said.count("\n") == 1


def test_resume_and_force_contradict_each_other(capsys):
    assert cli.main([*COMMAND, "in/a.png", "-o", "out.png", "--resume", "--force"]) == 2
    assert "--resume and --force cannot be combined" in capsys.readouterr().err


def test_what_is_complete_is_left(capsys):
    assert cli.main([*COMMAND, "in/a.png", "-o", "out.png"]) == 0
    before = os.stat("out.png").st_mtime_ns
    assert cli.main([*COMMAND, "in/a.png", "-o", "out.png", "--resume"]) == 0
    assert os.stat("out.png").st_mtime_ns == before


@pytest.mark.parametrize("planted", ["a.png", "below"])
@pytest.mark.parametrize("more", [["--force"], ["--resume"], []])
def test_links_in_an_output_folder_lead_nowhere(tmp_path_factory, capsys, planted, more):
    other = tmp_path_factory.mktemp("other")
    os.makedirs("in/below")
    os.rename("in/b.tif", "in/below/b.tif")
    os.mkdir("out")
    target = other / "kept" if planted == "a.png" else other
    if planted == "a.png":
        target.write_text("kept")
    os.symlink(target, f"out/{planted}")
    assert cli.main([*COMMAND, "in", "-o", "out", *more]) == 2
    assert f"out/{planted}" in capsys.readouterr().err
    assert [one.read_text() for one in other.iterdir()] == (["kept"] if planted == "a.png" else [])


def test_an_output_folder_may_be_a_link():
    os.mkdir("there")
    os.symlink("there", "out")
    assert cli.main([*COMMAND, "in", "-o", "out", "--quiet"]) == 0
    assert sorted(os.listdir("there")) == ["a.png", "b.tif", "c.png"]
