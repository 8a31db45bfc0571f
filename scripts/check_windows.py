# SPDX-License-Identifier: MIT
"""Checks on Linux that halotile's C code works on 64-bit Windows.

    python scripts/check_windows.py

The core's C tests are built by a cross-compiler and, where Wine is installed, run: every level of row kernels must give
the hash that it gives here. halotile._core is compiled against the stable ABI, and linked against a python3.dll that
has the functions of this CPython's. Microsoft's own compiler is not tried.

Ends with 1 if anything fails. Needs `pip install ziglang`, NumPy and Python's headers.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[1]
CORE = [*sorted((ROOT / "csrc/core").glob("*.c")), *sorted((ROOT / "csrc/core/rows").glob("*.c"))]
TARGET = ("-target", "x86_64-windows-gnu")
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-sanitize=all", f"-I{ROOT / 'csrc/core'}")
TESTS = ("cpu", "bits", "plan", "band", "restore", "threads")
LEVELS = ("scalar", "avx2", "avx512")

# What CPython's own header for Windows says, as far as the stable ABI needs it.
PYCONFIG = """
#define MS_WINDOWS
#define MS_WIN64
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_WCHAR_T 2
#define ALIGNOF_LONG 4
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_MAX_ALIGN_T 16
#define HAVE_STDINT_H 1
#define HAVE_INTTYPES_H 1
#define HAVE_STDARG_PROTOTYPES 1
typedef long long Py_ssize_t;
#define HAVE_PY_SSIZE_T 1
#define PY_SSIZE_T_MAX 9223372036854775807LL
"""


def zig(*arguments: object) -> None:
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    subprocess.run(command, check=True)


def checked_core(folder: Path) -> list[str]:
    """A line for each test."""
    wine = shutil.which("wine64") or shutil.which("wine")
    lines = []
    for name in TESTS:
        program, source = folder / f"{name}.exe", ROOT / f"tests/c/check_{name}.c"
        zig("cc", *TARGET, "-std=gnu11", *FLAGS, source, *CORE, "-o", program)
        if wine is None:
            lines.append(f"check_{name}: built")
            continue
        environment = {**os.environ, "WINEDEBUG": "-all", "WINEPREFIX": str(folder / "wine")}
        if name == "bits":
            lines.append(_same_bits([wine, str(program)], environment, folder))
        else:
            lines.append(_output([wine, str(program)], environment))
    return lines


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


def _same_bits(command: list[str], environment: dict[str, str], folder: Path) -> str:
    native = folder / "bits"
    compiler = os.environ.get("CC", "cc")
    flags = ("-std=gnu11", "-O2", "-ffp-contract=off", f"-I{ROOT / 'csrc/core'}")
    subprocess.run(
        [compiler, *flags, ROOT / "tests/c/check_bits.c", *CORE, "-lm", "-lpthread", "-o", native], check=True
    )
    want = _output([str(native)], dict(os.environ))
    for level in LEVELS:
        found = _output(command, environment | {"HALOTILE_CPU": level})
        if found != want:
            raise SystemExit(f"{level}: {found}, and here {want}")
    return f"{want}, with {', '.join(LEVELS)}, as here"


def checked_binding(folder: Path) -> str:
    """Compiles and links halotile._core."""
    headers = folder / "python"
    shutil.copytree(sysconfig.get_path("include"), headers)
    (headers / "pyconfig.h").write_text(PYCONFIG)
    arrays = folder / "numpy"
    shutil.copytree(numpy.get_include(), arrays)
    config = arrays / "numpy" / "_numpyconfig.h"
    config.write_text(re.sub(r"(HAVE_ENDIAN_H) 1|(SIZEOF_LONG) 8", _of_windows, config.read_text()))
    names = {name for header in headers.rglob("*.h") for name in re.findall(r"\b_?Py\w+", header.read_text())}
    exported = sorted(name for name in names if hasattr(ctypes.pythonapi, name))
    (folder / "python3.def").write_text("LIBRARY python3.dll\nEXPORTS\n" + "\n".join(exported) + "\n")
    zig("dlltool", "-m", "i386:x86-64", "-d", folder / "python3.def", "-l", folder / "python3.lib")
    module, binding = folder / "_core.pyd", sorted((ROOT / "csrc/binding").glob("*.c"))
    includes = ("-isystem", headers, "-isystem", arrays, "-DPy_LIMITED_API=0x030b0000")
    zig("cc", *TARGET, "-std=c11", *FLAGS, *includes, "-shared", *binding, *CORE, folder / "python3.lib", "-o", module)
    return f"halotile._core: compiled and linked, {module.stat().st_size} bytes"


def _of_windows(found: re.Match[str]) -> str:
    return f"{found[2]} 4" if found[2] else f"NO_{found[1]}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for line in (*checked_core(Path(folder)), checked_binding(Path(folder))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
