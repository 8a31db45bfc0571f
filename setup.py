# SPDX-License-Identifier: MIT
"""Builds halotile._core: plain setuptools, no torch.

HALOTILE_WERROR=1                       warnings are errors (CI)
HALOTILE_SANITIZE=address,undefined     build with sanitizers (run with the runtime preloaded: see `make sanitize`)
"""

import os
import sysconfig
from glob import glob

import numpy
from setuptools import Extension, setup

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no limited API: it gets a wheel of its own
WERROR = os.environ.get("HALOTILE_WERROR") == "1"
SANITIZE = os.environ.get("HALOTILE_SANITIZE")

flags = ["-std=c11", "-Wall", "-Wextra", "-ffp-contract=off", "-fvisibility=hidden"]
flags += (
    ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    if SANITIZE
    else ["-O3", "-g0"]
)
flags += ["-Werror"] if WERROR else []

core = Extension(
    "halotile._core",
    sources=sorted(glob("csrc/core/*.c") + glob("csrc/core/rows/*.c") + glob("csrc/binding/*.c")),
    depends=sorted(glob("csrc/**/*.h", recursive=True)),
    include_dirs=["csrc/core", numpy.get_include()],
    define_macros=[] if FREE_THREADED else [("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=flags,
    extra_link_args=[f"-fsanitize={SANITIZE}"] if SANITIZE else [],
    libraries=["m"],
    py_limited_api=not FREE_THREADED,
)

setup(ext_modules=[core], options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}})
