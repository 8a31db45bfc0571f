# SPDX-License-Identifier: MIT
"""The cache of small results: whatever lies in its folder, a result is the one that was kept, or none."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halotile import cache

RESULT = {"halo": [3, 4], "why": "it was measured", "certain": True, "none": None, "deep": [[1.5, {"a": "\u00e9"}]]}
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    place = tmp_path / "cache"
    monkeypatch.setenv("HALOTILE_CACHE", str(place))
    return place


def entry(folder):
    cache.keep("kind", "about", RESULT)
    (path,) = folder.iterdir()
    return path


def in_child(code, **more):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, **more)


def test_what_is_kept_is_found(folder):
    path = entry(folder)
    assert cache.kept("kind", "about") == RESULT
    assert cache.kept("kind", "other") is None and cache.kept("other", "about") is None
    assert path.suffix == ".json" and path.stat().st_mode & 0o077 == 0


DAMAGE = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4
)  # where, how much is left out, what is put there


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE)
def test_damage_is_never_a_result(folder, damage):
    path = entry(folder)
    content = path.read_bytes()
    for where, left_out, new in damage:
        at = int(where * len(content))
        content = content[:at] + new + content[at + left_out :]
    path.write_bytes(content)
    found = cache.kept("kind", "about")
    assert found is None or found == RESULT
    entry(folder)
    assert cache.kept("kind", "about") == RESULT


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 200_000, b'{"checksum": 1, "result": 2}', b"\xff\xfe", b"1" * (1 << 21), b"null", b"NaN"],
    ids=range(8),
)
def test_other_content_is_no_result(folder, content):
    entry(folder).write_bytes(content)
    assert cache.kept("kind", "about") is None


@POSIX
def test_what_is_no_file_is_not_waited_for(folder):
    path = entry(folder)
    for plant in (os.mkfifo, os.mkdir, lambda name: os.symlink("/dev/zero", name), lambda name: os.symlink(name, name)):
        path.unlink() if not path.is_dir() else path.rmdir()
        plant(path)
        assert cache.kept("kind", "about") is None
        cache.keep("kind", "about", RESULT)
        assert len(list(folder.iterdir())) == 1
        if plant is not os.mkdir:
            assert cache.kept("kind", "about") == RESULT


WRITING = """
import sys
from halotile import cache
for turn in range(300):
    cache.keep("kind", "about", {"by": sys.argv[1], "turn": turn, "long": "x" * 5000})
"""


def test_two_processes_that_write_at_once(folder):
    writers = [subprocess.Popen([sys.executable, "-c", WRITING, name]) for name in "ab"]
    found = []
    while any(writer.poll() is None for writer in writers):
        found.append(cache.kept("kind", "about"))
    assert [writer.returncode for writer in writers] == [0, 0]
    seen = [one for one in found if one is not None]
    assert all(one["by"] in "ab" and one["long"] == "x" * 5000 for one in seen)
    assert None not in found[found.index(seen[0]) :]  # once there, it is always there
    assert len(list(folder.iterdir())) == 1


def test_threads_that_write_at_once(folder):
    threads = [
        threading.Thread(target=lambda: [cache.keep("kind", "about", RESULT) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.kept("kind", "about") == RESULT and len(list(folder.iterdir())) == 1


@POSIX
def test_a_full_disk_leaves_what_was_there(folder):
    path = entry(folder)
    before = path.read_bytes()
    code = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20)); from halotile import cache; "
    code += "cache.keep('kind', 'about', {'new': 'x' * 500}); print('alive')"
    done = in_child(code)
    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr
    assert list(folder.iterdir()) == [path] and path.read_bytes() == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20 and signal.getsignal(signal.SIGXFSZ) is not None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_owner(folder):
    path = entry(folder)
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    code = "from halotile import cache; import os; os.setuid(65534); "
    code += "print(cache.kept('kind', 'about')); cache.keep('kind', 'about', {'new': 1}); cache.keep('kind', 'b', 1)"
    before = path.read_bytes()
    done = in_child(code)
    assert (done.stdout, done.returncode) == ("None\n", 0), done.stderr  # written for its owner alone
    assert list(folder.iterdir()) == [path] and path.read_bytes() == before


def test_a_file_in_place_of_the_folder(folder):
    folder.write_text("mine")
    cache.keep("kind", "about", RESULT)
    assert cache.kept("kind", "about") is None and folder.read_text() == "mine"
