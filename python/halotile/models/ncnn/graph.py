# SPDX-License-Identifier: MIT
"""The graph of layers: a module from image to image."""

from __future__ import annotations

import re

from torch import Tensor, nn

from .read import Layer

__all__ = ["NcnnModel"]


class NcnnModel(nn.Module):
    """A graph of layers, run in the order of the file.

    Attributes:
        steps: (name of the submodule or None, blobs read, blobs written, blobs to free) for each layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str | None, list[str], list[str], list[str]]] = []
        self.input = self.output = ""
        self.written: set[str] = set()
        self.namesakes: dict[str, int] = {}

    def add(self, layer: Layer, module: nn.Module | None) -> None:
        """Appends a layer; one without a module passes its input on. Raises ValueError for impossible wiring."""
        for blob in layer.inputs:
            if blob not in self.written:
                raise ValueError(f"{layer} reads {blob[:60]!r}, which no layer before it writes")
        for blob in layer.outputs:
            if blob in self.written:
                raise ValueError(f"{layer} writes {blob[:60]!r}, which was written before")
            self.written.add(blob)
        if layer.kind == "Input":
            if self.input:
                raise ValueError(f"{layer} is a second input, and the model must have one")
            self.input = layer.outputs[0]
            return
        name = None if module is None else self._free_name(layer.name)
        if name is not None:
            self.add_module(name, module)
        self.steps.append((name, layer.inputs, layer.outputs, []))

    def _free_name(self, wanted: str) -> str:
        """A name for a submodule that is not taken."""
        name = base = re.sub(r"\W+", "_", wanted).strip("_") or "layer"
        while hasattr(self, name):
            self.namesakes[base] = self.namesakes.get(base, 1) + 1
            name = f"{base}_{self.namesakes[base]}"
        return name

    def close(self) -> None:
        """Finds the output and the last use of each blob. Raises ValueError unless inputs and outputs are one each."""
        last = {blob: done for _, inputs, _, done in self.steps for blob in inputs}
        unread = [blob for _, _, outputs, _ in self.steps for blob in outputs if blob not in last]
        if not self.input or len(unread) != 1:
            found = f"{1 if self.input else 0} inputs and {len(unread)} outputs"
            raise ValueError(f"the model has {found}, and must have one of each{_some(unread)}")
        self.output = unread[0]
        for blob, done in last.items():
            done.append(blob)

    def extra_repr(self) -> str:
        """The wiring, which identifies the model together with its layers."""
        wires = (f"{', '.join(reads)} -> {name or '='} -> {', '.join(writes)}" for name, reads, writes, _ in self.steps)
        return "\n".join((f"input {self.input}", *wires))

    def forward(self, x: Tensor) -> Tensor:
        blobs = {self.input: x}
        for name, inputs, outputs, done in self.steps:
            values = [blobs[blob] for blob in inputs]
            if name is not None:
                values = [getattr(self, name)(*values)]
            elif len(values) != len(outputs):
                values = values * len(outputs)
            for blob in done:
                del blobs[blob]
            blobs.update(zip(outputs, values, strict=True))
        return blobs[self.output]


def _some(blobs: list[str]) -> str:
    return f": {', '.join(blob[:60] for blob in blobs[:5])}" if blobs else ""
