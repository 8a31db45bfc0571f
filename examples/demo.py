# SPDX-License-Identifier: MIT
"""The demo: a photo with heavy noise, restored tile by tile by the model that comes with halotile.

Run by `make demo`, or by hand where halotile[torch,cli] is installed: `python examples/demo.py`. Writes
out/seeding_noisy.png, out/seeding_restored.png and out/before_after.png.
"""

import time
import warnings
from pathlib import Path

import numpy as np
import pyvips
import torch
from before_after import draw_before_after

import halotile
from halotile.cli.batch import peak_memory
from halotile.files.picture import read_image, write_image

HERE = Path(__file__).resolve().parent
PHOTO, OUT = HERE / "seeding.jpg", HERE / "out"

SIGMA = 25  # of the noise, grey levels
TILE_SIZE = 384


def main():
    photo = read_image(PHOTO)
    clean = reduced(photo.pixels, 2)  # which takes its own noise away, so that it can be compared with
    noisy = with_noise(clean)
    network = halotile.load_model().to(memory_format=torch.channels_last)
    info = halotile.inspect_model(network)
    radius, phase = max(info.halo), max(info.phase)
    options = {"tile_size": TILE_SIZE, "halo": radius, "phase": phase, "overlap": 0}
    plan = halotile.plan_tiles(noisy.shape, **options)
    report("photo", f"{size(photo.pixels)}, reduced to {size(clean)}; with noise of sigma {SIGMA}")
    report("network", f"halotile's own, is found to see {radius} pixels around each, its phase is {phase}")
    report("plan", f"{len(plan)} tiles, {plan.grid[0]} rows of {plan.grid[1]}, halo included {size(plan.window)} each")

    started = time.monotonic()
    restored = halotile.restore_tiled(noisy, network, progress=True, **options)
    seconds, peak = time.monotonic() - started, peak_memory() / 1e9
    gain = f"{decibels(noisy, clean)}  →  {decibels(restored, clean)}"
    report("restored", f"{gain}, in {seconds:.1f} s, peak memory {peak:.2f} GB with torch")

    whole, tiled, without_halo = three_ways(noisy[400:700, 900:1284], network, radius, phase)
    report("exactness", f"greatest difference between 9 tiles and one piece: {difference(tiled, whole)} (white is 1)")
    report("", f"without a halo: {difference(without_halo, whole)}")

    facts = [
        f"{size(noisy, ' × ')}, noise of sigma {SIGMA}",
        f"PSNR {gain}",
        f"{len(plan)} tiles, halo {radius} px",
        f"{seconds:.0f} s, peak memory {peak:.2f} GB",
        f"difference from one piece: {difference(tiled, whole)}",
        f"without a halo: {difference(without_halo, whole)}",
    ]
    seams = [as_pixels(image) for image in (without_halo, tiled, 8 * np.abs(without_halo - whole))]
    OUT.mkdir(exist_ok=True)
    write_image(OUT / "seeding_noisy.png", noisy, like=photo)
    write_image(OUT / "seeding_restored.png", restored, like=photo)
    write_image(OUT / "before_after.png", draw_before_after(plan, facts, (noisy, restored, clean), seams))
    report("written", f"seeding_noisy.png, seeding_restored.png and before_after.png in {OUT}")


def with_noise(pixels):
    noise = np.random.default_rng(0).normal(0, SIGMA, pixels.shape)
    return np.rint((pixels + noise).clip(0, 255)).astype(np.uint8)


def decibels(image, clean):
    return f"{halotile.metrics.psnr(image, clean):.1f} dB"


def three_ways(pixels, network, radius, phase):
    """A part of the image, at once, in 3x3 tiles with a halo, and in the same tiles without: float32, white is 1."""
    image = pixels.astype(np.float32) / 255
    with torch.inference_mode():
        whole = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    options = {"tile_size": 144, "phase": phase, "overlap": 0, "boundary": "native"}
    tiled = halotile.restore_tiled(image, network, halo=radius, **options)
    with warnings.catch_warnings(action="ignore"):  # halotile tells that no halo is too little
        return whole, tiled, halotile.restore_tiled(image, network, halo=0, **options)


def difference(image, reference):
    return f"{np.abs(image - reference).max():.1g}"


def as_pixels(image):
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def reduced(pixels, factor):
    return pyvips.Image.new_from_array(pixels).resize(1 / factor, kernel="lanczos3").numpy()


def size(pixels, by="x"):
    """Width x height of an image or of a shape."""
    height, width = getattr(pixels, "shape", pixels)[:2]
    return f"{width}{by}{height}"


def report(name, text):
    print(f"{name:<11}{text}")


if __name__ == "__main__":
    main()
