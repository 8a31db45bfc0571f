# SPDX-License-Identifier: MIT
"""A whole-slide image, by openslide: one level, in blocks; those without tissue are not run.

skipped = restore_slide("slide.svs", "restored.zarr", model, level=1, halo=16)
"""

import numpy as np
import openslide
import zarr

from halotile import TiledRestorer, inspect_model

BLOCK = 1024  # output shards, so that a block is written alone


def tissue(slide, side=512):
    """Whether pixels of a small view have colour: (h, w). Replace it by a mask of your own, of any size."""
    small = np.asarray(slide.get_thumbnail((side, side)).convert("HSV"))
    return small[..., 1] > 20


def restore_slide(source, target, model, *, level=0, halo=16, mask=None, scale=1, background=255, **options):
    """Returns how many blocks were skipped, and of how many. halo: at least the field of the model."""
    with openslide.open_slide(source) as slide:
        width, height = slide.level_dimensions[level]
        down, mask = slide.level_downsamples[level], tissue(slide) if mask is None else mask
        shape = (height * scale, width * scale, 3)
        side = BLOCK * scale
        out = zarr.create_array(target, shape=shape, dtype="uint8", chunks=(side, side, 3), fill_value=background)
        restorer = TiledRestorer(model, halo=halo, scale=scale, **options)
        phase = max(step or 1 for step in inspect_model(model).phase)  # windows begin at its multiples
        if BLOCK % phase:
            raise ValueError(f"blocks of {BLOCK} are no multiple of the model's phase, {phase}")
        halo = -(-halo // phase) * phase
        skipped, blocks = 0, [(y, x) for y in range(0, height, BLOCK) for x in range(0, width, BLOCK)]
        for y, x in blocks:
            bottom, right = min(y + BLOCK, height), min(x + BLOCK, width)
            if not _seen(mask, (y / height, bottom / height), (x / width, right / width)).any():
                skipped += 1
                continue
            top, left = max(0, y - halo), max(0, x - halo)
            size = (min(right + halo, width) - left, min(bottom + halo, height) - top)
            region = slide.read_region((round(left * down), round(top * down)), level, size)
            done = restorer(np.asarray(region.convert("RGB")))
            inside = done[(y - top) * scale : (bottom - top) * scale, (x - left) * scale : (right - left) * scale]
            out[y * scale : bottom * scale, x * scale : right * scale] = inside
    return skipped, len(blocks)


def _seen(mask, rows, columns):
    """The mask's pixels that a block touches, given in parts of the image."""
    (top, bottom), (left, right) = (
        (int(first * count), max(int(np.ceil(last * count)), int(first * count) + 1))
        for (first, last), count in zip((rows, columns), mask.shape, strict=True)
    )
    return mask[top:bottom, left:right]
