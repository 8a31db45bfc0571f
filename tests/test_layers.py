# SPDX-License-Identifier: MIT
"""The house has floors: imports lead down, nobody reaches into a foreign private, and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "halotile"

# From the top floor down: a module may import from its own floor and from those below, also for types and late.
FLOORS = (
    "__init__ __main__",
    "cli",
    "pytest_plugin",
    "testing evaluation before_after memory_watch",
    "check",
    "to_file",
    "cluster",
    "restore",
    "resume",
    "auto",
    "run",
    "engine",
    "metrics",
    "plan",
    "files",
    "inspection",
    "images",
    "options option_checks",
    "models",
    "fragile memory",
    "cache layouts",
    "errors optional stages",
    "notebook scales texts version",
    "_core _torch weights",
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names.split()}

LONGEST = {".py": 450, ".c": 400, ".h": 400, ".cpp": 400}
# Longer files, each with its reason.
LONGER = {
    "python/halotile/auto/tiles.py": "459: the tuner's choices and probes share their state",
}


def modules() -> dict[str, Path]:
    return {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a module imports, also inside functions and for types alone."""
    package = name.split(".") if path.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        base = base + (node.module.split(".") if node.module else [])
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            if inner in known or inner in FLOOR:
                yield inner
            else:
                yield ".".join(base) or "__init__"


MODULES = modules()
IMPORTS = {name: set(imports(name, path, MODULES)) for name, path in MODULES.items()}


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in MODULES} <= set(FLOOR)


def test_imports_lead_down():
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in sorted(others)
        if FLOOR[other.split(".")[0]] < FLOOR[name.split(".")[0]]
    ]
    assert upward == []


def test_no_circles():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in sorted(IMPORTS.get(name, ())):
                visit(other, (*above, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def _private_reaches(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own | OF_LIBRARIES:
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [alias.name for alias in node.names if _is_private(alias.name)]
            yield from (f"{path.name}:{node.lineno}: import {name}" for name in names if name not in FLOOR)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


# Python's and torch's own, which have no public name.
OF_LIBRARIES = {
    *("_replace", "_asdict", "_fields", "_version", "_cdata", "_buffers", "_parameters", "_modules", "_schema"),
    *(
        "_overloadname",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_can_decompose",
        "_C",
        "_dynamo",
        "_typed_storage",
        "_getframe",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_nobody_reaches_into_a_foreign_private(name):
    found = [one for one in _private_reaches(MODULES[name]) if "torch." not in one]
    assert found == []


def test_files_are_short():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.[ch]"), *(ROOT / "csrc").rglob("*.cpp")]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    long = {name for name, size in sizes.items() if size > LONGEST[Path(name).suffix]}
    assert long == set(LONGER)
