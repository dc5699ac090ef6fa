"""Process pools whose workers end with the process that started them, however it ends."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
Send = Callable[[Any], None]

# Forked processes need no start-up time and share the parent's memory; elsewhere forking is not safe or not there.
_CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

_AHEAD = 4
"""Tasks per worker that are under way or wait to be collected."""


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def useful_workers(wanted: int | None, items: int, device: torch.device) -> int:
    """Return the number of processes to use for a network's work.

    Args:
        wanted: by the user; None for as many as PyTorch has threads.
        items: of work.
        device: of the network.

    Returns:
        1 where processes can't help or can't be forked safely: on a GPU, off Linux, away from the main thread.
    """
    import torch

    can_fork = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if device.type != "cpu" or not can_fork or threading.current_thread() is not threading.main_thread():
        return 1
    return max(1, min(torch.get_num_threads() if wanted is None else wanted, items))


def in_parallel(job: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    """Do all tasks and yield each with its result, in their order.

    Tasks that have begun are finished when the caller stops early or is interrupted.

    Args:
        job: called in the workers, once per task; sent to each worker once.
        tasks: small objects that can be pickled.
        workers: processes; with 1 the job runs in this one.

    Raises:
        ValueError: a worker was killed. Whatever ``job`` raises is raised as it is.
    """
    if workers <= 1:
        for task in tasks:
            yield task, job(task)
        return
    waiting = iter(tasks)
    begun: collections.deque[tuple[Task, Future]] = collections.deque()
    try:
        with _pool(workers, job) as (pool, _):
            begun.extend((task, _submit(pool, task)) for task in itertools.islice(waiting, _AHEAD * workers))
            while begun:
                task, future = begun.popleft()
                result = future.result()
                begun.extend((t, _submit(pool, t)) for t in itertools.islice(waiting, 1))
                yield task, result
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed (out of memory?); run the command again with fewer workers, it continues"
        ) from error


def deal(
    work: Callable[[Sequence[int], Send], Result], count: int, workers: int, receive: Callable[[int, Any], None]
) -> list[Result]:
    """Deal items to forked processes, which report on the way.

    When the caller is interrupted, or a process fails, the others end at once.

    Args:
        work: called in each process with the numbers of its items and a function that sends a message to ``receive``.
            Messages and results must pickle.
        count: of the items.
        workers: processes.
        receive: called here with (process, message).

    Returns:
        The result of each process: process w has items w, w + workers, w + 2 · workers, …

    Raises:
        ValueError: a process raised one, or was ended from outside.
        RuntimeError: a process raised another error.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    job = functools.partial(_work_and_send, work, sender, _CONTEXT.Lock())
    try:
        with _pool(workers, job) as (pool, stop):
            try:
                futures = [_submit(pool, (worker, range(worker, count, workers))) for worker in range(workers)]
                unfinished = set(futures)
                while unfinished:
                    if receiver.poll(0.05):
                        receive(*receiver.recv())
                    finished, unfinished = concurrent.futures.wait(unfinished, 0)
                    for future in finished:
                        future.result()
                while receiver.poll():
                    receive(*receiver.recv())
            except BaseException:
                stop.send(None)
                raise
            return [future.result() for future in futures]
    except BrokenProcessPool:
        raise ValueError(
            "a sampling process was ended from outside (was there too little memory?); try a smaller batch or workers 1"
        ) from None
    finally:
        receiver.close()
        sender.close()


def _work_and_send(
    work: Callable[[Sequence[int], Send], Result], sender: Connection, lock: Any, task: tuple[int, Sequence[int]]
) -> Result:
    worker, items = task

    def send(message: Any) -> None:
        with lock:
            sender.send((worker, message))

    try:
        return work(items, send)
    except ValueError:
        raise
    except Exception as error:  # which may not pickle
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


@contextlib.contextmanager
def _pool(workers: int, job: Callable[[Any], Any]) -> Iterator[tuple[ProcessPoolExecutor, Connection]]:
    """Yield a pool that does ``job``, and a connection on which any message ends its workers at once."""
    # The bars' own lock is shared with forked workers; one that is killed while it holds it would stop this process.
    tqdm.set_lock(threading.RLock())
    stopped, stop = _CONTEXT.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, _CONTEXT, _start, (job, stopped))
    try:
        yield pool, stop
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        stopped.close()
        stop.close()


def _submit(pool: ProcessPoolExecutor, task: Any) -> Future:
    with warnings.catch_warnings():
        # Python warns of forking in a process with threads; the children run none of their code.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pool.submit(_do, task)


_job: Callable[[Any], Any]


def _start(job: Callable[[Any], Any], stopped: Connection) -> None:
    """Set up a worker."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the main process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    if "torch" in sys.modules:
        # One process per core; and the threads of the parent's OpenMP pool are not in the child.
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(stopped,), daemon=True).start()


def _end_with_parent(stopped: Connection) -> None:
    """End this worker when its parent has ended, even by SIGKILL, or stops the pool."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel, stopped])
    os._exit(1)


def _do(task: Any) -> Any:
    return _job(task)
