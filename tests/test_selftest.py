# SPDX-License-Identifier: MIT
"""`python -m halotile selftest`: what a Mac user pastes into an issue."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from halotile.cli.selftest import report  # noqa: E402
from halotile.engine import metal  # noqa: E402
from halotile.engine.kernel_check import Comparison  # noqa: E402


def run(device):
    lines = []
    return report(device, lines.append), "\n".join(lines)


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
    fine, text = run("fakemps")
    assert fine, text
    assert text.count("same bits   same bits") == 23
    for line in (
        "engine: mps on fakemps",
        "engine mps, gaussian: max abs diff",
        "GiB free",
        "recommended_max_memory: 16 GiB",
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
    fine, text = run("fakemps")
    assert not fine
    assert any("finish_bf16" in line and "700 units" in line and "<--" in line for line in text.split("\n"))
    assert "result: FAIL (fakemps" in text


def test_missing_functions_and_failures_are_reported(fake_mps, monkeypatch):
    monkeypatch.setattr(metal, "_failures", {})
    monkeypatch.setattr(metal, "_warned", set())
    monkeypatch.setitem(metal.LIBRARIES, "fakemps", ("PrivateUse1", metal._libtorch))
    fine, text = run("fakemps")
    assert not fine
    assert "the Metal kernels cannot be used: halotile: this torch has no function aoti_torch_mps_" in text
    assert "engine: torch on fakemps" in text
    assert "warning: the Metal kernels are not used" in text
    assert "engine torch, average: max abs diff" in text

    monkeypatch.setattr("halotile.cli.selftest._whole", lambda *args: 1 / 0)
    assert "runs: ZeroDivisionError" in run("cpu")[1]
