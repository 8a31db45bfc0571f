# SPDX-License-Identifier: MIT
"""`python -m halotile selftest`: what a Mac user pastes into an issue."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from halotile import cli  # noqa: E402
from halotile.cli.selftest import report  # noqa: E402
from halotile.engine import hazards, metal  # noqa: E402
from halotile.engine.kernel_check import Comparison  # noqa: E402


def run(device, file=None):
    lines = []
    return report(device, lines.append, file), "\n".join(lines)


def test_the_command_on_a_machine_without_metal():
    done = subprocess.run([sys.executable, "-m", "halotile", "selftest"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("halotile ", "torch ", "MPS: built", "engine: host on cpu", "1920x1080 x2", "PASS (cpu)"):
        assert text in done.stdout
    bad = [sys.executable, "-m", "halotile", "selftest", "--device", "moon"]
    done = subprocess.run(bad, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "device 'moon' is not available" in done.stderr


def test_the_report_on_the_device(fake_mps):
    result, text = run("fakemps")
    assert result == "PASS", text
    assert text.count("same bits   same bits") == 23
    for line in (
        "engine: mps on fakemps",
        "engine mps, gaussian: max abs diff",
        "GiB free",
        "recommended_max_memory: 16 GiB",
        "convolution of a view made by chunk(), in a batch: ",
        "convolution with a kernel of 256: ",
        "convolutions of channels_last windows: ",
    ):
        assert line in text
    fake_mps.take_violations()


def test_a_kernel_that_is_wrong_is_named(fake_mps, monkeypatch):
    import halotile.cli.selftest

    own = halotile.cli.selftest.compare

    def wrong(verbs, device):
        for result in own(verbs, device):
            off = verbs is torch.ops.halotile and result.kernel == "finish_bf16"
            yield Comparison(result.kernel, 700) if off else result

    monkeypatch.setattr(halotile.cli.selftest, "compare", wrong)
    result, text = run("fakemps")
    assert result == "FAIL"
    assert any("finish_bf16" in line and "700 units" in line and "<--" in line for line in text.split("\n"))
    assert "result: FAIL (fakemps" in text


def test_missing_functions_and_failures_are_reported(fake_mps, monkeypatch):
    monkeypatch.setattr(metal, "_failures", {})
    monkeypatch.setattr(metal, "_warned", set())
    monkeypatch.setitem(metal.LIBRARIES, "fakemps", ("PrivateUse1", metal._libtorch))
    result, text = run("fakemps")
    assert result == "NOT AVAILABLE"
    assert "the Metal kernels cannot be used: halotile: this torch has no function aoti_torch_mps_" in text
    assert "engine: torch on fakemps" in text
    assert "warning: the Metal kernels are not used" in text
    assert "engine torch, average: max abs diff" in text

    monkeypatch.setattr("halotile.cli.selftest._whole", lambda *args: 1 / 0)
    assert "runs: ZeroDivisionError" in run("cpu")[1]
    assert run("cpu")[0] == "FAIL"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("views", "batches are of 1 here"),
        ("kernels", "models with kernels of 256 and more are refused on fakemps"),
        ("channels_last", "windows are contiguous here"),
    ],
)
def test_a_convolution_that_is_wrong_is_named_with_what_is_done(fake_mps, monkeypatch, name, remedy):
    getattr(fake_mps, f"set_wrong_{name}")(True)
    result, text = run("fakemps")
    line = next(line for line in text.split("\n") if line.startswith(hazards.TRIALS[name]))
    assert result == "FAIL" and remedy in line and "<-- differs" in line


def test_it_needs_less_than_256_mb(fake_mps):
    """As hosted machines have it: about 1 GB, of which others use some."""
    fake_mps.empty_cache()
    before = fake_mps.current_allocated_memory()
    fake_mps.reset_counts()
    fake_mps.set_memory_limit(before + 256_000_000)
    assert run("fakemps")[0] == "PASS"
    assert fake_mps.counts()["peak_bytes"] - before < 256_000_000


def test_memory_that_runs_out_is_no_difference(fake_mps, tmp_path):
    fake_mps.set_memory_limit(fake_mps.current_allocated_memory() + 100)
    result, text = run("fakemps", str(tmp_path / "report.json"))
    assert result == "NOT AVAILABLE" and "differs" not in text
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["result"] == "not available"
    assert {one["outcome"] for one in document["checks"]} == {"fine", "not available"}


def test_the_report_as_json(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert cli.main(["selftest", "--device", "cpu", "--report", str(file)]) == 0
    document, shown = json.loads(file.read_text()), capsys.readouterr().out
    assert document["result"] == "pass" and document["device"] == "cpu" and document["torch"] == torch.__version__
    assert all(one["text"] in shown and one["outcome"] == "fine" for one in document["checks"])
    assert {"versions", "engine", "runs", "timings"} <= {one["section"] for one in document["checks"]}


def test_the_report_of_a_test_that_ends_the_process(tmp_path, monkeypatch):
    """MPS aborts where an assertion of Apple's fails: what came before is in the file."""
    file = tmp_path / "report.json"
    code = "import os, halotile.cli.selftest as s; s._runs = lambda device: os.abort(); s._runs.__name__ = '_runs'\n"
    code += f"s.report('cpu', file={str(file)!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode < 0
    document = json.loads(file.read_text())
    assert document["result"] == "unfinished" and document["checks"][-1]["section"] == "engine"


@pytest.mark.parametrize("device", ["mps", "xpu", "cuda:99"])
def test_a_device_that_is_missing_is_not_available(tmp_path, capsys, monkeypatch, device):
    for backend in (torch.backends.mps, torch.xpu, torch.cuda):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    file = tmp_path / "report.json"
    assert cli.main(["selftest", "--device", device, "--report", str(file)]) == 3
    shown, document = capsys.readouterr().out, json.loads(file.read_text())
    assert f"device '{device}' is not available: this PyTorch finds no" in shown
    assert f"result: NOT AVAILABLE ({device})" in shown and "torch " in shown
    assert document["result"] == "not available" and document["checks"][-1]["outcome"] == "not available"


def test_what_differs_is_told_by_the_exit_status(fake_mps, capsys):
    fake_mps.set_wrong_kernels(True)
    assert cli.main(["selftest", "--device", "fakemps"]) == 1
    assert "result: FAIL (fakemps" in capsys.readouterr().out
