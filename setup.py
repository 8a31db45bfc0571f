# SPDX-License-Identifier: MIT
"""Builds halotile._core (C) and halotile._torch (C++): plain setuptools, no torch.

HALOTILE_WERROR=1                       warnings are errors (CI)
HALOTILE_SANITIZE=address,undefined     build with sanitizers (run with the runtime preloaded: see `make sanitize`)
"""

import os
import re
import sys
import sysconfig
import tomllib
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

WINDOWS = sys.platform == "win32"
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no limited API: it gets a wheel of its own
WERROR = os.environ.get("HALOTILE_WERROR") == "1"
SANITIZE = os.environ.get("HALOTILE_SANITIZE")

flags = ["-Wall", "-Wextra", "-ffp-contract=off", "-fvisibility=hidden"]
flags += (
    ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    if SANITIZE
    else ["-O3", "-g0"]
)
flags += ["-Werror"] if WERROR else []

# Microsoft's compiler: C11 with its atomics, and no floating-point shortcuts. Not its warnings of unused parameters and
# functions (4100, 4505), narrower numbers (4244, 4267) and constant conditions (4127), which -Wextra does not have.
msvc_flags = ["/std:c11", "/experimental:c11atomics", "/O2", "/fp:precise", "/utf-8", "/W3"]
msvc_flags += ["/wd4100", "/wd4505", "/wd4244", "/wd4267", "/wd4127", *(["/WX"] if WERROR else [])]

common = {
    "depends": sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/torch/*.metal")),
    "define_macros": [] if FREE_THREADED else [("Py_LIMITED_API", "0x030b0000")],
    "extra_link_args": [f"-fsanitize={SANITIZE}"] if SANITIZE else [],
    "py_limited_api": not FREE_THREADED,
}

core = Extension(
    "halotile._core",
    sources=sorted(glob("csrc/core/*.c") + glob("csrc/core/rows/*.c") + glob("csrc/binding/*.c")),
    include_dirs=["csrc/core", numpy.get_include()],
    extra_compile_args=["-std=c11", *flags],
    libraries=[] if WINDOWS else ["m"],
    **common,
)

shim = Extension(
    "halotile._torch",
    sources=sorted(glob("csrc/torch/*.cpp")),
    include_dirs=["csrc/torch", "csrc/core", "build"],
    extra_compile_args=["-std=c++17", *flags],
    libraries=["dl"] if sys.platform == "linux" else [],
    language="c++",
    **common,
)


def readme():
    """README.md, with its links into the sources made absolute: pictures to the files, others to their pages."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    home = project["urls"]["Homepage"]

    def absolute(found):
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({home}/{kind}/main/{found[3]})"

    text = Path("README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", absolute, text)


class Build(build_ext):
    """Makes the Metal kernels a string of halotile._torch, and gives each compiler its own words."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            core.extra_compile_args = msvc_flags
        super().build_extensions()

    def run(self):
        kernels = Path("csrc/torch/tiles.metal").read_text(encoding="ascii")
        Path("build").mkdir(exist_ok=True)
        Path("build/tiles_metal.h").write_text(f'R"metal({kernels})metal"\n', encoding="ascii")
        super().run()


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    ext_modules=[core] if WINDOWS else [core, shim],  # there is no Apple GPU
    cmdclass={"build_ext": Build},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
