# SPDX-License-Identifier: MIT
"""`halotile plan --model` tells what tiles and a stream would cost, and a streamed run tells what it cost."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

pytest.importorskip("pyvips")
pytest.importorskip("torch")

from halotile import TiledRestorer
from halotile.files import picture as files
from halotile.run.stream import peak as peaks
from halotile.texts import bytes_text

from .networks import Chain, seeded
from .test_cli import assert_one_error, place, run, table  # noqa: F401

NETS = """
import torch
from torch import nn

def chain(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.Conv2d(8, 3, 3, padding=1)).eval()

def deep():
    return chain(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(30)))

def shallow():
    return chain()

def normed():
    return chain(nn.InstanceNorm2d(8))

class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:])

class Deciding(nn.Module):
    def forward(self, x):
        return x if len(x[0, 0, 0].nonzero()) else x * 2

def deciding():
    return chain(Deciding())

def spectrum():
    return chain(Spectrum())
"""
WEIGHTS = 2 * 3 * 8 * 9 + 30 * 8 * 8 * 9  # of deep, without biases
DEEP = ("--model", "nets:deep()")


@pytest.fixture
def nets(place, streams_pay, monkeypatch):  # noqa: F811
    (place / "nets.py").write_text(NETS)
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)
    monkeypatch.setattr(peaks, "peak_of_machine", lambda device: 2e9)
    yield place
    __import__("sys").modules.pop("nets", None)


def planned(capsys, *arguments):
    assert run("plan", *arguments) == 0
    return table(capsys.readouterr().out)


def test_a_stream_beside_tiles(nets, capsys):
    shown = planned(capsys, "400x300", *DEEP, "--tile", 64)
    gflop = 2 * 400 * 300 * WEIGHTS / 1e9
    own = f"{gflop:.4g} GFLOP for the image: at least {gflop / 2:.3g} s"
    assert shown["model"] == f"{own} at this machine's peak of 2 GFLOP/s"
    ratio = float(re.fullmatch(r".* for 0.12 megapixels: (.*)x", shown["processed"])[1])
    assert shown["halo"] == "32x32" and ratio > 3
    assert shown["in tiles"].startswith(f"{ratio:.2f} of the image's pixels, ")
    spent = re.search(r" ([\d.]+) GFLOP: at least ([\d.]+) s", shown["in tiles"])
    assert float(spent[1]) == pytest.approx(ratio * gflop, rel=1e-2)
    assert float(spent[2]) == pytest.approx(ratio * gflop / 2, rel=1e-2)
    through = float(re.match(r"1\.\d\d", shown["as a stream"])[0])
    assert through < ratio / 2
    assert shown["auto"].startswith(f"a stream: {ratio:.2f} of the image's pixels in tiles, {through:.2f} in a stream")


def test_the_plan_is_what_a_run_reports(nets, capsys):
    files.write_image("in.png", np.zeros((150, 200, 3), np.uint8))
    shown = planned(capsys, "in.png", *DEEP, "--boundary", "native", "--tile", 64)
    command = ("restore", "in.png", "-o", "out.png", *DEEP, "--boundary", "native", "--tile", 64, "--json")
    assert run(*command) == 0
    found = json.loads(capsys.readouterr().out)["files"][0]["stream"]
    assert found["recompute"] == 1 and found["flops"] == 2 * 200 * 150 * WEIGHTS and found["device"] == "cpu"
    assert shown["as a stream"].startswith("1.00 of the image's pixels, ")
    assert shown["stream: step"] == f"{found['rows']} rows"
    column = f"{found['held'] / 200 / 1024:.4g} KiB a column"
    assert shown["stream: held"] == f"{bytes_text(found['held'])}, {column}"
    assert shown["stream: peak"] == bytes_text(found["peak"])


def test_held_bytes_are_the_width_times_the_depth(nets, capsys):
    held = {
        size: planned(capsys, size, *DEEP, "--boundary", "native")["stream: held"]
        for size in ("400x300", "400x30000", "800x300")
    }
    assert held["400x300"] == held["400x30000"] != held["800x300"]
    assert held["400x300"].partition(", ")[2] == held["800x300"].partition(", ")[2]


def test_nothing_of_the_image_s_size_is_made(nets, capsys):
    """20 gigapixels."""
    assert planned(capsys, "2000x10000000", *DEEP)["auto"].startswith("a stream: ")


def test_tiles_where_they_are_as_cheap(nets, capsys):
    shown = planned(capsys, "400x300", "--model", "nets:shallow()")
    assert shown["auto"] == f"tiles, which take {float(shown['in tiles'][:4]):.2f} of the image's pixels"
    assert shown["as a stream"].startswith("1.0")


def test_what_cannot_stream_is_said(nets, capsys):
    assert run("plan", "400x300", "--model", "nets:spectrum()") == 0
    output = capsys.readouterr()
    shown = table(output.out)
    assert output.err.startswith(
        "halotile: warning: halo is 32, which is not exact: the model sees the whole image in 1"
    )
    reason = "_fft_r2c in module '1' cannot run on rows: every frequency takes all rows"
    assert shown["as a stream"] == f"not possible: {reason}"
    assert shown["model"] == "its operations were not counted, as it was not recorded"
    assert shown["auto"] == "tiles, as the halo is a number" and "stream: held" not in shown
    shown = planned(capsys, "400x300", "--model", "nets:deciding()", "--tile", 16)
    reason = "nonzero in module '1' cannot run on rows: what follows depends on what is in the image"
    assert shown["as a stream"] == f"not possible: {reason}" and shown["auto"] == f"tiles: {reason}"
    shown = planned(capsys, "400x300", "--model", "models:brighten")
    assert shown["as a stream"] == "not possible: only torch modules stream, not other callables"
    assert shown["auto"] == "tiles, as the halo is a number" and shown["halo"] == "32x32"


def test_a_fixed_halo_means_tiles(nets, capsys):
    shown = planned(capsys, "400x300", *DEEP, "--halo", 32, "--tile", 64)
    assert shown["auto"] == "tiles, as the halo is a number"
    assert shown["as a stream"].startswith("1.")


def test_a_memory_limit_cuts_a_wide_image(nets, capsys):
    free = planned(capsys, "3000x300", *DEEP)
    assert re.fullmatch(r"\d+ rows", free["stream: step"])
    shown = planned(capsys, "3000x300", *DEEP, "--memory-limit", "6M")
    found = re.fullmatch(r"\d+ rows, in (\d+) tiles with (\d+) columns", shown["stream: step"])
    assert int(found[1]) > 1 and int(found[2]) < 3000
    assert float(shown["as a stream"][:4]) > float(free["as a stream"][:4])
    refused = planned(capsys, "3000x300", *DEEP, "--memory-limit", "64K")
    assert re.match(r"not possible: a stream needs .* a column, also in tiles, and memory has ", refused["as a stream"])
    assert refused["auto"].startswith("tiles: a stream needs ")


def test_statistics_of_the_whole_image(nets, capsys):
    shown = planned(capsys, "400x300", "--model", "nets:normed()")
    assert shown["auto"] == "tiles, as the halo is a number" and shown["as a stream"].startswith("1.41")
    shown = planned(capsys, "400x300", "--model", "nets:normed()", "--global-stats", "exact", "--tile", 16)
    assert shown["auto"].startswith("a stream: ")
    shown = planned(capsys, "400x300", "--model", "nets:normed()", "--global-stats", "frozen")
    assert shown["auto"].startswith("tiles")


@pytest.mark.parametrize("option", [("--device", "cpu"), ("--global-stats", "exact"), ("--memory-limit", "1G")])
def test_options_that_only_a_model_heeds(nets, capsys, option):
    assert run("plan", "400x300", *option) == 2
    assert_one_error(capsys, f"{option[0]} is only for a plan with --model")


def test_several_files_have_a_stream_each(nets, capsys):
    for name, width in (("a.png", 90), ("b.png", 120)):
        files.write_image(name, np.zeros((100, width, 3), np.uint8))
    command = ("restore", "a.png", "b.png", "-o", "out/", *DEEP, "--boundary", "native", "--schedule", "stream")
    assert run(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert [one["schedule"] for one in found] == ["stream"] * 2
    assert [one["stream"]["columns"] for one in found] == [90, 120]
    assert found[0]["stream"]["held"] * 4 == found[1]["stream"]["held"] * 3


# ---- how near a run came ---------------------------------------------------------------------------------------------


def test_the_share_of_the_machine_s_peak(monkeypatch):
    restorer = TiledRestorer(seeded(lambda: Chain(4)), schedule="stream", halo="exact", boundary="native")
    with monkeypatch.context() as patched:  # never measured by a run
        patched.setattr(peaks, "peak_of_machine", None)
        restorer(np.zeros((90, 80, 3), np.uint8))
    found = restorer.last_run.stream
    assert found.recompute == 1 and found.seconds > 0
    assert found.share_of_peak(2 * found.flops / found.seconds) == pytest.approx(0.5)
    twice = dataclasses.replace(found, recompute=2.0, flops=2 * found.flops)
    assert twice.share_of_peak(1e9) == pytest.approx(found.share_of_peak(1e9))
    assert dataclasses.replace(found, seconds=None).share_of_peak() is None
    peak = peaks.peak_of_machine("cpu")
    assert peak > 0 and peaks.peak_of_machine("cpu") == peak  # measured once
    assert found.share_of_peak() == found.share_of_peak(peak) > 0
