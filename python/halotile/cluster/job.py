# SPDX-License-Identifier: MIT
"""What travels to the workers, once to each: which image, which model, which options.

A model travels by name (a file of weights, a known model, module:callable), and every worker opens it itself; or as the
state of a module that the user has in memory. No code comes from files but what `load_model` runs by a name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..auto.knowledge import Knowledge
from ..images.image import Image
from ..images.source import Source
from ..models.chosen import with_choice
from ..models.descriptor import unwrapped
from ..models.load import load_model
from ..models.reach import modules_of
from ..options import Options
from ..restore import TiledRestorer, for_file
from .sources import CountedSource, Reading, opened_source

__all__ = ["Job", "Named", "new_job", "opened"]


@dataclass(frozen=True)
class Named:
    """A model that every worker opens by its name: see `load_model`. None: the included one."""

    name: str | None
    strength: float | None = None

    def load(self) -> Callable[..., Any]:
        return load_model(self.name, strength=self.strength)


@dataclass(frozen=True)
class Job:
    """Attributes:
    id: of this run; unlike all others.
    image: see `sources.py`.
    model: a Named, or the model.
    options: as given for a named model that nobody has opened, else Options.
    max_pixels, strict: of image files.
    """

    id: str
    image: Any
    model: Any = field(repr=False)
    options: dict[str, Any] | Options = field(repr=False)
    max_pixels: int | None = None
    strict: bool = False


def new_job(
    identifier: str,
    image: Any,
    model: Any,
    options: dict[str, Any] | Options,
    max_pixels: int | None,
    strict: bool,
) -> Job:
    """model: a name, path, callable, Named or TiledRestorer, whose options then apply."""
    if isinstance(model, TiledRestorer):
        own = replace(model.options, progress=None)
        return Job(identifier, image, model.model, own, max_pixels, strict)
    if isinstance(options, Options):
        options = replace(options, progress=None)
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        model = Named(os.path.abspath(name) if os.path.isfile(name) else name)
    elif not isinstance(model, Named):
        model = unwrapped(model)
        _check_travels(model)
    return Job(identifier, image, model, options, max_pixels, strict)


def _check_travels(model: Any) -> None:
    path = getattr(model, "path", None)
    if isinstance(path, str) and not modules_of(model):
        raise ValueError(f"model must be its path with cluster, {path!r}: each worker opens it itself")


def opened(job: Job) -> tuple[TiledRestorer, Image, Reading]:
    """On a worker: the model and the image, whose reads are counted. Raises as `TiledRestorer` and `open` do."""
    named = isinstance(job.model, Named)
    model = job.model.load() if named else job.model
    if isinstance(job.options, Options):
        if named:
            model = with_choice(unwrapped(model), job.options.output, job.options.extra)
        restorer = TiledRestorer.knowing(Knowledge(model, job.options))
    else:
        restorer = TiledRestorer(model, **job.options)
    source, reading = opened_source(job.image, restorer.options.layout, job.max_pixels, job.strict), Reading()
    restorer = for_file(restorer, getattr(source, "like", None))
    counted = CountedSource(source, reading) if isinstance(source, Source) else source
    return restorer, restorer.open(counted), reading
