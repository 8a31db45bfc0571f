# SPDX-License-Identifier: MIT
"""torch.export programs as models. Many are exported for one shape only.

Such a file is code, as a module is: its graph may call any function that torch can reach. Content that would run code
while the file is only read is refused: torch itself would unpickle anything. Imports torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import zipfile
from collections.abc import Iterator

import torch

from ..texts import full_text
from .checkpoint import why_not
from .needs import Needs
from .program_bounds import check_exported

__all__ = ["FixedShape", "load_exported", "open_exported"]

# Prefixes of archive members that hold libraries to load or objects to unpickle.
RUN = ("data/aotinductor/", "data/constants/opaque_obj", "data/constants/custom_obj")
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # overrides the arguments of torch.load


def load_exported(path: str) -> torch.nn.Module:
    """The program of a .pt2 file as a module on windows (batch, channels, height, width).

    Raises:
        ValueError: the file holds libraries or objects that would run while it is read, it is damaged, or its program
            takes anything but one such tensor.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.partition("/")[2].lower().startswith(RUN):  # torch finds names in any letter case
                raise ValueError(f"it holds {member!r}, which would run while the file is read; only programs are read")
    check_exported(path)
    with _weights_only(), _error_logged() as logged:
        try:
            program = torch.export.load(path)
        except Exception as error:  # a damaged program may raise anything
            raise ValueError(why_not(full_text(logged.error or error), "program")) from error
    return open_exported(program)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[WEIGHTS_ONLY]
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


class _LoggedError(logging.Filter):
    """Keeps the error that torch logs before raising another one, and blocks the log."""

    error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        self.error = (record.exc_info and record.exc_info[1]) or self.error
        return False


@contextlib.contextmanager
def _error_logged() -> Iterator[_LoggedError]:
    logger, logged = logging.getLogger("torch.export"), _LoggedError()
    logger.addFilter(logged)
    try:
        yield logged
    finally:
        logger.removeFilter(logged)


def open_exported(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """The program as a module on windows (batch, channels, height, width).

    Raises:
        ValueError: it takes anything but one such tensor.
    """
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != 1 or inputs[0].ndim != 4:
        raise ValueError(f"it takes {len(inputs)} inputs, not one tensor (batch, channels, height, width)")
    batch, _, height, width = (side if isinstance(side, int) else None for side in inputs[0].shape)
    module = program.module()
    return module if batch is height is width is None else FixedShape(module, batch, (height, width))


class FixedShape(torch.nn.Module):
    """A program exported for one (height, width), None where variable, or for one batch size, or both. `needs` has the
    window size. Other batch sizes are split and padded with their last window."""

    def __init__(self, program: torch.nn.Module, batch: int | None, window: tuple[int | None, int | None]):
        super().__init__()
        self.program, self.batch, self.needs = program, batch, Needs(window=window)

    def train(self, mode: bool = True) -> FixedShape:
        return self  # exported programs have no mode

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        sides = zip(self.needs.window, windows.shape[2:], strict=True)
        if any(side not in (None, got) for side, got in sides):
            wanted = "x".join("any" if side is None else str(side) for side in self.needs.window)
            got = f"{windows.shape[2]}x{windows.shape[3]}"
            raise ValueError(f"the model was exported for windows of {wanted} (height x width), not {got}")
        return torch.cat([self._run(part) for part in windows.split(self.batch or len(windows))])

    def _run(self, windows: torch.Tensor) -> torch.Tensor:
        missing = (self.batch or len(windows)) - len(windows)
        return self.program(torch.cat([windows, windows[-1:].expand(missing, -1, -1, -1)]))[: len(windows)]
