# SPDX-License-Identifier: MIT
"""Warnings about values that are not what was expected: floats far outside [0, 1], and clamped results."""

from __future__ import annotations

from dataclasses import replace

from ..errors import RangeWarning
from ..images.channels import KINDS
from ..run.prepared import First, Prepared
from ..run.seen import MANY, Sampled
from .knowledge import Knowledge

__all__ = ["warn_of_clamped", "watch_ranges", "with_room_for_data"]

DATA = 16  # images that are no pictures may have values from minus this to this


def watch_ranges(prepared: Prepared, first: First, knowledge: Knowledge) -> None:
    """Warns of the image's values, as far as its windows were seen, and starts to look at what the model makes."""
    seen, on_device = prepared.windows.seen, not prepared.windows.in_host_memory
    if seen.image is not None and not knowledge.has_warned("values"):
        if on_device:
            seen.add_array()
        _warn_of_image_values(prepared, seen.image.taken(), knowledge)
    if prepared.out_values.numbers[3] and not knowledge.has_warned("clamped") and not on_device:
        made = seen.watch_made()
        for output in first.values():
            made.add(output)


def with_room_for_data(prepared: Prepared) -> Prepared:
    """In float32, if the model makes something else than a picture of an image of integers: it would be clamped."""
    if not prepared.traits.makes_data or "float" in prepared.out_dtype:
        return prepared
    takes, makes = prepared.traits.parts[0].feed, prepared.traits.out_channels[0]
    why = f"{prepared.report.why}; the result is float32, as the model makes {makes} channels of {takes}"
    return replace(prepared, out_dtype="float32", report=replace(prepared.report, why=why))


def _warn_of_image_values(prepared: Prepared, found: Sampled | None, knowledge: Knowledge) -> None:
    if found is None:
        return
    low, high = prepared.options.value_range or (0.0, 1.0)
    least, most = ((value - low) / (high - low) for value in (found.least, found.most))
    is_picture = prepared.image.channels in KINDS and prepared.options.alpha != "channel"
    if not is_picture and max(-least, most) <= DATA:
        return
    text = f"the image has values from about {least:.3g} to {most:.3g}, far outside 0 to 1, for which floats are taken"
    knowledge.warn_once("values", f"{text}: {_image_remedy(least, most)}", RangeWarning)


def _image_remedy(least: float, most: float) -> str:
    if -1.1 <= least < -0.5 and most <= 1.1:
        return "pass (image + 1) / 2"
    if least < -0.01 * most:
        return "pass (image - low) / (high - low)"
    white = next((white for white in (255, 65535) if 0.6 * white <= most <= 1.05 * white), None)
    return "pass white='max', or its white as a number" if white is None else f"pass white={white}"


def warn_of_clamped(prepared: Prepared, knowledge: Knowledge) -> None:
    """Warns once of an image's result of which more than a hundredth was clamped."""
    if knowledge.has_warned("clamped") or not prepared.out_values.numbers[3]:
        return
    seen, to = prepared.windows.seen, f"was clamped to 0 to {prepared.out_values.numbers[0]:g}"
    found = None if seen.made is None else seen.made.taken()
    if found is not None:
        reach = f"as the model's values reach from about {_round(found.least)} to {_round(found.most)}"
        text = f"{100 * found.share:.0f} % of the result {to}, {reach}"
    elif seen.first_tile > MANY:
        text = f"{100 * seen.first_tile:.0f} % of the first tile {to}"
    else:
        return
    asked = prepared.options.value_range
    remedy = f"if the model works in another range, pass value_range={_range_of(found)}"
    if asked is not None:
        remedy = f"is value_range=({asked[0]:g}, {asked[1]:g}) the model's?"
    knowledge.warn_once("clamped", f"{text}: {remedy}; out_dtype='float32' keeps what is clamped", RangeWarning)


def _round(value: float) -> str:
    return f"{round(value, 1) + 0.0:.3g}"


def _range_of(found: Sampled | None) -> str:
    if found is None:
        return "(low, high)"
    if found.most > 100:
        return "(0, 255)"
    if -1.1 <= found.least < -0.5 and found.most <= 1.1:
        return "(-1, 1)"
    return "(low, high)"
