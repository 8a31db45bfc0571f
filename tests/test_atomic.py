# SPDX-License-Identifier: MIT
"""Files and folders are replaced in one step, nothing of the dead stays, and a sink that lost something says so."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
pytest.importorskip("pyvips")

from halotile import restore_to  # noqa: E402
from halotile.files import disk  # noqa: E402
from halotile.files.atomic import PREFIX, hidden_name, replacing, replacing_folder, sweep  # noqa: E402
from halotile.files.formats import open_sink  # noqa: E402
from halotile.files.open import open_source  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks, links and signals")
SINKS = ("npy", "zarr", "tif", "png")
TILES = {"tile_size": 24, "halo": 3}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep.cache_clear()


def filled(path, value):
    image = np.full((40, 30, 3), value, np.uint8)
    restore_to(path, image, torch.nn.Identity(), **TILES)
    return image


def read(path):
    source, rows = open_source(path, None, None), np.empty((40, 30, 3), np.uint8)
    source.read(0, rows)
    return rows


# ---- a folder in place of another ------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys, numpy as np
from halotile.files import disk
from halotile import restore_to
calls, real = [], disk.rename
def rename(name, target):
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(name, target)
disk.exchange = lambda one, other: False
disk.rename = rename
restore_to("out.zarr", np.full((40, 30, 3), 9, np.uint8), lambda x: np.array(x), tile_size=24, halo=3)
"""


