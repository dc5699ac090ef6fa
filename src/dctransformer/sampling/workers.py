"""Sampling on several cores: pictures are dealt to processes with one thread each.

The products of a step are too small to share between threads; whole pictures share well. The processes are forked,
so that they have the model at once and without a copy, as PyTorch's data loaders are on Linux.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

Tell = Callable[[Any], None]


def useful_workers(asked: int | None, pictures: int, device: torch.device) -> int:
    """How many processes to use.

    Args:
        asked: by the user; None for as many as PyTorch has threads.
        pictures: that there are to make.
        device: of the model.

    Returns:
        1 where processes can't help or can't be forked safely: on a GPU, off Linux, away from the main thread.
    """
    can_fork = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if device.type != "cpu" or not can_fork or threading.current_thread() is not threading.main_thread():
        return 1
    return max(1, min(torch.get_num_threads() if asked is None else asked, pictures))


def spread(
    work: Callable[[Sequence[int], Tell], Any], count: int, workers: int, hear: Callable[[int, Any], None]
) -> list:
    """Deal items to forked processes.

    Args:
        work: called in each process with the numbers of its items and a function that tells `hear` something; returns
            the process's results. What is told and returned must pickle.
        count: items.
        workers: processes.
        hear: called here with (process, what it tells).

    Returns:
        What each process returned.

    Raises:
        ValueError: a process raised one, or was ended from outside.
    """
    context = multiprocessing.get_context("fork")
    results: list[Any] = [None] * workers
    pipes: dict[Connection, int] = {}
    processes = []
    try:
        for worker in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(work, range(worker, count, workers), theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes[ours] = worker
        while pipes:
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                worker = pipes[pipe]
                try:
                    kind, message = pipe.recv()
                except EOFError:
                    raise ValueError(
                        "a sampling process was ended from outside (was there too little memory?); "
                        "try a smaller batch or workers 1"
                    ) from None
                if kind == "told":
                    hear(worker, message)
                elif kind == "raised":
                    raise message
                else:
                    results[worker] = message
                    del pipes[pipe]
        return results
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _run(work: Callable[[Sequence[int], Tell], Any], items: Sequence[int], pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        result = "returned", work(items, lambda message: pipe.send(("told", message)))
    except Exception as error:
        # What does not pickle is told by its words.
        result = "raised", error if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")
    pipe.send(result)
    pipe.close()
