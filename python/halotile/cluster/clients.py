# SPDX-License-Identifier: MIT
"""cluster=: a client of Dask, an address, or "local", a cluster of processes on this machine for one run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..optional import import_distributed
from ..texts import quoted

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["client_of", "workers_of"]

PATIENCE = 30  # seconds for an address to answer, and for the first worker to come
SET_FOR_WORKERS = ("MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED")
SET_FOR_WORKERS += ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GPU = "GPU"  # the resource that workers with a device of their own declare


@contextmanager
def client_of(cluster: Any) -> Iterator[Client]:
    """Raises TypeError for what is none of these, OSError where nobody answers."""
    distributed = import_distributed()
    if isinstance(cluster, distributed.Client):
        yield cluster
    elif isinstance(cluster, distributed.deploy.Cluster):
        with distributed.Client(cluster) as client:
            yield client
    elif cluster == "local":
        with (
            _environment_kept(),
            distributed.LocalCluster(processes=True, dashboard_address=":0") as local,
            distributed.Client(local) as client,
        ):
            yield client
    elif isinstance(cluster, str):
        with _connected(distributed, cluster) as client:
            yield client
    else:
        text = "a client of distributed, a cluster, the address of a scheduler, or 'local'"
        raise TypeError(f"cluster must be {text}, not {type(cluster).__name__}")


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Takes back what Dask sets for its workers in the environment of the process that starts them, for good."""
    before = {name: os.environ.get(name) for name in SET_FOR_WORKERS}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _connected(distributed: Any, address: str) -> Client:
    try:
        return distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise OSError(f"cluster={address!r}: no scheduler of Dask answers there: {quoted(error)}") from error
    except ValueError as error:
        raise ValueError(
            f"cluster must be the address of a scheduler or 'local', not {address!r}: {quoted(error)}"
        ) from error


def workers_of(client: Client) -> tuple[list[str], dict[str, float] | None]:
    """The addresses of the workers that may be asked, and the resources that a block takes: one GPU, and workers that
    have one, where any worker declares that."""
    about = client.scheduler_info(n_workers=-1)["workers"]
    with_device = [address for address, one in about.items() if one.get("resources", {}).get(GPU)]
    return (with_device, {GPU: 1}) if with_device else (list(about), None)
