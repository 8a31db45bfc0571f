# SPDX-License-Identifier: MIT
"""The plugin for pytest, run as its users run it: in another process, on a test file of their own."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import halotile

ROOT = Path(__file__).parents[1]

SUITE = """
import numpy as np

IMAGE = np.random.default_rng(0).integers(0, 250, (40, 50, 3), np.uint8)


def model(windows):
    return windows


def test_picture(restored, golden_image):
    golden_image(restored(IMAGE, model, tile_size=16, halo=2) + np.uint8(OFF))


def test_floats(restored, golden_image):
    result = restored(IMAGE, model, tile_size=16, out_dtype="float32") + OFF / 255
    golden_image(result.astype(np.float32))
    golden_image(IMAGE[:5], "second.npy")


def test_alone():
    assert OFF in (0, 1, 3)
"""


def pytest_of_users(folder, *arguments):
    known = [one for one in entry_points(group="pytest11") if one.name == "halotile"]
    plugin = [] if known else ["-p", "halotile.pytest_plugin"]
    environment = os.environ | {"PYTHONPATH": str(Path(halotile.__file__).parents[1]), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def suite(tmp_path):
    pytest.importorskip("pyvips")

    def written(off):
        (tmp_path / "test_own.py").write_text(SUITE.replace("OFF", str(off)))
        return tmp_path

    return written


def test_the_entry_point_names_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"halotile": "halotile.pytest_plugin"}


def test_it_is_light(tmp_path):
    code = "import halotile.pytest_plugin, sys; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("numpy", "torch", "pyvips", "matplotlib"):
        assert f"'{heavy}'" not in done.stdout


def test_golden_images(suite):
    folder = suite(0)
    missing = pytest_of_users(folder)
    assert "2 failed, 1 passed" in missing.stdout
    assert re.search(
        r"there is no golden image .*golden/test_own/test_picture.png; pytest --halotile-update", missing.stdout
    )
    written = pytest_of_users(folder, "--halotile-update")
    assert "3 passed" in written.stdout and "halotile: golden images written" in written.stdout
    names = sorted(path.name for path in (folder / "golden" / "test_own").iterdir())
    assert names == ["second.npy", "test_floats.npy", "test_picture.png"]
    assert "3 passed" in pytest_of_users(folder).stdout
    suite(1)  # one step: within rounding for integers, not for floats
    one = pytest_of_users(folder)
    assert "1 failed, 2 passed" in one.stdout and "test_floats - halotile.testing.ImagesDiffer" in one.stdout


def test_what_differs_is_told_and_shown(suite):
    folder = suite(0)
    pytest_of_users(folder, "--halotile-update")
    suite(3)
    done = pytest_of_users(folder, "--junitxml=out/report.xml", "-k", "picture")
    assert "1 failed" in done.stdout
    for text in (
        r"mismatched values: \d+ / 6000",
        r"greatest absolute difference: 3 at row",
        r"expected: .*test_picture.png; pytest --halotile-update writes it anew",
        r"halo 2, phase 1: as given; the model was not inspected",
        r"out/test_own.py-test_picture.png: from no difference",
    ):
        assert re.search(text, done.stdout), (text, done.stdout)
    from halotile.files.picture import read_image

    heat = read_image(folder / "out" / "test_own.py-test_picture.png").pixels
    assert heat.shape == (40, 50, 3) and np.unique(heat.reshape(-1, 3), axis=0).tolist() == [
        [253, 231, 37]
    ]  # 3 everywhere
    report = ElementTree.parse(folder / "out" / "report.xml")
    assert report.find(".//property[@name='halotile_heatmap']").attrib["value"].endswith("test_picture.png")
    elsewhere = pytest_of_users(folder, "--halotile-report=maps", "-k", "picture")
    assert "maps/test_own.py-test_picture.png" in elsewhere.stdout
    assert (folder / "maps" / "test_own.py-test_picture.png").exists()


def test_models_are_looked_at_once_and_paths_are_read(tmp_path):
    (tmp_path / "test_own.py").write_text(
        """
import numpy as np

calls = []


def model(windows):
    calls.append(1)
    return windows


def test_one(restored, tmp_path):
    image = np.full((20, 20, 3), 7, np.uint8)
    np.save(tmp_path / "in.npy", image)
    assert (restored(tmp_path / "in.npy", model, tile_size=32) == 7).all()
    assert restored.last_run.halo == (32, 32)
    first = restored._session.restorers.copy()
    restored(image, model, tile_size=32)
    assert restored._session.restorers == first and len(first) == 1
    restored(image, model, tile_size=16)
    assert len(restored._session.restorers) == 2
"""
    )
    done = pytest_of_users(tmp_path)
    assert "1 passed" in done.stdout, done.stdout
