# SPDX-License-Identifier: MIT
"""Checks on Linux that halotile's two extension modules will load on macOS arm64, and find what they need in torch.

    python scripts/check_macos.py                               torch 2.10.0, 2.13.0, 2.14.1, and 2.15.0 if it is there
    python scripts/check_macos.py --version 2.14.0 --wheels DIR

halotile._core and halotile._torch are built for macOS by a cross-compiler; what they leave undefined must be symbols of
CPython, libc++ and libSystem. torch's macOS wheels are downloaded (about 100 MB each, kept in --wheels): every function
that csrc/torch/torch_abi.h lists must be exported by libtorch_cpu.dylib, from the version on that the list tells, and
be declared alike by the wheel's own headers. Nothing is run.

Prints tables and ends with 1 if anything is missing. Needs `pip install ziglang lief`, NumPy and Python's headers.
"""

import argparse
import ctypes
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIM = ROOT / "csrc" / "torch"
VERSIONS = ["2.10.0", "2.13.0", "2.14.1"]
NEWEST = "2.15.0"  # checked too where its wheel can be had: not every index has it
MIN_OS = "14.0"
TARGET = f"aarch64-macos.{MIN_OS}"

# ---- torch_abi.h ----------------------------------------------------------------------------------------------------

LISTS = ["HT_TORCH_FUNCTIONS", "HT_TORCH_OPTIONAL", "HT_MPS_FUNCTIONS", "HT_MPS_OPTIONAL"]


@dataclass(frozen=True)
class Function:
    name: str
    list: str
    since: str | None  # the first version of torch that has it; None: all that halotile supports

    def expected(self, version):
        return self.since is None or numbers(version) >= numbers(self.since)


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def arguments(text):
    """What stands between a macro call's outer parentheses, split at its outer commas; text starts behind the "("."""
    parts, depth = [""], 1
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return [part.strip() for part in parts]
        if letter == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += letter
    raise ValueError(f"no closing parenthesis: {text[:60]}")


def functions_of(abi):
    """The functions that the lists of torch_abi.h name."""
    functions = []
    for macro in LISTS:
        body = re.search(rf"#define {macro}\(X\)((?:.*\\\n)*.*)", abi)
        if body is None:
            raise ValueError(f"torch_abi.h has no list {macro}")
        text = body[1].replace("\\\n", " ")
        for call in re.finditer(r"\bX\(", text):
            _, name, _, *since = arguments(text[call.end() :])
            functions.append(Function(name, macro, since[0].strip('"') if since else None))
    return functions


HEADERS = [
    "torch/csrc/inductor/aoti_torch/c/shim.h",
    "torch/csrc/inductor/aoti_torch/c/shim_mps.h",
    "torch/csrc/stable/c/shim.h",
]


def declaration_checks(functions, version):
    """C++ that compiles if torch's headers and torch_abi.h declare the functions that a version has alike."""
    lines = ["#include <type_traits>", *(f"#include <{header}>" for header in HEADERS), '#include "torch_abi.h"']
    lines += [
        "#define SAME(RESULT, NAME, PARAMETERS) \\",
        "    static_assert(std::is_same<decltype(&::NAME), RESULT (*) PARAMETERS>::value, #NAME);",
        "#define IF_DECLARED(RESULT, NAME, PARAMETERS, SINCE) DECLARED_##NAME(RESULT, NAME, PARAMETERS)",
    ]
    for function in functions:
        if function.since:
            body = "SAME(__VA_ARGS__)" if function.expected(version) else ""
            lines.append(f"#define DECLARED_{function.name}(...) {body}")
    lines += [f"{macro}({'IF_DECLARED' if macro.endswith('OPTIONAL') else 'SAME'})" for macro in LISTS]
    lines += [
        'static_assert(AOTI_TORCH_SUCCESS == 0, "success");',
        'static_assert(HT_TORCH_FLOOR_VERSION == TORCH_VERSION_2_10_0, "floor");',
    ]
    return "\n".join(lines) + "\n"


def missing(functions, exports, version):
    """Names that a version of torch should export and does not."""
    return [function.name for function in functions if function.expected(version) and function.name not in exports]


# ---- the modules ----------------------------------------------------------------------------------------------------

# What a module may leave to be found when it is loaded, besides CPython: the C++ runtime, /usr/lib/libc++.1.dylib.
CXX_RUNTIME = (
    "_ZNSt",  # members of classes in std, among them std::__1
    "_ZNKSt",  # const ones
    "_ZSt",  # functions in std: terminate
    "_ZTISt",  # type_info of std's exceptions
    "_ZTVSt",  # their tables of virtual functions
    "_Zn",  # operator new
    "_Zd",  # operator delete
    "__cxa_",  # exceptions, local statics
    "__gxx_personality_v0",
    "_Unwind_",
)
OF_TORCH = re.compile(r"^(aoti_|torch_)|\d(c10|at|torch|caffe2)(?=\d|[A-Z]|E)")


