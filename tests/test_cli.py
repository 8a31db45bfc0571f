# SPDX-License-Identifier: MIT
"""The command line: it does what the functions do, checks before it works, and fails in one line."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest

pytest.importorskip("pyvips")

import halotile
from halotile import cli
from halotile.files import picture as files
from halotile.files.npy import NpySource
from halotile.files.open import open_source

from .conftest import heed_interrupts

MODELS = """
import numpy as np

def brighten(windows):
    return np.minimum(windows + 0.25, 1)

def grey(windows):
    return windows.mean(axis=1, keepdims=True)

def enlarge(windows):
    return windows.repeat(4, axis=2).repeat(4, axis=3)

def refuse(windows):
    raise RuntimeError("no\\nthanks")

def nan(windows):
    return windows * np.nan

def slow(windows):
    import time
    open("started", "w").close()
    time.sleep(60)

class Model:
    def __call__(self, windows):
        return brighten(windows)

class Box:
    inner = brighten

def make():
    return brighten

def make_with_arguments(path):
    return brighten

number = 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch, rng):
    """A directory with in.png and models.py in it, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "models", raising=False)
    (tmp_path / "models.py").write_text(MODELS)
    files.write_image("in.png", rng.integers(0, 256, (45, 70, 3), np.uint8))
    yield tmp_path
    sys.modules.pop("models", None)


def run(*arguments):
    """The exit status of a command line of words."""
    try:
        return cli.main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code


def restore(*arguments, model="models:brighten", output="out.png"):
    return run("restore", "in.png", "-o", output, "-m", model, "--tile-size", 32, "--halo", 4, *arguments)


def in_process(*arguments, **options):
    command = [sys.executable, "-m", "halotile", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


# ---- restore ---------------------------------------------------------------------------------------------------------


def test_restore_is_restore_tiled(place, capsys):
    assert restore() == 0
    image = files.read_image("in.png").pixels
    expected = halotile.restore_tiled(image, lambda w: np.minimum(w + np.float32(0.25), 1), tile_size=32, halo=4)
    np.testing.assert_array_equal(files.read_image("out.png").pixels, expected)
    output = capsys.readouterr()
    assert output.out.startswith("out.png: 70x45 -> 70x45, uint8, ")
    assert output.err == ""


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".avif"])
def test_restore_enlarges_into_every_format(place, suffix):
    options = ("--quality", 100) if suffix in (".jpg", ".jpeg", ".jfif", ".webp", ".avif") else ()
    assert restore(*options, model="models:enlarge", output=f"out{suffix}") == 0
    pixels = files.read_image(f"out{suffix}").pixels.astype(int)
    expected = files.read_image("in.png").pixels.repeat(4, 0).repeat(4, 1)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= (12 if suffix in (".jpg", ".jpeg", ".jfif") else 0)


def test_16_bits_stay_and_8_become_16(place, rng):
    files.write_image("in.png", rng.integers(0, 65536, (45, 70, 3), np.uint16))
    assert restore(model="models:enlarge") == 0
    np.testing.assert_array_equal(files.read_image("out.png").pixels[::4, ::4], files.read_image("in.png").pixels)
    files.write_image("in.png", rng.integers(0, 256, (45, 70), np.uint8))
    assert restore("--bits", 16, "--force", model="models:enlarge") == 0
    np.testing.assert_array_equal(
        files.read_image("out.png").pixels[::4, ::4], files.read_image("in.png").pixels.astype(np.uint16) * 257
    )
    assert restore("--bits", 8, "--force") == 0
    assert files.read_image("out.png").pixels.dtype == np.uint8


def test_32_bits_are_floats(place):
    assert restore("--bits", 32, output="out.tif") == 0
    assert files.read_image("out.tif").pixels.dtype == np.float32
    assert restore("--bits", 32) == 2


def test_float_tiffs_stay_float(place, rng):
    files.write_image("in.tif", rng.normal(size=(45, 70, 3)).astype(np.float32))
    assert run("restore", "in.tif", "-o", "out.tif", "-m", "models:enlarge", "--tile-size", 32) == 0
    np.testing.assert_array_equal(files.read_image("out.tif").pixels[::4, ::4], files.read_image("in.tif").pixels)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("alpha", ["restore", "resize", "opaque"])
def test_grey_and_alpha_stay(place, rng, channels, alpha):
    files.write_image("in.png", rng.integers(0, 256, (45, 70, channels), np.uint8))
    assert restore("--alpha", alpha, model="models:enlarge") == 0
    assert files.read_image("out.png").pixels.shape == (180, 280, channels)[: 2 if channels == 1 else 3]


def test_a_model_may_change_the_channels(place):
    assert restore(model="models:grey") == 0
    assert files.read_image("out.png").pixels.shape == (45, 70)


def test_fractional_scales(place):
    half = "def half(w):\n    n, c, h, w_ = w.shape\n    return w[:, :, ::2, ::2].repeat(3, 2).repeat(3, 3)\n"
    (place / "models.py").write_text(MODELS + half)
    assert restore("--scale", "3/2", model="models:half") == 0
    assert files.read_image("out.png").pixels.shape == (68, 105, 3)  # rounded up


def test_metadata_is_kept(place):
    import pyvips

    image = pyvips.Image.new_from_file("in.png").copy(interpretation="srgb")
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Artist", "Ann (Ann, ASCII, 4 components, 4 bytes)")
    image.icc_transform("srgb").jpegsave("photo.jpg")
    assert run("restore", "photo.jpg", "-o", "out.png", "-m", "models:enlarge") == 0
    kept = pyvips.Image.new_from_file("out.png")
    assert kept.get("exif-ifd0-Artist").startswith("Ann ")
    assert kept.get("icc-profile-data")[16:20] == b"RGB "


@pytest.mark.parametrize(
    "options",
    [
        ("--overlap", "auto", "--blend", "cosine"),
        ("--overlap", 3, "--blend", "gaussian", "--boundary", "native"),
        ("--phase", 4, "--batch-size", 3, "--scale", 1, "--value-range", -1, 1, "--on-nonfinite", "warn"),
        ("--alpha", "channel", "--compression", 0, "--max-pixels", 3150),
        ("--batch-size", "auto", "--memory-format", "contiguous", "--dtype", "auto"),
    ],
)
def test_options_are_passed_on(place, monkeypatch, options):
    seen = {}

    def spy(model, **given):
        seen.update(given)
        return halotile.TiledRestorer(model, **given)

    monkeypatch.setattr(cli.restore, "TiledRestorer", spy)
    assert restore(*options) == 0
    for flag, value in itertools.pairwise(options):
        name = str(flag).removeprefix("--").replace("-", "_")
        if name in seen and name != "value_range":
            assert str(seen[name]) == str(value), name
    assert (seen["tile_size"], seen["halo"]) == (32, 4)
    assert seen["progress"] is False


def test_quiet(place, capsys):
    assert restore("--quiet") == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


def test_a_terminal_gets_a_progress_bar(place, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert restore() == 0
    assert "tile" in capsys.readouterr().err
    assert restore("--quiet", "--force") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("default::halotile.NonFiniteWarning")
def test_warnings_are_one_line(place, capsys):
    files.write_image("in.png", np.zeros((45, 70, 3), np.uint8))
    assert restore("--on-nonfinite", "warn", model="models:nan") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("halotile: warning: ") for line in lines)


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["models:brighten", "models:make()", "models:Model()", "models:Box.inner"])
def test_models_out_of_modules(place, model):
    assert restore(model=model) == 0
    assert (files.read_image("out.png").pixels >= 64).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models", "no such file, and not of the form module:callable"),
        ("nothing.pt", "no such file"),
        ("models:", "not of the form module:callable"),
        (":brighten", "not of the form module:callable"),
        ("modells:brighten", "No module named 'modells'"),
        ("models:bright", "has no attribute 'bright'"),
        ("models:Model", "is a class; write 'models:Model()' for an instance of it"),
        ("models:number", "must be a torch module or a callable, not a int"),
        ("models:number()", "'int' object is not callable"),
        ("models:make_with_arguments()", "missing 1 required positional argument: 'path'"),
        ("broken:model", "SyntaxError"),
        ("in.png", "neither TorchScript nor torch.export"),
        (".", "neither TorchScript nor torch.export"),
    ],
)
def test_models_that_cannot_be_had(place, capsys, model, message):
    (place / "broken.py").write_text("def model(:\n")
    assert restore(model=model) == 2
    assert_one_error(capsys, message)


@pytest.fixture
def network():
    """A 3x3 convolution and a pixel shuffle: x2, radius 1."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2)).eval()