@pytest.mark.parametrize("again", ["read", "write"])
@pytest.mark.parametrize("rename", [1, 2])
def test_killed_between_two_renames(rename, again):
    old = filled("out.zarr", 5)
    done = subprocess.run([sys.executable, "-c", KILLED, str(rename)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.path.exists("out.zarr") == (rename == 1)
    if again == "read":
        np.testing.assert_array_equal(read("out.zarr"), old)
    else:
        sweep.cache_clear()  # as in another process
        new = filled("out.zarr", 7)
        np.testing.assert_array_equal(read("out.zarr"), new)
        assert os.listdir() == ["out.zarr"]


def test_a_folder_is_exchanged_in_one_step(monkeypatch):
    """Readers find the old or the new one at any time, never none."""
    filled("out.zarr", 5)
    seen, real = [], disk.rename
    monkeypatch.setattr(disk, "rename", lambda *names: (seen.append(names), real(*names)))
    os.mkdir("other")
    if not disk.exchange(os.path.abspath("other"), os.path.abspath("out.zarr")):
        pytest.skip("this file system exchanges no names")
    assert (os.listdir("out.zarr"), read("other").max()) == ([], 5)
    shutil.rmtree("out.zarr")
    os.rename("other", "out.zarr")
    new = filled("out.zarr", 7)
    assert not seen
    np.testing.assert_array_equal(read("out.zarr"), new)
    assert os.listdir() == ["out.zarr"]


def test_where_the_second_rename_fails_the_old_folder_comes_back(monkeypatch):
    old, real, calls = filled("out.zarr", 5), disk.rename, []

    def rename(name, target):
        calls.append(name)
        if len(calls) == 2:
            raise OSError(13, "Permission denied")
        real(name, target)

    monkeypatch.setattr(disk, "exchange", lambda *_: False)
    monkeypatch.setattr(disk, "rename", rename)
    with pytest.raises(OSError, match="Permission denied"):
        filled("out.zarr", 7)
    np.testing.assert_array_equal(read("out.zarr"), old)
    assert os.listdir() == ["out.zarr"]


# ---- the dead --------------------------------------------------------------------------------------------------------


DYING = """
import os, signal, sys, numpy as np
from halotile import restore_to
calls = []
def model(x):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.array(x)
restore_to(sys.argv[1], np.zeros((90, 60, 3), np.uint8), model, tile_size=24, halo=3)
"""


@pytest.mark.parametrize("sink", SINKS)
def test_what_a_killed_process_leaves_is_removed_by_the_next_one(sink):
    done = subprocess.run([sys.executable, "-c", DYING, f"out.{sink}"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in os.listdir() if name.startswith(".halotile-")]
    filled("other.png", 3)
    assert os.listdir() == ["other.png"]


def test_what_is_being_written_is_left():
    with replacing("one.npy") as one, replacing_folder("two.zarr") as two:
        sweep.cache_clear()
        sweep(os.getcwd())
        assert os.path.exists(one.name) and os.path.isdir(two.name)


def test_what_looks_like_a_draft_is_not_followed(tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "kept").write_text("kept")
    os.symlink(other, ".halotile-0.tmp")
    os.symlink(other / "kept", ".halotile-1.tmp")
    os.mkfifo(".halotile-2.tmp")
    sweep(os.getcwd())
    assert (other / "kept").read_text() == "kept"
    assert sorted(os.listdir()) == [".halotile-0.tmp", ".halotile-1.tmp", ".halotile-2.tmp"]


def test_a_new_file_that_was_taken_for_one_of_the_dead_is_made_anew(monkeypatch):
    real, taken = disk.lock, []

    def lock(descriptor):
        if not taken:
            taken.extend(name for name in os.listdir() if name.endswith(".tmp"))
            os.unlink(taken[0])
        return real(descriptor)

    monkeypatch.setattr(disk, "lock", lock)
    with replacing("out.raw") as draft:
        os.write(draft.descriptor, b"content")
    assert Path("out.raw").read_bytes() == b"content"
    assert os.listdir() == ["out.raw"]


# ---- what is lost meanwhile ------------------------------------------------------------------------------------------


def losing(at, lose):
    calls = []

    def model(x):
        calls.append(1)
        if len(calls) == at:
            lose(next(name for name in os.listdir() if name.startswith(".halotile-")))
        return np.array(x)

    return model


def remove(name):
    shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)


@pytest.mark.parametrize("sink", SINKS)
def test_a_draft_that_vanishes_is_noticed_soon(rng, sink):
    calls, at = [], 7
    image = rng.integers(0, 256, (900, 60, 3), np.uint8)
    lost = losing(at, remove)
    with pytest.raises(OSError, match=rf"temporary file was removed meanwhile.*out\.{sink}"):
        restore_to(f"out.{sink}", image, lambda x: (calls.append(1), lost(x))[1], scale=1, **TILES)
    rows_of_tiles = (256 if sink == "zarr" else 24) // 24 + 3  # a zarr array is written in rows of shards
    assert len(calls) <= at + 4 * rows_of_tiles
    assert os.listdir() == []


@pytest.mark.parametrize("what", ["a shard", "a row of shards", "zarr.json", "half a shard"])
def test_a_zarr_array_that_lost_something_is_none(rng, what):
    image = rng.integers(0, 256, (600, 60, 3), np.uint8)
    image[:256] = 0  # readers take a missing shard for zeros

    def lose(name):
        shard = os.path.join(name, "c", "0", "0", "0")
        assert os.path.isfile(shard)
        if what == "half a shard":
            os.truncate(shard, os.path.getsize(shard) // 2)
        else:
            places = {"a shard": shard, "a row of shards": os.path.join(name, "c", "0")}
            remove(places.get(what, os.path.join(name, what)))

    old = filled("out.zarr", 5)
    with pytest.raises(OSError, match="1 of its 4 files were removed or changed meanwhile"):
        restore_to("out.zarr", image, losing(60, lose), scale=1, **TILES)
    np.testing.assert_array_equal(read("out.zarr"), old)
    assert os.listdir() == ["out.zarr"]


@pytest.mark.parametrize("sink", SINKS)
def test_a_draft_that_is_cut_short_is_noticed(rng, sink, monkeypatch):
    """As by a file system that loses what it took."""
    image, old = rng.integers(0, 256, (300, 60, 3), np.uint8), filled(f"out.{sink}", 5)
    with pytest.raises(OSError, match="cannot be written"), open_sink(f"out.{sink}", image.shape, "uint8") as sunk:
        sunk.write(image)
        if sink == "zarr":
            cut = os.path.join(sunk.draft.name, "c", "0", "0", "0")
        else:
            cut = sunk.draft.name
            if hasattr(sunk, "saved"):
                sunk.saved.result()
        os.truncate(cut, os.path.getsize(cut) - 30)
    np.testing.assert_array_equal(read(f"out.{sink}"), old)


@pytest.mark.parametrize("sink", SINKS)
def test_rows_that_nobody_wrote_are_missed(sink):
    with pytest.raises(OSError, match="cannot be written"), open_sink(f"out.{sink}", (300, 60, 3), "uint8") as sunk:
        sunk.write(np.zeros((299, 60, 3), np.uint8))
    assert os.listdir() == []


def test_all_is_on_the_disk_before_it_gets_its_name(monkeypatch):
    """The order of syncs and names, for a file and for the two files of an array."""
    done, real_sync, real_rename = [], disk.sync, os.replace
    where, here = {}, os.getcwd()

    def replaced(name, target):
        if os.path.dirname(target) == here:  # zarr renames files within its folder
            done.append(("named", target))
        real_rename(name, target)

    monkeypatch.setattr(disk, "sync", lambda at: (done.append(os.readlink(f"/proc/self/fd/{at}")), real_sync(at)))
    monkeypatch.setattr(disk.os, "replace", replaced)
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    with replacing("out.raw") as draft:
        where["file"] = draft.name
    assert done == [where["file"], ("named", f"{here}/out.raw"), here]
    done.clear()
    filled("out.zarr", 5)
    named = done.index(("named", f"{here}/out.zarr"))
    assert done[named + 1 :] == [here]
    ends = {name[len(here) + 1 :].partition("/")[2] for name in done[:named]}
    assert ends == {"zarr.json", "c/0/0/0", "c/0/0", "c/0", "c", ""}


# ---- what replacing keeps --------------------------------------------------------------------------------------------


def test_permissions_are_kept_but_not_those_to_run_as_another():
    Path("out.raw").touch()
    os.chmod("out.raw", 0o4741)
    with replacing("out.raw"):
        pass
    assert os.stat("out.raw").st_mode & 0o7777 == 0o741


def test_extended_attributes_are_kept():
    Path("out.raw").touch()
    try:
        os.setxattr("out.raw", "user.note", b"mine")
    except (AttributeError, OSError):
        pytest.skip("there are none here")
    with replacing("out.raw"):
        pass
    assert os.getxattr("out.raw", "user.note") == b"mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_group_are_kept():
    Path("out.raw").touch()
    os.chown("out.raw", 4321, 1234)
    with replacing("out.raw"):
        pass
    assert (os.stat("out.raw").st_uid, os.stat("out.raw").st_gid) == (4321, 1234)


def test_where_the_group_cannot_be_kept_its_rights_do_not_go_to_another(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    for name in ("old", "new"):
        Path(name).touch()
    os.chmod("old", 0o664)
    real = os.stat
    monkeypatch.setattr(disk.os, "chown", refuse)
    monkeypatch.setattr(disk.os, "stat", lambda path: real(path) if path == "new" else Other(real(path)))
    disk.copy_attributes("old", "new")
    assert real("new").st_mode & 0o777 == 0o644


class Other:
    """A stat of another group."""

    def __init__(self, found):
        self.st_mode, self.st_uid, self.st_gid = found.st_mode, found.st_uid, found.st_gid + 1


def test_a_link_to_a_file_stays_and_its_file_is_replaced():
    os.mkdir("there")
    os.symlink("there/out.raw", "out.raw")
    for content in (b"one", b"two"):
        with replacing("out.raw") as draft:
            os.write(draft.descriptor, content)
        assert os.path.islink("out.raw")
        assert Path("there/out.raw").read_bytes() == content


def test_other_names_of_a_file_keep_the_old_content():
    with open("out.raw", "wb") as file:
        file.write(b"old")
    os.link("out.raw", "other.raw")
    with replacing("out.raw") as draft:
        os.write(draft.descriptor, b"new")
    assert (Path("out.raw").read_bytes(), Path("other.raw").read_bytes()) == (b"new", b"old")


def test_a_hidden_name_is_the_same_in_every_process():
    assert PREFIX in hidden_name("/there/out.zarr", "before")
    assert hidden_name("/there/out.zarr", "before") == hidden_name("/there/out.zarr", "before")
    assert hidden_name("/there/a.zarr", "before") != hidden_name("/there/b.zarr", "before")
