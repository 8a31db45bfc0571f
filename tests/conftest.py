# SPDX-License-Identifier: MIT
import os
import signal
import sys

import numpy as np
import pytest

from .lanes import thin


def heed_interrupts():
    """In a child process: what runs in the background of a shell ignores Ctrl-C, and under nohup also the end of the
    session, and so would the child."""
    for ends in (signal.SIGINT, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT,):
        signal.signal(ends, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Before -m chooses."""
    thin(items)


@pytest.fixture(scope="session")
def emulated():
    """The emulated Apple GPU with halotile's engine `mps` on it, built where that was not done before."""
    from .fake_mps import for_tests

    for_tests()
    from .fake_mps.attach import attach

    return attach()  # the self-test has run: what is counted later are runs


@pytest.fixture
def fake_mps(emulated):
    """The same, with nothing counted yet; fails the test if anything happened that must not."""
    emulated.take_violations()
    emulated.reset_settings()
    emulated.reset_counts()
    yield emulated
    emulated.reset_settings()
    assert emulated.take_violations() == []


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """What halotile keeps on disk, it keeps in a folder of the test's own."""
    monkeypatch.setenv("HALOTILE_CACHE", str(tmp_path / "kept by halotile"))


@pytest.fixture
def streams_pay(monkeypatch):
    """schedule="auto" compares pixels alone: images of any size are worth a graph, and no convolution is timed."""
    monkeypatch.setattr("halotile.auto.streams.WORTH", 0)
    monkeypatch.setattr("halotile.run.stream.cost.strip_cost", lambda graph, rows, side: 1.0)


@pytest.fixture(autouse=True)
def forget_modules(tmp_path):
    """A module that a test wrote and imported is not the next test's: many are called `models`."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


MALLOC = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}


@pytest.fixture(autouse=True)
def malloc_of_the_session():
    """Dask leaves variables of malloc in the environment, which the next test's processes would heed."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        del os.environ[name]
    os.environ.update(MALLOC)


@pytest.fixture
def rng():
    return np.random.default_rng(20261123)
