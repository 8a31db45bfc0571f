# SPDX-License-Identifier: MIT
"""`halotile restore --cluster`: each file over many workers."""

from __future__ import annotations

import argparse
import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..cluster.clients import client_of
from ..cluster.draft import is_begun
from ..cluster.job import Named
from ..cluster.spreading import restore_on_cluster
from ..files.zarr import zarr_source
from ..restore import TiledRestorer
from .bar import Bar
from .batch import Outcome
from .common import UsageError
from .work import Job, read_header, suffix_of

__all__ = ["check_spread", "is_begun", "spreading"]


def check_spread(asked: argparse.Namespace, jobs: Iterable[Job]) -> None:
    """Raises UsageError for what workers cannot do."""
    refused = {"--verify": asked.verify, "--page": asked.page, "--background": asked.background, "--size": asked.size}
    for name, value in (refused | {"--outscale": asked.outscale}).items():
        if value:
            raise UsageError(f"{name} and --cluster cannot be combined")
    for job in jobs:
        if suffix_of(job.output) != ".zarr":
            raise UsageError(f"--cluster writes zarr arrays, not {job.output}: name one with -o, or add --format zarr")


@contextmanager
def spreading(asked: argparse.Namespace, restorer: TiledRestorer) -> Iterator[_OverWorkers]:
    """restorer: its model stays here; workers open it by its name."""
    with client_of(asked.cluster) as client:
        yield _OverWorkers(client, asked, restorer)


class _OverWorkers:
    """Restores files, as `FileRestorer` does."""

    def __init__(self, client: Any, asked: argparse.Namespace, restorer: TiledRestorer):
        name = asked.model
        if name is not None and os.path.isfile(name):
            name = os.path.abspath(name)
        self.client, self.asked, self.restorer = client, asked, restorer
        self.model = Named(name, asked.strength)

    def __call__(self, job: Job, *, force: bool = False, bar: Bar | None = None) -> Outcome:
        started = time.monotonic()
        asked = self.asked
        if os.path.lexists(job.output) and not (force or asked.resume):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), job.output)
        header = read_header(job.input, max_pixels=asked.max_pixels, page=None, layout=asked.layout)
        os.makedirs(os.path.dirname(job.output) or ".", exist_ok=True)
        if bar is not None:
            bar.begin_page(header.shape[0] * header.shape[1])
        run = restore_on_cluster(
            job.output,
            job.input,
            self.model,
            self.client,
            self.restorer.options,
            max_pixels=asked.max_pixels,
            strict=asked.strict,
            resume=asked.resume,
        )
        made = zarr_source(job.output)
        seconds = time.monotonic() - started
        kinds = header.dtype, made.dtype.name
        return Outcome(job, "restored", 1, header.shape, made.shape, *kinds, run=run, seconds=seconds)
