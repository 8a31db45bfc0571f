# SPDX-License-Identifier: MIT
"""The decoder of a diffusers VAE, on latents that are too large for it.

    image = decode(vae, latents)              # where image = vae.decode(latents).sample stood

Group norms take their statistics from the whole image, and are given them. The attention in the middle block sees all
of the latents and cannot be held: with it, tiles are blended, and nothing is exact.
"""

import torch

from halotile import TiledRestorer


class Decoder(torch.nn.Module):
    """From latents to an image, as a network of its own."""

    def __init__(self, vae):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents):
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


def decode(vae, latents, tile_size=64, **options):
    """Latents (N, C, h, w) to images (N, 3, 8h, 8w). tile_size: in latents."""
    decoder = Decoder(vae).eval()
    if any(block is not None for block in vae.decoder.mid_block.attentions):
        options = {"global_stats": "tile", "halo": 16, "overlap": 16, "blend": "cosine"} | options
    else:
        options = {"global_stats": "exact", "halo": "exact"} | options
    options = {"layout": "NCHW", "alpha": "channel", "boundary": "native", "phase": 1} | options
    return TiledRestorer(decoder, tile_size=tile_size, **options)(latents)
