# SPDX-License-Identifier: MIT
"""How far dask's map_overlap and diffusers' tiled VAE are from the whole image: figures of docs/coming-from.md.

python benchmarks/coming_from.py    # two minutes; pip install "dask[array]"; pip install --no-deps diffusers

diffusers imports huggingface_hub and what that needs. The VAE has random weights of a fixed seed, and no attention: its
figure says how far a loop is from its model, not how it looks. benchmarks/peers.py measures the other loops.
"""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import torch
from common import save, version_of
from diffusers import AutoencoderKL
from PIL import Image

from halotile import load_model, restore_tiled

PHOTO = Path(__file__).parents[1] / "examples" / "seeding.jpg"
TILE, DEPTHS = 200, (8, 16, 26)
LATENTS = (1, 4, 32, 40)


def photo() -> np.ndarray:
    """A detail of the demo's photo with noise of sigma 25, float32 (H, W, 3) in [0, 1]."""
    clean = np.asarray(Image.open(PHOTO).reduce(4))[:600, :800] / 255
    return (clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape)).clip(0, 1).astype(np.float32)


@torch.inference_mode()
def dask_overlap() -> dict[str, float]:
    """Largest differences in grey levels of 255, by the depth."""
    model, image = load_model(), photo()

    def restored(block: np.ndarray) -> np.ndarray:
        if block.size == 0:  # dask asks for the type of the result
            return block
        batch = torch.from_numpy(np.ascontiguousarray(block)).permute(2, 0, 1)[None]
        return model(batch)[0].permute(1, 2, 0).numpy()

    whole, blocks = restored(image), da.from_array(image, chunks=(TILE, TILE, 3))
    found = {}
    for depth in DEPTHS:
        lazy = da.map_overlap(restored, blocks, depth=(depth, depth, 0), boundary="none", dtype=image.dtype)
        found[f"map_overlap, depth {depth}"] = differ(lazy.compute(scheduler="synchronous"), whole, 1) * 255
    ours = restore_tiled(image, model, halo="exact", boundary="native", tile_size=TILE, schedule="tiles")
    return found | {"halotile, exact": differ(ours, whole, 1) * 255}


@torch.inference_mode()
def tiled_vae() -> dict[str, float]:
    """Largest differences as parts of the decoded image's range."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    latents = torch.randn(LATENTS)
    whole = vae.decode(latents).sample[0]
    span = float(whole.max() - whole.min())
    vae.enable_tiling()
    tiled = vae.decode(latents).sample[0]
    vae.disable_tiling()
    options = {"tile_size": 16, "boundary": "native", "alpha": "channel"}
    exact = restore_tiled(latents[0], vae.decoder, halo="exact", global_stats="exact", **options)
    return {"diffusers' tiling": differ(tiled, whole, span), "halotile, exact": differ(exact, whole, span)}


def differ(one: np.ndarray | torch.Tensor, other: np.ndarray | torch.Tensor, span: float) -> float:
    return float(abs(one - other).max()) / span


def main() -> None:
    versions = {name: version_of(name) for name in ("dask", "diffusers")}
    results = {"versions": versions, "dask_grey_levels": dask_overlap(), "vae_of_range": tiled_vae()}
    print(results)
    save("coming_from", results)


if __name__ == "__main__":
    main()
