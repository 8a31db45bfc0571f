# SPDX-License-Identifier: MIT
"""One worker replaces every option by a number, as the first call of any run does; all others take these numbers.

settle     on one worker: what is decided, and what the result is
ready      on every worker, once: the same run with these decisions, refused where the model is another there
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from ..auto.knowledge import Knowledge
from ..auto.prepare import open_run, prepare, warn_of_colours
from ..auto.ranges import watch_ranges, with_room_for_data
from ..errors import frames_inside
from ..files.formats import check_output
from ..files.zarr import held_bytes
from ..images.image import Alpha
from ..images.nodata import missing_of
from ..images.scan import alpha_of
from ..options import Options
from ..plan import TilePlan
from ..restore import TiledRestorer
from ..resume.identity import about_run, differences
from ..resume.settled import fixed, manner, with_manner
from ..run.nodata import with_filled
from ..run.prepared import Delivery, Prepared
from ..run.progress import Progress
from ..run.reducing import with_reduction
from ..run.report import RunInfo
from ..run.traits import Traits
from .job import Job, opened
from .sources import Reading, identity_of
from .sweeps import held_frozen
from .work import StreamWork, TilesWork, work_of

__all__ = ["Ready", "Settled", "fixed_options", "ready", "settle"]


@dataclass(frozen=True)
class Settled:
    """Attributes:
    options, report, traits: with a number for everything.
    out_dtype, shape: of the result, (H, W) or (H, W, C).
    plan, work: where its tiles lie, and what parts of it cost.
    alphas, missing: what was seen of the whole image.
    model: what the model is, in a form that other workers can compare.
    about: what the result depends on, with the image, for another run.
    warned: warnings, as (text, class).
    held: statistics of the whole image, by part; None if they have not been measured.
    """

    options: Options = field(repr=False)
    report: RunInfo
    traits: Traits
    out_dtype: str
    shape: tuple[int, ...]
    plan: TilePlan
    work: TilesWork | StreamWork
    image_bytes: int
    alphas: dict[int, Alpha]
    missing: dict[int, Any]
    model: dict[str, Any]
    about: dict[str, Any]
    warned: tuple[tuple[str, type[Warning]], ...] = ()
    held: Any = field(default=None, repr=False)

    def warn(self) -> None:
        for text, kind in self.warned:
            warnings.warn(text, kind, stacklevel=frames_inside())


@dataclass
class Ready:
    """A run on this worker."""

    restorer: TiledRestorer
    prepared: Prepared
    reading: Reading

    def hold(self, held: Any) -> None:
        """Fixes the statistics of the whole image."""
        self.prepared.windows.held |= held
        self.prepared.windows.held_for = 0


def settle(job: Job, before: dict[str, Any] | None = None) -> Settled:
    """before: what an earlier run has chosen; options that leave it open get its choice.

    Raises:
        ValueError, TypeError, TileError: as for `restore_to`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _settled(job, before)
    said = {
        (str(one.message), one.category) for one in caught if issubclass(one.category, UserWarning | RuntimeWarning)
    }
    return replace(found, warned=tuple(sorted(said, key=str)))


def _settled(job: Job, before: dict[str, Any] | None) -> Settled:
    restorer, image, _ = opened(job)
    if before is not None:
        options = with_manner(restorer.options, before["manner"] | {"dtype": before["fixed"]["dtype"]})
        restorer = restorer.with_options(options)
    if image.count != 1:
        raise ValueError(f"image must be a single one with cluster, not {image.count}: restore one after the other")
    run, knowledge = open_run(image, restorer.knowledge, restorer.options.out_dtype), restorer.knowledge
    delivery = Delivery(bands_waiting=1, bytes_beside=lambda shape: held_bytes(shape, run.out_dtype))
    prepared, first = prepare(run, knowledge, Progress(None), delivery)
    prepared = with_reduction(prepared)
    if restorer.options.out_dtype is None:
        prepared = with_room_for_data(prepared)
    watch_ranges(prepared, first, knowledge)
    warn_of_colours(prepared, 0, knowledge)
    if prepared.report.stream is not None and prepared.report.stream.sweeps > 1:
        text = "statistics of the whole image are added up over workers by tiles"
        if restorer.options.schedule == "stream":
            raise ValueError(f"schedule must be 'tiles' for this model with cluster, not 'stream': {text}")
        in_tiles = replace(restorer.options, schedule="tiles")
        return _settled(replace(job, model=restorer.model, options=in_tiles), before)
    _scan(prepared)
    if image.nodata is not None:
        prepared = replace(prepared, report=with_filled(prepared))
    settled = _of(job, restorer, prepared)
    return replace(settled, held=held_frozen(prepared)) if prepared.report.global_stats == "frozen" else settled


