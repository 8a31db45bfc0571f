# SPDX-License-Identifier: MIT
"""Many files: each is restored or said to have failed, none is lost, and the model is opened once."""

import json
import os
import subprocess
import sys
import time
import types

import numpy as np
import pytest

pytest.importorskip("pyvips")

import halotile
from halotile import cli
from halotile.cli import batch
from halotile.cli.bar import Bar
from halotile.cli.work import Job, find_work, split_existing
from halotile.files import picture as files
from halotile.files.codecs import recognised

from .conftest import heed_interrupts

MODELS = """
made = []

def make():
    made.append(1)
    return enlarge

def enlarge(windows):
    if (windows == 1).all():
        raise RuntimeError("too bright")
    return windows.repeat(2, axis=2).repeat(2, axis=3)

def slow(windows):
    import time
    if windows.shape[2] == 12:
        open("started", "w").close()
        time.sleep(60)
    return windows
"""


def noise(rng, shape=(20, 30, 3), dtype="uint8"):
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def write_pages(path, pages, **options):
    files.write_image(path, np.concatenate(pages), pages=len(pages), **options)


@pytest.fixture
def place(tmp_path, monkeypatch, rng):
    """photos/ with images of several kinds and other files; the current directory is above it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "nets2", raising=False)
    (tmp_path / "nets2.py").write_text(MODELS)
    os.makedirs("photos/trip/day 1")
    for name in ("a.png", "trip/b.PNG", "trip/day 1/c.tif"):
        files.write_image(f"photos/{name}", noise(rng))
    files.write_image("photos/deep.png", noise(rng, dtype="uint16"))
    (tmp_path / "photos" / "notes.txt").write_text("none")
    (tmp_path / "photos" / "trip" / "._b.PNG").write_bytes(b"\0\5\26\7")
    yield tmp_path
    sys.modules.pop("nets2", None)


INPUTS = ["a.png", "deep.png", "trip/b.PNG", "trip/day 1/c.tif"]


def run(*arguments):
    try:
        return cli.main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code


def restore(*arguments, inputs=("photos",), output="out", model="nets2:make()"):
    return run("restore", *inputs, "-o", output, "-m", model, "--tile", 16, "--halo", 2, *arguments)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def below(folder):
    return sorted(
        os.path.relpath(os.path.join(here, name), folder) for here, _, names in os.walk(folder) for name in names
    )


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_keeps_its_tree(place, capsys):
    assert restore() == 0
    assert below("out") == INPUTS
    for name in INPUTS:
        image = files.read_image(f"photos/{name}").pixels
        restored = files.read_image(f"out/{name}").pixels
        np.testing.assert_array_equal(restored, image.repeat(2, 0).repeat(2, 1))
        assert restored.dtype == image.dtype
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].startswith("out/a.png: 30x20 -> 60x40, uint8, ")
    assert lines[-1].startswith("restored 4 of 4 files, 2 other files ignored, ")
    assert output.err == ""
    assert sys.modules["nets2"].made == [1]


def test_one_restorer_gives_what_many_give(place, rng):
    """What it keeps of one image must not touch the next: kinds and sizes alternate."""
    os.mkdir("mixed")
    for index, channels in enumerate((3, 1, 4, 2, 3)):
        for dtype in ("uint8", "uint16"):
            files.write_image(f"mixed/{index}{dtype}.png", noise(rng, (20 + 3 * index, 30, channels), dtype))
    files.write_image("mixed/f.tif", rng.random((20, 30, 3), np.float32))
    assert restore("--overlap", 4, "--blend", "cosine", inputs=["mixed"]) == 0
    model = sys.modules["nets2"].enlarge
    for name in below("mixed"):
        image = files.read_image(f"mixed/{name}").pixels
        expected = halotile.restore_tiled(image, model, tile_size=16, halo=2, overlap=4, blend="cosine")
        np.testing.assert_array_equal(files.read_image(f"out/{name}").pixels, expected)


def test_several_inputs(place, capsys):
    assert restore(inputs=["photos/a.png", "photos/trip"]) == 0
    assert below("out") == ["a.png", "trip/b.PNG", "trip/day 1/c.tif"]
    assert restore(inputs=["photos/a.png"], output="into/") == 0
    os.mkdir("there")
    assert restore(inputs=["photos/a.png"], output="there") == 0
    assert below("into") == below("there") == ["a.png"]


@pytest.mark.parametrize(("name", "suffix"), [("png", ".png"), ("tiff", ".tif"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_formats(place, name, suffix):
    assert restore("--format", name, inputs=["photos/trip"]) == 0
    assert below("out") == [f"b{suffix}", f"day 1/c{suffix}"]
    with open(f"out/b{suffix}", "rb") as file:
        assert recognised(file.read(12), "").vips == name


def test_links_and_pipes_are_harmless(place):
    os.symlink("../photos", "photos/loop")
    os.symlink("..", "photos/trip/up")
    os.symlink("a.png", "photos/link.png")
    os.symlink("nowhere.png", "photos/broken.png")
    os.mkfifo("photos/pipe.png")
    work = find_work(["photos"], "out")
    assert [os.path.relpath(job.input, "photos") for job in work.jobs] == ["a.png", "deep.png", "link.png", *INPUTS[2:]]
    assert restore() == 0
    assert not os.path.islink("out/link.png")


def test_the_output_folder_is_no_input(place):
    assert restore(inputs=["."], output="out") == 0
    assert below("out") == [f"photos/{name}" for name in INPUTS]
    assert restore("--force", inputs=["."], output="out") == 0
    assert below("out") == [f"photos/{name}" for name in INPUTS]


def test_a_folder_that_cannot_be_read_is_said(place, capsys, monkeypatch):
    scan = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("trip"):
            raise PermissionError(13, os.strerror(13), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert restore() == 0
    text = "photos/trip: Permission denied: its content is skipped"
    assert capsys.readouterr().err == f"halotile: warning: {text}\n"


# ---- nothing is lost -------------------------------------------------------------------------------------------------


def test_existing_outputs(place, capsys):
    assert restore() == 0
    capsys.readouterr()
    before = os.stat("out/deep.png").st_mtime_ns
    os.unlink("out/a.png")
    assert restore() == 2
    assert capsys.readouterr().err == (
        "halotile: error: out/deep.png and 2 more exist; --force overwrites them, --skip-existing leaves them\n"
    )
    assert not os.path.exists("out/a.png")
    assert restore("--skip-existing") == 0
    assert os.path.exists("out/a.png") and os.stat("out/deep.png").st_mtime_ns == before
    assert "restored 1 of 4 files, 3 skipped" in capsys.readouterr().out
    assert restore("--skip-existing", model="nets2:none") == 0  # nothing to do: the model is not even looked for
    assert restore("--force") == 0
    assert os.stat("out/deep.png").st_mtime_ns != before


@pytest.mark.parametrize("options", [(), ("--force",), ("--skip-existing",)])
def test_inputs_are_never_overwritten(place, capsys, options):
    contents = {name: content(f"photos/{name}") for name in INPUTS}
    for output in ("photos", "photos/../photos/", "linked"):
        if output == "linked":
            os.symlink("photos", "linked")
        assert restore(*options, output=output) == 2
        assert "is an input; choose another folder" in capsys.readouterr().err
    os.makedirs("out")
    os.link("photos/a.png", "out/a.png")
    assert restore(*options) == 2
    assert contents == {name: content(f"photos/{name}") for name in INPUTS}


def test_other_names_beside_the_inputs_are_allowed(place):
    assert restore("--format", "webp", inputs=["photos"], output="photos") == 0
    assert set(below("photos")) >= {"a.png", "a.webp", "trip/day 1/c.tif", "trip/day 1/c.webp"}


def test_two_inputs_with_one_output(place, capsys, rng):
    files.write_image("photos/a.tif", noise(rng))
    assert restore("--format", "png") == 2
    assert "photos/a.png and photos/a.tif would both become out/a.png" in capsys.readouterr().err
    assert not os.path.exists("out")
    assert restore(inputs=["photos/a.png", "photos/a.png"]) == 0  # the same one


@pytest.mark.parametrize(
    ("arguments", "output", "message"),
    [
        (["photos"], "out.png", "with several inputs (or a folder), -o must be a folder, not out.png"),
        (["photos"], "nets2.py", "with several inputs (or a folder), -o must be a folder, not nets2.py"),
        (["photos/a.png", "photos/deep.png"], "out.png", "-o must be a folder, not out.png"),
        (["photos", "none"], "out", "none: No such file or directory"),
        (["empty"], "out", "empty: no image files found"),
        (["photos/notes.txt"], "out/", "out/notes.txt: unknown suffix '.txt'; must be one of .png, "),
        (["photos", "--force", "--skip-existing"], "out", "--force and --skip-existing cannot be combined"),
        (["photos", "--format", "gif"], "out", "argument --format: invalid choice: 'gif'"),
        (["photos"], "photos/notes.txt/out", "notes.txt: Not a directory"),
        (["photos/a.png", "--format", "jpeg"], "out.png", "--format jpeg contradicts out.png"),
    ],
)
def test_what_is_refused_before_work(place, capsys, arguments, output, message):
    os.mkdir("empty")
    assert run("restore", *arguments, "-o", output, "-m", "nets2:make()") == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not os.path.exists("out") and "nets2" not in sys.modules


def test_folders_that_cannot_be_written_are_refused_before_work(place, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert restore() == 2
    assert capsys.readouterr().err == f"halotile: error: {place}: Permission denied\n"
    assert "nets2" not in sys.modules


def test_outputs_that_are_no_files(place, capsys):
    os.makedirs("out/a.png")
    assert restore() == 2
    assert "out/a.png exists" in capsys.readouterr().err
    assert restore("--force") == 2
    assert "out/a.png: exists and is not a regular file" in capsys.readouterr().err


def test_an_output_that_appears_meanwhile_stays(place, monkeypatch, capsys):
    def late(jobs, **_):
        os.makedirs("out")
        with open("out/a.png", "w") as file:
            file.write("mine")
        return list(jobs), []

    monkeypatch.setattr("halotile.cli.restore.split_existing", late)
    assert restore() == 2
    assert "out/a.png: File exists" in capsys.readouterr().err
    assert content("out/a.png") == b"mine" and below("out") == INPUTS


def test_split_existing_by_itself(tmp_path):
    (tmp_path / "there.png").write_bytes(b"")
    one, other = Job("a", str(tmp_path / "there.png")), Job("b", str(tmp_path / "new.png"))
    assert split_existing([one, other], skip=True) == ([other], [one])
    assert split_existing([one, other], force=True) == ([one, other], [])
    with pytest.raises(ValueError, match=r"there\.png exists; --force overwrites it"):
        split_existing([one, other])


# ---- failures --------------------------------------------------------------------------------------------------------


def spoil():
    with open("photos/a.png", "rb") as file:
        data = file.read()
    with open("photos/cut.png", "wb") as file:
        file.write(data[: len(data) // 2])
    with open("photos/empty.jpg", "wb"):
        pass
    files.write_image("photos/white.png", np.full((20, 30, 3), 255, np.uint8))


def test_a_failure_stops_no_other_file(place, capsys):
    spoil()
    assert restore() == 2
    assert below("out") == INPUTS
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert lines[0].startswith("halotile: error: photos/cut.png: not a readable PNG file")
    assert lines[1].startswith("halotile: error: photos/empty.jpg: not a PNG, JPEG, WebP, TIFF or AVIF file")
    assert lines[2].startswith("halotile: error: photos/white.png: tile 0 ") and "too bright" in lines[2]
    assert lines[3] == "halotile: 3 of 7 files failed: photos/cut.png, photos/empty.jpg, photos/white.png"
    assert len(lines) == 4
    assert "restored 4 of 7 files, 3 failed, 2 other files ignored" in output.out


def test_what_the_format_cannot_hold_fails_alone(place, capsys, rng):
    files.write_image("photos/alpha.png", noise(rng, (20, 30, 4)))
    files.write_image("photos/float.tif", rng.random((20, 30, 3), np.float32))
    assert restore("--format", "jpeg") == 2
    errors = capsys.readouterr().err
    assert "out/alpha.jpg: JPEG has no alpha channel" in errors
    assert "out/float.jpg: JPEG cannot hold float32; choose --bits, or write TIFF" in errors
    assert len(below("out")) == 4


def test_a_model_that_is_not_there_is_one_error(place, capsys):
    assert restore(model="nets2:none") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not os.path.exists("out")


def test_debug_shows_tracebacks_and_goes_on(place, capsys, monkeypatch):
    spoil()
    monkeypatch.setenv("HALOTILE_DEBUG", "1")
    assert restore() == 2
    assert "Traceback" in capsys.readouterr().err
    assert below("out") == INPUTS


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_leaves_what_is_finished(place, rng):
    import signal

    files.write_image("photos/b.png", noise(rng, (8, 8, 3)))  # its windows are the ones that are slow
    command = [sys.executable, "-m", "halotile", "restore", "photos", "-o", "out", "-m", "nets2:slow"]
    command += ["--tile", "16", "--halo", "2", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 60
    while not os.path.exists("started") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "halotile: interrupted\n")
    assert below("out") == ["a.png"]
    found = json.loads(output)
    assert found["interrupted"] is True and found["totals"]["restored"] == 1 and found["totals"]["files"] == 5


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_pages_are_images_of_their_own(place, capsys, rng):
    pages = [noise(rng, dtype="uint16") for _ in range(3)]
    write_pages("in.tif", pages)
    assert restore("--json", inputs=["in.tif"], output="out.tif") == 0
    found = json.loads(capsys.readouterr().out)["files"][0]
    assert (found["pages"], found["input_size"], found["output_size"]) == (3, [30, 20], [60, 40])
    assert files.read_header("out.tif").pages == 3
    for number, page in enumerate(pages, 1):
        restored = files.read_image("out.tif", page=number).pixels
        np.testing.assert_array_equal(restored, page.repeat(2, 0).repeat(2, 1))
    assert restore(inputs=["in.tif"], output="again.tif") == 0
    assert "again.tif: 30x20 -> 60x40, 3 pages, uint16, " in capsys.readouterr().out


def test_one_page(place, capsys, rng):
    pages = [noise(rng) for _ in range(3)]
    write_pages("in.tif", pages)
    assert restore("--page", 2, inputs=["in.tif"], output="out.png") == 0
    np.testing.assert_array_equal(files.read_image("out.png").pixels[::2, ::2], pages[1])
    assert capsys.readouterr().err == ""
    assert restore("--page", 4, inputs=["in.tif"], output="none.png") == 2
    assert "in.tif: page=4; must be from 1 to 3" in capsys.readouterr().err
    assert restore(inputs=["in.tif"], output="none.png") == 2
    assert "none.png: PNG holds one page, and the input has 3; write TIFF" in capsys.readouterr().err


def test_pages_of_several_sizes_are_refused(place, capsys, rng):
    import pyvips

    small, large = ([pyvips.Image.new_from_array(noise(rng, shape))] for shape in ((20, 30, 3), (20, 40, 3)))
    small[0].tiffsave("one.tif")
    combined = (place / "one.tif").read_bytes()
    large[0].tiffsave("two.tif")
    (place / "in.tif").write_bytes(chained(combined, (place / "two.tif").read_bytes()))
    assert restore(inputs=["in.tif"], output="out.tif") == 2
    assert "in.tif: holds 2 pages of several sizes or kinds; page must say which" in capsys.readouterr().err
    assert restore("--page", 2, inputs=["in.tif"], output="out.tif") == 0
    assert files.read_shape("out.tif")[0] == (40, 80, 3)


def chained(one, two):
    """Two little-endian TIFFs as two pages of one file."""
    import struct

    def directory(data, at):
        count = struct.unpack_from("<H", data, at)[0]
        return count, at + 2, at + 2 + 12 * count

    one, two = bytearray(one), bytearray(two)
    base = len(one) + len(one) % 2
    first = struct.unpack_from("<I", two, 4)[0]
    count, start, _ = directory(two, first)
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8}
    for entry in range(start, start + 12 * count, 12):
        tag, kind, number = struct.unpack_from("<HHI", two, entry)
        value = struct.unpack_from("<I", two, entry + 8)[0]
        inline = sizes.get(kind, 1) * number <= 4
        if not inline:
            struct.pack_into("<I", two, entry + 8, value + base)
        if tag == 273:  # where strips are
            if inline:
                struct.pack_into("<I", two, entry + 8, value + base)
            else:
                for strip in range(number):
                    where = struct.unpack_from("<I", two, value + 4 * strip)[0]
                    struct.pack_into("<I", two, value + 4 * strip, where + base)
    _, _, link = directory(one, struct.unpack_from("<I", one, 4)[0])
    struct.pack_into("<I", one, link, first + base)
    return bytes(one.ljust(base, b"\0") + two)


def test_pages_turned_differently_are_refused(place, monkeypatch, capsys, rng):
    write_pages("in.tif", [noise(rng) for _ in range(2)])

    class Turned(batch.PictureSource):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            if options["page"] == 2:
                self.shape = (self.shape[1], self.shape[0], *self.shape[2:])

    monkeypatch.setattr(batch, "PictureSource", Turned)
    assert restore(inputs=["in.tif"], output="out.tif") == 2
    assert "in.tif: page 2 is 20x30, the first 30x20: choose one with --page" in capsys.readouterr().err


def test_pages_are_bounded_together(place, capsys, rng):
    write_pages("in.tif", [noise(rng) for _ in range(3)])
    assert restore("--max-pixels", 1799, inputs=["in.tif"], output="out.tif") == 2
    assert "3 pages of 30 x 20 pixels are more than max_pixels=1799" in capsys.readouterr().err
    assert restore("--max-pixels", 1800, inputs=["in.tif"], output="out.tif") == 0


@pytest.mark.parametrize("options", [{}, {"subifd": True}])
def test_of_a_pyramid_the_first_level_is_restored(place, capsys, rng, options):
    import pyvips

    image = noise(rng, (301, 400, 3))
    pyvips.Image.new_from_array(image).tiffsave(
        "in.tif", tile=True, pyramid=True, tile_width=64, tile_height=64, **options
    )
    assert restore(inputs=["in.tif"], output="out.tif") == 0
    np.testing.assert_array_equal(files.read_image("out.tif").pixels[::2, ::2], image)
    assert capsys.readouterr().err == ""


def test_of_an_animation_the_first_frame_is_restored_with_a_warning(place, capsys, rng):
    import pyvips

    frames = np.concatenate([noise(rng), noise(rng)])
    image = pyvips.Image.new_from_array(frames).copy(interpretation="srgb").copy()
    image.set_type(pyvips.GValue.gint_type, "page-height", 20)
    image.webpsave("in.webp", lossless=True)
    assert restore(inputs=["in.webp"], output="out.png") == 0
    np.testing.assert_array_equal(files.read_image("out.png").pixels[::2, ::2], frames[:20])
    assert capsys.readouterr().err == "halotile: warning: in.webp: holds 2 frames; the first is read\n"
    assert restore("--page", 2, inputs=["in.webp"], output="second.png") == 0
    np.testing.assert_array_equal(files.read_image("second.png").pixels[::2, ::2], frames[20:])


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_json(place, capsys):
    spoil()
    os.makedirs("out")
    (place / "out" / "a.png").write_bytes(b"")
    assert restore("--json", "--skip-existing", "--verify", 2) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["model"], found["interrupted"]) == (halotile.__version__, "nets2:make()", False)
    totals = found["totals"]
    counts = {"files": 7, "restored": 3, "skipped": 1, "failed": 3, "ignored": 2}
    assert counts.items() <= totals.items()
    assert totals["seconds"] > 0 and 2**20 < totals["peak_memory_bytes"] < 2**36
    entries = {entry["input"]: entry for entry in found["files"]}
    deep = entries["photos/deep.png"]
    expected = {"output": "out/deep.png", "status": "restored", "input_size": [30, 20], "output_size": [60, 40]}
    expected |= {"input_dtype": "uint16", "dtype": "uint16", "halo": [2, 2], "phase": [1, 1], "how": "given"}
    assert expected.items() <= deep.items()
    assert deep["bound"] is None and deep["error"] is None and deep["seconds"] > 0
    assert deep["verified"]["windows"] >= 1 and deep["verified"]["largest"] == 0
    assert entries["photos/a.png"]["status"] == "skipped"
    assert "too bright" in entries["photos/white.png"]["error"]


def test_names_that_are_no_text(place, capsys, rng):
    name = os.fsdecode(b"photos/\xff.png")
    try:
        files.write_image(name, noise(rng))
    except OSError:
        pytest.skip("the file system takes text only")
    command = [sys.executable, "-m", "halotile", "restore", "photos", "-o", "out", "-m", "nets2:enlarge", "--halo", "2"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"out/\\xff.png: 30x20" in done.stdout
    done = subprocess.run([*command, "--force", "--json"], capture_output=True, check=False)
    assert name in [entry["input"] for entry in json.loads(done.stdout)["files"]]


def test_one_bar_over_all_files(place, capsys, monkeypatch, rng):
    pytest.importorskip("tqdm")
    spoil()
    write_pages("photos/pages.tif", [noise(rng) for _ in range(3)])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    totals = []
    make = Bar.__init__

    def spy(bar, total, wanted=True):
        totals.append(total)
        make(bar, total, wanted)

    monkeypatch.setattr(Bar, "__init__", spy)
    assert restore() == 2
    output = capsys.readouterr()
    assert totals[-1] == 600 * (4 + 1 + 1 + 3)  # the others, cut.png and white.png, three pages
    assert "100%" in output.err and "px" in output.err
    assert restore("--quiet", "--force") == 2
    assert "100%" not in capsys.readouterr().err


def test_without_tqdm_there_is_no_bar(place, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert restore() == 0
    assert capsys.readouterr().err == ""


class Counted:
    def __init__(self):
        self.n = 0

    def update(self, pixels):
        self.n += pixels

    def close(self):
        pass


def test_the_bar_ends_where_its_total_is():
    bar = Bar(0, wanted=False)
    bar.bar = Counted()
    bar.begin_page(100)
    seen = []
    for done, total in ((1, 4), (4, 4), (5, 8), (8, 8)):  # a run that went on with smaller tiles
        bar(done, total)
        seen.append(bar.bar.n)
    assert seen == [25, 100, 100, 100]
    bar.begin_page(100)
    bar(1, 2)
    assert bar.bar.n == 150
    bar.end_file(300, 0)  # its third page failed
    bar.begin_page(50)
    bar(1, 1)
    assert bar.bar.n == 350


def test_peak_memory_has_the_unit_of_the_system(monkeypatch):
    fake = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: types.SimpleNamespace(ru_maxrss=1000))
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(sys, "platform", "linux")
    assert batch.peak_memory() == 1024000
    monkeypatch.setattr(sys, "platform", "darwin")
    assert batch.peak_memory() == 1000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert batch.peak_memory() is None
