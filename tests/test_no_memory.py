# SPDX-License-Identifier: MIT
"""Memory runs out at every allocation of every call of halotile._core, and at those of a run into each kind of file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CC = os.environ.get("CC", "cc")


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory):
    if sys.platform != "linux" or shutil.which(CC) is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("no_memory") / "failing_malloc.so"
    source = HERE / "c" / "failing_malloc.c"
    subprocess.run(
        [CC, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", str(source), "-ldl", "-o", str(library)], check=True
    )
    return library


def run(library, *arguments, timeout=300):
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_every_allocation_of_every_call_of_the_binding(failing_malloc):
    lines = run(failing_malloc, HERE / "no_memory.py").splitlines()
    assert len(lines) == 23 and all(line.endswith("each failed") for line in lines)


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_runs_into_files(failing_malloc, tmp_path, suffix):
    """Every so many allocations: a sink keeps its promises whatever it is that finds no memory."""
    out = run(failing_malloc, HERE / "no_memory_sinks.py", tmp_path, suffix)
    assert "each failed" in out
