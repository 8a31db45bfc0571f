# SPDX-License-Identifier: MIT
"""Opens the model for an image, chooses the engine, and learns from the first batch."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from ..engine.choose import asked_engine, engine_for
from ..engine.device_lock import turn
from ..engine.hazards import doubt_about_kernels, faults_of, is_trusted
from ..errors import TileError
from ..fragile import is_fragile
from ..images.image import Image, check_output_dtype
from ..images.nodata import check_nodata
from ..layouts import check_layout_found
from ..memory import is_out_of_memory
from ..models.activations import warn_about_device
from ..models.devices import BEST, usable_device
from ..models.kinds import open_model
from ..models.model import EitherModel, Model
from ..models.modules import device_and_dtype
from ..optional import torch_if_loaded
from ..options import Options
from ..run.again import check_again
from ..run.held import hold_statistics
from ..run.out_of_memory import smaller
from ..run.prepared import First, Opened, Prepared
from ..run.progress import Progress
from ..run.report import RunInfo
from ..run.tiles import TILES
from ..run.traits import Sizes, learn
from ..run.windows import Windows, lacks_pixels
from ..texts import full_text
from .knowledge import Knowledge

__all__ = ["learned", "opened_for", "opened_model", "ready_for_windows"]

Pair = tuple[int, int]

# Models' messages about window sizes that they reject.
ABOUT_SIZES = re.compile(r"size|shape|divisible|multiple|must match|dimension|broadcast|split|stride", re.IGNORECASE)

# torch's messages about tensors on different devices, and about what a device lacks.
ABOUT_DEVICES = re.compile(
    r"same device|on cpu\b|device type|not (currently )?(implemented|supported) (for|on|by) .*\b(MPS|CUDA|XPU)", re.I
)


def opened_for(image: Image, knowledge: Knowledge, options: Options, report: RunInfo, out_dtype: str | None) -> Opened:
    """Opens the model for an image and rejects bad combinations of options before anything runs.

    Raises:
        ValueError, TypeError: naming the option.
    """
    if options.reduce is not None:  # rows are as the model makes them; what they are reduced to has the asked dtype
        options, out_dtype = replace(options, out_dtype=out_dtype), "float32"
    dtype = out_dtype or image.dtype
    check_output_dtype(image, dtype)
    check_nodata(image, dtype)
    with turn():
        model = opened_model(image, knowledge, options)
        chosen = model.chosen if isinstance(model, EitherModel) else model
        check_again(chosen, options)
        options, report = _without_faults(chosen, options, report, knowledge)
        report = _with_device(chosen, options, report, knowledge)
        windows = Windows(image, model, engine_for(chosen, options.engine), options.value_range)
        opened = Opened(image, dtype, options, report, windows)
        _ = opened.plan
        _check_devices(options, report)
    return opened


def opened_model(image: Image, knowledge: Knowledge, options: Options) -> Model:
    tensors = image.device is not None or asked_engine(options.engine) in ("torch", "mps")
    if tensors not in knowledge.opened:
        knowledge.opened[tensors] = open_model(
            knowledge.model,
            device=options.first_device,
            dtype=options.model_dtype,
            tensors=tensors,
            memory_format=options.memory_format,
        )
    model = knowledge.opened[tensors]
    if options.compile and not model.alone:
        raise ValueError("compile must be False for a model that is no torch module")
    return model


def _without_faults(model: Model, options: Options, report: RunInfo, knowledge: Knowledge) -> tuple[Options, RunInfo]:
    """The run as the model's device can be trusted with it: see docs/mps.md. Raises ValueError if it cannot."""
    for one in model.candidates if isinstance(model, EitherModel) else [model]:
        doubt = doubt_about_kernels(one.modules, one.device)
        if doubt is not None:
            knowledge.warn_once("kernels", doubt, RuntimeWarning)
        if options.batch_size != 1 and "views" in faults_of(one.device):
            text = "batches are of 1, because this machine computes convolutions of views right only for the first "
            options, report = replace(options, batch_size=1), report.because(f"{text}window of a batch")
        if one.channels_last and is_fragile(one.device):
            one.channels_last = _may_be_last(one, options, knowledge)
    return options, report


def _with_device(model: Model, options: Options, report: RunInfo, knowledge: Knowledge) -> RunInfo:
    """Says where a module on the CPU runs, if the best device is asked for and another."""
    best = usable_device(BEST) if options.first_device == BEST and model.alone else None
    if best is None or best.type == "cpu" or not isinstance(knowledge.model, torch_if_loaded().nn.Module):
        return report
    own = device_and_dtype(knowledge.model)[0]
    if own is None or own.type != "cpu":
        return report
    if model.device == best:
        return report.because(f"a copy of the model runs on {best.type}, the best device here")
    return report.because(f"the model runs on the CPU: it cannot be copied to {best.type}, the best device here")