def expected_from(network, **options):
    image = files.read_image("in.png").pixels
    return halotile.restore_tiled(image, network, tile_size=32, halo=4, **options).astype(int)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--device", "cpu"),
        ("--device", "cpu,cpu"),
        ("--batch-size", "3"),
        ("--memory-format", "channels_last"),
        ("--memory-format", "contiguous", "--no-keep-heap"),
        ("--batch-size", "auto", "--memory-limit", "64M"),
    ],
)
def test_torchscript(place, network, options):
    import torch

    torch.jit.script(network).save("model.pt")
    assert restore(*options, model="model.pt") == 0
    assert np.abs(files.read_image("out.png").pixels - expected_from(network)).max() <= 1


def export(network, path, height=40, width=40, batch=1, **dynamic):
    import torch

    example = (torch.zeros(batch, 3, height, width),)
    shapes = ({side: torch.export.Dim.AUTO for side in dynamic["sides"]},) if dynamic else None
    torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), path)


def test_exported_for_any_size(place, network):
    export(network, "model.pt2", batch=2, sides=(0, 2, 3))
    assert restore("--batch-size", 3, model="model.pt2") == 0
    assert np.abs(files.read_image("out.png").pixels - expected_from(network)).max() <= 1


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize(("batch", "asked"), [(1, 1), (3, 3), (3, 2), (1, 3), (2, 3)])
def test_exported_for_one_size(place, network, batch, asked, boundary):
    export(network, "model.pt2", 40, 44, batch=batch)
    assert restore("--batch-size", asked, "--boundary", boundary, model="model.pt2") == 0
    expected = expected_from(network, boundary=boundary)
    assert np.abs(files.read_image("out.png").pixels - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--halo", 20),
            "halo must be at most 19 for this model, which takes windows of 40 rows only",
        ),
        (("--phase", 7), "phase must divide 40 for this model, which takes windows of 40 rows only, not 7"),
        (("--overlap", 32), "overlap must be at most 31 for this model, which takes windows of 40 rows only"),
        (("--verify", 1), "verify must be 0 for this model, as comparing needs windows of other sizes"),
    ],
)
def test_exported_for_one_size_what_does_not_fit_is_explained(place, network, capsys, options, message):
    export(network, "model.pt2")
    tile = ("--tile-size", 64) if "--overlap" in options else ()
    assert restore(*options, *tile, model="model.pt2") == 2
    assert_one_error(capsys, message)


