# SPDX-License-Identifier: MIT
"""What TorchScript and torch.export files may hold, checked before torch reads them: its reader of TorchScript crashes
on code that nests too deeply, and that of torch.export evaluates the texts of sizes as Python."""

from __future__ import annotations

import ast
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from .bounds import MOST_OPERATIONS

__all__ = ["check_exported", "check_script"]

LONGEST_CODE = 2**22  # bytes of all code
LONGEST_JSON = 2**24
DEEPEST = 150  # brackets in brackets, or blocks in blocks
MOST_NODES = 20_000
UNARY = re.compile(rb"(?:(?:[-~+!]|\bnot\b)\s*){%d}" % DEEPEST)
INDENT = re.compile(rb"^[ \t]{%d}" % (2 * DEEPEST), re.MULTILINE)
BRACKETS = re.compile(rb"[()\[\]{}]")

# ---- TorchScript -----------------------------------------------------------------------------------------------------


def check_script(path: str) -> None:
    """Raises ValueError for code that is too long or nests too deeply, and for pickles that are damaged or too long."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        code = [one for one in members if one.filename.endswith((".py", ".debug_pkl"))]
        if sum(one.file_size for one in code) > LONGEST_CODE:
            raise ValueError(f"it holds more than {LONGEST_CODE} bytes of code")
        for one in members:
            if one.filename.endswith(".py"):
                _check_code(archive.read(one))
            elif one.filename.endswith(".pkl"):
                with archive.open(one) as file:
                    _check_operations(pickletools.genops(file), one.filename)


def _check_code(text: bytes) -> None:
    depth = 0
    for found in BRACKETS.finditer(text):
        depth += 1 if found[0] in b"([{" else -1
        if depth > DEEPEST:
            break
    if depth > DEEPEST or UNARY.search(text) or INDENT.search(text):
        raise ValueError("its code nests too deeply")


def _check_operations(operations: Iterator[Any], name: str) -> None:
    try:
        count = sum(1 for _ in zip(operations, range(MOST_OPERATIONS + 1), strict=False))
    except Exception as error:  # of pickletools: ValueError, and others where numbers are malformed
        raise ValueError(f"its {name[:80]} is damaged") from error
    if count > MOST_OPERATIONS:
        raise ValueError(f"its {name[:80]} has more than {MOST_OPERATIONS} operations")


# ---- torch.export ----------------------------------------------------------------------------------------------------

# What sympy prints of sizes, and torch's functions of whole numbers.
FUNCTIONS = frozenset(
    [
        "Symbol",
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Mod",
        "Abs",
        "floor",
        "ceiling",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "Equality",
        "Unequality",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "And",
        "Or",
        "Not",
        "Where",
        "FloorDiv",
        "CeilDiv",
        "CleanDiv",
        "IntTrueDiv",
        "FloatTrueDiv",
        "ModularIndexing",
        "PythonMod",
        "ToFloat",
        "CeilToInt",
        "FloorToInt",
        "TruncToInt",
        "RoundToInt",
        "Identity",
        "IsNonOverlappingAndDenseIndicator",
    ]
)
ALLOWED = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp)
ALLOWED += (ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
LONGEST_EXPRESSION, MOST_POWERS, LARGEST_POWER = 2000, 2, 16
NAME = re.compile(r"[A-Za-z]\w{0,60}")


def check_exported(path: str) -> None:
    """Raises ValueError for descriptions that are too long or nest too deeply, and for sizes and guards that are more
    than formulas."""
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            if not one.filename.lower().endswith(".json"):
                continue
            if one.file_size > LONGEST_JSON:
                raise ValueError(f"its {one.filename[:80]} has {one.file_size} bytes, too many for a program")
            try:
                content = json.loads(archive.read(one))
            except ValueError:  # damaged: torch says so
                continue
            except RecursionError as error:
                raise ValueError(f"its {one.filename[:80]} nests too deeply") from error
            _check_content(content)


def _check_content(content: Any) -> None:
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        if not isinstance(one, dict):
            continue
        waiting.extend(one.values())
        if isinstance(one.get("nodes"), list) and len(one["nodes"]) > MOST_NODES:
            raise ValueError(f"it is a program of {len(one['nodes'])} operations; at most {MOST_NODES} are read")
        if "expr_str" in one and not _is_formula(one["expr_str"]):
            raise ValueError(f"it holds the size {str(one['expr_str'])[:80]!r}, which is not a formula")
        for guard in one.get("guards_code") or ():
            if not _is_expression(guard):
                raise ValueError(f"it holds the guard {str(guard)[:80]!r}, which is not an expression")


def _is_expression(text: object) -> bool:
    """Whether a text stays inside the function that torch makes of it."""
    return _parsed(text) is not None


def _parsed(text: object) -> ast.Expression | None:
    if not isinstance(text, str) or len(text) > LONGEST_EXPRESSION or not text.isprintable():
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_formula(text: object) -> bool:
    tree = _parsed(text)
    if tree is None:
        return False
    nodes = list(ast.walk(tree))
    exponents = [one for one in map(_exponent, nodes) if one is not None]
    small = len(exponents) <= MOST_POWERS and all(abs(one) <= LARGEST_POWER for one in exponents)
    return small and all(map(_may_be_in_formula, nodes))


def _may_be_in_formula(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
    if isinstance(node, ast.Name):
        return NAME.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        return _is_plain(node.value)
    return isinstance(node, ALLOWED) and not isinstance(node, ast.LShift)


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return NAME.fullmatch(value) is not None
    return isinstance(value, (bool, float)) or (isinstance(value, int) and value.bit_length() < 64)


def _exponent(node: ast.AST) -> float | None:
    """The exponent of a power; infinity where it is no number. None: it is no power."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        inside = node.right
    elif (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Pow" and len(node.args) == 2
    ):
        inside = node.args[1]
    else:
        return None
    found = [one.value for one in ast.walk(inside) if isinstance(one, ast.Constant)]
    plain = len(found) == 1 and isinstance(found[0], (int, float)) and not _has_names(inside)
    return found[0] if plain else float("inf")


def _has_names(tree: ast.AST) -> bool:
    names = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
    return bool(names - {"Integer", "Float"})
