# SPDX-License-Identifier: MIT
"""The C core without Python: it compiles alone, needs libc only, and its C programs pass under sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "csrc" / "core"
SOURCES = sorted(map(str, [*CORE.glob("*.c"), *CORE.glob("rows/*.c")]))
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{CORE}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CC = os.environ.get("CC", "cc")

pytestmark = pytest.mark.skipif(shutil.which(CC) is None, reason=f"no C compiler {CC}")


def build(target, program, *flags, compiler=CC):
    source = [str(ROOT / "tests" / "c" / f"{program}.c")]
    subprocess.run([compiler, *FLAGS, *flags, *SOURCES, *source, "-lm", "-o", str(target)], check=True)
    return target


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_core_compiles_alone_and_needs_libc_only(tmp_path):
    subprocess.run([CC, *FLAGS, "-O3", "-c", *SOURCES], cwd=tmp_path, check=True)
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    objects = list(map(str, tmp_path.glob("*.o")))
    assert len(objects) == len(SOURCES)
    wanted = {line.split()[-1] for line in run(nm, "-u", *objects).splitlines() if " U " in line}
    libc = {"sin", "cos", "exp", "getenv", "strcmp", "memcpy", "memset", "memmove", "lrintf", "rintf", "nearbyintf"}
    libc |= {"malloc", "free"}  # ht_restore alone
    compiler = {"__cpu_model", "__cpu_indicator_init", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
    assert {name for name in wanted if not name.startswith("ht_")} <= libc | compiler


def test_plan(tmp_path):
    assert "ok" in run(build(tmp_path / "check_plan", "check_plan", "-O2", *SANITIZE))


def test_band(tmp_path):
    assert "ok" in run(build(tmp_path / "check_band", "check_band", "-O1", *SANITIZE))


def test_restore(tmp_path):
    assert "ok" in run(build(tmp_path / "check_restore", "check_restore", "-O1", *SANITIZE))


def test_every_row_kernel_gives_the_bits_of_scalar(tmp_path):
    print(run(build(tmp_path / "check_rows", "check_rows", "-O3")))
    print(run(build(tmp_path / "check_rows_sanitized", "check_rows", "-O1", *SANITIZE)))


def test_neon_row_kernels_under_emulation(tmp_path):
    compiler, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    program = build(tmp_path / "check_rows", "check_rows", "-O2", "-static", compiler=compiler)
    assert "neon" in run(emulator, program)