@dataclass
class Module:
    name: str
    cpu: str
    min_os: str
    libraries: list[str]
    exported: set[str]
    defined: set[str]  # also names that are not exported
    linked: set[str]  # found by the linker in libSystem
    undefined: set[str]  # to be found anywhere when the module is loaded


def is_python(name):
    return name.startswith(("Py", "_Py")) and hasattr(ctypes.pythonapi, name)


def strangers(undefined):
    """Names that neither this CPython exports (the compiler saw to it that they are limited API) nor libc++ has."""
    fine = {name for name in undefined if is_python(name) or name.startswith(CXX_RUNTIME)}
    return sorted((undefined - fine) | {name for name in undefined if OF_TORCH.search(name)})


def neon_rows(module):
    return {name for name in module.defined if name.startswith("ht_") and "neon" in name}


def faults_of(module):
    """What is wrong with a module; nothing if all is well."""
    wanted = f"PyInit_{module.name}"
    faults = [] if wanted in module.exported else [f"{wanted} is not exported"]
    faults += [f"{name} is exported too" for name in sorted(module.exported) if name.startswith(("ht_", "_Z"))]
    faults += [] if module.cpu == "ARM64" else [f"built for {module.cpu}"]
    faults += [] if module.min_os == MIN_OS else [f"needs macOS {module.min_os}"]
    others = [name for name in module.libraries if name != "/usr/lib/libSystem.B.dylib"]
    faults += [f"linked with {name}" for name in others]
    faults += [f"{name} is undefined" for name in strangers(module.undefined)]
    if module.name == "_core" and not neon_rows(module):
        faults.append("has no NEON row kernels")
    return faults


def zig(tool, *arguments):
    subprocess.run([sys.executable, "-m", "ziglang", tool, *map(str, arguments)], check=True)


