# SPDX-License-Identifier: MIT
"""The Metal kernels without Metal: run as C++ under sanitizers, type-checked with address spaces, searched for faults.

What only a Mac can tell: that Apple's compiler takes the file (see .github/workflows/macos.yml), and how a GPU rounds.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METAL = ROOT / "csrc" / "torch" / "tiles.metal"
PROGRAM = ROOT / "tests" / "c" / "check_tiles.cpp"
CORE = ROOT / "csrc" / "core"
TYPES = ROOT / "tests" / "c" / "metal_types.h"
VARIANTS = {"packed": [], "bytes": ["-DHALOTILE_ARGUMENT_BYTES=1"]}  # how numbers are passed: see tiles.metal

CXX = os.environ.get("CXX") or shutil.which("g++") or "clang++"
CLANG = "clang++"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
FLAGS = ["-std=c++17", "-ffp-contract=off", f"-I{PROGRAM.parent}", f"-I{CORE}", *WARNINGS, "-Wno-attributes"]
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]

variants = pytest.mark.parametrize("variant", VARIANTS)
needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler {CXX}")
needs_clang = pytest.mark.skipif(shutil.which(CLANG) is None, reason="no clang++: address spaces are not checked")


def mutated(target, old, new):
    """A copy of tiles.metal with one change."""
    text = METAL.read_text()
    assert old in text, old
    (target / "tiles.metal").write_text(text.replace(old, new, 1))
    return target / "tiles.metal"


# ---- run ------------------------------------------------------------------------------------------------------------


def check_program(target, metal, variant, *flags):
    program = target / f"check_{variant}"
    command = [CXX, *FLAGS, *flags, *VARIANTS[variant], f"-I{metal.parent}", PROGRAM, "-o", program]
    subprocess.run(list(map(str, command)), check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=False)


@needs_compiler
@variants
def test_kernels_do_what_they_say_and_touch_nothing_else(tmp_path, variant):
    done = check_program(tmp_path, METAL, variant, "-O0", "-g", *SANITIZE)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
    print(done.stdout)


@needs_compiler
@pytest.mark.parametrize(
    "old, new, told",
    [
        ("int(y) % n[SUM_RING]", "int(y)", "AddressSanitizer"),
        ("2 * (size - 1)", "2 * size", "check_tiles"),
        ("i == n[6] - 1", "i == n[6]", "check_tiles"),
    ],
)
def test_a_wrong_kernel_is_caught(tmp_path, old, new, told):
    sanitize = ["-fsanitize=address"] if told == "AddressSanitizer" else []
    done = check_program(tmp_path, mutated(tmp_path, old, new), "packed", "-O0", *sanitize)
    assert done.returncode != 0 and told in done.stderr


# ---- types ----------------------------------------------------------------------------------------------------------


def source_of(metal, *flags):
    """The file with its own macros expanded, and nothing else: attributes and address spaces are still there."""
    command = [shutil.which(CLANG) or CXX, "-E", "-P", "-x", "c++", *flags, str(metal)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kernels_of(source):
    """{name: parameters}."""
    return dict(re.findall(r"\bkernel\s+void\s+(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)", source))


def type_check(target, metal, variant):
    kernels = kernels_of(source_of(metal, *VARIANTS[variant]))
    source = target / f"types_{variant}.cpp"
    checks = "".join(f"CHECK_KERNEL({name})\n" for name in kernels)
    source.write_text(f'#include "{metal}"\n{checks}')
    command = [CLANG, "-fsyntax-only", "-std=c++14", "-target", "aarch64-linux-gnu", "-nostdinc", *WARNINGS]
    command += ["-Wshadow", *VARIANTS[variant], "-include", TYPES, source]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@needs_clang
@variants
def test_address_spaces_and_attributes(tmp_path, variant):
    done = type_check(tmp_path, METAL, variant)
    assert done.returncode == 0, done.stderr


@needs_clang
@variants
@pytest.mark.parametrize(
    "old, new",
    [
        ("note_bad(device atomic_uint *bad", "note_bad(atomic_uint *bad"),
        ("device const I *image", "const I *image"),
        ("device const I *image", "constant I *image"),
        ("[[thread_position_in_grid]]", "[[thread_position_in_gird]]"),
        ("float weight = ny[y]", "float weigth = ny[y]"),
    ],
)
def test_a_wrong_type_is_caught(tmp_path, old, new, variant):
    assert type_check(tmp_path, mutated(tmp_path, old, new), variant).returncode != 0


# ---- rules of Metal that a C++ compiler does not know ---------------------------------------------------------------

DTYPES = {"u8", "u16", "f16", "bf16", "f32"}
MODELS = {"f16", "bf16", "f32"}
NAMES = {f"read_{image}_{window}" for image in DTYPES for window in MODELS}
NAMES |= {f"accumulate_{output}" for output in MODELS} | {f"finish_{rows}" for rows in DTYPES}

# Words that Metal has not, or gives another meaning, and library types that it may not have.
ABSENT = re.compile(
    r"\b(template|typename|double|float64|auto|goto|new|delete|virtual|try|catch|throw|dynamic_cast|typeid|operator|class"
    r"|typedef|union|extern|thread_local|asm|wchar_t|size_t|ptrdiff_t|u?int\d+_t|bfloat|std)\b"
)


def faults_of_kernels(source, numbers):
    """What is wrong with kernels' parameters; `numbers`: how many buffers come before the tensors."""
    for name, parameters in kernels_of(source).items():
        *buffers, last = re.split(r",\s*", parameters)
        found = [re.fullmatch(r"(device|constant) .*\w \[\[buffer\((\d+)\)\]\]", buffer) for buffer in buffers]
        if None in found:
            yield f"{name}: a buffer without an address space, or without a literal index"
            continue
        indices = [int(match[2]) for match in found]
        tensors = [i for match, i in zip(found, indices, strict=True) if match[1] == "device"]
        if len(set(indices)) != len(indices) or max(indices) >= 31:
            yield f"{name}: buffer indices {indices}"
        if indices[:numbers] != list(range(numbers)) or tensors != list(range(17, 17 + len(tensors))):
            yield f"{name}: numbers are buffers 0 to {numbers - 1}, tensors those from 17 on, not {indices}"
        if last.split() != ["uint3", "at", "[[thread_position_in_grid]]"]:
            yield f"{name}: ends with {last}"