def _scan(prepared: Prepared) -> None:
    """Looks at the whole image once, where a run would."""
    if any(part.alpha or part.beside_alpha for part in prepared.traits.parts):
        alpha_of(prepared.image, 0)
    if prepared.image.nodata is not None:
        missing_of(prepared.image, 0)


def _of(job: Job, restorer: TiledRestorer, prepared: Prepared) -> Settled:
    image, plan = prepared.image, prepared.plan
    shape = (plan.output_size[0], *prepared.row_shape)
    check_output("result.zarr", shape, prepared.made.dtype)
    about = about_run(image, restorer.model, restorer.options, digest=_digest(identity_of(job.image)))
    height, width = image.size
    return Settled(
        options=fixed_options(prepared, restorer.options),
        report=prepared.report,
        traits=prepared.traits,
        out_dtype=prepared.made.dtype,
        shape=shape,
        plan=plan,
        work=work_of(prepared),
        image_bytes=height * width * image.channels * image.original.dtype.itemsize,
        alphas=dict(image.alphas),
        missing=dict(image.missing),
        model={name: about[name] for name in ("version", "torch", "the model")},
        about={
            "run": about,
            "fixed": fixed(prepared),
            "manner": manner(prepared) | {"memory_limit": prepared.options.memory_limit},
        },
    )


def fixed_options(prepared: Prepared, asked: Options) -> Options:
    """Options that leave nothing open."""
    model = prepared.windows.model
    return replace(
        prepared.options,
        dtype=model.dtype if asked.dtype is not None else None,
        schedule=prepared.schedule.name,
        memory_format=model.window_format if asked.memory_format != "auto" or model.alone else "auto",
        progress=None,
        out_dtype=prepared.made.dtype,
    )


def _digest(identity: object) -> str:
    return hashlib.blake2b(repr(identity).encode(), digest_size=32).hexdigest()


# ---- on every worker -------------------------------------------------------------------------------------------------


def ready(job: Job, settled: Settled) -> Ready:
    """Raises ValueError where this worker's model, or what it settles on, is not that of the others."""
    restorer, image, reading = opened(job)
    here = about_run(image, restorer.model, restorer.options, digest="")
    apart = differences(settled.model, {name: here[name] for name in settled.model})
    if apart:
        raise ValueError(f"on this worker {', '.join(apart)}: all workers need the same files and packages")
    knowledge = Knowledge(restorer.model, settled.options)
    knowledge.info = settled.report.model
    knowledge.chosen[image.size] = settled.options, settled.report
    restorer = TiledRestorer.knowing(knowledge)
    image = replace(image)  # without what was read of it
    image.alphas.update(settled.alphas)
    image.missing.update(settled.missing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said by the worker that settled
        run = open_run(image, knowledge, settled.out_dtype)
        prepared, _ = prepare(run, knowledge, Progress(None), Delivery(bands_waiting=1))
    prepared = with_reduction(prepared)
    if prepared.reduction is None:
        prepared = replace(prepared, out_dtype=settled.out_dtype)
    if prepared.plan != settled.plan or prepared.traits != settled.traits:
        raise ValueError("on this worker the model returns something else than on the one that was asked first")
    found = Ready(restorer, prepared, reading)
    if settled.held is not None:
        found.hold(settled.held)
    return found
