# SPDX-License-Identifier: MIT
"""What tiles and a stream cost for an image, and which of them a run takes; nothing is restored."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine.device_lock import turn
from ..images.image import Image
from ..models.model import TensorModel
from ..plan import TilePlan
from ..run.prepared import Delivery, Prepared
from ..run.report import RunInfo, Streaming
from ..run.tiles import TILES
from .knowledge import Knowledge
from .opening import learned
from .prepare import open_run
from .streams import NoStream, fitting_tiles, small_windows, streaming, with_stream

__all__ = ["Comparison", "compared"]


@dataclass(frozen=True)
class Comparison:
    """Both schedules for an image.

    Attributes:
        plan: the tiles; smaller than asked for if memory has no room for the activations of a window.
        report: halo and phase, and why; with a stream if a run takes it, else with the reason for tiles, if any.
        stream: the stream, whether a run takes it or not; None if there is none.
        no_stream: why there is none.
        peak: floating-point operations in a second that the model's device reaches at best; None without torch.
    """

    plan: TilePlan
    report: RunInfo
    stream: Streaming | None
    no_stream: str | None
    peak: float | None

    @property
    def tiles_recompute(self) -> float:
        """Pixels of all windows, as a multiple of the image's."""
        return self.plan.processed_pixels / self.plan.ideal_pixels

    @property
    def flops(self) -> float | None:
        """Floating-point operations of the model for the image alone; None if it was not recorded."""
        return None if self.stream is None else self.stream.flops / self.stream.recompute


def compared(image: Image, knowledge: Knowledge) -> Comparison:
    """Runs the model on small windows only. The result is taken to be written by rows.

    Raises:
        ValueError, TypeError: a bad option. TileError: the model failed.
    """
    opened, delivery = open_run(image, knowledge), Delivery(bands_waiting=1)
    with turn(opened.windows.engine.device):
        stream, no_stream, fitting = None, None, opened
        taken, tiled = with_stream(opened, knowledge, delivery)
        try:
            prepared = taken or streaming(opened, knowledge, delivery)
            stream, fitting = prepared.report.stream, fitting_tiles(opened, prepared)
        except NoStream as reason:
            no_stream = str(reason)
        first = opened if opened.options.needs.fixed else small_windows(opened, knowledge)
        traits = learned(first, knowledge)[0].traits
        plan = Prepared.of(fitting, traits, TILES).plan
        model, peak = opened.windows.model, None
        if isinstance(model, TensorModel):
            from ..run.stream.peak import peak_of_machine  # imports torch

            peak = peak_of_machine(str(model.device))
    return Comparison(plan, tiled.report if taken is None else taken.report, stream, no_stream, peak)