def _may_be_last(model: Model, options: Options, knowledge: Knowledge) -> bool:
    """Whether windows of an Apple GPU are channels_last: where it was measured that they pay, or if they are asked for
    and right."""
    if options.memory_format == "auto":
        return knowledge.format is not None and knowledge.format[0] == "channels_last"
    if is_trusted(model.device, "channels_last"):
        return True
    text = f"windows are contiguous despite memory_format='channels_last', in which {model.device} "
    text += "computes convolutions wrong here, or could not try them"
    knowledge.warn_once("channels_last", text, RuntimeWarning)
    return False


def _check_devices(options: Options, report: RunInfo) -> None:
    if len(options.devices) < 2:
        return
    for device in options.devices:
        usable_device(device)
    if options.shift_average > 1:
        text = f"device must be one with shift_average={options.shift_average}, not {len(options.devices)}"
        raise ValueError(f"{text}: the grids take turns on it")
    if report.holds:
        text = f"device must be one with global_stats={report.global_stats!r}, which sets statistics in the model, not"
        raise ValueError(f"{text} {len(options.devices)}")


def ready_for_windows(
    image: Image, knowledge: Knowledge, options: Options, report: RunInfo, out_dtype: str | None = None
) -> Prepared:
    """Prepares a model for windows of any size anywhere in an image, with fixed statistics."""
    opened = opened_for(image, knowledge, options, report, out_dtype)
    with turn(opened.windows.engine.device):
        prepared, _ = learned(opened, knowledge)
    hold_statistics(prepared, 0, {}, Progress(None))
    return prepared


# ---- the first batch -------------------------------------------------------------------------------------------------


def learned(opened: Opened, knowledge: Knowledge) -> tuple[Prepared, First]:
    """Runs the first batch, unless the traits are known from an earlier image, and returns its outputs.

    Tiles shrink if memory runs out. If the model rejects the window and no phase was given, the required multiple is
    probed and becomes the phase.
    """
    image, windows, first = opened.image, opened.windows, First()
    traits = knowledge.traits.get(image.channels)
    while traits is None:
        warn_about_device(windows.model, opened.batch_shape, windows.engine)
        try:
            known = _known_sizes(opened, knowledge)
            traits, output = learn(windows, opened.options, opened.planned, known)
            first[traits.parts[0]] = output
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                opened = smaller(opened, error, first)
                continue
            other = _with_multiples(opened, knowledge)
            if other is None:
                _add_hint(error, opened.plan.window, opened.options)
                raise
            opened = other
    knowledge.traits[image.channels] = traits
    if image.by_model:
        shape, takes = tuple(image.original.shape), traits.parts[0].feed
        check_layout_found("image", shape, image.layout, image.device is not None, takes)
    engine = engine_for(windows.model, opened.options.engine)
    if type(engine) is not type(windows.engine):  # the first batch has shown that the model takes tensors
        opened = replace(opened, windows=windows.through(windows.opened, engine))
        first = First()
    return Prepared.of(opened, traits, TILES), first


def _known_sizes(opened: Opened, knowledge: Knowledge) -> Sizes | None:
    known = opened.report.model or (knowledge.quick_look() if knowledge.options.phase is None else None)
    if known is None or known.scale is None or known.trim is None or min(known.trim) < 0:
        return None
    return Sizes(known.scale, known.trim)


def _with_multiples(opened: Opened, knowledge: Knowledge) -> Opened | None:
    """The run with a phase that the model accepts, if none was given; None if that is no cure."""
    asked, own = knowledge.options, opened.options.phase
    if asked.phase is not None or knowledge.multiple is not None:
        return None
    from ..inspection.measure import multiple_of

    knowledge.multiple = multiple_of(knowledge.model, asked.inspected_on, asked.model_dtype)
    rows, columns = (math.lcm(*pair) for pair in zip(own, knowledge.multiple, strict=True))
    if (rows, columns) == own:
        return None
    why = f"{opened.report.why}; the phase is the multiple of which the model takes windows"
    opened.windows.buffers.clear()
    report = replace(opened.report, phase=(rows, columns), why=why)
    return replace(opened, options=replace(opened.options, phase=(rows, columns)), report=report)


def _add_hint(error: Exception, window: Pair, options: Options) -> None:
    cause, size, phase = error.__cause__, f"{window[0]}x{window[1]}", options.phase
    if not isinstance(error, TileError) or cause is None:
        return
    if options.first_device == BEST and ABOUT_DEVICES.search(full_text(cause)):
        text = "the model seems to make tensors on the CPU by itself, and 'best' moved the others"
        error.args = (f"{error}; {text}: device='cpu' leaves it there",)
    elif lacks_pixels(error):
        error.args = (f"{error}; windows of {size} are too small for it: a larger halo makes them larger",)
    elif ABOUT_SIZES.search(full_text(cause)):
        text = f"{error}; windows of {size} are multiples of the phase, {max(phase)}: networks that halve their input, "
        error.args = (text + "or cut it into windows, need phase= such as 8, 16 or 64",)