def test_exported_for_one_size_many_files(place, network, capsys, rng):
    export(network, "model.pt2")
    os.mkdir("photos")
    for name, size in (("fits", (40, 40)), ("less", (9, 40)), ("more", (41, 90))):
        files.write_image(f"photos/{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
    for options in ((), ("--boundary", "native"), ("--halo", "auto"), ("--halo", "exact")):
        assert run("restore", "photos", "-m", "model.pt2", "-o", "out", "--force", *options) == 0
        for name in ("fits", "less", "more"):
            image = files.read_image(f"photos/{name}.png").pixels
            boundary = "native" if "native" in options else "reflect"
            if boundary == "native" and name == "less":  # completed by reflection, so that it can be run at all
                continue
            want = halotile.restore_tiled(image, network, halo=4, boundary=boundary).astype(int)
            assert np.abs(files.read_image(f"out/{name}.png").pixels - want).max() <= 1


def test_other_torch_files_are_explained(place, network, capsys):
    import torch

    torch.save(network.state_dict(), "weights.pth")
    assert restore(model="weights.pth") == 2
    assert_one_error(capsys, "it is a state dict, without its network")
    export(network, "model.pt2", sides=(2, 3))
    data = (place / "model.pt2").read_bytes()
    (place / "cut.pt2").write_bytes(data[: len(data) // 2])
    assert restore(model="cut.pt2") == 2
    assert_one_error(capsys, "neither TorchScript nor torch.export")


def test_compiling_needs_a_module(place, capsys):
    assert restore("--compile") == 2
    assert_one_error(capsys, "--compile needs a torch module, but models:brighten is a function")


# ---- what can go wrong -----------------------------------------------------------------------------------------------


def assert_one_error(capsys, message):
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("halotile: error: ") and output.err.count("\n") == 1, output.err
    assert message in output.err
    assert not os.path.exists("out.png")
    assert [name for name in os.listdir() if name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tile-size", "big"), "argument --tile-size/--tile: must be auto or a whole number, not 'big'"),
        (("--tile-size", 0), "tile_size must be from 1"),
        (("--halo", -1), "halo must be from 0"),
        (("--overlap", 32), "overlap must be below tile_size"),
        (("--overlap", "much"), "argument --overlap: must be auto or a whole number"),
        (("--blend", "hann"), "argument --blend: invalid choice: 'hann'"),
        (("--boundary", "zero"), "argument --boundary: invalid choice"),
        (("--scale", "x4"), "scale must be a positive fraction"),
        (("--scale", "0"), "scale must be a positive fraction"),
        (("--phase", 0), "phase must be from 1"),
        (("--phase", 64), "tile"),
        (("--batch-size", 0), "batch_size must be from 1"),
        (("--batch-size", "all"), "argument --batch-size: must be auto or a whole number, not 'all'"),
        (("--memory-limit", 0), "memory_limit must be from 1 to 2**40, not 0"),
        (("--memory-limit", "2 GB"), "argument --memory-limit: must be a whole number of bytes, or of K, M, G or T"),
        (("--memory-limit", "-5M"), "argument --memory-limit: expected one argument"),
        (("--memory-limit", "2T"), "memory_limit must be from 1 to 2**40, not 2199023255552"),
        (("--memory-format", "nhwc"), "argument --memory-format: invalid choice: 'nhwc'"),
        (("--value-range", 1, 0), "value_range must be a pair (low, high)"),
        (("--value-range", 1), "argument --value-range: expected 2 arguments"),
        (("--dtype", "int8"), "argument --dtype: invalid choice"),
        (("--bits", 12), "argument --bits: invalid choice: 12"),
        (("--quality", 0), "argument --quality: must be a whole number from 1 to 100, not '0'"),
        (("--compression", 10), "argument --compression: must be a whole number from 0 to 9, not '10'"),
        (("--colour",), "unrecognized arguments: --colour"),
    ],
)
def test_wrong_options(place, capsys, options, message):
    assert restore(*options, model="models:refuse") == 2
    assert_one_error(capsys, message)


def test_wrong_commands(place, capsys):
    assert run() == 2
    assert_one_error(capsys, "the following arguments are required: COMMAND")
    assert run("enlarge") == 2
    assert_one_error(capsys, "invalid choice: 'enlarge'")
    assert run("restore") == 2
    assert_one_error(capsys, "the following arguments are required: INPUT")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.gif", "out.gif: unknown suffix '.gif'; must be one of"),
        ("out", "unknown suffix ''"),
        ("there/out.png", "there/out.png: there is no directory"),
        ("in.png", "in.png is the input, which is never overwritten"),
        ("there.png", "there.png exists; --force overwrites it"),
        ("dir.png", "dir.png: exists and is not a regular file"),
    ],
)
def test_wrong_outputs(place, capsys, output, message):
    os.mkdir("dir.png")
    (place / "there.png").touch()
    assert restore(model="models:refuse", output=output) == 2
    assert_one_error(capsys, message)


def test_force_never_overwrites_the_input(place, capsys):
    before = (place / "in.png").read_bytes()
    os.link("in.png", "link.png")
    os.symlink("in.png", "soft.png")
    for output in ("in.png", "./in.png", "link.png", "soft.png"):
        for options in (("--force",), ("--skip-existing",), ()):
            assert restore(*options, output=output, model="models:refuse") == 2
            assert "is the input, which is never overwritten; choose another name" in capsys.readouterr().err
    assert (place / "in.png").read_bytes() == before


def test_wrong_inputs(place, capsys):
    assert run("restore", "no.png", "-o", "out.png", "-m", "models:refuse") == 2
    assert_one_error(capsys, "no.png: No such file or directory")
    (place / "bad.png").write_bytes((place / "in.png").read_bytes()[:500])
    assert run("restore", "bad.png", "-o", "out.png", "-m", "models:refuse") == 2
    assert_one_error(capsys, "bad.png: not a readable PNG file")
    assert restore("--max-pixels", 100, model="models:refuse") == 2
    assert_one_error(capsys, "in.png: 70 x 45 pixels are more than max_pixels=100")


def test_what_the_output_cannot_hold_is_found_before_work(place, capsys, rng):
    files.write_image("in.png", rng.integers(0, 256, (45, 70, 4), np.uint8))
    assert restore(model="models:refuse", output="out.jpg") == 2
    assert_one_error(capsys, "out.jpg: JPEG has no alpha channel")
    files.write_image("in.tif", rng.random((45, 70, 3), np.float32))
    assert run("restore", "in.tif", "-o", "out.png", "-m", "models:refuse") == 2
    assert_one_error(capsys, "out.png: PNG cannot hold float32; choose --bits, or write TIFF")


def test_too_large_for_the_format_is_found_with_the_first_tiles(place, capsys):
    files.write_image("in.png", np.zeros((5000, 8), np.uint8))
    (place / "models.py").write_text(MODELS + "calls = []\ndef count(w):\n    calls.append(w)\n    return enlarge(w)\n")
    assert restore(model="models:count", output="out.webp") == 2
    assert_one_error(capsys, "out.webp: WebP holds up to 16383 pixels a side, not 32 x 20000")
    assert len(sys.modules["models"].calls) <= 5


@pytest.mark.parametrize(("model", "message"), [("models:refuse", "no thanks"), ("models:nan", "NaN or infinity")])
def test_a_failing_model(place, capsys, model, message):
    assert restore(model=model) == 2
    assert_one_error(capsys, message)


def test_a_write_that_fails(place, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "out.png")

    monkeypatch.setattr(os, "fsync", fail)
    assert restore() == 2
    assert_one_error(capsys, "out.png: cannot be written: No space left on device")


