"""One job on many tasks with Ray's workers, on any number of machines: see `dctransformer.processes` for one."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dctransformer.files import first_line

Task = TypeVar("Task")

_BLOCKS = 10_000
"""Most blocks that the tasks are dealt into: Ray keeps account of blocks, and repeats those of a lost worker."""


_PROBE_SECONDS = 5
"""Longest wait for a cluster's address to accept a connection."""


def on_ray(
    make: Callable[[Task], tuple[bytes, int]], tasks: list[Task], workers: int | None
) -> Iterator[tuple[Task, tuple[bytes, int]]]:
    """Do all tasks with Ray Data and yield each with its result, as they are done.

    A worker that is killed is replaced, and what it had in hand is done again. Ray is joined if this process has joined
    it before or ``RAY_ADDRESS`` names a cluster; otherwise it is started here, for as long as this takes, on the
    loopback address and with a random token, without which no other process can use its ports.

    Args:
        make: called once per task (again if the worker is lost); sent to each worker once.
        tasks: arguments of the calls.
        workers: number of workers; None for as many as there are processors.

    Raises:
        ValueError: Ray is not installed, can't start, can't be reached, or gives up.
    """
    if not tasks:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to Ray's makers
    address = os.environ.get("RAY_ADDRESS", "")
    joined = getattr(sys.modules.get("ray"), "is_initialized", bool)()
    with _own_instance() if not joined and not address else contextlib.nullcontext():
        ray = _import_ray()
        try:
            if not joined:
                _start(ray, address, workers)
            ray.data.DataContext.get_current().enable_progress_bars = False
            count = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(tasks))
            rows = ray.data.from_items(
                [{"task": i, "what": task} for i, task in enumerate(tasks)],
                override_num_blocks=min(len(tasks), _BLOCKS),
            )
            worker: Any = _Worker
            results = rows.map(worker, fn_constructor_args=(ray.put(make),), concurrency=count, num_cpus=1)
            for row in results.iter_rows():
                yield tasks[row["task"]], (row["piece"], row["failures"])
        except ray.exceptions.RayError as error:
            raise ValueError(f"Ray gave up ({first_line(error)}); run the command again, it continues") from error
        finally:
            if not joined:
                ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise ValueError("Ray is not installed; install it with: pip install 'dctransformer[ray]'") from error
    return ray


@contextlib.contextmanager
def _own_instance() -> Iterator[None]:
    """Set up an instance that only this process and its workers can use: a token, and no outside addresses."""
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: one machine, so the loopback address
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(ray: Any, address: str, workers: int | None) -> None:
    """Join the cluster at an address, or start an instance here.

    Raises:
        ValueError: there is no cluster, or Ray can't start.
    """
    try:
        if address:
            _probe(address)
            ray.init(log_to_driver=False)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    # Ray answers with exceptions of many kinds (OSError, ConnectionError, RuntimeError, ValueError, its own).
    except Exception as error:
        if "AF_UNIX path length" in str(error):
            raise ValueError(
                "the path of the folder for temporary files is too long for Ray's sockets; set TMPDIR or RAY_TMPDIR to "
                "a shorter one, say /tmp"
            ) from error
        what = f"no cluster answers at RAY_ADDRESS={address}" if address else "Ray can't start"
        cure = "correct or unset RAY_ADDRESS" if address else "use --engine local"
        raise ValueError(f"{what} ({first_line(error)}); {cure}") from error


def _probe(address: str) -> None:
    """Raise OSError if nothing accepts connections at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():  # otherwise a word such as auto
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()


class _Worker:
    """State of a worker process of Ray: it runs the job on one task after another."""

    def __init__(self, make: Any):
        import ray

        self.make: Callable[[Any], tuple[bytes, int]] = ray.get(make)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        piece, failures = self.make(row["what"])
        return {"task": row["task"], "piece": piece, "failures": failures}
