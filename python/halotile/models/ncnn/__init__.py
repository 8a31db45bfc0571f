# SPDX-License-Identifier: MIT
"""Models in ncnn's files, read as plain data and run by torch: `load_ncnn`.

Many restoration networks are published for ncnn only. Their files contain no code, so a model from an untrusted source
can be opened, unlike a pickled checkpoint: the ``.param`` file is text with one layer per line, the ``.bin`` file holds
the weights in the order of the layers.

    read.py      both files: lines and weights, with sizes checked
    layers.py    one function per kind of layer: from settings and weights to a module
    modules.py   layers that torch lacks
    graph.py     `NcnnModel`: the modules, and how they are wired

A model runs as it does in ncnn, or loading fails: layers, settings and weight formats that are not supported are
refused by name. Imports torch.
"""

from __future__ import annotations

from .graph import NcnnModel
from .layers import KINDS
from .read import Weights, read_layers

__all__ = ["NcnnModel", "load_ncnn"]


def load_ncnn(param: str, weights: bytes) -> NcnnModel:
    """Loads a model from the text of a ``.param`` file and the bytes of a ``.bin`` file.

    Returns:
        A module in eval mode, without gradients, from one float tensor (N, C, H, W) to another. Submodules have the
        names of ncnn's layers where torch allows them.

    Raises:
        ValueError: the files are damaged, do not match, or hold something that is not supported: a kind of layer, a
            setting, int8 or quantised weights, several inputs or outputs.
    """
    data = Weights(weights)
    model = NcnnModel()
    for layer in read_layers(param):
        kind = KINDS.get(layer.kind)
        if kind is None:
            raise ValueError(f"{layer} is of a kind that is not understood")
        module = kind(layer, data)
        layer.finish()
        model.add(layer, module)
    data.finish()
    model.close()
    return model.eval().requires_grad_(False)
