# SPDX-License-Identifier: MIT
"""`python -m halotile selftest`: checks a device and prints a report that can be pasted into an issue.

A check passes, differs, or is not available, as when memory runs out; the report and the exit status tell these apart.
The device needs less than 256 MB.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .. import _core
from ..auto.memory import auto_tile_size
from ..engine import metal, torch_verbs
from ..engine.choose import engine_for
from ..engine.device import DeviceEngine
from ..engine.hazards import NEAR, TRIALS, tried
from ..engine.kernel_check import compare
from ..fragile import is_fragile
from ..memory import free_bytes, is_out_of_memory
from ..models.devices import ACCELERATORS, usable_device
from ..models.kinds import open_model
from ..restore import restore_tiled
from ..texts import bytes_text, named, one_line, quoted, shortened
from ..version import __version__

__all__ = ["STATUS", "checked_device", "report", "report_missing"]

HALO = 10

Outcome = Literal["fine", "differs", "not available", "failed"]
Line = str | tuple[str, Outcome]

FINE: Outcome = "fine"
DIFFERS: Outcome = "differs"
MISSING: Outcome = "not available"
FAILED: Outcome = "failed"

STATUS = {"PASS": 0, "FAIL": 1, "NOT AVAILABLE": 3}  # exit status by result; 2 is that of a wrong command line


def checked_device(name: str | None) -> Any:
    """The device of that name, by default MPS if available, else the CPU; or why this machine lacks it, as text.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return usable_device(name)
    except ValueError as error:
        if name.partition(":")[0] in ACCELERATORS:
            return str(error)
        raise


class Report:
    """Shows lines as they come, and keeps them in a file as JSON, which tells how far a test came that ended the
    process."""

    def __init__(self, device: str, show: Callable[[str], Any], file: str | None):
        self.show, self.file = show, file
        about = {"halotile": __version__, "torch": torch.__version__, "platform": platform.platform()}
        self.checks: list[dict[str, str]] = []
        self.document: dict[str, Any] = about | {"device": device, "result": "unfinished", "checks": self.checks}
        self._write()

    def add(self, section: str, text: str, outcome: str) -> None:
        self.show(text)
        self.checks.append({"section": section, "text": text.strip(), "outcome": outcome})
        self._write()

    def end(self) -> str:
        outcomes = {one["outcome"] for one in self.checks}
        result = "FAIL" if outcomes & {DIFFERS, FAILED} else "NOT AVAILABLE" if MISSING in outcomes else "PASS"
        self.document["result"] = result.lower()
        self._write()
        self.show(f"result: {result} ({self.document['device']})")
        return result

    def _write(self) -> None:
        if self.file is not None:
            Path(self.file).write_text(json.dumps(self.document, indent=1) + "\n")