def faults_of_functions(source):
    """Pointers without an address space, and calls of functions that are not yet defined: those may be recursive."""
    definition = re.compile(r"^(?!enum|struct)[\w ]*?\b(\w+)\(((?:[^()]|\([^()]*\))*)\)\s*\{", re.MULTILINE)
    heads = list(definition.finditer(source))
    names, defined = {head[1] for head in heads}, set()
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = source[head.end() : following.start() if following else None]
        calls = set(re.findall(r"\b(\w+)\(", body)) & names
        if not calls <= defined:
            yield f"{head[1]} calls {sorted(calls - defined)}"
        defined.add(head[1])
        for parameter in head[2].split(","):
            if re.search(r"[*&]", parameter) and not re.match(r"\s*(device|constant|thread) ", parameter):
                yield f"{head[1]}: {parameter.strip()} has no address space"


def faults_of(metal, variant):
    source = source_of(metal, *VARIANTS[variant])
    if set(kernels_of(source)) != NAMES:
        yield f"kernels: {sorted(set(kernels_of(source)) ^ NAMES)}"
    yield from faults_of_kernels(source, 17 if variant == "packed" else 1)
    yield from faults_of_functions(source)
    yield from (match[0] for match in ABSENT.finditer(source))
    if not metal.read_text().isascii():
        yield "not ASCII"
    if set(re.findall(r"#include\s*(\S+)", metal.read_text())) != {"<metal_stdlib>"}:
        yield "includes"


@needs_compiler
@variants
def test_rules_of_metal(variant):
    assert list(faults_of(METAL, variant)) == []


@needs_compiler
@pytest.mark.parametrize(
    "old, new, fault",
    [
        ("[[buffer(18)]]", "[[buffer(17)]]", "buffer indices"),
        ("[[buffer(18)]]", "[[buffer(31)]]", "buffer indices"),
        ("[[buffer(18)]]", "[[buffer(READ_COUNT)]]", "literal index"),
        ("device W *windows", "W *windows", "address space"),
        ("starts(thread const int *n", "starts(const int *n", "has no address space"),
        ("device const O *outputs", "constant O *outputs", "tensors those from 17 on"),
        ("long longer = n[3];", "long longer = starts(n, i - 1);", "starts calls"),
        ("float sum = band[to];", "double sum = band[to];", "double"),
        ("// Every kernel", "// Every \u2014 kernel", "not ASCII"),
        ("FINISH(bf16, ushort)", "", "kernels"),
    ],
)
def test_a_broken_rule_is_caught(tmp_path, old, new, fault):
    assert fault in " ".join(faults_of(mutated(tmp_path, old, new), "packed"))
