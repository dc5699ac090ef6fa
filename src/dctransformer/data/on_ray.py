"""The same job on many tasks, by Ray's workers: as `dctransformer.data.workers` does it, on any number of machines."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Task = TypeVar("Task")

_BLOCKS = 10_000
"""Most blocks that the tasks are dealt into: what Ray keeps account of, and repeats if a worker is lost."""


def on_ray(
    make: Callable[[Task], tuple[bytes, int]], tasks: list[Task], workers: int | None
) -> Iterator[tuple[Task, tuple[bytes, int]]]:
    """Do all tasks with Ray Data and yield each with its result, as they are done.

    A worker that is killed is replaced, and what it had in hand is done again. Ray is joined if this process has joined
    it before or ``RAY_ADDRESS`` names a cluster; otherwise it is started here, for as long as this takes.

    Args:
        make: called once a task (again if the worker is lost); sent to each worker once.
        tasks: what to do.
        workers: how many; None for as many as there are processors.

    Raises:
        ValueError: Ray is not installed, or gives up.
    """
    if not tasks:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to its makers
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise ValueError("Ray is not installed; install it with: pip install 'dctransformer[ray]'") from error

    ours = not ray.is_initialized()
    try:
        if ours and "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False)
        elif ours:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        count = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(tasks))
        rows = ray.data.from_items(
            [{"task": i, "what": task} for i, task in enumerate(tasks)], override_num_blocks=min(len(tasks), _BLOCKS)
        )
        worker: Any = _Worker
        made = rows.map(worker, fn_constructor_args=(ray.put(make),), concurrency=count, num_cpus=1)
        for row in made.iter_rows():
            yield tasks[row["task"]], (row["piece"], row["failures"])
    except RayError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"Ray gave up ({first}); run the command again, it continues") from error
    finally:
        if ours:
            ray.shutdown()


class _Worker:
    """Lives in a process of Ray's and does tasks there."""

    def __init__(self, make: Any):
        import ray

        self.make: Callable[[Any], tuple[bytes, int]] = ray.get(make)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        piece, failures = self.make(row["what"])
        return {"task": row["task"], "piece": piece, "failures": failures}
