# SPDX-License-Identifier: MIT
"""Published networks as spandrel has them, small, with random weights. None of this needs a download."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

__all__ = ["PUBLISHED", "published", "spandrel_imported"]

WINDOWED = {"embed_dim": 12, "num_heads": (2, 2), "img_range": 1.0}
SHIFTING = WINDOWED | {"depths": (2, 2), "window_size": 8, "img_size": 16}

# Class, its module where that has another name, and its arguments.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Compact": ("Compact", {"num_feat": 8, "num_conv": 3, "upscale": 2}),
    "CRAFT": ("CRAFT", {"embed_dim": 12, "depths": [1, 1], "num_heads": [6, 6], "upscale": 2}),
    "DAT": (
        "DAT",
        {"img_size": 16, "embed_dim": 24, "split_size": [4, 8], "depth": [2, 2], "num_heads": [2, 2], "upscale": 2},
    ),
    "DCTLSA": ("DCTLSA", {"nf": 10, "num_modules": 6, "upscale": 2}),
    "DITN": ("DITN", {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "UFONE_blocks": 1, "upscale": 2}),
    "DRCT": (
        "DRCT",
        {
            "img_size": 16,
            "embed_dim": 12,
            "depths": (2,),
            "num_heads": (2,),
            "window_size": 8,
            "gc": 4,
            "upscale": 2,
            "upsampler": "pixelshuffle",
        },
    ),
    "DRUNet": ("DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [4, 8, 8, 8], "nb": 1}),
    "DnCNN": ("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 8, "nb": 4}),
    "ESRGAN": ("ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 2}),
    "FDAT": (
        "FDAT",
        {"embed_dim": 12, "num_groups": 1, "depth_per_group": 2, "num_heads": 2, "mid_dim": 8, "scale": 2},
    ),
    "FFTformer": ("FFTformer", {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}),
    "GRL": (
        "GRL",
        {
            "img_size": 16,
            "embed_dim": 12,
            "depths": [2],
            "num_heads_window": [2],
            "num_heads_stripe": [1],
            "upscale": 2,
            "upsampler": "pixelshuffle",
        },
    ),
    "HAT": (
        "HAT",
        {**SHIFTING, "compress_ratio": 3, "squeeze_factor": 6, "upscale": 2, "upsampler": "pixelshuffle"},
    ),
    "KBNet_s": ("KBNet", {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "MoESR": ("MoESR", {"dim": 8, "n_blocks": 1, "n_block": 1, "upsample_dim": 8, "scale": 2}),
    "MoSR": ("MoSR", {"dim": 8, "n_block": 2, "upscale": 2}),
    "NAFNet": ("NAFNet", {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "OmniSR": ("OmniSR", {"num_feat": 16, "up_scale": 2}),
    "PLKSR": ("PLKSR", {"dim": 8, "n_blocks": 2, "upscaling_factor": 2}),
    "RCAN": ("RCAN", {"scale": 2, "n_resgroups": 1, "n_resblocks": 2, "n_feats": 8, "reduction": 4}),
    "RGT": ("RGT", {"img_size": 16, "embed_dim": 12, "depth": [2, 2], "num_heads": [2, 2], "upscale": 2}),
    "RetinexFormer": ("RetinexFormer", {"n_feat": 8, "stage": 1}),
    "SAFMN": ("SAFMN", {"dim": 8, "n_blocks": 2, "upscaling_factor": 2}),
    "SCUNet": ("SCUNet", {"config": [1] * 7, "dim": 64, "input_resolution": 64}),
    "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2}),
    "SeemoRe": ("SeemoRe", {"scale": 2, "num_experts": 2, "num_layers": 1, "embedding_dim": 8}),
    "SwiftSRGAN": ("SwiftSRGAN", {"num_channels": 8, "num_blocks": 1, "upscale_factor": 2}),
    "Swin2SR": ("Swin2SR", {**SHIFTING, "upscale": 2, "upsampler": "pixelshuffledirect"}),
    "SwinIR": ("SwinIR", {**SHIFTING, "upscale": 2, "upsampler": "pixelshuffledirect"}),
    "UpCunet2x": ("RealCUGAN", {}),
}


@contextmanager
def spandrel_imported() -> Iterator[Callable[[str], Any]]:
    """Gives spandrel's modules by architecture. torchvision, which it imports for two of them, is stood in for where it
    is missing."""
    for name in ("spandrel", "einops", "safetensors"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            for name in ("InterpolationMode", "rotate", "normalize"):
                setattr(sys.modules["torchvision.transforms.functional"], name, None)
        import spandrel
    yield lambda name: importlib.import_module(f"{spandrel.__name__}.architectures.{name}")


def published(name: str) -> nn.Module:
    """A network of the table, with random weights that every part of it depends on."""
    architecture, options = PUBLISHED[name]
    with spandrel_imported() as module_of:
        kind = getattr(module_of(architecture), name)
    torch.manual_seed(0)
    model = kind(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:  # scales and biases that start as 0 would hide what they scale
                parameter.normal_(0, 0.1)
    return model
