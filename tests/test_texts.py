# SPDX-License-Identifier: MIT
"""Texts of other libraries' exceptions: their first sentence, and nothing that they do can break an error of ours."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halotile.texts import LONGEST_QUOTE, bytes_text, full_text, multiple_told, named, one_line, quoted

MPS = (
    "Could not run 'aten::empty.memory_format' with arguments from the 'MPS' backend. This could be because the "
    "operator doesn't exist for this backend, or was omitted during the selective/custom build process (if using it). "
    "If you are a Facebook employee using PyTorch on mobile, please visit https://fburl.com/ptmfixes for possible "
    "resolutions.\n\nCPU: registered at /pytorch/build/aten/src/ATen/RegisterCPU_1.cpp:2456 [kernel]\n" * 20
)


class Shouting(str):
    """A text whose methods raise."""

    def split(self, *_):
        raise RuntimeError("split")

    def lower(self):
        raise RuntimeError("lower")

    def __getitem__(self, _):
        raise RuntimeError("getitem")


def raising(what):
    """An exception with such a __str__."""

    class Odd(RuntimeError):
        def __str__(self):
            return what()

    return Odd("x")


def fail():
    raise ZeroDivisionError("in __str__")


BROKEN = {
    "raises": fail,
    "number": lambda: 3,
    "none": lambda: None,
    "bytes": lambda: b"x",
    "endless": lambda: str(rec()),
}


def rec():
    class Endless(RuntimeError):
        def __str__(self):
            return str(self)

    return Endless()


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_text_is_none(name):
    error = raising(BROKEN[name])
    assert full_text(error) == ""
    assert quoted(error) == "(its text cannot be read)"
    assert named(error) == "Odd: (its text cannot be read)"
    assert one_line(error) == "Odd"


def test_a_text_of_another_class_is_a_plain_one():
    error = raising(lambda: Shouting("One thing. And another"))
    assert quoted(error) == "One thing. And another"[: len("One thing. And another")]
    assert type(full_text(error)) is str


@pytest.mark.parametrize(
    "text, sentence",
    [
        (MPS, "Could not run 'aten::empty.memory_format' with arguments from the 'MPS' backend"),
        ("no\nthanks", "no thanks"),
        ("", "RuntimeError"),
        ("\n \n", "RuntimeError"),
        ("operator torchvision::nms does not exist", "operator torchvision::nms does not exist"),
        (
            "Sizes of tensors must match except in dimension 1. Expected size 466 but got size 467 for tensor number 1 "
            "in the list.",
            "Sizes of tensors must match except in dimension 1. Expected size 466 but got size 467 for tensor number 1 "
            "in the list",
        ),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1 is.",
            "CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (
            "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at "
            "some other API call, so the stacktrace below might be incorrect.\nPass CUDA_LAUNCH_BLOCKING=1",
            "CUDA error: device-side assert triggered",
        ),
        (
            'Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: "a.weight", "a.bias". \n\tsize '
            "mismatch for b",
            'Error(s) in loading state_dict for Net: Missing key(s) in state_dict: "a.weight", "a.bias"',
        ),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the following "
            "indices\n index: 2 Got: 64 Expected: 128\n Please fix either the inputs/outputs or the model.",
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the following indices "
            "index: 2 Got: 64 Expected: 128",
        ),
        (
            "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent "
            'call last):\n  File "net.py", line 12, in forward\n    return self.a(x) + x\n           ~~~~~~ <--- HERE\n'
            "RuntimeError: The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 3\n",
            "RuntimeError: The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 3",
        ),
        (
            'Caught RuntimeError in replica 0 on device 0.\nOriginal Traceback (most recent call last):\n  File "a"\n'
            "RuntimeError: it was this",
            "RuntimeError: it was this",
        ),
        ("scale factors e.g. 2.5 are no good. Use another.", "scale factors e.g. 2.5 are no good"),
        ("Use nn.Conv2d, e.g. Conv2d(3, 3). Not that.", "Use nn.Conv2d, e.g. Conv2d(3, 3)"),
        ("\x1b[31mred\x1b[0m \udcff and \0 zero", r"\x1b[31mred\x1b[0m \udcff and \x00 zero"),
    ],
)
def test_the_first_sentence(text, sentence):
    assert quoted(RuntimeError(text)) == sentence


def test_it_is_bounded():
    assert quoted(RuntimeError("word " * 10_000)).endswith("word...")
    assert len(quoted(RuntimeError("word " * 10_000))) <= LONGEST_QUOTE
    assert quoted(RuntimeError("x" * 10**6)) == "x" * (LONGEST_QUOTE - 3) + "..."
    assert len(one_line(ValueError("y " * 10**6))) <= 1000


@pytest.mark.parametrize("piece", [" ", "\n", ". ", "x. a", "\t\n", "Traceback (most ", "Error", "(", ":\n"])
def test_no_text_takes_long(piece):
    started = time.monotonic()
    for start in ("A", "A.", "A line:"):
        quoted(RuntimeError(start + piece * 10**6 + "a"))
    assert time.monotonic() - started < 3


@given(st.text())
def test_any_text_is_one_line(text):
    for said in (quoted(RuntimeError(text)), one_line(RuntimeError(text)), named(RuntimeError(text))):
        assert 0 < len(said) <= 1000 and said.isprintable()
        said.encode()


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (35_377_720, "34 MiB"),
        (1_288_490_189, "1.2 GiB"),
        (5 * 2**20, "5 MiB"),
        (2**30 - 1, "1 GiB"),
        (16 * 2**30, "16 GiB"),
        (3 * 2**50, "3072 TiB"),
    ],
)
def test_amounts_of_memory(count, text):
    assert bytes_text(count) == text


def test_what_is_needed_is_more_than_what_is_given():
    assert bytes_text(35_377_720, math.ceil) == "34 MiB" and bytes_text(35_377_719, math.floor) == "33 MiB"
    assert bytes_text(2**30 + 1, math.ceil) == "1.1 GiB" and bytes_text(2**30 + 1, math.floor) == "1 GiB"


# ---- exceptions of models -------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import halotile  # noqa: E402
from halotile import TileError, inspect_model, iter_bands, restore_tiled, restore_to  # noqa: E402
from halotile.models.devices import usable_device  # noqa: E402
from halotile.testing import assert_seamless  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)


class Failing(nn.Module):
    """Raises what `make` makes from the window that has so many calls before it on."""

    def __init__(self, make, after=0):
        super().__init__()
        self.conv, self.make, self.calls, self.after = nn.Conv2d(3, 3, 3, padding=1), make, 0, after

    def forward(self, x):
        self.calls += 1
        if self.calls > self.after:
            raise self.make()
        return self.conv(x)


def with_text(what, kind=RuntimeError):
    class Broken(kind):
        def __str__(self):
            return what()

    return lambda: Broken("x")


RAISED = {
    "raises": with_text(fail),
    "no text": with_text(lambda: 3),
    "a value error": with_text(fail, ValueError),
    "a type error": with_text(fail, TypeError),
    "shouting": with_text(lambda: Shouting("no channels. At all")),
    "a wall": lambda: RuntimeError(MPS * 10),
}
USES = {
    "restore_tiled": lambda model, place: restore_tiled(IMAGE, model, tile_size=32),
    "callable": lambda model, place: restore_tiled(IMAGE, lambda x: model(x) * 1, tile_size=32),
    "tensors": lambda model, place: restore_tiled(torch.rand(3, 60, 50), model, tile_size=32),
    "grey": lambda model, place: restore_tiled(IMAGE[..., 0], model, tile_size=32),
    "iter_bands": lambda model, place: list(iter_bands(IMAGE, model, tile_size=32)),
    "restore_to": lambda model, place: restore_to(place / "out.npy", IMAGE, model, tile_size=32),
    "tile_size=auto": lambda model, place: restore_tiled(IMAGE, model, tile_size="auto"),
    "memory_limit": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, memory_limit=1 << 30),
    "compile": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, compile=True),
    "dtype=auto": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, dtype="auto"),
    "engine=torch": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, engine="torch"),
    "channels_last": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, memory_format="channels_last"),
}
ASKING = {
    "inspect_model": lambda model, place: inspect_model(model),
    "halo=exact": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, halo="exact"),
    "halo=auto": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, halo="auto", phase=None),
    "global_stats": lambda model, place: restore_tiled(IMAGE, model, tile_size=32, global_stats="exact"),
    "error_curve": lambda model, place: halotile.error_curve(IMAGE, model),
    "assert_seamless": lambda model, place: assert_seamless(IMAGE, model, tile_size=32),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("raised", list(RAISED))
def test_whatever_a_model_raises_the_error_says_which_tile(tmp_path, use, raised):
    with pytest.raises(TileError, match=r"tile.* 0.*: the model raised (Broken|RuntimeError): ") as error:
        USES[use](Failing(RAISED[raised]).eval(), tmp_path)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    assert type(error.value.__cause__).__name__ in ("Broken", "RuntimeError")


@pytest.mark.parametrize("use", list(ASKING))
@pytest.mark.parametrize("raised", list(RAISED))
def test_whatever_a_model_raises_while_it_is_looked_at(tmp_path, use, raised):
    with pytest.raises((ValueError, TileError), match=r"Broken|RuntimeError|channels") as error:
        ASKING[use](Failing(RAISED[raised]).eval(), tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_layout_error_without_a_text_is_no_layout_error():
    with pytest.raises(TileError, match=r"the model raised Broken: .its text cannot be read"):
        restore_tiled(IMAGE, nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Failing(RAISED["raises"])).eval())


def test_a_module_that_cannot_be_copied_says_so_in_a_sentence():
    class Fixed(nn.Conv2d):
        def __deepcopy__(self, memo):
            raise RAISED["raises"]()

    with pytest.raises(ValueError, match=r"cannot be copied: .its text cannot be read.; convert it yourself"):
        restore_tiled(IMAGE, Fixed(3, 3, 3, padding=1).eval(), dtype="bfloat16")


# ---- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device, why",
    [
        ("mps", "this PyTorch finds no Apple GPU"),
        ("mps:0", "this PyTorch finds no Apple GPU"),
        (torch.device("cuda"), "this PyTorch finds no NVIDIA or AMD GPU"),
        ("cuda:3", "this PyTorch finds no NVIDIA or AMD GPU"),
        ("xpu", "this PyTorch finds no Intel GPU"),
        ("mtia", "this PyTorch finds no mtia device"),
        ("meta", "meta tensors hold no values"),
        ("warp", "torch has no such device"),
        ("cpu:x", "torch has no such device"),
        (object(), "torch has no such device"),
        ("hpu", ""),
        ("vulkan", ""),
        ("xla", ""),
    ],
)
def test_devices_that_are_not_there(monkeypatch, device, why):
    for backend in (torch.backends.mps, torch.cuda, torch.xpu):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device .* is not available: {why}") as error:
        restore_tiled(IMAGE, nn.Identity(), device=device)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ValueError, match="device 'cuda:2' is not available: this PyTorch finds 2 NVIDIA or AMD GPUs, counted from 0"
    ):
        usable_device("cuda:2")


def test_a_driver_that_fails_is_quoted_by_its_first_sentence(monkeypatch):
    def empty(*_, **__):
        raise RuntimeError(MPS)

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(
        ValueError, match=r"'mps' is not available: Could not run 'aten::empty.memory_format' .*'MPS' backend$"
    ):
        usable_device("mps")


def test_the_command_line_says_it_in_one_short_line(tmp_path, capsys):
    pytest.importorskip("pyvips")
    from halotile import cli
    from halotile.files import picture as files

    files.write_image(tmp_path / "in.png", IMAGE)
    arguments = ["restore", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--device", "mps"]
    if torch.backends.mps.is_available():
        pytest.skip("there is one")
    assert cli.main(arguments) == 2
    text = "device 'mps' is not available: this PyTorch finds no Apple GPU"
    assert capsys.readouterr().err == f"halotile: error: {text}\n"


@pytest.mark.parametrize(
    ("text", "multiple"),
    [
        ("Height (33) must be divisible by 16", 16),
        ("must be divisible by 6 and by 4, multiples of 4", 12),
        ("input must be a multiple of 27.", 27),
        ("Input height (33) should be divisible by patch size (14).", 14),
        ("a multiple of 1", None),
        ("a multiple of 4096", None),
        ("sizes of tensors must match except in dimension 1", None),
    ],
)
def test_multiples_that_an_error_names(text, multiple):
    assert multiple_told(text) == multiple