def cross_build(target):
    """Builds both modules for macOS as setup.py would; returns their files."""
    import numpy

    # NumPy's headers are those of this machine, and ask for a header that macOS has elsewhere.
    (target / "endian.h").write_text("#include <machine/endian.h>\n")
    kernels = (SHIM / "tiles.metal").read_text(encoding="ascii")
    (target / "tiles_metal.h").write_text(f'R"metal({kernels})metal"\n', encoding="ascii")

    flags = ["-target", TARGET, "-O3", "-g0", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fvisibility=hidden"]
    flags += ["-DPy_LIMITED_API=0x030b0000", f"-I{target}"]
    flags += [f"-isystem{path}" for path in (sysconfig.get_path("include"), numpy.get_include())]
    core = sorted([*ROOT.glob("csrc/core/*.c"), *ROOT.glob("csrc/core/rows/*.c"), *ROOT.glob("csrc/binding/*.c")])
    link = ["-target", TARGET, "-shared", "-Wl,-undefined,dynamic_lookup"]
    zig("cc", "-std=c11", *flags, *link[2:], f"-I{ROOT / 'csrc' / 'core'}", *core, "-o", target / "_core.so")

    # Linked as C: otherwise a C++ library of the cross-compiler's would be put in.
    objects = [target / f"{source.stem}.o" for source in sorted(SHIM.glob("*.cpp"))]
    for source, made in zip(sorted(SHIM.glob("*.cpp")), objects, strict=True):
        zig("c++", "-std=c++17", *flags, f"-I{SHIM}", f"-I{ROOT / 'csrc' / 'core'}", "-c", source, "-o", made)
    zig("cc", *link, *objects, "-o", target / "_torch.so")
    return [target / "_core.so", target / "_torch.so"]


def mach_o(path):
    """A Mach-O file of one architecture, its at(0): lief needs the file to live as long as that is used."""
    import lief

    lief.logging.disable()
    file = lief.MachO.parse(str(path))
    if file is None or len(file) != 1:
        raise ValueError(f"{path} is not a Mach-O file of one architecture")
    return file


def bare(symbols):
    """C names: Mach-O's have one more underscore."""
    return {symbol.name.removeprefix("_") for symbol in symbols}


def module_of(path):
    file = mach_o(path)
    binary = file.at(0)
    imported = [s for s in binary.imported_symbols if s.name != "dyld_stub_binder"]
    linked = [s for s in imported if 0 < s.description >> 8 & 0xFF <= len(binary.libraries)]  # the library's number
    undefined = bare(imported) - bare(linked)
    return Module(
        name=path.stem,
        cpu=binary.header.cpu_type.name,
        min_os=".".join(map(str, binary.build_version.minos[:2])),
        libraries=[library.name for library in binary.libraries if Path(library.name).name != path.name],
        exported=bare(binary.exported_symbols),
        defined=bare(binary.symbols) - undefined,
        linked=bare(linked),
        undefined=undefined,
    )


# ---- torch's wheels -------------------------------------------------------------------------------------------------


def wheel_of(version, folder):
    """A wheel for macOS arm64 in a folder; downloaded if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        for wheel in sorted(folder.glob(f"torch-{version}-*macosx*arm64.whl")):
            return wheel
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", "3.11", "--platform", "macosx_14_0_arm64"]
        command += ["--platform", "macosx_11_0_arm64", f"torch=={version}", "-d", str(folder)]
        subprocess.run(command, check=True)
    raise FileNotFoundError(f"no macOS wheel of torch {version}")


def versions_to_be_had(folder):
    """VERSIONS, and NEWEST if its wheel is in the folder or can be downloaded."""
    try:
        wheel_of(NEWEST, folder)
    except (subprocess.CalledProcessError, FileNotFoundError):
        print(f"torch {NEWEST}: its wheel for macOS cannot be had here; not checked")
        return VERSIONS
    return [*VERSIONS, NEWEST]


def exports_of(wheel, target):
    """The names that each library of a wheel exports: {"libtorch_cpu.dylib": {...}}."""
    exports = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".dylib"):
                library = Path(archive.extract(name, target))
                file = mach_o(library)
                exports[library.name] = bare(file.at(0).exported_symbols)
                library.unlink()
    return exports


def declarations_agree(functions, version, wheel, target):
    """Whether torch_abi.h compiles against a wheel's own headers."""
    with zipfile.ZipFile(wheel) as archive:
        wanted = r"torch/include/torch/(csrc/(inductor/aoti_torch|stable)|headeronly)/"
        archive.extractall(target, [name for name in archive.namelist() if re.match(wanted, name)])
    source = target / "declarations.cpp"
    source.write_text(declaration_checks(functions, version))
    flags = ["-target", TARGET, "-std=c++17", "-w", "-DUSE_MPS=1", f"-I{SHIM}"]
    try:
        zig("c++", *flags, f"-isystem{target / 'torch' / 'include'}", "-c", source, "-o", target / "declarations.o")
    except subprocess.CalledProcessError:
        return False
    return True


# ---- what is printed ------------------------------------------------------------------------------------------------


def print_modules(modules):
    for module in modules:
        python = {name for name in module.undefined if is_python(name)}
        print(f"halotile.{module.name}  {module.cpu.lower()}, macOS {module.min_os}, exports PyInit_{module.name}")
        for told, names in (
            ("CPython", python),
            ("libSystem", module.linked),
            ("libc++", module.undefined - python),
            ("NEON rows", neon_rows(module)),
        ):
            print(f"  {told:10}{len(names):4}  {' '.join(sorted(names))}")
        print()


def print_functions(functions, exports):
    """exports: {version: names}."""
    width = max(len(function.name) for function in functions)
    print(f"{'in libtorch_cpu.dylib of torch':{width}}  " + "  ".join(f"{version:>7}" for version in exports))
    for function in functions:
        cells = []
        for version, names in exports.items():
            there = function.name in names
            cells.append("yes" if there else "MISSING" if function.expected(version) else "-")
        since = f"  from {function.since}" if function.since else ""
        print(f"{function.name:{width}}  " + "  ".join(f"{cell:>7}" for cell in cells) + since)
    print()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="append", help=f"of torch; may be repeated (default: {VERSIONS}, {NEWEST})")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "wheels", help="where torch's wheels are kept")
    told = parser.parse_args(argv)
    told.wheels.mkdir(parents=True, exist_ok=True)
    versions = told.version or versions_to_be_had(told.wheels)

    functions = functions_of((SHIM / "torch_abi.h").read_text())
    faults, exports = [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            modules = [module_of(path) for path in cross_build(Path(folder))]
        except subprocess.CalledProcessError:
            print("FAULT the modules do not build for macOS (see the compiler's message)")
            return 1
    print_modules(modules)
    for module in modules:
        faults += [f"halotile.{module.name}: {fault}" for fault in faults_of(module)]
    for version in versions:
        wheel = wheel_of(version, told.wheels)
        with tempfile.TemporaryDirectory() as folder:
            libraries = exports_of(wheel, Path(folder))
            if not declarations_agree(functions, version, wheel, Path(folder)):
                faults.append(f"torch {version}: declared differently")
        exports[version] = libraries["libtorch_cpu.dylib"]
        for name in missing(functions, exports[version], version):
            elsewhere = ", ".join(library for library, names in libraries.items() if name in names)
            faults.append(f"torch {version}: libtorch_cpu exports no {name}; {elsewhere or 'no other library'} does")
    print_functions(functions, exports)
    for fault in faults:
        print("FAULT", fault)
    print("faults:", len(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
