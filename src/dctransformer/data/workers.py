"""The same job on many tasks, in several processes."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 4
"""Tasks a worker that are under way or wait to be collected."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def in_parallel(job: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    """Do all tasks and yield each with its result, in their order.

    Tasks that have begun are finished when the caller stops early or is interrupted.

    Args:
        job: called in the workers, once a task; sent to each worker once.
        tasks: small things that can be pickled.
        workers: processes; with 1 the job runs in this one.

    Raises:
        ValueError: a worker was killed. Whatever ``job`` raises is raised as it is.
    """
    if workers <= 1:
        for task in tasks:
            yield task, job(task)
        return
    # Forked processes need no start-up time; elsewhere than on Linux forking is not safe or not there.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (job,))
    waiting = iter(tasks)
    begun: collections.deque[tuple[Task, Future]] = collections.deque()
    try:
        with warnings.catch_warnings():
            # Python warns of forking beside other threads; the children run none of their code.
            warnings.simplefilter("ignore", DeprecationWarning)
            begun.extend((task, pool.submit(_do, task)) for task in itertools.islice(waiting, _AHEAD * workers))
        while begun:
            task, future = begun.popleft()
            result = future.result()
            begun.extend((t, pool.submit(_do, t)) for t in itertools.islice(waiting, 1))
            yield task, result
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed (out of memory?); run the command again with fewer workers, it continues"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_job: Callable[[Any], Any]


def _start(job: Callable[[Any], Any]) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the main process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    if "torch" in sys.modules:
        # One process a core; and the threads of the parent's OpenMP pool did not come along.
        sys.modules["torch"].set_num_threads(1)
    # Nobody who kills the main process wants its workers to stay.
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(task: Any) -> Any:
    return _job(task)
