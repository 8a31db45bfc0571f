# SPDX-License-Identifier: MIT
"""Builds the emulated device: the compiler's plain commands, once for each state of the sources, torch and compiler.

Three libraries come out of it: `fake_mps_device.so` (an extension module: the device), `fake_mps_runtime.so` (torch's
functions that run Metal kernels) and `fake_mps_runtime_bytes.so` (the same, with what torch 2.14 adds).
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TILES = ROOT / "csrc" / "torch" / "tiles.metal"
BYTES = "HALOTILE_ARGUMENT_BYTES"
DEVICE, RUNTIME, RUNTIME_BYTES = "fake_mps_device.so", "fake_mps_runtime.so", "fake_mps_runtime_bytes.so"
TORCH = Path(torch.__file__).parent


class NoCompiler(RuntimeError):
    """There is no C++ compiler: the device cannot be built here."""


def compiler() -> str:
    named = os.environ.get("CXX", "g++")
    found = shutil.which(named)
    if found is None:
        raise NoCompiler(f"the emulated device needs a C++20 compiler, and there is no {named} (set CXX)")
    return found


def build() -> Path:
    """The folder that holds the three libraries; built unless it is there."""
    cxx = compiler()
    folder = cache() / fingerprint(cxx)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            compile_and_link(cxx, Path(scratch), made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster
                    raise
    return folder


def cache() -> Path:
    return Path(os.environ.get("HALOTILE_FAKE_MPS_CACHE") or ROOT / "build" / "fake_mps")


def fingerprint(cxx: str) -> str:
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(f"{torch.__version__} {torch.__file__} {sysconfig.get_path('include')} {version}".encode())
    for path in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h"), HERE / "build.py", TILES]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


# ---- commands --------------------------------------------------------------------------------------------------------


def compile_and_link(cxx: str, scratch: Path, made: Path) -> None:
    generate(cxx, scratch)
    unroll = ["--param=max-completely-peel-times=64", "--param=max-completely-peeled-insns=2000"]  # their UNPACK
    tiles = ["-O3", *unroll, "-ffp-contract=off", "-Wno-attributes", f'-DTILES_FILE="{TILES}"']
    slots = [*tiles, f'-DKERNELS_FILE="{scratch / "kernels_slots.inc"}"']
    several = [*tiles, f'-DKERNELS_FILE="{scratch / "kernels_bytes.inc"}"', f"-D{BYTES}=1"]
    units = {  # object: source, flags; the slowest first
        "operations": ("operations.cpp", ["-O1"]),
        "tensors": ("tensors.cpp", ["-O1"]),
        "python": ("python.cpp", ["-O1"]),
        "kernels_slots": ("kernels.cpp", slots),
        "kernels_bytes": ("kernels.cpp", several),
        "memory": ("memory.cpp", ["-O1"]),
        "runtime": ("runtime.cpp", ["-O1", f'-DSOURCE_FILE="{scratch / "source.inc"}"']),
        "buffers": ("buffers.cpp", ["-O1"]),
        "ledger": ("ledger.cpp", ["-O1"]),
        "runtime_bytes": ("runtime_bytes.cpp", ["-O1"]),
    }
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(command, [cxx, *compile_flags(), *flags, "-c", str(HERE / source), "-o", f"{scratch / name}.o"])
            for name, (source, flags) in units.items()
        ]
        for job in jobs:
            job.result()
    link(cxx, scratch, made, DEVICE, ["operations", "tensors", "python", "memory", "ledger"], [])
    link(cxx, scratch, made, RUNTIME, ["runtime", "buffers", "kernels_slots", "kernels_bytes"], [str(made / DEVICE)])
    link(cxx, scratch, made, RUNTIME_BYTES, ["runtime_bytes"], [str(made / RUNTIME), str(made / DEVICE)])


def compile_flags() -> list[str]:
    include = TORCH / "include"
    return [
        *["-std=c++20", "-fPIC", "-Wall", "-Wextra", f"-I{HERE}"],
        *[f"-isystem{path}" for path in (include, include / "torch/csrc/api/include", sysconfig.get_path("include"))],
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]


def link(cxx: str, scratch: Path, made: Path, name: str, objects: list[str], libraries: list[str]) -> None:
    found = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    paths = ["-Wl,-rpath,$ORIGIN", f"-Wl,-rpath,{TORCH / 'lib'}"]
    files = [f"{scratch / each}.o" for each in objects]
    command([cxx, "-shared", f"-Wl,-soname,{name}", *files, *libraries, *found, *paths, "-o", str(made / name)])


def command(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"building the emulated device failed: {' '.join(words)}\n{done.stderr[-8000:]}")
    return done.stdout


# ---- what is generated from tiles.metal ------------------------------------------------------------------------------


def generate(cxx: str, scratch: Path) -> None:
    for name, define in (("kernels_slots.inc", []), ("kernels_bytes.inc", [f"-D{BYTES}=1"])):
        text = command([cxx, "-E", "-P", "-x", "c++", *define, str(TILES)])
        (scratch / name).write_text("".join(map(entry, kernels(text))))
    (scratch / "source.inc").write_text(f'R"HALOTILE({TILES.read_text("ascii")})HALOTILE"')


def entry(kernel: tuple[str, str, list[tuple[int, bool]]]) -> str:
    name, numbers, buffers = kernel
    attributes = ", ".join(f"{{{buffer}, {str(constant).lower()}}}" for buffer, constant in buffers)
    return f"KERNEL({name}, {numbers}, {attributes})\n"


def kernels(text: str) -> list[tuple[str, str, list[tuple[int, bool]]]]:
    """Of preprocessed Metal: every kernel's name, how many numbers it reads, each parameter's (buffer, is constant)."""
    check_address_spaces(text)
    found = []
    for match in re.finditer(r"\bkernel\s+void\s+(\w+)\s*\(", text):
        parameters, body = in_brackets(text, match.end() - 1)
        numbers = re.match(r"\s*\{.*?for \(int k = 0; k < (\w+); k\+\+\)", text[body:], re.DOTALL)
        if numbers is None:
            raise ValueError(f"tiles.metal: {match[1]} does not unpack its numbers first")
        *bound, position = re.split(r",(?![^\[]*\])", parameters)
        if not re.fullmatch(r"\s*uint3 \w+ \[\[thread_position_in_grid\]\]\s*", position):
            raise ValueError(f"tiles.metal: the last parameter of {match[1]} is not its position: {position.strip()}")
        found.append((match[1], numbers[1], [attributes(match[1], parameter) for parameter in bound]))
    if not found or len(found) != len(re.findall(r"\bkernel\b", text)):
        raise ValueError("tiles.metal: kernels that cannot be told from its text")
    return found


def attributes(kernel: str, parameter: str) -> tuple[int, bool]:
    match = re.fullmatch(r"\s*(constant|device) [\w\s]+[*&]\s*\w+ \[\[buffer\((\d+)\)\]\]\s*", parameter)
    if match is None:
        raise ValueError(f"tiles.metal: {kernel} has a parameter without address space or buffer: {parameter.strip()}")
    return int(match[2]), match[1] == "constant"


def in_brackets(text: str, start: int) -> tuple[str, int]:
    """What the bracket at `start` encloses, and where its closing one ends."""
    depth = 0
    for k in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[k], 0)
        if depth == 0:
            return text[start + 1 : k], k + 1
    raise ValueError("tiles.metal: unbalanced brackets")


def check_address_spaces(text: str) -> None:
    """Metal wants one for every pointer; C++ would not miss it."""
    for function, parameters in re.findall(r"\bstatic inline \w+ (\w+)\(([^()]*)\)", text):
        for parameter in parameters.split(","):
            if re.search(r"[*&]", parameter) and not re.search(r"\b(device|constant|thread)\b", parameter):
                raise ValueError(f"tiles.metal: {function} has a pointer without address space: {parameter.strip()}")