def test_running_out_of_memory(place, capsys, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(cli.restore, "TiledRestorer", fail)
    assert restore() == 2
    assert_one_error(capsys, "out of memory")


def test_debug_shows_the_traceback(place, monkeypatch):
    monkeypatch.setenv("HALOTILE_DEBUG", "1")
    with pytest.raises(halotile.TileError):
        restore(model="models:refuse")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_it_and_leave_nothing(place, sent, status):
    import signal

    command = [sys.executable, "-m", "halotile", "restore", "in.png", "-o", "out.png", "-m", "models:slow"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 60
    while not os.path.exists("started") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(getattr(signal, sent))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert sorted(name for name in os.listdir() if "cache" not in name) == ["in.png", "models.py", "started"]


# ---- what is found out, strength, half -------------------------------------------------------------------------------


def spied(monkeypatch):
    """The restorers that the command line makes."""
    made = []
    make = halotile.TiledRestorer.with_options

    def spy(restorer, options):
        made.append(make(restorer, options))
        return made[-1]

    monkeypatch.setattr(halotile.TiledRestorer, "with_options", spy)
    return made


@pytest.fixture
def unet(place):
    """Two levels and a stride of 4: a phase of 1 would not be exact."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    down = [torch.nn.Conv2d(3, 8, 3, padding=1, stride=2), torch.nn.Conv2d(8, 8, 3, padding=1, stride=2)]
    up = [torch.nn.ConvTranspose2d(8, 8, 2, stride=2), torch.nn.ConvTranspose2d(8, 3, 2, stride=2)]
    network = torch.nn.Sequential(*down, *up).eval()
    torch.jit.script(network).save("unet.pt")
    return network


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_halo_and_phase_of_a_network_are_found_out(unet, capsys):
    exact = ("restore", "in.png", "-m", "unet.pt", "--tile", 32)
    assert run(*exact, "-o", "a.png") == 0
    text = capsys.readouterr().out
    assert "phase 4, exact: the receptive field" in text
    image = files.read_image("in.png").pixels
    whole = halotile.restore_tiled(image, unet, tile_size=512, halo=32, phase=4)
    assert np.abs(files.read_image("a.png").pixels.astype(int) - whole).max() <= 1
    assert run(*exact, "-o", "b.png", "--halo", "exact", "--phase", "auto") == 0
    np.testing.assert_array_equal(files.read_image("a.png").pixels, files.read_image("b.png").pixels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "halo", "phase"),
    [
        ((), "auto", (4, 4)),
        (("--halo", 12), (12, 12), (4, 4)),
        (("--phase", 8), "auto", (8, 8)),
        (("--halo", 12, "--phase", 8), None, None),  # nothing is left to find out
    ],
)
def test_explicit_values_win(unet, monkeypatch, options, halo, phase):
    made = spied(monkeypatch)
    assert run("restore", "in.png", "-m", "unet.pt", "--tile", 32, *options, "-o", "a.png") == 0
    found = [(one.options.halo, one.options.phase) for one in made]
    assert (found[0] == (halo, phase)) if halo else found == []


def test_for_other_models_they_are_as_before(place, monkeypatch, capsys):
    made = spied(monkeypatch)
    assert run("restore", "in.png", "-m", "models:brighten", "-o", "a.png", "--json") == 0
    entry = json.loads(capsys.readouterr().out)["files"][0]
    assert (entry["halo"], entry["phase"], entry["how"], made) == ([32, 32], [1, 1], "given", [])


def test_models_that_no_halo_makes_exact(place, capsys):
    """Windows of one size, grids that are averaged, colours of one pass: the options reach the run and are told."""
    (place / "tinted.py").write_text(
        "def net(x):\n    return x + 0.2 * (x.mean((2, 3), keepdims=True) - 0.5)\n\n\nnet.train_size = 32\n"
    )
    common = ("restore", "in.png", "-m", "tinted:net", "--force")
    assert run(*common, "-o", "a.png", "--window", "trained", "--shift-average", 3) == 0
    output = capsys.readouterr().out
    assert "windows of 32, always of that size" in output and "average of 3 grids of tiles" in output
    image = files.read_image("in.png").pixels
    want = halotile.restore_tiled(image, halotile.load_model("tinted:net"), window="trained", shift_average=3)
    np.testing.assert_array_equal(files.read_image("a.png").pixels, want)
    assert run(*common, "-o", "b.png", "--tile", 24, "--halo", 8, "--match-low", 40, "--json") == 0
    told = json.loads(capsys.readouterr().out)["files"][0]
    assert "the low band of every tile is that of the image reduced by" in told["why"] and told["averaged"] is None
    assert run("plan", "900x700", "--window", "64x32") == 0
    assert "32x64" in capsys.readouterr().out
    for options, text in (
        (("--shift-average", 65), "must be a whole number from 1 to 64"),
        (("--shift-average", 2, "--boundary", "native"), "must be 'reflect' or 'wrap' with --shift-average"),
        (("--window", "large"), "must be a number, or rows x columns"),
        (("--match-low", "low"), "must be auto or a whole number"),
    ):
        assert run(*common, "-o", "c.png", *options) == 2
        assert text in capsys.readouterr().err
    assert run(*common, "-o", "c.png", "--window", 32, "--schedule", "stream") == 2
    assert "must be 'auto' or 'tiles' with --window 32" in capsys.readouterr().err
    assert run("plan", "900x700", "--window", "trained") == 2
    assert "no model is asked" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_where_no_halo_is_exact_there_is_a_warning(place, capsys):
    torch = pytest.importorskip("torch")
    norm = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.InstanceNorm2d(3)).eval()
    torch.jit.script(norm).save("norm.pt")
    assert run("restore", "in.png", "-m", "norm.pt", "-o", "a.png", "--tile", 32) == 0
    assert "halo is 32, which is not exact: the model sees the whole image in" in capsys.readouterr().err
    assert run("restore", "in.png", "-m", "norm.pt", "-o", "b.png", "--tile", 32, "--global-stats", "exact") == 0
    output = capsys.readouterr()
    assert unclamped(output.err) == "" and "exact: the receptive field" in output.out
    assert run("restore", "in.png", "-m", "norm.pt", "-o", "c.png", "--tile", 32, "--halo", 8) == 0
    assert "halo is 32" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_cannot_be_inspected_still_runs(place, network, monkeypatch, capsys):
    import torch

    torch.jit.script(network).save("model.pt")

    def fail(_):
        raise RuntimeError("no idea")

    monkeypatch.setattr(halotile.TiledRestorer, "inspected", fail)
    assert run("restore", "in.png", "-m", "model.pt", "-o", "a.png", "--tile", 32) == 0
    text = "inspecting the model failed, so halo is 32 and phase is 1: RuntimeError: no idea"
    assert unclamped(capsys.readouterr().err) == f"halotile: warning: {text}\n"


def unclamped(text):
    """Without what is said of the values of networks with random weights."""
    return "".join(line for line in text.splitlines(keepends=True) if "of the result was clamped" not in line)


@pytest.fixture
def embedded(monkeypatch):
    """Stands in for the model that comes with halotile: brighter by its strength."""
    torch = pytest.importorskip("torch")

    class Brighter(torch.nn.Module):
        def __init__(self, strength):
            super().__init__()
            self.strength = strength

        def forward(self, windows):
            return (windows + self.strength).clamp(max=1)

    module = types.ModuleType("halotile.models.embedded")
    module.load_embedded = lambda strength=1.0: Brighter(strength)
    monkeypatch.setitem(sys.modules, "halotile.models.embedded", module)


@pytest.mark.parametrize(("options", "strength"), [((), 1), (("--strength", 0.25), 0.25), (("--strength", 0), 0)])
def test_the_model_that_comes_with_it_and_its_strength(place, embedded, options, strength):
    assert run("restore", "in.png", "-o", "a.png", *options) == 0
    expected = np.minimum(files.read_image("in.png").pixels + 255.0 * strength, 255)
    assert np.abs(files.read_image("a.png").pixels - expected).max() <= 0.5


def test_the_model_that_comes_with_it_is_inspected(place, embedded, capsys):
    assert run("inspect") == 0
    assert "receptive field  left 0, right 0, top 0, bottom 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--strength", 0.5),
            "--strength is only for the included model, not for",
        ),
        (("--strength", 1.5), "argument --strength: must be a number from 0 to 1, not '1.5'"),
        (("--strength", "nan"), "argument --strength: must be a number from 0 to 1, not 'nan'"),
        (("--half", "--dtype", "float16"), "argument --dtype: not allowed with argument --half"),
        (("--page", 2), "in.png: page=2; must be from 1 to 1"),
        (("--device", "cpu,"), "argument --device: must be a device, or several separated by commas"),
        (("--page", 0), "argument --page: must be a whole number from 1"),
    ],
)
def test_wrong_values_of_them(place, capsys, options, message):
    assert restore(*options) == 2
    assert_one_error(capsys, message)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [(None, "bfloat16"), ("cpu", "bfloat16"), ("mps", "float16"), (["cuda:0", "cuda:1"], "float16")],
)
def test_half(device, dtype):
    torch = pytest.importorskip("torch")
    assert cli.restore.half(torch.nn.Conv2d(3, 3, 3), device) == dtype
    assert cli.restore.half(torch.nn.Identity(), device) == dtype
    assert cli.restore.half(abs, device) == "float16"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_half_is_near(place, network):
    import torch

    torch.jit.script(network).save("model.pt")
    assert restore("--half", model="model.pt") == 0
    assert 0 < np.abs(files.read_image("out.png").pixels - expected_from(network)).max() <= 4


def test_json_of_one_file(place, capsys):
    assert restore("--json") == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["version"], found["model"], len(found["files"])) == (halotile.__version__, "models:brighten", 1)
    assert found["files"][0]["output_size"] == [70, 45] and output.err == ""
    assert restore("--json", "--force", model="models:refuse") == 2
    output = capsys.readouterr()
    assert "no thanks" in json.loads(output.out)["files"][0]["error"] and output.err.count("\n") == 1
    assert restore("--json", "--skip-existing", model="models:refuse") == 0
    assert json.loads(capsys.readouterr().out)["totals"]["skipped"] == 1
    assert restore("--skip-existing", model="models:refuse") == 0
    assert capsys.readouterr().out == "out.png exists, skipped\n"


# ---- what is chosen --------------------------------------------------------------------------------------------------


def test_what_was_chosen_is_said(place, network, capsys):
    files.write_image("in.png", np.zeros((300, 420, 3), np.uint8))
    export(network, "model.pt2", sides=(2, 3))
    command = ("restore", "in.png", "-m", "model.pt2", "--force", "-o", "out.png")
    automatic = ("--tile", "auto", "--batch-size", "auto", "--dtype", "auto")
    assert run(*command, *automatic) == 0
    first, halo, rows, chosen = capsys.readouterr().out.splitlines()
    assert first.startswith("out.png: 420x300 -> 840x600, uint8, ") and halo.startswith("halo 1, phase 1, exact: ")
    assert rows.startswith("in tiles, which take 1.")
    assert re.match(r"chosen: tiles of \d+x\d+ in batches of \d, \w+: .*; dtype (float16|bfloat16|float32): .*", chosen)
    assert run(*command, *automatic, "--json") == 0
    entry = json.loads(capsys.readouterr().out)["files"][0]
    assert entry["tuning"].keys() >= {"tile_size", "batch_size", "memory_format", "limit", "seconds", "why"}
    assert "costs" not in entry["tuning"] and entry["precision"]["dtype"] in ("float32", "float16", "bfloat16")
    assert run(*command, "--json") == 0
    entry = json.loads(capsys.readouterr().out)["files"][0]
    assert (entry["tuning"], entry["precision"]) == (None, None)


def test_how_rows_were_made_is_said(place, network, capsys):
    export(network, "model.pt2", sides=(2, 3))
    command = ("restore", "in.png", "-m", "model.pt2", "--force", "-o", "out.png")
    assert run(*command, "--schedule", "stream") == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("rows stream through the model, ")
    streamed = files.read_image("out.png").pixels
    assert run(*command, "--schedule", "stream", "--json") == 0
    entry = json.loads(capsys.readouterr().out)["files"][0]
    assert entry["schedule"] == "stream" and entry["stream"]["held"] > 0 and entry["schedule_why"] is None
    assert entry["stream"]["seconds"] > 0
    assert run(*command) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("in tiles, which take 1.")
    np.testing.assert_array_equal(files.read_image("out.png").pixels, streamed)
    assert run(*command, "--schedule", "tiles") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    os.unlink("out.png")
    assert restore("--schedule", "stream") == 2
    assert_one_error(capsys, "schedule must be 'auto' or 'tiles' for this model, not 'stream': only torch modules")


def test_of_other_models_too(place, capsys):
    files.write_image("in.png", np.zeros((30, 1000, 3), np.uint8))
    assert restore("--tile-size", "auto") == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert re.match(r"chosen: tiles of \d+x30 in batches of 1, contiguous: ", line)  # width x height


def test_memory_is_limited(place, network, capsys):
    files.write_image("in.png", np.zeros((300, 400, 3), np.uint8))
    export(network, "model.pt2", sides=(2, 3))
    command = ("restore", "in.png", "-m", "model.pt2", "--halo", 1, "--phase", 1, "-o", "out.npy")
    assert run(*command, "--memory-limit", "4M", "--json") == 0
    tuning = json.loads(capsys.readouterr().out)["files"][0]["tuning"]
    assert tuning["limit"] == 4 * 2**20 and tuning["bytes"] <= tuning["limit"] and tuning["tile_size"] < [400, 300]
    os.unlink("out.npy")
    assert run(*command, "--memory-limit", "4K") == 2
    assert_one_error(capsys, "for this model and image, not 4 KiB: pass memory_limit=1 << 20, or --memory-limit 1M")


@pytest.mark.parametrize("inputs", [("in.png",), ("in.png", "other.png")])
def test_what_is_found_out_keeps_the_other_options(unet, monkeypatch, inputs):
    """Of those that windows of other sizes do without."""
    files.write_image("other.png", np.zeros((50, 40, 3), np.uint8))
    monkeypatch.setattr(cli.restore, "_shows_progress", lambda asked: False)
    seen = []
    make = cli.restore.batch.FileRestorer

    def spy(restorer, **options):
        seen.append(restorer.options)
        return make(restorer, **options)

    monkeypatch.setattr(cli.restore.batch, "FileRestorer", spy)
    monkeypatch.setattr("halotile.models.model.TensorModel.compile", lambda model: None)
    options = ("--compile", "--dtype", "auto", "--memory-limit", "1G", "--no-keep-heap")
    assert run("restore", *inputs, "-m", "unet.pt", "--tile", 32, "-o", "out/", *options) == 0
    (found,) = seen
    assert (found.halo, found.phase, found.compile, found.dtype) == ("auto", (4, 4), True, "auto")
    assert (found.memory_limit, found.keep_heap) == (2**30, False)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def saved(image, kind):
    """The argument that names an array of these values."""
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        zarr.create_array(store="in.zarr", data=image, chunks=(16, 16, 3)[: image.ndim])
        return "in.zarr/"  # as shells complete it
    np.save("in.npy", np.asfortranarray(image) if kind == "by columns" else image)
    return "in.npy"


@pytest.mark.parametrize("options", [(), ("--verify", 2)])
@pytest.mark.parametrize("kind", ["npy", "by columns", "zarr"])
def test_arrays(place, rng, kind, options):
    for index, image in enumerate((rng.integers(0, 256, (83, 61, 3), np.uint8), rng.random((40, 90), np.float32))):
        output = f"out{index}.{'zarr' if kind == 'zarr' else 'npy'}"
        command = ("restore", saved(image, kind), "-m", "models:enlarge", "--tile", 32, "--halo", 2, "--force")
        assert run(*command, "-o", output, *options) == 0
        found = open_source(output, None, None).whole()
        np.testing.assert_array_equal(found, image.repeat(4, 0).repeat(4, 1))
        shutil.rmtree("in.zarr", ignore_errors=True)


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_of_a_zarr_group(place, rng, capsys, version):
    """As microscopes write them: a group of levels, and no suffix on any of them."""
    zarr = pytest.importorskip("zarr")
    image = rng.integers(0, 256, (83, 61, 3), np.uint8)
    levels = zarr.open_group("slide.zarr", mode="w", zarr_format=version).create_group("scan")
    levels.create_array("0", data=image)
    levels.create_array("1", data=image[::2, ::2])
    command = ("restore", "-m", "models:enlarge", "--tile", 32, "--halo", 2)
    want = image.repeat(4, 0).repeat(4, 1)
    for output, made in (("out.zarr", "out.zarr"), ("out.npy", "out.npy"), ("out", "out/0.zarr")):
        inputs = ["slide.zarr/scan/0"] if output != "out" else ["slide.zarr/scan/0", "slide.zarr/scan/1"]
        assert run(*command, *inputs, "-o", output) == 0
        np.testing.assert_array_equal(open_source(made, None, None).whole(), want)
    assert run("plan", "slide.zarr/scan/1") == 0
    assert table(capsys.readouterr().out)["image"] == "31x42, 3 channels, uint8"
    assert run(*command, "slide.zarr", "-o", "none.zarr") == 2
    message = "slide.zarr: a zarr group, not an array: pass one of its arrays, such as slide.zarr/scan/0"
    assert_one_error(capsys, message)


@pytest.mark.parametrize("options", [(), ("--verify", 2)])
@pytest.mark.parametrize("kind", ["npy", "by columns", "zarr"])
def test_arrays_in_other_orders(place, rng, capsys, kind, options):
    image = rng.integers(0, 256, (3, 61, 83), np.uint8)
    command = ("restore", saved(image, kind), "-m", "models:enlarge", "--tile", 32, "--halo", 2, "-o", "out.npy")
    assert run(*command, *options) == 2
    assert "would have 83 channels in layout 'HWC'; pass --layout CHW (" in capsys.readouterr().err
    for layout in ("CHW", "CYX"):
        assert run(*command, *options, "--layout", layout, "--force") == 0
        np.testing.assert_array_equal(np.load("out.npy"), image.transpose(1, 2, 0).repeat(4, 0).repeat(4, 1))
    assert run(*command, "--layout", "ZYX", "--force") == 2
    assert "for several images, use halotile.restore_to" in capsys.readouterr().err
    assert run(*command, "--layout", "ZY", "--force") == 2
    assert "layout must name each axis" in capsys.readouterr().err


def test_arrays_are_read_by_rows(place, rng, monkeypatch):
    rows = []
    read = NpySource.read

    def spy(source, start, into):
        rows.append(len(into))
        read(source, start, into)

    monkeypatch.setattr(NpySource, "read", spy)
    name = saved(rng.integers(0, 256, (300, 40, 3), np.uint8), "npy")
    assert run("restore", name, "-m", "models:enlarge", "--tile", 32, "--halo", 2, "-o", "out.tif") == 0
    assert sum(rows) == 300 and max(rows) < 64


def test_arrays_and_image_files_into_a_folder(place, rng):
    image = files.read_image("in.png").pixels
    names = [saved(image, "npy"), saved(image, "zarr"), "in.png"]
    assert run("restore", *names, "-m", "models:enlarge", "--tile", 32, "-o", "out") == 0
    assert sorted(os.listdir("out")) == ["in.npy", "in.png", "in.zarr"]
    for name in os.listdir("out"):
        found = open_source(f"out/{name}", None, None).whole()
        np.testing.assert_array_equal(found, image.repeat(4, 0).repeat(4, 1))
    assert run("restore", ".", "-m", "models:brighten", "--format", "png", "-o", "again") == 0
    assert sorted(os.listdir("again")) == ["in.png", "out"]  # below folders: image files only


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((2, 30, 40, 3), np.uint8), (), "in.npy: image must be (H, W) or (H, W, C), not of shape (2, 30,"),
        (np.zeros((30, 40), np.int64), (), "in.npy: image must have one of the dtypes uint8, "),
        (np.zeros((30, 40)), (), "out.png: PNG cannot hold float64; choose --bits, or write TIFF"),
        (np.zeros((30, 40), np.uint8), ("--page", 2), "in.npy: page=2; must be from 1 to 1"),
    ],
)
def test_arrays_that_are_no_images(place, capsys, image, options, message):
    name = saved(image, "npy")
    assert run("restore", name, "-m", "models:refuse", "-o", "out.png", *options) == 2
    assert_one_error(capsys, message)


@pytest.mark.parametrize("name", ["none.npy", "none.zarr"])
def test_arrays_that_are_not_there(place, capsys, name):
    assert run("restore", name, "-m", "models:refuse", "-o", "out.png") == 2
    assert_one_error(capsys, f"{name}: No such file or directory")


# ---- models ----------------------------------------------------------------------------------------------------------


def test_known_models_and_what_reads_files(capsys, monkeypatch):
    from halotile.models import catalog

    rows = [catalog.Listed("small", "x4, fast", "MIT", True), catalog.Listed("large", "x4", "Fair", False)]
    monkeypatch.setattr(catalog, "listed", lambda: rows)
    assert run("models") == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "what", "licence", "installed"]
    assert lines[1][0] == "(none)" and lines[1][1].startswith("the included model")
    assert lines[2:4] == [["small", "x4, fast", "MIT", "yes"], ["large", "x4", "Fair", "no"]]
    assert [line[1].split()[0] for line in lines[6:]] == ["torch", "spandrel", "safetensors", "onnxruntime"]


# ---- plan, versions, help --------------------------------------------------------------------------------------------


def table(text):
    return {line[:21].strip(): line[21:].strip() for line in text.splitlines()[1:]}


def test_plan(place, capsys):
    assert run("plan", "3840x2160", "--scale", 4, "--halo", 18, "--overlap", 0) == 0
    plan = halotile.plan_tiles((2160, 3840), scale=4, halo=18, overlap=0)
    shown = table(capsys.readouterr().out)
    assert shown["image"] == "3840x2160, 3 channels, uint8"
    assert shown["output"] == "15360x8640, scale 4, uint8"
    assert shown["tiles"] == f"{len(plan)} in a grid of {plan.grid[1]}x{plan.grid[0]}"
    assert shown["window"] == f"{plan.window[1]}x{plan.window[0]}, batches of 1"
    assert shown["halo"] == "18x18"
    assert shown["overlap"] == "0x0"
    assert shown["processed"] == "9.66 megapixels for 8.29 megapixels: 1.16x"
    assert shown["memory: output"] == "380 MiB"


def test_plan_of_a_file(place, capsys, rng):
    files.write_image("deep.tif", rng.integers(0, 65536, (45, 70, 4), np.uint16))
    assert run("plan", "deep.tif", "--scale", "3/2", "--bits", 8) == 0
    shown = table(capsys.readouterr().out)
    assert shown["image"] == "70x45, 4 channels, uint16"
    assert shown["output"] == "105x68, scale 3/2, uint8"


def test_plan_of_an_array(place, capsys, rng):
    np.save("in.npy", rng.integers(0, 65536, (45, 70, 4), np.uint16))
    assert run("plan", "in.npy") == 0
    assert table(capsys.readouterr().out)["image"] == "70x45, 4 channels, uint16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("640",), "640: No such file or directory"),
        (("100x",), "100x: No such file or directory, and not a size WIDTHxHEIGHT such as 3840x2160"),
        (("0x10",), "an image must be at least 1 pixel wide and high, not 0x10"),
        (("640x480", "--tile-size", 0), "tile_size must be from 1"),
        (
            ("640x480", "--tile-size", "auto"),
            "argument --tile-size/--tile: must be a whole number, not 'auto': with --model",
        ),
        (
            ("640x480", "--halo", "exact"),
            "must be a whole number, not 'exact': with --model, plan finds it if it is left out",
        ),
        (("640x480", "--phase", "auto"), "argument --phase: must be a whole number, not 'auto'"),
        (
            ("640x480", "--batch-size", "auto"),
            "argument --batch-size: must be a whole number, not 'auto'",
        ),
        (("640x480", "--batch-size", "many"), "argument --batch-size: must be a whole number, not 'many'"),
        (("640x480", "--dtype", "auto"), "argument --dtype: invalid choice: 'auto'"),
        (("640x480", "--channels", 0), "argument --channels: must be a whole number from 1"),
        (("models.py",), "models.py: not a PNG, JPEG, WebP, TIFF or AVIF file"),
    ],
)
def test_wrong_plans(place, capsys, arguments, message):
    assert run("plan", *arguments) == 2
    assert_one_error(capsys, message)


def test_version(capsys):
    assert run("--version") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"halotile {halotile.__version__} (") and lines[0].endswith(" row kernels)")
    packages = {"numpy", "torch", "pyvips", "zarr", "tqdm", "spandrel", "onnxruntime", "scikit-image"}
    assert {line.split()[0] for line in lines[1:]} == {"Python", *packages, "engines:"}


@pytest.mark.parametrize("arguments", [("--help",), ("restore", "--help"), ("plan", "--help"), ("plan", "640x480")])
def test_torch_and_pyvips_are_imported_only_when_needed(arguments):
    code = f"""
        import sys
        from halotile.cli import main
        try:
            main({list(arguments)})
        except SystemExit as stop:
            assert stop.code == 0
        assert not {{"torch", "pyvips", "tqdm"}} & set(sys.modules), "imported too early"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, stdout=subprocess.DEVNULL)


def test_module_entry_point(place):
    done = in_process("restore", "in.png", "-o", "out.png", "-m", "models:enlarge")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("out.png: 70x45 -> 280x180, uint8, ")
    done = in_process("restore", "in.png", "-o", "out.png", "-m", "models:enlarge")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "halotile: error: out.png exists; --force overwrites it\n"


def test_a_fixed_export_that_loses_pixels_is_not_shifted(place, rng):
    """Valid convolutions behind a fixed window."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Conv2d(3, 3, 5)
    torch.nn.init.dirac_(net.weight)
    torch.nn.init.zeros_(net.bias)
    torch.export.save(torch.export.export(net, (torch.rand(1, 3, 64, 64),)), "valid.pt2")
    image = rng.integers(0, 256, (96, 96, 3), np.uint8)
    files.write_image("in.png", image)
    options = ["--tile-size", 48, "--halo", 8, "--scale", 1, "--overlap", 0]
    assert run("restore", "in.png", "-o", "b.png", "-m", "valid.pt2", *options) == 0
    np.testing.assert_array_equal(files.read_image("b.png").pixels, image)


# ---- inspect ---------------------------------------------------------------------------------------------------------

NETS = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 3, 5, padding=2).eval()
"""


def test_what_a_model_needs(place, capsys, monkeypatch):
    pytest.importorskip("torch")
    (place / "nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    assert run("inspect", "--model", "nets:net()") == 0
    assert "receptive field  left 2, right 2, top 2, bottom 2" in capsys.readouterr().out
    assert run("inspect", "--model", "nets:net()", "--json") == 0
    assert json.loads(capsys.readouterr().out)["receptive_field"] == [2, 2, 2, 2]
    found = ("restore", "in.png", "-m", "nets:net()", "--tile-size", 32)
    assert run(*found, "-o", "a.png", "--halo", "exact", "--phase", "auto", "--overlap", 0) == 0
    assert run(*found, "-o", "b.png", "--halo", 2, "--overlap", 0) == 0
    np.testing.assert_array_equal(files.read_image("a.png").pixels, files.read_image("b.png").pixels)
    capsys.readouterr()
    assert run(*found, "-o", "c.png", "--phase", "some") == 2
    assert_one_error(capsys, "argument --phase: must be auto or a whole number, not 'some'")
    assert run("inspect", "--model", "nets:net()", "--image", "in.png") == 0
    assert "beside a halo of 2, the receptive field" in capsys.readouterr().out
    assert run("inspect", "--model", "nets:net()", "--image", "in.png", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["error_curve"]["reference"] == 2
    assert run("inspect", "--model", "nets:net()", "--image", "none.png") == 2
    assert run(*found, "-o", "d.png", "--halo", "exact", "--verify", 2) == 0
    text = capsys.readouterr().out
    assert "halo 2, phase 1, exact: the receptive field" in text
    assert "2 windows with a halo of 22, beside a run with halo 2, phase 1" in text
    assert run(*found, "-o", "e.png", "--halo", "auto", "--global-stats", "exact", "--tolerance", 1) == 0
    assert "x the pixels of halo 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("pass layout='CHW' (3 channels), or layout='HWC'", "pass --layout CHW (3 channels), or --layout HWC"),
        ("networks need phase= such as 8, 16", "networks need --phase such as 8, 16"),
        ("failed; pass scale=", "failed; pass --scale"),
        ("going on with tile_size=256, batch_size=1", "going on with --tile-size 256, --batch-size 1"),
        ("pass global_stats='exact' or 'tile'", "pass --global-stats exact or 'tile'"),
        ("pass value_range=(-1, 1.5); out_dtype='float32' keeps", "pass --value-range -1 1.5; --bits 32 keeps"),
        ("it takes uint8, uint16, see out_dtype=", "it takes uint8, uint16, see --bits"),
        ("out_dtype must be one that can hold nodata=0", "--bits must be one that can hold --nodata 0"),
        ("pass white=255, background= or strict=", "pass --white 255, --background or --strict"),
        ("conv2d(input, dtype=torch.float32, my_scale=2)", "conv2d(input, dtype=torch.float32, my_scale=2)"),
        (
            "a file of layout HWC; scale is 2, F.interpolate(scale=2.5)",
            "a file of layout HWC; scale is 2, F.interpolate(scale=2.5)",
        ),
    ],
)
def test_texts_name_options_as_a_command_line_has_them(text, written):
    from halotile.cli.common import as_written, one_line

    assert as_written(text) == written == one_line(ValueError(text))
    assert one_line(RuntimeError("scale=2")) == "RuntimeError: scale=2"


def test_an_order_of_axes_in_doubt_names_the_option(place, capsys):
    np.save("stack.npy", np.zeros((13, 40, 40), np.uint8))
    assert run("restore", "stack.npy", "-o", "out.npy", "--model", "models:brighten") == 2
    said = capsys.readouterr().err
    assert "--layout CHW" in said and "layout=" not in said


def test_a_reader_that_goes_is_no_error():
    command = f"{sys.executable} -m halotile models | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], check=False, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("name")
    assert done.returncode in (0, 141)  # it may have written all before
