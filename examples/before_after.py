# SPDX-License-Identifier: MIT
"""The demo's picture: the whole image with its tiles, details before and after, and what the halo is good for."""

import numpy as np
import pyvips

MARGIN, GAP, TITLE = 32, 16, 54
CROP = (320, 480)  # height, width of a detail
DETAILS = ((125, 505), (320, 965), (575, 625))  # upper left corners (y, x)
TITLES = ("with noise", "restored by halotile", "without noise")
SEAM = (60, 70, 160, 240)  # y, x, height, width; shown twice as large
SEAM_TITLES = ("tiles without a halo", "tiles with a halo", "what the halo corrected, × 8")

PAPER, INK, FAINT = (250, 249, 246), (32, 33, 36), (110, 112, 118)
TILE_LINE, DETAIL_LINE = (255, 255, 255), (255, 186, 8)


def draw_before_after(plan, facts, images, seams):
    """The picture as pixels (H, W, 3) of uint8.

    plan: the TilePlan of the run; its tiles are drawn on the whole view.
    facts: lines of text.
    images: (before, after, original), of one shape (H, W, 3), uint8.
    seams: three images (h, w, 3), uint8: without a halo, with a halo, difference.
    """
    rows = [[image[y : y + CROP[0], x : x + CROP[1]] for image in images] for y, x in DETAILS]
    y, x, height, width = SEAM
    seam_row = [image[y : y + height, x : x + width].repeat(2, 0).repeat(2, 1) for image in seams]
    view = whole_view(plan, images[1], 2 * CROP[1] + GAP)
    details_top = MARGIN + view.shape[0] + TITLE
    seams_top = details_top + len(rows) * (CROP[0] + GAP) - GAP + TITLE
    canvas = np.full((seams_top + CROP[0] + MARGIN, 2 * MARGIN + 3 * CROP[1] + 2 * GAP, 3), PAPER, np.uint8)

    paste(canvas, (MARGIN, MARGIN), view)
    write_facts(canvas, (MARGIN, MARGIN + view.shape[1] + 32), view.shape[0], facts)
    for i, row in enumerate(rows):
        paste_row(canvas, details_top + i * (CROP[0] + GAP), row, TITLES if i == 0 else ())
    paste_row(canvas, seams_top, seam_row, SEAM_TITLES)
    return canvas


def whole_view(plan, image, width):
    """The image at a smaller width, with the edges of the tiles and of the details marked."""
    factor = width / image.shape[1]
    view = pyvips.Image.new_from_array(image).thumbnail_image(width).numpy().copy()
    for tile in plan:
        outline(view, [round(side * factor) for side in tile.keep], TILE_LINE, 1)
    for y, x in DETAILS:
        outline(view, [round(side * factor) for side in (y, x, *CROP)], DETAIL_LINE, 3)
    return view


def write_facts(canvas, at, height, facts):
    top, left = at
    text(canvas, (top - 6, left), "halotile", 44, INK)
    for i, line in enumerate(facts):
        text(canvas, (top + 84 + 40 * i, left), line, 20, INK)
    for i, line in enumerate(("white: the tiles", "yellow: the details below")):
        text(canvas, (top + height - 54 + 34 * i, left), line, 17, FAINT)


def paste_row(canvas, top, images, titles):
    lefts = [MARGIN + column * (CROP[1] + GAP) for column in range(len(images))]
    for left, image in zip(lefts, images, strict=True):
        paste(canvas, (top, left), image)
    for left, title in zip(lefts, titles, strict=False):
        text(canvas, (top - 34, left), title, 20, INK)


def paste(canvas, at, pixels):
    canvas[at[0] : at[0] + pixels.shape[0], at[1] : at[1] + pixels.shape[1]] = pixels


def outline(canvas, box, colour, thickness):
    """The edge of a box (y, x, height, width) inside the canvas."""
    y, x, height, width = box
    inside = canvas[y : y + height, x : x + width]
    for edge in (inside[:thickness], inside[-thickness:], inside[:, :thickness], inside[:, -thickness:]):
        edge[:] = colour


def text(canvas, at, words, size, colour):
    """Words in the system's sans-serif, size in pixels. Without any font the picture stays without words."""
    try:
        mask = pyvips.Image.text(words, font=f"sans {size}px", dpi=72).numpy()
    except pyvips.Error:
        return
    place = canvas[at[0] : at[0] + mask.shape[0], at[1] : at[1] + mask.shape[1]]
    mask = mask[: place.shape[0], : place.shape[1], None] / 255
    place[:] = np.rint(place * (1 - mask) + np.array(colour) * mask)
