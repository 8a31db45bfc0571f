# SPDX-License-Identifier: MIT
"""Models in ncnn's files, read as plain data and run by torch: `load_ncnn`.

Many restoration networks are published for ncnn only. Their two files hold no code: the ``.param`` file is text, with a
layer per line, the ``.bin`` file holds weights in the order of the layers. So a model of unknown origin can be looked
at and run, which a pickled checkpoint does not allow.

What the files say is believed only where the bytes are there. A kind of layer, a setting or a way to store weights that
is not understood is refused by name: a model is read as ncnn runs it, or not at all. Imports torch.
"""

from __future__ import annotations

from .graph import NcnnModel
from .layers import KINDS
from .read import Weights, read_layers

__all__ = ["NcnnModel", "load_ncnn"]


def load_ncnn(param: str, weights: bytes) -> NcnnModel:
    """The model of a ``.param`` file's text and a ``.bin`` file's bytes.

    Returns:
        A module in evaluation mode, without gradients, from one float tensor (N, C, H, W) to one. Its submodules have
        the names of ncnn's layers, as far as submodules may have them.

    Raises:
        ValueError: the files are damaged, do not fit each other, or hold what is not understood: a kind of layer, a
            setting, int8 or quantised weights, more than one input or output.
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