def report(device: Any, show: Callable[[str], Any] = print, file: str | None = None) -> str:
    """Shows the report line by line, and writes it to a file as JSON. Returns the result, a key of STATUS."""
    device = torch.device(device)
    made = Report(str(device), show, file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for section, text, outcome in _lines(device):
            made.add(section, text, outcome)
    for warning in caught:
        made.add("warning", f"warning: {_said(warning.message)}", FINE)
    return made.end()


def report_missing(name: str, why: str, show: Callable[[str], Any] = print, file: str | None = None) -> str:
    """The report for a device that this machine lacks."""
    made = Report(name, show, file)
    for line in _versions(torch.device("cpu")):
        made.add("versions", line, FINE)
    made.add("device", why, MISSING)
    return made.end()


def _said(message: Warning | str) -> str:
    return shortened(message) if isinstance(message, str) else one_line(message)


def _lines(device: Any) -> Iterator[tuple[str, str, str]]:
    for section in (_versions, _kernels, _operations, _engine, _runs, _timings, _memory):
        name = section.__name__.removeprefix("_")
        try:
            for line in section(device):
                yield name, *((line, FINE) if isinstance(line, str) else line)
        except Exception as error:  # the rest of the report is needed even more
            yield name, f"{name}: {named(error)}", _outcome_of(error)


def _outcome_of(error: Exception) -> Outcome:
    return MISSING if is_out_of_memory(error) else FAILED


# ---- what runs -------------------------------------------------------------------------------------------------------


def _versions(device: Any) -> Iterator[str]:
    yield f"halotile {__version__} ({_core.rows_name()} row kernels)"
    yield f"torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    yield f"{platform.platform()}, {_processor()}"
    mps = torch.backends.mps
    yield f"MPS: built {'in' if mps.is_built() else 'without'}, {'' if mps.is_available() else 'not '}available"


def _processor() -> str:
    if sys.platform == "darwin":
        ask = ["sysctl", "-n", "machdep.cpu.brand_string", "hw.memsize"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split("\n")
        if len(answer) > 1 and answer[1].isdigit():
            return f"{answer[0]}, {bytes_text(int(answer[1]))}"
    return platform.machine()


def _chosen(device: Any) -> Any:
    return engine_for(open_model(Network().to(device), device=None, dtype=None, tensors=True), None)


def _engine(device: Any) -> Iterator[Line]:
    name = _chosen(device).name
    yield f"engine: {name} on {device}", MISSING if metal.serves(device) and name != "mps" else FINE


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _kernels(device: Any) -> Iterator[Line]:
    """Compares each kernel with torch operations on the CPU, in units in the last place, and caches the outcome."""
    if device.type == "cpu":
        return
    yield f"{'kernel, against the CPU':<24}{'Metal':>12}{'torch':>12}"
    theirs = {result.kernel: result for result in compare(torch_verbs, device)}
    ours = {}
    if metal.serves(device):
        try:
            metal.prepare(device)
            ours = {result.kernel: result for result in compare(torch.ops.halotile, device)}
            metal.keep_result([kernel for kernel, result in ours.items() if not result.fine])
        except RuntimeError as error:
            yield f"the Metal kernels cannot be used: {quoted(error)}", MISSING
    for kernel, result in theirs.items():
        results = ours.get(kernel), result
        fine = all(r is None or r.fine for r in results)
        text = f"  {kernel:<22}" + "".join(f"{_units(r):>12}" for r in results)
        yield text + ("" if fine else "   <-- differs"), FINE if fine else DIFFERS


REMEDIES = {
    "views": "batches are of 1 here",
    "kernels": "models with kernels of 256 and more are refused on {}",
    "channels_last": "windows are contiguous here",
}


def _operations(device: Any) -> Iterator[Line]:
    """What models do and some versions of macOS do wrong: see hazards.py."""
    if not is_fragile(device):
        return
    for one in tried(device):
        text = f"{TRIALS[one.name]}: "
        if one.apart is None:
            yield f"{text}not available: {one.why_not}", MISSING
        elif one.fine:
            yield f"{text}{one.apart:.2g} of the largest value from the CPU"
        else:
            text += f"{one.apart:.2g} of the largest value from the CPU, above {NEAR:g}   <-- differs"
            yield f"{text}; {REMEDIES[one.name].format(device)}", DIFFERS


def _units(result: Any) -> str:
    if result is None:
        return "-"
    return "same bits" if result.worst == 0 else f"{result.worst} units"


# ---- tiled runs ------------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """A stand-in for a restoration model: receptive-field radius below HALO, stride 2, scale 2, fixed weights."""

    phase, scale = 2, 2

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 4, 2, 1),
            torch.nn.LeakyReLU(0.1),
            torch.nn.Conv2d(16, 16, 3, 1, 1),
            torch.nn.LeakyReLU(0.1),
            torch.nn.Conv2d(16, 48, 3, 1, 1),
            torch.nn.PixelShuffle(4),
        )
        with torch.no_grad():
            for parameter in self.parameters():
                spread = parameter[0].numel() ** -0.5
                parameter.copy_(
                    (torch.rand(parameter.shape, generator=generator, device="cpu", dtype=torch.float32) * 2 - 1)
                    * spread
                )

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.layers(windows)


