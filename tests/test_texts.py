# SPDX-License-Identifier: MIT
"""Texts of other libraries' exceptions: their first sentence, and nothing that they do can break an error of ours."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halotile.texts import LONGEST_QUOTE, bytes_text, full_text, named, one_line, quoted

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

    def __str__(self):
        return self

    def __format__(self, _):
        raise RuntimeError("format")


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
        ("\x1b[31mred\x1b[0m \udcff and \0 zero", "?[31mred?[0m ? and ? zero"),
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
        (5 * 2**20, "5.0 MiB"),
        (2**30 - 1, "1.0 GiB"),
        (16 * 2**30, "16 GiB"),
        (3 * 2**50, "3072 TiB"),
    ],
)
def test_amounts_of_memory(count, text):
    assert bytes_text(count) == text


def test_what_is_needed_is_more_than_what_is_given():
    assert bytes_text(35_377_720, math.ceil) == "34 MiB" and bytes_text(35_377_719, math.floor) == "33 MiB"
    assert bytes_text(2**30 + 1, math.ceil) == "1.1 GiB" and bytes_text(2**30 + 1, math.floor) == "1.0 GiB"
