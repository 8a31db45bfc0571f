# SPDX-License-Identifier: MIT
"""Whatever happens to workers, scheduler, client and disk: the bytes of one process, or an end that says what is
missing, from which another run goes on. Real processes; in the slow lane, as each cluster takes seconds to start."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
distributed = pytest.importorskip("distributed")
pytest.importorskip("pyvips")

from halotile import restore_to  # noqa: E402
from halotile.errors import ClusterError  # noqa: E402

from .on_cluster import (  # noqa: E402
    STREAM,
    TILES,
    Slow,
    calls,
    cluster_of,
    content,
    fill_disk,
    network,
    pids,
    place,  # noqa: F401
    written,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("place")]
WAYS = {"tiles": TILES, "stream": STREAM}


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (1100, 310, 3), np.uint8)  # 9 rows of shards at scale 2


def whole(path, **options):
    restore_to("whole.zarr", path, network(), **options)
    return content("whole.zarr")


def once(at, act):
    """A progress callback that does something when so many shards are done."""
    waiting = [act]

    def progress(done, total):
        if done >= at and waiting:
            waiting.pop()()

    return progress


# ---- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_is_killed(image, way):
    path = written(image)
    want = whole(path, **WAYS[way])
    with cluster_of(2) as client:
        victims = list(pids(client).values())
        kill = once(2, lambda: os.kill(victims[0], signal.SIGKILL))
        run = restore_to("out.zarr", path, Slow(0.05), cluster=client, progress=kill, **WAYS[way])
    assert content("out.zarr") == want
    assert run.spread.shards == 9


def test_all_workers_are_killed_one_after_the_other(image):
    path = written(image)
    want = whole(path, **TILES)
    with cluster_of(2) as client:

        def kill():
            for number in pids(client).values():
                os.kill(number, signal.SIGKILL)

        restore_to("out.zarr", path, Slow(0.05), cluster=client, progress=once(2, kill), **TILES)
    assert content("out.zarr") == want


def test_a_worker_that_hangs_holds_up_nobody(image):
    path = written(image)
    want = whole(path, **TILES)
    with cluster_of(2) as client:
        stopped = next(iter(pids(client).values()))
        stop = once(1, lambda: os.kill(stopped, signal.SIGSTOP))
        try:
            restore_to("out.zarr", path, Slow(0.1), cluster=client, progress=stop, **TILES)
            assert content("out.zarr") == want
        finally:
            os.kill(stopped, signal.SIGCONT)
        time.sleep(3)  # it goes on, and finds that its run has ended
        assert content("out.zarr") == want


def test_the_disk_of_one_worker_is_full(image):
    path = written(image)
    want = whole(path, **TILES)
    with cluster_of(2) as client:
        full = next(iter(pids(client)))
        client.run(fill_disk, os.getcwd(), workers=[full])
        run = restore_to("out.zarr", path, Slow(0.03), cluster=client, **TILES)
    assert content("out.zarr") == want
    assert {share.worker for share in run.spread.workers}.isdisjoint({full})
    assert run.spread.retries >= 1


def test_all_disks_are_full_and_then_they_are_not(image):
    path = written(image)
    want = whole(path, **TILES)
    with cluster_of(2) as client:
        fill = once(3, lambda: client.run(fill_disk, os.getcwd()))
        with pytest.raises(ClusterError, match=r"of 9 shards are missing: .*No space left") as caught:
            restore_to("out.zarr", path, Slow(0.1), cluster=client, resume=True, progress=fill, **TILES)
        assert 0 < caught.value.missing <= 6
        assert not os.path.exists("out.zarr")
    with cluster_of(1) as client:
        with pytest.raises(ValueError, match="model is another"):
            restore_to("out.zarr", path, network(), cluster=client, resume=True, **TILES)
        run = restore_to("out.zarr", path, Slow(0.1), cluster=client, resume=True, **TILES)
    assert run.spread.kept == 9 - caught.value.missing
    assert content("out.zarr") == want


# ---- the client ------------------------------------------------------------------------------------------------------

CLIENT = """
import sys, warnings
warnings.simplefilter("ignore")
from halotile import restore_to
from tests.on_cluster import Slow, TILES
restore_to("out.zarr", "in.zarr", Slow(0.1, "{folder}"), cluster="{address}", resume=True,
           progress=lambda done, total: print(done, flush=True), **TILES)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_the_client_is_killed_and_others_go_on_with_another_number_of_workers(image, workers):
    path = written(image)
    want = whole(path, **TILES)
    os.mkdir("calls")
    folder = os.path.abspath("calls")
    with cluster_of(2) as client:
        code = CLIENT.format(folder=folder, address=client.scheduler.address)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": _paths()}
        )
        for line in process.stdout:
            if int(line) >= 3:
                break
        process.kill()
        process.wait()
    before = sum(calls(folder).values())
    with cluster_of(workers) as client:
        run = restore_to("out.zarr", path, Slow(0.1, folder), cluster=client, resume=True, **TILES)
    assert run.spread.kept >= 3
    assert sum(share.rows for share in run.spread.workers) == run.spread.shards - run.spread.kept
    assert content("out.zarr") == want
    tiles = 12 * 4
    assert sum(calls(folder).values()) - before <= tiles * (9 - run.spread.kept) / 9 + 4 * (4 * workers + 3)


def _paths():
    return os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])


# ---- the scheduler ---------------------------------------------------------------------------------------------------


@contextmanager
def started(*command):
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": _paths()},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def scheduler(port):
    return started(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", ":0"
    )


def worker(address):
    return started("distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--death-timeout", "60")


def test_the_scheduler_is_killed_and_another_takes_its_place(image):
    path = written(image)
    want = whole(path, **TILES)
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with scheduler(port) as first, worker(address):
        with pytest.raises(ClusterError, match="scheduler was lost") as caught:
            restore_to("out.zarr", path, Slow(0.1), cluster=address, resume=True, progress=once(3, first.kill), **TILES)
        assert 0 < caught.value.missing <= 6
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with scheduler(port), worker(address):
        run = restore_to("out.zarr", path, Slow(0.1), cluster=address, resume=True, **TILES)
    assert run.spread.kept >= 3
    assert content("out.zarr") == want


def test_nobody_answers_at_an_address(image):
    with pytest.raises(OSError, match="no scheduler of Dask answers"):
        restore_to("out.zarr", written(image), network(), cluster=f"tcp://127.0.0.1:{free_port()}", **TILES)