def _runs(device: Any) -> Iterator[Line]:
    """Compares tiles with whole-image inference on the same device, and with the host engine."""
    network = Network().eval()
    on_device = Network().eval().to(device)
    image = np.random.default_rng(0).integers(0, 256, (217, 263, 3), np.uint8)
    options = {"tile_size": 64, "halo": HALO, "phase": network.phase, "out_dtype": "float32"}
    want = _whole(image, on_device, device)
    engines = ["torch"] if device.type == "cpu" else ["host", "torch"]
    engines += ["mps"] if metal.serves(device) else []
    for engine in engines:
        for blend in ("average", "gaussian"):
            name = f"tiled run, engine {engine}, {blend}"
            try:
                got = restore_tiled(image, on_device, engine=engine, blend=blend, **options)
            except (RuntimeError, ValueError) as error:
                works = engine != "mps" or _chosen(device).name == "mps"
                yield f"{name}: {one_line(error)}", _outcome_of(error) if works else MISSING
                continue
            beside_whole = float(np.abs(got - want).max())
            reference = restore_tiled(image, network, engine="host", device="cpu", blend=blend, **options)
            beside_host = float(np.abs(got - reference).max())
            text = f"{name}: max abs diff {beside_whole:.2g} from whole-image inference, {beside_host:.2g} from the CPU"
            fine = beside_whole < 1e-4 and beside_host < 1e-3
            yield text if fine else f"{text}   <-- differs", FINE if fine else DIFFERS


def _whole(image: np.ndarray, network: Any, device: Any) -> np.ndarray:
    below, right = (-(side + 2 * HALO) % network.phase for side in image.shape[:2])
    padded = np.pad(image, ((HALO, HALO + below), (HALO, HALO + right), (0, 0)), mode="reflect")
    batch = torch.from_numpy(padded.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None].contiguous()
    with torch.inference_mode():
        output = network(batch.to(device)).cpu()[0].permute(1, 2, 0).numpy()
    start, (height, width) = HALO * network.scale, (side * network.scale for side in image.shape[:2])
    return output[start : start + height, start : start + width]


# ---- timings and memory ----------------------------------------------------------------------------------------------


def _timings(device: Any) -> Iterator[str]:
    image = np.zeros((1080, 1920, 3), np.uint8)
    network = Network().eval().to(device)
    options = {"tile_size": 256, "halo": HALO, "phase": 2}
    restore_tiled(image[:300, :300], network, **options)  # compiles what is compiled once
    _wait(device)
    started = time.perf_counter()
    restore_tiled(image, network, **options)
    yield f"1920x1080 x2 in tiles of 256: {time.perf_counter() - started:.3f} s"
    engine = _chosen(device)
    if isinstance(engine, DeviceEngine):
        yield f"one read of a 276x276 window: {_one_read(engine) * 1e6:.0f} us"


def _one_read(engine: DeviceEngine) -> float:
    image = torch.zeros((3, 400, 400), dtype=torch.uint8, device=engine.device)
    windows = torch.zeros((1, 3, 276, 276), dtype=torch.float32, device=engine.device)
    arguments = [400, 400], [0, 400], [0, 0, 0, 0], [0, 0, 0, 0], 0, 1, 255.0, 1.0, 0.0
    engine.verbs.read_tiles(windows, image, *arguments)
    _wait(engine.device)
    started = time.perf_counter()
    for _ in range(50):
        engine.verbs.read_tiles(windows, image, *arguments)
    _wait(engine.device)
    return (time.perf_counter() - started) / 50


def _wait(device: Any) -> None:
    module = getattr(torch, device.type, None)
    if hasattr(module, "synchronize"):
        module.synchronize()


def _memory(device: Any) -> Iterator[str]:
    free = free_bytes(device)
    if free is not None:
        yield f"memory: {bytes_text(free)} free, tile_size='auto' would be {auto_tile_size(device)}"
    module = getattr(torch, device.type, None)
    for name in ("recommended_max_memory", "driver_allocated_memory", "current_allocated_memory"):
        if hasattr(module, name):
            yield f"  {name}: {bytes_text(getattr(module, name)())}"
