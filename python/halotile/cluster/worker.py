# SPDX-License-Identifier: MIT
"""What runs on workers: a plugin that brings the job, once to each, also to those that come later; and the tasks.

One block at a time is made in a process, whatever its threads: a model's memory is counted once, and torch gets all of
the worker's threads. Imports distributed.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from ..optional import torch_if_loaded
from .blockrun import Made, Row, run_block
from .blocks import Block
from .job import Job
from .settle import Ready, Settled, ready, settle
from .shards import Encoder
from .store import Receipts, store_at

__all__ = ["Carrier", "Failed", "ask_ready", "check_receipts", "make_block", "plan_run", "topic_of"]

BROUGHT: dict[str, bytes] = {}  # pickled jobs, by id
READY: dict[str, Any] = {}  # opened, by id
ONE_AT_A_TIME = threading.RLock()


class Carrier(WorkerPlugin):
    """Brings pickled state under a name."""

    def __init__(self, identifier: str, state: bytes):
        self.name, self.identifier, self.state = f"halotile-{identifier}", identifier, state

    def setup(self, worker: Worker) -> None:
        BROUGHT[self.identifier] = self.state

    def teardown(self, worker: Worker) -> None:
        BROUGHT.pop(self.identifier, None)
        READY.pop(self.identifier, None)


def topic_of(identifier: str) -> str:
    return f"halotile-{identifier}"


def _brought(identifier: str) -> Any:
    try:
        return pickle.loads(BROUGHT[identifier])  # the user's own, from the client; no file
    except KeyError:
        raise RuntimeError("this worker was not given the job: its run has ended") from None


def plan_run(identifier: str, before: dict[str, Any] | None) -> Settled:
    with ONE_AT_A_TIME, _all_threads():
        job: Job = _brought(identifier)
        return settle(job, before)


@dataclass(frozen=True)
class Failed:
    """A worker could not read or write; another one may."""

    error: OSError


def make_block(identifier: str, settled: str, root: str, block: Block) -> tuple[str, Made | Failed]:
    """Makes a block. Returns this worker's address, too.

    settled: the name of what was settled. root: of the store.
    """
    worker = get_worker()
    key = worker.get_current_task()

    def told(row: Row | None) -> None:
        about = None if row is None else list(astuple(row))
        worker.log_event(topic_of(identifier), [key, list(astuple(block)), about, worker.address])

    told(None)  # it begins

    with ONE_AT_A_TIME, _all_threads():
        try:
            receipts = Receipts(store_at(root), identifier)
            receipts.check()
            opened, encoder, work = _opened(identifier, settled)
            return worker.address, run_block(opened, work, block, encoder, receipts, told)
        except OSError as error:
            return worker.address, Failed(error)


def _opened(identifier: str, settled: str) -> tuple[Ready, Encoder, Any]:
    """The run on this worker, opened once; with what was settled later of it."""
    if identifier not in READY:
        decided: Settled = _brought(settled)
        encoder = Encoder(decided.shape, decided.out_dtype)
        READY[identifier] = settled, (ready(_brought(identifier), decided), encoder, decided.work)
    name, opened = READY[identifier]
    if name != settled:
        opened[0].hold(_brought(settled).held)
        READY[identifier] = settled, opened
    return opened


def ask_ready(identifier: str, settled: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function with the run on this worker."""
    with ONE_AT_A_TIME, _all_threads():
        return function(_opened(identifier, settled)[0].prepared, *arguments)


def check_receipts(root: str, names: list[str]) -> list[str]:
    """Drops receipts whose shards are not what they say; returns their names."""
    return Receipts(store_at(root)).drop_false(names)


@contextlib.contextmanager
def _all_threads() -> Iterator[None]:
    """torch gets the worker's threads, which no other task uses meanwhile; Dask starts workers with one for it."""
    torch, threads = torch_if_loaded(), get_worker().state.nthreads
    if torch is None:
        import importlib.util

        if importlib.util.find_spec("torch") is None:
            yield
            return
        import torch
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
