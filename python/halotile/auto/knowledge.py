# SPDX-License-Identifier: MIT
"""What is known about a model between images: the only state of a `TiledRestorer`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import SeamWarning, frames_inside
from ..images.image import Image, open_image
from ..images.levels import with_levels
from ..inspection.known import about, known_model, known_quick
from ..models.chosen import checked_output, with_choice
from ..models.descriptor import unwrapped
from ..models.kinds import channels_of, check_model
from ..models.model import Model
from ..models.needs import needs_of
from ..models.reach import modules_of
from ..models.recalled import recalled, told_about, tried_with
from ..optional import torch_if_loaded
from ..options import Options
from ..run.report import Precision, RunInfo
from ..run.traits import Traits
from .costs import Costs
from .trained import with_window

if TYPE_CHECKING:
    from ..inspection import ModelInfo
    from ..inspection.quick import Quick
    from ..run.stream.schedule import Recorded

__all__ = ["Knowledge", "channels_tried"]

Pair = tuple[int, int]


class Knowledge:
    """What is known about one model with certain options.

    Attributes:
        opened: the model for windows; the key tells whether windows must be tensors.
        others: models on further devices, by device number and dtype of windows.
        traits: by channels of the image.
        chosen: options with tiles that fit in memory, and their report, by image size.
        costs: measured time and memory, by their conditions.
        multiple: multiple required of windows (rows, columns), if it had to be probed.
        precision: outcome of dtype="auto".
        format: memory format of windows on an Apple GPU and the reason, if one was chosen.
        info: result of `inspect_model`.
        no_stream: why the model cannot stream rows; None if it can; "untried" before that is tried.
        recorded: the graphs of the model for streams.
        tried: results of shifted windows, by their conditions.
        reaches: statistics that depend on each other, and how far the model sees beside them, by phase.
    """

    def __init__(self, model: Callable[..., Any], options: Options):
        self.model, self.options = model, options
        self.opened: dict[bool, Model] = {}
        self.others: dict[tuple[int, str], Model] = {}
        self.traits: dict[int, Traits] = {}
        self.chosen: dict[Pair, tuple[Options, RunInfo]] = {}
        self.costs: dict[Any, Costs] = {}
        self.multiple: Pair | None = None
        self.precision: Precision | None = None
        self.format: tuple[str, str] | None = None
        self.info: ModelInfo | None = None
        self.no_stream: str | None = "untried"
        self.recorded: Recorded | None = None
        self.tried = tried_with(model)
        self.reaches: dict[Any, tuple[int, Pair]] = {}

    @classmethod
    def of(cls, model: Callable[..., Any], options: dict[str, Any]) -> Knowledge:
        """Accepts a spandrel descriptor as the model."""
        model = unwrapped(model)
        check_model(model)
        model = with_choice(model, checked_output("output", options.get("output")), options.get("extra"))
        options = {"needs": needs_of(model)} | options
        if options.get("window") is not None:
            options = with_window(model, options, lambda: cls(model, Options()).known_phase())
        return cls(model, Options.of(options))

    def open(self, image: Any) -> Image:
        opened = open_image(image, self.options.layout, lambda: channels_of(self.model))
        return with_levels(opened, self.options)

    def inspected(self) -> ModelInfo:
        if self.info is None:
            self.info = known_model(self.model, self.options.inspected_on, self.options.model_dtype)
        return self.info

    def at_hand(self) -> ModelInfo | None:
        """Returns an earlier inspection in this process, if any."""
        return self.info or recalled(self.model)

    def known_phase(self) -> Pair | None:
        """The model's phase, from an earlier inspection or from its operators."""
        known = self.at_hand() or self.quick_look()
        if known is None or known.phase is None:
            return None
        rows, columns = known.phase
        return rows or 1, columns or 1

    def quick_look(self) -> Quick | None:
        """What the model's operators reveal without running it; for a callable, the phase of its torch modules. None
        without torch modules. Looked at once."""
        return self._quick

    @cached_property
    def _quick(self) -> Quick | None:
        torch = torch_if_loaded()
        if torch is None:
            return None
        if isinstance(self.model, torch.nn.Module):
            return known_quick(self.model, channels_tried(self.model))
        looks = [known_quick(module, channels_tried(module)) for module in modules_of(self.model)]
        found = [look for look in looks if look is not None and look.phase is not None]
        if not found:
            return None
        rows, columns = (math.lcm(*(look.phase[axis] for look in found)) for axis in (0, 1))  # type: ignore[index]
        return replace(found[0], phase=(rows, columns), scale=None, trim=None)

    @cached_property
    def fingerprint(self) -> Any:
        """Identifies the model, also across processes; None if that is impossible."""
        return about(self.model, self.options.model_dtype)

    def like(self, options: Options) -> Knowledge:
        other = Knowledge(self.model, options)
        other.info, other.costs, other.precision, other.multiple = self.info, self.costs, self.precision, self.multiple
        other.reaches, other.format = self.reaches, self.format
        other.no_stream, other.recorded = self.no_stream, self.recorded
        other.opened = self.opened if self.precision is not None else {}
        other.others = self.others
        return other

    def for_windows(self, options: Options) -> Knowledge:
        """The same for windows of any size: not compiled, in the dtype chosen or else its own."""
        unknown = options.dtype == "auto" and self.precision is None
        return self.like(replace(options, compile=False, dtype=None if unknown else options.dtype))

    def warn_once(self, subject: Any, text: str, kind: type[Warning] = SeamWarning) -> None:
        if not self.has_warned(subject):
            told_about(self.model).add(subject)
            warnings.warn(text, kind, stacklevel=frames_inside())

    def has_warned(self, subject: Any) -> bool:
        return subject in told_about(self.model)


def channels_tried(module: Any, seen: int | None = None) -> tuple[int, ...]:
    """seen: the channels of an image for it."""
    own = channels_of(module)
    return tuple(dict.fromkeys(one for one in (own, 3, 1, 4, 2, seen) if one))
