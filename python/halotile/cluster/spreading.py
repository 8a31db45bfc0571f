# SPDX-License-Identifier: MIT
"""restore_to(cluster=...): from a path or an array of blocks to a zarr array, over many workers."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ClusterError
from ..options import Options
from ..restore import TiledRestorer
from ..run.progress import Progress
from ..run.report import RunInfo
from ..run.spread import Share, Spread
from .blocks import Block, Cut, Grid, cut
from .clients import PATIENCE, client_of
from .draft import Drafted, drafted
from .job import Job, new_job
from .settle import Settled
from .shards import Encoder
from .sources import checked_image
from .store import Receipts, is_url
from .sweeps import measured_over

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["restore_on_cluster"]

CHECKED_AT_ONCE = 64  # receipts
PARTING = 5.0  # seconds


def restore_on_cluster(
    path: str | os.PathLike[str],
    image: Any,
    model: Any,
    cluster: Any,
    options: dict[str, Any] | Options,
    *,
    max_pixels: int | None = None,
    strict: bool = False,
    resume: bool = False,
) -> RunInfo:
    """See `restore_to`. model: also a name, as `load_model` takes it, or a Named. options: those of `restore_tiled`.

    Raises:
        ClusterError: shards are missing at the end.
    """
    started = time.perf_counter()
    target = _checked_path(path)
    if isinstance(model, TiledRestorer):
        options = model.options
    checked = options if isinstance(options, Options) else Options.of(options)
    if not isinstance(options, Options):
        options = {name: value for name, value in options.items() if name != "progress"}
    if checked.shift_average > 1:
        text = f"shift_average must be 1 with cluster, not {checked.shift_average}"
        raise ValueError(f"{text}: grids take turns over the whole image, one after the other")
    job = new_job(uuid.uuid4().hex, checked_image(image), model, options, max_pixels, strict)
    with client_of(cluster) as client, Progress(checked.progress, "shard") as bar:
        client.wait_for_workers(1, timeout=PATIENCE)
        with _carried(client, job.id, job), drafted(target, resume) as draft:
            return _restored(client, job, draft, bar, started)


def _checked_path(path: str | os.PathLike[str]) -> str:
    target = os.fspath(path)
    if os.path.splitext(target.rstrip("/"))[1].lower() != ".zarr":
        raise ValueError(f"path must end in .zarr with cluster, not {target!r}: workers write shards of one array")
    return target if is_url(target) else os.path.abspath(target)


@contextmanager
def _carried(client: Client, identifier: str, state: object) -> Iterator[None]:
    """Brings something to every worker, also to those that come later, until the end of the block."""
    import cloudpickle

    from .worker import Carrier

    carrier = Carrier(identifier, cloudpickle.dumps(state))
    client.register_plugin(carrier)
    try:
        yield
    finally:
        if client.status == "running":
            _in_time(client.unregister_worker_plugin, carrier.name)


def _in_time(call: Callable[[str], object], name: str) -> None:
    """Asks all workers, and waits for those that answer: one that hangs holds up nobody."""

    def asked() -> None:
        with suppress(Exception):  # the client may be closed by then
            call(name)

    thread = threading.Thread(target=asked, daemon=True)
    thread.start()
    thread.join(PARTING)


def _restored(client: Client, job: Job, draft: Drafted, bar: Progress, started: float) -> RunInfo:
    from .conduct import Conductor
    from .worker import plan_run

    key = f"halotile-plan-{job.id[:8]}"
    settled: Settled = client.submit(plan_run, job.id, draft.before, key=key, pure=False).result()
    settled.warn()
    settling = time.perf_counter() - started
    if settled.report.global_stats == "exact":
        settled = _with_statistics(client, job, settled)
    encoder, grid = Encoder(settled.shape, settled.out_dtype), Grid(*settled.plan.output_size)
    draft.begin(job.id, settled.about, encoder.description)
    done = _kept(client, draft) if draft.before is not None else set()
    plan = cut(grid, settled.work, len(client.nthreads()))
    second = uuid.uuid4().hex
    with _carried(client, second, settled):
        conductor = Conductor(client, (job.id, second, draft.store.root), grid, settled.work, bar)
        try:
            conductor.conduct(plan.blocks, done)
        except ClusterError as error:
            advice = "those that are there are kept, and resume=True goes on from them"
            text = f"{error}; {advice if draft.resume else 'without resume=True nothing is kept'}"
            raise ClusterError(text, error.missing, error.shards) from error
    seam = _seam(conductor.made, grid, encoder, draft)
    draft.complete(encoder.description)
    spread = _spread(conductor, settled, plan, len(done), seam, settling, time.perf_counter() - started)
    report = replace(settled.report, spread=spread)
    if settled.options.on_nonfinite != "retry":
        return report
    return replace(report, retried=len(set().union(*(made.again for _, made in conductor.made))))


def _with_statistics(client: Client, job: Job, settled: Settled) -> Settled:
    from .worker import ask_ready

    first = uuid.uuid4().hex

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        key = f"halotile-{function.__name__.replace('_', '-')}-{uuid.uuid4().hex[:8]}"
        return client.submit(ask_ready, job.id, first, function, *arguments, key=key, pure=False)

    with _carried(client, first, settled):
        held = measured_over(client, settled.plan.grid[0], ask, len(client.nthreads()))
    return replace(settled, held=held)


def _kept(client: Client, draft: Drafted) -> set[tuple[int, int]]:
    """The shards of an earlier run, after workers have looked at every byte of them."""
    from .worker import check_receipts

    receipts = Receipts(draft.store)
    names = receipts.names()
    parts = [names[at : at + CHECKED_AT_ONCE] for at in range(0, len(names), CHECKED_AT_ONCE)]
    tasks = [client.submit(check_receipts, draft.store.root, part, pure=False) for part in parts]
    client.gather(tasks)
    return receipts.all()


def _seam(made: list[tuple[str, Any]], grid: Grid, encoder: Encoder, draft: Drafted) -> float | None:
    """The largest difference between what two workers made of the rows above blocks."""
    apart = [
        _difference(row, above, one.block, grid, encoder, draft.store.get)
        for _, one in made
        for row, above in one.above.items()
    ]
    return max(apart, default=None)


def _difference(
    row: int, above: np.ndarray, block: Block, grid: Grid, encoder: Encoder, get: Callable[[str], bytes | None]
) -> float:
    columns = slice(*grid.column_range(block))
    there = encoder.last_row(row - 1, range(block.left, block.right), get)[columns].astype(np.float64)
    apart = np.abs(there - above[columns].astype(np.float64))
    return float(np.nanmax(apart, initial=0.0))


def _spread(
    conductor: Any, settled: Settled, plan: Cut, kept: int, seam: float | None, settling: float, seconds: float
) -> Spread:
    by_worker: dict[str, list[Any]] = {}
    for worker, one in conductor.made:
        by_worker.setdefault(worker, []).append(one)
    shares = tuple(_share(worker, those) for worker, those in sorted(by_worker.items()))
    grid = conductor.grid
    whole = settled.work.of((0, grid.height), (0, grid.width))
    return Spread(
        workers=shares,
        blocks=len(plan.blocks),
        why=plan.why,
        planned=plan.recompute,
        recompute=sum(one.pixels for one in shares) / whole,
        kept=kept,
        shards=conductor.shards,
        seam=seam,
        retries=conductor.retries,
        settling=settling,
        seconds=seconds,
        read=sum(one.read_bytes for one in shares) / settled.image_bytes,
    )


def _share(worker: str, made: list[Any]) -> Share:
    rows = [row for one in made for row in one.rows]
    return Share(
        worker=worker,
        blocks=len(made),
        rows=len(rows),
        seconds=sum(one.seconds for one in made),
        pixels=sum(one.work for one in made),
        read_bytes=sum(one.read_bytes for one in made),
        read_seconds=sum(one.read_seconds for one in made),
        written_bytes=sum(row.bytes for row in rows),
        write_seconds=sum(row.write_seconds for row in rows),
    )
