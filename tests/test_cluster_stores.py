# SPDX-License-Identifier: MIT
"""Object stores: the same contract as for folders, on fsspec's memory, and runs from and to a server on loopback."""

import os
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from contextlib import contextmanager, suppress

import numpy as np
import pytest

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
distributed = pytest.importorskip("distributed")
fsspec = pytest.importorskip("fsspec")

from halotile import restore_to  # noqa: E402
from halotile.cluster.draft import discard, drafted  # noqa: E402
from halotile.cluster.store import RUN, Bucket, Folder, Receipts  # noqa: E402

from .on_cluster import TILES, cluster_of, content, network, written  # noqa: E402

NOTHING = {"run": {}, "fixed": {}, "manner": {}}


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    if request.param == "folder":
        return Folder(str(tmp_path))
    return Bucket(f"memory://{uuid.uuid4().hex}")


def test_stores_keep_what_is_put(store):
    assert store.get("a/b") is None
    assert store.size("a/b") == -1
    assert store.names("a") == []
    store.put({"a/b": b"one", "a/c/d": b"", "e": b"three"})
    assert store.get("a/b") == b"one"
    assert store.size("a/c/d") == 0
    assert store.names("a") == ["b", "c/d"]
    store.put({"a/b": b"another"})
    assert store.get("a/b") == b"another"
    store.drop("a/b")
    store.drop("a/b")
    store.remove("a")
    store.remove("a")
    assert store.names("") == ["e"]


def test_what_killed_workers_were_putting_is_removed(store):
    store.put({"c/0/0": b"x"})
    if isinstance(store, Folder):
        store.put({"c/0/.123.part": b"half"})
    store.tidy()
    assert store.names("") == ["c/0/0"]


def test_shards_of_which_nothing_can_be_told_are_removed(tmp_path):
    path = str(tmp_path / "out.zarr")
    about = NOTHING
    with pytest.raises(KeyError), drafted(path, True) as draft:
        draft.begin("me", about, b"{}")
        draft.store.put({"c/7/7": b"x", ".halotile/about.json": b"{torn"})
        raise KeyError
    with drafted(path, True) as draft:
        assert draft.before is None
        draft.begin("me again", about, b"{}")
        draft.store.put({"c/0/0": b"y"})
        draft.complete(b"{}")
    assert Folder(path).names("") == ["c/0/0", "zarr.json"]
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_one_process_removes_what_workers_have_begun(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError), drafted("out.zarr", True) as draft:
        draft.begin("me", NOTHING, b"{}")
        raise KeyError
    assert [name for name in os.listdir() if name.startswith(".halotile")]
    restore_to("out.zarr", written(rng.integers(0, 256, (80, 70, 3), np.uint8)), lambda x: x, halo=0, phase=1)
    assert sorted(os.listdir()) == ["in.zarr", "out.zarr"]


def test_what_is_removed_stays_so_where_workers_still_put(tmp_path):
    """Workers whose run has ended write on until they look."""
    path = str(tmp_path / "out.zarr")
    for _ in range(30):
        with pytest.raises(KeyError), drafted(path, True) as draft:
            draft.begin("one", NOTHING, b"{}")
            raise KeyError
        kept, put = draft.store, []

        def work(store=kept, put=put):
            with suppress(OSError):
                for _ in range(1000):
                    store.put({f"c/{len(put)}/0": bytes(100)})
                    put.append(1)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        while len(put) < 5:
            time.sleep(0)
        discard(path)
        for worker in workers:
            worker.join()
        assert os.listdir(tmp_path) == []


def test_two_runs_of_one_result_are_refused(tmp_path):
    path = str(tmp_path / "out.zarr")
    with drafted(path, True) as draft:
        draft.begin("me", NOTHING, b"{}")
        with pytest.raises(OSError, match="another process is making it"), drafted(path, True):
            pass


def test_receipts_count_what_is_there(store):
    store.put({RUN: b"me"})
    receipts = Receipts(store, "me")
    receipts.put(3, range(2), {"c/3/0": b"x", "c/3/1": b"yy"})
    receipts.put(10, range(1, 2), {"c/10/1": b"z"})
    assert receipts.all() == {(3, 0), (3, 1), (10, 1)}
    assert receipts.columns(3) == {0, 1}
    assert receipts.columns(4) == set()
    store.drop("c/10/1")
    assert receipts.drop_false(receipts.names()) == ["10/1-2.json"]
    store.put({".halotile/rows/5/0-1.json": b"{torn"})
    assert receipts.drop_false(receipts.names()) == ["5/0-1.json"]
    assert receipts.all() == {(3, 0), (3, 1)}
    with pytest.raises(OSError, match="another run's"):
        Receipts(store, "another").put(1, range(1), {"c/1/0": b""})


def test_an_array_in_an_object_store_is_there_when_its_description_is():
    url = f"memory://{uuid.uuid4().hex}/out.zarr"
    about = NOTHING
    with drafted(url, True) as draft:
        draft.begin("me", about, b"{}")
        assert draft.store.get("zarr.json") is None
    with drafted(url, True) as draft:
        assert draft.before == about
        draft.begin("me again", about, b"{}")
        draft.complete(b"{}")
    assert draft.store.names("") == ["zarr.json"]
    with pytest.raises(FileExistsError, match="exchange none"), drafted(url, True):
        pass


def test_without_resume_an_object_store_is_left_as_it_was():
    url = f"memory://{uuid.uuid4().hex}/out.zarr"
    with pytest.raises(KeyError), drafted(url, False) as draft:
        draft.begin("me", {}, b"{}")
        draft.store.put({"c/0/0": b"x"})
        raise KeyError
    assert draft.store.names("") == []


# ---- a server --------------------------------------------------------------------------------------------------------


@contextmanager
def server():
    """An object server as S3's on this machine."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_from_and_to_an_object_server(rng, tmp_path, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    warnings.simplefilter("ignore")
    monkeypatch.chdir(tmp_path)
    image = rng.integers(0, 256, (600, 310, 3), np.uint8)
    restore_to("whole.zarr", written(image), network(), **TILES)
    want = content("whole.zarr")
    with server() as url:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "FSSPEC_S3_ENDPOINT_URL": url,
        }.items():
            monkeypatch.setenv(name, value)
        files = s3fs.S3FileSystem(endpoint_url=url)
        files.mkdir("scans")
        files.put("in.zarr", "scans/in.zarr", recursive=True)
        with cluster_of(2) as client:

            def stop(done, total):
                if done >= 2:
                    raise KeyError("enough")

            asked = {"cluster": client, "resume": True, **TILES}
            with pytest.raises(KeyError):
                restore_to("s3://scans/out.zarr", "s3://scans/in.zarr", network(), progress=stop, **asked)
            run = restore_to("s3://scans/out.zarr", "s3://scans/in.zarr", network(), **asked)
        assert run.spread.kept >= 2
        files.invalidate_cache()
        found = {name.removeprefix("scans/out.zarr/"): files.cat_file(name) for name in files.find("scans/out.zarr")}
    assert found == want
    assert os.path.exists("in.zarr")
