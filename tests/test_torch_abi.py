# SPDX-License-Identifier: MIT
"""csrc/torch/torch_abi.h against the torch that is installed: its headers, and the names that libtorch_cpu exports.

halotile declares libtorch's C functions itself and finds them at run time, so no compiler ever sees both declarations;
here one does. (scripts/check_macos.py does the same with the headers and libraries of torch's macOS wheels.)
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_macos import HEADERS, declaration_checks, functions_of

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
SHIM = ROOT / "csrc" / "torch"
ABI = SHIM / "torch_abi.h"
INSTALLED = Path(torch.__file__).parent
CXX = os.environ.get("CXX") or shutil.which("g++") or "clang++"

needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler {CXX}")


FUNCTIONS = functions_of(ABI.read_text())
OPTIONAL = [function for function in FUNCTIONS if function.since]


def declared(name):
    return any(re.search(rf"\b{name}\(", (INSTALLED / "include" / header).read_text()) for header in HEADERS)


def compiles(target, text, version, *flags):
    """Whether torch's headers and `text`, a torch_abi.h, declare what a version of torch has alike."""
    (target / "torch_abi.h").write_text(text)
    (target / "check.cpp").write_text(declaration_checks(FUNCTIONS, version))
    command = [CXX, "-std=c++17", "-fsyntax-only", "-DUSE_MPS=1", f"-isystem{INSTALLED / 'include'}", *flags]
    done = subprocess.run([*command, "check.cpp"], cwd=target, capture_output=True, text=True, check=False)
    print(done.stderr)
    return done.returncode == 0


@needs_compiler
def test_functions_are_declared_as_torch_declares_them(tmp_path):
    assert compiles(tmp_path, ABI.read_text(), torch.__version__)


@needs_compiler
def test_nothing_newer_than_the_floor_is_required(tmp_path):
    assert compiles(tmp_path, ABI.read_text(), "2.10", "-DTORCH_TARGET_VERSION=0x020a000000000000")


@pytest.mark.parametrize("function", OPTIONAL, ids=lambda function: function.name)
def test_optional_functions_come_with_the_version_told(function):
    assert declared(function.name) == function.expected(torch.__version__)
    if not declared(function.name):
        pytest.skip(f"comes with torch {function.since}; this is {torch.__version__}: its parameters are not checked")


@needs_compiler
@pytest.mark.parametrize(
    "old, new",
    [
        ("aoti_torch_get_size, (AtenTensorHandle, int64_t,", "aoti_torch_get_size, (AtenTensorHandle, int32_t,"),
        ("aoti_torch_get_dim, (AtenTensorHandle,", "aoti_torch_get_dim, (StableListHandle,"),
        ("AOTIMetalKernelFunctionHandle, unsigned, int64_t)", "AOTIMetalKernelFunctionHandle, unsigned, uint64_t)"),
        ("X(int32_t, aoti_torch_dtype_uint8", "X(AOTITorchError *, aoti_torch_dtype_uint8"),
        ("typedef uint64_t StableIValue", "typedef int64_t StableIValue"),
        ("aoti_torch_library_def,", "aoti_torch_library_define,"),
        ("0x020a000000000000ull", "0x0210000000000000ull"),
    ],
)
def test_a_wrong_declaration_is_caught(tmp_path, old, new):
    text = ABI.read_text()
    assert old in text, old
    assert not compiles(tmp_path, text.replace(old, new, 1), torch.__version__)


def test_names_are_exported():
    suffix = "dylib" if sys.platform == "darwin" else "so"
    library = ctypes.CDLL(str(INSTALLED / "lib" / f"libtorch_cpu.{suffix}"))
    wanted = [function for function in FUNCTIONS if function.expected(torch.__version__)]
    if sys.platform != "darwin":
        wanted = [function for function in wanted if "MPS" not in function.list]
    assert [function.name for function in wanted if not hasattr(library, function.name)] == []


def test_no_torch_header_is_included_and_no_function_is_listed_for_nothing():
    sources = "".join(file.read_text() for file in [*SHIM.glob("*.cpp"), *SHIM.glob("*.h")])
    assert not re.search(r"#include\s*[<\"](torch/|ATen/|c10/)", sources)
    assert [function.name for function in FUNCTIONS if f"torch.{function.name}" not in sources] == []
