# SPDX-License-Identifier: MIT
"""Decodes the latents of a diffusers AutoencoderKL in tiles, equal to the whole decode.

The decoder's attention sees every latent, so no halo is enough for it; but it runs on latents, an eighth of the image
along each side. That part runs whole. What makes the image large runs in tiles, with the statistics of its group norms
taken of the whole image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from halotile import restore_tiled


class Upper(nn.Module):
    """The part of the decoder after its attention."""

    def __init__(self, decoder: Any):
        super().__init__()
        self.blocks, self.norm = decoder.up_blocks, decoder.conv_norm_out
        self.act, self.out = decoder.conv_act, decoder.conv_out

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            features = block(features)
        return self.out(self.act(self.norm(features)))


@torch.inference_mode()
def decode(vae: Any, latents: torch.Tensor, **options: Any) -> torch.Tensor:
    """The image of latents (N, C, h, w), already divided by `vae.config.scaling_factor`: what `vae.decode` gives."""
    features = latents if vae.post_quant_conv is None else vae.post_quant_conv(latents)
    features = vae.decoder.mid_block(vae.decoder.conv_in(features))
    usual = {"halo": "exact", "global_stats": "exact", "boundary": "native", "schedule": "tiles"}
    # Features are no picture: all their channels are the model's, and what comes out keeps their dtype.
    return restore_tiled(features, Upper(vae.decoder), layout="NCHW", alpha="channel", **{**usual, **options})
